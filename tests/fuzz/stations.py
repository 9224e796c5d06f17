"""Where a frame can arrive: one round in every state of both sides, kept so that any number of mutants can be fed to it."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable

import msgspec
import numpy as np

from secagg import messages
from secagg.crypto import merkle, prg
from secagg.crypto.sealing import SERVER_ID
from secagg.errors import DecodeError, SecaggError
from secagg.guard import MemoryGuard
from secagg.params import PHASES, Block, RoundParams, SlackWarning
from secagg.policy import ClientPolicy
from secagg.protocols.pairwise import ClientSession, ServerSession, advertise, confirm, mask, share
from secagg.protocols.pairwise.parties import advertisement_digest, view
from secagg.spool import MemorySpool
from secagg.testing import parties

COHORT = tuple(range(6))
ME, DROPPED = 2, 5  # the sender or receiver of every mutant, and a client that is silent from exchange 3 on
OTHERS = tuple(i for i in COHORT if i != ME)
BLOCKS = (Block("update", 5, 20, 1000), Block("count", 1, 64, 10**15))
TAKEN, REFUSED = "taken", "refused its dealer"


@dataclasses.dataclass
class Station:
    """One state of one side.

    Attributes:
        name: "server: " or "client: " and what it waits for.
        right: The frame that it waits for.
        feed: Gives it a frame; raises `SecaggError`, or says what became of it.
        may: Whether the sender of the right frame could have meant this one: another free choice of its own, not an attack.
        also: Frames beside the right one that it may be sent.
    """

    name: str
    right: bytes
    feed: Callable[[bytes], str]
    may: Callable[[bytes], bool]
    also: tuple[bytes, ...] = ()

    @property
    def rights(self):
        """What is no mutant here."""
        return (self.right, *self.also)


class Rig:
    """One round of six, stopped at every state.

    Args:
        suite: How it seals.
    """

    def __init__(self, suite):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlackWarning)
            self.params = RoundParams(cohort=COHORT, blocks=BLOCKS, suite=suite, colluders=1, dropouts=2)
        self.identities, self.server, self.roster = parties(COHORT, suite)
        self.states, self.sent, self.got = {}, {}, {}
        self.servers = {phase: self._new_server() for phase in PHASES}
        self._run()
        self.view = self.states["unmask"].agreed.view
        self.mac_key = self.states["advertised"].secrets.mac_key
        self.stations = {s.name: s for s in (*self._of_server(), *self._of_client())}

    def _new_server(self):
        return ServerSession(self.params, self.server, self.roster, spool=MemorySpool())

    def _run(self):
        """Runs the round once; one session per phase stays in that phase, with everybody's frame but one taken."""
        inputs = {b.name: np.full(b.length, b.bound) for b in BLOCKS}
        clients = {i: ClientSession(self.params, self.identities[i], self.roster, inputs) for i in COHORT}
        answers = None
        names = dict(zip(PHASES[1:], ("advertised", "shared", "survivors", "unmask"), strict=True))
        for at, phase in enumerate(PHASES):
            if at:
                self.states[names[phase]] = clients[ME]._state
                self.got[phase] = answers[ME]
            frames = {
                i: client.start() if answers is None else client.receive(answers[i])
                for i, client in clients.items()
                if answers is None or (i in answers and not (i == DROPPED and at >= 2))
            }
            self.sent[phase] = frames
            for later in PHASES[at:]:
                for i, frame in frames.items():
                    if not (later == phase and i == ME):
                        self.servers[later].receive(i, frame)
            for later in PHASES[at + 1 :]:
                answers = self.servers[later].close_phase()

    # The server's side.

    def _of_server(self):
        declined = messages.Decline(
            binding=self.params.context, sender=ME, phase="share", rule="rounds", reason="no more than 3 a day"
        )
        told = messages.seal(declined, self.identities[ME].sign)
        may = (self.may_advertise, self.may_share, self.may_mask, never, never)
        for phase, allowed in zip(PHASES, may, strict=True):
            also = (told,) if phase == "share" else ()
            yield Station(f"server: {phase}", self.sent[phase][ME], self._to_server(self.servers[phase]), allowed, also)
        feed = self._to_server(self.servers["share"])
        yield Station("server: decline", told, feed, self.may_decline, (self.sent["share"][ME],))

    def _to_server(self, session):
        before = kept(session)

        def feed(frame):
            try:
                session.receive(ME, frame)
            except DecodeError:
                # "A frame that is not taken changes nothing, whoever sent it."
                if kept(session) != before:
                    raise RuntimeError("a frame that was not taken changed the session") from None
                raise
            else:
                return TAKEN
            finally:
                session._gone.clear()
                session._taken.discard(ME)
                session._turned_away.clear()
                restore(session, before)

        return feed

    # The client's side: the accepting steps are functions of a state and a frame.

    def _of_client(self):
        s = self.states
        yield Station("client: U1", self.got["share"], taking(advertise, s["advertised"]), self.may_u1)
        yield Station("client: U2", self.got["mask"], self._parts(()), self.may_u2)
        yield Station("client: a part of U2", self.got["mask"], self._parts(OTHERS), never)
        yield Station("client: U3", self.got["confirm"], taking(mask, s["survivors"]), self.may_u3)
        yield Station("client: quorum", self.got["unmask"], taking(confirm, s["unmask"]), never)
        yield Station("client: proposal", self.params.encode(), self._proposal, self.may_propose)

    def _parts(self, dealers):
        state = self.states["shared"]

        def feed(frame):
            near = share.accept(state, frame)
            if not near.refused:
                return TAKEN
            if len(near.refused) != 1 or near.refused[0] not in dealers or near.refused[0] in near.held:
                raise RuntimeError(f"refused {near.refused} and holds shares of {sorted(near.held)}")
            return REFUSED

        return feed

    def _proposal(self, frame):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlackWarning)
            params = RoundParams.decode(frame)
        policy = ClientPolicy(suites=frozenset({"classical", "hybrid"}))
        policy.check(params, ME, self.roster.clients, MemoryGuard())
        return TAKEN

    # What a sender is free to choose. Written anew here, from the protocol's text and not from the code under test.

    def message(self, frame, kind, sender, binding):
        """The message of a frame, None where its head is not the round's."""
        try:
            found = msgspec.msgpack.decode(msgspec.msgpack.decode(frame)[0], type=kind)
        except (msgspec.MsgspecError, ValueError, TypeError, IndexError):
            return None
        return found if (found.sender, found.binding, found.version) == (sender, binding, 1) else None

    def may_advertise(self, frame):
        """Other keys, another commitment; the MAC box has to open, so it is the old one."""
        found = self.message(frame, messages.Advertise, ME, self.params.context)
        right = self.message(self.sent["advertise"][ME], messages.Advertise, ME, self.params.context)
        return found is not None and found.mac_box == right.mac_box and self.may_keys(found)

    def may_keys(self, advert):
        """Two different keys of the suite's length."""
        length = len(self.server.sealing_key)
        return advert.channel_key != advert.mask_key and len(advert.channel_key) == len(advert.mask_key) == length

    def may_share(self, frame):
        """Other leaves of the same lengths under the signed root; only their holders can see what is in them."""
        _, header, leaves = msgspec.msgpack.decode(frame)
        _, _, right = msgspec.msgpack.decode(self.sent["share"][ME])
        found = self.message(header, messages.ShareHeader, ME, self.view.transcript)
        same = [len(leaf) for leaf in leaves] == [len(leaf) for leaf in right]
        return found is not None and same and found.root == merkle.Tree(leaves).root

    def may_mask(self, frame):
        """Another vector with its tag, and at most one neighbour of U2 that it refuses."""
        header, body = split_mask(frame)
        _, right = split_mask(self.sent["mask"][ME])
        found = self.message(header, messages.MaskHeader, ME, self.view.transcript)
        if found is None or len(body) != len(right) or found.body_length != len(body):
            return False
        known = not found.refused or (len(found.refused) == 1 and found.refused[0] in OTHERS)
        padding = int.from_bytes(body[:13], "little") >> 100  # five values of 20 bits take 13 bytes
        return known and not padding and found.tag == prg.gmac(self.mac_key, body)

    def may_decline(self, frame):
        """Another reason."""
        found = self.message(frame, messages.Decline, ME, self.params.context)
        return found is not None and found.phase == "share" and len(found.rule) <= 64 and len(found.reason) <= 512

    def may_u1(self, frame):
        """Some of the members, enough of them; or another advertisement that its owner signed for this round."""
        _, header, digests, frames = msgspec.msgpack.decode(frame)
        entries = [digests[at : at + 40] for at in range(0, len(digests), 40)]
        members = [int.from_bytes(entry[:8], "big") for entry in entries]
        if not self.may_be_set(members, COHORT):
            return False
        near = dict(zip([i for i in members if i != ME], frames, strict=True)) | {ME: self.sent["advertise"][ME]}
        for i, entry in zip(members, entries, strict=True):
            found = self.message(near[i], messages.Advertise, i, self.params.context)
            if found is None or not self.may_keys(found) or entry[8:] != advertisement_digest(near[i]):
                return False
        found = self.message(header, messages.Advertised, SERVER_ID, self.params.context)
        return found is not None and found.transcript == self.transcript(digests, members)

    def transcript(self, digests, members):
        """T1 over some digests."""
        return view(self.states["advertised"].me, digests, tuple(members), {}).transcript

    def may_be_set(self, members, within):
        """A sorted set of enough clients with the receiver in it."""
        ordered = list(members) == sorted(set(members)) and set(members) <= set(within)
        return ordered and ME in members and len(members) >= self.params.min_survivors

    def may_u2(self, frame):
        """Some of the members, with exactly the parts that their dealers signed."""
        _, header, deliveries = msgspec.msgpack.decode(frame)
        _, _, right = msgspec.msgpack.decode(self.got["mask"])
        parts = dict(zip(OTHERS, right, strict=True))
        found = self.message(header, messages.Shared, SERVER_ID, self.view.transcript)
        if found is None or not self.may_be_set(found.members, COHORT):
            return False
        return deliveries == [parts[i] for i in found.members if i != ME]

    def may_u3(self, frame):
        """Some of U2."""
        found = self.message(frame, messages.Survivors, SERVER_ID, self.view.transcript)
        return found is not None and self.may_be_set(found.members, COHORT)

    def may_propose(self, frame):
        """Any sound round with the receiver in it: what is outside the client's policy was refused before."""
        (_, _, session, _, cohort, t, degree, c, r, blocks, context, least, _) = msgspec.msgpack.decode(frame)
        n = len(cohort)
        quorum = (n + c) // 2 + 1
        sound = c < t <= degree <= n - 1 and max(quorum, t) <= least <= n and r <= n - max(quorum, t)
        wide = all(n * bound < 2 ** (bits - 1) for _, _, bits, bound in blocks)
        return ME in cohort and sound and wide and (len(session), len(context)) == (16, 32)


