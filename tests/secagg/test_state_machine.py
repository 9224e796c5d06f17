"""A whole round under Hypothesis, against a server that shows every client something else.

In every order that the rules can take: over all that the honest clients ever reveal, one kind of share of each client; no two
honest clients unmask under different S. The faults that are planted at the end show that each invariant can trip. What lying
clients can do to an honest server is in `test_state_machine_clients.py`.
"""

import collections
import contextlib
import dataclasses
import random
import typing

import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from secagg import messages
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import SERVER_ID
from secagg.errors import (
    LocalError,
    SecaggError,
    ServerFault,
)
from secagg.params import RoundParams
from secagg.protocols.pairwise import ClientSession, advertise, confirm, mask, parties, share, unmask
from secagg.protocols.pairwise.parties import Member, statement, view

# Every cohort and number of colluders that a complete graph of three to six allows.
SIZES = [(n, c) for n in range(3, 7) for c in range(n - 2) if (n + c) // 2 + 1 <= n - 1]
seeds = st.integers(0, 2**32 - 1)


def honest_only(kinds, emitted):
    """Adds the kinds of share in an unmask message; one client's own answers are for different owners."""
    owners = [answer.owner for answer in emitted.answers]
    assert len(set(owners)) == len(owners), "both kinds of share, or one twice, in one message"
    for answer in emitted.answers:
        kinds[answer.owner].add(type(answer))


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one honest client was shown, and so works under."""

    view: object = None
    u2: tuple = ()
    u3: tuple = ()


class LyingServer(RuleBasedStateMachine):
    """A server that answers every honest client alone, in any order, with the keys of at most c colluders.

    It shows any U1, U2 and U3, repeats, withholds and swaps, and makes quorums of every signature that there is. There is no
    `ServerSession` here: what clients reveal to whatever it does is all that counts.
    """

    ended: typing.ClassVar = collections.Counter()

    def __init__(self, new_round, distortions):
        super().__init__()
        self.new_round, (self.flip, self.distort) = new_round, distortions

    @initialize(size=st.sampled_from(SIZES), seed=seeds)
    def begin(self, size, seed):
        """A cohort, its colluders (each with two advertisements), and every honest client's advertisement."""
        n, c = size
        self.rd = self.new_round(n, colluders=c, dropouts=None)
        self.rnd, self.params = random.Random(seed), self.rd.params
        self.corrupt = tuple(sorted(self.rnd.sample(range(n), c)))
        self.honest = [i for i in range(n) if i not in self.corrupt]
        members = {
            i: Member(self.params, self.rd.roster, self.rd.identities[i], random.randbytes) for i in self.corrupt
        }
        self.colluders = {(i, v): advertise.send(members[i]) for i in self.corrupt for v in range(2)}
        self.adverts = {i: self.rd.clients[i].start() for i in self.honest}
        self.seen = {i: Seen() for i in self.honest}
        self.dealt, self.deals_of_colluders, self.signed, self.unmasked = {}, {}, {}, {}
        self.frames = []
        self.kinds = collections.defaultdict(set)

    # What the server can make.

    def advertisement(self, i, variant):
        """An honest client's, or one of a colluder's two."""
        return self.adverts[i] if i in self.adverts else self.colluders[i, variant][1]

    def show_u1(self, i, members, variants):
        """U1 with these members."""
        frames = {j: self.advertisement(j, variants.get(j, 0)) for j in members}
        digests = b"".join(j.to_bytes(8, "big") + advertise.advertisement_digest(f) for j, f in frames.items())
        me = self.rd.clients[i]._me
        peers = {
            j: messages.decode(messages.decode(f, messages.Signed).payload, messages.Advertise)
            for j, f in frames.items()
        }
        seen = view(me, digests, tuple(members), peers)
        header = self.sign(messages.Advertised(binding=me.context, sender=SERVER_ID, transcript=seen.transcript))
        near = tuple(frames[j] for j in seen.graph.neighbours(i))
        return messages.encode(messages.AdvertisedFrame(header, digests, near)), seen

    def sign(self, message):
        """Under the server's key."""
        return messages.seal(message, self.rd.server.sign)

    def deal(self, dealer, seen, variants):
        """A dealer's share frame under a transcript; colluders deal under every one."""
        if dealer in self.adverts:
            return self.dealt.get((dealer, seen.transcript))
        key = dealer, seen.transcript
        if key not in self.deals_of_colluders:
            state = self.colluders[dealer, variants.get(dealer, 0)][0]
            self.deals_of_colluders[key] = share.send(state, seen)[1]
        return self.deals_of_colluders[key]

    def show_u2(self, i, members):
        """U2 with these members, as far as they dealt under the client's own transcript."""
        seen, variants = self.seen[i].view
        deals = {j: self.deal(j, seen, variants) for j in members}
        deals = {j: messages.decode(f, messages.ShareFrame) for j, f in deals.items() if f is not None}
        deliveries = []
        for j in seen.graph.within(i, deals):
            leaves, place = deals[j].leaves, seen.graph.holders(j).index(i)
            tree = share.merkle.Tree(leaves)
            deliveries.append(messages.Delivery(deals[j].header, leaves[place], tree.paths[place]))
        header = self.sign(messages.Shared(binding=seen.transcript, sender=SERVER_ID, members=tuple(sorted(deals))))
        return messages.encode(messages.SharedFrame(header, tuple(deliveries))), tuple(sorted(deals))

    def show_quorum(self, i, *, stuffed):
        """Every signature over the client's statement, the colluders' too; stuffed: other signatures as well."""
        s = self.statement(i)
        mine = {j: sig for j, (other, sig) in self.signed.items() if other == s or stuffed}
        mine |= {j: self.rd.identities[j].sign(Label.SIGNATURE_STATEMENT, s) for j in self.corrupt}
        mine = {j: sig for j, sig in sorted(mine.items()) if j in self.seen[i].u3}
        return self.sign(
            messages.Quorum(binding=self.seen[i].view[0].transcript, sender=SERVER_ID, signatures=tuple(mine.items()))
        )

    def statement(self, i):
        """The digest of what client i was shown; it does not come from the client."""
        return statement(self.seen[i].view[0].transcript, self.seen[i].u2, self.seen[i].u3)

    # Delivery, and what comes back.

    def deliver(self, i, frame, seen):
        """Gives a frame to a client. What it does not take ends it; what it does take is `seen`."""
        client = self.rd.clients[i]
        state = type(client._state)
        self.frames.append(frame)
        try:
            out = client.receive(frame)
        except ServerFault:
            assert not client.waiting
            return False
        except LocalError:
            assert state is type(None)
            return False
        self.seen[i] = seen
        if state is advertise.AwaitingAdvertised:
            self.dealt[i, seen.view[0].transcript] = out
        elif state is mask.AwaitingSurvivors:
            signature = messages.decode(out, messages.Confirm).signature
            assert i not in self.signed, "an honest client signs two statements"
            self.signed[i] = self.statement(i), signature
        elif state is confirm.AwaitingQuorum:
            self.unmasked[i] = self.statement(i)
            honest_only(self.kinds, self.rd.payload(out, messages.Unmask))
        self.check()
        return True

    def check(self):
        """The invariants, over everything that left honest clients so far."""
        assert len(set(self.unmasked.values())) <= 1, "two honest clients unmask under different S"
        assert all(len(kind) == 1 for kind in self.kinds.values()), "both kinds of share of one client"

    def at(self, state):
        """The honest clients in one state."""
        return [i for i in self.honest if type(self.rd.clients[i]._state) is state]

    def some(self, members, me):
        """A set of clients that a client may be shown: it is in it, and it is rarely too small."""
        spare = len(members) - self.params.min_survivors + (self.rnd.randrange(20) == 0)
        out = set(self.rnd.sample(sorted(members), min(self.rnd.randint(0, max(spare, 0)), len(members))))
        return tuple(sorted(set(members) - out | {me}))

    def sides(self, state, split):
        """Two choices of the server, and which clients in a state see which; some are kept waiting."""
        return [(i, (split >> at) & 1) for at, i in enumerate(self.at(state)) if self.rnd.randrange(12)]

    @rule(split=st.just(0) | st.integers(0, 63))
    @precondition(lambda self: self.at(advertise.AwaitingAdvertised))
    def split_u1(self, split):
        """Two versions of U1."""
        everybody = range(len(self.params.cohort))
        dropped = self.some(everybody, 0) if self.rnd.randrange(2) else everybody
        kept = [set(everybody), set(dropped)]
        variants = [{}, {j: self.rnd.randrange(2) for j in self.corrupt}]
        for i, side in self.sides(advertise.AwaitingAdvertised, split):
            frame, seen = self.show_u1(i, sorted(kept[side] | {i}), variants[side])
            self.deliver(i, frame, Seen(view=(seen, variants[side])))

    @rule(split=st.just(0) | st.integers(0, 63))
    @precondition(lambda self: self.at(share.AwaitingShared))
    def split_u2(self, split):
        """Two versions of U2, each of clients that dealt under the transcript of whoever sees it."""
        sets = [set(self.params.cohort), set(self.some(self.params.cohort, 0))]
        for i, side in self.sides(share.AwaitingShared, split):
            frame, u2 = self.show_u2(i, sorted((sets[side] | {i}) & set(self.seen[i].view[0].advertisers)))
            self.deliver(i, frame, dataclasses.replace(self.seen[i], u2=u2))

    @rule(split=st.just(0) | st.integers(0, 63))
    @precondition(lambda self: self.at(mask.AwaitingSurvivors))
    def split_u3(self, split):
        """Two versions of U3."""
        sets = [set(self.some(self.params.cohort, self.honest[place])) for place in (0, -1)]
        for i, side in self.sides(mask.AwaitingSurvivors, split):
            shown = next((s for s in (sets[side], sets[1 - side]) if i in s), {i, *sets[0]})
            u3 = tuple(sorted(shown & set(self.seen[i].u2)))
            message = messages.Survivors(binding=self.seen[i].view[0].transcript, sender=SERVER_ID, members=u3)
            self.deliver(i, self.sign(message), dataclasses.replace(self.seen[i], u3=u3))

    @rule(stuffed=st.sampled_from((False, False, False, True)))
    @precondition(lambda self: self.at(confirm.AwaitingQuorum))
    def quorum(self, stuffed):
        """Whatever signatures exist, to everybody that waits for some."""
        before = len(self.unmasked)
        for i in self.at(confirm.AwaitingQuorum):
            needed = self.params.quorum(len(self.seen[i].view[0].advertisers))
            valid = sum(s == self.statement(i) for s, _ in self.signed.values()) + len(
                set(self.corrupt) & set(self.seen[i].u3)
            )
            if valid >= needed or self.rnd.randrange(3) == 0:
                self.deliver(i, self.show_quorum(i, stuffed=stuffed), self.seen[i])
        self.ended["unmasked"] += len(self.unmasked) > before

    @rule(who=seeds, what=seeds)
    @precondition(lambda self: self.frames)
    def asks_again(self, who, what):
        """An old frame, this client's or another's, to a client in any state; whoever has unmasked says no more."""
        finished = [i for i in self.honest if i in self.unmasked] or self.honest[: self.rnd.randrange(12) == 0]
        if not finished:
            return
        i = finished[who % len(finished)]
        client, frame = self.rd.clients[i], self.frames[what % len(self.frames)]
        if type(client._state) is mask.AwaitingSurvivors and self.same_phase(i, frame):
            return
        if type(client._state) in (advertise.AwaitingAdvertised, confirm.AwaitingQuorum):
            return
        assert not self.deliver(i, frame, self.seen[i]) or client.waiting
        self.ended["asked again"] += 1

    def same_phase(self, i, frame):
        """Whether it is a U3 of this client's own round, which another client's copy of is as good as its own."""
        with contextlib.suppress(SecaggError):
            messages.unseal(
                frame,
                messages.Survivors,
                binding=self.seen[i].view[0].transcript,
                sender=SERVER_ID,
                roster=self.rd.roster,
            )
            return True
        return False

    @rule(who=seeds)
    @precondition(lambda self: self.at(advertise.AwaitingAdvertised))
    def swapped_keys(self, who):
        """U1 with another's advertisement under an honest name, or keys that the server put in."""
        waiting = self.at(advertise.AwaitingAdvertised)
        i = waiting[who % len(waiting)]
        if self.rnd.randrange(6):
            return
        victim = next(j for j in self.honest if j != i)
        signer = self.rd.identities[self.corrupt[0]] if self.corrupt else self.rd.server
        payload = self.rd.payload(self.adverts[victim], messages.Advertise)
        forged = messages.seal(
            type(payload)(
                **{f: getattr(payload, f) for f in payload.__struct_fields__} | {"mask_key": self.rd.server.sealing_key}
            ),
            signer.sign,
        )
        real, self.adverts[victim] = self.adverts[victim], forged
        frame, seen = self.show_u1(i, self.params.cohort, {})
        self.adverts[victim] = real
        assert not self.deliver(i, frame, Seen(view=(seen, {}))), "keys that nobody signed are taken"

    @rule(who=seeds, signed=st.booleans())
    @precondition(lambda self: self.frames)
    def distorts(self, who, signed):
        """A frame that was made for somebody, damaged, or distorted under the server's own signature; a client only ever stops."""
        i = self.honest[who % len(self.honest)]
        frame = self.frames[-1]
        changed = self.distort(self.rd, frame, self.rd.server, self.rnd) if signed else self.flip(frame, self.rnd)
        state = type(self.rd.clients[i]._state)
        if (
            self.rnd.randrange(10)
            or changed in self.frames
            or state in (mask.AwaitingSurvivors, confirm.AwaitingQuorum)
        ):
            return
        assert not self.deliver(i, changed, self.seen[i])
        self.frames.pop()

    def teardown(self):
        """What honest clients revealed, over the whole round."""
        if hasattr(self, "rd"):
            self.check()
            self.ended["split U3"] += len({s for s, _ in self.signed.values()}) > 1
            self.ended["rounds"] += 1


def test_a_server_that_lies_to_everybody_apart(explore):
    """Whatever server and colluders do, one statement is unmasked, and one kind of share of each client leaves."""
    ended = explore(LyingServer, 150)
    assert min(ended["unmasked"], ended["split U3"], ended["asked again"]) > 5


# Faults that are planted, and the invariant that each must trip.


def no_quorum(patch):
    """One signature is a quorum."""
    patch.setattr(RoundParams, "quorum", lambda _self, _advertised: 1)


def statement_without_survivors(patch):
    """What is signed does not say who survived; nor does what this module compares, so that only the shares give it away."""

    def without(transcript, sharers, _survivors):
        return parties.statement(transcript, sharers, ())

    patch.setattr(mask, "statement", without)
    patch.setitem(globals(), "statement", without)


def self_shares_of_the_dropped(patch):
    """Some clients reveal a self share of whoever is not in U3."""
    real = unmask.send

    def send(agreed):
        wrong = dataclasses.replace(agreed, survivors=agreed.view.advertisers)
        return real(wrong if agreed.me.id % 2 else agreed)

    patch.setattr(unmask, "send", send)


def answers_again(patch):
    """A client goes back to waiting for U3 once it has confirmed, and nothing remembers that it did."""
    real = ClientSession.receive

    def receive(self, frame):
        before, out = self._state, real(self, frame)
        if type(before) is mask.AwaitingSurvivors and not hasattr(self, "again"):
            self._state = self.again = before
        return out

    patch.setattr(ClientSession, "receive", receive)
    patch.setattr(ClientSession, "_record", lambda *_: None)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (no_quorum, "two honest clients unmask under different S"),
        (statement_without_survivors, "both kinds of share"),
        (self_shares_of_the_dropped, "both kinds of share"),
        (answers_again, "signs two statements|unmask under different S"),
    ],
)
def test_a_planted_fault_trips(explore, monkeypatch, fault, message):
    """With one check taken away, the machine finds what that check is there for."""
    fault(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        explore(LyingServer, 1000, derandomize=True, phases=(Phase.generate,), database=None)
