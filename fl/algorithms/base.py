"""What an algorithm is: pure functions on both sides of the sum, and the values that travel between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np
import numpy.typing as npt
import optax  # type: ignore[import-untyped]  # it ships no types

from fl.data import Arrays, Records
from fl.model import Local, Params, Vector
from secagg.params import Block

Int64: TypeAlias = npt.NDArray[np.int64]
Contribution: TypeAlias = dict[str, Int64]


@dataclass(frozen=True)
class Mean:
    """What the server learns from one round.

    Attributes:
        gradient: (d,) the averaged descent direction, or None when the round had no data or gave parameters.
        weight: The total number of records (or of sites, where all count alike), where that is not private.
        loss: The mean training loss, where that is not private.
        bits: Where the clip norm adapts: the noisy number of contributions within it, minus half of all.
        parameters: (d,) the averaged parameters, where sites send those.
        extra: (d,) the mean of each further vector that the algorithm sums, by block name.
    """

    gradient: Vector | None
    weight: int | None = None
    loss: float | None = None
    bits: float | None = None
    parameters: Vector | None = None
    extra: Mapping[str, Vector] = field(default_factory=dict)

    def descent(self, model: Vector) -> Vector | None:
        """The averaged descent direction (d,) from the model (d,) that the round started from; None without data."""
        return self.gradient if self.parameters is None else model - self.parameters


@dataclass(frozen=True)
class ServerState:
    """The server's side of training after `round` committed rounds.

    Attributes:
        params: The current iterate, which the next round starts from.
        opt_state: Optax's state.
        iterate_sum: (d,) the sum of the iterates that the final model averages.
        iterates: How many there are in it.
        round: The number of rounds committed.
        clip: The clip norm of the next round, where it adapts; else None.
        broadcast: (d,) what the server tells the sites beside the model, by name.
    """

    params: Params
    opt_state: optax.OptState
    iterate_sum: Vector
    iterates: int
    round: int
    clip: float | None = None
    broadcast: Mapping[str, Vector] = field(default_factory=dict)


class LocalResult(NamedTuple):
    """What a site's training gives, as JAX arrays.

    Attributes:
        delta: (d,) what is summed: the change of the parameters, or another upload; float32, or float64 where a leaf is.
        weight: () int32, the number of records.
        loss: () float32, the mean training loss.
        extra: (d,) further vectors that are summed, by block name, as `delta` is.
    """

    delta: jax.Array
    weight: jax.Array
    loss: jax.Array
    extra: dict[str, jax.Array]


class LocalUpdate(Protocol):
    """What a site computes in a round, as a pure function that JAX can trace."""

    def __call__(
        self, params: Params, local: Local, records: Arrays, *, key: jax.Array, broadcast: Mapping[str, jax.Array]
    ) -> tuple[LocalResult, Local]:
        """Give the result and the new local state."""
        ...


class ClientUpdate(Protocol):
    """What a site computes in a round, from the global parameters and its own records."""

    def __call__(
        self,
        params: Params,
        local: Local,
        records: Records,
        *,
        key: jax.Array,
        broadcast: Mapping[str, Vector] = ...,
    ) -> tuple[Any, Local]:
        """Give what `Algorithm.encode` takes, and the new local state."""
        ...


class Encode(Protocol):
    """What leaves a site, before noise."""

    def __call__(self, update: Any, clip: float | None = None) -> Contribution:  # noqa: ANN401 - what `client_update` gives
        """An update → exact integers per block; `clip` is the round's clip norm, by default the plan's."""
        ...


class Decode(Protocol):
    """What the server makes of the sums."""

    def __call__(self, sums: Mapping[str, Int64], clip: float | None = None) -> Mean:
        """The sums → the mean; `clip` is the clip norm that the sites were told, by default the plan's."""
        ...


@dataclass(frozen=True)
class Algorithm:
    """A federated algorithm as data.

    `client_update` and `encode` run on a site, `decode` and the rest on the server. Between them is the sum of the
    sites' integers and nothing else.

    Attributes:
        blocks: What every site sends, with the bound that its integers keep (its noise included).
        max_rows: The public cap on a site's rows.
        slots: Maps a number of rows to the number of slots that `Records` must have.
        init: The server's first state.
        client_update: What a site computes in a round.
        encode: An update → exact integers per block, without noise.
        decode: The sums → the mean.
        server_update: One step of the server.
        final: The model to publish.
        params: The model at the start.
        local: A site's first local state.
        local_update: The traceable part of `client_update`; None where an algorithm has none.
        plain: Sites' updates by name → their mean in floats, and who was left out; refuses where an algorithm has none.
        encoding: How an update becomes integers, where `encode` is all that there is to it; None: it is not.
        broadcast: Names of what the server tells the sites beside the model.
    """

    blocks: tuple[Block, ...]
    max_rows: int
    slots: Callable[[int], int]
    init: Callable[[Params], ServerState]
    client_update: ClientUpdate
    encode: Encode
    decode: Decode
    server_update: Callable[[ServerState, Mean], ServerState]
    final: Callable[[ServerState], Params]
    params: Params
    local: Local
    plain: Callable[[Mapping[str, Any]], tuple[Mean, tuple[str, ...]]]
    local_update: LocalUpdate | None = None
    encoding: Any = None
    broadcast: tuple[str, ...] = ()
