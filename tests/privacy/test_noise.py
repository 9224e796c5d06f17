import copy
import itertools
import math
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from privacy import noise
from privacy.adaptive import AdaptiveCodec
from privacy.codec import GridCodec
from privacy.errors import PlanError, SamplerError
from privacy.noise import NoiseSource, sigma_effective, sigma_local

LABEL = {"run": "run", "round": 3, "attempt": 0, "site": 1, "purpose": "update"}
ROUND = {name: value for name, value in LABEL.items() if name != "purpose"}
KNOWN_COINS = [False, True, False, True, True, True, True, False]


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


def test_a_single_coordinate_is_noised_like_any_other():
    """The share of a 0-d leaf, which counts as one coordinate, is noise of the same law and not zero (P24)."""
    source = NoiseSource(lambda length: bytes(range(length)))
    drawn = [int(source.share(50.0, 1, **(LABEL | {"round": number}))[0]) for number in range(400)]
    assert 40 < math.sqrt(sum(value**2 for value in drawn) / 400) < 60
    assert len(set(drawn)) > 100


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


def test_every_round_has_a_key_of_its_own(monkeypatch):
    """No two rounds, attempts, sites or blocks of a run expand the same AES key (P9)."""
    keys = []
    monkeypatch.setattr(noise.DiscreteGaussian, "sample", lambda _, key, length: keys.append(key) or np.zeros(length))
    source = NoiseSource(lambda length: bytes(range(length)))
    labels = list(itertools.product(range(5), range(2), range(3), ("update", "counts")))
    for number, attempt, site, purpose in labels:
        source.share(100.0, 5, run="run", round=number, attempt=attempt, site=site, purpose=purpose)
    assert len(set(keys)) == len(labels) == 60
    assert all(len(key) == 32 and key != bytes(range(32)) for key in keys)


def test_noise_keys_have_nothing_in_common_with_masks():
    """A source asks for 32 bytes of its own, and its labels are in a name space that no label of `secagg` is in."""
    asked = []
    NoiseSource(lambda length: asked.append(length) or bytes(length)).share(100.0, 5, **LABEL)
    assert asked == [32]
    labels = re.findall(r'b?"(privacy/[^"]*|secagg/[^"]*)"', Path(noise.__file__).read_text(encoding="utf-8"))
    assert labels == ["privacy/1 noise share", "privacy/1 record coins", "privacy/1 insecure test seed"]
    package = Path(noise.__file__).parents[1] / "secagg"
    assert not [path for path in package.rglob("*.py") if "privacy/" in path.read_text(encoding="utf-8")]


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
@pytest.mark.parametrize("value", [-1, 2**64, 1.5, "7"])
def test_a_number_outside_64_bits_is_refused_by_name(field, value):
    """Negative, oversized and fractional numbers name their field; ids above 2**63 are fine."""
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
    ((process, forks),) = source._holdings

    def task():
        if sign == "process id":
            noise._forks = forks
        else:
            monkeypatch.setattr(noise.os, "getpid", lambda: process)
        return source.share(100.0, 50, **LABEL).tobytes()

    assert in_fork(task) != source.share(100.0, 50, **LABEL).tobytes()


@pytest_fork
def test_a_child_that_is_forked_drops_its_parents_secret():
    """The secret that a child inherits is gone from its source once it has its own."""
    source = NoiseSource()
    ((_, parent),) = source._holdings.items()

    def task():
        source.share(100.0, 50, **LABEL)
        return bytes([len(source._holdings), *(held.secret == parent.secret for held in source._holdings.values())])

    assert in_fork(task) == bytes([1, 0])


