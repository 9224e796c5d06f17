import msgspec
import numpy as np
import pytest

from fl.data import (
    CategoryColumn,
    FlagColumn,
    Label,
    NumberColumn,
    Schema,
    SiteData,
    Sites,
    load_csv,
    load_csv_sites,
    table_fingerprint,
)
from fl.errors import DataError

SCHEMA = Schema(
    name="ward",
    label=Label(column="ill", positive=("yes",), negative=("no",)),
    columns=(
        NumberColumn(name="age", low=20, high=80, lowest=0, highest=120, unit="years"),
        NumberColumn(name="pulse", low=40, high=140, lowest=20, highest=300, may_be_missing=True),
        CategoryColumn(name="group", levels=("a", "b, c"), may_be_missing=True),
        FlagColumn(name="smoker", yes=("TRUE",), no=("FALSE",)),
    ),
    missing=("", "?", "NA"),
    ignore=("id",),
    sites=Sites(column="clinic", names={"north": "N", "south": "S"}),
)
HEADER = "id,clinic,age,pulse,group,smoker,ill"
GOOD = "1,N,50,90,a,TRUE,yes\n2,S,80,,?,FALSE,no\n"


def write(tmp_path, content, name="ward.csv"):
    """A file with this content; its path."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_encodes_by_the_schema(tmp_path):
    """Numbers by public range, one-hot levels, flags, missing as 0 with its indicator."""
    site = load_csv(write(tmp_path, f"{HEADER}\n{GOOD}"), SCHEMA)
    assert site.name == "ward"
    assert site.features == (
        "age",
        "pulse",
        "pulse:missing",
        "group=a",
        "group=b, c",
        "group:missing",
        "smoker",
    )
    assert site.x.tolist() == [[0, 0, 0, 1, 0, 0, 1], [1, 0, 1, 0, 0, 1, 0]]
    assert site.y.tolist() == [1, 0]
    assert (site.x.dtype, site.y.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize(
    "content",
    [
        ("\ufeff" + HEADER + "\n" + GOOD).encode(),
        (HEADER + "\n" + GOOD).replace("\n", "\r\n").encode(),
        (HEADER + "\n" + GOOD).rstrip("\n").encode(),
        (HEADER + "\n\n" + GOOD + "\n\n").encode(),
        (HEADER + "\n" + GOOD).replace(",", " , ").encode(),
        b"pulse,group,smoker,ill,age,clinic\n90,a,TRUE,yes,50.0,N\nNA,NA,FALSE,no,8e1,S\n",
        b'"age",pulse,group,smoker,ill\n"+50",90.,"a",TRUE,yes\n80,?,,FALSE,no\n',
    ],
    ids=["bom", "crlf", "no-last-newline", "blank-lines", "spaces", "reordered", "quoted-without-optional"],
)
def test_same_patients_in_another_spelling(tmp_path, content):
    """BOM, CRLF, blank lines, spaces, column order and quotes give the same data set."""
    expected = load_csv(write(tmp_path, f"{HEADER}\n{GOOD}"), SCHEMA)
    site = load_csv(write(tmp_path, content, "other.csv"), SCHEMA)
    assert np.array_equal(site.x, expected.x)
    assert np.array_equal(site.y, expected.y)
    assert site.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("cell", "value"), [("0", -1), ("19.9", -1), ("20", -1), ("35", -0.5), ("120", 1), (".5e2", 0)]
)
def test_clamps_between_clinical_and_plausible(tmp_path, cell, value):
    """A plausible value outside the clinical range is clamped to the range."""
    assert load_csv(write(tmp_path, f"{HEADER}\n1,N,{cell},90,a,TRUE,yes\n"), SCHEMA).x[0, 0] == value


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("2,S,old,90,a,TRUE,no", r"column 'age': 'old' is not a number"),
        ("2,S,1_0,90,a,TRUE,no", r"column 'age': '1_0' is not a number"),
        ("2,S,٣٠,90,a,TRUE,no", r"column 'age': '٣٠' is not a number"),
        ("2,S,0x1F,90,a,TRUE,no", r"column 'age': '0x1F' is not a number"),
        ('2,S,"50,5",90,a,TRUE,no', r"column 'age': '50,5' has a decimal comma; write 50\.5"),
        ("2,S,50,nan,a,TRUE,no", r"column 'pulse': 'nan' is not finite"),
        ("2,S,50,-Inf,a,TRUE,no", r"column 'pulse': '-Inf' is not finite"),
        ("2,S,50,1e999,a,TRUE,no", r"column 'pulse': '1e999' is outside of what is plausible"),
        ("2,S,121,90,a,TRUE,no", r"column 'age': '121' is outside of what is plausible, 0 to 120 years"),
        ("2,S,-1,90,a,TRUE,no", r"column 'age': '-1' is outside"),
        ("2,S,,90,a,TRUE,no", r"column 'age': '' is missing: the schema says it never is"),
        ("2,S,50,90,z,TRUE,no", r"column 'group': 'z' is no level; known: 'a', 'b, c'"),
        ("2,S,50,90,A,TRUE,no", r"column 'group': 'A' is no level"),
        ("2,S,50,90,a,maybe,no", r"column 'smoker': 'maybe' is neither yes nor no; known: 'TRUE', 'FALSE'"),
        ("2,S,50,90,a,?,no", r"column 'smoker': '\?' is missing"),
        ("2,S,50,90,a,TRUE,", r"column 'ill': '' is missing: the label must be there"),
        ("2,S,50,90,a,TRUE,2", r"column 'ill': '2' is no label; known: 'yes', 'no'"),
        (f"2,S,{'x' * 99},90,a,TRUE,no", r"column 'age': 'x{40}…' is not a number"),
    ],
)
def test_refuses_a_cell_by_file_row_column(tmp_path, row, named):
    """Each wrong cell is refused with file, data row, line, column and the cell itself (F18)."""
    path = write(tmp_path, f"{HEADER}\n1,N,50,90,a,TRUE,yes\n\n{row}\n")
    with pytest.raises(DataError, match=rf"data row 2 \(line 4\), {named}") as caught:
        load_csv(path, SCHEMA)
    assert str(path) in str(caught.value)


def test_line_is_where_the_row_starts(tmp_path):
    """A quoted cell that spans lines moves the line, not the row."""
    path = write(tmp_path, f'{HEADER}\n"1\n1",N,50,90,a,TRUE,yes\n2,N,x,90,a,TRUE,yes\n')
    with pytest.raises(DataError, match=r"data row 2 \(line 4\)"):
        load_csv(path, SCHEMA)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"age,pulse,group,smoker\n", "column 'ill' is missing from the header"),
        (b"age,ill\n", "column 'pulse', 'group', 'smoker' is missing from the header"),
        (b"age;pulse;group;smoker;ill\n", r"missing from the header \(separated by ';'\? use commas\)"),
        (f"{HEADER},weight\n".encode(), "column 'weight' is not in schema 'ward'"),
        (f"{HEADER},age\n".encode(), "column 'age' is in the header twice"),
        (f"{HEADER}\n1,N,50,90,a,TRUE\n".encode(), r"data row 1 \(line 2\) has 6 cells, the header has 7$"),
        (f"{HEADER}\n1,N,50,5,90,a,TRUE,yes\n".encode(), r"data row 1 \(line 2\) has 8 cells.*decimal comma"),
        (f"{HEADER}\n1,N,50,90,\xe4,TRUE,yes\n".encode("latin-1"), "line 2 is not UTF-8"),
        (f'{HEADER}\n1,N,50,90,"a"b,TRUE,yes\n'.encode(), "line 2 is not CSV"),
        (f'{HEADER}\n1,N,50,90,"a,TRUE,yes\n'.encode(), "line 2 is not CSV"),
    ],
)
def test_refuses_a_file_that_is_not_the_table(tmp_path, content, named):
    """Empty, wrong header, ragged, wrong encoding, broken quotes: each refused by file and place (F18)."""
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=named) as caught:
        load_csv(path, SCHEMA)
    assert str(path) in str(caught.value)


def test_refuses_a_file_that_cannot_be_read(tmp_path):
    """An absent file and a folder are named."""
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read"):
        load_csv(tmp_path / "absent.csv", SCHEMA)
    with pytest.raises(DataError, match="cannot be read"):
        load_csv(tmp_path, SCHEMA)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_site_with_no_row_or_one(tmp_path, rows):
    """A site with 0 rows or 1 row is a site, with its shapes (F17)."""
    site = load_csv(write(tmp_path, f"{HEADER}\n" + "1,N,50,90,a,TRUE,yes\n" * rows), SCHEMA)
    assert site.x.shape == (rows, 7)
    assert site.y.shape == (rows,)


def test_a_row_is_encoded_alone(tmp_path):
    """Taking any row away leaves every other row's features bitwise the same."""
    rows = [f"{i},N,{20 + i},{60 + i},a,TRUE,yes" for i in range(6)]
    whole = load_csv(write(tmp_path, "\n".join([HEADER, *rows])), SCHEMA)
    for index in range(6):
        rest = load_csv(write(tmp_path, "\n".join([HEADER, *rows[:index], *rows[index + 1 :]])), SCHEMA)
        assert rest.x.tobytes() == np.delete(whole.x, index, axis=0).tobytes()


