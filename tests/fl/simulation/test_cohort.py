import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fl.algorithms import LocalTraining, Server, WeightedEncoding, fedavg
from fl.data import Records
from fl.data.population import ArrayPopulation, GeneratedPopulation
from fl.errors import ConfigError, DataError, ModelError
from fl.model import Adapter
from fl.model.losses import loss_function
from fl.model.zoo import MLP
from fl.simulation.cohort import Cohort, Plainly, Task
from privacy.codec import FixedPoint


class Normed(nnx.Module):
    """A linear model behind batch normalisation: a model with local state."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.linear = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        """Scores (batch, 1)."""
        return self.linear(self.norm(x))


def make(model=None, *, clients=12, batch=4, max_weight=64, **kept):
    """An algorithm, its encoding and a ragged population of two sizes; client 3's rows may be poisoned."""
    adapter = Adapter.of(model or MLP(3, (4,), nnx.Rngs(0)))
    encoding = WeightedEncoding(adapter.schema.layout, FixedPoint(16.0, 24, adapter.schema.dimension), max_weight)
    server = Server(adapter, optax.sgd(1.0), "last", 5)
    algorithm = fedavg(server, loss_function("logistic"), LocalTraining(optax.sgd(0.1), batch), encoding, clients)
    rng = np.random.default_rng(0)
    rows = {
        f"c{i}": (rng.standard_normal((3 + 5 * (i % 2), 3)).astype(np.float32), rng.integers(0, 2, 3 + 5 * (i % 2)))
        for i in range(clients)
    }
    rows = {name: (x, y.astype(np.int32)) for name, (x, y) in rows.items()}
    for client, value in kept.items():
        rows[client][0][0] = value
    return adapter, algorithm, encoding, rows


def passes(cohort, adapter, *, number=0, ids=None, local=None):
    """The cohort's passes at the model's first parameters."""
    ids = np.arange(cohort.population.size) if ids is None else ids
    local = {name: np.repeat(np.asarray(leaf)[None], len(ids), 0) for name, leaf in adapter.local.items()}
    return cohort.passes(Task(adapter.params, {}, number), ids, local)


def as_sites(adapter, algorithm, rows, *, number=0, seed=5):
    """What `client_update` gives for each client alone, as a site runs it."""
    updates = []
    for client, (x, y) in enumerate(rows.values()):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), client), number)
        records = Records.place(x, y, algorithm.slots(len(y)))
        updates.append(algorithm.client_update(adapter.params, adapter.local, records, key=key))
    return updates


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_sum_is_that_of_the_contributions_bit_for_bit(chunk):
    """The pass over all positions, of two sizes of client, equals the sum of the passes over one each."""
    adapter, algorithm, encoding, rows = make()
    cohort = Cohort(algorithm, ArrayPopulation(rows, algorithm.slots), encoding, seed=5, chunk=chunk)
    laid = passes(cohort, adapter)
    whole, parts = laid.all(), [laid.only(position) for position in range(12)]
    assert whole.ok.all()
    for name, total in whole.sums.items():
        assert total.dtype == np.int64
        np.testing.assert_array_equal(total, sum(part.sums[name] for part in parts))
    assert [int(part.ok.sum()) for part in parts] == [1] * 12
    assert len({part.sums["update"].tobytes() for part in parts}) == 12


def test_a_client_trains_as_its_site_does():
    """Weights are equal, and every integer is that of the site's own path to within float rounding in training."""
    adapter, algorithm, encoding, rows = make()
    cohort = Cohort(algorithm, ArrayPopulation(rows, algorithm.slots), encoding, seed=5)
    laid = passes(cohort, adapter, number=2)
    for client, (update, _) in enumerate(as_sites(adapter, algorithm, rows, number=2)):
        expected, found = algorithm.encode(update), laid.only(client).sums
        assert found["weight"] == expected["weight"]
        np.testing.assert_allclose(found["update"], expected["update"], atol=update.weight * 2.0**24 * 1e-6)
        np.testing.assert_allclose(found["loss"], expected["loss"], atol=update.weight * 2.0**20 * 1e-6)
        assert np.abs(expected["update"]).max() > 2.0**24 * 1e-3


