"""A client's coin before a block of local steps: amplified once a block, not once a step.

In each round a client takes part with probability c, and then makes L local steps, each with its own record coins of
probability q. The client's coin is the same for the L steps, so the rates do not multiply: the block is composed first,
as P against Q, then mixed with the coin, then composed over the rounds. What the mixture is depends on who sees the coin:

* ``secret``: a round without the client looks like one in which it takes part without the unit: same law, same noise.
  Then the round is ``(1-c) Q + c P`` against Q, and back. That takes a client whose data are the one unit, and noise
  that is added whoever takes part.
* ``seen``: anything else, for other records of the same client may show that it takes part. Then the round is, by joint
  convexity [BBG18], no worse than the coin in clear, with P against Q under one of its sides.

Either is an accountant's question. Under a signed cohort the coin is published, and no plan counts it.
"""

import math
from functools import cached_property
from typing import Final, Literal, get_args

import numpy as np

from privacy.accounting.gaussian import RDP_ORDERS, rdp_epsilon
from privacy.accounting.guard import Relation, Subsampled, count, one_of, positive, probability, question, rate
from privacy.accounting.pld import (
    COMPOSED_TAIL,
    MAX_CELLS,
    MAX_GRID,
    MAX_STEPS,
    Direction,
    Losses,
    Vector,
    bounded_epsilon,
    connect_the_dots,
    directions,
    one_step,
    pld_grid,
    rounding_delta,
)
from privacy.accounting.routes import EpsilonBound, consistent, unsampled
from privacy.accounting.routes import epsilon as plain_epsilon
from privacy.accounting.subsampled import mixed_log_moment, rdp_add_remove, rdp_replace_one
from privacy.errors import AccountingError

Coin = Literal["secret", "seen"]

_MAX_BLOCK_CELLS: Final = 400_000  # each round's transform takes moments of it at 40 orders
_MAX_BLOCK_LOSS: Final = 600.0
_EDGE: Final = 1e-12


def block_epsilon(
    *,
    noise_multiplier: float,
    sample_rate: float = 1.0,
    local_steps: int,
    client_rate: float,
    rounds: int,
    delta: float,
    relation: Relation | None = None,
    coin: Coin = "secret",
) -> EpsilonBound:
    """Epsilon of local steps behind a client's coin, composed over rounds.

    Args:
        noise_multiplier: Standard deviation of the noise of one local step, over the clip norm.
        sample_rate: q: probability of the record's own secret coin in each local step (Poisson sampling).
        local_steps: L, in each round that the client takes part in.
        client_rate: c: probability that the client takes part in a round, drawn anew for each.
        rounds: Number of rounds.
        delta: In (0, 1).
        relation: As for `epsilon`; replace-one only for a coin that is seen.
        coin: ``secret`` or ``seen``; see the module's text. In doubt, seen.

    Raises:
        AccountingError: an input is not finite, out of range or of the wrong type, they do not go together, or two
            routes contradict.

    Guarantees:
        ``lower`` <= the true epsilon of the worst pair <= ``upper``; both directions of add-remove are in it.
        Never below the epsilon of one round in which the client's coin falls, at ``delta / c``.
    """
    z = positive("noise_multiplier", noise_multiplier)
    c = rate("client_rate", client_rate)
    local, times = count("local_steps", local_steps), count("rounds", rounds)
    hidden = one_of("coin", coin, get_args(Coin)) == "secret"
    asked = question(
        sample_rate=sample_rate, steps=local * times, unit="record", relation=relation, sampling="poisson", silos=1
    )
    delta = probability("delta", delta)
    if hidden and asked.relation == "replace-one" and c < 1:
        raise AccountingError(
            "relation = 'replace-one' behind a secret coin: what a round without the client looks like is then neither "
            "record's; ask with coin = 'seen'"
        )
    if c == 1:
        return plain_epsilon(
            noise_multiplier=z, sample_rate=asked.sample_rate, steps=asked.steps, delta=delta, relation=asked.relation
        )
    step = asked.above(z)._replace(steps=local)
    if step.q == 1:  # the block is one Gaussian
        step = step._replace(z=z / math.sqrt(local), steps=1)
        if hidden:
            return plain_epsilon(
                noise_multiplier=step.z, sample_rate=c, steps=times, delta=delta, relation=asked.relation
            )
    block = _Block(step, c, times, hidden)
    routes = {"unsampled": unsampled(asked.above(z), delta)}  # first, for it refuses what is beyond float64
    routes["rdp"] = block.rdp(delta)
    grid = block.grid(delta)
    if grid is None:
        return consistent(0.0, routes)
    routes["pld"] = block.pld(delta, grid, pessimistic=True)
    return consistent(block.pld(delta, grid, pessimistic=False), routes)


