"""The plan: one frozen, hashed value that every party can check for itself.

Notation: n sites; at most r of them drop out and c collude with the server; G grid steps per clip norm; sigma in grid
units; T rounds. The noise that counts is that of the fewest honest survivors, the floor n - r - c.
"""

import hashlib
import math
import warnings
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import cached_property
from reprlib import repr as short
from typing import Any, Final, Literal, Self, get_args

import rfc8785

from privacy.accounting import EpsilonBound, gaussian_epsilon
from privacy.accounting.gaussian import SAMPLER_DISTANCE, as_text
from privacy.accounting.releases import Release
from privacy.adaptive import AdaptiveClip, AdaptiveCodec
from privacy.budget import Budget
from privacy.codec import GridCodec
from privacy.errors import PlanError
from privacy.noise import sigma_effective, sigma_local
from privacy.plan.poisson import MARGIN as POISSON_MARGIN
from privacy.plan.poisson import check_poisson, most_releases, order_budget, sampled_epsilon
from privacy.plan.solving import MARGIN, solve_third
from privacy.plan.words import explain
from privacy.reading import FORMAT, check_count, check_keys, check_real, read_object
from privacy.sampling import MAX_SIGMA, TAIL_SIGMAS

Unit = Literal["record", "client"]
PlanRelation = Literal["add-remove", "replace-one", "zero-out"]

MAX_GRID: Final = 1 << 20

_RELATIONS: Final = {"record": ("add-remove", "replace-one"), "client": ("zero-out", "replace-one")}
_COUNTS: Final = {
    "sites": 1,
    "dropouts": 0,
    "colluders": 0,
    "records_per_site": 1,
    "dimension": 1,
    "bits": 2,
    "rounds": 1,
    "silos": 1,
}
_REALS: Final = ("clip", "noise_multiplier", "delta", "epsilon", "divisor", "sample_rate")
_ABSENT: Final = {
    "silos": 1,
    "adaptive": None,
    "sample_rate": 1.0,
}  # left out of the JSON at these values, so that old hashes stay


