import collections
import json
import subprocess
import sys
from pathlib import Path

import pytest

from secagg import messages
from secagg.identity import Roster
from secagg.protocols.pairwise import advertise, confirm, mask, share, unmask

FOLDER = Path(__file__).parent
HEAD = ("not the MessagePack of this message", "bound to another round", "sender … instead of …")
# Behind the form and the head of a frame: what mutants must reach at each station.
DEEP = {
    "server: advertise": ("wrong signature", "sealed its MAC key wrongly", "advertised a mask key of", "free choice"),
    "server: share": ("wrong signature", "not under its signed root", "parts of a wrong length", "free choice"),
    "server: mask": (
        "wrong signature",
        "header authenticates",
        "not its neighbours",
        "padding of a packed",
        "free choice",
    ),
    "server: confirm": ("wrong signature (SIGNATURE_STATEMENT)",),
    "server: unmask": (
        "wrong signature",
        "did not answer for exactly",
        "wrong share of the self secret",
        "wrong share of the root secret",
        "not the committed one",
    ),
    "server: decline": ("free choice",),
    "client: U1": (
        "wrong signature",
        "another advertisement of client",
        "did not make for this round",
        "do not give the transcript",
        "not sorted",
        "free choice",
    ),
    "client: U2": (
        "wrong signature",
        "is not what it signed: Merkle path",
        "exactly the parts",
        "not sorted",
        "free choice",
    ),
    "client: a part of U2": ("refused its dealer", "is not what it signed"),
    "client: U3": ("wrong signature", "not sorted", "free choice"),
    "client: quorum": (
        "wrong signature",
        "did not sign the statement",
        "names a client twice",
        "signatures, … are needed",
    ),
    "client: proposal": ("cannot reach threshold", "too low against a lying server", "PolicyError", "free choice"),
}


@pytest.fixture
def frames(monkeypatch):
    """The program, as a module."""
    monkeypatch.syspath_prepend(FOLDER)
    import frames

    return frames


def test_mutants_never_crash_hang_or_pass(frames):
    """20 000 mutants over every state of both sides: only `SecaggError`s, and no acceptance; every check is reached."""
    count = frames.fuzz(20_000, 1, "classical")
    assert count.wrong == []
    halves = collections.Counter()
    reached = collections.defaultdict(set)
    for (station, how, end), number in count.ends.items():
        halves[station, how] += number
        reached[station].add(end)
    assert set(reached) == set(DEEP)
    assert max(halves.values()) - min(halves.values()) <= 1
    for station, deep in DEEP.items():
        head = () if station in ("server: decline", "client: proposal") else HEAD
        missing = [check for check in (*head, *deep) if not any(check in end for end in reached[station])]
        assert missing == [], station


def test_the_hybrid_suite(frames):
    """The same in the other suite, a smaller run."""
    assert frames.fuzz(2_400, 2, "hybrid").wrong == []


def test_the_program_prints_what_became_of_each_mutant():
    """Two workers, one JSON object, as many ends as mutants, half of them signed anew."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "frames.py"), "--frames", "600", "--workers", "2", "--seed", "3", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    out = json.loads(done.stdout)
    assert out["wrong"] == []
    assert sum(number for *_, number in out["ends"]) == 600
    assert sum(number for _, how, _, number in out["ends"] if how == "signed anew") == 300


def no_signatures(patch):
    """No signature is checked."""
    patch.setattr(Roster, "error", lambda *_: None)


def no_commitments(patch):
    """A revealed share is believed."""
    patch.setattr(unmask.CollectingAnswers, "_keep", lambda *_: None)


def no_tags(patch):
    """A body is believed."""
    patch.setattr(mask.hmac, "compare_digest", lambda *_: True)


def no_paths(patch):
    """A part is believed to be under its dealer's root."""
    patch.setattr(share.merkle, "check", lambda *_, **__: None)


def no_members(patch):
    """A client does not look at who is in a set."""
    patch.setattr(messages, "check_members", lambda *_, **__: None)


def no_form(patch):
    """An error of the codec is not caught."""
    patch.setattr(messages, "decode", lambda data, kind: messages.msgspec.msgpack.decode(data, type=kind))


def not_undone(patch):
    """A frame that is not taken leaves something behind."""
    real = advertise.CollectingAdvertisements.take

    def take(self, client, frame):
        self._frames[client] = frame
        real(self, client, frame)

    patch.setattr(advertise.CollectingAdvertisements, "take", take)


def no_quorum(patch):
    """A client unmasks for whatever the server signs."""

    def accept(state, frame):
        binding, roster = state.agreed.view.transcript, state.agreed.me.roster
        messages.unseal_server(frame, messages.Quorum, binding=binding, roster=roster)
        return state.agreed

    patch.setattr(confirm, "accept", accept)


def endless(patch):
    """A check that does not end for some frames."""
    real = confirm.accept

    def accept(state, frame):
        while len(frame) % 7 == 0:
            pass
        return real(state, frame)

    patch.setattr(confirm, "accept", accept)


@pytest.mark.parametrize(
    ("fault", "kind", "station"),
    [
        (no_signatures, "acceptance", "server: advertise"),
        (no_commitments, "acceptance", "server: unmask"),
        (no_tags, "acceptance", "server: mask"),
        (no_paths, "acceptance", "client: U2"),
        (no_members, "acceptance", "client: U3"),
        (no_quorum, "acceptance", "client: quorum"),
        (no_form, "crash", "server: advertise"),
        (not_undone, "crash", "server: advertise"),
        (endless, "hang", "client: quorum"),
    ],
)
def test_a_planted_fault_is_found(frames, monkeypatch, fault, kind, station):
    """With one check taken away, mutants pass, crash or hang where that check stood."""
    monkeypatch.setattr(frames, "HANG_S", 0.05)
    rigs = [frames.Rig("classical"), frames.Rig("classical")]
    for each in rigs:  # only the station under test
        each.stations = {station: each.stations[station]}
    monkeypatch.setattr(frames, "Rig", lambda _: rigs.pop())
    monkeypatch.setattr(frames, "still_right", lambda _: True)
    fault(monkeypatch)
    count = frames.fuzz(600, 4, "classical")
    assert [end for where, _, end in count.ends if where == station and end == kind.upper()]
