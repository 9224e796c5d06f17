"""The adapter between a Flax NNX model and the flat vectors that leave a site.

A model's state is split by Variable type first and by dtype second: `nnx.Param` leaves of a real floating dtype are
*shared* (the parameters that travel); everything else (BatchStat, RNG keys and counts, booleans, integers) is *local*
and never leaves the party that holds it.
"""

import hashlib
import importlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax  # type: ignore[import-untyped]  # it ships no types
import rfc8785
from flax import nnx

from fl.errors import ConfigError, ModelError

Params: TypeAlias = nnx.State[Any, Any]
Local: TypeAlias = nnx.State[Any, Any]
Vector: TypeAlias = npt.NDArray[np.float64]
ModelFactory: TypeAlias = Callable[[int, nnx.Rngs], nnx.Module]
Loss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One shared array: its path in the model (`['dense']['kernel']`), shape and dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """The number of entries; 1 for a 0-d leaf."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Schema:
    """The shared leaves of a model, in the order in which they are raveled."""

    leaves: tuple[Leaf, ...]

    @classmethod
    def of(cls, params: Params) -> "Schema":
        """Read names, shapes and dtypes off a tree of parameters."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(params)
        return cls(tuple(Leaf(_leaf_name(path), tuple(np.shape(leaf)), str(leaf.dtype)) for path, leaf in leaves))

    @property
    def dimension(self) -> int:
        """The length d of the raveled vector."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def layout(self) -> tuple[tuple[str, int], ...]:
        """(name, number of entries) of each leaf, in vector order: the codec names leaves by it."""
        return tuple((leaf.name, leaf.size) for leaf in self.leaves)

    @cached_property
    def hash(self) -> str:
        """Hex SHA-256 over the canonical JSON of (name, shape, dtype) of every leaf."""
        return hashlib.sha256(rfc8785.dumps([[x.name, list(x.shape), x.dtype] for x in self.leaves])).hexdigest()

    def require(self, other: "Schema") -> None:
        """Check that `other` is this schema.

        Raises:
            ModelError: a leaf is missing, unexpected, or has another shape or dtype; the message names it.
        """
        theirs = {leaf.name: leaf for leaf in other.leaves}
        for leaf in self.leaves:
            found = theirs.pop(leaf.name, None)
            if found is None:
                raise ModelError(f"leaf {leaf.name} is missing: it must be {leaf.dtype}{list(leaf.shape)}")
            if found.shape != leaf.shape:
                raise ModelError(f"leaf {leaf.name} has shape {list(found.shape)}, and must have {list(leaf.shape)}")
            if found.dtype != leaf.dtype:
                raise ModelError(f"leaf {leaf.name} has dtype {found.dtype}, and must have {leaf.dtype}")
        if theirs:
            raise ModelError(f"leaf {next(iter(theirs))} is not part of the model")
        if other.leaves != self.leaves:
            raise ModelError(f"leaf {other.leaves[0].name} stands in another order than the model's")


@dataclass(frozen=True)
class Adapter:
    """A model as pure functions of (shared parameters, local state).

    Attributes:
        schema: The shared leaves.
        params: The shared parameters that the model was built with.
        local: Its local state (batch statistics, RNG state, integers).
    """

    schema: Schema
    params: Params
    local: Local
    _train_graph: nnx.GraphDef[nnx.Module]
    _eval_graph: nnx.GraphDef[nnx.Module]
    _treedef: jax.tree_util.PyTreeDef

    @classmethod
    def of(cls, model: nnx.Module) -> "Adapter":
        """Split a model.

        Raises:
            ModelError: it has no floating parameter, or a complex one; the message names the leaf.
        """
        model.train()  # type: ignore[no-untyped-call]  # Flax's own
        train_graph, params, local = _split(model)
        model.eval()  # type: ignore[no-untyped-call]  # Flax's own
        eval_graph, _, _ = _split(model)
        for path, variable in nnx.to_flat_state(local):
            if isinstance(variable, nnx.Param) and jnp.issubdtype(variable.get_value().dtype, jnp.complexfloating):
                raise ModelError(f"leaf {_state_name(path)} is complex: parameters must be real")
        schema = Schema.of(params)
        if not schema.leaves:
            raise ModelError("the model has no nnx.Param leaf of a floating dtype: there is nothing to train")
        return cls(schema, params, local, train_graph, eval_graph, jax.tree.structure(params))

    def ravel(self, params: Params) -> Vector:
        """The parameters as one float64 vector (d,); exact for every floating dtype of 64 bits or fewer.

        Raises:
            ModelError: a leaf is missing, unexpected, or has another shape or dtype.
        """
        self.schema.require(Schema.of(params))
        return np.concatenate([np.asarray(leaf).astype(np.float64).reshape(-1) for leaf in jax.tree.leaves(params)])

    def unravel(self, vector: npt.NDArray[Any]) -> Params:
        """The parameters that a vector (d,) of floats stands for, each leaf cast back to its own dtype.

        Guarantees:
            `unravel(ravel(params))` is bitwise `params`.

        Raises:
            ModelError: the vector is not floating, or not of shape (d,).
        """
        d = self.schema.dimension
        if vector.shape != (d,) or not jnp.issubdtype(vector.dtype, jnp.floating):
            raise ModelError(f"the model is a float vector of shape ({d},), not {vector.dtype}{list(vector.shape)}")
        ends = np.cumsum([leaf.size for leaf in self.schema.leaves])
        with np.errstate(over="ignore"):  # a value beyond a small dtype becomes infinite, and `require_finite` names it
            leaves = [
                jnp.asarray(piece.astype(leaf.dtype).reshape(leaf.shape))
                for leaf, piece in zip(self.schema.leaves, np.split(vector, ends[:-1]), strict=True)
            ]
        params: Params = jax.tree.unflatten(self._treedef, leaves)
        self.schema.require(Schema.of(params))
        return params

    def require_finite(self, params: Params) -> None:
        """Check every entry.

        Raises:
            ModelError: an entry is NaN or infinite; the message names its leaf.
        """
        for leaf, value in zip(self.schema.leaves, jax.tree.leaves(params), strict=True):
            if not bool(jnp.all(jnp.isfinite(value))):
                raise ModelError(f"leaf {leaf.name} is not finite")

    def hash(self, params: Params) -> str:
        """Hex SHA-256 over the schema and the exact values."""
        return hashlib.sha256(bytes.fromhex(self.schema.hash) + self.ravel(params).astype("<f8").tobytes()).hexdigest()

    def named(self, params: Params) -> dict[str, jax.Array]:
        """The parameters by leaf name, as a checkpoint stores them."""
        return {leaf.name: value for leaf, value in zip(self.schema.leaves, jax.tree.leaves(params), strict=True)}

    def from_named(self, named: Mapping[str, Any]) -> Params:
        """The inverse of `named`.

        Raises:
            ModelError: a leaf is missing, unexpected, or has another shape or dtype.
        """
        self.schema.require(Schema(tuple(Leaf(k, tuple(np.shape(v)), str(v.dtype)) for k, v in self._sorted(named))))
        params: Params = jax.tree.unflatten(
            self._treedef, [jnp.asarray(named[leaf.name]) for leaf in self.schema.leaves]
        )
        return params

    def _sorted(self, named: Mapping[str, Any]) -> list[tuple[str, Any]]:
        order = {leaf.name: index for index, leaf in enumerate(self.schema.leaves)}
        return sorted(named.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))

    def forward(self, params: Params, local: Local, x: jax.Array, *, train: bool) -> tuple[jax.Array, Local]:
        """One pass: x (batch, features) → (outputs, the local state after it)."""
        # Rebuilding the tree makes new Variables, which this trace may update; merging would reuse the caller's.
        local = jax.tree.map(lambda leaf: leaf, local)
        model = nnx.merge(self._train_graph if train else self._eval_graph, params, local)
        outputs = model(x)
        _, _, after = _split(model)
        return outputs, after

    def merge(self, params: Params, local: Local) -> nnx.Module:
        """A model in evaluation mode."""
        return nnx.merge(self._eval_graph, params, local)

    def coupled_leaves(self, x: jax.Array) -> tuple[str, ...]:
        """Local leaves, RNG state apart, that a training pass over x (batch, features) changes.

        A changed leaf carries something of one record to the next, so record-level privacy must refuse the model.
        """
        closed = jax.make_jaxpr(lambda p, s, b: self.forward(p, s, b, train=True)[1])(self.params, self.local, x)
        before = closed.jaxpr.invars[len(self.schema.leaves) : -1]
        states = nnx.to_flat_state(self.local)
        return tuple(
            _state_name(path)
            for (path, variable), old, new in zip(states, before, closed.jaxpr.outvars, strict=True)
            if new is not old and not isinstance(variable, nnx.RngState)
        )


def rekey(local: Local, key: jax.Array) -> Local:
    """Give the local RNG streams the given key and start their counts at zero.

    Guarantees:
        The streams that a site draws from in a round are a function of `key` only, so a resumed run draws the same.
    """
    entries = []
    for index, (path, variable) in enumerate(nnx.to_flat_state(local)):
        fresh = variable
        if isinstance(variable, nnx.RngKey):
            fresh = variable.replace(jax.random.fold_in(key, index))
        elif isinstance(variable, nnx.RngCount):
            fresh = variable.replace(jnp.zeros_like(variable.get_value()))
        entries.append((path, fresh))
    return nnx.from_flat_state(entries) if entries else local


def logistic(features: int, rngs: nnx.Rngs) -> nnx.Module:
    """Logistic regression: one linear unit."""
    return nnx.Linear(features, 1, rngs=rngs)


class MLP(nnx.Module):
    """A perceptron with ReLU layers of the given widths and one output."""

    def __init__(self, features: int, hidden: tuple[int, ...], rngs: nnx.Rngs) -> None:
        widths = (features, *hidden, 1)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """X (batch, features) → (batch, 1)."""
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def factory(kind: str, hidden: tuple[int, ...] = ()) -> ModelFactory:
    """The function that builds a model: "logistic", "mlp", or "package.module:function" of (features, rngs).

    Raises:
        ConfigError: there is no such function; the message names the key `model.kind`.
    """
    if kind == "logistic":
        return logistic
    if kind == "mlp":
        return lambda features, rngs: MLP(features, hidden, rngs)
    module, separator, name = kind.partition(":")
    if not separator:
        raise ConfigError(f'model.kind: "{kind}" is not "logistic", "mlp" or "package.module:function"')
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f'model.kind: "{kind}" cannot be imported: {error}') from error
    if not callable(build):
        raise ConfigError(f'model.kind: "{kind}" is not a function')
    return build  # type: ignore[no-any-return]


def _logistic_loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    losses: jax.Array = optax.sigmoid_binary_cross_entropy(_scores(outputs, y), y.astype(outputs.dtype))
    return losses


def _squared_loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return 0.5 * jnp.square(_scores(outputs, y) - y)


def _scores(outputs: jax.Array, y: jax.Array) -> jax.Array:
    if outputs.shape not in {y.shape, (*y.shape, 1)}:
        raise ModelError(f"the model's output has shape {list(outputs.shape)} for {y.shape[0]} rows: one score each")
    return outputs.reshape(y.shape)


# Each takes outputs (batch, 1) or (batch,) and labels (batch,) to one loss per record (batch,).
LOSSES: dict[str, Loss] = {"logistic": _logistic_loss, "squared": _squared_loss}


def _is_shared(_path: Any, variable: Any) -> bool:  # noqa: ANN401 - a Flax filter sees any Variable
    value = variable.get_value()
    return hasattr(value, "dtype") and bool(jnp.issubdtype(value.dtype, jnp.floating))


_SHARED = nnx.All(nnx.Param, _is_shared)


def _split(module: nnx.Module) -> tuple[nnx.GraphDef[nnx.Module], Params, Local]:
    graph, *states = nnx.split(module, _SHARED, ...)
    params, local = states
    return graph, params, local


def _leaf_name(path: tuple[Any, ...]) -> str:
    # Flax adds a `.value` key below each Variable; the path to the Variable is the name.
    return jax.tree_util.keystr(path[:-1] if isinstance(path[-1], jax.tree_util.GetAttrKey) else path)


def _state_name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(tuple(jax.tree_util.DictKey(key) for key in path))
