import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from fl.config import build_config
from fl.model import Functional
from fl.simulation import run


def rows(seed):
    """Three sites of a dozen rows with a linear rule."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 12, 3))
    y = (x @ [2.0, -1.0, 0.5] + 0.3 * rng.normal(size=(3, 12)) > 0).astype(int)
    return {name: (x[i], y[i]) for i, name in enumerate(("east", "north", "south"))}


class LinenNet(linen.Module):
    """BatchNorm and Dropout, as Linen has them."""

    @linen.compact
    def __call__(self, x, train):
        """(batch, 3) → (batch, 1)."""
        x = linen.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = linen.Dropout(0.2, deterministic=not train)(jnp.tanh(linen.Dense(8)(x)))
        return linen.Dense(1)(x)


class NNXNet(nnx.Module):
    """BatchNorm and Dropout, as NNX has them."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, momentum=0.5, rngs=rngs)
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.second = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        """(batch, 3) → (batch, 1)."""
        return self.second(self.dropout(jnp.tanh(self.first(self.norm(x)))))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class CallableNet:
    """A pytree that maps one record, as Equinox has them: bfloat16 leaves, one of them 0-d, and a counter that stays."""

    kernel: jax.Array
    level: jax.Array
    built: jax.Array

    def __call__(self, x, *, key):
        """(3,) → (1,), with noise in training."""
        noise = 0.0 if key is None else 0.01 * jax.random.normal(key, (1,), jnp.bfloat16)
        return x.astype(jnp.bfloat16) @ self.kernel + self.level + noise


def linen_model(features, rngs):
    """Initialised by the adapter."""
    del features, rngs
    return LinenNet()


def nnx_model(features, rngs):
    """With its own first values."""
    del features
    return NNXNet(rngs)


def callable_model(features, rngs):
    """In 16 bits."""
    kernel = 0.1 * jax.random.normal(rngs.params(), (features, 1), jnp.bfloat16)
    return CallableNet(kernel, jnp.zeros((), jnp.bfloat16), jnp.int32(7))


def functional_model(features, rngs):
    """A dict of parameters, a function, and a count of the passes that were trained."""
    del rngs

    def apply(params, state, x, *, key, train):
        del key
        return x @ params["kernel"] + params["level"], {"passes": state["passes"] + train}

    params = {"kernel": jnp.zeros((features, 1)), "level": jnp.zeros(())}
    return Functional(params, apply, {"passes": jnp.int32(0)})


def leaves(model):
    """Every array of a published model."""
    if isinstance(model, nnx.Module):
        tree = nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[1])
    elif isinstance(model, linen.Module):
        tree = model.variables["params"]
    else:
        tree = model.params if isinstance(model, Functional) else model
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def train(kind, mode, folder, *changes):
    """Two rounds of a model of that kind."""
    table = {
        "name": "model",
        "rounds": 2,
        "data": {"source": f"{__name__}:rows", "test_fraction": 0.05},  # so that all sites share one compilation
        "model": {"kind": f"{__name__}:{kind}"},
        "algorithm": {"name": "fedavg", "local_epochs": 6, "batch_size": 8, "learning_rate": 0.3},
        "secagg": {"mode": mode, "suite": "classical"},
    }
    return run(build_config(table, changes), out=folder, ledgers=folder / "ledgers", insecure_test_seed=1)


@pytest.mark.parametrize(
    ("kind", "changes", "dtype"),
    [
        ("linen_model", ["model.batch_stats=shared"], "float32"),
        ("nnx_model", [], "float32"),
        ("callable_model", [], "bfloat16"),
        ("functional_model", ["algorithm={name='scaffold',local_epochs=6,learning_rate=0.3}"], "float32"),
    ],
)
def test_models_of_every_kind_train_under_secure_aggregation(tmp_path, kind, changes, dtype):
    """F4, F5: two rounds of the protocol lower the loss, and the model is bit for bit that of the integers without it."""
    secure, ideal = (train(kind, mode, tmp_path / mode, *changes) for mode in ("secure", "ideal"))
    assert [len(names) for names in secure.survivors] == [3, 3]
    assert all(all(record.bytes["up"].values()) for record in secure.history)
    assert secure.history[1].loss < secure.history[0].loss
    ours, theirs = leaves(secure.model), leaves(ideal.model)
    assert len(ours) > 1
    assert {str(leaf.dtype) for leaf in ours} - {"int32"} == {dtype}
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert [record.loss for record in secure.history] == [record.loss for record in ideal.history]
