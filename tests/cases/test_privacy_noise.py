"""The rows about where noise comes from, and that it has the law that is accounted."""

import copy
import inspect
import math
import os
import pickle
import random
import statistics
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest

from privacy import DiscreteGaussian, InputError, NoiseSource, PlanError, SamplerError, noise, sampling
from secagg.params import Block
from secagg.testing import simulate_round

LABEL = {"run": "run", "round": 0, "attempt": 0, "site": 0, "purpose": "update"}


def noisy_round(plan, params_of, updates, source=None):
    """Sites clip, encode and add their noise, the protocol adds up, the sum is decoded and divided: the mean, and the sum."""
    source, codec = source or NoiseSource(), plan.codec()
    block = Block("update", length=plan.length, bits=plan.bits, bound=plan.bound)
    inputs = {
        site: {
            "update": codec.encode_update(update)
            + source.share(plan.sigma_local, plan.length, **(LABEL | {"site": site}))
        }
        for site, update in enumerate(updates)
    }
    sums = simulate_round(params_of(plan.sites, [block], dropouts=plan.dropouts), inputs).sums["update"]
    return codec.decode(sums) / plan.divisor, sums


@pytest.mark.case("P7")
@pytest.mark.parametrize("divisor", [4.0, 1000.0])
def test_noise_is_in_the_sum_and_then_divided(plan_of, params_of, divisor):
    """The released mean, times the divisor, has the planned noise over the clip norm, whatever the sum is divided by."""
    plan = plan_of(
        unit="client", relation="zero-out", records_per_site=1, dimension=20_000, divisor=divisor, delta=1e-3, clip=3.0
    )
    mean, sums = noisy_round(plan, params_of, np.zeros((4, 20_000)))
    drawn = math.sqrt(4) * plan.sigma_local
    assert np.std(sums) == pytest.approx(drawn, rel=0.03)
    assert np.std(mean) * divisor == pytest.approx(drawn * 3.0 / plan.grid, rel=0.03)
    assert np.std(mean) * divisor / 3.0 > plan.noise_multiplier
    honest = plan.sites - plan.dropouts - plan.colluders
    assert np.std(mean) * divisor / 3.0 == pytest.approx(math.sqrt(4 / honest) * plan.noise_multiplier, rel=0.03)


@pytest.mark.case("P7")
def test_noise_on_the_mean_would_be_under_the_plan(plan_of):
    """A mean of floats, noised afterwards, has no way in: sums that are not integers are refused in decoding."""
    codec = plan_of().codec()
    with pytest.raises(InputError, match="float64, expected signed integers"):
        codec.decode(np.zeros(40))


@pytest.mark.case("P9")
def test_no_block_of_a_keystream_is_used_twice(monkeypatch):
    """Over sites, blocks, rounds, attempts, runs, widths and lengths every key is another, and within one no counter comes back."""
    used = []
    real = sampling._lane
    monkeypatch.setattr(
        sampling, "_lane", lambda key, lane, block=0: used.append((key, lane, block)) or real(key, lane, block)
    )
    source = NoiseSource(bytes)
    labels = [LABEL] + [
        LABEL | {name: value}
        for name, values in {
            "site": range(1, 20),
            "purpose": ["['bias']", "['kernel']", "count"],
            "round": range(1, 20),
            "attempt": range(1, 4),
            "run": ["other", "run0"],
        }.items()
        for value in values
    ]
    shares = [source.share(5000.5, 64, **label) for label in labels]
    keys = {key for key, _, _ in used}
    assert len(keys) == len(labels)
    for key in keys:
        opened = [(lane, block) for each, lane, block in used if each == key]
        assert len({lane for lane, block in opened if block == 0}) == len([1 for _, block in opened if block == 0]) == 4
    assert len({share.tobytes() for share in shares}) == len(labels)
    together = np.corrcoef(np.array(shares, np.float64))
    assert np.abs(together - np.eye(len(labels))).max() < 0.65