def test_training_inside_64_bit_sums_sees_32_bit_types():
    """The records' order and the loss are float32's: under 64-bit types other random numbers would be drawn."""
    seen = []
    adapter, algorithm, encoding, rows = make()

    def spy(params, local, records, *, key, broadcast):
        seen.append(
            tuple(
                str(dtype)
                for dtype in (jax.random.uniform(key, (3,)).dtype, jnp.arange(3).dtype, jnp.asarray(1.0).dtype)
            )
        )
        return algorithm.local_update(params, local, records, key=key, broadcast=broadcast)

    from dataclasses import replace

    cohort = Cohort(replace(algorithm, local_update=spy), ArrayPopulation(rows, algorithm.slots), encoding, seed=5)
    passes(cohort, adapter).all()
    assert set(seen) == {("float32", "int32", "float32")}


def test_float_sums_are_the_weighted_sums_of_the_sites():
    """Update, weight and loss without an encoding, to float rounding; the same bits when it is done again."""
    adapter, algorithm, _, rows = make()
    cohort = Cohort(algorithm, ArrayPopulation(rows, algorithm.slots), Plainly(adapter.schema.layout), seed=5)
    outcome, again = passes(cohort, adapter).all(), passes(cohort, adapter).all()
    updates = [update for update, _ in as_sites(adapter, algorithm, rows)]
    np.testing.assert_allclose(outcome.sums["update"], sum(u.delta * u.weight for u in updates), atol=1e-5)
    np.testing.assert_allclose(outcome.sums["loss"], sum(u.loss * u.weight for u in updates), rtol=1e-5)
    assert outcome.sums["weight"] == sum(u.weight for u in updates)
    for name, total in outcome.sums.items():
        np.testing.assert_array_equal(total, again.sums[name])


def test_sites_that_count_alike_have_weight_one():
    """With `uniform` a client with records counts once, in floats and in integers."""
    from dataclasses import replace

    adapter, algorithm, encoding, rows = make()
    population = ArrayPopulation(rows, algorithm.slots)
    for each in (Plainly(adapter.schema.layout, uniform=True), replace(encoding, uniform=True)):
        assert passes(Cohort(algorithm, population, each, seed=5), adapter).all().sums["weight"] == 12


@pytest.mark.parametrize(
    ("exact", "chunk", "wrong"), [(True, 1, np.nan), (True, 4, 1e30), (False, 1, np.inf), (False, 4, np.nan)]
)
def test_a_client_whose_update_is_refused_adds_nothing(exact, chunk, wrong):
    """Its flag falls, and the sums are those of a cohort without it, bit for bit; the others' flags stand."""
    adapter, algorithm, encoding, rows = make(c3=wrong)
    encoding = encoding if exact else Plainly(adapter.schema.layout)
    cohort = Cohort(algorithm, ArrayPopulation(rows, algorithm.slots), encoding, seed=5, chunk=chunk)
    outcome = passes(cohort, adapter).all()
    assert np.flatnonzero(~outcome.ok).tolist() == [3]
    others = [passes(cohort, adapter).only(position).sums for position in range(12) if position != 3]
    for name, total in outcome.sums.items():
        expected = sum(each[name].astype(np.float64) for each in others)
        assert np.isfinite(total).all()
        np.testing.assert_allclose(total, expected, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-4)


def test_local_leaves_move_with_their_client_only():
    """Batch statistics after a pass are those of the site's own path; outside the pass they are as before."""
    adapter, algorithm, encoding, rows = make(Normed(nnx.Rngs(0)))
    assert adapter.local
    cohort = Cohort(algorithm, ArrayPopulation(rows, algorithm.slots), encoding, seed=5)
    laid = passes(cohort, adapter)
    whole, one = laid.all(), laid.only(7)
    for client, (_, local) in enumerate(as_sites(adapter, algorithm, rows)):
        for name, leaf in local.items():
            np.testing.assert_allclose(whole.local[name][client], leaf, atol=1e-6)
            before = np.asarray(adapter.local[name])
            np.testing.assert_array_equal(one.local[name][client], whole.local[name][7] if client == 7 else before)


def test_the_local_leaves_of_a_refused_client_stay():
    """A client with NaN in its rows keeps the statistics that it had."""
    adapter, algorithm, encoding, rows = make(Normed(nnx.Rngs(0)), c3=np.nan)
    cohort = Cohort(algorithm, ArrayPopulation(rows, algorithm.slots), encoding, seed=5)
    outcome = passes(cohort, adapter).all()
    for name, leaf in adapter.local.items():
        np.testing.assert_array_equal(outcome.local[name][3], leaf)


