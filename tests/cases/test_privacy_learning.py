"""The privacy rows that only show in training: what a site sends, what covers it, and what stays at home."""

import contextlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fl import build_config, model, run
from fl.algorithms import SiteUpdate
from fl.errors import RoundFailedError
from fl.experiment import prepare
from fl.model import Adapter
from fl.simulation import Consortium
from fl.site import Announcement, Participation, Site
from privacy import BudgetExceededError, Ledger, Plan, PlanError, SamplerError, epsilon, gaussian_epsilon
from privacy.ledger import read_entries

COLUMN = '[[columns]]\nname = "a"\nkind = "number"\nlow = -3\nhigh = 3\nlowest = -10\nhighest = 10\n'
SCHEMA = 'name = "toy"\n[label]\ncolumn = "sick"\npositive = ["1"]\nnegative = ["0"]\n' + COLUMN


class Mixed(nnx.Module):
    """Parameters of several shapes, one of them 0-d, beside integers, booleans, statistics and a random stream."""

    def __init__(self, width, rngs):
        self.scale = nnx.Param(jnp.float32(0.5))
        self.wide = nnx.Param(jnp.zeros((width,)))
        self.buffer = nnx.Param(jnp.arange(5, dtype=jnp.int32) + 2**30)
        self.large = nnx.Variable(np.array([2**62 + 1, -(2**53) - 1]))
        self.mask = nnx.Param(jnp.array([True, False]))
        self.seen = nnx.BatchStat(jnp.zeros((3,)))
        self.dropout = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, x):
        """(batch, features) → (batch,)."""
        return self.dropout(x[:, 0]) * self.scale.get_value() + jnp.sum(self.wide.get_value())


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A function that writes sites of some rows each, `{site: rows}`, and gives their folder."""

    def write(rows):
        folder, rng = tmp_path_factory.mktemp("toy"), np.random.default_rng(0)
        (folder / "schema.toml").write_text(SCHEMA)
        for name, count in rows.items():
            lines = [f"{x:.4f},{int(x > 0)}" for x in rng.uniform(-3, 3, count)]
            (folder / f"site_{name}.csv").write_text("\n".join(["a,sick", *lines]) + "\n")
        return folder

    return write


ROWS = {"east": 40, "north": 36, "south": 28, "west": 24}


def config_of(folder, *overrides, unit="record", rounds=2, mode="secure", **privacy):
    """An experiment with privacy for records, or for clients by federated averaging; overrides as on the command line."""
    record = unit == "record"
    averaging = {"name": "fedavg", "local_steps": 1, "batch_size": 64}
    chosen = {"epsilon": 2.0, "delta": 1e-4, "divisor": 60, "colluders": 1, "dropouts": 1, "unit": unit}
    return build_config(
        {
            "name": "toy",
            "rounds": rounds,
            "data": {"path": str(folder), "test_fraction": 0.25},
            "model": {"loss": "squared"},
            "algorithm": {"name": "dp_fedsgd"} if record else averaging,
            "privacy": chosen | ({"records_per_site": 64} if record else {}) | privacy,
            "secagg": {"mode": mode, "suite": "classical"},
        },
        overrides,
    )


@pytest.fixture(scope="module")
def mixed(tables):
    """Record-level privacy on the mixed model, 4 001 parameters; one preparation serves all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "factory", lambda *_: lambda _features, rngs: Mixed(4000, rngs))
        return prepare(config_of(tables(ROWS), mode="ideal"), "run-1", silences={})


@pytest.fixture
def opened(tmp_path):
    """A function that makes the sites of an experiment, with empty ledgers."""
    with contextlib.ExitStack() as stack:

        def make(experiment):
            ledgers = {name: stack.enter_context(Ledger(tmp_path / f"{name}.jsonl")) for name in experiment.train}
            return Consortium(experiment, ledgers)

        yield make


def start(experiment, number=0, attempt=0):
    """A round on the initial model, announced."""
    adapter = experiment.adapter
    return Announcement(number, attempt, adapter.ravel(adapter.params), adapter.hash(adapter.params))