def test_threads_of_a_new_child_share_one_list_of_labels(monkeypatch):
    """Of two threads that both find themselves in a new process, one is served, however late the other's entropy comes."""
    both, first_is_done, calls = threading.Barrier(2), threading.Event(), []

    def entropy(length):
        if threading.current_thread() is not threading.main_thread():
            both.wait()  # each thread has found that the process is new
            calls.append(None)
            if threading.current_thread().name == "late":
                first_is_done.wait()
        return os.urandom(length)

    source, served, refused = NoiseSource(entropy), [], []
    monkeypatch.setattr(noise, "_forks", noise._forks + 1)

    def ask():
        try:
            served.append(source.share(10.0, 1000, **LABEL))
        except SamplerError as error:
            refused.append(str(error))
        finally:
            first_is_done.set()

    threads = [threading.Thread(target=ask, name=name) for name in ("early", "late")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 2
    assert len(served) == 1
    assert "drawn before" in refused[0]


CHILDREN = """
import multiprocessing, sys
from privacy.errors import SamplerError
from privacy.noise import NoiseSource

SOURCE = NoiseSource()
SEEDED = NoiseSource.insecure_test(7)
LABEL = {"run": "run", "round": 0, "attempt": 0, "site": 0, "purpose": "update"}

def child(queue):
    queue.put([source.share(100.0, 50, **LABEL).tobytes().hex() for source in (SOURCE, SEEDED)])

def handed_over(queue, source):
    queue.put([source.share(100.0, 50, **LABEL).tobytes().hex()] * 2)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    if sys.argv[1] == "forkserver":
        context.set_forkserver_preload(["__main__"])
    queue = context.Queue()
    workers = [context.Process(target=child, args=(queue,)) for _ in range(3)]
    try:
        context.Process(target=handed_over, args=(queue, SOURCE)).start()
        handed = 1
    except SamplerError:
        handed = 0
    for worker in workers:
        worker.start()
    child(queue)
    drawn = [queue.get() for _ in range(4 + handed)]
    for worker in multiprocessing.active_children():
        worker.join()
    print(handed, len({private for private, _ in drawn}), len({seeded for _, seeded in drawn[:4]}))
"""


@pytest.mark.parametrize(("method", "handed", "different"), [("fork", 1, 5), ("spawn", 0, 4), ("forkserver", 0, 4)])
def test_no_way_to_start_a_process_shares_noise(tmp_path, method, handed, different):
    """Three workers and their parent draw four noises for one label; a source that is handed over is refused or renewed."""
    script = tmp_path / "children.py"
    script.write_text(CHILDREN, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(script), method], capture_output=True, text=True, timeout=120, check=True
    )
    first, private, seeded = map(int, result.stdout.split())
    assert (first, private) == (handed, different)
    assert seeded <= 1 + handed  # a test seed repeats itself in every child, so the count of four is not luck


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
    private = NoiseSource(lambda _: next(iter(test._holdings.values())).secret)
    assert not np.array_equal(test.share(100.0, 50, **LABEL), private.share(100.0, 50, **LABEL))


def test_known_answer_of_a_test_share():
    """A recorded share: a change of the key derivation shows."""
    assert NoiseSource.insecure_test(0).share(100.0, 6, **LABEL).tolist() == [71, -53, -73, 92, -102, 19]


def fixed_source():
    """A source whose secret is known."""
    return NoiseSource(lambda length: bytes(range(length)))


def test_every_part_of_the_label_is_in_the_key_of_coins():
    """Changing the run, round, attempt, site or rate flips other coins; so does asking another source."""
    source = fixed_source()
    changes = [{}, *(change for change in CHANGES if "purpose" not in change)]
    flips = [source.coins(0.5, 256, **(ROUND | change)) for change in changes]
    flips.append(fixed_source().coins(math.nextafter(0.5, 1.0), 256, **ROUND))
    flips.append(NoiseSource().coins(0.5, 256, **ROUND))
    assert all(each.dtype == np.bool_ and each.shape == (256,) for each in flips)
    assert len({each.tobytes() for each in flips}) == len(changes) + 2


def test_a_slots_coin_depends_on_no_other_slot():
    """With more slots, or fewer, every slot keeps its coin."""
    whole = fixed_source().coins(0.3, 1000, **ROUND)
    for slots in (1, 7, 8, 9, 999):
        assert np.array_equal(fixed_source().coins(0.3, slots, **ROUND), whole[:slots])
    assert fixed_source().coins(0.3, 0, **ROUND).shape == (0,)


