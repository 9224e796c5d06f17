import logging
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fl.algorithms import ClippedEncoding, LocalTraining, Server, WeightedEncoding, fedavg, plain_mean
from fl.data import Records
from fl.data.population import ArrayPopulation, GeneratedPopulation
from fl.model import Adapter
from fl.model.losses import loss_function
from fl.model.zoo import MLP
from fl.simulation.aggregator import CohortAggregator
from fl.simulation.cohort import Cohort, Plainly
from fl.site import Agreement, Announcement
from privacy.codec import FixedPoint
from privacy.errors import InputError, PlanError
from privacy.noise import NoiseSource
from privacy.plan import Plan
from secagg.errors import BelowThresholdError
from secagg.testing import simulate_round

CLIENTS = 6


class Normed(nnx.Module):
    """A linear model behind batch normalisation: a model with local state."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.linear = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        """Scores (batch, 1)."""
        return self.linear(self.norm(x))


def make_plan(dimension):
    """Client-level privacy for the whole cohort."""
    return Plan.solve(
        unit="client",
        relation="zero-out",
        sites=CLIENTS,
        dropouts=2,
        colluders=1,
        clip=0.1,
        records_per_site=1,
        dimension=dimension,
        divisor=5.0,
        epsilon=2.0,
        delta=1e-3,
        rounds=4,
    )


def make(kind="ideal", *, model=None, poison=None, population=None, seed=None, **options):
    """An aggregator of six clients of four rows, and its announcement of round 0."""
    adapter = Adapter.of(model or MLP(3, (4,), nnx.Rngs(0)))
    layout, d = adapter.schema.layout, adapter.schema.dimension
    plan = make_plan(d) if kind == "private" else None
    encoding = ClippedEncoding(layout, plan) if plan else WeightedEncoding(layout, FixedPoint(16.0, 24, d), 8)
    server = Server(adapter, optax.sgd(1.0), "last", 5, plan)
    algorithm = fedavg(server, loss_function("logistic"), LocalTraining(optax.sgd(0.1), 2), encoding, CLIENTS)
    rng = np.random.default_rng(0)
    rows = {
        f"c{i}": (rng.standard_normal((4, 3)).astype(np.float32), rng.integers(0, 2, 4).astype(np.int32))
        for i in range(CLIENTS)
    }
    if poison is not None:
        rows[poison][0][0] = np.nan
    population = population or ArrayPopulation(rows, algorithm.slots)
    cohort = Cohort(algorithm, population, Plainly(layout) if kind == "plain" else encoding, seed=5)
    agreement = Agreement(
        "run", population.names, algorithm.blocks, plan, "e", adapter.fingerprint, suite="classical", test_seed=seed
    )
    if plan is not None:
        options["noise"] = NoiseSource() if seed is None else NoiseSource.insecure_test(seed)
    return CohortAggregator(cohort, agreement, adapter, **options), announce(adapter), rows


def announce(adapter, number=0, attempt=0):
    """The announcement of the model's first parameters."""
    return Announcement(number, attempt, adapter.ravel(adapter.params), adapter.hash(adapter.params))


def silent(**phases):
    """Planned silences by client."""
    return lambda _announcement: {int(client[1:]): phase for client, phase in phases.items()}


def test_the_plain_mean_is_that_of_the_sites():
    """Gradient, weight and loss of `plain_mean` over the sites' own updates, to float rounding."""
    import jax

    aggregator, announcement, rows = make("plain")
    found = aggregator(announcement)
    algorithm, updates = aggregator.cohort.algorithm, {}
    for client, (name, (x, y)) in enumerate(rows.items()):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), client), 0)
        updates[name], _ = algorithm.client_update(aggregator.adapter.params, {}, Records.place(x, y, 4), key=key)
    expected, _ = plain_mean(updates)
    np.testing.assert_allclose(found.mean.gradient, expected.gradient, atol=1e-6)
    assert found.mean.weight == expected.weight == 24
    assert found.mean.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.survivors == tuple(range(CLIENTS))


@pytest.mark.parametrize("kind", ["plain", "ideal"])
def test_one_client_s_nan_is_left_out_and_named(kind, caplog):
    """The client is dropped in the mask phase, its name is logged, and the mean is that without it."""
    aggregator, announcement, _ = make(kind, poison="c2")
    with caplog.at_level(logging.WARNING):
        found = aggregator(announcement)
    assert found.survivors == (0, 1, 3, 4, 5)
    assert found.dropped == {2: "mask"}
    assert "client c2" in caplog.text
    assert found.mean.weight == 20
    assert np.isfinite(found.mean.gradient).all()
    if kind == "ideal":
        assert "leaf" in found.refused[2]


@pytest.mark.parametrize("kind", ["ideal", "private"])
def test_the_real_protocol_over_the_contributions_yields_the_same_sums(kind):
    """Each survivor's contribution, with its share of noise, through secagg: bitwise the ideal sums, dropouts and all."""
    aggregator, announcement, _ = make(kind, seed=3, silences=silent(c1="mask", c4="unmask"))
    found = aggregator(announcement)
    assert found.survivors == (0, 2, 3, 4, 5)
    plan, inputs = aggregator.agreement.plan, {}
    for client in range(CLIENTS):
        values, _ = aggregator.contribution(announcement, client)
        noise = NoiseSource.insecure_test(3)
        inputs[client] = {
            name: total
            + (
                noise.share(plan.sigma_local, len(total), run="test", round=0, attempt=0, site=client, purpose=name)
                if plan
                else 0
            )
            for name, total in values.items()
        }
    params = aggregator.agreement.round_params(0, announcement.model_hash)
    outcome = simulate_round(params, inputs, drops={1: "mask", 4: "unmask"}, seed=7)
    assert outcome.survivors == found.survivors
    for name, total in found.sums.items():
        np.testing.assert_array_equal(outcome.sums[name], total)