def never(_frame):
    """Nothing but the right frame is right."""
    return False


def taking(step, state):
    """A client's step, looked up at every frame, so that a test may replace it."""

    def feed(frame):
        step.accept(state, frame)
        return TAKEN

    return feed


def split_mask(frame):
    """Header and body of a mask frame of the right form."""
    end = 4 + int.from_bytes(frame[:4], "big")
    return frame[4:end], frame[end + -end % 16 :]


def kept(session):
    """What a server session has collected, by attribute: copies, two levels deep."""
    out = {}
    for name, value in vars(session._state).items():
        if isinstance(value, dict):
            out[name] = {key: dict(x) if isinstance(x, dict) else x for key, x in value.items()}
        elif isinstance(value, list):
            out[name] = [each.tobytes() for each in value]
    return out


def restore(session, before):
    """Puts a server session back, in place."""
    for name, value in before.items():
        held = getattr(session._state, name)
        if isinstance(value, dict):
            held.clear()
            held |= {key: dict(x) if isinstance(x, dict) else x for key, x in value.items()}
        else:
            for each, data in zip(held, value, strict=True):
                each[:] = np.frombuffer(data, each.dtype)


def still_right(station):
    """Whether a station takes the right frame after all that it was fed."""
    with contextlib.suppress(SecaggError):
        return station.feed(station.right) == TAKEN
    return False
