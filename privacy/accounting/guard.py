"""What may be asked of the accountant: numbers that mean something, and units, relations and samplers that go together.

A question that has no sound answer is refused here, by name, before anything is computed.
"""

import math
from numbers import Real
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np

from privacy.errors import AccountingError

Unit = Literal["record", "client"]
Relation = Literal["add-remove", "zero-out", "replace-one"]
Sampling = Literal["poisson", "fixed"]

_MAX_COUNT: Final = 1 << 53  # a larger one is not a float


class Subsampled(NamedTuple):
    """T steps of a Gaussian mechanism on Poisson samples.

    Attributes:
        z: Standard deviation over what one unit can change.
        q: Sampling probability, in (0, 1].
        steps: T.
        replace_one: The relation; False for add-remove and zero-out.
    """

    z: float
    q: float
    steps: int
    replace_one: bool


class Question(NamedTuple):
    """What was asked, apart from the noise.

    Attributes:
        relation: The one that holds, also where it was left to the unit.
        sample_rate: Of each site's own coin.
        silos: k: at how many sites one unit's data may be.
        steps: T.
        poisson: Whether the coins are independent and secret, so that they count.
    """

    relation: Relation
    sample_rate: float
    silos: int
    steps: int
    poisson: bool

    def above(self, z: float) -> Subsampled:
        """A mechanism that no neighbours make easier to see through, for a noise multiplier of z.

        Data at k sites change the sum by up to k clip norms. If the sites flip coins of their own, the unit is in a
        step with probability ``1 - (1-q)**k``, and then counts k times at most: a map that shrinks and adds noise makes
        ``N(x)`` of ``N(k v)`` for every ``|x| <= k`` and leaves ``N(0)`` as it is, so one coin of that probability
        before k clip norms tells no less than the coins there are.
        """
        if self.sample_rate == 1 or not self.poisson:
            joint = 1.0
        elif self.silos == 1:
            joint = self.sample_rate
        else:
            joint = min(1.0, -math.expm1(self.silos * math.log1p(-self.sample_rate)) * (1 + 1e-15))
        return Subsampled(z / self.silos, joint, self.steps, self.relation == "replace-one")

    def below(self, z: float) -> Subsampled | None:
        """A mechanism that the question includes, so that its epsilon is a lower bound; None where none is known."""
        if not self.poisson and self.sample_rate < 1:
            return None
        if self.sample_rate == 1:
            return self.above(z)
        return Subsampled(z, self.sample_rate, self.steps, self.relation == "replace-one")  # all data at one site


def question(
    *, sample_rate: object, steps: object, unit: object, relation: object, sampling: object, silos: object
) -> Question:
    """Check a question.

    Raises:
        AccountingError: a number is not finite, out of range or of the wrong type, or the parts contradict each other.
    """
    q = rate("sample_rate", sample_rate)
    releases = count("steps", steps)
    sites = count("silos", silos)
    client = one_of("unit", unit, get_args(Unit)) == "client"
    poisson = one_of("sampling", sampling, get_args(Sampling)) == "poisson"
    if client and q < 1:
        raise AccountingError(
            f"sample_rate = {q} for the client unit: the signed cohort publishes who takes part, so clients are "
            "accounted at 1"
        )
    if client and sites > 1:
        raise AccountingError(f"silos = {sites} for the client unit: a client is one site; ask about the record")
    holds = _relation(relation, client=client, fixed=not poisson and q < 1)
    return Question(holds, q, sites, releases, poisson)


def _relation(relation: object, *, client: bool, fixed: bool) -> Relation:
    """The relation that holds, or a refusal where the one that was named cannot."""
    if relation is None:
        if fixed:
            raise AccountingError("sampling = 'fixed' needs a relation: zero-out or replace-one")
        return "zero-out" if client else "add-remove"
    each: Relation = one_of("relation", relation, get_args(Relation))
    if each == "add-remove" and client:
        raise AccountingError(
            "relation = 'add-remove' for the client unit: who takes part is public, so it is zero-out"
        )
    if each == "add-remove" and fixed:
        raise AccountingError(
            "relation = 'add-remove' for batches of a fixed size: when a record leaves, another takes its place; "
            "ask zero-out or replace-one"
        )
    return each


def one_of(name: str, value: object, choices: tuple[Any, ...]) -> Any:  # noqa: ANN401 - a literal type of the caller's
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise AccountingError(f"{name} = {_shown(value)} is none of {', '.join(choices)}")
    return value


def rate(name: str, value: object) -> float:
    """A probability in (0, 1]."""
    number = positive(name, value)
    if number > 1:
        raise AccountingError(f"{name} = {_shown(value)} is not in (0, 1]")
    return number


def count(name: str, value: object) -> int:
    """An integer from 1 to 2**53."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 1 <= value < _MAX_COUNT:
        raise AccountingError(f"{name} = {_shown(value)} is not an integer from 1 to 2**53")
    return int(value)


def probability(name: str, value: object) -> float:
    """A probability in (0, 1)."""
    number = positive(name, value)
    if number >= 1:
        raise AccountingError(f"{name} = {_shown(value)} is not in (0, 1)")
    return number


def positive(name: str, value: object) -> float:
    """A finite number above 0."""
    number = not_negative(name, value)
    if number == 0:
        raise AccountingError(f"{name} = {_shown(value)} is not positive")
    return number


def not_negative(name: str, value: object) -> float:
    """A finite number, not below 0."""
    # A bool is an int to Python; NaN fails every comparison, so the test is for what is right, not for what is wrong.
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise AccountingError(f"{name} = {_shown(value)} is not a number")
    try:
        number = float(value)
    except OverflowError:  # an integer or fraction, which may be larger than any float
        number = math.inf
    if not 0 <= number < math.inf:
        raise AccountingError(f"{name} = {_shown(value)} is negative or not finite")
    return number


def _shown(value: object) -> str:
    """The value in an error: Python refuses to print an integer of more than 4300 digits, and nobody reads one."""
    try:
        text = repr(value)
    except ValueError:
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= 80 else f"{text[:80]}..."