def noiseless(site, announcement):
    """The integers of a site before it adds its noise."""
    return site.algorithm.encode(site.train(announcement)[0])["update"]


@pytest.mark.case("P6")
def test_a_site_with_a_bad_value_sends_nothing(tables, tmp_path, monkeypatch, caplog):
    """Client level: [NaN, 1e9] of one site is refused by leaf before anything is booked or sent; the run goes on without it."""
    train = Site.train

    def spoiled(site, announcement):
        update, local = train(site, announcement)
        bad = np.array([math.nan, 1e9]) if site.name == "south" else update.delta
        return SiteUpdate(bad, update.weight, update.loss), local

    monkeypatch.setattr(Site, "train", spoiled)
    result = run(config_of(tables(ROWS), unit="client", rounds=1), out=tmp_path / "run", ledgers=tmp_path / "ledgers")
    assert result.survivors == (("east", "north", "west"),)
    assert "site south refused: leaf \"['bias']\", element 0: not finite" in caplog.text
    kinds = sorted([entry.kind for entry in read_entries(file)] for file in (tmp_path / "ledgers").glob("*.jsonl"))
    assert kinds == [[]] + [["plan", "reserve", "commit"]] * 3


@pytest.mark.case("P7")
def test_the_model_moves_by_the_planned_noise(mixed, opened):
    """In training too the noise is in the sum: times the divisor it is the plan's, and a share of one site would be less."""
    plan, consortium = mixed.agreement.plan, opened(mixed)
    gradient = consortium.aggregate(start(mixed)).mean.gradient
    spread = np.std(gradient[1:]) * plan.divisor  # every parameter of `wide` has one gradient
    assert spread == pytest.approx(math.sqrt(4) * plan.sigma_local * plan.clip / plan.grid, rel=0.06)
    assert spread > plan.noise_multiplier * plan.clip


