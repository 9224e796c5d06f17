"""From a site's floats to the integers that leave it, and from their sum to the mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fl.algorithms.base import Contribution, Int64, Mean
from fl.algorithms.training import Upload
from fl.errors import ConfigError, RoundFailedError
from fl.model import Vector
from privacy.adaptive import AdaptiveCodec
from privacy.codec import FixedPoint
from privacy.errors import InputError
from privacy.plan import Plan
from secagg.params import Block

# The largest mean loss that a site can report, and its fraction bits: 2^40 steps, beside weights up to 2^22.
LOSS = FixedPoint(limit=2.0**20, fraction_bits=20, dimension=1)


@dataclass(frozen=True)
class SiteUpdate:
    """What a site's training gave, in NumPy.

    Attributes:
        delta: (d,) floats: its change of the parameters, or another upload.
        weight: Its number of records.
        loss: Its mean training loss.
        extra: (d,) further vectors that are summed, by block name.
    """

    delta: npt.NDArray[np.floating]
    weight: int
    loss: float
    extra: Mapping[str, npt.NDArray[np.floating]] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightedEncoding:
    """Exact integers without privacy: blocks update (d,), weight (1,) and loss (1,), all times the number of records.

    Attributes:
        layout: (leaf name, entries) in vector order, for error messages.
        values: Fixed point of the upload.
        max_weight: The public cap on a site's number of records.
        upload: What is uploaded.
        extra: Names of further vectors (d,).
        uniform: Every site that has records counts as one, however many they are.
    """

    layout: tuple[tuple[str, int], ...]
    values: FixedPoint
    max_weight: int
    upload: Upload = "delta"
    extra: tuple[str, ...] = ()
    uniform: bool = False

    @property
    def heaviest(self) -> int:
        """The largest factor of an update."""
        return 1 if self.uniform else self.max_weight

    def blocks(self, sites: int) -> tuple[Block, ...]:
        """The blocks of a round of `sites`; the update takes the fewest bits that cannot wrap."""
        update = self.values.bound * self.heaviest
        loss = LOSS.bound * self.heaviest
        bits = (sites * update).bit_length() + 1
        if bits > 64 or (sites * loss).bit_length() > 63:
            raise ConfigError(
                f"algorithm.limit {self.values.limit} x 2^{self.values.fraction_bits} x max_weight {self.heaviest} "
                f"x {sites} sites takes {bits} bits, and a block has at most 64: lower algorithm.limit, fraction_bits or max_weight"
            )
        return (
            Block("update", length=self.values.dimension, bits=bits, bound=update),
            *(Block(name, length=self.values.dimension, bits=bits, bound=update) for name in self.extra),
            Block("weight", length=1, bits=64, bound=self.heaviest),
            Block("loss", length=1, bits=64, bound=loss),
        )

    def encode(self, update: SiteUpdate, clip: float | None = None) -> Contribution:  # noqa: ARG002 - nothing is clipped
        """Raises privacy's InputError for a value that is not finite or beyond the limit, naming its leaf; or a negative weight."""
        if update.weight < 0:
            raise InputError(f"weight {update.weight} is negative")
        weight = np.int64(min(update.weight, 1) if self.uniform else update.weight)
        return {
            "update": self.values.encode(update.delta, self.layout) * weight,
            **{name: self.values.encode(update.extra[name], self.layout) * weight for name in self.extra},
            "weight": np.array([weight]),
            "loss": LOSS.encode(np.array([update.loss]), (("training loss", 1),)) * weight,
        }

    def decode(self, sums: Mapping[str, Int64], clip: float | None = None) -> Mean:  # noqa: ARG002 - as above
        """Decode the sum, then divide: the exact weighted mean of the fixed-point values."""
        weight = int(sums["weight"][0])
        if weight < 0:
            raise RoundFailedError(
                f"the weights of the sites in the sum add up to {weight}: one of them sent a negative one"
            )
        if weight == 0:
            return Mean(None, weight=0)
        loss = float(LOSS.decode(sums["loss"])[0]) / weight
        extra = {name: self.values.decode(sums[name]) / weight for name in self.extra}
        return mean_of(self.upload, self.values.decode(sums["update"]) / weight, weight=weight, loss=loss, extra=extra)


@dataclass(frozen=True)
class ClippedEncoding:
    """Client-level privacy: the clipped upload alone, at weight 1; the loss and the count stay on the site.

    Attributes:
        layout: (leaf name, entries) in vector order, for error messages.
        plan: The plan, which clips.
        upload: "delta" or "gradient".

    Raises:
        ConfigError: parameters are uploaded, which no clip norm fits.
    """

    layout: tuple[tuple[str, int], ...]
    plan: Plan
    upload: Upload = "delta"

    def __post_init__(self) -> None:
        if self.upload == "parameters":
            raise ConfigError('algorithm.upload: "parameters" do not fit a clip norm; take "delta" or "gradient"')

    def encode(self, update: SiteUpdate, clip: float | None = None) -> Contribution:
        """Raises privacy's InputError for a value that is not finite, naming its leaf."""
        return {"update": self.plan.codec(clip).encode_update(update.delta, self.layout)}

    def decode(self, sums: Mapping[str, Int64], clip: float | None = None) -> Mean:
        """Decode, then divide by the plan's public constant."""
        mean, bits = clipped_mean(self.plan, sums["update"], clip)
        return mean_of(self.upload, mean, bits=bits)


def clipped_mean(plan: Plan, total: Int64, clip: float | None) -> tuple[Vector, float | None]:
    """The sum of clipped contributions, decoded with the clip norm that made them, over the plan's public constant.

    Returns:
        (d,) the mean, and the count of those within the clip norm where that adapts.
    """
    codec = plan.codec(clip)
    bits = codec.bits(total) if isinstance(codec, AdaptiveCodec) else None
    return codec.decode(total) / plan.divisor, bits


def mean_of(upload: Upload, value: Vector, **rest: Any) -> Mean:  # noqa: ANN401 - fields of `Mean`
    """The mean (d,) of what was uploaded; a change is the gradient's opposite."""
    if upload == "parameters":
        return Mean(None, parameters=value, **rest)
    return Mean(value if upload == "gradient" else -value, **rest)