class _Block:
    """One question: a step, its local composition, the coin, and the rounds."""

    def __init__(self, step: Subsampled, client_rate: float, rounds: int, hidden: bool) -> None:
        self._step = step
        self._rate = client_rate
        self._rounds = rounds
        self._hidden = hidden

    def rdp(self, delta: float) -> float:
        """Epsilon by the Rényi route; inf where the noise is too small to integrate."""
        return rdp_epsilon(self._rounds * self._divergences, delta)

    @cached_property
    def _divergences(self) -> Vector:
        """Of one round, at `RDP_ORDERS`."""
        return self._hidden_divergences() if self._hidden else self._seen_divergences()

    def _divergence(self, order: int) -> float:
        """Of one block, whichever of its two laws is first."""
        z, q, steps, replace_one = self._step
        if q == 1:
            return steps * order * float(2 if replace_one else 1) ** 2 / (2 * z * z)
        return steps * (rdp_replace_one if replace_one else rdp_add_remove)(order, z, q)

    def _seen_divergences(self) -> Vector:
        """``log E[1 - c + c (P/Q)**order]``: the coin is part of the outcome."""
        orders = np.array(RDP_ORDERS, np.float64)
        exponents = (orders - 1) * np.array([self._divergence(order) for order in RDP_ORDERS])
        moments = np.logaddexp(0.0, math.log(self._rate) + _log_expm1(exponents))
        return moments / (orders - 1)

    def _hidden_divergences(self) -> Vector:
        """The larger of the two directions, at each of `RDP_ORDERS`; the mixture against Q is exact, moment by moment."""
        local = np.array([self._divergence(order) for order in range(2, RDP_ORDERS[-1] + 1)])
        moments = np.arange(1, len(local) + 1) * local  # log E_Q[(P/Q)**k], k = 2 and on
        return np.array(
            [
                max(
                    mixed_log_moment(order, self._rate, moments[: order - 1]) / (order - 1),
                    _against_mixture_divergence(order, self._rate, float(local[order - 2]), moments[:1]),
                )
                for order in RDP_ORDERS
            ]
        )

    def grid(self, delta: float) -> float | None:
        """The grid of the PLD, or None where it cannot answer; see `pld_grid`."""
        step, steps = self._step, self._step.steps * self._rounds
        if steps > MAX_STEPS or not _EDGE <= self._rate <= 1 - _EDGE or self._slack() > delta / 2:
            return None
        finest = pld_grid(step._replace(steps=1), 1.0, rounds=steps, coin=self._rate)
        tail = 2 * rdp_epsilon(np.array([self._divergence(order) for order in RDP_ORDERS]), COMPOSED_TAIL)
        if finest is None or not tail < _MAX_BLOCK_LOSS:
            return None
        grid = max(2 * finest, tail / _MAX_BLOCK_CELLS, (2 * self.rdp(COMPOSED_TAIL) + tail) / MAX_CELLS)
        return grid if grid <= MAX_GRID else None

    def _slack(self) -> float:
        """What rounding may take from delta: in each block, then in the composition of the rounds."""
        return self._rounds * rounding_delta(self._step.steps) + rounding_delta(self._rounds)

    def pld(self, delta: float, grid: float, *, pessimistic: bool) -> float:
        """Epsilon by a privacy loss distribution: from above in both directions, from below in the dearer one."""
        if pessimistic:
            rounds = [self._above(direction, grid) for direction in directions(self._step)]
        else:
            rounds = [self._below(directions(self._step)[0], grid)]
        return max(bounded_epsilon(each.composed(self._rounds), delta, self._slack()) for each in rounds)

    def _above(self, direction: Direction, grid: float) -> Losses:
        """The loss of one round, from above."""
        block = one_step(self._step, grid, direction, pessimistic=True).composed(self._step.steps)
        if not self._hidden:
            return _beside_nothing(block, self._rate)
        mix = _with_mixture if direction == "remove" else _against_mixture
        return mix(_within(block), self._rate)

    def _below(self, direction: Direction, grid: float) -> Losses:
        """The loss of one round, from below."""
        block = one_step(self._step, grid, direction, pessimistic=False).composed(self._step.steps)
        if not self._hidden:
            return _beside_nothing(block, self._rate)
        without = one_step(self._step, grid, direction, pessimistic=False, under_second=True)
        return _mixture_below(block, without.composed(self._step.steps), self._rate)


