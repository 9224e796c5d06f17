"""What does a whole secure-aggregation round cost, beside the bare masking that no protocol can avoid?

The floor is the keystreams and additions alone, measured in the same run: n clients that each mask with n streams, and a server
that takes n self masks off. Everything above it is keys, shares, signatures and frames.
"""

import statistics
import time
import warnings

import numpy as np

from secagg import Block, RoundParams
from secagg.crypto import prg
from secagg.params import SlackWarning
from secagg.testing import simulate_round

CASES = [
    (4, 1_000, "hybrid", 0),
    (10, 100_000, "hybrid", 0),
    (10, 1_000_000, "hybrid", 0),
    (10, 1_000_000, "hybrid", 3),
    (10, 1_000_000, "classical", 0),
]


def floor(n: int, d: int) -> float:
    """Seconds of n + 1 masking passes with n streams each."""
    words = np.zeros(d, np.uint32)
    keys = [(bytes([i % 256] * 32), False) for i in range(n)]
    start = time.perf_counter()
    for _ in range(n + 1):
        prg.add_streams(words, keys)
    return time.perf_counter() - start


def main() -> None:
    """Print one table."""
    warnings.simplefilter("ignore", SlackWarning)
    print(
        f"{'n':>4} {'d':>9} {'suite':<10} {'silent':>6} {'client ms':>10} {'server ms':>10} {'MB up/client':>13} {'round / floor':>14}"
    )
    for n, d, suite, drop in CASES:
        params = RoundParams(cohort=tuple(range(n)), blocks=(Block("update", d, 32, 2**20),), suite=suite)
        x = np.random.default_rng(0).integers(-(2**20), 2**20, d)
        inputs = {i: {"update": x} for i in range(n)}
        drops = dict.fromkeys(range(n - drop, n), "mask")
        simulate_round(params, inputs, drops)
        walls, outs, floors = [], [], []
        for _ in range(5):
            start = time.perf_counter()
            outs.append(simulate_round(params, inputs, drops))
            walls.append(time.perf_counter() - start)
            floors.append(floor(n, d))
        client = statistics.median(sum(o.seconds["client"].values()) for o in outs)
        server = statistics.median(sum(o.seconds["server"].values()) for o in outs)
        upload = sum(outs[-1].bytes_up.values()) / n / 1e6
        ratio = statistics.median(w / f for w, f in zip(walls, floors, strict=True))
        print(
            f"{n:>4} {d:>9} {suite:<10} {drop:>6} {1e3 * client:>10.1f} {1e3 * server:>10.1f} {upload:>13.2f} {ratio:>14.1f}"
        )


if __name__ == "__main__":
    main()
