import copy
import itertools
import math
import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from privacy import noise
from privacy.errors import PlanError, SamplerError
from privacy.noise import NoiseSource, sigma_effective, sigma_local

LABEL = {"run": "run", "round": 3, "attempt": 0, "site": 1, "purpose": "update"}


def gaussian_delta(epsilon, shift, sigma):
    """Closed-form delta(epsilon) of the continuous Gaussian mechanism. [BW18], Theorem 8."""
    mu = shift / sigma
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def mass(sigma, reach):
    """Mass function of the discrete Gaussian on -reach..reach."""
    k = np.arange(-reach, reach + 1)
    weight = np.exp(-0.5 * (k / sigma) ** 2)
    return weight / weight.sum()


def sum_mass(sigma, count):
    """Mass function of the sum of ``count`` independent discrete Gaussians."""
    single = mass(sigma, math.ceil(13 * sigma))
    total = single
    for _ in range(count - 1):
        total = np.convolve(total, single)
    return total


def exact_delta(epsilon, shift, law):
    """Hockey-stick divergence of a law from itself moved by an integer; the law is symmetric, so once is enough."""
    pad = np.zeros(shift)
    return float(np.maximum(np.append(pad, law) - math.exp(epsilon) * np.append(law, pad), 0.0).sum())


def exact_epsilon(delta, shift, law):
    """The epsilon at which the exact profile passes delta."""
    return brentq(lambda epsilon: exact_delta(epsilon, shift, law) - delta, 0.0, 60.0, xtol=1e-13)


def gaussian_epsilon(delta, shift, sigma):
    """The epsilon at which the Gaussian profile passes delta."""
    return brentq(lambda epsilon: gaussian_delta(epsilon, shift, sigma) - delta, 0.0, 400.0, xtol=1e-13)


# Exact epsilons of sums of discrete Gaussians: (summands, sigma each, shift, delta, epsilon). The first ten come from
# a double-precision convolution of the mass functions, the last three from 30-digit arithmetic; both were made with
# programs other than this package.
EXACT = [
    (1, 1.0, 1, 1e-5, 4.430238055279412),
    (3, 0.4, 1, 1e-5, 8.123594535348666),
    (3, 1.0, 1, 1e-5, 2.372402625701443),
    (3, 1.0, 2, 1e-5, 5.222755237796031),
    (10, 0.5, 1, 1e-5, 2.4562118760560634),
    (10, 1.0, 1, 1e-5, 1.204547757520149),
    (10, 3.0, 10, 1e-5, 4.651866164996593),
    (5, 2.0, 4, 1e-5, 3.8467642166804286),
    (20, 10.0, 40, 1e-5, 3.8486965159484714),
    (5, 10.0, 20, 1e-5, 3.848592044301488),
    (1, 10.0, 10, 1e-6, 4.885739309321391),
    (1, 20.0, 20, 1e-6, 4.886797604440716),
    (1, 100.0, 25, 1e-6, 1.0607021943057582),
]


@pytest.mark.parametrize(("count", "sigma", "shift", "delta", "epsilon"), EXACT)
def test_exact_profiles_match_the_reference_and_stay_under_the_bound(count, sigma, shift, delta, epsilon):
    """The exact epsilon is the published one and below that of the Gaussian we account; sigma < 8 is refused."""
    law = sum_mass(sigma, count)
    assert exact_epsilon(delta, shift, law) == pytest.approx(epsilon, rel=2e-8)
    if sigma < 8:
        with pytest.raises(PlanError, match="finer grid"):
            sigma_effective(sigma, survivors=count, colluders=0)
    else:
        bound = gaussian_epsilon(delta, shift, sigma_effective(sigma, survivors=count, colluders=0))
        assert epsilon < bound


def test_the_naive_claim_under_reports():
    """A continuous Gaussian of the same variance is not a bound: these exact epsilons lie above it."""
    for count, sigma, shift, delta, epsilon in (EXACT[0], EXACT[8], EXACT[12]):
        assert epsilon > gaussian_epsilon(delta, shift, math.sqrt(count) * sigma) + 1e-8