def test_fingerprint_names_the_patients(tmp_path):
    """Row order and the site's name do not change the fingerprint; any value, label, or repeated row does."""
    first, second = GOOD.splitlines()
    base = load_csv(write(tmp_path, f"{HEADER}\n{GOOD}"), SCHEMA).fingerprint

    def of(*rows, name=None):
        return load_csv(write(tmp_path, "\n".join([HEADER, *rows])), SCHEMA, name=name).fingerprint

    assert of(second, first, name="elsewhere") == base
    assert len(bytes.fromhex(base)) == 32
    others = [
        of(first),
        of(first, first, second),
        of(first.replace("50", "51"), second),
        of(first.replace("yes", "no"), second),
    ]
    assert len({base, *others}) == 5


def test_fingerprint_does_not_follow_the_encoding(tmp_path):
    """Other clinical ranges, another order of columns in the schema, or another label threshold: the same patients."""
    file = write(tmp_path, f"{HEADER}\n{GOOD}")
    base = load_csv(file, SCHEMA)
    wider = [
        msgspec.structs.replace(column, high=column.high + 1) if isinstance(column, NumberColumn) else column
        for column in SCHEMA.columns
    ]
    swapped = msgspec.structs.replace(SCHEMA.label, positive=SCHEMA.label.negative, negative=SCHEMA.label.positive)
    for schema in (
        msgspec.structs.replace(SCHEMA, columns=tuple(wider)),
        msgspec.structs.replace(SCHEMA, columns=tuple(reversed(SCHEMA.columns))),
        msgspec.structs.replace(SCHEMA, label=swapped),
    ):
        other = load_csv(file, schema)
        assert not (np.array_equal(other.x, base.x) and np.array_equal(other.y, base.y))
        assert other.fingerprint == base.fingerprint