def test_coins_are_flipped_once():
    """Asking again is refused, whatever the rate or number of slots; a failed request spends nothing; noise is apart."""
    source = NoiseSource()
    for bad in ({"rate": 0.0}, {"rate": 1.5}, {"rate": math.nan}, {"rate": True}, {"rate": "0.1"}, {"slots": -1}):
        with pytest.raises(SamplerError, match=rf"{next(iter(bad))} = "):
            source.coins(**({"rate": 0.1, "slots": 10} | bad), **ROUND)
    source.coins(0.1, 10, **ROUND)
    source.share(10.0, 10, **LABEL)
    for rate, slots in ((0.1, 10), (0.2, 10), (0.1, 11)):
        with pytest.raises(
            SamplerError, match="the coins of run 'run', round 3, attempt 0, site 1 were flipped before"
        ):
            source.coins(rate, slots, **ROUND)


def test_coins_have_a_keystream_of_their_own(monkeypatch):
    """No key of coins is a key of a share, also where the purpose says coins; each round and attempt has its own."""
    keys = []
    monkeypatch.setattr(noise.DiscreteGaussian, "sample", lambda _, key, length: keys.append(key) or np.zeros(length))
    monkeypatch.setattr(noise, "coins", lambda key, _rate, count: keys.append(key) or np.zeros(count, bool))
    source = fixed_source()
    for number, attempt, site in itertools.product(range(4), range(2), range(3)):
        label = {"run": "run", "round": number, "attempt": attempt, "site": site}
        source.coins(0.5, 5, **label)
        for purpose in ("update", "", "record coins"):
            source.share(100.0, 5, purpose=purpose, **label)
    assert len(set(keys)) == len(keys) == 96


@pytest_fork
def test_forks_do_not_share_coins():
    """The parent and each forked child flip different coins for one label (P18)."""
    source = NoiseSource()

    def task():
        return np.packbits(source.coins(0.5, 800, **ROUND)).tobytes()

    assert len({in_fork(task), in_fork(task), task()}) == 3


def test_the_insecure_test_source_repeats_its_coins():
    """One seed gives one set of coins, whatever the attempt, so that resume is bitwise; another seed gives another."""
    source = NoiseSource.insecure_test(7)
    first = source.coins(0.5, 200, **ROUND)
    assert np.array_equal(source.coins(0.5, 200, **(ROUND | {"attempt": 1})), first)
    assert not np.array_equal(NoiseSource.insecure_test(8).coins(0.5, 200, **ROUND), first)
    private = NoiseSource()
    assert not np.array_equal(private.coins(0.5, 200, **ROUND), private.coins(0.5, 200, **(ROUND | {"attempt": 1})))
    assert NoiseSource.insecure_test(0).coins(0.5, 8, **ROUND).tolist() == KNOWN_COINS


def test_removing_any_record_leaves_the_others_coins_and_integers_alone():
    """Record level: with each record removed in turn, every other one has the same coin and the same integers, bit included."""
    rows = np.random.default_rng(5).normal(size=(12, 6)).astype(np.float32)
    codec = AdaptiveCodec(GridCodec(1.0, 1 << 12, 6), 700)

    def encoded(present):
        taken = present & fixed_source().coins(0.5, 12, **ROUND)
        return codec.encode_records(rows, taken)

    everybody = np.ones(12, np.bool_)
    whole, flips = encoded(everybody), fixed_source().coins(0.5, 12, **ROUND)
    assert 0 < flips.sum() < 12
    for removed in range(12):
        present = everybody.copy()
        present[removed] = False
        changed = encoded(present)
        assert np.array_equal(np.delete(changed, removed, axis=0), np.delete(whole, removed, axis=0))
        assert not changed[removed].any()
        assert whole[removed].any() == flips[removed]  # who is not in the batch adds nothing, its bit neither
