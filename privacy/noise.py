"""Noise shares: how much noise each site adds, and where its randomness comes from.

The colluders know their own noise, so only the honest survivors' counts. Their discrete Gaussians together are
accounted as one continuous Gaussian whose variance is smaller by 9 (docs/privacy.md, "A discrete Gaussian accounted
as a Gaussian").

Sources: [CKS20] for the discrete Gaussian, [KLS21] for its distributed sum, [RFC5869] for HKDF.
"""

import hashlib
import math
import os
import struct
from collections.abc import Callable
from typing import Final, NoReturn, Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.errors import PlanError, SamplerError
from privacy.sampling import KEY_LENGTH, MAX_SIGMA, MIN_SIGMA, DiscreteGaussian, coins

SMOOTHING_VARIANCE: Final = 9.0  # rho**2 with rho = 3: eta per coordinate is below 1e-76

_SHARE_LABEL: Final = b"privacy/1 noise share"
_COINS_LABEL: Final = b"privacy/1 record coins"
_TEST_LABEL: Final = b"privacy/1 insecure test seed"

_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 - the interpreter's fork hook has nowhere else to write
    _forks += 1


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_count_fork)


def _process() -> tuple[int, int]:
    """Tell this process from its ancestors, also where ids repeat (a new pid namespace, a wrapped counter)."""
    return os.getpid(), _forks


def sigma_effective(sigma_local: float, *, survivors: int, colluders: int) -> float:
    """Standard deviation of the Gaussian that the honest survivors' noise is accounted as.

    Args:
        sigma_local: Parameter of each site's discrete Gaussian, grid units.
        survivors: Sites whose vectors are in the sum.
        colluders: Sites that may work with the server.

    Returns:
        ``sqrt((survivors - colluders) sigma_local**2 - 9)``, grid units.

    Raises:
        PlanError: nobody honest survives, or sigma_local is outside [8, 1e8], where nothing is proved or drawn.

    Guarantees:
        For any integer sensitivity, dimension and composition, the sum of the honest noises gives no larger epsilon
        than a continuous Gaussian of this standard deviation, up to the sampler's error and the last digit of a float.
    """
    honest = survivors - colluders
    if survivors < 0 or colluders < 0 or honest < 1:
        raise PlanError(f"{survivors} survivors with {colluders} colluders leave nobody whose noise is secret")
    _check_range(sigma_local)
    return math.sqrt(honest * sigma_local * sigma_local - SMOOTHING_VARIANCE)


def sigma_local(sigma_star: float, *, sites: int, dropouts: int, colluders: int) -> float:
    """Noise that each site adds so that the fewest honest survivors reach ``sigma_star`` together.

    Args:
        sigma_star: Standard deviation wanted in the sum, grid units.
        sites: n, sites in the cohort.
        dropouts: r, sites that may be missing from the sum.
        colluders: c, sites that may work with the server.

    Returns:
        ``sqrt((sigma_star**2 + 9) / (n - r - c))``, grid units, rounded up.

    Raises:
        PlanError: n - r - c < 1, sigma_star is not positive and finite, or the share is outside [8, 1e8].

    Guarantees:
        ``sigma_effective`` at the floor of n - r survivors is at least sigma_star, in floating point too.
    """
    honest = sites - dropouts - colluders
    if min(sites, dropouts, colluders) < 0 or honest < 1:
        raise PlanError(
            f"{sites} sites, {dropouts} dropouts and {colluders} colluders leave nobody honest at the floor"
        )
    if not 0 < sigma_star < math.inf:
        raise PlanError(f"sigma_star = {sigma_star} grid units is not positive and finite")
    share = math.sqrt((sigma_star * sigma_star + SMOOTHING_VARIANCE) / honest)
    _check_range(share)
    while sigma_effective(share, survivors=sites - dropouts, colluders=colluders) < sigma_star:
        share = math.nextafter(share, math.inf)
    return share


def _check_range(sigma: float) -> None:
    if not MIN_SIGMA <= sigma <= MAX_SIGMA:  # NaN fails too
        raise PlanError(
            f"each site's noise would be sigma_local = {sigma} grid units, outside [{MIN_SIGMA:g}, {MAX_SIGMA:g}]: "
            f"{'use a finer grid or more noise' if sigma < MIN_SIGMA else 'use a coarser grid or less noise'}"
        )


def _share_key(secret: bytes, *context: bytes, label: bytes = _SHARE_LABEL) -> bytes:
    """Derive the AES key of one share, or of one round's coins; every item of the context is framed by its length."""
    framed = b"".join(len(item).to_bytes(8, "big") + item for item in context)
    return HKDF(SHA256(), KEY_LENGTH, salt=None, info=label + framed).derive(secret)


class _Holding:
    """What one process holds: its secret, and the labels that it has served. Has no ``repr`` that could show either."""

    __slots__ = ("secret", "used")

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        # (run, round, attempt, site, purpose), or None in its place for the coins
        self.used: dict[tuple[str, int, int, int, str | None], object] = {}

    def take(self, run: str, number: int, attempt: int, site: int, purpose: str | None) -> None:
        """Return the first time for these labels."""
        mine = object()
        # setdefault is one step, so two threads cannot both be first; a lock held across a fork would hang the child.
        if self.used.setdefault((run, number, attempt, site, purpose), mine) is not mine:
            what = "the coins" if purpose is None else "the noise"
            tail = "" if purpose is None else f", {purpose!r}"
            raise SamplerError(
                f"{what} of run {run!r}, round {number}, attempt {attempt}, site {site}{tail} "
                f"{'were flipped' if purpose is None else 'was drawn'} before"
            )