def generate(key, client, pool):
    """Rows from a pool, and the client's parity as label."""
    x = pool[jax.random.randint(key, (4,), 0, len(pool))]
    return x, jnp.full(4, client % 2, jnp.int32), jnp.ones(4, bool)


def test_a_cohort_of_a_generated_population_needs_no_stored_clients():
    """Three of 10^6 clients, each with rows of its own, and the sum that of the contributions."""
    adapter, algorithm, encoding, _ = make()
    pool = jnp.asarray(np.random.default_rng(0).standard_normal((50, 3)), jnp.float32)
    cohort = Cohort(algorithm, GeneratedPopulation(10**6, 4, generate, seed=1, data=pool), encoding, seed=5)
    laid = passes(cohort, adapter, ids=np.array([2, 70_001, 999_999]))
    parts = [laid.only(position).sums["update"] for position in range(3)]
    np.testing.assert_array_equal(laid.all().sums["update"], sum(parts))
    assert len({part.tobytes() for part in parts}) == 3


def test_generated_clients_cannot_keep_local_state():
    """A model with batch statistics over generated clients is refused, naming a leaf."""
    adapter, algorithm, encoding, _ = make(Normed(nnx.Rngs(0)))
    with pytest.raises(ModelError, match=r"\['norm'\]\['mean'\]"):
        Cohort(algorithm, GeneratedPopulation(10, 4, generate, seed=1), encoding, seed=5)
    assert adapter.local


def test_what_cannot_run_as_one_program_is_refused():
    """No traceable update, a chunk of nobody, or a client above the agreed number of rows."""
    from dataclasses import replace

    _, algorithm, encoding, rows = make()
    population = ArrayPopulation(rows, algorithm.slots)
    with pytest.raises(ModelError, match="no traceable local update"):
        Cohort(replace(algorithm, local_update=None), population, encoding, seed=5)
    with pytest.raises(ConfigError, match="a chunk of 0"):
        Cohort(algorithm, population, encoding, seed=5, chunk=0)
    with pytest.raises(DataError, match="client c1: 8 training rows, and the agreed cap is 5"):
        Cohort(replace(algorithm, max_rows=5), population, encoding, seed=5)


def test_a_measured_chunk_is_one_of_the_candidates_and_stays():
    """Measuring picks a chunk for each size of client once; the sums are those of that chunk given by hand."""
    from fl.simulation.cohort import CANDIDATES

    adapter, algorithm, encoding, rows = make()
    rows = {name: pair for name, pair in rows.items() if len(pair[1]) == 8}
    population = ArrayPopulation(rows, algorithm.slots)
    cohort = Cohort(algorithm, population, encoding, seed=5, chunk="measure")
    outcome = passes(cohort, adapter).all()
    (chunk,) = cohort.chunks.values()
    assert chunk in CANDIDATES
    by_hand = passes(Cohort(algorithm, population, encoding, seed=5, chunk=chunk), adapter).all()
    np.testing.assert_array_equal(outcome.sums["update"], by_hand.sums["update"])


SHARDED = """
import importlib.util, json, sys
import jax, numpy as np
spec = importlib.util.spec_from_file_location("here", sys.argv[1])
here = importlib.util.module_from_spec(spec)
spec.loader.exec_module(here)
found = {}
for kind, model in {"plain": None, "normed": here.Normed(here.nnx.Rngs(0))}.items():
    adapter, algorithm, encoding, rows = here.make(model, clients=11, c3=np.nan)
    population = here.ArrayPopulation(rows, algorithm.slots)
    for devices in (1, 4):
        cohort = here.Cohort(algorithm, population, encoding, seed=5, devices=jax.devices()[:devices])
        laid = here.passes(cohort, adapter)
        outcome, one = laid.all(), laid.only(7)
        found[f"{kind} {devices}"] = [
            {name: total.tolist() for name, total in each.sums.items()} for each in (outcome, one)
        ] + [outcome.ok.tolist(), {name: leaf.tolist() for name, leaf in outcome.local.items()}]
print(json.dumps({"devices": len(jax.devices()), "found": found}))
"""


def test_a_cohort_over_four_devices_gives_the_bits_of_one():
    """Eleven clients of two sizes, one of them refused, over four devices: sums, flags and local leaves are equal."""
    import os

    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["devices"] == 4
    for kind in ("plain", "normed"):
        assert result["found"][f"{kind} 4"] == result["found"][f"{kind} 1"]
        assert result["found"][f"{kind} 1"][2].count(False) == 1
