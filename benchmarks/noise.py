"""What does a site's noise cost, beside an exact sampler in Python, OpenDP's, and the least that any table sampler does?

Run ``python benchmarks/noise.py`` from the repository root; OpenDP takes part where it is installed (``pip install opendp``).
Everything is timed in this one process and on one thread. Our times are the best of several runs of 10**6 samples; the first
draw of a sigma, which builds its tables, stands beside them. The other samplers take so long that they draw fewer, once, and
their time is scaled to 10**6. The floor is one AES-256-CTR keystream of 8 MB and one ``searchsorted`` of 10**6 words in a
table of 6 700 entries.

Sources: [CKS20] for the exact sampler, Algorithms 1 to 3.
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import platform
import secrets
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privacy import sampling
from privacy.codec import GridCodec
from privacy.noise import NoiseSource
from privacy.sampling import DiscreteGaussian

COUNT = 1_000_000
KEY = bytes(range(32))
SIGMAS = (8.0, 20.0, 1e3, 1e5, 1.5e7, 1e8)
TARGET_S = 0.2


def seconds(job: Callable[[], object], repeats: int = 1) -> float:
    """Time the quickest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return min(times)


def bernoulli(chance: Fraction) -> bool:
    """Toss a coin with a rational chance."""
    return secrets.randbelow(chance.denominator) < chance.numerator


def bernoulli_exp(gamma: Fraction) -> bool:
    """Toss a coin with chance exp(-gamma), exactly. [CKS20] Algorithm 1."""
    while gamma > 1:
        if not bernoulli_exp(Fraction(1)):
            return False
        gamma -= 1
    k = 1
    while bernoulli(gamma / k):
        k += 1
    return k % 2 == 1


def exact_laplace(scale: int) -> int:
    """Draw from the discrete Laplace law of an integer scale, exactly. [CKS20] Algorithm 2."""
    while True:
        low = secrets.randbelow(scale)
        if not bernoulli_exp(Fraction(low, scale)):
            continue
        high = 0
        while bernoulli_exp(Fraction(1)):
            high += 1
        magnitude, negative = low + scale * high, secrets.randbits(1)
        if magnitude or not negative:
            return -magnitude if negative else magnitude


def exact_gaussian(variance: Fraction) -> int:
    """Draw from the discrete Gaussian law of a rational variance, exactly. [CKS20] Algorithm 3."""
    scale = math.isqrt(math.floor(variance)) + 1
    while True:
        candidate = exact_laplace(scale)
        if bernoulli_exp((abs(candidate) - variance / scale) ** 2 / (2 * variance)):
            return candidate


def exact_python(sigma: float, count: int) -> float:
    """Time 10**6 samples of the exact sampler, from fewer."""
    variance = Fraction(sigma) ** 2
    return seconds(lambda: [exact_gaussian(variance) for _ in range(count)]) * COUNT / count


def opendp(sigma: float, count: int) -> float | None:
    """Time 10**6 samples of OpenDP's vector mechanism, from fewer; None where it is not installed."""
    try:
        import opendp.prelude as dp  # noqa: PLC0415 - optional
    except ImportError:
        return None
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    mechanism, zeros = dp.m.make_gaussian(*space, scale=sigma), [0] * count
    return seconds(lambda: mechanism(zeros)) * COUNT / count


def keystream() -> bytes:
    """Expand 8 MB of AES-256-CTR."""
    return Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(8 * COUNT))


def floor_seconds() -> float:
    """Time what every table sampler does at least."""
    words = np.frombuffer(keystream(), dtype="<u8")
    entries = np.sort(np.random.default_rng(0).integers(0, 2**64, 6_700, dtype=np.uint64))
    return seconds(keystream, 7) + seconds(lambda: np.searchsorted(entries, words, side="right"), 7)


def sampler_row(sigma: float, floor: float, others: int) -> dict[str, Any]:
    """Time one sigma by all samplers, in milliseconds for 10**6 samples."""
    sampling._levels.cache_clear()  # noqa: SLF001 - the cost that the cache hides is asked for
    first = seconds(lambda: DiscreteGaussian(sigma).sample(KEY, COUNT))
    ours = seconds(partial(DiscreteGaussian(sigma).sample, KEY, COUNT), 7)
    python, library = exact_python(sigma, max(1, others // 50)), opendp(sigma, others)
    return {
        "what": "10^6 samples",
        "sigma": sigma,
        "ms": 1e3 * ours,
        "first_draw_ms": 1e3 * first,
        "over_floor": ours / floor,
        "exact_python_ms": 1e3 * python,
        "exact_python_over_ours": python / ours,
        "opendp_ms": None if library is None else 1e3 * library,
        "opendp_over_ours": None if library is None else library / ours,
        "target_ms": 1e3 * TARGET_S,
        "met": max(first, ours) <= TARGET_S,
        "met_warm": ours <= TARGET_S,
    }


def site_rows() -> list[dict[str, Any]]:
    """Time what a site does to an update of 10**6 coordinates: encode, and encode with its noise share."""
    update = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)
    codec, source, rounds = GridCodec(1.0, 2**20, COUNT), NoiseSource(), itertools.count()

    def encode_and_noise() -> None:
        encoded = codec.encode_update(update)
        encoded += source.share(1.5e7, COUNT, run="benchmark", round=next(rounds), attempt=0, site=0, purpose="update")

    return [
        {"what": "encode, d = 10^6", "ms": 1e3 * seconds(lambda: codec.encode_update(update), 7)},
        {"what": "encode + noise, d = 10^6, sigma = 1.5e+07", "ms": 1e3 * seconds(encode_and_noise, 7)},
    ]


def machine() -> dict[str, Any]:
    """Say where, and with which versions, this ran."""
    try:
        library: str | None = importlib.metadata.version("opendp")
    except importlib.metadata.PackageNotFoundError:
        library = None
    return {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cryptography": importlib.metadata.version("cryptography"),
        "opendp": library,
    }


def show(row: dict[str, Any]) -> str:
    """One line of the table."""
    if "sigma" not in row:
        return f"{row['what']:48}{row['ms']:8.1f}"
    ratio = (
        "not run" if row["opendp_ms"] is None else f"{row['opendp_ms'] / 1e3:7.1f} s = {row['opendp_over_ours']:.0f}x"
    )
    exact = f"{row['exact_python_ms'] / 1e3:7.1f} s = {row['exact_python_over_ours']:.0f}x"
    name = f"{row['what']}, sigma = {row['sigma']:g}"
    return f"{name:48}{row['ms']:8.1f}{row['first_draw_ms']:9.1f}{row['over_floor']:9.2f}{exact:>20}{ratio:>20}"


def main() -> None:
    """Print the table, or one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--others", type=int, default=50_000, help="samples that OpenDP draws; exact Python a fiftieth")
    chosen = parser.parse_args()
    where, floor = machine(), floor_seconds()
    if chosen.json:
        print(json.dumps({"what": "floor: keystream + one searchsorted", "ms": 1e3 * floor} | where))
    else:
        print(", ".join(f"{name} {'not installed' if value is None else value}" for name, value in where.items()))
        print(f"{'':48}{'ms':>8}{'first':>9}{'/ floor':>9}{'exact Python / ours':>20}{'OpenDP / ours':>20}")
        print(f"{'floor: keystream + one searchsorted':48}{1e3 * floor:8.1f}{'':9}{1:9.2f}")
    for row in itertools.chain((sampler_row(sigma, floor, chosen.others) for sigma in SIGMAS), site_rows()):
        print(json.dumps(row) if chosen.json else show(row), flush=True)


if __name__ == "__main__":
    main()
