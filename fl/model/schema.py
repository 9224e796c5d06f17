"""What leaves a site, by name: the shared leaves of a model with their shapes and dtypes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import rfc8785

from fl.errors import ModelError

Leaves: TypeAlias = dict[str, jax.Array]  # arrays by the `keystr` of their path; a flat dict is a pytree everywhere


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array: its path in the model (`['dense']['kernel']`), shape and dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, name: str, value: Any) -> "Leaf":  # noqa: ANN401 - an array of NumPy or JAX
        """The description of an array."""
        return cls(name, tuple(np.shape(value)), str(value.dtype))

    @property
    def size(self) -> int:
        """The number of entries; 1 for a 0-d leaf."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Schema:
    """The shared leaves of a model, in the order in which they are raveled."""

    leaves: tuple[Leaf, ...]

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "Schema":
        """Read names, shapes and dtypes off named arrays, in the order of their names."""
        return cls(tuple(Leaf.of(name, params[name]) for name in sorted(params)))

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

    def ravel(self, params: Mapping[str, Any]) -> npt.NDArray[np.float64]:
        """The leaves as one float64 vector (d,); exact for every floating dtype of 64 bits or fewer.

        Raises:
            ModelError: a leaf is missing, unexpected, or has another shape or dtype.
        """
        self.require(Schema.of(params))
        return np.concatenate([np.asarray(params[leaf.name]).astype(np.float64).reshape(-1) for leaf in self.leaves])

    def content_hash(
        self, params: Mapping[str, Any], beside: Mapping[str, npt.NDArray[np.float64]] | None = None
    ) -> str:
        """Hex SHA-256 over the schema, the exact values, and vectors that go beside them, by name; raises as `ravel`."""
        digest = hashlib.sha256(bytes.fromhex(self.hash) + self.ravel(params).astype("<f8").tobytes())
        for name, vector in sorted((beside or {}).items()):
            digest.update(hashlib.sha256(name.encode()).digest() + vector.astype("<f8").tobytes())
        return digest.hexdigest()

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
class Flattened:
    """A model of any framework as named arrays and a pure function of them.

    Attributes:
        leaves: Every array that is part of its state, but for keys of random streams.
        trained: Names of the floating parameters.
        statistics: Names of the floating running statistics that a training pass moves.
        apply: (leaves, x (batch, ...), key, train) → (outputs, the leaves after the pass). `key` is for dropout and the like.
        merge: Leaves → the model as its framework knows it, in evaluation mode.
    """

    leaves: Leaves
    trained: frozenset[str]
    statistics: frozenset[str]
    apply: Any
    merge: Any


def is_floating(value: Any) -> bool:  # noqa: ANN401 - anything that a tree can hold
    """Whether this is an array of real floating-point numbers."""
    return hasattr(value, "dtype") and bool(jnp.issubdtype(value.dtype, jnp.floating))


def is_key(value: Any) -> bool:  # noqa: ANN401 - as above
    """Whether this is an array of typed PRNG keys."""
    return hasattr(value, "dtype") and bool(jnp.issubdtype(value.dtype, jax.dtypes.prng_key))


def is_wide(value: Any) -> bool:  # noqa: ANN401 - as above
    """Whether this is an array of integers of more bits than JAX computes with: it would cut them off, so it stays as it is."""
    if not hasattr(value, "dtype") or is_key(value) or not jnp.issubdtype(value.dtype, jnp.integer):
        return False
    return bool(jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype)


def refuse_complex(name: str, value: Any) -> None:  # noqa: ANN401 - as above
    """Check a parameter.

    Raises:
        ModelError: it is complex; the message names the leaf.
    """
    if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise ModelError(f"leaf {name} is complex: parameters must be real")


def fresh_key(key: jax.Array, index: int, like: Any) -> jax.Array:  # noqa: ANN401 - an array of keys
    """The key, or array of keys, that stands in place of the model's `index`-th one for this pass."""
    own = jax.random.fold_in(key, index)
    return jax.random.split(own, like.shape) if like.shape else own
