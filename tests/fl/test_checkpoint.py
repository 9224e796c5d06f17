import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fl.algorithms import Mean, Server
from fl.checkpoint import Checkpoints
from fl.errors import ModelError, RunError
from fl.model import MLP, Adapter, logistic


class Small(nnx.Module):
    """Leaves under integer keys, of several dtypes, one of them 0-d."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 1, rngs=rngs)])
        self.half = nnx.Param(jnp.array([1.5, -0.25], jnp.bfloat16))
        self.scale = nnx.Param(jnp.float32(0.5))


@pytest.fixture(scope="module")
def adapter():
    """A small model, split."""
    return Adapter.of(Small(nnx.Rngs(0)))


@pytest.fixture
def checkpoints(tmp_path):
    """An empty folder of checkpoints."""
    opened = Checkpoints(tmp_path / "checkpoint")
    yield opened
    opened.close()


def stepped(server, steps):
    """A server state after some random steps."""
    state = server.init(server.adapter.params)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        state = server.update(state, Mean(rng.normal(size=server.adapter.schema.dimension)))
    return state


def assert_same(ours, theirs):
    """Two states are the same, bit for bit, in structure and dtype."""
    assert jax.tree.structure(ours.params) == jax.tree.structure(theirs.params)
    assert jax.tree.structure(ours.opt_state) == jax.tree.structure(theirs.opt_state)
    for a, b in zip(
        jax.tree.leaves((ours.params, ours.opt_state, ours.iterate_sum)),
        jax.tree.leaves((theirs.params, theirs.opt_state, theirs.iterate_sum)),
        strict=True,
    ):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert (ours.iterates, ours.round) == (theirs.iterates, theirs.round)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.yogi(0.1)])
def test_a_state_comes_back_bitwise(adapter, checkpoints, optimizer):
    """F7, F9: parameters under integer keys, optimiser state and iterate sums come back bit for bit."""
    server = Server(adapter, optimizer, "last_half", 4)
    state = stepped(server, 3)
    checkpoints.save(state)
    loaded, _ = checkpoints.load(adapter, server.init(adapter.params))
    assert_same(state, loaded)
    next_mean = Mean(np.ones(adapter.schema.dimension))
    assert_same(server.update(state, next_mean), server.update(loaded, next_mean))


def test_only_the_newest_is_kept(adapter, checkpoints, tmp_path):
    """F12: the folder does not grow with the rounds, and the newest state is the one that loads."""
    server = Server(adapter, optax.sgd(0.1), "last", 4)
    for steps in (1, 2):
        checkpoints.save(stepped(server, steps))
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["round-00000002"]
    assert checkpoints.load(adapter, server.init(adapter.params))[0].round == 2


def test_a_half_written_checkpoint_is_not_taken(adapter, checkpoints, tmp_path):
    """A save that was killed leaves a folder under another name, and the checkpoint before it loads."""
    server = Server(adapter, optax.sgd(0.1), "last", 4)
    checkpoints.save(stepped(server, 1))
    (tmp_path / "checkpoint" / "round-00000002.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.load(adapter, server.init(adapter.params))[0].round == 1


def test_checkpoints_of_something_else_are_refused(adapter, checkpoints):
    """No checkpoint, another model's and another optimiser's are refused by path or leaf."""
    server = Server(adapter, optax.sgd(0.1), "last", 4)
    with pytest.raises(RunError, match="holds no checkpoint"):
        checkpoints.load(adapter, server.init(adapter.params))
    checkpoints.save(stepped(server, 1))
    for other in (logistic(3, nnx.Rngs(0)), MLP(2, (2,), nnx.Rngs(0))):
        other_adapter = Adapter.of(other)
        with pytest.raises(ModelError, match="leaf"):
            checkpoints.load(other_adapter, Server(other_adapter, optax.sgd(0.1), "last", 4).init(other_adapter.params))
    with pytest.raises(RunError, match=r"optimiser state .* is not that of this algorithm"):
        checkpoints.load(adapter, Server(adapter, optax.adam(0.1), "last", 4).init(adapter.params))


def test_the_clip_norm_comes_back_bitwise(adapter, checkpoints):
    """The clip norm of the next round is in the checkpoint, to the last bit."""
    server = Server(adapter, optax.sgd(0.1), "last", 4)
    state = dataclasses.replace(stepped(server, 1), clip=0.1 + 0.2)
    checkpoints.save(state)
    like = dataclasses.replace(server.init(adapter.params), clip=1.0)
    assert checkpoints.load(adapter, like)[0].clip == 0.1 + 0.2


@pytest.mark.parametrize(("saved", "wanted"), [(None, 1.0), (1.0, None)], ids=["older", "of a plan that adapts"])
def test_a_checkpoint_without_the_plans_clip_norm_is_refused(adapter, checkpoints, saved, wanted):
    """A clip norm that is missing, or that the plan does not have, is no reason to guess: the checkpoint is another run's."""
    server = Server(adapter, optax.sgd(0.1), "last", 4)
    checkpoints.save(dataclasses.replace(stepped(server, 1), clip=saved))
    with pytest.raises(RunError, match=r"round-00000001: has (no|a) clip norm, unlike this algorithm"):
        checkpoints.load(adapter, dataclasses.replace(server.init(adapter.params), clip=wanted))


def test_what_the_sites_keep_comes_back_bitwise(adapter, checkpoints):
    """F9: every site's own leaves are in the same checkpoint as the server's state, each at its place."""
    server = Server(adapter, optax.sgd(0.1), "last", 4)
    local = [{"['norm']": jnp.full(3, i, jnp.bfloat16), "['count']": jnp.int32(i)} for i in range(3)]
    checkpoints.save(stepped(server, 1), local)
    like = [{"['norm']": jnp.zeros(3, jnp.bfloat16), "['count']": jnp.int32(0)}] * 3
    state, loaded = checkpoints.load(adapter, server.init(adapter.params), like)
    assert state.round == 1
    for index, (mine, theirs) in enumerate(zip(local, loaded, strict=True)):
        alone = checkpoints.local(index)
        for name, value in mine.items():
            assert value.dtype == theirs[name].dtype
            assert np.asarray(value).tobytes() == np.asarray(theirs[name]).tobytes()
            assert np.asarray(value).tobytes() == np.asarray(alone[name]).tobytes()
    with pytest.raises(RunError, match="has the local state of 3 sites, and there are 2"):
        checkpoints.load(adapter, server.init(adapter.params), like[:2])
    with pytest.raises(ModelError, match=r"leaf \['norm'\] has dtype bfloat16"):
        checkpoints.load(
            adapter, server.init(adapter.params), [{**each, "['norm']": jnp.zeros(3, jnp.float32)} for each in like]
        )
    with pytest.raises(RunError, match="of 3 sites"):
        checkpoints.local(3)


def test_what_is_told_beside_the_model_comes_back_bitwise(adapter, checkpoints):
    """F9: SCAFFOLD's control variate is part of the server's state, and another algorithm's checkpoint is refused."""
    server = Server(adapter, optax.sgd(0.1), "last", 4)
    control = np.random.default_rng(1).normal(size=adapter.schema.dimension)
    checkpoints.save(dataclasses.replace(stepped(server, 1), broadcast={"control": control}))
    like = dataclasses.replace(server.init(adapter.params), broadcast={"control": np.zeros_like(control)})
    loaded, _ = checkpoints.load(adapter, like)
    assert loaded.broadcast["control"].tobytes() == control.tobytes()
    with pytest.raises(RunError, match="broadcast control is not that of this algorithm"):
        checkpoints.load(adapter, server.init(adapter.params))
