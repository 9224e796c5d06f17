import msgspec
import pytest

from fl.data import CategoryColumn, FlagColumn, Label, NumberColumn, Schema, load_schema
from fl.errors import ConfigError

TOML = """
name = "ward"
missing = ["", "NA"]
ignore = ["id"]
[label]
column = "ill"
positive = ["yes"]
negative = ["no"]
[sites]
column = "clinic"
names = {north = "N", south = "S"}
[[columns]]
name = "age"
kind = "number"
low = 20
high = 80
lowest = 0
highest = 120
[[columns]]
name = "group"
kind = "category"
levels = ["a", "b"]
may_be_missing = true
[[columns]]
name = "smoker"
kind = "flag"
yes = ["1"]
no = ["0"]
"""


def write(tmp_path, text):
    """A schema file with this text; its path."""
    path = tmp_path / "schema.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_every_kind_of_column(tmp_path):
    """The TOML becomes typed columns, and features in order with the missing indicator last."""
    schema = load_schema(write(tmp_path, TOML))
    assert schema.columns == (
        NumberColumn(name="age", low=20, high=80, lowest=0, highest=120),
        CategoryColumn(name="group", levels=("a", "b"), may_be_missing=True),
        FlagColumn(name="smoker", yes=("1",), no=("0",)),
    )
    assert schema.label == Label(column="ill", positive=("yes",), negative=("no",))
    assert list(schema.sites.names) == ["north", "south"]
    assert schema.features == ("age", "group=a", "group=b", "group:missing", "smoker")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("low = 20", "low = 21"),
        ('name = "age"', 'name = "Age"'),
        ('levels = ["a", "b"]', 'levels = ["b", "a"]'),
        ("may_be_missing = true", "may_be_missing = false"),
        ('missing = ["", "NA"]', 'missing = [""]'),
        ('positive = ["yes"]', 'positive = ["y"]'),
        ('north = "N"', 'nord = "N"'),
    ],
)
def test_hash_changes_with_any_value(tmp_path, old, new):
    """Any change of a key or value changes the hash."""
    before = load_schema(write(tmp_path, TOML)).hash
    assert load_schema(write(tmp_path, TOML.replace(old, new))).hash != before


def test_hash_ignores_layout(tmp_path):
    """Comments, spacing and 20 against 20.0 leave the hash alone; it is 64 hex digits."""
    before = load_schema(write(tmp_path, TOML)).hash
    assert load_schema(write(tmp_path, "# ward\n" + TOML.replace("low = 20", "low   =   20.0"))).hash == before
    assert len(bytes.fromhex(before)) == 32


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[label]", "colour = 1\n[label]", "colour"),
        ("low = 20", "low = 20\nlo = 1", r"lo.*columns\[0\]"),
        ('column = "ill"', 'column = "ill"\nweight = 2', r"weight.*label"),
        ('kind = "flag"', 'kind = "text"', r"text.*columns\[2\]"),
        ("low = 20", 'low = "20"', r"columns\[0\]\.low"),
        ("low = 20\n", "", r"low.*columns\[0\]"),
        ("low = 20", "low = 90", r"'age'.*low < high"),
        ("low = 20", "low = -1", r"'age'.*lowest <= low"),
        ("highest = 120", "highest = inf", r"'age'.*finite"),
        ('levels = ["a", "b"]', 'levels = ["a"]', r"'group'.*two levels"),
        ('levels = ["a", "b"]', 'levels = ["a", "a"]', r"'group'.*'a' is there twice"),
        ('levels = ["a", "b"]', 'levels = ["a", "NA"]', r"'group'.*'NA' is also listed under missing"),
        ('levels = ["a", "b"]', 'levels = ["a", "b "]', r"'group'.*'b ' has spaces"),
        ('no = ["0"]', 'no = ["1"]', r"'smoker'.*'1' is there twice"),
        ('no = ["0"]', "no = []", r"'smoker'.*at least one cell"),
        ('negative = ["no"]', 'negative = ["yes"]', r"'ill'.*'yes' is there twice"),
        ('name = "smoker"', 'name = "age"', "column names: 'age' is there twice"),
        ('name = "smoker"', 'name = "group=a"', "feature names: 'group=a' is there twice"),
        ('column = "clinic"', 'column = "age"', "column names: 'age' is there twice"),
        ('missing = ["", "NA"]', 'missing = ["", ""]', "missing: '' is there twice"),
        ('names = {north = "N", south = "S"}', "names = {}", "'clinic': names is empty"),
        ('names = {north = "N", south = "S"}', 'names = {a = "N", b = "N"}', "'clinic'.*'N' is there twice"),
        ('name = "ward"', 'name = "ward', "not TOML"),
    ],
)
def test_refuses_a_wrong_schema_by_file_and_key(tmp_path, old, new, named):
    """Each mistake is a ConfigError that names the file and the key, column or cell."""
    assert old in TOML
    path = write(tmp_path, TOML.replace(old, new, 1))
    with pytest.raises(ConfigError, match=named) as caught:
        load_schema(path)
    assert str(path) in str(caught.value)


def test_refuses_no_columns():
    """A schema without a feature has nothing to train on."""
    with pytest.raises(ValueError, match="columns is empty"):
        Schema(name="s", label=Label(column="y", positive=("1",), negative=("0",)), columns=())


def test_refuses_a_file_that_cannot_be_read(tmp_path):
    """An absent file and one that is not UTF-8 are named."""
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        load_schema(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes('name = "Köln"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.toml: not TOML in UTF-8"):
        load_schema(tmp_path / "latin.toml")


def test_schema_is_frozen(tmp_path):
    """A schema that was hashed cannot change."""
    schema = load_schema(write(tmp_path, TOML))
    with pytest.raises(AttributeError):
        schema.name = "other"
    assert msgspec.structs.replace(schema, name="other").hash != schema.hash
