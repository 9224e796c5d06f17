"""A whole round under Hypothesis, of an honest server with clients that fall silent, repeat themselves and lie.

The sum is that of the inputs of U3 whenever there is one, and nobody honest is blamed. The faults that are planted at the end show
that each invariant can trip. A server that lies is in `test_state_machine.py`.
"""

import collections
import dataclasses
import random
import typing

import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from secagg import messages
from secagg.crypto import prg
from secagg.errors import (
    BelowThresholdError,
    DisputeError,
    LocalError,
    PeerFault,
    RoundError,
    SecaggError,
    ServerFault,
    StateError,
    UnexpectedFrameError,
)
from secagg.params import PHASES
from secagg.protocols.pairwise import ServerSession, mask, unmask
from secagg.spool import MemorySpool

# Every cohort and number of colluders that a complete graph of three to six allows.
SIZES = [(n, c) for n in range(3, 7) for c in range(n - 2) if (n + c) // 2 + 1 <= n - 1][::-1]
seeds = st.integers(0, 2**32 - 1)
phases = st.sampled_from(PHASES)
LIES = {
    "advertise": ("distorted", "wrong_commitment"),
    "share": ("distorted", "redealt", "redealt", "redealt_to_all"),
    "mask": ("distorted", "false_refusal", "wrong_vector"),
    "confirm": ("distorted",),
    "unmask": ("distorted", "wrong_share", "wrong_share", "wrong_seed"),
}


class LyingClients(RuleBasedStateMachine):
    """An honest `ServerSession`, at most c lying clients, anybody silent, and a network that repeats and garbles.

    The answers to some clients may be garbled or re-signed as well: whatever the clients were shown, a sum that the session
    publishes must be exact.
    """

    ended: typing.ClassVar = collections.Counter()

    def __init__(self, new_round, distortions):
        super().__init__()
        self.new_round, (self.flip, self.distort) = new_round, distortions

    @initialize(size=st.sampled_from(SIZES), seed=seeds)
    def begin(self, size, seed):
        """A round of its own, and who is corrupt in it."""
        n, c = size
        self.rd = self.new_round(n, colluders=c, dropouts=None)
        # A round that a planted fault stops half-way would leave a file open.
        self.rd.session = ServerSession(self.rd.params, self.rd.server, self.rd.roster, spool=MemorySpool())
        self.rnd = random.Random(seed)
        self.corrupt = frozenset(self.rnd.sample(range(n), self.rnd.choice((c, c, c, c, 0))))
        self.server_lied = self.unforeseeable = False
        self.faithful = self.rnd.randrange(4) != 0
        self.mac_keys = {}
        self.quiet = set()
        for i in sorted(self.corrupt):
            self.plan(i, self.rnd.choice(("share", *PHASES)))

    @property
    def phase(self):
        """The exchange whose frames are awaited; None when the round is over."""
        return self.rd.session.phase if self.rd.raised is None else None

    def someone(self, number, among=None):
        """One of some clients, or None."""
        among = sorted(self.rd.session.expected if among is None else among)
        return among[number % len(among)] if among else None

    @rule()
    @precondition(lambda self: self.phase is not None)
    def step(self):
        """Everybody answers, and the server closes the phase."""
        for i, client in self.rd.clients.items():
            if (secrets := getattr(client._state, "secrets", None)) is not None:
                self.mac_keys[i] = secrets.mac_key
        try:
            self.rd.step()
        except SecaggError as error:
            assert error is self.rd.raised  # noqa: PT017 - any order of steps may or may not raise
        self.check_errors()

    @rule()
    @precondition(lambda self: self.phase is None)
    def is_over(self):
        """Nothing is awaited any more, and nothing is taken."""
        with pytest.raises(StateError):
            self.rd.session.receive(0, b"x")

    def ahead(self, phase):
        """Whether an exchange is still to be closed: rules plan for those that come as well as for the one that is open."""
        return self.phase is not None and PHASES.index(phase) >= PHASES.index(self.phase)

    @rule(who=seeds, phase=phases)
    @precondition(lambda self: self.phase is not None)
    def falls_silent(self, who, phase):
        """Some client, honest or not, from an exchange on; rarely more than the round has room for."""
        i = self.someone(who)
        if not self.ahead(phase):
            return
        if len(self.quiet | {i}) <= self.rd.params.dropouts or self.rnd.randrange(8) == 0:
            self.quiet.add(i)
            self.rd.silence(i, phase)

    @rule(who=seeds, phase=phases)
    @precondition(lambda self: self.phase is not None)
    def network_repeats_and_garbles(self, who, phase):
        """Before the right frame of a client comes another's, rubbish and an early copy; after it, a second one."""
        i, rd = self.someone(who), self.rd
        if (phase, i) in rd.up or i in self.quiet or not self.ahead(phase):
            return

        def noisy(frame):
            others = [f for j, f in rd.sent[phase].items() if j != i and f is not None]
            old = [f for p in PHASES[: PHASES.index(phase)] if (f := rd.sent[p].get(i)) is not None]
            for wrong in (*others[:1], *old, frame[:-1], b""):
                with pytest.raises(SecaggError):
                    rd.session.receive(i, wrong)
            try:
                rd.session.receive(i, frame)
            except SecaggError as error:
                rd.refused.append((phase, i, error))
                assert i in self.corrupt or rd.down, "the right frame of an honest client is not taken"
                return
            with pytest.raises(UnexpectedFrameError, match="is a second one"):
                rd.session.receive(i, frame)

        rd.up[phase, i] = noisy

    @rule(who=seeds)
    @precondition(lambda self: self.phase not in (None, PHASES[0]))
    def late_frame(self, who):
        """A frame of an exchange that is closed, of anybody who ever sent one."""
        earlier = [
            (i, f) for p in PHASES[: PHASES.index(self.phase)] for i, f in self.rd.sent[p].items() if f is not None
        ]
        i, frame = earlier[who % len(earlier)]
        with pytest.raises(SecaggError):
            self.rd.session.receive(i, frame)

    @rule(who=seeds, phase=phases)
    @precondition(lambda self: self.phase is not None and self.corrupt)
    def lies(self, who, phase):
        """A corrupt client changes what it sends in an exchange, under its own signature."""
        liar = self.someone(who, self.corrupt & set(self.rd.session.expected))
        if liar is None or (phase, liar) in self.rd.up or not self.ahead(phase):
            return
        self.plan(liar, phase)

    def plan(self, liar, phase):
        """What a corrupt client does in an exchange."""
        victims = [i for i in self.rd.params.cohort if i != liar]
        self.rnd.shuffle(victims)
        lie = self.rnd.choice(LIES[phase])
        if lie == "distorted":
            self.distorted(liar, phase)
        else:
            getattr(self, lie)(liar, victims)

    def distorted(self, liar, phase):
        """Any field, any leaf."""
        self.rd.up[phase, liar] = lambda f: self.distort(self.rd, f, self.rd.identities[liar], self.rnd)

    def redealt(self, liar, victims, count=1):
        """Wrong shares, or a false pair seed, to some neighbours."""
        changes = {victim: self.rnd.randrange(4) for victim in victims[:count]}

        def deal(frame):
            rd = self.rd
            del rd.up["share", liar]
            for victim in rd.view.graph.within(liar, changes):
                change = (
                    lambda part: dataclasses.replace(part, share_box=self.flipped(part.share_box)),
                    lambda part: dataclasses.replace(part, root_commitment=bytes(32)),
                    rd.reseal(liar, victim, root=bytes(36), self_seed=bytes(36)),
                    lambda part: dataclasses.replace(part, pair_box=part.pair_box and self.flipped(part.pair_box)),
                )[changes[victim]]
                rd.redeal(liar, victim, change)
            return rd.up.pop(("share", liar), lambda unchanged: unchanged)(frame)

        self.rd.up["share", liar] = deal

    def flipped(self, data):
        """One byte changed."""
        at = self.rnd.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    def redealt_to_all(self, liar, victims):
        """The same, to everybody."""
        self.redealt(liar, victims, count=len(victims))

    def wrong_commitment(self, liar, _victims):
        """A self seed that is not the one that it commits to."""
        self.rd.up["advertise", liar] = lambda f: self.rd.resign(
            f, messages.Advertise, by=liar, seed_commitment=bytes(32)
        )

    def header(self, frame, liar, **changes):
        """A mask frame under another signed header."""
        end = 4 + int.from_bytes(frame[:4], "big")
        body = frame[end + -end % 16 :]
        head = self.rd.resign(frame[4:end], messages.MaskHeader, by=liar, **changes)
        front = len(head).to_bytes(4, "big") + head
        return front + bytes(-len(front) % 16) + body

    def false_refusal(self, liar, victims):
        """Says that it left an edge out that it did not."""
        self.unforeseeable = True
        refused = tuple(sorted(victims[: self.rnd.randint(1, 2)]))
        self.rd.up["mask", liar] = lambda f: self.header(f, liar, refused=refused)

    def wrong_vector(self, liar, _victims):
        """Another body than its inputs give, properly authenticated."""
        self.unforeseeable = True

        def other(frame):
            end = 4 + int.from_bytes(frame[:4], "big")
            start = end + -end % 16
            body = bytes([frame[start] ^ 1]) + frame[start + 1 :]
            return self.header(frame[:start] + body, liar, tag=prg.gmac(self.mac_keys[liar], body))

        self.rd.up["mask", liar] = other

    def wrong_share(self, liar, _victims, field="share", length=36):
        """In the end, a share or a seed that nobody dealt it."""

        def change(frame):
            answers = list(self.rd.payload(frame, messages.Unmask).answers)
            places = [at for at, answer in enumerate(answers) if hasattr(answer, field)]
            for at in places[: self.rnd.choice((1, len(places)))]:
                values = {name: getattr(answers[at], name) for name in answers[at].__struct_fields__}
                answers[at] = type(answers[at])(**(values | {field: bytes(length)}))
            return self.rd.resign(frame, messages.Unmask, by=liar, answers=tuple(answers))

        self.rd.up["unmask", liar] = change

    def wrong_seed(self, liar, victims):
        """A pair seed that is not the committed one."""
        self.wrong_share(liar, victims, field="pair_seed", length=32)

    @rule(who=seeds, phase=phases, signed=st.booleans())
    @precondition(lambda self: self.phase is not None)
    def answer_is_changed(self, who, phase, signed):
        """What one client gets back in an exchange is not what the session made."""
        i = self.someone(who)
        if not self.ahead(phase) or self.faithful:
            return
        self.server_lied |= signed
        self.quiet.add(i)
        self.rd.down[phase, i] = lambda f: (
            self.distort(self.rd, f, self.rd.server, self.rnd) if signed else self.flip(f, self.rnd)
        )

    def check_errors(self):
        """After every step: honest clients are not blamed, nobody fails for a reason of our own."""
        honest = {i: e for i, e in self.rd.errors.items() if i not in self.corrupt}
        assert not [e for e in honest.values() if isinstance(e, LocalError | PeerFault)]
        if not self.rd.down:
            assert not [e for e in honest.values() if isinstance(e, ServerFault)]
        found = [*self.rd.session.rejected.values(), self.rd.raised]
        blamed = {e.party for e in found if isinstance(e, PeerFault)}
        assert blamed <= self.corrupt, "an honest client is blamed"
        for error in found:
            if isinstance(error, DisputeError):
                assert set(error.parties) & self.corrupt, "a dispute between honest clients"

    def teardown(self):
        """The round is run to its end, and its outcome is one of those that the rules allow."""
        if not hasattr(self, "rd"):
            return
        for _ in PHASES:
            if self.phase is not None:
                self.step()
        assert self.phase is None
        raised = self.rd.raised
        self.rd.check_what_left()
        self.ended["sum" if raised is None else type(raised).__name__] += 1
        if raised is None:
            result = self.rd.session.result
            assert len(result.survivors) >= self.rd.params.min_survivors
            if not self.unforeseeable:
                self.rd.check(result.survivors)
        elif type(raised) is RoundError:
            assert self.unforeseeable or self.server_lied, raised
        else:
            assert isinstance(raised, BelowThresholdError | PeerFault)
        if not self.corrupt and not self.rd.down and len(self.quiet) <= self.rd.params.dropouts:
            assert raised is None, "honest clients within the planned dropouts, and no sum"


def test_lying_and_silent_clients(explore):
    """Whatever at most c clients do, the sum is exact or there is none, and the honest ones are neither blamed nor opened."""
    ended = explore(LyingClients, 100)
    assert ended["sum"] > 20
    assert ended["BelowThresholdError"]


# Faults that are planted, and the invariant that each must trip.


def disputes_stay_open(patch):
    """Nobody is dropped in a dispute, no client minds, and the range of the sum is not looked at."""
    survivors_unchecked(patch)
    patch.setattr(unmask, "_decode", lambda words, bits, _limit, _name: mask.ring.decode(words, bits))


def seconds_are_taken(patch):
    """The server takes a second frame of a client, and so adds its vector twice."""
    real = ServerSession.receive

    def receive(self, sender, frame):
        self._taken = set()
        real(self, sender, frame)

    patch.setattr(ServerSession, "receive", receive)


def commitments_unchecked(patch):
    """A wrong share is kept, and what it leads to is blamed on its dealer."""
    real = unmask.CollectingAnswers._keep

    def keep(self, answer, client, frame):
        fault = real(self, answer, client, frame)
        if fault is not None and isinstance(answer, messages.SelfShare):
            self._self_shares.setdefault(answer.owner, {})[client] = answer.share
            return None
        return fault

    patch.setattr(unmask.CollectingAnswers, "_keep", keep)


def survivors_unchecked(patch):
    """A client takes any U3, and a server that refuses nobody's vector shows one that has them all."""
    patch.setattr(mask, "settle", lambda _refusals, _colluders: ())
    real = mask.accept

    def accept(state, frame):
        near = dataclasses.replace(state.near, refused=())
        return dataclasses.replace(real(dataclasses.replace(state, near=near), frame), near=state.near)

    patch.setattr(mask, "accept", accept)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (disputes_stay_open, "array_equal"),
        (seconds_are_taken, "DID NOT RAISE"),
        (commitments_unchecked, "an honest client is blamed"),
        (survivors_unchecked, "did not cancel"),
    ],
)
def test_a_planted_fault_trips(explore, monkeypatch, fault, message):
    """With one check taken away, the machine finds what that check is there for."""
    fault(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        explore(LyingClients, 1000, derandomize=True, phases=(Phase.generate,), database=None)
