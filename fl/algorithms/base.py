"""What an algorithm is: pure functions on both sides of the sum, and the values that travel between them."""

import collections
import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax  # type: ignore[import-untyped]  # it ships no types

from fl.errors import ConfigError, ModelError
from fl.model import Adapter, Local, Params, Vector
from privacy.adaptive import AdaptiveCodec
from privacy.plan import Plan
from secagg.params import Block

Int64: TypeAlias = npt.NDArray[np.int64]
Contribution: TypeAlias = dict[str, Int64]


@dataclass(frozen=True)
class Records:
    """A site's training rows, each in a slot of its own.

    Attributes:
        x: (slots, features) float32; absent slots are zero.
        y: (slots,) int32.
        present: (slots,) bool: which slots hold a record.
        tags: (slots,) uint32: what a record's random streams (dropout layers) are keyed by. A function of the record and
            of how many identical ones come before it, so that removing a record leaves the others' streams alone
            wherever they move to.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int32]
    present: npt.NDArray[np.bool_]
    tags: npt.NDArray[np.uint32]

    @classmethod
    def place(cls, x: npt.NDArray[np.float32], y: npt.NDArray[np.int32], slots: int) -> "Records":
        """Put row i into slot i; the caller has checked that there are no more than `slots` rows."""
        spare = slots - len(x)
        tags = np.pad(_tags(x, y), (0, spare))
        return cls(np.pad(x, ((0, spare), (0, 0))), np.pad(y, (0, spare)), np.arange(slots) < len(x), tags)


def _tags(x: npt.NDArray[np.float32], y: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
    seen: collections.Counter[bytes] = collections.Counter()
    tags = np.empty(len(x), np.uint32)
    for index, (row, label) in enumerate(zip(x, y, strict=True)):
        record = row.tobytes() + label.tobytes()
        digest = hashlib.sha256(record + seen[record].to_bytes(8, "big")).digest()
        tags[index] = int.from_bytes(digest[:4], "big")
        seen[record] += 1
    return tags


@dataclass(frozen=True)
class Mean:
    """What the server learns from one round.

    Attributes:
        gradient: (d,) the averaged descent direction, or None when the round had no data.
        weight: The total number of records, where that is not private.
        loss: The mean training loss, where that is not private.
        bits: Where the clip norm adapts: the noisy number of contributions within it, minus half of all.
    """

    gradient: Vector | None
    weight: int | None = None
    loss: float | None = None
    bits: float | None = None


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
    """

    params: Params
    opt_state: optax.OptState
    iterate_sum: Vector
    iterates: int
    round: int
    clip: float | None = None


class ClientUpdate(Protocol):
    """What a site computes in a round, from the global parameters and its own records."""

    def __call__(self, params: Params, local: Local, records: Records, *, key: jax.Array) -> tuple[Any, Local]:
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


def clipped_mean(plan: Plan, total: Int64, clip: float | None) -> Mean:
    """The sum of clipped contributions, decoded with the clip norm that made them, over the plan's public constant."""
    codec = plan.codec(clip)
    bits = codec.bits(total) if isinstance(codec, AdaptiveCodec) else None
    return Mean(codec.decode(total) / plan.divisor, bits=bits)


@dataclass(frozen=True)
class Server:
    """The server's half, common to all algorithms: an Optax step on the mean, and the average of iterates.

    Attributes:
        adapter: The model.
        optimizer: Any Optax transformation; it sees the averaged descent direction as the gradient.
        average: "last": publish the last iterate. "last_half": the mean of the iterates of the last half of `rounds`.
        rounds: The number of rounds planned.
        plan: The privacy plan, whose clip norm may adapt; or None.
    """

    adapter: Adapter
    optimizer: optax.GradientTransformation
    average: Literal["last", "last_half"]
    rounds: int
    plan: Plan | None = None

    def init(self, params: Params) -> ServerState:
        """The state before the first round."""
        zero = np.zeros(self.adapter.schema.dimension)
        clip = self.plan.clip if self.plan is not None and self.plan.adaptive is not None else None
        return ServerState(params, self.optimizer.init(params), zero, 0, 0, clip)

    def update(self, state: ServerState, mean: Mean) -> ServerState:
        """One step; without data the model stays, and the round still counts.

        Raises:
            ModelError: the new parameters or optimiser state are not finite; the old state stands.
        """
        params, opt_state = state.params, state.opt_state
        if mean.gradient is not None:
            params, opt_state = self._step(self.adapter.unravel(mean.gradient), state)
        total, count = state.iterate_sum, state.iterates
        if state.round >= self.rounds // 2:
            total, count = total + self.adapter.ravel(params), count + 1
        return replace(
            state,
            params=params,
            opt_state=opt_state,
            iterate_sum=total,
            iterates=count,
            round=state.round + 1,
            clip=self._next_clip(state.clip, mean.bits),
        )

    def _next_clip(self, clip: float | None, bits: float | None) -> float | None:
        if self.plan is None or self.plan.adaptive is None or clip is None or bits is None:
            return clip
        return self.plan.adaptive.next_clip(clip, bits)

    def final(self, state: ServerState) -> Params:
        """The model to publish: the last iterate, or the mean of those of the last half."""
        if self.average == "last" or state.iterates == 0:
            return state.params
        return self.adapter.unravel(state.iterate_sum / state.iterates)

    def _step(self, gradient: Params, state: ServerState) -> tuple[Params, optax.OptState]:
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.params)
        params: Params = optax.apply_updates(state.params, updates)
        self.adapter.require_finite(params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
            if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and not bool(jnp.all(jnp.isfinite(leaf))):
                raise ModelError(f"optimiser state {jax.tree_util.keystr(path)} is not finite")
        return params, opt_state


def optimizer(
    key: str, name: str, learning_rate: float, options: Mapping[str, float | bool]
) -> optax.GradientTransformation:
    """An Optax transformation by its name.

    Args:
        key: The configuration section, for error messages: `server` or `algorithm`.
        name: A function of `optax` that takes a learning rate: sgd, adam, yogi, adagrad, …
        learning_rate: Passed on.
        options: Further keyword arguments of that function, such as momentum.

    Raises:
        ConfigError: Optax has no such optimiser, or it takes no such option.
    """
    build = None if name.startswith("_") else getattr(optax, name, None)
    names = [entry for entry in dir(optax) if entry.islower() and callable(getattr(optax, entry))]
    if build is None or name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise ConfigError(f'{key}.optimizer: Optax has no "{name}"' + (f'; did you mean "{near[0]}"?' if near else ""))
    try:
        made = build(learning_rate=learning_rate, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}.options: optax.{name} refuses them: {error}") from error
    if not isinstance(made, optax.GradientTransformation):
        raise ConfigError(f'{key}.optimizer: optax."{name}" is not an optimiser')
    _try(made, key, name)
    return made


def _try(made: optax.GradientTransformation, key: str, name: str) -> None:
    """One step on nothing: whether a gradient is all that the optimiser needs, and its state all numbers."""
    nothing = jnp.zeros(1)
    try:
        state = made.init(nothing)
        made.update(nothing, state, nothing)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}.optimizer: optax.{name} needs more than gradients: {error}") from error
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            raise ConfigError(f"{key}.optimizer: optax.{name} draws random numbers, and a run could not be repeated")
