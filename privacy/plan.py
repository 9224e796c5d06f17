"""What a run promises about privacy, as one frozen, hashed value that every party can check for itself.

Notation: n sites; at most r of them drop out and c collude with the server; G grid steps per clip norm; sigma in grid
units; T rounds. The noise that counts is that of the fewest honest survivors, the floor n - r - c.
"""

import hashlib
import json
import math
import sys
import warnings
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Final, Literal, Self, get_args

import rfc8785

from privacy.accounting import EpsilonBound, gaussian_epsilon
from privacy.accounting.gaussian import SAMPLER_DISTANCE, as_text
from privacy.budget import Budget
from privacy.errors import PlanError
from privacy.noise import sigma_effective, sigma_local
from privacy.sampling import MAX_SIGMA, TAIL_SIGMAS

Unit = Literal["record", "client"]
PlanRelation = Literal["add-remove", "replace-one", "zero-out"]

FORMAT: Final = "privacy-plan/1"
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
}
_REALS: Final = ("clip", "noise_multiplier", "delta", "epsilon", "divisor")
_MARGIN: Final = 1e-9  # rounding of T summed spends; the last planned round must still fit


class PlanWarning(UserWarning):
    """A plan that can be carried out, and promises less than its numbers suggest."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A privacy plan for full participation in every round.

    The guarantee is computational differential privacy against the server and c colluding sites: it rests on the
    masks, the sealing and the noise generator.

    Args:
        unit: Who is protected: one ``record`` (patient), or one ``client`` (site).
        relation: Neighbouring data. Records: ``add-remove`` or ``replace-one``. Clients of a fixed cohort:
            ``zero-out`` or ``replace-one``. Replace-one has twice the sensitivity.
        sites: n.
        dropouts: r, sites that may be missing from a sum.
        colluders: c, sites that may work with the server.
        clip: L2 norm that one unit's contribution is clipped to.
        records_per_site: N_max, the public cap on records per site; 1 for the client unit.
        dimension: d, coordinates that leave a site in a round.
        bits: Ring width of a coordinate.
        noise_multiplier: Standard deviation of the floor's noise over the sensitivity, relation included.
        rounds: T.
        delta: In (0, 1); less than 1 / (sites * records_per_site), or a `PlanWarning`.
        epsilon: Budget of one run.
        divisor: Public constant that the decoded sum is divided by.

    Raises:
        PlanError: a field is out of range, or the plan cannot be carried out; the message has the numbers.

    Guarantees:
        T rounds at the floor stay within (epsilon, delta), the noise sampler's distance included.
        No sum of n encoded vectors with their noise wraps: ``n * bound < 2**(bits - 1)``.
        The sensitivity follows from clip and relation; it cannot be set.
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
    grid: int = field(init=False, compare=False)
    sigma_local: float = field(init=False, compare=False)

    def __post_init__(self) -> None:
        self._check_fields()
        grid, share = self._choose_grid()
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "sigma_local", share)
        if math.sqrt(self.dimension) / 2 >= grid:
            raise PlanError(
                f"rounding {self.dimension} coordinates to a grid of {grid} steps may pass the clip norm by itself: "
                f"sqrt(dimension) / 2 >= grid; take more bits than {self.bits}"
            )
        spend = self.rounds * self.mu(self.sites - self.dropouts) ** 2
        if spend * (1 + _MARGIN / 2) > self.budget().mu_squared:
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

    def _check_fields(self) -> None:
        self._check_relation()
        for name, least in _COUNTS.items():
            _check_count(name, getattr(self, name), least)
        for name in _REALS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
                raise PlanError(f"{name} = {value!r} is not a finite positive number")
            object.__setattr__(self, name, float(value))
        if self.delta >= 1:
            raise PlanError(f"delta = {self.delta} is not below 1")
        if self.bits > 64:
            raise PlanError(f"bits = {self.bits} is more than 64")
        if self.sites - self.dropouts - self.colluders < 1:
            raise PlanError(
                f"{self.sites} sites, {self.dropouts} dropouts and {self.colluders} colluders leave nobody honest: "
                "sites - dropouts - colluders < 1"
            )

    def _check_relation(self) -> None:
        if self.unit not in get_args(Unit):
            raise PlanError(f"unit = {self.unit!r} is none of {', '.join(get_args(Unit))}")
        if self.relation not in _RELATIONS[self.unit]:
            fitting = " or ".join(_RELATIONS[self.unit])
            raise PlanError(f"relation = {self.relation!r} does not go with unit {self.unit}: take {fitting}")
        if self.unit == "client" and self.records_per_site != 1:
            raise PlanError(f"records_per_site = {self.records_per_site}: a client contributes one vector, so it is 1")

    def _choose_grid(self) -> tuple[int, float]:
        """Return the finest grid whose sums fit the ring and whose noise the sampler can draw, and its sigma_local."""
        room = 1 << (self.bits - 1)
        grid = MAX_GRID
        while grid:
            star = self.noise_multiplier * grid * self._changes
            # Only an upper limit of the range sends us to a coarser grid; below 8 a coarser one would be worse.
            if math.sqrt((star * star + 9) / (self.sites - self.dropouts - self.colluders)) <= MAX_SIGMA * (1 - 1e-12):
                share = sigma_local(star, sites=self.sites, dropouts=self.dropouts, colluders=self.colluders)
                if self.sites * (self.records_per_site * grid + math.ceil(TAIL_SIGMAS * share)) < room:
                    return grid, share
            grid >>= 1
        raise PlanError(
            f"no grid fits {self.bits} bits: {self.sites} sites of {self.records_per_site} vectors each with noise "
            f"multiplier {self.noise_multiplier} need more room"
        )

    @property
    def _changes(self) -> int:
        return 2 if self.relation == "replace-one" else 1

    @property
    def sensitivity(self) -> int:
        """L2 distance between the sums of neighbours, grid units: G, or 2 G for replace-one."""
        return self._changes * self.grid

    @property
    def sigma_star(self) -> float:
        """Standard deviation that the floor's noise must be accounted with, grid units."""
        return self.noise_multiplier * self.sensitivity

    @property
    def bound(self) -> int:
        """Largest absolute coordinate that one site may send, noise included, grid units."""
        return self.records_per_site * self.grid + math.ceil(TAIL_SIGMAS * self.sigma_local)

    @property
    def draws(self) -> int:
        """Noise coordinates drawn by all sites in one round."""
        return self.sites * self.dimension

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

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

    def budget(self) -> Budget:
        """Return the filter of one run.

        Its sampler part covers n T rounds, more than a run of retries can book before the noise has used it up.
        """
        return Budget(
            epsilon=self.epsilon,
            delta=self.delta,
            sampler_delta=self.sites * self.rounds * self.draws * SAMPLER_DISTANCE,
        )

    def accounted_epsilon(self) -> EpsilonBound:
        """Epsilon of all T rounds at the floor, by both routes."""
        return gaussian_epsilon(
            self.rounds * self.mu(self.sites - self.dropouts) ** 2,
            self.delta,
            sampler_delta=self.rounds * self.draws * SAMPLER_DISTANCE,
        )

    @classmethod
    def solve(
        cls,
        *,
        epsilon: float,
        delta: float,
        rounds: int,
        sites: int,
        dimension: int,
        **rest: Any,  # noqa: ANN401 - the other fields, checked by the constructor
    ) -> Self:
        """Make the plan with the least noise that keeps to a budget.

        Args:
            epsilon: Budget of one run.
            delta: In (0, 1).
            rounds: T.
            sites: n.
            dimension: d.
            rest: The other fields, but noise_multiplier.

        Raises:
            PlanError: as for the constructor.

        Guarantees:
            `accounted_epsilon` is at most epsilon, and within 1e-6 of it for a sampler part that is negligible.
        """
        for name, value in (("rounds", rounds), ("sites", sites), ("dimension", dimension)):
            _check_count(name, value, 1)
        budget = Budget(
            epsilon=epsilon, delta=delta, sampler_delta=rounds * sites * sites * dimension * SAMPLER_DISTANCE
        )
        noise = math.sqrt(rounds / budget.mu_squared) * (1 + _MARGIN)
        return cls(
            epsilon=epsilon,
            delta=delta,
            rounds=rounds,
            sites=sites,
            dimension=dimension,
            noise_multiplier=noise,
            **rest,
        )

    def to_fields(self) -> dict[str, Any]:
        """Return the chosen fields, and the format, as a JSON object."""
        return {"format": FORMAT} | {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def to_json(self) -> str:
        """Return the canonical JSON (RFC 8785) of the chosen fields, on one line."""
        return rfc8785.dumps(self.to_fields()).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a plan.

        Raises:
            PlanError: not JSON, another format, a key that is unknown, missing or given twice, or a plan that the
                constructor refuses.

        Guarantees:
            ``Plan.from_json(plan.to_json()) == plan``, with the same hash.
        """
        try:
            data = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
        except ValueError as error:
            raise PlanError(f"the plan is not JSON: {error}") from error
        except RecursionError:
            raise PlanError("the plan is not JSON of a plan: it is nested too deeply") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise PlanError(f'the plan is not an object with "format": "{FORMAT}"')
        names = {f.name for f in fields(cls) if f.init}
        for what, keys in (("unknown", data.keys() - names), ("missing", names - data.keys())):
            if keys:
                raise PlanError(f"{what} keys in the plan: {', '.join(sorted(keys))}")
        return cls(**data)

    def explain(self) -> str:
        """Say on one page, in words, what is promised, against whom, and what is not."""
        who = "one record (one patient's row)" if self.unit == "record" else "one site, with everything it holds"
        how = {
            "add-remove": "is there or is not",
            "replace-one": "is replaced by any other",
            "zero-out": "takes part with its data or with zeros; who takes part is public",
        }[self.relation]
        planned = self.accounted_epsilon()
        odds = math.exp(min(planned.upper, 700.0))
        return f"""\
Privacy plan {self.hash[:16]}

Protected: {who}. Two data sets are neighbours when it {how}.
Promise: epsilon <= {as_text(planned.upper, 4)} at delta = {self.delta:g} after {self.rounds} rounds (the Rényi route says \
{as_text(planned.routes["rdp"], 4)}); the budget of the run is {self.epsilon:g}.
Against: the server and {self.colluders} colluding sites, who know their own noise. Computational: it rests on the \
masks, the sealing of shares and the noise generator.
Holds when: at least {self.sites - self.dropouts} of {self.sites} sites are in every sum. With fewer, the sites \
withhold their shares and the round ends without a sum.
In words: seeing the whole run multiplies the odds of any guess about the protected {self.unit} by at most {odds:.4g}, \
but for probability {self.delta:g}.

Each contribution of a {self.unit} is clipped to L2 norm {self.clip:g} on a grid of {self.grid} steps, at most \
{self.records_per_site} a site; one changes a sum by at most {self.sensitivity} steps.
Each site adds discrete Gaussian noise of {self.sigma_local:.6g} steps to each of {self.dimension} coordinates; the \
fewest honest survivors' together count as {self.sigma_star:.6g} steps, {self.noise_multiplier:.6g} times the sensitivity.
The decoded sum is divided by the public constant {self.divisor:g}.

Not covered: anything else that leaves a site (exact statistics, row counts, evaluation, baselines without privacy); \
the choice of settings on the same data; other runs on the same data, which the data set's ledger adds up; a person \
with records at several sites, who counts once for each; timing.
"""


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 53:
        raise PlanError(f"{name} = {value!r} is not an integer of at least {least}")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, refusing a key that is given twice: json's ``object_pairs_hook``."""
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