class PlanWarning(UserWarning):
    """A plan that can be carried out, and promises less than its numbers suggest."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A privacy plan: every record in every round, or each by a secret coin of its own.

    The guarantee is computational differential privacy against the server and c colluding sites: it rests on the
    masks, the sealing and the noise generator.

    Args:
        unit: Who is protected: one ``record`` (patient), or one ``client`` (site).
        relation: Neighbouring data. Records: ``add-remove`` or ``replace-one``. Clients of a fixed cohort:
            ``zero-out`` or ``replace-one``. Replace-one has twice the sensitivity.
        sites: n.
        dropouts: r, sites that may be missing from a sum.
        colluders: c, sites that may work with the server.
        clip: L2 norm that each contribution is clipped to: of a record at one site, or of a client; in the first
            round, where the clip norm adapts.
        records_per_site: N_max, the public cap on records per site; 1 for the client unit.
        dimension: d, coordinates of the update.
        bits: Ring width of a coordinate.
        noise_multiplier: Standard deviation of the floor's noise over the sensitivity, relation and silos included.
        rounds: T.
        delta: In (0, 1); less than 1 / (sites * records_per_site), or a `PlanWarning`.
        epsilon: Budget of one run.
        divisor: Public constant that the decoded sum is divided by.
        silos: k, sites that may hold a record of the same person, one at each; 1 for the client unit. The unit is
            then the person, and the sensitivity k times that of a record. To bound a person's whole contribution by
            C instead, clip to C / k at each site: `solve` does it for ``total_clip``.
        adaptive: How the clip norm moves, or None. A bit then travels beside each update.
        sample_rate: q in (0, 1]. Below 1 each record takes part in a round with that probability, by a coin of its own
            that only its site knows (`NoiseSource.coins`), whatever the other coins are: batches are not cut or filled
            up. For records under add-remove at one silo. The coin covers the record's bit too. Rounds are then counted
            with every attempt.

    Attributes:
        grid: G, the largest power of two up to 2**20 for which the sums fit the ring.
        bit: B, steps of the adaptive clip's bit; 0 without one.
        sigma_local: Parameter of each site's discrete Gaussian, grid units, for every coordinate.

    Raises:
        PlanError: a field is out of range, or the plan cannot be carried out; the message has the numbers.

    Guarantees:
        T rounds at the floor stay within (epsilon, delta), the noise sampler's distance and the bit included.
        No sum of n encoded vectors with their noise wraps: ``n * bound < 2**(bits - 1)``.
        The sensitivity follows from clip, relation, silos and bit; it cannot be set.
    """

    unit: Unit
    relation: PlanRelation
    sites: int
    dropouts: int
    colluders: int
    clip: float
    records_per_site: int
    dimension: int
    bits: int = 32
    noise_multiplier: float
    rounds: int
    delta: float
    epsilon: float
    divisor: float
    silos: int = 1
    adaptive: AdaptiveClip | None = None
    sample_rate: float = 1.0
    grid: int = field(init=False, compare=False)
    bit: int = field(init=False, compare=False)
    sigma_local: float = field(init=False, compare=False)

    def __post_init__(self) -> None:
        self._check_fields()
        grid, bit, share = self._choose_grid()
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "bit", bit)
        object.__setattr__(self, "sigma_local", share)
        if math.sqrt(self.dimension) / 2 >= grid:
            raise PlanError(
                f"rounding {self.dimension} coordinates to a grid of {grid} steps may pass the clip norm by itself: "
                f"sqrt(dimension) / 2 >= grid; take more bits than {self.bits}"
            )
        if not self._keeps_to_budget():
            raise PlanError(
                f"{self.rounds} rounds at noise_multiplier = {self.noise_multiplier} spend epsilon = "
                f"{as_text(self.accounted_epsilon().upper)} at delta = {self.delta:g}; the budget is {self.epsilon:g}"
            )
        records = self.sites * self.records_per_site
        if self.delta >= 1 / records:
            warnings.warn(
                f"delta = {self.delta:g} is not below 1 / {records} {self.unit}s: the plan allows to publish somebody",
                PlanWarning,
                stacklevel=3,
            )

    def _keeps_to_budget(self) -> bool:
        if self.sample_rate < 1:
            return self.accounted_epsilon().upper * (1 + POISSON_MARGIN / 2) <= self.epsilon
        spend = self.rounds * self.mu(self.sites - self.dropouts) ** 2
        return spend * (1 + MARGIN / 2) <= self.budget().mu_squared

    def _check_fields(self) -> None:
        self._check_relation()
        for name, least in _COUNTS.items():
            check_count(name, getattr(self, name), least)
        for name in _REALS:
            object.__setattr__(self, name, check_real(name, getattr(self, name)))
        if self.delta >= 1:
            raise PlanError(f"delta = {self.delta} is not below 1")
        if self.sample_rate > 1:
            raise PlanError(f"sample_rate = {self.sample_rate} is above 1")
        if self.sample_rate < 1:
            check_poisson(self)
        if self.bits > 64:
            raise PlanError(f"bits = {self.bits} is more than 64")
        if self.sites - self.dropouts - self.colluders < 1:
            raise PlanError(
                f"{self.sites} sites, {self.dropouts} dropouts and {self.colluders} colluders leave nobody honest: "
                "sites - dropouts - colluders < 1"
            )
        if self.silos > self.sites:
            raise PlanError(f"silos = {self.silos}: a person cannot have records at more than the {self.sites} sites")
        if self.adaptive is not None:
            self._check_adaptive(self.adaptive)

    def _check_relation(self) -> None:
        if self.unit not in get_args(Unit):
            raise PlanError(f"unit = {short(self.unit)} is none of {', '.join(get_args(Unit))}")
        if self.relation not in _RELATIONS[self.unit]:
            fitting = " or ".join(_RELATIONS[self.unit])
            raise PlanError(f"relation = {short(self.relation)} does not go with unit {self.unit}: take {fitting}")
        if self.unit == "client":
            for name, one in (
                ("records_per_site", "a client contributes one vector"),
                ("silos", "a client is one site"),
            ):
                if getattr(self, name) != 1:
                    raise PlanError(f"{name} = {getattr(self, name)}: {one}, so it is 1")

    def _check_adaptive(self, adaptive: object) -> None:
        if not isinstance(adaptive, AdaptiveClip):
            raise PlanError(f"adaptive = {short(adaptive)} is not an AdaptiveClip")
        adaptive.check_clip(self.clip)
        most = self.sites * self.records_per_site
        if adaptive.expected > most:
            raise PlanError(
                f"adaptive.expected = {adaptive.expected:g} is above the {most} {self.unit}s that may be there"
            )

    def _choose_grid(self) -> tuple[int, int, float]:
        """Return the finest grid whose sums fit the ring and whose noise the sampler can draw, its bit and its share."""
        room = 1 << (self.bits - 1)
        grid = MAX_GRID
        while grid:
            bit = self.adaptive.bit_steps(grid, self.noise_multiplier * self._changes) if self.adaptive else 0
            star = self.noise_multiplier * self._moved(grid, bit)
            # Only an upper limit of the range sends us to a coarser grid; below 8 a coarser one would be worse.
            if math.sqrt((star * star + 9) / (self.sites - self.dropouts - self.colluders)) <= MAX_SIGMA * (1 - 1e-12):
                share = sigma_local(star, sites=self.sites, dropouts=self.dropouts, colluders=self.colluders)
                if self.sites * (self.records_per_site * max(grid, bit) + math.ceil(TAIL_SIGMAS * share)) < room:
                    return grid, bit, share
            grid >>= 1
        raise PlanError(
            f"no grid fits {self.bits} bits: {self.sites} sites of {self.records_per_site} vectors each with noise "
            f"multiplier {self.noise_multiplier} need more room"
        )

    @property
    def _changes(self) -> int:
        """Contributions by which the sums of neighbours differ."""
        return self.silos * (2 if self.relation == "replace-one" else 1)

    def _moved(self, grid: int, bit: int) -> int:
        """Whole steps, rounded up: so a verifier needs no square root, and the bit costs at most one step in G."""
        return self._changes * (math.isqrt(grid * grid + bit * bit - 1) + 1)

    @property
    def sensitivity(self) -> int:
        """L2 distance between the sums of neighbours, whole grid units: ``sqrt(G**2 + B**2)`` rounded up, times changes."""
        return self._moved(self.grid, self.bit)

    @property
    def sigma_star(self) -> float:
        """Standard deviation that the floor's noise must be accounted with, grid units."""
        return self.noise_multiplier * self.sensitivity

    @property
    def bound(self) -> int:
        """Largest absolute coordinate that one site may send, noise included, grid units."""
        return self.records_per_site * max(self.grid, self.bit) + math.ceil(TAIL_SIGMAS * self.sigma_local)

    @property
    def length(self) -> int:
        """Coordinates that leave a site in a round: those of the update, and the bit's."""
        return self.dimension + (self.adaptive is not None)

    @property
    def draws(self) -> int:
        """Noise coordinates drawn by all sites in one round."""
        return self.sites * self.length

    @property
    def total_clip(self) -> float:
        """L2 norm that everything of one unit is bounded by, over all its sites."""
        return self.silos * self.clip

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def codec(self, clip: float | None = None) -> GridCodec | AdaptiveCodec:
        """Return what clips and encodes in one round, and decodes its sum.

        Args:
            clip: The round's clip norm; by default the plan's own, which is the only one where it does not adapt.

        Raises:
            PlanError: the plan does not allow this clip norm.

        Guarantees:
            Sensitivity, noise and budget are in grid steps, so whatever clip norm a server names, they hold.
        """
        now = self.clip if clip is None else clip
        if self.adaptive is None:
            if now != self.clip:
                raise PlanError(f"clip = {clip}: the plan's clip norm is {self.clip:g} and does not adapt")
            return GridCodec(self.clip, self.grid, self.dimension)
        self.adaptive.check_clip(now)
        return AdaptiveCodec(GridCodec(now, self.grid, self.dimension), self.bit)

    def sigma_effective(self, survivors: int) -> float:
        """Standard deviation that the noise of ``survivors`` sites is accounted with, grid units.

        Raises:
            PlanError: there are fewer than the floor of sites - dropouts, or more than there are sites.
        """
        if not self.sites - self.dropouts <= survivors <= self.sites:
            raise PlanError(f"{survivors} survivors: the plan is for {self.sites - self.dropouts} to {self.sites}")
        return sigma_effective(self.sigma_local, survivors=survivors, colluders=self.colluders)

    def mu(self, survivors: int) -> float:
        """Sensitivity over the realised noise of one round; ``1 / noise_multiplier`` at the floor, less above it."""
        return self.sensitivity / self.sigma_effective(survivors)

    @property
    def release(self) -> Release:
        """What one round at the floor costs."""
        return Release(self.mu(self.sites - self.dropouts), self.sample_rate)

    def budget(self) -> Budget:
        """Return the filter of one run; below a sample rate of 1, for what `most_releases` does not cover.

        Its sampler part covers n T rounds, more than a run of retries can book before the noise has used it up.
        """
        budget = Budget(
            epsilon=self.epsilon,
            delta=self.delta,
            sampler_delta=self.sites * self.rounds * self.draws * SAMPLER_DISTANCE,
        )
        return budget if self.sample_rate == 1 else order_budget(self.release, budget)

    @cached_property
    def cached_budget(self) -> Budget:
        """`budget`, computed once."""
        return self.budget()

    @cached_property
    def most_releases(self) -> int:
        """Releases that a run may make where the sample rate is below 1, attempts included: T, or more where the budget has room.

        So many at the floor stay within (epsilon, delta): a schedule that is fixed in advance.
        """
        return most_releases(self)

    def accounted_epsilon(self, *, rounds: int | None = None, colluders: int | None = None) -> EpsilonBound:
        """Epsilon at the floor of survivors, by every route; ``pld`` is one where the sample rate is below 1.

        Args:
            rounds: By default all T.
            colluders: By default the plan's c; more of them take noise away, and the plan no longer holds.

        Raises:
            PlanError: no rounds, or nobody honest.
        """
        count = self.rounds if rounds is None else rounds
        check_count("rounds", count, 1)
        sigma = sigma_effective(
            self.sigma_local,
            survivors=self.sites - self.dropouts,
            colluders=self.colluders if colluders is None else colluders,
        )
        if self.sample_rate < 1:
            release = Release(self.sensitivity / sigma, self.sample_rate)
            return sampled_epsilon(release, count, self.delta, self.draws * SAMPLER_DISTANCE)
        return gaussian_epsilon(
            count * (self.sensitivity / sigma) ** 2, self.delta, sampler_delta=count * self.draws * SAMPLER_DISTANCE
        )

    @classmethod
    def solve(
        cls,
        *,
        delta: float,
        sites: int,
        dimension: int,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        rounds: int | None = None,
        clip: float | None = None,
        total_clip: float | None = None,
        **rest: Any,  # noqa: ANN401 - the other fields, checked by the constructor
    ) -> Self:
        """Make a plan from two of epsilon, noise_multiplier and rounds: the third follows.

        Args:
            delta: In (0, 1).
            sites: n.
            dimension: d.
            epsilon: Budget of one run; left out, the least that the noise keeps to.
            noise_multiplier: Left out, the least that keeps to the budget.
            rounds: T; left out, the most that the budget allows.
            clip: Of each contribution.
            total_clip: In its place, of everything of one person: each of ``silos`` sites clips to that part of it.
            rest: The other fields.

        Raises:
            PlanError: as for the constructor; all three were given, or fewer than two; both clip norms, or none.

        Guarantees:
            `accounted_epsilon` is at most epsilon, and within 1e-6 of it for a sampler part that is negligible, unless
            it was the rounds that were solved for.
            ``silos * clip`` is at most total_clip, in exact arithmetic.
        """
        for name, value in (("sites", sites), ("dimension", dimension)):
            check_count(name, value, 1)
        if (clip is None) == (total_clip is None):
            raise PlanError(
                "one of clip and total_clip makes a plan: the norm of a contribution, or of a person's whole"
            )
        budget, noise, count = solve_third(
            epsilon=epsilon,
            noise_multiplier=noise_multiplier,
            rounds=rounds,
            delta=delta,
            sites=sites,
            draws=sites * (dimension + (rest.get("adaptive") is not None)),
            sample_rate=rest.get("sample_rate", 1.0),
        )
        return cls(
            epsilon=budget,
            noise_multiplier=noise,
            rounds=count,
            delta=delta,
            sites=sites,
            dimension=dimension,
            clip=_part(total_clip, rest.get("silos", 1)) if clip is None else clip,
            **rest,
        )

    def to_fields(self) -> dict[str, Any]:
        """Return the chosen fields, and the format, as a JSON object; later fields only where they say something."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        if self.adaptive is not None:
            values["adaptive"] = self.adaptive.to_fields()
        kept = {name: value for name, value in values.items() if name not in _ABSENT or value != _ABSENT[name]}
        return {"format": FORMAT} | kept

    def to_json(self) -> str:
        """Return the canonical JSON (RFC 8785) of the chosen fields, on one line."""
        return rfc8785.dumps(self.to_fields()).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a plan.

        Raises:
            PlanError: not JSON, another format, a key that is unknown, missing, given twice or written out at a value
                that is left out, or a plan that the constructor refuses.

        Guarantees:
            ``Plan.from_json(plan.to_json()) == plan``, with the same hash.
            A plan without silos, adaptive and sample rate is written as before there were any, with the same hash.
        """
        data = read_object(text)
        names = {each.name for each in fields(cls) if each.init}
        check_keys(data, names, optional=_ABSENT)
        for name, value in _ABSENT.items():
            if name in data and data[name] == value:
                raise PlanError(f"{name} = {data[name]} in the plan is left out, so that one plan has one hash")
        if "adaptive" in data:
            data["adaptive"] = AdaptiveClip.from_fields(data["adaptive"])
        return cls(**data)

    def explain(self) -> str:
        """Say on one page, in words, what is promised, against whom, and what is not."""
        return explain(self)


def _part(total_clip: object, silos: object) -> float:
    """Return the largest float of which ``silos`` are at most ``total_clip``."""
    total = check_real("total_clip", total_clip)
    check_count("silos", silos, 1)
    part = total / silos  # type: ignore[operator]
    while Fraction(part) * silos > Fraction(total):  # type: ignore[operator]
        part = math.nextafter(part, 0.0)
    return part
