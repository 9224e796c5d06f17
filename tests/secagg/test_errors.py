import pytest

from secagg.errors import BelowThresholdError, DecodeError, shown


def test_long_lists_of_clients_are_cut_in_messages():
    """An error message does not grow with a hostile list."""
    assert shown({3, 1, 2}) == "[1, 2, 3]"
    assert shown(range(500)) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 490 more]"


@pytest.mark.parametrize(
    ("count", "ends"),
    [(10, "client 9 was not taken: rubbish"), (11, "; and 1 more were not"), (999, "; and 989 more were not")],
)
def test_an_error_stays_readable_however_many_are_missing(count, ends):
    """Ten reasons are in the message, all of them in `rejected`."""
    rejected = {i: DecodeError("rubbish") for i in range(count)}
    error = BelowThresholdError("mask", 1000, tuple(range(1000, 2000)), "min_survivors", rejected)
    assert str(error).endswith(ends)
    assert len(str(error)) < 700
    assert error.rejected == rejected
