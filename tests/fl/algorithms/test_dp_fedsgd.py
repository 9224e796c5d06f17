import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fl.algorithms import Server, dp_fedsgd
from fl.algorithms.dp_fedsgd import CHUNK, chunk_size
from fl.data import Records
from fl.errors import ConfigError, ModelError
from fl.model import LOSSES, Adapter, logistic
from privacy.adaptive import AdaptiveClip
from privacy.codec import GridCodec
from privacy.plan import Plan

FEATURES, CAP, ROWS = 32, 80, 70
EXAMPLE = jnp.zeros((1, FEATURES))


class Net(nnx.Module):
    """A net with dropout, whose gradients depend on the record's key too."""

    def __init__(self, rngs):
        self.first = nnx.Linear(FEATURES, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.second = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        """(batch, features) → (batch, 1)."""
        return self.second(self.dropout(nnx.relu(self.first(x))))


def plan_for(adapter):
    """A record-level plan for a model."""
    return Plan.solve(
        epsilon=1.0,
        unit="record",
        relation="add-remove",
        sites=4,
        dropouts=1,
        colluders=1,
        clip=0.7,
        records_per_site=CAP,
        dimension=adapter.schema.dimension,
        bits=32,
        rounds=4,
        delta=1e-4,
        divisor=200.0,
    )


@pytest.fixture(scope="module")
def net():
    """The net with its plan and algorithm."""
    adapter = Adapter.of(Net(nnx.Rngs(0)))
    plan = plan_for(adapter)
    algorithm = dp_fedsgd(Server(adapter, optax.sgd(1.0), "last", 4), LOSSES["logistic"], plan, example=EXAMPLE)
    return adapter, plan, algorithm


def records(rows, slots, seed=0):
    """Random rows in `slots` slots."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    return Records.place(x, rng.integers(0, 2, rows).astype(np.int32), slots)


def rows_of(adapter, algorithm, data, key=0):
    """Every slot's float gradient, and which slots are present."""
    chunks, _ = algorithm.client_update(adapter.params, adapter.local, data, key=jax.random.key(key))
    parts = list(chunks)
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([present for _, present in parts])


def without(data, slot):
    """The same records with one removed: its slot is empty, the others keep theirs."""
    x, y, present = data.x.copy(), data.y.copy(), data.present.copy()
    x[slot], y[slot], present[slot] = 0, 0, False
    return dataclasses.replace(data, x=x, y=y, present=present)


def test_removing_any_record_leaves_the_others_bitwise_the_same(net):
    """Each record is removed in turn; the integers of all others do not change by one bit."""
    adapter, plan, algorithm = net
    codec = GridCodec(plan.clip, plan.grid, plan.dimension)
    data = records(ROWS, algorithm.slots(ROWS))
    whole = codec.encode_records(*rows_of(adapter, algorithm, data))
    total = algorithm.encode(algorithm.client_update(adapter.params, adapter.local, data, key=jax.random.key(0))[0])[
        "update"
    ]
    assert np.array_equal(total, whole.sum(axis=0))
    for slot in range(ROWS):
        less = codec.encode_records(*rows_of(adapter, algorithm, without(data, slot)))
        assert not less[slot].any()
        assert whole[slot].any()
        others = np.arange(len(whole)) != slot
        assert np.array_equal(less[others], whole[others])


def test_a_record_that_leaves_the_table_leaves_the_others_alone(net):
    """Not only an emptied slot: with a row cut out of the table, all later rows move up, and no integer of theirs changes.

    The net has dropout layers, so this fails when random streams are keyed by the slot instead of the record.
    """
    adapter, plan, algorithm = net
    codec = GridCodec(plan.clip, plan.grid, plan.dimension)
    data = records(12, algorithm.slots(12))
    x, y = np.concatenate([data.x[:12], data.x[:2]]), np.concatenate([data.y[:12], data.y[:2]])  # two records twice

    def integers(rows):
        placed = Records.place(x[rows], y[rows], algorithm.slots(len(rows)))
        return codec.encode_records(*rows_of(adapter, algorithm, placed))[: len(rows)]

    whole = integers(np.arange(14))
    for gone in range(14):
        kept = np.delete(np.arange(14), gone)
        less = integers(kept)
        changed = [i for i, row in zip(kept, less, strict=True) if not np.array_equal(row, whole[i])]
        # Of two identical records either may be the one that is gone: as sums, they are the same.
        expected = whole.sum(axis=0) - whole[max(i for i in range(14) if np.array_equal(x[i], x[gone]))]
        assert np.array_equal(less.sum(axis=0), expected)
        assert set(changed) <= {i for i in range(14) if np.array_equal(x[i], x[gone])}


def test_memory_is_bounded_by_the_model(net):
    """A call takes fewer slots where the model is larger, at least one."""
    _, plan, _ = net
    assert chunk_size(plan.dimension) == CHUNK
    assert chunk_size(10**6) == 4
    assert chunk_size(10**9) == 1


def test_replacing_a_record_changes_its_own_row_only(net):
    """A record of extreme values in one slot changes no bit of another slot's float gradient."""
    adapter, _, algorithm = net
    data = records(ROWS, algorithm.slots(ROWS))
    x = data.x.copy()
    x[3] = 1e30
    before, _ = rows_of(adapter, algorithm, data)
    after, _ = rows_of(adapter, algorithm, dataclasses.replace(data, x=x))
    others = np.arange(len(before)) != 3
    assert np.array_equal(before[others], after[others])
    assert not np.array_equal(before[3], after[3])


def test_a_record_draws_from_its_own_key(net):
    """Two equal records drop different units, and the round's key changes them again."""
    adapter, _, algorithm = net
    data = records(2, algorithm.slots(2))
    twins = Records.place(data.x[[0, 0]], data.y[[0, 0]], algorithm.slots(2))
    different = [rows_of(adapter, algorithm, twins, key)[0] for key in range(4)]
    assert any(not np.array_equal(rows[0], rows[1]) for rows in different)
    assert any(not np.array_equal(different[0][0], rows[0]) for rows in different[1:])


def test_rows_are_the_records_gradients():
    """Without random layers a row is the gradient of that record's own loss."""
    adapter = Adapter.of(logistic(FEATURES, nnx.Rngs(0)))
    plan = plan_for(adapter)
    algorithm = dp_fedsgd(Server(adapter, optax.sgd(1.0), "last", 4), LOSSES["logistic"], plan, example=EXAMPLE)
    data = records(9, algorithm.slots(9))
    rows, present = rows_of(adapter, algorithm, data)
    vector = adapter.ravel(adapter.params)
    error = 1 / (1 + np.exp(-(data.x @ vector[1:] + vector[0]))) - data.y
    np.testing.assert_allclose(rows[:9, 0], error[:9], rtol=1e-5)
    np.testing.assert_allclose(rows[:9, 1:], error[:9, None] * data.x[:9], rtol=1e-4, atol=1e-6)
    assert present.sum() == 9
    mean = algorithm.decode(
        {"update": GridCodec(plan.clip, plan.grid, plan.dimension).encode_records(rows, present).sum(axis=0)}
    )
    norms = np.linalg.norm(rows[:9].astype(float), axis=1)
    clipped = rows[:9] * np.minimum(1, plan.clip / norms)[:, None]
    np.testing.assert_allclose(mean.gradient, clipped.sum(axis=0) / plan.divisor, atol=1e-5)
    assert mean.weight is None
    assert mean.loss is None


def test_a_record_that_is_not_finite_counts_as_zero(net):
    """A NaN record neither stops the site (which would reveal it) nor changes the sum of the others."""
    adapter, _, algorithm = net
    data = records(ROWS, algorithm.slots(ROWS))
    x = data.x.copy()
    x[7] = np.nan

    def total(chosen):
        return algorithm.encode(
            algorithm.client_update(adapter.params, adapter.local, chosen, key=jax.random.key(0))[0]
        )["update"]

    assert np.array_equal(total(dataclasses.replace(data, x=x)), total(without(data, 7)))


@pytest.mark.parametrize("rows", [0, 1, CHUNK, CHUNK + 1, CAP])
def test_slots_depend_on_the_public_cap_only(net, rows):
    """F17: sites of 0, 1 or all rows do the same work in the same chunks, so no shape tells how many rows there are."""
    adapter, plan, algorithm = net
    assert algorithm.slots(rows) == algorithm.slots(CAP) == 2 * CHUNK
    data = records(rows, algorithm.slots(rows))
    chunks, _ = algorithm.client_update(adapter.params, adapter.local, data, key=jax.random.key(0))
    assert [part.shape for part, _ in chunks] == [(CHUNK, plan.dimension)] * 2


def test_a_site_without_rows_contributes_zero(net):
    """F17: before noise, no rows sum to zero in every coordinate."""
    adapter, plan, algorithm = net
    empty = records(0, algorithm.slots(0))
    values = algorithm.encode(algorithm.client_update(adapter.params, adapter.local, empty, key=jax.random.key(0))[0])
    assert values["update"].tolist() == [0] * plan.dimension


def test_models_that_couple_records_are_refused():
    """BatchNorm in training mode is refused by the name of its statistics, since it mixes records."""

    class Normed(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(FEATURES, rngs=rngs)
            self.linear = nnx.Linear(FEATURES, 1, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.norm(x))

    adapter = Adapter.of(Normed(nnx.Rngs(0)))
    with pytest.raises(ModelError, match=r"leaf \['norm'\]\['mean'\] changes in training"):
        dp_fedsgd(Server(adapter, optax.sgd(1.0), "last", 4), LOSSES["logistic"], plan_for(adapter), example=EXAMPLE)


@pytest.mark.parametrize("batch_stats", ["local", "shared"])
def test_frozen_batch_statistics_are_allowed(batch_stats):
    """BatchNorm that only uses stored statistics couples nothing and is accepted; they have no gradient, and stay."""

    class Frozen(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(FEATURES, rngs=rngs)
            self.linear = nnx.Linear(FEATURES, 1, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.norm(x, use_running_average=True))

    adapter = Adapter.of(Frozen(nnx.Rngs(0)), batch_stats=batch_stats)
    plan = plan_for(adapter)
    algorithm = dp_fedsgd(Server(adapter, optax.sgd(1.0), "last", 4), LOSSES["logistic"], plan, example=EXAMPLE)
    assert algorithm.blocks[0].length == adapter.schema.dimension
    rows, present = rows_of(adapter, algorithm, records(9, algorithm.slots(9)))
    kept = np.concatenate([np.full(leaf.size, leaf.name in adapter.averaged) for leaf in adapter.schema.leaves])
    assert kept.sum() == (2 * FEATURES if batch_stats == "shared" else 0)
    assert not rows[:, kept].any()
    assert np.abs(rows[present][:, ~kept]).max() > 0.1


def test_personal_leaves_are_refused():
    """A gradient per record trains what leaves the site only, so a personal leaf is refused by its name."""
    adapter = Adapter.of(Net(nnx.Rngs(0)), personal=["second.*"])
    with pytest.raises(ModelError, match=r"leaf \['second'\]\['bias'\] is personal"):
        dp_fedsgd(Server(adapter, optax.sgd(1.0), "last", 4), LOSSES["logistic"], plan_for(adapter), example=EXAMPLE)


def test_a_float_mean_is_refused(net):
    """Privacy is proved for integer sums only, so there is no mean in floats."""
    _, _, algorithm = net
    with pytest.raises(ConfigError, match=r"secagg\.mode"):
        algorithm.plain({})


def test_block_has_the_plans_bound(net):
    """The one block that leaves is the update, with the plan's ring and bound."""
    _, plan, algorithm = net
    assert [(b.name, b.length, b.bits, b.bound) for b in algorithm.blocks] == [
        ("update", plan.dimension, plan.bits, plan.bound)
    ]
    assert jnp.int32(plan.records_per_site) == algorithm.max_rows


def test_each_records_bit_is_one_more_coordinate():
    """With a clip norm that adapts the sum says how many gradients are within this round's C, and is scaled by it."""
    adapter = Adapter.of(logistic(FEATURES, nnx.Rngs(0)))
    rule = AdaptiveClip(quantile=0.5, learning_rate=0.2, bit_noise=20, expected=200, min_clip=0.1, max_clip=50)
    plan = Plan.from_json(json.dumps(plan_for(adapter).to_fields() | {"adaptive": rule.to_fields(), "epsilon": 1.01}))
    algorithm = dp_fedsgd(Server(adapter, optax.sgd(1.0), "last", 4), LOSSES["logistic"], plan, example=EXAMPLE)
    assert algorithm.blocks[0].length == plan.dimension + 1
    data = records(ROWS, algorithm.slots(ROWS))
    rows, present = rows_of(adapter, algorithm, data)
    norms = np.linalg.norm(rows[present].astype(float), axis=1)
    for clip in (0.1, float(np.quantile(norms, 0.3)) + 1e-6, 50.0):
        update, _ = algorithm.client_update(adapter.params, adapter.local, data, key=jax.random.key(0))
        mean = algorithm.decode(algorithm.encode(update, clip), clip)
        assert mean.bits == np.count_nonzero(norms <= clip) - ROWS / 2
        clipped = rows[present] * np.minimum(1, clip / norms)[:, None]
        np.testing.assert_allclose(mean.gradient, clipped.sum(axis=0) / plan.divisor, atol=1e-4 * clip)
