"""The rows about tables: what may enter the encoding of a row, and what is refused where it lies."""

import json

import numpy as np
import pytest

from fl.data import load_csv, load_csv_sites, load_heart, load_schema
from fl.data.heart import HEART_FOLDER
from fl.errors import ConfigError, DataError
from fl.experiment import prepare

SCHEMA = """\
name = "patients"
missing = ["", "?"]
[label]
column = "sick"
positive = ["yes"]
negative = ["no"]
[[columns]]
name = "age"
kind = "number"
low = 20
high = 80
lowest = 0
highest = 120
unit = "years"
[[columns]]
name = "pressure"
kind = "number"
low = 80
high = 200
lowest = 40
highest = 300
may_be_missing = true
[[columns]]
name = "pain"
kind = "category"
levels = ["none", "typical", "atypical"]
[[columns]]
name = "smoker"
kind = "flag"
yes = ["1"]
no = ["0"]
"""
HEADER = "age,pressure,pain,smoker,sick"
GOOD = ["61,120,none,0,no", "45,?,typical,1,yes", "38.5,95,atypical,0,no", "70,180,none,1,yes"]


@pytest.fixture
def schema(tmp_path):
    """The schema, read from its file."""
    (tmp_path / "schema.toml").write_text(SCHEMA)
    return load_schema(tmp_path / "schema.toml")


@pytest.fixture
def site(tmp_path, schema):
    """`site(rows, header=…)`: a site's file, loaded."""

    def load(rows, header=HEADER, name="east"):
        file = tmp_path / f"site_{name}.csv"
        file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return load_csv(file, schema)

    return load


@pytest.mark.case("F16")
@pytest.mark.parametrize(
    "others",
    [
        [],
        ["119,299,none,1,yes"] * 50,
        ["1,41,typical,0,no"] * 3,
        ["20,80,none,0,no", "80,200,atypical,1,yes"],
        ["50,?,none,0,no"] * 20,
    ],
    ids=["alone", "old", "young", "at the range's ends", "missing"],
)
def test_a_row_is_scaled_by_its_schema(site, others):
    """Whatever else a site has, a row's features are the same bits: no mean, deviation, minimum, maximum or count of data scales it."""
    expected = [(0.366667, -1 / 3, 0.0, 1.0, 0.0, 0.0, 0.0)]
    alone = np.concatenate([site([row]).x for row in GOOD])
    np.testing.assert_allclose(alone[:1], expected, atol=1e-6)
    for rows in (GOOD + others, others + GOOD):
        encoded = site(rows).x
        found = encoded[: len(GOOD)] if rows[0] == GOOD[0] else encoded[-len(GOOD) :]
        assert found.tobytes() == alone.tobytes()


@pytest.mark.case("F16")
def test_a_hospital_is_encoded_alike_alone_and_among_others(tmp_path):
    """Each bundled hospital by itself has the bits that it has in the pooled file, and their statistics differ."""
    text = (HEART_FOLDER / "heart.csv").read_text(encoding="utf-8")
    header, *lines = text.splitlines()
    schema = load_schema(HEART_FOLDER / "schema.toml")
    place = header.split(",").index(schema.sites.column)
    pooled = load_heart()
    assert len({site.x.mean(axis=0).tobytes() for site in pooled.values()}) == len(pooled)
    for name, cell in schema.sites.names.items():
        own = [line for line in lines if line.split(",")[place] == cell]
        (tmp_path / "own.csv").write_text("\n".join([header, *own]) + "\n", encoding="utf-8")
        alone = load_csv_sites(tmp_path / "own.csv", schema)
        assert alone[name].x.tobytes() == pooled[name].x.tobytes()
        assert {len(site.y) for site in alone.values()} == {0, len(own)}