@pytest.mark.case("P9")
def test_sites_rounds_and_places_have_their_own_noise(tables):
    """Under one seed for all sites the noise of sites, rounds and places in a vector has nothing in common."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "factory", lambda *_: lambda _features, rngs: Mixed(3999, rngs))
        experiment = prepare(config_of(tables(ROWS)), "run-1", silences={}, test_seed=3)
    names = dict.fromkeys(experiment.train)
    sites = Consortium(experiment, names | dict.fromkeys(names, object())).sites.values()
    drawn = []
    for number in range(2):
        for site in sites:
            at = start(experiment, number)
            noise = site.contribution(at)[0]["update"] - noiseless(site, at)
            drawn += [noise[:2000], noise[2000:]]
            with pytest.raises(SamplerError, match="was drawn before"):
                site.contribution(at)
    together = np.corrcoef(np.array(drawn, np.float64))
    assert together.shape == (16, 16)
    assert np.abs(together - np.eye(16)).max() < 0.12


@pytest.mark.case("P10")
def test_the_seed_of_an_experiment_seeds_no_noise(mixed, tmp_path):
    """Two runs of one configuration, seed included, have other noise; the seed that fixes it marks every entry not private."""
    at = start(mixed)
    first, second = (
        Consortium(mixed, dict.fromkeys(mixed.train, object())).sites[0].contribution(at)[0]["update"] for _ in range(2)
    )
    assert np.mean(first == second) < 0.01
    result = run(mixed.config, out=tmp_path / "run", ledgers=tmp_path / "ledgers", insecure_test_seed=0)
    for file in (result.ledger, *(tmp_path / "ledgers").glob("*.jsonl")):
        assert not any(entry.private for entry in read_entries(file) if entry.kind != "plan")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["private"] is False


@pytest.mark.case("P15")
def test_a_site_with_nine_tenths_of_the_rows_weighs_no_more(tables, opened):
    """Ten sites, one with 90 % of the rows, noise 1: leaving it out moves the sum by one clip norm, 4.4 a round, not 78."""
    rows = {"a": 729} | dict.fromkeys("bcdefghij", 9)
    privacy = {"epsilon": 4.4, "delta": 1e-5, "colluders": 0, "dropouts": 0, "divisor": 10}
    experiment = prepare(config_of(tables(rows), unit="client", rounds=1, **privacy), "run-1")
    plan, algorithm = experiment.agreement.plan, experiment.algorithm
    assert plan.noise_multiplier == pytest.approx(1.0, abs=0.005)
    assert [(block.name, block.length) for block in algorithm.blocks] == [("update", 2)]
    there = {}
    for client, site in opened(experiment).sites.items():
        delta = np.array([3e5, -4e5])
        there[client] = algorithm.encode(SiteUpdate(delta, len(site.rows.y), 0.0))["update"]
        lone = algorithm.encode(SiteUpdate(delta, 1, 0.0))["update"]
        assert np.array_equal(there[client], lone)
        assert sum(int(x) ** 2 for x in there[client]) <= plan.grid**2
    assert len(experiment.train["a"].y) > 0.85 * sum(len(site.y) for site in experiment.train.values())
    whole, without = sum(there.values()), sum(value for client, value in there.items() if client != 0)
    moved = math.dist(whole, without) / plan.sigma_effective(10)
    assert gaussian_epsilon(moved**2, 1e-5).upper <= 4.4
    assert epsilon(noise_multiplier=1.0 / (0.9 * 10), steps=1, delta=1e-5).upper == pytest.approx(78, abs=1)
    mean = {"update": whole}, {"update": without}
    change = algorithm.decode(mean[0]).gradient - algorithm.decode(mean[1]).gradient
    assert np.linalg.norm(change) <= plan.clip / plan.divisor * (1 + 1e-12)


@pytest.mark.case("P17")
def test_realised_noise_is_booked(tables, tmp_path):
    """A site drops out after noise was planned for all: every ledger books what the signed survivors gave, within the budget."""
    result = run(
        config_of(tables(ROWS), rounds=2),
        out=tmp_path / "run",
        ledgers=tmp_path / "ledgers",
        silences={0: {"south": "mask"}},
    )
    plan = Plan.from_json((tmp_path / "run" / "plan.json").read_bytes())
    commits = [entry for entry in read_entries(result.ledger) if entry.kind == "commit"]
    assert [entry.survivors for entry in commits] == [(0, 1, 3), (0, 1, 2, 3)]
    assert [entry.sigma_eff for entry in commits] == [plan.sigma_effective(3), plan.sigma_effective(4)]
    realised = gaussian_epsilon(plan.mu(3) ** 2 + plan.mu(4) ** 2, plan.delta).upper
    assert result.summary["epsilon"] == pytest.approx(realised, rel=1e-9)
    assert gaussian_epsilon(2 * plan.mu(4) ** 2, plan.delta).upper < realised < plan.accounted_epsilon().upper <= 2.0
    for file in (tmp_path / "ledgers").glob("*.jsonl"):
        own = [entry for entry in read_entries(file) if entry.kind == "commit"]
        assert {(entry.survivors, entry.sigma_eff) for entry in own} <= {(e.survivors, e.sigma_eff) for e in commits}


@pytest.mark.case("P17")
def test_a_site_agrees_to_no_sum_below_the_floor(mixed, opened):
    """What a training site tells the protocol before its share leaves: three survivors will do, two have too little noise."""
    part = Participation(opened(mixed).sites[0], start(mixed))
    part.accept((0, 1, 2))
    with pytest.raises(PlanError, match="site east withholds its shares: 2 survivors, of whom 1 may collude"):
        part.accept((0, 1))


@pytest.mark.case("P24")
def test_a_parameter_without_dimensions_is_clipped_and_noised(mixed, opened):
    """The 0-d parameter is a coordinate like any other: within each record's clip norm, and under noise at every attempt."""
    plan, site = mixed.agreement.plan, opened(mixed).sites[0]
    leaves = mixed.adapter.schema.leaves
    assert [(leaf.name, leaf.shape) for leaf in leaves] == [("['scale']", ()), ("['wide']", (4000,))]
    rows, present = next(iter(site.train(start(mixed))[0]))
    longest = np.linalg.norm(rows, axis=1) == np.linalg.norm(rows[present], axis=1).max()
    one = mixed.algorithm.encode(iter([(rows, longest)]))["update"]
    expected = rows[longest, 0] / np.linalg.norm(rows[longest]) * plan.grid
    assert one[0] == pytest.approx(expected[0], rel=1e-3)
    assert abs(rows[longest, 0]) > 20 * abs(expected) / plan.grid
    lone = np.zeros_like(rows)
    lone[:, 0] = 1e9
    encoded = mixed.algorithm.encode(iter([(lone, present)]))["update"]
    assert 0.99 * present.sum() * plan.grid < encoded[0] <= present.sum() * plan.grid
    before = noiseless(site, start(mixed))[0]
    drawn = [site.contribution(start(mixed, attempt=attempt))[0]["update"][0] - before for attempt in range(40)]
    assert np.std(drawn) == pytest.approx(plan.sigma_local, rel=0.6)