def _against_mixture_divergence(order: int, rate: float, block: float, second_log_moment: Vector) -> float:
    """Rényi divergence of Q against ``(1-c) Q + c P``, from above.

    With ``W = P/Q`` and s = order - 1, ``E_Q[(1 + c (W - 1))**-s]`` is at most
    ``1 + s (s+1) / 2 c**2 E_Q[(W - 1)**2] (1-c)**(-s-2)`` by Taylor's theorem, since ``W >= 0``; and the divergence is at
    most c times that of Q against P, since it is convex in its second law [EH14, Thm 12].

    Args:
        order: An integer, 2 or more.
        rate: c.
        block: The block's divergence at this order.
        second_log_moment: ``float64 (1,)``: ``log E_Q[W**2]``.
    """
    s = order - 1
    spread = 2 * math.log(rate) + float(_log_expm1(second_log_moment)[0])
    taylor = np.logaddexp(0.0, math.log(s * order / 2) + spread - (s + 2) * math.log1p(-rate)) / s
    return min(float(taylor), rate * block)


def _log_expm1(x: Vector) -> Vector:
    """``log(exp(x) - 1)`` of ``float64 (count,)``, without overflow."""
    with np.errstate(divide="ignore"):  # a divergence that rounds to 0
        return x + np.log(-np.expm1(-x))


def _within(block: Losses) -> Losses:
    """The block, from above, with losses over 600 as unbounded: what follows exponentiates them."""
    kept = max(1, int(np.searchsorted(block.values(), _MAX_BLOCK_LOSS, side="right")))
    return block._replace(
        masses=block.masses[:kept], infinity=min(1.0, block.infinity + float(block.masses[kept:].sum()))
    )


def _beside_nothing(block: Losses, rate: float) -> Losses:
    """The block with this probability, otherwise a loss of 0."""
    lowest = min(block.lowest, 0)
    masses = np.zeros(max(block.lowest + len(block.masses), 1) - lowest)
    masses[block.lowest - lowest :][: len(block.masses)] = rate * block.masses
    masses[-lowest] += 1 - rate
    return block._replace(lowest=lowest, masses=masses, infinity=rate * block.infinity)


def _with_mixture(block: Losses, rate: float) -> Losses:
    """From P against Q to ``(1-c) Q + c P`` against Q, from above.

    ``delta'(epsilon) = c delta(log(1 + (exp(epsilon) - 1) / c))``, and ``1 - exp(epsilon)`` below ``log(1 - c)``.
    """
    values = block.values()
    lowest, highest = (math.log1p(rate * math.expm1(each)) for each in (max(values[0], -_MAX_BLOCK_LOSS), values[-1]))
    first, last = math.floor(lowest / block.grid), math.ceil(highest / block.grid)
    shares = np.expm1(np.arange(first, last + 1) * block.grid) / rate
    deltas = np.empty_like(shares)
    some = shares > -1
    deltas[some] = rate * block.deltas(np.clip(np.log1p(shares[some]), -_MAX_BLOCK_LOSS, values[-1]))
    deltas[~some] = -rate * shares[~some]
    return connect_the_dots(block.grid, first, deltas)


def _against_mixture(block: Losses, rate: float) -> Losses:
    """From Q against P to Q against ``(1-c) Q + c P``, from above.

    ``delta'(epsilon) = (1 - (1-c) exp(epsilon)) delta(-log(1 + (exp(-epsilon) - 1) / c))``, and 0 above ``-log(1 - c)``.
    """
    values = block.values()
    lowest, highest = (-math.log1p(rate * math.expm1(-each)) for each in (max(values[0], -_MAX_BLOCK_LOSS), values[-1]))
    first, last = math.floor(lowest / block.grid), math.ceil(highest / block.grid)
    epsilons = np.arange(first, last + 1) * block.grid
    shares = np.expm1(-epsilons) / rate
    deltas = np.zeros_like(shares)
    some = shares > -1
    inner = block.deltas(np.clip(-np.log1p(shares[some]), -_MAX_BLOCK_LOSS, values[-1]))
    deltas[some] = np.exp(epsilons[some]) * rate * (1 + shares[some]) * inner
    return connect_the_dots(block.grid, first, deltas)


def _mixture_below(block: Losses, without: Losses, rate: float) -> Losses:
    """From P against Q to ``(1-c) Q + c P`` against Q, from below; ``without`` has the masses of the block under Q."""
    parts = []
    for losses, weight in ((block, rate), (without, 1 - rate)):
        values = np.clip(losses.values(), -_MAX_BLOCK_LOSS, _MAX_BLOCK_LOSS)
        cells = np.floor(np.log1p(rate * np.expm1(values)) / losses.grid).astype(np.int64)
        parts.append((cells, weight * losses.masses))
    lowest = min(int(cells[0]) for cells, _ in parts)
    length = max(int(cells[-1]) for cells, _ in parts) - lowest + 1
    masses = np.zeros(length)
    for cells, part in parts:
        masses += np.bincount(cells - lowest, part, length)
    return Losses(block.grid, lowest, masses, 0.0, pessimistic=False)