def test_noise_without_a_test_seed_is_that_of_all_shares_at_once():
    """The noise in a sum has the variance of six shares: off by a fifth, or drawn for one share alone, fails."""
    aggregator, announcement, _ = make("private")
    plan = aggregator.agreement.plan
    exact = sum(aggregator.contribution(announcement, client)[0]["update"] for client in range(CLIENTS))
    drawn = [aggregator(replace(announcement, attempt=attempt)).sums["update"] - exact for attempt in range(40)]
    deviation = np.concatenate(drawn).std()
    assert deviation == pytest.approx(plan.sigma_local * CLIENTS**0.5, rel=0.12)


def test_two_rounds_are_repeated_bit_for_bit():
    """Under a test seed another aggregator gives the same sums in the same two rounds; the rounds differ."""
    sums = []
    for _ in range(2):
        aggregator, announcement, _ = make("private", seed=3)
        sums.append([aggregator(replace(announcement, round=number)).sums["update"] for number in range(2)])
    np.testing.assert_array_equal(sums[0][0], sums[1][0])
    np.testing.assert_array_equal(sums[0][1], sums[1][1])
    assert not np.array_equal(sums[0][0], sums[0][1])


def test_too_few_clients_end_the_round_and_no_local_leaf_moves():
    """Below the protocol's threshold the round fails, and statistics stay as they were."""
    everybody = dict.fromkeys(("c0", "c1", "c2", "c3"), "share")
    aggregator, announcement, _ = make(model=Normed(nnx.Rngs(0)), silences=silent(**everybody))
    before = {name: leaf.copy() for name, leaf in aggregator.local.items()}
    with pytest.raises(BelowThresholdError):
        aggregator(announcement)
    for name, leaf in aggregator.local.items():
        np.testing.assert_array_equal(leaf, before[name])


def test_local_leaves_of_the_clients_that_stayed_to_the_end_are_kept():
    """Who fell silent, before its vector or after it, keeps its old statistics, as a site does."""
    aggregator, announcement, _ = make(model=Normed(nnx.Rngs(0)), silences=silent(c1="mask", c4="unmask"))
    before = {name: leaf.copy() for name, leaf in aggregator.local.items()}
    found = aggregator(announcement)
    assert 4 in found.survivors
    name = next(name for name in before if "mean" in name)
    moved = [not np.array_equal(aggregator.local[name][client], before[name][client]) for client in range(CLIENTS)]
    assert moved == [True, False, True, True, False, True]


@pytest.mark.parametrize("kind", ["plain", "ideal"])
def test_a_round_without_anybody_fails(kind):
    """With everybody silent, or every update refused, there is no mean."""
    aggregator, announcement, _ = make(kind, silences=silent(**{f"c{i}": "advertise" for i in range(CLIENTS)}))
    with pytest.raises(BelowThresholdError):
        aggregator(announcement)


def test_a_cohort_is_drawn_anew_in_each_round():
    """Four of 10^5 generated clients a round: others in the next one, the same in a second attempt, names on demand."""
    import jax

    def generate(key, client, _data):
        return jax.random.normal(key, (4, 3)), jnp.full(4, client % 2, jnp.int32), jnp.ones(4, bool)

    aggregator, announcement, _ = make(population=GeneratedPopulation(10**5, 4, generate, seed=1), clients=4)
    first, again = aggregator(announcement), aggregator(replace(announcement, attempt=1))
    other = aggregator(replace(announcement, round=1))
    assert len(first.survivors) == 4
    assert first.survivors == again.survivors != other.survivors
    np.testing.assert_array_equal(first.sums["update"], again.sums["update"])
    with pytest.raises(KeyError):
        aggregator.contribution(announcement, next(i for i in range(9) if i not in first.survivors))


def test_a_refused_contribution_names_its_leaf():
    """In front of the real protocol a client whose update is not finite raises as its site would."""
    aggregator, announcement, _ = make(poison="c2")
    with pytest.raises(InputError, match="leaf"):
        aggregator.contribution(announcement, 2)


def test_a_plan_needs_a_noise_source():
    """An aggregator with a plan and without noise is refused when it is made."""
    aggregator, _, _ = make("private", seed=3)
    with pytest.raises(PlanError, match="noise source"):
        replace(aggregator, noise=None)


def test_the_coordinator_runs_rounds_with_it(tmp_path):
    """`fl.rounds` commits two rounds; the loss falls, and the records name the survivors."""
    from fl.rounds import Coordinator

    aggregator, _, _ = make("ideal")
    algorithm, adapter, records = aggregator.cohort.algorithm, aggregator.adapter, []
    coordinator = Coordinator(
        aggregator.agreement, algorithm, adapter, aggregator, lambda *_: None, tmp_path / "metrics.jsonl"
    )
    coordinator.run(algorithm.init(adapter.params), 2, lambda record, _state: records.append(record))
    assert [record.survivors for record in records] == [[f"c{i}" for i in range(CLIENTS)]] * 2
    assert records[1].loss < records[0].loss