@pytest.mark.case("P25")
def test_integers_stay_where_they_are(mixed, opened, tmp_path, monkeypatch):
    """Integer and boolean buffers, parameters or not, are in no block, carry no noise, and come out of a run bit for bit."""
    schema = mixed.adapter.schema
    assert not {"['buffer']", "['large']", "['mask']", "['seen']"} & {leaf.name for leaf in schema.leaves}
    assert {jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in schema.leaves} == {True}
    assert [(block.name, block.length) for block in mixed.algorithm.blocks] == [("update", 4001)]
    assert [len(value) for value in opened(mixed).sites[0].contribution(start(mixed))[0].values()] == [4001]
    monkeypatch.setattr(model, "factory", lambda *_: lambda _features, rngs: Mixed(3, rngs))
    trained = run(mixed.config, out=tmp_path / "run", ledgers=tmp_path / "ledgers").model
    fresh = Mixed(3, nnx.Rngs(0))
    for name in ("buffer", "large", "mask"):
        after, before = (np.asarray(getattr(each, name).get_value()) for each in (trained, fresh))
        assert (after.dtype, after.tobytes()) == (before.dtype, before.tobytes())
    assert not np.array_equal(trained.wide.get_value(), fresh.wide.get_value())
    assert np.asarray(fresh.large.get_value()).dtype == np.int64


@pytest.mark.case("P25")
def test_integers_of_64_bits_as_parameters(mixed):
    """Under 64-bit JAX an int64 parameter is as little a part of what travels, and keeps every bit."""
    with jax.enable_x64(True):
        built = Mixed(3, nnx.Rngs(0))
        built.buffer = nnx.Param(jnp.array([2**62 + 1], jnp.int64))
        adapter = Adapter.of(built)
        assert [leaf.name for leaf in adapter.schema.leaves] == ["['scale']", "['wide']"]
        params = adapter.unravel(adapter.ravel(adapter.params) + 1.5)
        merged = adapter.merge(params, adapter.local)
        assert int(merged.buffer.get_value()[0]) == 2**62 + 1
    assert mixed.adapter.schema.dimension == 4001


@pytest.mark.case("P19")
def test_a_site_whose_data_are_used_up_says_no(tables, tmp_path):
    """Run after run on one data set, each within its plan: the site's lifetime budget ends it, before the vector leaves."""
    config = config_of(tables(ROWS), "simulation.lifetime_epsilon=3.0", "simulation.lifetime_delta=1e-4", rounds=1)
    spent = []
    for number in range(2):
        result = run(config, out=tmp_path / f"run{number}", ledgers=tmp_path / "ledgers")
        spent.append(max(result.summary["epsilon_lifetime"].values()))
    books = {file: file.read_bytes() for file in (tmp_path / "ledgers").glob("*.jsonl")}
    with pytest.raises(
        (RoundFailedError, BudgetExceededError), match="over all its runs: the next release would bring"
    ):
        run(config, out=tmp_path / "run2", ledgers=tmp_path / "ledgers")
    assert 1.0 < spent[0] < spent[1] <= 3.0
    assert {file: file.read_bytes() for file in books} == books