def test_two_empty_sites_are_two_data_sets(tmp_path):
    """Tables without rows are told apart by the site, or two sites would share a ledger."""
    empty = write(tmp_path, HEADER + "\n")
    assert load_csv(empty, SCHEMA, name="a").fingerprint != load_csv(empty, SCHEMA, name="b").fingerprint


def test_fingerprint_ignores_the_sign_of_zero():
    """-0.0 and 0.0 are the same measurement."""
    y = np.zeros(1, dtype=np.int32)
    zero, negative = np.array([[0.0]], dtype=np.float32), np.array([[-0.0]], dtype=np.float32)
    assert zero.tobytes() != negative.tobytes()
    assert table_fingerprint(zero, y) == table_fingerprint(negative, y)


def test_tells_sites_apart_by_column(tmp_path):
    """Every site of the schema is there, in its order, also the one without rows."""
    sites = load_csv_sites(write(tmp_path, f"{HEADER}\n1,S,50,90,a,TRUE,yes\n2,S,80,,?,FALSE,no\n"), SCHEMA)
    assert [(name, site.name, len(site.y)) for name, site in sites.items()] == [
        ("north", "north", 0),
        ("south", "south", 2),
    ]


def test_refuses_an_unknown_site_or_none(tmp_path):
    """An unknown site is refused by cell; so are a table or a schema without a site column."""
    with pytest.raises(DataError, match=r"data row 1 \(line 2\), column 'clinic': 'W' is no site; known: 'N', 'S'"):
        load_csv_sites(write(tmp_path, f"{HEADER}\n1,W,50,90,a,TRUE,yes\n"), SCHEMA)
    with pytest.raises(DataError, match="column 'clinic' is missing"):
        load_csv_sites(write(tmp_path, "age,pulse,group,smoker,ill\n"), SCHEMA)
    schema = Schema(name="one", label=SCHEMA.label, columns=SCHEMA.columns)
    with pytest.raises(DataError, match="schema 'one' names no site column"):
        load_csv_sites(write(tmp_path, f"{HEADER}\n"), schema)


def test_site_data_cannot_be_changed_and_prints_no_patient(tmp_path):
    """Arrays are read-only, fields are frozen, and the repr has no patient's values."""
    site = load_csv(write(tmp_path, f"{HEADER}\n{GOOD}"), SCHEMA)
    with pytest.raises(ValueError, match="read-only"):
        site.x[0, 0] = 1
    with pytest.raises(AttributeError):
        site.name = "other"
    assert repr(site) == "SiteData('ward', 2 rows, 7 features)"


@pytest.mark.parametrize(
    ("x", "y", "named"),
    [
        (np.zeros((2, 1)), np.zeros(2, np.int32), "float32"),
        (np.zeros((2, 1), np.float32), np.zeros(2, np.int64), "int32"),
        (np.zeros((2, 2), np.float32), np.zeros(2, np.int32), "do not fit a table of 1 features"),
        (np.zeros((3, 1), np.float32), np.zeros(2, np.int32), "one row each"),
        (np.zeros((2, 1), np.float32), np.zeros((2, 1), np.int32), "do not fit"),
        (np.full((2, 1), np.nan, np.float32), np.zeros(2, np.int32), "not finite"),
        (np.zeros((2, 1), np.float32), np.array([0, 2], np.int32), "other than 0 and 1"),
    ],
)
def test_site_data_refuses_wrong_arrays(x, y, named):
    """Wrong types, shapes and values are refused with the site's name."""
    with pytest.raises(DataError, match=f"site s: .*{named}"):
        SiteData("s", x, y, ("f",), "00")
