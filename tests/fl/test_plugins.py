import pytest

from fl.errors import ConfigError
from fl.plugins import import_function


def test_a_function_is_found_by_name():
    """The function itself comes back, and so does anything else that can be called."""
    import math

    assert import_function("model.loss", "math:hypot") is math.hypot
    assert import_function("model.loss", "fractions:Fraction").__name__ == "Fraction"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.module:f", "No module named 'absent'"),
        ("math:absent", "no attribute 'absent'"),
        (":f", "Empty module name"),
        ("math:", "no attribute ''"),
        ("math", "no attribute ''"),
        (".math:hypot", "relative import"),
        ("math:pi", "is not a function"),
    ],
)
def test_what_is_no_function_is_refused(name, reason):
    """A module or name that is not there, and a value that cannot be called, are refused by the configuration's key."""
    with pytest.raises(ConfigError, match=rf'^model\.loss: "{name}" .*{reason}'):
        import_function("model.loss", name)