def _require_numbers(**numbers: object) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or not 0 <= value < 1 << 64:
            raise SamplerError(f"{name} = {value} is not an integer in [0, 2**64)")


class NoiseSource:
    """A site's secret from which every noise share, and every round's coins, are keyed.

    Args:
        entropy: Gives n secret uniform bytes; called for 32 at construction, and again in a forked child.

    Raises:
        SamplerError: ``entropy`` did not give 32 bytes.

    Guarantees:
        The key of a share depends on the secret and on every one of (run, round, attempt, site, purpose, sigma,
        length), so two shares never use the same keystream; no coins use that of a share.
        A forked child draws fresh entropy before its first share, and drops its parent's.
        The same (run, round, attempt, site, purpose) is never served twice by one source in one process, whatever its
        threads do.
        The secret is not in ``repr``, and the source can be neither pickled nor copied.
    """

    def __init__(self, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._entropy = entropy
        self._private = True
        self._holdings: dict[tuple[int, int], _Holding] = {}
        self._holding()

    @classmethod
    def insecure_test(cls, seed: int) -> Self:
        """Make a source whose shares anybody can repeat: for bitwise tests only, NOT PRIVATE.

        The attempt is left out of the key, so that a resumed run draws the noise of the uninterrupted one, and a
        forked child repeats its parent.
        """
        secret = hashlib.sha256(_TEST_LABEL + str(seed).encode()).digest()
        source = cls(lambda length: secret[:length])
        source._private = False
        return source

    @property
    def private(self) -> bool:
        """Whether the shares are secret; False under a test seed."""
        return self._private

    def share(
        self,
        sigma: float,
        length: int,
        *,
        run: str,
        round: int,  # noqa: A002 - the name that plans, ledgers and protocols use
        attempt: int,
        site: int,
        purpose: str,
    ) -> npt.NDArray[np.int64]:
        """Draw one site's noise for one block of one round.

        Args:
            sigma: Parameter of the discrete Gaussian, grid units, 8 to 1e8.
            length: Number of coordinates.
            run: Name of the run.
            round: Round number, from 0.
            attempt: Attempt at this round, from 0: a retry draws fresh noise.
            site: The site's id, an unsigned 64-bit integer.
            purpose: What is noised, one name for each block.

        Returns:
            ``int64 (length,)``, each within ±floor(13 sigma).

        Raises:
            SamplerError: this share was drawn before, sigma is out of range, or a number is not an integer in
                [0, 2**64).
        """
        holding = self._holding()
        sampler = DiscreteGaussian(sigma)
        _require_numbers(round=round, attempt=attempt, site=site, length=length)
        holding.take(run, round, attempt, site, purpose)
        context = *self._context(run, round, attempt, site), purpose.encode(), struct.pack(">d", sampler.sigma)
        return sampler.sample(_share_key(holding.secret, *context, length.to_bytes(8, "big")), length)

    def coins(
        self,
        rate: float,
        slots: int,
        *,
        run: str,
        round: int,  # noqa: A002 - as above
        attempt: int,
        site: int,
    ) -> npt.NDArray[np.bool_]:
        """Flip the coins of one site's records in one round: who is in the Poisson batch.

        Args:
            rate: Probability of each, in (0, 1]: the plan's ``sample_rate``.
            slots: Places for records, whoever is in them.
            run: Name of the run.
            round: Round number, from 0.
            attempt: Attempt at this round, from 0: a retry flips fresh coins.
            site: The site's id, an unsigned 64-bit integer.

        Returns:
            ``bool (slots,)``: whether the record in each slot takes part. Nobody but the site may learn it.

        Raises:
            SamplerError: these coins were flipped before, the rate is out of range, or a number is not an integer in
                [0, 2**64).

        Guarantees:
            Each falls with probability ``rate`` rounded down to a multiple of 2**-64, for a uniform keystream; so
            accounting at ``rate`` is on the safe side.
            A slot's coin depends on the secret, the round's labels, the rate and its own number: on no record, and not
            on how many slots there are. Two records in two slots never share a coin, however alike they are.
            Of no coins, shares and masks do two have a keystream in common; forks and repeats are as for `share`.
        """
        holding = self._holding()
        _require_numbers(round=round, attempt=attempt, site=site, slots=slots)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise SamplerError(f"rate = {rate} is not in (0, 1]")
        holding.take(run, round, attempt, site, None)
        context = *self._context(run, round, attempt, site), struct.pack(">d", rate)
        return coins(_share_key(holding.secret, *context, label=_COINS_LABEL), float(rate), slots)

    def _context(self, run: str, number: int, attempt: int, site: int) -> tuple[bytes, ...]:
        return (
            run.encode(),
            number.to_bytes(8, "big"),
            attempt.to_bytes(8, "big") if self._private else b"",
            site.to_bytes(8, "big"),
        )

    def _holding(self) -> _Holding:
        """Return what this process holds; a child that was just forked draws its own secret first."""
        process = _process()
        held = self._holdings.get(process)
        if held is None:
            secret = self._entropy(KEY_LENGTH)
            if not isinstance(secret, bytes) or len(secret) != KEY_LENGTH:
                raise SamplerError(f"the entropy source did not give {KEY_LENGTH} bytes")
            # One step again: the threads of a new child all take the first one's secret, and its list of labels.
            held = self._holdings.setdefault(process, _Holding(secret))
            for ancestor in [other for other in tuple(self._holdings) if other != process]:
                self._holdings.pop(ancestor, None)
        return held

    def __repr__(self) -> str:
        return f"NoiseSource(<secret>, private={self._private})"

    def __reduce__(self) -> NoReturn:
        raise SamplerError("a noise source cannot be pickled or copied: two holders would draw the same noise")
