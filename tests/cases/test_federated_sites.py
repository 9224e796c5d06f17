"""The rows about what a site has: no rows, one, one class, a short batch; and metrics that are no number."""

import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner

from fl import run
from fl.algorithms import LocalTraining, Server, WeightedEncoding, fedavg
from fl.cli import main
from fl.data import Records, SiteData
from fl.experiment import prepare
from fl.files import append_line
from fl.metrics import binary_metrics, site_report
from fl.model import Adapter, Functional
from privacy.codec import FixedPoint


def strict(text):
    """JSON as the standard has it: no NaN and no infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def own_metrics(monkeypatch):
    """A module of metrics of one's own, `own_metrics:measure`, that gives what it is told to."""

    def install(**values):
        module = types.ModuleType("own_metrics")
        module.measure = lambda _y, _outputs: values
        monkeypatch.setitem(sys.modules, "own_metrics", module)

    return install


@pytest.mark.case("F14")
@pytest.mark.parametrize("bad", [math.nan, np.float32("-inf")], ids=repr)
def test_a_metric_that_is_no_number(toy, tmp_path, own_metrics, *, bad, capsys):
    """In every file and on stdout it is null, beside a list of the names of what was not finite; the run ends in order."""
    own_metrics(f1=bad, kappa=0.25)
    config = toy("model.metrics=own_metrics:measure", rounds=2)
    result = run(config, out=tmp_path / "run")
    written = strict((tmp_path / "run" / "result.json").read_text())
    assert written["metric"] == {"name": "f1", "value": None, "higher_is_better": True}
    for site in written["sites"].values():
        assert (site["f1"], site["kappa"], site["not_finite"]) == (None, 0.25, ["f1"])
    lines = [strict(line) for line in (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()]
    assert [(line["f1"], line["kappa"], line["not_finite"]) for line in lines] == [(None, 0.25, ["f1"])] * 2
    assert (tmp_path / "run" / "report.html").stat().st_size > 0
    assert strict(json.dumps(result.summary, allow_nan=False))["metric"]["value"] is None
    capsys.readouterr()


@pytest.mark.case("F14")
def test_a_metric_that_is_no_number_on_the_command_line(tables, tmp_path, own_metrics):
    """`fl run --json` prints one line of strict JSON, whatever the metrics are."""
    own_metrics(f1=math.nan)
    file = tmp_path / "toy.toml"
    file.write_text(
        f'name = "toy"\nrounds = 1\n[data]\npath = "{tables}"\n[model]\nmetrics = "own_metrics:measure"\n'
        '[secagg]\nmode = "ideal"\n[algorithm]\nname = "fedavg"\nlocal_epochs = 1\n'
    )
    result = CliRunner().invoke(main, ["run", str(file), "--out", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    assert strict(result.stdout)["metric"]["value"] is None


@pytest.mark.case("F14")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_line_that_json_cannot_hold(tmp_path, bad):
    """Wherever a number of a line is not finite, however deep, null is written, and the flag says which ones."""
    entry = {"round": 3, "loss": bad, "epsilon": {"rdp": bad, "closed_form": 1.5}, "norms": [1.0, bad]}
    append_line(tmp_path / "metrics.jsonl", entry)
    written = strict((tmp_path / "metrics.jsonl").read_text())
    assert written == {
        "round": 3,
        "loss": None,
        "epsilon": {"rdp": None, "closed_form": 1.5},
        "norms": [1.0, None],
        "not_finite": ["loss", "epsilon.rdp", "norms.1"],
    }


@pytest.mark.case("F14")
@pytest.mark.parametrize("labels", [[], [0], [1], [0, 0, 0], [1, 1]], ids=str)
def test_a_metric_that_is_undefined(labels):
    """Where a class or every row is missing, AUC and accuracy are None, of a site and in the report; strict JSON takes them."""
    y, score = np.array(labels, np.int32), np.linspace(0.2, 0.8, len(labels))
    metrics = binary_metrics(y, score)
    assert metrics["auc"] is None
    assert (metrics["accuracy"] is None) == (not labels)
    report = site_report({"empty": (y, score), "other": (np.array([0, 1], np.int32), np.array([0.1, 0.9]))})
    assert strict(json.dumps(report, allow_nan=False))["sites"]["empty"]["auc"] is None
    assert report["pooled"]["auc"] is not None


@pytest.mark.case("F14")
def test_a_score_that_is_no_number():
    """The metrics of scores that are not finite are null and flagged, of the site and of all; other sites keep theirs."""
    good = (np.array([0, 1], np.int32), np.array([0.1, 0.9]))
    report = site_report({"east": (np.array([0, 1, 1], np.int32), np.array([np.nan, 0.5, np.inf])), "west": good})
    for metrics in (report["sites"]["east"], report["pooled"]):
        assert (metrics["auc"], metrics["accuracy"], metrics["not_finite"]) == (None, None, ["auc", "accuracy"])
    assert report["sites"]["west"]["auc"] == 1.0
    assert "not_finite" not in report["sites"]["west"]
    strict(json.dumps(report, allow_nan=False))


def blind(outputs):
    """A model that trains like any other, and whose scores of held-out rows are no numbers."""

    def apply(params, state, x, *, key, train):  # noqa: ARG001 - the adapter's call
        scores = x @ params["w"]
        return (scores if outputs > 1 else scores[:, 0]) * (1.0 if train else jnp.nan), state

    return Functional({"w": jnp.zeros((2, outputs))}, apply)


@pytest.mark.case("F14")
@pytest.mark.parametrize("loss", ["logistic", "squared", "softmax"])
def test_a_run_whose_scores_are_no_numbers(toy, tmp_path, make_model, loss):
    """A model that has diverged does not take its run along: every round is committed, and its metrics are null and flagged."""
    make_model(lambda _features, _rngs: blind(2 if loss == "softmax" else 1))
    result = run(toy(f"model.loss={loss}", rounds=2), out=tmp_path / "run")
    assert len(result.history) == 2
    written = strict((tmp_path / "run" / "result.json").read_text())
    assert written["metric"]["value"] is None
    assert all(site["not_finite"] for site in written["sites"].values())
    lines = [strict(line) for line in (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()]
    assert [bool(line["not_finite"]) for line in lines] == [True, True]


# Sites with no rows, with one, with one class only, beside one that has everything.
POOR = {"whole": (40, 20), "empty": (0, 0), "single": (1, 1), "sick": (20, 20), "well": (16, 0), "alone": (1, 0)}
ALGORITHMS = {
    "fedavg": (),
    "fedprox": ("algorithm.proximal=0.1", "algorithm.local_steps=5", "algorithm.batch_size=4"),
    "fedsgd": ("algorithm={name='fedsgd'}",),
    "scaffold": ("algorithm={name='scaffold', local_steps=3, batch_size=8, learning_rate=0.5}",),
    "classes": ("model.loss=softmax", "model.outputs=2"),
    "weighted classes": ("model.class_weights=[0.5, 2.0]",),
}


@pytest.fixture(scope="module")
def poor(write_tables, tmp_path_factory):
    """Their folder."""
    return write_tables(tmp_path_factory.mktemp("poor"), POOR)


@pytest.mark.case("F17")
@pytest.mark.parametrize(
    ("algorithm", "mode"),
    [*((name, "ideal") for name in ALGORITHMS), ("fedavg", "plain"), ("scaffold", "plain"), ("fedavg", "secure")],
)
def test_sites_that_have_little(toy, poor, tmp_path, *, algorithm, mode):
    """Under every algorithm and in every mode they take part with what they have: nobody drops out, and everything is finite."""
    config = toy(*ALGORITHMS[algorithm], folder=poor, mode=mode, rounds=2)
    result = run(config, out=tmp_path / "run")
    assert result.survivors == (tuple(sorted(POOR)),) * 2
    rows = {name: len(site.y) for name, site in prepare(config, "run-1").train.items()}
    counted = sum(bool(n) for n in rows.values()) if algorithm == "scaffold" else sum(rows.values())
    assert [record.weight for record in result.history] == [counted] * 2
    assert result.history[1].update_norm > 0
    for leaf in jax.tree.leaves(Adapter.of(result.model).params):
        assert np.isfinite(np.asarray(leaf)).all()
    sites = strict((tmp_path / "run" / "result.json").read_text())["sites"]
    assert sites["empty"]["auc"] is sites["sick"]["auc"] is sites["empty"]["accuracy"] is None


@pytest.mark.case("F17")
def test_an_empty_site_counts_for_nothing(toy, poor, tmp_path, *, spoil, weights_of, mean_of, start_of):
    """The model is the mean of those that have rows, by their number; a site without rows sends zero at weight zero."""
    updates = spoil()
    config = toy(folder=poor)
    result = run(config, out=tmp_path / "run")
    assert (updates["empty"].weight, updates["empty"].loss, updates["empty"].delta.any()) == (0, 0.0, False)
    moved = weights_of(result.model) - start_of(config)
    np.testing.assert_allclose(moved, mean_of(updates.values()), rtol=0, atol=2.0**-20)


@pytest.mark.case("F17")
@pytest.mark.parametrize("unit", ["record", "client"])
def test_sites_that_have_little_under_privacy(toy, poor, tmp_path, unit):
    """With privacy too, and with the baselines beside it: what a site has shows neither in who is there nor in a length."""
    client = "privacy={epsilon=8.0,delta=1e-3,unit='client',divisor=6,dropouts=1,colluders=0}"
    config = toy(folder=poor, privacy={}) if unit == "record" else toy(client, folder=poor)
    sizes = {}
    result = run(
        config,
        out=tmp_path / "run",
        ledgers=tmp_path / "ledgers",
        tap=lambda phase, sender, frame: sizes.setdefault(phase, {}).update({sender: len(frame)}),
    )
    assert result.survivors == (tuple(sorted(POOR)),)
    assert len(set(sizes["mask"].values())) == 1
    assert result.history[0].weight is None
    assert result.history[0].loss is None


@pytest.mark.case("F17")
@pytest.mark.parametrize("mode", ["centralized", "local"])
def test_what_it_is_compared_with(toy, poor, tmp_path, mode):
    """The comparisons on the same sites: all rows in one place, and each site alone, the empty one too."""
    result = run(toy(f"mode={mode}", folder=poor, mode="plain"), out=tmp_path / "run")
    assert strict((tmp_path / "run" / "result.json").read_text())["sites"]["empty"]["auc"] is None
    assert result.folder == tmp_path / "run"


@pytest.mark.case("F17")
def test_baselines_of_poor_sites(toy, poor, tmp_path):
    """The baselines are numbers or null."""
    run(toy("simulation.baselines=true", folder=poor), out=tmp_path / "run")
    baselines = strict((tmp_path / "run" / "result.json").read_text())["baselines"]
    assert set(baselines) == {"centralized", "local", "federated"}


# A linear loss, so that a gradient does not depend on the model: after training, the model tells which rows were in which batch.
def linear(outputs, _y):
    """The model's output is the loss."""
    return outputs


def training_of(batch_size, *, epochs=1, steps=None):
    """(adapter, algorithm) that add up minus the mean of x over each batch."""
    built = Functional({"w": jnp.zeros(16)}, lambda params, state, x, *, key, train: (x @ params["w"], state))  # noqa: ARG005 - the adapter's call
    adapter = Adapter.of(built)
    server = Server(adapter, optax.sgd(1.0), "last", 1)
    encoding = WeightedEncoding(adapter.schema.layout, FixedPoint(64.0, 20, 16), 100)
    return adapter, fedavg(server, linear, LocalTraining(optax.sgd(1.0), batch_size, epochs, steps), encoding, 3)


def trained_on(rows, batch_size, *, slots=None, junk=0.0, **fields):
    """A site's update on `rows` records, record i in coordinate i."""
    adapter, algorithm = training_of(batch_size, **fields)
    x, y = np.eye(16, dtype=np.float32)[:rows], np.zeros(rows, np.int32)
    records = Records.place(x, y, slots or algorithm.slots(rows))
    if junk:
        records.x[rows:], records.y[rows:] = junk, 1
    return algorithm.client_update(adapter.params, adapter.local, records, key=jax.random.key(7))[0]


@pytest.mark.case("F20")
@pytest.mark.parametrize("batch_size", [1, 4, 5, 12, 13, None])
@pytest.mark.parametrize("rows", [1, 5, 12])
def test_every_row_once(rows, batch_size):
    """An epoch has every row in exactly one batch, and each batch is the mean over the rows that it really has."""
    update = trained_on(rows, batch_size)
    size = min(batch_size or rows, rows)
    full, last = divmod(rows, size)
    shares = sorted([1 / size] * size * full + ([1 / last] * last if last else []))
    assert sorted((-update.delta[:rows]).tolist()) == pytest.approx(shares, rel=1e-6)
    assert not update.delta[rows:].any()
    assert update.weight == rows


@pytest.mark.case("F20")
@pytest.mark.parametrize("epochs", [2, 3])
def test_every_row_once_an_epoch(epochs):
    """Over some epochs each row is there as often as there are epochs."""
    update = trained_on(5, 2, epochs=epochs)
    assert sum(-update.delta.astype(np.float64)) == pytest.approx(3 * epochs)  # three batches an epoch
    least, most = epochs / 2, epochs
    assert all(least <= -entry <= most for entry in update.delta[:5])


@pytest.mark.case("F20")
@pytest.mark.parametrize("batch_size", [3, 8, 64])
def test_steps_beyond_the_rows(batch_size):
    """A number of steps goes on into the next epochs, each step a mean of rows that are there."""
    update = trained_on(5, batch_size, epochs=None, steps=7)
    assert sum(-update.delta.astype(np.float64)) == pytest.approx(7)
    assert not update.delta[5:].any()


@pytest.mark.case("F20")
@pytest.mark.parametrize("junk", [1.0, 1e30, np.nan])
@pytest.mark.parametrize("batch_size", [3, 5, 64])
def test_padding_is_masked(junk, batch_size):
    """What lies in slots that hold no row changes no bit, not even where it is no number."""
    clean, dirty = (trained_on(5, batch_size, slots=8, junk=value) for value in (0.0, junk))
    assert clean.delta.tobytes() == dirty.delta.tobytes()
    assert (clean.loss, clean.weight) == (dirty.loss, dirty.weight)


@pytest.mark.case("F20")
@pytest.mark.parametrize(
    ("batch_size", "mode"), [(1, "ideal"), (7, "secure"), (7, "plain"), (10**6, "ideal"), ("all", "plain")]
)
def test_a_run_with_any_batch_size(toy, tmp_path, *, batch_size, mode):
    """Sites of 24 to 40 rows under any batch size: no shape error, and every row counts."""
    config = toy(
        f"algorithm={{name='fedavg', local_epochs=1, batch_size={batch_size!r}, learning_rate=0.1}}", mode=mode
    )
    result = run(config, out=tmp_path / "run")
    assert result.history[0].weight == sum(len(site.y) for site in prepare(config, "run-1").train.values())
    assert result.history[0].update_norm > 0


@pytest.mark.case("F20")
def test_a_site_of_more_rows_than_a_chunk(toy, write_tables, tmp_path):
    """Record level: rows beyond a multiple of the chunk are padded, and the sum is that of every record's own gradient."""
    folder = write_tables(tmp_path / "data", {"a": (90, 45), "b": (10, 5), "c": (70, 30)})
    config = toy(
        "privacy.records_per_site=80",
        "privacy.dropouts=0",
        "privacy.colluders=0",
        folder=folder,
        privacy={},
        mode="ideal",
    )
    experiment = prepare(config, "run-1")
    algorithm, adapter = experiment.algorithm, experiment.adapter
    for site in experiment.train.values():
        records = Records.place(site.x, site.y, algorithm.slots(len(site.y)))
        chunks = list(algorithm.client_update(adapter.params, adapter.local, records, key=jax.random.key(0))[0])
        assert sum(int(present.sum()) for _, present in chunks) == len(site.y)
        alone = [gradients_of(experiment, site, i) for i in range(len(site.y))]
        together = np.concatenate([rows[present] for rows, present in chunks])
        assert together.tobytes() == np.stack(alone).tobytes()


def gradients_of(experiment, site, index):
    """A record's gradient where the site has that record alone."""
    one: SiteData = site.take(np.array([index]))
    algorithm, adapter = experiment.algorithm, experiment.adapter
    records = Records.place(one.x, one.y, algorithm.slots(1))
    [*chunks] = algorithm.client_update(adapter.params, adapter.local, records, key=jax.random.key(0))[0]
    rows, present = chunks[0]
    return rows[present][0]
