"""What does a site's noise cost, and how far is the sampler from the least that any table sampler does?

Run ``python benchmarks/noise.py`` from the repository root. Times are the best of seven, one thread, warm tables.
The floor is one AES-256-CTR keystream of 8 MB and one ``searchsorted`` of 10**6 words in a table of 6 700 entries.
The OpenDP figure was measured apart from this run, on two shared cores with version 0.16.
"""

import itertools
import platform
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privacy import sampling
from privacy.codec import GridCodec
from privacy.noise import NoiseSource
from privacy.sampling import DiscreteGaussian

COUNT = 1_000_000
KEY = bytes(range(32))
OPENDP_S = 20.0


def best(job: Callable[[], object], repeats: int = 7) -> float:
    """Time the quickest of several runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return min(times)


def keystream() -> bytes:
    """Expand 8 MB of AES-256-CTR."""
    return Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(8 * COUNT))


def build(sigma: float) -> float:
    """Time the tables of one sigma from nothing, in seconds."""
    sampling._levels.cache_clear()  # noqa: SLF001 - the cost that the cache hides is what is asked for
    return best(lambda: DiscreteGaussian(sigma), repeats=1)


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    words = np.frombuffer(keystream(), dtype="<u8")
    entries = np.sort(rng.integers(0, 2**64, 6_700, dtype=np.uint64))
    floor = best(keystream) + best(lambda: np.searchsorted(entries, words, side="right"))
    rows: list[tuple[str, float, float | None]] = [("floor: keystream + one searchsorted", floor, None)]
    for sigma in (10.0, 1e3, 1e6, 1e8):
        built = build(sigma)
        rows.append(
            (f"10^6 samples, sigma = {sigma:g}", best(partial(DiscreteGaussian(sigma).sample, KEY, COUNT)), built)
        )
    update = rng.standard_normal(COUNT).astype(np.float32)
    codec = GridCodec(1.0, 2**20, COUNT)
    rows.append(("encode, d = 10^6", best(lambda: codec.encode_update(update)), None))
    source, rounds = NoiseSource(), itertools.count()

    def encode_and_noise() -> None:
        encoded = codec.encode_update(update)
        encoded += source.share(1e6, COUNT, run="benchmark", round=next(rounds), attempt=0, site=0, purpose="update")

    rows.append(("encode + noise, d = 10^6, sigma = 1e+06", best(encode_and_noise), None))
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"{'':42}{'ms':>8}{'/ floor':>9}{'OpenDP /':>10}{'build ms':>10}")
    for name, seconds, tables in rows:
        ratio = f"{OPENDP_S / seconds:9.0f}x" if "samples" in name else f"{'':10}"
        build_ms = "" if tables is None else f"{1e3 * tables:10.1f}"
        print(f"{name:42}{1e3 * seconds:8.1f}{seconds / floor:9.2f}{ratio}{build_ms}")


if __name__ == "__main__":
    main()
