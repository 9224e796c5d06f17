"""The server's half of every algorithm: an Optax step on the mean, and which iterate is published."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]  # it ships no types

from fl.algorithms.base import Mean, ServerState
from fl.errors import ConfigError, ModelError
from fl.model import Adapter, Params, Vector
from privacy.plan import Plan


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

    @cached_property
    def transformation(self) -> optax.GradientTransformation:
        """The optimiser, and for statistics the plain mean: no momentum and no rate is theirs."""
        averaged = self.adapter.averaged
        if not averaged:
            return self.optimizer
        labels = {name: "mean" if name in averaged else "step" for name in self.adapter.params}
        return optax.partition({"step": self.optimizer, "mean": optax.sgd(1.0)}, labels)

    def init(self, params: Params, broadcast: Mapping[str, Vector] | None = None) -> ServerState:
        """The state before the first round."""
        zero = np.zeros(self.adapter.schema.dimension)
        clip = self.plan.clip if self.plan is not None and self.plan.adaptive is not None else None
        return ServerState(params, self.transformation.init(params), zero, 0, 0, clip, broadcast or {})

    def update(self, state: ServerState, mean: Mean) -> ServerState:
        """One step; without data the model stays, and the round still counts.

        Raises:
            ModelError: the new parameters or optimiser state are not finite; the old state stands.
        """
        params, opt_state = state.params, state.opt_state
        gradient = mean.gradient if mean.parameters is None else mean.descent(self.adapter.ravel(params))
        if gradient is not None:
            params, opt_state = self._step(self.adapter.unravel(gradient), state)
        total, count = state.iterate_sum, state.iterates
        if self.average == "last_half" and state.round >= self.rounds // 2:
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

    @cached_property
    def _update(self) -> Callable[..., tuple[Params, optax.OptState]]:
        update: Callable[..., tuple[Params, optax.OptState]] = jax.jit(self.transformation.update)
        return update

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
        updates, opt_state = self._update(gradient, state.opt_state, state.params)
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
