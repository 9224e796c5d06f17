import pytest

from fl.errors import ConfigError, DataError
from fl.plugins import blame, import_function


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


@pytest.mark.parametrize(
    ("text", "cause"), [("def f(:", SyntaxError), ("1 / 0", ZeroDivisionError), ("raise SystemExit(3)", SystemExit)]
)
def test_a_module_that_cannot_be_run_is_refused(tmp_path, monkeypatch, text, cause):
    """Whatever a module does when it is imported, the key is named, and the error stays its cause."""
    (tmp_path / "bad_plugin.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r'^model\.loss: "bad_plugin:f" cannot be imported: ') as refused:
        import_function("model.loss", "bad_plugin:f")
    assert isinstance(refused.value.__cause__, cause)


def test_what_this_package_refuses_keeps_its_words():
    """An error of the package's own goes through as it is; any other becomes the configuration's."""
    with pytest.raises(DataError, match=r"^site a$"), blame("data.source", "a:b"):
        raise DataError("site a")
    with pytest.raises(ConfigError, match=r'^data\.source: "a:b" failed: KeyError: 3$'), blame("data.source", "a:b"):
        raise KeyError(3)
