import csv
import hashlib

import pytest

from fl.data.heart import HEART_FOLDER
from fl.data.prepare_heart import main, prepare
from fl.errors import DataError

HEADER = ("id", "age", "dataset", "trestbps", "chol", "num")


def original(*rows):
    """Rows of a small table in the original's form."""
    return [dict(zip(HEADER, row, strict=True)) for row in rows]


FLAWED = original(
    ("303", "38", "Cleveland", "138", "175", "0"),
    ("304", "28", "Cleveland", "130", "132", "0"),
    ("405", "49", "Hungary", "110", "", "0"),
    ("406", "49", "Hungary", "110", "", "0"),
    ("598", "32", "Switzerland", "95", "0", "1"),
    ("754", "55", "VA Long Beach", "0", "0", "3"),
)


def write(path, rows):
    """A CSV file of the rows; its path as text."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_mends_each_known_flaw_and_keeps_the_rest():
    """Row 304 moves, zeros become empty, the later of two equal rows goes; ids and order stay."""
    rows, mended = prepare(FLAWED)
    assert [row["id"] for row in rows] == ["303", "304", "405", "598", "754"]
    assert rows[0] == FLAWED[0]
    assert rows[1] == FLAWED[1] | {"dataset": "Hungary"}
    assert rows[3]["chol"] == ""
    assert rows[3]["trestbps"] == "95"
    assert (rows[4]["trestbps"], rows[4]["chol"]) == ("", "")
    assert mended == {
        "moved to Hungary": ["304"],
        "zero to missing": ["598", "754", "754"],
        "duplicate dropped": ["406"],
    }
    assert FLAWED[1]["dataset"] == "Cleveland"


@pytest.mark.parametrize("flaw_row", [1, 3])
def test_refuses_a_table_without_a_known_flaw(flaw_row):
    """A table that was mended already is not the original, and the message says which flaw is not there."""
    rows = [row for index, row in enumerate(FLAWED) if index != flaw_row]
    with pytest.raises(DataError, match="moved to Hungary" if flaw_row == 1 else "duplicate dropped"):
        prepare(rows)


def test_refuses_another_table_by_column():
    """A table without the columns to be mended is refused by the column's name."""
    with pytest.raises(DataError, match="data row 1 has no 'dataset'"):
        prepare([{"id": "1", "chol": "2", "trestbps": "3"}])


def test_command_writes_the_table_and_reports(tmp_path, capsys):
    """The command writes what `prepare` gives and lists the mended rows."""
    target = tmp_path / "heart.csv"
    assert main([write(tmp_path / "original.csv", FLAWED), str(target)]) == 0
    with target.open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == prepare(FLAWED)[0]
    assert b"\r" not in target.read_bytes()
    assert "duplicate dropped: 1 (406)" in capsys.readouterr().out


@pytest.mark.parametrize(("count", "code"), [(0, 2), (1, 2), (2, 1)])
def test_command_refuses_without_writing(tmp_path, capsys, count, code):
    """Wrong arguments and an unreadable original have an exit code, a message and no output file."""
    target = tmp_path / "heart.csv"
    assert main([str(tmp_path / "absent.csv"), str(target)][:count]) == code
    assert capsys.readouterr().err
    assert not target.exists()


def test_notice_names_the_table_that_ships():
    """The notice has the licence, the source and the checksum of the shipped table."""
    notice = (HEART_FOLDER / "NOTICE.md").read_text(encoding="utf-8")
    assert hashlib.sha256((HEART_FOLDER / "heart.csv").read_bytes()).hexdigest() in notice
    assert "CC BY 4.0" in notice
    assert "10.24432/C52P4X" in notice