@pytest.mark.case("P9")
def test_the_same_noise_is_not_served_twice():
    """A label that comes again, for a second leaf say, is refused, also at another length; and there is no second holder."""
    source = NoiseSource()
    source.share(100.0, 10, **LABEL)
    for length in (10, 20):
        with pytest.raises(SamplerError, match=r"round 0, attempt 0, site 0, 'update' was drawn before"):
            source.share(100.0, length, **LABEL)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(SamplerError, match="two holders would draw the same noise"):
            duplicate(source)


@pytest.mark.case("P9")
def test_places_of_one_share_are_independent():
    """No two stretches of one share are alike: within a vector of all leaves the noise does not come back."""
    share = NoiseSource().share(100.0, 1 << 17, **LABEL).astype(np.float64)
    assert abs(share.std() / 100 - 1) < 0.02
    for lag in (1, 2, 8, 64, 1024, 1 << 15, 1 << 16):
        assert abs(np.corrcoef(share[lag:], share[:-lag])[0, 1]) < 0.03


@pytest.mark.case("P10")
def test_noise_is_seeded_by_256_bits_of_the_system(monkeypatch):
    """A source asks the operating system for 32 bytes, once, and takes no seed: a stopped clock and fixed seeds change nothing."""
    asked = []
    assert inspect.signature(NoiseSource).parameters["entropy"].default is os.urandom
    assert list(inspect.signature(NoiseSource).parameters) == ["entropy"]
    NoiseSource(lambda length: asked.append(length) or os.urandom(length))
    assert asked == [32]
    for clock in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"):
        monkeypatch.setattr(time, clock, lambda: 0)
    drawn = set()
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - what a user may have done
        drawn.add(NoiseSource().share(100.0, 50, **LABEL).tobytes())
    assert len(drawn) == 2


@pytest.mark.case("P10")
@pytest.mark.parametrize(
    "given", [b"", bytes(4), bytes(31), bytes(33), None, 0, "0" * 32, bytearray(32), [0] * 32], ids=repr
)
def test_less_entropy_is_refused(given):
    """What is not 32 bytes, 31 bits or a zero say, makes no source; nothing is filled up."""
    with pytest.raises(SamplerError, match="did not give 32 bytes"):
        NoiseSource(lambda _length: given)


@pytest.mark.case("P10")
def test_a_system_without_entropy_is_no_reason_for_less():
    """An error of the system comes through: there is no second source behind the first."""

    def broken(_length):
        raise NotImplementedError("/dev/urandom (or equivalent) not found")

    with pytest.raises(NotImplementedError):
        NoiseSource(broken)


@pytest.mark.case("P10")
@pytest.mark.parametrize("missing", ["cryptography", "cryptography.hazmat.primitives.ciphers"])
def test_a_missing_package_is_no_reason_for_less(missing):
    """Without the package that makes the keystream there is no noise, rather than noise from elsewhere."""
    code = f"import sys; sys.modules[{missing!r}] = None; from privacy.noise import NoiseSource; print(NoiseSource())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "ModuleNotFoundError" in result.stderr


@pytest.mark.case("P10")
def test_a_seed_for_tests_says_so():
    """The one source that can be repeated has "insecure" in its name, and says that it is not private."""
    assert not NoiseSource.insecure_test(7).private
    assert NoiseSource().private
    assert "private=False" in repr(NoiseSource.insecure_test(7))


@pytest.mark.case("P11")
@pytest.mark.parametrize("sigma", [8.5, 8.25, 10.4142])
def test_sigma_is_not_rounded(sigma):
    """The variance of the samples is that of sigma with its fraction, far from that of either whole number beside it."""
    samples = NoiseSource().share(sigma, 1_000_000, **LABEL)
    spread = sigma**2 * math.sqrt(2 / 1_000_000)
    assert abs(statistics.fmean((samples.astype(np.float64) ** 2).tolist()) - sigma**2) < 6 * spread
    assert min(abs(whole**2 - sigma**2) for whole in (math.floor(sigma), math.ceil(sigma))) > 20 * spread