@pytest.mark.case("F16")
def test_a_site_prepares_without_the_others(toy, write_tables, tmp_path):
    """Another site's rows, however extreme, change no bit of what a site trains or is scored on, nor of the common model and plan."""
    rows = {"east": (40, 12), "south": (28, 12), "west": (24, 12)}
    plain = write_tables(tmp_path / "plain", rows)
    shifted = write_tables(tmp_path / "shifted", rows)
    lines = (shifted / "site_west.csv").read_text().splitlines()
    (shifted / "site_west.csv").write_text("\n".join([lines[0], *(f"9.9,-9.9,{i % 2}" for i in range(300))]) + "\n")
    before, after = (prepare(toy(folder=folder), "run-1") for folder in (plain, shifted))
    for name in ("east", "south"):
        for part in ("train", "test"):
            one, other = getattr(before, part)[name], getattr(after, part)[name]
            assert (one.x.tobytes(), one.y.tobytes()) == (other.x.tobytes(), other.y.tobytes())
    assert before.agreement == after.agreement
    assert before.adapter.hash(before.adapter.params) == after.adapter.hash(after.adapter.params)


@pytest.mark.case("F16")
@pytest.mark.parametrize("key", ["low", "high", "lowest", "highest", "levels", "yes", "no"])
def test_a_range_is_never_measured(tmp_path, key):
    """A schema without a range or a level is refused by the key: nothing would be fitted in its place."""
    lines = SCHEMA.splitlines()
    [*_, place] = [i for i, line in enumerate(lines) if line.startswith(f"{key} = ")]
    (tmp_path / "schema.toml").write_text("\n".join([*lines[:place], *lines[place + 1 :]]))
    with pytest.raises(ConfigError, match=rf"schema\.toml: .*`{key}`"):
        load_schema(tmp_path / "schema.toml")


BAD_ROWS = {
    "an unseen category": ("61,120,stabbing,0,no", "pain", "'stabbing' is no level; known: 'none', 'typical', 'atypical'"),
    "a category in other letters": ("61,120,None,0,no", "pain", "'None' is no level"),
    "a level's number": ("61,120,0,0,no", "pain", "'0' is no level"),
    "text for a number": ("old,120,none,0,no", "age", "'old' is not a number"),
    "a number with its unit": ("61 y,120,none,0,no", "age", "'61 y' is not a number"),
    "a number with underscores": ("6_1,120,none,0,no", "age", "'6_1' is not a number"),
    "hexadecimal": ("0x3d,120,none,0,no", "age", "'0x3d' is not a number"),
    "other digits": ("٦١,120,none,0,no", "age", "'٦١' is not a number"),
    "NaN": ("nan,120,none,0,no", "age", "'nan' is not finite"),
    "infinity": ("61,-Infinity,none,0,no", "pressure", "'-Infinity' is not finite"),
    "too large for a float": ("1e999,120,none,0,no", "age", "'1e999' is outside of what is plausible, 0 to 120 years"),
    "out of all ranges": ("161,120,none,0,no", "age", "'161' is outside of what is plausible, 0 to 120 years"),
    "a decimal comma": ('"61,5",120,none,0,no', "age", "'61,5' has a decimal comma; write 61.5"),
    "missing where it never is": ("?,120,none,0,no", "age", "'?' is missing: the schema says it never is"),
    "an empty cell": (",120,none,0,no", "age", "'' is missing: the schema says it never is"),
    "another word for missing": ("61,NA,none,0,no", "pressure", "'NA' is not a number"),
    "neither yes nor no": ("61,120,none,2,no", "smoker", "'2' is neither yes nor no; known: '1', '0'"),
    "an unknown label": ("61,120,none,0,maybe", "sick", "'maybe' is no label; known: 'yes', 'no'"),
    "no label": ("61,120,none,0,?", "sick", "'?' is missing: the label must be there"),
}  # fmt: skip


@pytest.mark.case("F18")
@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_cell(site, tmp_path, bad, at):
    """It is refused on the site with file, data row, line, column and cell, wherever it stands."""
    row, column, problem = BAD_ROWS[bad]
    with pytest.raises(DataError) as caught:
        site([*GOOD[:at], row, *GOOD[at:]])
    where = f"{tmp_path}/site_east.csv: data row {at + 1} (line {at + 2}), column {column!r}: "
    assert str(caught.value).startswith(where + problem)


