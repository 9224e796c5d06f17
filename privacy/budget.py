"""A filter over adaptively chosen releases: it says no before the release, not after.

While every sum of ``mu**2`` stays within what one Gaussian of (epsilon, delta) has, the whole adaptive sequence is
(epsilon, delta)-DP, and no filter can allow more [ST22], a filter in the sense of [RRUV16].

Releases on Poisson samples are no Gaussians. A sum of Rényi divergences at one order is a filter for both [FZ21], where the
order was fixed before anything was released: an order that is chosen afterwards, for each outcome its own, bounds none of
them. A divergence D at order a is counted as ``mu**2 = 2 D / a``, which is that of the Gaussian with this divergence.
"""

import math
import sys
from dataclasses import dataclass, field

from privacy.accounting.gaussian import RDP_ORDERS, as_text, closed_form, largest_mu_squared, with_sampler
from privacy.accounting.releases import order_room
from privacy.errors import BudgetExceededError, PlanError


def add_upward(spent: float, change: float) -> float:
    """Add, and round up: a spend too small for the last digit still counts, so many of them cannot pass unseen.

    Guarantees:
        The result is at least the exact sum, and larger than ``spent`` for every change above 0.
    """
    return math.nextafter(spent + change, math.inf) if change else spent


@dataclass(frozen=True)
class Budget:
    """What may be spent, in computational differential privacy against whoever sees the sums.

    Args:
        epsilon: Positive.
        delta: In (0, 1).
        sampler_delta: Total variation distance of all the noise that will ever be drawn from its ideal law; paid out
            of delta as ``(1 + exp(epsilon)) sampler_delta``.
        order: None for Gaussians, exactly. An order of `RDP_ORDERS` for releases on Poisson samples too: what is
            counted then is 2 / order times the Rényi divergence at it, which for a Gaussian is mu**2.

    Attributes:
        mu_squared: The largest sum of (sensitivity / standard deviation)**2, or of what counts as it, that the budget
            allows.

    Raises:
        PlanError: an argument is out of range, or the sampler alone may cost delta.
        AccountingError: epsilon is so small or so large that float64 has no answer.

    Guarantees:
        Whatever `check` lets through stays within (epsilon, delta), also when noise is chosen after seeing results.
        Once `mu_squared` is spent nothing passes, however small.
    """

    epsilon: float
    delta: float
    sampler_delta: float = 0.0
    order: int | None = None
    mu_squared: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        most = sys.float_info.max
        for name, value, end in (
            ("epsilon", self.epsilon, math.inf),
            ("delta", self.delta, 1.0),
            ("sampler_delta", self.sampler_delta + math.ulp(0.0), 1.0),
        ):
            # Not only below infinity: an integer may be larger than any float.
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < end or value > most:
                raise PlanError(f"{name} = {getattr(self, name)!r} of a budget is not in (0, {end:g})")
        left = self.delta
        if self.sampler_delta:
            # Beyond epsilon = 700 the exponential overflows, and the sampler's part is above any delta long before.
            left -= (1 + math.exp(min(self.epsilon, 700.0))) * self.sampler_delta
        if left <= 0:
            raise PlanError(
                f"at epsilon = {self.epsilon} the noise sampler alone may cost more than delta = {self.delta}"
            )
        object.__setattr__(self, "mu_squared", self._most(left))

    def _most(self, delta: float) -> float:
        if self.order is None:
            return largest_mu_squared(float(self.epsilon), delta)
        if self.order not in RDP_ORDERS:
            raise PlanError(
                f"order = {self.order!r} of a budget is none of those that are accounted, 2 to 64, 128, 256, 512"
            )
        room = order_room(self.order, float(self.epsilon), delta)
        if room <= 0:
            raise PlanError(f"epsilon = {self.epsilon} at delta = {self.delta} has no room at Rényi order {self.order}")
        return 2 * room / self.order

    def check(self, spent_mu_squared: float, next_mu_squared: float) -> None:
        """Return if the next release fits.

        Args:
            spent_mu_squared: Sum over what was released, and over what may have been.
            next_mu_squared: (sensitivity / standard deviation)**2 of the next release, positive.

        Raises:
            BudgetExceededError: it does not fit; nothing was spent.
            PlanError: an argument is not a finite number, or the next release is not positive.
        """
        spent, coming = spent_mu_squared, next_mu_squared
        if not 0 <= spent < math.inf or not 0 < coming < math.inf:  # NaN fails too
            raise PlanError(f"a release of mu**2 = {coming} after {spent} cannot be booked")
        # The rounded sum, not spent + coming: a release that rounding swallows must not pass.
        total = add_upward(spent, coming)
        if total > self.mu_squared:
            would = with_sampler(lambda delta: self._epsilon(total, delta), self.delta, self.sampler_delta)
            raise BudgetExceededError(
                f"the next release would bring epsilon to {as_text(would)} at delta = {self.delta:g}; the budget is "
                f"{self.epsilon:g} (mu**2: {spent:.9g} spent, {coming:.9g} asked, {self.mu_squared:.9g} allowed)"
            )

    def _epsilon(self, total: float, delta: float) -> float:
        if self.order is None:
            return closed_form(total, delta)
        return max(0.0, self.epsilon + self.order * total / 2 - order_room(self.order, self.epsilon, delta))
