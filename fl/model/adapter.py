"""The adapter between a model of any framework and the flat vectors that leave a site.

A leaf is *shared* (it leaves the site), *personal* (trained, and stays), a *statistic* (moved by training; it stays, or is
averaged where the policy says so), plain *state* (integers, counters; it stays), or *frozen* (the same everywhere, never
trained and never sent). Keys of random streams are none of these: a pass is given its key.
"""

import difflib
import fnmatch
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import linen, nnx

from fl.errors import ConfigError, ModelError
from fl.model import linen as linen_models
from fl.model import nnx as nnx_models
from fl.model import pytree
from fl.model.schema import Flattened, Leaves, Schema

Params: TypeAlias = Leaves
Local: TypeAlias = Leaves
Vector: TypeAlias = npt.NDArray[np.float64]
StatisticsPolicy: TypeAlias = Literal["local", "shared"]


@dataclass(frozen=True)
class Adapter:
    """A model as pure functions of (shared leaves, local leaves), both flat dicts by leaf name.

    Attributes:
        schema: The shared leaves.
        params: The shared leaves that the model was built with.
        local: Its local ones: personal parameters, statistics, plain state.
        averaged: Shared leaves that are statistics: the server averages them, and no optimiser sees them.
        personal: Local leaves that the site trains.
        frozen: Leaves that are the same for everybody and never change.
    """

    schema: Schema
    params: Params
    local: Local
    averaged: frozenset[str]
    personal: frozenset[str]
    frozen: Leaves
    _model: Flattened

    @classmethod
    def of(
        cls,
        model: Any,  # noqa: ANN401 - a model of any framework
        *,
        example: jax.Array | None = None,
        key: jax.Array | None = None,
        personal: Iterable[str] = (),
        frozen: Iterable[str] = (),
        batch_stats: StatisticsPolicy = "local",
    ) -> "Adapter":
        """Split a model.

        Args:
            model: An `nnx.Module`, a `linen.Module`, a `Functional`, or a callable pytree of arrays.
            example: (1, ...) a record of the data's shape and dtype, which a Linen module is initialised on.
            key: For a Linen module's initial values.
            personal: Patterns (`head.*`, `*norm*`) of dotted leaf paths: parameters that stay at the site and are trained there.
            frozen: Patterns of leaves that are never trained.
            batch_stats: Statistics stay at the site, or are averaged over the sites.

        Raises:
            ModelError: there is no floating parameter to share, or a complex one; the message names the leaf.
            ConfigError: a pattern matches no leaf, or two patterns claim the same leaf.
        """
        flat = _flatten(model, example, key)
        own = _matching("model.personal", personal, flat.trained)
        fixed = _matching("model.frozen", frozen, flat.trained)
        if own & fixed:
            raise ConfigError(f"model.personal: leaf {min(own & fixed)} is frozen as well, by model.frozen")
        averaged = flat.statistics if batch_stats == "shared" else frozenset()
        params = {name: flat.leaves[name] for name in sorted((flat.trained - own - fixed) | averaged)}
        if not set(params) - averaged:
            raise ModelError("the model has no parameter of a floating dtype that is shared: there is nothing to train")
        rest = sorted(set(flat.leaves) - set(params) - fixed)
        return cls(
            schema=Schema.of(params),
            params=params,
            local={name: flat.leaves[name] for name in rest},
            averaged=averaged,
            personal=own,
            frozen={name: flat.leaves[name] for name in sorted(fixed)},
            _model=flat,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the shared leaves' description, what happens to every other leaf, and the frozen values.

        Parties whose models differ in any of them do not train the same model.
        """
        digest = hashlib.sha256(bytes.fromhex(self.schema.hash))
        digest.update(repr((sorted(self.averaged), sorted(self.personal), sorted(self.local))).encode())
        for name, value in self.frozen.items():
            data = np.asarray(value)
            digest.update(repr((name, data.shape, str(data.dtype))).encode() + data.tobytes())
        return digest.hexdigest()

    @property
    def flat_dtype(self) -> Any:  # noqa: ANN401 - a dtype
        """Of `flat`: float64 where a leaf is, else float32."""
        return jnp.float64 if any(leaf.dtype == "float64" for leaf in self.schema.leaves) else jnp.float32

    def flat(self, params: Params) -> jax.Array:
        """The shared leaves as one array (d,), traceable: float64 where one of them is, else float32."""
        dtype = self.flat_dtype
        return jnp.concatenate([params[leaf.name].astype(dtype).reshape(-1) for leaf in self.schema.leaves])

    def ravel(self, params: Mapping[str, Any]) -> Vector:
        """The shared leaves as one float64 vector (d,); exact for every floating dtype of 64 bits or fewer.

        Raises:
            ModelError: a leaf is missing, unexpected, or has another shape or dtype.
        """
        return self.schema.ravel(params)

    def unravel(self, vector: npt.NDArray[Any]) -> Params:
        """The shared leaves that a vector (d,) of floats stands for, each cast back to its own dtype.

        Guarantees:
            `unravel(ravel(params))` is bitwise `params`.

        Raises:
            ModelError: the vector is not floating, or not of shape (d,).
        """
        params = {name: jnp.asarray(value) for name, value in self.split(vector).items()}
        self.schema.require(Schema.of(params))
        return params

    def split(self, vector: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """`unravel` in NumPy: what goes to several devices need not go to one of them first."""
        d = self.schema.dimension
        if vector.shape != (d,) or not jnp.issubdtype(vector.dtype, jnp.floating):
            raise ModelError(f"the model is a float vector of shape ({d},), not {vector.dtype}{list(vector.shape)}")
        ends = np.cumsum([leaf.size for leaf in self.schema.leaves])
        with np.errstate(over="ignore"):  # a value beyond a small dtype becomes infinite, and `require_finite` names it
            return {
                leaf.name: piece.astype(leaf.dtype).reshape(leaf.shape)
                for leaf, piece in zip(self.schema.leaves, np.split(vector, ends[:-1]), strict=True)
            }

    def require_finite(self, params: Params) -> None:
        """Check every entry.

        Raises:
            ModelError: an entry is NaN or infinite; the message names its leaf.
        """
        for name in sorted(params):
            if not np.isfinite(np.asarray(params[name]).astype(np.float64)).all():
                raise ModelError(f"leaf {name} is not finite")

    def hash(self, params: Params, beside: Mapping[str, Vector] | None = None) -> str:
        """Hex SHA-256 over the schema, the exact values, and what the server tells the sites beside them, by name."""
        return self.schema.content_hash(params, beside)

    def checked(self, named: Mapping[str, Any]) -> Params:
        """Arrays of unknown origin as shared leaves.

        Raises:
            ModelError: a leaf is missing, unexpected, or has another shape or dtype.
        """
        self.schema.require(Schema.of(named))
        return {leaf.name: jnp.asarray(named[leaf.name]) for leaf in self.schema.leaves}

    def checked_local(self, named: Mapping[str, Any], like: Local) -> Local:
        """Arrays of unknown origin as a site's local leaves.

        Args:
            named: The arrays.
            like: Local leaves of the same site, for names, shapes and dtypes.

        Raises:
            ModelError: a leaf is missing, unexpected, or has another shape or dtype.
        """
        Schema.of(like).require(Schema.of(named))
        return {name: jnp.asarray(named[name]) for name in like}

    def forward(
        self, params: Params, local: Local, x: jax.Array, *, key: jax.Array, train: bool
    ) -> tuple[jax.Array, Params, Local]:
        """One pass: x (batch, ...) → (outputs, shared leaves, local leaves), statistics moved where it is a training pass."""
        outputs, after = self._model.apply(self._all(params, local), x, key, train=train)
        if not train:
            return outputs, params, local
        moved = {name: after[name] if name in self.averaged else value for name, value in params.items()}
        kept = {name: value if name in self.personal else after.get(name, value) for name, value in local.items()}
        return outputs, moved, kept

    def trainable(self, params: Params, local: Local) -> Leaves:
        """The leaves that a site trains: shared ones that are no statistics, and personal ones."""
        shared = {name: value for name, value in params.items() if name not in self.averaged}
        return shared | {name: local[name] for name in sorted(self.personal)}

    def put(self, params: Params, local: Local, trained: Leaves) -> tuple[Params, Local]:
        """Replace the trained leaves: the inverse of `trainable`."""
        return (
            {name: trained.get(name, value) for name, value in params.items()},
            {name: trained.get(name, value) for name, value in local.items()},
        )

    def merge(self, params: Params, local: Local) -> Any:  # noqa: ANN401 - a model of its framework
        """The model as its framework knows it, in evaluation mode."""
        return self._model.merge(self._all(params, local))

    def coupled_leaves(self, x: jax.Array) -> tuple[str, ...]:
        """Leaves other than trained ones that a training pass over x (batch, ...) changes.

        A changed leaf carries something of one record to the next, so record-level privacy must refuse the model.
        """

        def moved(params: Params, local: Local, batch: jax.Array) -> tuple[Params, Local]:
            return self.forward(params, local, batch, key=jax.random.key(0), train=True)[1:]

        closed = jax.make_jaxpr(moved)(self.params, self.local, x)
        names = [*sorted(self.params), *sorted(self.local)]
        pairs = zip(names, closed.jaxpr.invars[: len(names)], closed.jaxpr.outvars, strict=True)
        return tuple(name for name, old, new in pairs if new is not old)

    def _all(self, params: Params, local: Local) -> Leaves:
        return {name: value for name, value in (self.frozen | local | params).items() if name in self._model.leaves}


def _flatten(model: Any, example: jax.Array | None, key: jax.Array | None) -> Flattened:  # noqa: ANN401 - any model
    if isinstance(model, nnx.Module):
        return nnx_models.flatten(model)
    if isinstance(model, linen.Module):
        if example is None or key is None:
            raise ModelError("a Linen module is initialised on an example record and with a key: give both")
        return linen_models.flatten(model, example, key)
    return pytree.flatten(model)


def _matching(key: str, patterns: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """The leaves whose dotted path a pattern matches."""
    dotted = {_dotted(name): name for name in names}
    found: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(dotted, pattern)
        if not hits:
            near = difflib.get_close_matches(pattern, dotted, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"leaves: {', '.join(sorted(dotted))}"
            raise ConfigError(f'{key}: "{pattern}" matches no floating leaf; {hint}')
        found |= {dotted[hit] for hit in hits}
    return frozenset(found)


def _dotted(name: str) -> str:
    """`['layers'][0]['kernel']` → `layers.0.kernel`."""
    return ".".join(part.strip("'\"") for part in re.findall(r"[^\[\].]+", name))