@pytest.mark.parametrize("sigma", [8.0, 8.5, 10.0, 13.7, 20.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_reduction_holds_along_the_whole_profile(sigma, count):
    """At every epsilon, delta of the sum of discrete Gaussians is at most that of a Gaussian with variance - 9."""
    law = sum_mass(sigma, count)
    effective = sigma_effective(sigma, survivors=count + 1, colluders=1)
    for shift, epsilon in itertools.product((1, 3, round(sigma), round(4 * sigma)), np.linspace(0.0, 12.0, 60)):
        exact = exact_delta(float(epsilon), shift, law)
        # 1e-14 is the rounding of the sums above, whose terms are at most 1
        assert exact <= gaussian_delta(float(epsilon), shift, effective) + 1e-14


def test_the_profile_check_sees_too_small_a_correction():
    """The comparison above fails for the same variance without the 9, so it can tell them apart."""
    law = sum_mass(8.0, 1)
    excess = [
        exact_delta(float(epsilon), 8, law) - gaussian_delta(float(epsilon), 8, 8.0)
        for epsilon in np.linspace(0.0, 12.0, 60)
    ]
    assert max(excess) > 1e-6


@settings(max_examples=300, deadline=None)
@given(
    st.floats(20.0, 1e7),
    st.integers(1, 100),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_the_floor_reaches_the_noise_that_was_asked_for(sigma_star, honest, dropouts, colluders):
    """With the most dropouts and colluders that the plan allows, the honest noise is at least sigma_star (P17)."""
    sites = honest + dropouts + colluders
    assume(math.sqrt((sigma_star**2 + 9) / honest) > 8.0001)
    share = sigma_local(sigma_star, sites=sites, dropouts=dropouts, colluders=colluders)
    assert share == pytest.approx(math.sqrt((sigma_star**2 + 9) / honest), rel=1e-12)
    floor = sigma_effective(share, survivors=sites - dropouts, colluders=colluders)
    assert sigma_star <= floor <= sigma_star * (1 + 1e-12)
    assert sigma_effective(share, survivors=sites, colluders=colluders) >= floor


@pytest.mark.parametrize(
    ("sigma_star", "sites", "dropouts", "colluders", "message"),
    [
        (100.0, 3, 1, 2, "3 sites, 1 dropouts and 2 colluders"),
        (100.0, 3, -1, 0, "3 sites"),
        (10.0, 4, 0, 0, "finer grid"),
        (3e8, 2, 0, 0, "coarser grid"),
        (1e200, 2, 0, 0, "coarser grid"),
        (0.0, 4, 0, 0, "not positive and finite"),
        (math.nan, 4, 0, 0, "not positive and finite"),
        (math.inf, 4, 0, 0, "not positive and finite"),
    ],
)
def test_a_share_that_cannot_be_proved_is_refused(sigma_star, sites, dropouts, colluders, message):
    """Nobody honest at the floor, a share outside [8, 1e8], a sigma that is no number: refused with the numbers."""
    with pytest.raises(PlanError, match=message):
        sigma_local(sigma_star, sites=sites, dropouts=dropouts, colluders=colluders)


def test_survivors_must_outnumber_colluders():
    """The realised noise is undefined when only colluders survive."""
    assert sigma_effective(8.0, survivors=2, colluders=1) == math.sqrt(55)
    with pytest.raises(PlanError, match="1 survivors with 1 colluders"):
        sigma_effective(8.0, survivors=1, colluders=1)


def test_a_share_is_int64_of_the_length_asked_and_within_the_tail():
    """Shape, dtype and the clamp that the plan's room counts on; length 0 is valid."""
    drawn = NoiseSource().share(12.5, 1000, **LABEL)
    assert drawn.dtype == np.int64
    assert drawn.shape == (1000,)
    assert np.abs(drawn).max() <= math.floor(13 * 12.5)
    assert NoiseSource().share(12.5, 0, **LABEL).shape == (0,)


CHANGES = [{"run": "r"}, {"run": ""}, {"round": 4}, {"attempt": 1}, {"site": 2}, {"site": 2**64 - 1}, {"purpose": "x"}]


def test_every_part_of_the_label_is_in_the_key():
    """Changing the run, round, attempt, site, purpose, sigma or length changes the keystream (P9)."""
    source = NoiseSource(lambda length: bytes(range(length)))
    shares = [source.share(50.0, 64, **(LABEL | change)) for change in [{}, *CHANGES]]
    again = NoiseSource(lambda length: bytes(range(length)))
    shares.append(again.share(math.nextafter(50.0, 51.0), 64, **LABEL))
    again = NoiseSource(lambda length: bytes(range(length)))
    shares.append(again.share(50.0, 65, **LABEL)[:64])
    again = NoiseSource(lambda length: bytes(range(length)))
    shares.append(again.share(50.0, 64, **(LABEL | {"run": "runu", "purpose": "pdate"})))
    assert len({share.tobytes() for share in shares}) == len(CHANGES) + 4


def test_a_share_is_served_once():
    """Asking again for the same label is refused, whatever the sigma or length, and a failed request spends nothing."""
    source = NoiseSource()
    with pytest.raises(SamplerError, match="sigma"):
        source.share(1.0, 10, **LABEL)
    with pytest.raises(SamplerError, match="length = -1"):
        source.share(10.0, -1, **LABEL)
    source.share(10.0, 10, **LABEL)
    for sigma, length in ((10.0, 10), (11.0, 10), (10.0, 11)):
        with pytest.raises(SamplerError, match=r"run 'run', round 3, attempt 0, site 1, 'update' was drawn before"):
            source.share(sigma, length, **LABEL)
    source.share(10.0, 10, **(LABEL | {"attempt": 1}))


def test_a_share_is_served_once_across_threads():
    """Of many threads that ask for the same label, one is served."""
    source = NoiseSource()
    served = []
    start = threading.Barrier(8)

    def ask():
        start.wait()
        try:
            served.append(source.share(10.0, 1000, **LABEL))
        except SamplerError:
            return

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(served) == 1


@pytest.mark.parametrize("field", ["round", "attempt", "site"])
@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_number_outside_64_bits_is_refused_by_name(field, value):
    """Negative and oversized numbers name their field; ids above 2**63 are fine."""
    with pytest.raises(SamplerError, match=f"{field} = {value}"):
        NoiseSource().share(10.0, 1, **(LABEL | {field: value}))
    NoiseSource().share(10.0, 1, **(LABEL | {field: 2**64 - 1}))


def test_two_sources_from_the_operating_system_differ():
    """Default entropy is fresh for each source and says so."""
    first, second = NoiseSource(), NoiseSource()
    assert first.private
    assert second.private
    assert not np.array_equal(first.share(100.0, 50, **LABEL), second.share(100.0, 50, **LABEL))


@pytest.mark.parametrize("secret", [b"", bytes(4), bytes(33), bytearray(32), 7])
def test_entropy_of_another_size_is_refused(secret):
    """31 bits, a clock or a truncated read is not a key (P10)."""
    with pytest.raises(SamplerError, match="32 bytes"):
        NoiseSource(lambda _: secret)


def in_fork(task):
    """Run ``task`` in a forked child and return the bytes it gives."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writer, task())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return data


pytest_fork = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning", "ignore:os.fork:RuntimeWarning"
)


@pytest_fork
def test_forks_do_not_share_noise():
    """The parent and each forked child draw different noise for one label, used before the fork or not (P18)."""
    source = NoiseSource()
    source.share(100.0, 50, **(LABEL | {"round": 0}))

    def task():
        return source.share(100.0, 50, **LABEL).tobytes()

    children = [in_fork(task), in_fork(task)]
    assert len({*children, task()}) == 3
    assert len(in_fork(lambda: source.share(100.0, 50, **(LABEL | {"round": 0})).tobytes())) == 400


@pytest_fork
@pytest.mark.parametrize("sign", ["process id", "fork count"])
def test_either_sign_of_a_fork_is_enough(monkeypatch, sign):
    """A child with its parent's process id (a new namespace), or forked behind the interpreter's back, is noticed."""
    source = NoiseSource()
    process, forks = source._process

    def task():
        if sign == "process id":
            noise._forks = forks
        else:
            monkeypatch.setattr(noise.os, "getpid", lambda: process)
        return source.share(100.0, 50, **LABEL).tobytes()

    assert in_fork(task) != source.share(100.0, 50, **LABEL).tobytes()


def test_neither_repr_nor_pickle_nor_copy_gives_the_secret_away():
    """The secret is not printed, and a second holder of it cannot be made."""
    secret = bytes(range(32))
    source = NoiseSource(lambda _: secret)
    assert repr(source) == "NoiseSource(<secret>, private=True)"
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy, multiprocessing.reduction.ForkingPickler.dumps):
        with pytest.raises(SamplerError, match="pickled or copied"):
            duplicate(source)


def test_the_insecure_test_source_repeats_itself_and_says_so():
    """One seed gives one noise, whatever the attempt; another seed or site gives another; it is marked not private."""
    source = NoiseSource.insecure_test(7)
    first = source.share(100.0, 50, **LABEL)
    assert not source.private
    assert "private=False" in repr(source)
    assert np.array_equal(source.share(100.0, 50, **(LABEL | {"attempt": 1})), first)
    assert np.array_equal(NoiseSource.insecure_test(7).share(100.0, 50, **LABEL), first)
    assert not np.array_equal(NoiseSource.insecure_test(8).share(100.0, 50, **LABEL), first)
    assert not np.array_equal(source.share(100.0, 50, **(LABEL | {"site": 2})), first)
    with pytest.raises(SamplerError, match="drawn before"):
        source.share(100.0, 50, **LABEL)


def test_a_private_source_is_never_keyed_like_a_test_source():
    """With the same 32 bytes, the key of attempt 0 still differs from that of a test source."""
    test = NoiseSource.insecure_test(7)
    private = NoiseSource(lambda _: test._secret)
    assert not np.array_equal(test.share(100.0, 50, **LABEL), private.share(100.0, 50, **LABEL))


def test_known_answer_of_a_test_share():
    """A recorded share: a change of the key derivation shows."""
    assert NoiseSource.insecure_test(0).share(100.0, 6, **LABEL).tolist() == [71, -53, -73, 92, -102, 19]
