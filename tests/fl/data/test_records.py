import numpy as np

from fl.data import Records


def test_rows_have_fixed_slots():
    """Row i is in slot i, absent slots are zero and said to be absent."""
    placed = Records.place(np.ones((2, 3), np.float32), np.array([1, 1], np.int32), 4)
    assert placed.x.shape == (4, 3)
    assert placed.present.tolist() == [True, True, False, False]
    assert not placed.x[2:].any()
    assert placed.y.tolist() == [1, 1, 0, 0]


def test_identical_records_have_different_tags():
    """Two equal rows draw different random numbers, and a row keeps its own wherever it stands."""
    x, y = np.float32([[1, 2], [1, 2], [3, 4]]), np.int32([0, 0, 1])
    tags = Records.place(x, y, 4).tags
    assert len(set(tags[:3].tolist())) == 3
    assert Records.place(x[1:], y[1:], 2).tags.tolist() == tags[[0, 2]].tolist()


def test_records_of_any_shape_are_placed():
    """Images and tokens take slots as rows of a table do; no rows leave every slot absent."""
    placed = Records.place(np.ones((3, 2, 2), np.float32), np.ones((3, 5), np.int32), 4)
    assert (placed.x.shape, placed.y.shape, placed.present.sum()) == ((4, 2, 2), (4, 5), 3)
    empty = Records.place(np.zeros((0, 2), np.float32), np.zeros(0, np.int32), 1)
    assert (empty.x.tolist(), empty.present.tolist()) == ([[0, 0]], [False])
