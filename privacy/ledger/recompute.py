"""Checks every epsilon that a ledger tells, for all of its entries at once.

Solving for each epsilon would take a second for a few thousand entries. It is not needed: a told epsilon is right when
the exact privacy profile passes delta between a little below and a little above it. That is two evaluations, made for
all entries in arrays. Whatever this does not settle is solved for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from privacy.accounting.gaussian import RDP_ORDERS, SAMPLER_DISTANCE
from privacy.ledger.chain import ChainError
from privacy.ledger.spend import Spend

_Floats = npt.NDArray[np.float64]

_REL_TOL: Final = 1e-9  # between machines whose libraries round otherwise
_ABS_TOL: Final = 1e-12
_SAFE_MU: Final = 1e-3  # below it the two terms of the profile cancel
_CHUNK: Final = 1 << 12  # claims at once, each with 66 orders


@dataclass(frozen=True)
class Claim:
    """One epsilon that an entry tells.

    Attributes:
        seq: Number of the entry.
        name: ``epsilon`` or ``epsilon_total``.
        told: By route.
        spend: What it is the epsilon of.
        delta: Of the entry's plan.
    """

    seq: int
    name: str
    told: dict[str, float]
    spend: Spend
    delta: float


def check_claims(claims: Sequence[Claim], path: Path) -> None:
    """Compare every claim with what its spend comes to, by both routes, to nine digits.

    Raises:
        ChainError: the first that does not follow from the entries; file and line are named.

    Guarantees:
        Takes what solving for each epsilon takes, no more and no less.
    """
    for start in range(0, len(claims), _CHUNK):
        part = claims[start : start + _CHUNK]
        for claim, settled in zip(part, _settled(part), strict=True):
            if not settled:
                _solve(claim, path)


def _solve(claim: Claim, path: Path) -> None:
    for route, value in claim.spend.routes(claim.delta).items():
        told = claim.told.get(route, -1.0)
        if not math.isclose(told, value, rel_tol=_REL_TOL, abs_tol=_ABS_TOL):
            raise ChainError(
                f"{path}, line {claim.seq + 1}: {claim.name} by {route} is {claim.told.get(route)}, recomputed {value}"
            )


def _settled(claims: Sequence[Claim]) -> list[bool]:
    """Which claims are right for certain."""
    told = np.array([[claim.told.get(route, math.nan) for claim in claims] for route in ("closed_form", "rdp")])
    squares = np.array([claim.spend.mu_squared() for claim in claims])
    delta = np.array([claim.delta for claim in claims])
    sampler = np.array([claim.spend.draws * SAMPLER_DISTANCE for claim in claims])
    with np.errstate(all="ignore"):  # what comes out as NaN is not settled

        def left(epsilon: _Floats) -> _Floats:
            return np.asarray(np.log(delta - (1 + np.exp(epsilon)) * sampler))

        # Half of the tolerance, so that rounding here does not let through what is beyond it.
        low, high = (told[0] + sign * (_REL_TOL * told[0] + _ABS_TOL) / 2 for sign in (-1, 1))
        exact = (_log_delta(low, squares) > left(low)) & (_log_delta(high, squares) < left(high))
        orders = np.array(RDP_ORDERS, np.float64)[:, None]
        divergences = orders * (squares / 2) + np.log1p(-1 / orders)
        for at, claim in enumerate(claims):
            curve = claim.spend.renyi()
            if curve is not None:
                divergences[:, at] = curve + np.log1p(-1 / orders[:, 0])
        renyi = np.maximum((divergences - (left(told[1]) + np.log(orders)) / (orders - 1)).min(axis=0), 0.0)
        close = np.abs(renyi - told[1]) <= (_REL_TOL * told[1] + _ABS_TOL) / 2
        return [bool(each) for each in exact & close & (squares > _SAFE_MU**2)]


def _log_delta(epsilon: _Floats, squares: _Floats) -> _Floats:
    """The logarithm of the profile of Gaussian mechanisms, `privacy.accounting.gaussian.log_delta` for mu above 1e-3."""
    from scipy.special import erfcx, ndtr  # noqa: PLC0415 - 0.3 s to import

    mu = np.sqrt(squares)
    u, v = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    mills_v = erfcx(v / math.sqrt(2))
    density = np.exp(-u * u / 2) / 2
    above = -u * u / 2 + np.log((erfcx(u / math.sqrt(2)) - mills_v) / 2)
    below: Any = np.log(ndtr(-u) - density * mills_v)
    return np.asarray(np.where(u > 0, above, below))
