import csv
import io
import json

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from fl.data import load_csv, load_schema
from fl.errors import ConfigError, DataError, RunError
from fl.predict import Predictions, export, predict
from fl.simulation import run


class Normed(nnx.Module):
    """A linear unit behind batch normalisation, whose statistics stay at their site."""

    def __init__(self, features, rngs):
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.unit = nnx.Linear(features, 1, rngs=rngs)

    def __call__(self, x):
        """X (batch, features) → (batch, 1)."""
        return self.unit(self.norm(x))


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return run(toy(mode="ideal"), out=folder)


def test_scores_are_the_published_models(finished, toy_folder):
    """Each row of the table has its number and the probability that the run's model gives it."""
    table = toy_folder / "site_north.csv"
    found = predict(finished.folder, table)
    rows = load_csv(table, load_schema(toy_folder / "schema.toml")).x
    expected = 1 / (1 + np.exp(-np.asarray(finished.model(rows)).reshape(-1)))
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)
    assert found.rows == tuple(range(1, len(rows) + 1))
    read = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [int(line["row"]) for line in read] == list(found.rows)
    assert np.array_equal(np.array([line["score"] for line in read], np.float32), found.scores)
    assert found.to_list()[0] == {"row": 1, "score": float(found.scores[0])}


def test_the_label_is_not_needed_and_not_read(finished, toy_folder, tmp_path):
    """A table without the label's column, and one with anything in it, have the same scores; no row has none."""
    whole = predict(finished.folder, toy_folder / "site_north.csv").scores
    lines = (toy_folder / "site_north.csv").read_text().splitlines()
    for change in (lambda cells: cells[:2], lambda cells: [*cells[:2], "sick" if cells[2] == "sick" else "?"]):
        table = tmp_path / "new.csv"
        table.write_text("\n".join(",".join(change(line.split(","))) for line in lines))
        assert np.array_equal(predict(finished.folder, table).scores, whole)
    (tmp_path / "none.csv").write_text("a,b\n")
    none = predict(finished.folder, tmp_path / "none.csv")
    assert (none.to_list(), none.to_csv()) == ([], "row,score\n")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a,b\n1,2\n1,many\n", r"new\.csv: data row 2 \(line 3\), column 'b': 'many'"),
        ("a\n1\n", r"new\.csv: column 'b' is missing"),
        ("a,b,c\n1,2,3\n", r"new\.csv: column 'c' is not in schema"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_where_it_lies(finished, tmp_path, text, named):
    """File, row and column are named, as for training."""
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(DataError, match=named):
        predict(finished.folder, tmp_path / "new.csv")


def test_an_export_is_loaded_again(finished, toy_folder, tmp_path):
    """The arrays alone, the Orbax checkpoint, and `predict` itself give the same numbers without the run folder."""
    out = export(finished.folder, tmp_path / "out", orbax=True)
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.npz", "orbax"]
    told = json.loads((out / "model.json").read_text())
    assert told["table"]["name"] == "toy"
    assert told["config"]["name"] == "toy"
    restored = ocp.StandardCheckpointer().restore((out / "orbax").resolve())
    with np.load(out / "model.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    assert arrays.keys() == restored.keys() == {leaf["name"] for leaf in told["leaves"]}
    for name, value in arrays.items():
        assert np.array_equal(value, restored[name])
    table = toy_folder / "site_east.csv"
    again = predict(out, table).scores
    assert np.array_equal(again, predict(finished.folder, table).scores)
    rows = load_csv(table, load_schema(toy_folder / "schema.toml")).x
    by_hand = 1 / (1 + np.exp(-(rows @ arrays["['kernel']"] + arrays["['bias']"]).reshape(-1)))
    np.testing.assert_allclose(again, by_hand, rtol=1e-5)


def test_an_export_needs_a_folder_of_its_own_and_a_model(finished, tmp_path):
    """What is there is never written over, and a folder without a model has nothing to export."""
    (tmp_path / "keep").write_text("x")
    with pytest.raises(RunError, match="not an empty folder"):
        export(finished.folder, tmp_path)
    with pytest.raises(RunError, match="has published no model yet"):
        export(tmp_path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]


def test_what_a_site_keeps_is_used_where_it_is_asked_for(toy, toy_folder, tmp_path, monkeypatch):
    """With batch statistics at the sites the scores are of one site, which must be named, and sites differ."""
    monkeypatch.setattr("fl.model.factory", lambda *_: Normed)
    folder, table = run(toy(mode="ideal"), out=tmp_path / "run").folder, toy_folder / "site_north.csv"
    with pytest.raises(ConfigError, match="say whose are used"):
        predict(folder, table)
    with pytest.raises(ConfigError, match="no site 'nowhere'; sites: east, north"):
        predict(folder, table, site="nowhere")
    north, south = (predict(folder, table, site=name).scores for name in ("north", "south"))
    assert not np.array_equal(north, south)
    with pytest.raises(ConfigError, match=r"\['norm'\]\['mean'\]\): say whose are used"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    out = export(folder, tmp_path / "out", site="north")
    assert np.array_equal(predict(out, table).scores, north)
    with pytest.raises(ConfigError, match="has the leaves of site 'north' and no other"):
        predict(out, table, site="south")
    (folder / "run.json").write_text('{"data": 5}')
    with pytest.raises(RunError, match=r"run\.json: "):
        predict(folder, table, site="north")
    (folder / "run.json").unlink()
    with pytest.raises(RunError, match="only a run folder has"):
        predict(folder, table, site="north")


def test_a_score_that_is_not_finite_is_nothing():
    """F14: it is an empty cell, and null in JSON of the standard; the row is there."""
    found = Predictions((1, 2), np.array([[0.5, np.nan], [np.inf, 0.25]], np.float32))
    assert found.to_csv() == "row,score_0,score_1\n1,0.5,\n2,,0.25\n"
    assert json.loads(json.dumps(found.to_list(), allow_nan=False))[0] == {"row": 1, "score_0": 0.5, "score_1": None}


def test_files_that_were_changed_are_named(finished, toy_folder, tmp_path):
    """Another model's arrays are not exported, and a configuration that is none is the description's fault."""
    out = export(finished.folder, tmp_path / "out")
    with np.load(out / "model.npz") as file:
        changed = {name: file[name] + 1 for name in file.files}
    np.savez(out / "model.npz", **changed)
    with pytest.raises(RunError, match=r"model\.npz: .* has the hash of"):
        export(out, tmp_path / "again")
    told = json.loads((out / "model.json").read_text())
    told["config"]["model"]["kind"] = 5
    (out / "model.json").write_text(json.dumps(told))
    with pytest.raises(RunError, match=r"model\.json: config: model\.kind: expected `str`"):
        predict(out, toy_folder / "site_east.csv")