@pytest.mark.case("P11")
@pytest.mark.parametrize("sigma", [8.1, 700.3, 5000.7, 123456.789, 99999999.9])
def test_tables_are_for_sigma_to_its_last_digit(monkeypatch, sigma):
    """At one table level and at two, their variances come to sigma squared exactly, as rational numbers."""
    built = []
    real = sampling._table
    monkeypatch.setattr(sampling, "_table", lambda variance: built.append(variance) or real(variance))
    sampling._levels.cache_clear()
    sampler = DiscreteGaussian(sigma)
    scales = [scale for scale, _ in sampler._levels]
    assert sampler.sigma == sigma
    assert sum(scale**2 * variance for scale, variance in zip(scales, built, strict=True)) == Fraction(sigma) ** 2


@pytest.mark.case("P11")
@pytest.mark.parametrize("noise_multiplier", [1.2345, 7.7])
def test_a_plan_accounts_for_the_noise_that_is_drawn(plan_of, noise_multiplier):
    """A plan's share is a real number, the sampler takes it as it is, and the accounted noise follows from it alone."""
    plan = plan_of(epsilon=None, noise_multiplier=noise_multiplier, bits=16)
    assert plan.sigma_local != round(plan.sigma_local)
    assert DiscreteGaussian(plan.sigma_local).sigma == plan.sigma_local
    assert plan.sigma_effective(4) == pytest.approx(math.sqrt(3 * plan.sigma_local**2 - 9), rel=1e-15)
    assert plan.sigma_effective(3) >= noise_multiplier * plan.sensitivity


FORKS = """
import multiprocessing, os
from privacy.noise import NoiseSource

LABEL = {"run": "run", "round": 0, "attempt": 0, "site": 0, "purpose": "update"}
source = NoiseSource()
source.share(100.0, 4, **(LABEL | {"round": 9}))
source.share(100.0, 4, **(LABEL | {"round": 8}))

def draw(label=LABEL):
    return source.share(100.0, 50, **label).tobytes().hex()

def in_child(task):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, task().encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return pipe.read()

def with_grandchild():
    return draw() + "\\n" + in_child(draw)

print(in_child(with_grandchild))
print(in_child(draw))
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.apply(draw))
print(in_child(lambda: draw(LABEL | {"round": 9})))
print(draw())
"""


@pytest.mark.case("P18")
def test_forks_draw_noise_of_their_own():
    """A process forks after it has used its source: parent, children, a grandchild and a pool's worker all draw other noise."""
    result = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True)
    drawn = result.stdout.split()
    assert [len(each) for each in drawn] == [800] * 6
    assert len(set(drawn)) == 6


@pytest.mark.case("P18")
@pytest.mark.parametrize("sign", ["getpid", "_forks"])
def test_a_fork_shows_in_two_ways(monkeypatch, sign):
    """A child that has its parent's number, or was forked behind Python's back, draws fresh entropy all the same."""
    asked = []
    source = NoiseSource(lambda length: asked.append(length) or os.urandom(length))
    if sign == "getpid":
        monkeypatch.setattr(noise.os, "getpid", lambda: -1)
    else:
        monkeypatch.setattr(noise, "_forks", noise._forks + 1)
    source.share(100.0, 4, **LABEL)
    source.share(100.0, 4, **(LABEL | {"round": 1}))
    assert asked == [32, 32]


@pytest.mark.case("P11")
@pytest.mark.parametrize("sigma", [0.0, 7.999, math.nan, math.inf, 1.1e8, -10.0])
def test_a_sigma_that_cannot_be_drawn_is_refused(plan_of, sigma):
    """Where the sampler has no such law it says so; it draws from no other."""
    with pytest.raises(SamplerError, match="sigma"):
        NoiseSource().share(sigma, 10, **LABEL)
    with pytest.raises(PlanError, match=r"sigma_local|noise_multiplier|no grid fits"):
        plan_of(epsilon=None, noise_multiplier=sigma / (1 << 20) if sigma < 10 else sigma, bits=32)