BAD_HEADERS = {
    "a missing column": ("age,pressure,smoker,sick", "column 'pain' is missing from the header"),
    "two missing columns": ("age,pain,sick", "column 'pressure', 'smoker' is missing from the header"),
    "no label": ("age,pressure,pain,smoker", "column 'sick' is missing from the header"),
    "other letters": ("Age,pressure,pain,smoker,sick", "column 'age' is missing from the header"),
    "an unknown column": (HEADER + ",ssn", "column 'ssn' is not in schema 'patients'"),
    "a column twice": (HEADER + ",age", "column 'age' is in the header twice"),
    "semicolons": (HEADER.replace(",", ";"), "column 'age', 'pressure', 'pain', 'smoker', 'sick' is missing from the header (separated by ';'? use commas)"),
}  # fmt: skip


@pytest.mark.case("F18")
@pytest.mark.parametrize("bad", BAD_HEADERS)
def test_a_bad_header(site, tmp_path, bad):
    """A column that is missing, unknown or there twice is refused by its name, before a row is read."""
    header, problem = BAD_HEADERS[bad]
    with pytest.raises(DataError) as caught:
        site([], header)
    assert str(caught.value).startswith(f"{tmp_path}/site_east.csv: {problem}")


@pytest.mark.case("F18")
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty; it needs a header line"),
        (HEADER.encode() + b"\n61,120,none,0\n", "data row 1 (line 2) has 4 cells, the header has 5"),
        (HEADER.encode() + b"\n61,5,120,none,0,no\n", "data row 1 (line 2) has 6 cells, the header has 5 (a decimal comma"),
        (HEADER.encode() + b"\n\n\n61,120,none,0,no\nold,120,none,0,no\n", "data row 2 (line 5), column 'age': 'old' is not"),
        (HEADER.encode("utf-16"), "line 1 is not UTF-8"),
        (HEADER.encode() + b"\n61,120,n\xf6ne,0,no\n", "line 2 is not UTF-8"),
        (HEADER.encode() + b'\n"61,120,none,0,no\n', "line 2 is not CSV"),
    ],
    ids=["nothing", "a short row", "a long row", "blank lines", "UTF-16", "Latin-1", "an open quote"],
)  # fmt: skip
def test_a_file_that_is_no_table(tmp_path, schema, content, problem):
    """A row that is too short or too long, another encoding, a quote that never ends: refused by the file and the line."""
    file = tmp_path / "site_east.csv"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_csv(file, schema)
    assert str(caught.value).startswith(f"{file}: {problem}")


@pytest.mark.case("F18")
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("often,0.5,1", "column 'a': 'often' is not a number"),
        ("0.5,,1", "column 'b': '' is missing: the schema says it never is"),
        ("0.5,0.5,2", "column 'sick': '2' is no label; known: '1', '0'"),
    ],
)
def test_a_run_is_refused_before_training(shell, write_tables, tmp_path, row, said):
    """One bad cell at one site ends `fl run` with one line that names it; nothing is trained and nothing is written."""
    folder = write_tables(tmp_path / "data", {"east": (20, 10), "south": (20, 10), "west": (20, 10)})
    with (folder / "site_south.csv").open("a") as file:
        file.write(row + "\n")
    assert shell(folder=folder) == (1, f"fl: {folder}/site_south.csv: data row 21 (line 22), {said}\n", False)


@pytest.mark.case("F18")
def test_what_fits_is_not_refused(site):
    """The strictness is about what does not fit: spaces, CRLF, a BOM, blank lines, columns in another order and exponents are read."""
    plain = site(GOOD)
    assert (plain.x.shape, plain.y.tolist()) == ((4, 7), [0, 1, 0, 1])
    columns = [4, 3, 2, 1, 0]

    def turned(line):
        cells = line.split(",")
        return " , ".join(cells[i] for i in columns)

    odd = site([turned(row) + "\r" for row in GOOD] + ["\r"], "\ufeff" + turned(HEADER) + "\r", name="odd")
    assert odd.x.tobytes() == plain.x.tobytes()
    assert site(["6.1e1,1.2E+2,none,0,no"]).x.tobytes() == site(GOOD[:1]).x.tobytes()
    assert json.dumps(odd.features) == json.dumps(plain.features)
