"""Cases from other frameworks: the marker that ties a test to its rows, and what the tests have in common.

A test of this folder is marked `@pytest.mark.case("S1")`; `rows.json` has the rows, `test_every_row_has_a_test.py` ties them together.
Nothing here may be skipped: a report that says so becomes a failure. JAX takes 2 s to import, and most of these tests need none
of it, so fixtures import what they need of `fl`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from privacy.cli import main as privacy_main
from privacy.plan import Plan
from secagg import RoundParams

# Four sites by the rows that they have, and how many of them are positive: half of all rows, and of no site's but one.
ROWS = {"east": (40, 12), "north": (36, 28), "south": (28, 12), "west": (24, 12)}
TABLE = 'name = "toy"\n[label]\ncolumn = "sick"\npositive = ["1"]\nnegative = ["0"]\n'
COLUMN = '[[columns]]\nname = "{}"\nkind = "number"\nlow = -3\nhigh = 3\nlowest = -10\nhighest = 10\n'
PRIVACY = {"epsilon": 2.0, "delta": 1e-4, "records_per_site": 64, "divisor": 60, "colluders": 1, "dropouts": 1}


def pytest_configure(config):
    """The marker, known to `--strict-markers`."""
    config.addinivalue_line("markers", "case(row, ...): the rows of tests/cases/rows.json that a test stands for")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):  # noqa: ARG001 - the hook's signature
    """A row that was not tried is not held: skipped and expected failures fail here."""
    report = yield
    if report.skipped or hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"no test in tests/cases may be skipped or expected to fail: {report.longrepr}"
        report.__dict__.pop("wasxfail", None)
    return report


def round_params(n, blocks, **fields):
    """Parameters of a round of clients 0 … n - 1, or of the given ids, in the classical suite."""
    cohort = tuple(range(n)) if isinstance(n, int) else tuple(n)
    return RoundParams(cohort=cohort, blocks=tuple(blocks), **({"suite": "classical"} | fields))


def at_random(params, seed=0):
    """Inputs of every client, each entry anywhere within its block's bound, both bounds among them."""
    rng = np.random.default_rng(seed)

    def values(block):
        x = rng.integers(-block.bound, block.bound, block.length, endpoint=True, dtype=np.int64)
        x[: block.length // 3] = block.bound
        x[block.length // 3 : 2 * block.length // 3] *= -1
        return x

    return {i: {block.name: values(block) for block in params.blocks} for i in params.cohort}


def added(inputs, clients):
    """The sums over some clients, in Python's integers: `{block: list}`."""
    chosen = [inputs[i] for i in clients]
    return {
        name: [sum(column) for column in zip(*(x[name].tolist() for x in chosen), strict=True)] for name in chosen[0]
    }


@pytest.fixture(scope="session")
def params_of():
    """`params_of(n or ids, blocks, **fields)`: parameters in the classical suite."""
    return round_params


@pytest.fixture(scope="session")
def inputs_of():
    """`inputs_of(params, seed=0)`: inputs of every client, within the bounds and at them."""
    return at_random


@pytest.fixture(scope="session")
def total():
    """`total(inputs, clients)`: the sums in Python's integers."""
    return added


@pytest.fixture(scope="session")
def plan_of():
    """`plan_of(**fields)`: a privacy plan of four hospitals, solved for what is left out; None takes a field away."""
    hospitals = json.loads((Path(__file__).parents[1] / "heart_plan.json").read_text(encoding="utf-8"))

    def build(**fields):
        return Plan.solve(**{name: value for name, value in (hospitals | fields).items() if value is not None})

    return build


@pytest.fixture
def typed(capsys):
    """`typed(words)`: what somebody sees who types `privacy` and these words: exit code, stdout and stderr."""

    def run(words):
        code = privacy_main(words.split() if isinstance(words, str) else [str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def reserve():
    """`reserve(ledger, number, plan, **fields)`: a round of the one run, reserved as a site or a server does it."""

    def book(ledger, number, plan, **fields):
        return ledger.reserve(
            round=number, plan=plan, **({"run": "run", "attempt": 0, "private": True, "data_set": None} | fields)
        )

    return book


def tables_in(folder, sites):
    """Sites of some rows each, `{site: (rows, positive ones among them)}`, as files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "schema.toml").write_text(TABLE + COLUMN.format("a") + COLUMN.format("b"))
    rng = np.random.default_rng(0)
    for name, (rows, positive) in sites.items():
        lines = [f"{a:.4f},{b:.4f},{int(i < positive)}" for i, (a, b) in enumerate(rng.uniform(-3, 3, (rows, 2)))]
        (folder / f"site_{name}.csv").write_text("\n".join(["a,b,sick", *lines]) + "\n")
    return folder


@pytest.fixture(scope="session")
def write_tables():
    """`write_tables(folder, {site: (rows, positive ones)})`: writes the sites' files and their schema, and gives the folder."""
    return tables_in


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """Four sites of 24 to 40 rows, in a folder."""
    return tables_in(tmp_path_factory.mktemp("toy"), ROWS)


@pytest.fixture(scope="session")
def toy(tables):
    """`toy(*overrides, folder=…, rounds=1, privacy=…, mode="secure")`: a small experiment on the four sites, or on another folder's."""
    from fl import build_config

    def build(*overrides, folder=tables, rounds=1, privacy=None, mode="secure"):
        chosen = {
            "name": "toy",
            "rounds": rounds,
            "data": {"path": str(folder), "test_fraction": 0.25},
            "algorithm": {"name": "fedavg", "local_steps": 1, "batch_size": 64, "learning_rate": 1.0},
            "secagg": {"mode": mode, "suite": "classical"},
        }
        if privacy is not None:
            chosen |= {"algorithm": {"name": "dp_fedsgd"}, "privacy": PRIVACY | privacy}
        return build_config(chosen, overrides)

    return build


@pytest.fixture
def spoil(monkeypatch):
    """`spoil(change)` puts `change(site, update)` in the place of what sites train, and gives their updates as they were, by site."""
    from fl.site import Site

    def put(change=lambda _site, update: update):
        train, seen = Site.train, {}

        def spoiled(site, announcement):
            update, local = train(site, announcement)
            seen[site.name] = update
            return change(site, update), local

        monkeypatch.setattr(Site, "train", spoiled)
        return seen

    return put


@pytest.fixture
def shell(tables, tmp_path):
    """`shell(*settings)` types `fl run` with some settings: exit code, stderr, and whether a run folder was made."""
    from click.testing import CliRunner

    from fl.cli import main

    file, out = tmp_path / "toy.toml", tmp_path / "run"

    def call(*settings, folder=tables):
        file.write_text(
            f'name = "toy"\nrounds = 2\n[data]\npath = "{folder}"\n[secagg]\nsuite = "classical"\n'
            '[algorithm]\nname = "fedavg"\nlocal_epochs = 1\n'
        )
        arguments = [part for setting in settings for part in ("--set", setting)]
        result = CliRunner().invoke(main, ["run", str(file), "--out", str(out), "--ledgers", str(tmp_path), *arguments])
        made = out.exists()
        shutil.rmtree(out, ignore_errors=True)
        return result.exit_code, result.stderr, made

    return call


@pytest.fixture(scope="session")
def weights_of():
    """`weights_of(model)`: a trained model's shared parameters as one vector."""
    from fl.model import Adapter

    def flat(trained):
        adapter = Adapter.of(trained)
        return adapter.ravel(adapter.params)

    return flat


@pytest.fixture(scope="session")
def start_of():
    """`start_of(config)`: the initial shared parameters as one vector."""
    from fl.experiment import prepare

    def flat(config):
        adapter = prepare(config, "run-1").adapter
        return adapter.ravel(adapter.params)

    return flat


@pytest.fixture(scope="session")
def mean_of():
    """`mean_of(updates)`: the weighted mean of sites' changes, by hand."""
    return lambda updates: (
        sum(update.delta * update.weight for update in updates) / sum(update.weight for update in updates)
    )


@pytest.fixture
def make_model(monkeypatch):
    """`make_model(build)`: every configuration's model becomes `build(features, rngs)`."""
    from fl import model

    def put(build):
        monkeypatch.setattr(model, "factory", lambda *_: build)

    return put
