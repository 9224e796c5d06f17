import collections
import dataclasses
import functools

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from secagg import messages
from secagg.crypto import merkle
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import SERVER_ID, SUITES, Purpose, box_info
from secagg.errors import SecaggError
from secagg.params import PHASES, Block, RoundParams
from secagg.protocols.pairwise import ClientSession, ServerSession
from secagg.protocols.pairwise.parties import advertisement_digest, pair_commitment, share_commitment, view
from secagg.testing import parties

BLOCKS = (Block("update", 5, 20, 1000), Block("count", 1, 64, 10**15))


def make_params(n=4, **fields):
    """Parameters of a small round in the classical suite; n = 4, c = 1, r = 1 gives t = 3, q = 3."""
    defaults = {"cohort": tuple(range(n)), "blocks": BLOCKS, "suite": "classical"}
    if n == 4:
        defaults |= {"colluders": 1, "dropouts": 1}
    return RoundParams(**(defaults | fields))


def make_inputs(params):
    """Inputs at and within the bounds, the same for the same parameters."""
    rng = np.random.default_rng(len(params.cohort))
    return {
        i: {b.name: rng.integers(-b.bound, b.bound, b.length, endpoint=True) for b in params.blocks}
        for i in params.cohort
    }


class Round:
    """A round driven step by step, in which a test may change any frame.

    `up[phase, client]` changes what a client sends in a phase, `down[phase, client]` what the server answers it there; each
    takes the frame and gives another one, or None for silence. An error of a client is kept in `errors` and makes it silent.
    """

    def __init__(self, params, *, inputs=None, hooks=None):
        self.params = params
        self.inputs = make_inputs(params) if inputs is None else inputs
        self.identities, self.server, self.roster = parties(params.cohort, params.suite)
        hooks = hooks or {}
        self.clients = {i: self.client(i, **hooks.get(i, {})) for i in params.cohort}
        self.session = ServerSession(params, self.server, self.roster)
        self.up, self.down = {}, {}
        self.errors = {}
        self.refused_frames = {}
        self.raised = None
        self.secrets = set()
        self.sent = collections.defaultdict(dict)
        self.answered = collections.defaultdict(dict)
        self.answers = None

    def client(self, i, *, params=None, inputs=None, **hooks):
        """A fresh session of client i."""
        values = self.inputs[i] if inputs is None else inputs
        return ClientSession(params or self.params, self.identities[i], self.roster, values, **hooks)

    def ask(self, phase):
        """Every awaited client's frame of a phase, as it sent it, before `up` changes it."""
        for i in self.session.expected:
            frame = None if self.answers is None else self.answers.get(i)
            if self.answers is not None and (phase_before(phase), i) in self.down and frame is not None:
                frame = self.down[phase_before(phase), i](frame)
            if i in self.errors or i in self.sent[phase] or (self.answers is not None and frame is None):
                continue
            try:
                self.sent[phase][i] = (
                    self.clients[i].start() if self.answers is None else self.clients[i].receive(frame)
                )
            except SecaggError as error:
                self.errors[i] = error
        return self.sent[phase]

    def step(self):
        """One exchange: clients answer, frames are changed, the server closes the phase."""
        phase = self.session.phase
        assert phase not in self.answered, "a phase comes once"
        for i, frame in self.ask(phase).items():
            sent = self.up[phase, i](frame) if (phase, i) in self.up else frame
            if sent is None:
                continue
            try:
                self.session.receive(i, sent)
            except SecaggError as error:
                self.refused_frames[i] = error
        self.collect_secrets()
        try:
            self.answers = self.session.close_phase()
        except SecaggError as error:
            self.raised = error
            raise
        self.answered[phase] = self.answers

    def run(self, until=None):
        """Steps to the end, or until `until` is the phase whose frames are awaited; the result at the end."""
        while self.session.phase not in (until, None):
            self.step()
        return self.session.result if until is None else None

    def collect_secrets(self):
        """Remembers every secret that a client holds now."""
        for client in self.clients.values():
            near, secrets = getattr(client._state, "near", None), getattr(client._state, "secrets", None)
            if near is not None:
                self.secrets |= set(near.pair_seeds.values())
                self.secrets |= {share for held in near.held.values() for share in (held.root, held.self_seed)}
            if secrets is not None:
                self.secrets |= {secrets.root, secrets.self_seed, secrets.mac_key}

    def check_what_left(self):
        """What holds in every round, whoever lies: no secret in an error, one kind of share of each client."""
        rejected = self.session._rejected.values()
        for error in filter(None, (self.raised, *self.errors.values(), *self.refused_frames.values(), *rejected)):
            text = f"{error!s} {error!r}"
            assert not [s for s in self.secrets if s.hex() in text or repr(s)[2:-1] in text]
        kinds = {}
        for frame in self.sent["unmask"].values():
            answers = self.payload(frame, messages.Unmask).answers if frame is not None else ()
            assert len({answer.owner for answer in answers}) == len(answers)
            for answer in answers:
                assert kinds.setdefault(answer.owner, type(answer)) is type(answer)

    def silence(self, client, phase):
        """Makes a client silent from a phase on."""
        for later in PHASES[PHASES.index(phase) :]:
            self.up[later, client] = lambda _: None

    def expected(self, survivors, name="update"):
        """The sum of the inputs of some clients."""
        return sum(self.inputs[i][name] for i in survivors)

    def check(self, survivors):
        """That the round ended with exactly the sum over these clients."""
        result = self.session.result
        assert result.survivors == tuple(survivors)
        for block in self.params.blocks:
            assert np.array_equal(result.sums[block.name], self.expected(survivors, block.name))

    # What a party signs anew, the way a corrupt one would.

    def resign(self, frame, kind, by=SERVER_ID, **changes):
        """The frame with some fields replaced, under the own valid signature of `by`."""
        message = messages.decode(messages.decode(frame, messages.Signed).payload, kind)
        signer = self.server if by == SERVER_ID else self.identities[by]
        return messages.seal(msgspec.structs.replace(message, **changes), signer.sign)

    def payload(self, frame, kind):
        """The message inside a signed frame."""
        return messages.decode(messages.decode(frame, messages.Signed).payload, kind)

    def lie_to(self, client, phase, kind, change, *, outer_change=lambda _: {}):
        """The server's answer to one client in a phase is signed anew with `change(message) -> fields`.

        `outer_change(frame) -> fields` is for what stands around a signed header.
        """
        outer = {messages.Advertised: messages.AdvertisedFrame, messages.Shared: messages.SharedFrame}.get(kind)

        def lie(frame):
            if outer is None:
                return self.resign(frame, kind, **change(self.payload(frame, kind)))
            whole = messages.decode(frame, outer)
            whole = msgspec.structs.replace(whole, **outer_change(whole))
            return self.head(messages.encode(whole), kind, **change(self.payload(whole.header, kind)))

        self.down[phase, client] = lie

    def show_u1(self, client, *, without=(), changed=None):
        """The server shows one client another U1: members left out, or `changed[id](frame)` in place of a frame.

        Digests, T1 and header are right for what is shown.
        """

        def lie(frame):
            members = [i for i in self.members_of(frame) if i not in without]
            frames = {i: (changed or {}).get(i, lambda f: f)(self.sent["advertise"][i]) for i in members}
            party = self.clients[client]._me
            digests = b"".join(i.to_bytes(8, "big") + advertisement_digest(frames[i]) for i in members)
            seen = view(party, digests, tuple(members), {})
            header = messages.Advertised(binding=party.context, sender=SERVER_ID, transcript=seen.transcript)
            near = tuple(frames[i] for i in seen.graph.neighbours(client))
            return messages.encode(messages.AdvertisedFrame(messages.seal(header, self.server.sign), digests, near))

        self.down["advertise", client] = lie

    @staticmethod
    def members_of(frame):
        """U1 in the server's answer of exchange 1."""
        digests = messages.decode(frame, messages.AdvertisedFrame).digests
        return [int.from_bytes(digests[at : at + 8], "big") for at in range(0, len(digests), 40)]

    def redeal(self, dealer, holder, change):
        """Makes a dealer put `change(part) -> part` in place of one holder's part, under its own signed root."""

        def altered(frame):
            leaves = list(messages.decode(frame, messages.ShareFrame).leaves)
            index = self.view.graph.holders(dealer).index(holder)
            leaves[index] = change(self.part(dealer, holder, leaves[index])).encode()
            return self.share_frame(dealer, leaves)

        earlier = self.up.get(("share", dealer), lambda frame: frame)
        self.up["share", dealer] = lambda frame: altered(earlier(frame))

    def part(self, dealer, holder, leaf):
        """The part in a leaf."""
        overhead = SUITES[self.params.suite].box_overhead
        return messages.Part.decode(leaf, overhead, pair=self.view.graph.is_chooser(dealer, holder))

    def share_frame(self, dealer, leaves):
        """A dealer's frame of exchange 2 over some leaves."""
        header = messages.ShareHeader(binding=self.view.transcript, sender=dealer, root=merkle.Tree(leaves).root)
        return messages.encode(messages.ShareFrame(messages.seal(header, self.identities[dealer].sign), tuple(leaves)))

    def reseal(self, dealer, holder, *, root=None, self_seed=None):
        """A change of a part: other shares in the box, and commitments to them that fit."""
        secret = {"root": root, "self": self_seed}

        def change(part):
            plain = b"".join(secret[kind] or bytes(36) for kind in ("root", "self"))
            box = self.seal(Purpose.SHARES, dealer, holder, plain)
            commitments = {
                f"{kind}_commitment": share_commitment(self.view.transcript, dealer, holder, kind.encode(), share)
                for kind, share in (("root", plain[:36]), ("self", plain[36:]))
            }
            return dataclasses.replace(part, share_box=box, **commitments)

        return change

    def false_seed(self, dealer, holder, seed=b"\x07" * 32):
        """A change of a part: a pair seed that does not come from the dealer's root, properly sealed and committed to."""
        commitment = lambda: pair_commitment(self.view.transcript, dealer, holder, seed)  # noqa: E731 - T1 exists later
        return lambda part: dataclasses.replace(
            part, pair_box=self.seal(Purpose.PAIR_SEED, dealer, holder, seed), pair_commitment=commitment()
        )

    def seal(self, purpose, dealer, holder, plain):
        """A box that `dealer` can make for `holder`."""
        advert = self.view.peers[holder]
        key = advert.channel_key if purpose is Purpose.SHARES else advert.mask_key
        info = box_info(purpose, self.view.transcript, dealer, holder)
        return SUITES[self.params.suite].seal(key, plain, info=info)

    def head(self, frame, kind, by=SERVER_ID, **changes):
        """A two-layer server frame (`AdvertisedFrame`, `SharedFrame`) whose signed header of `kind` is signed anew with changes."""
        outer = messages.decode(
            frame, messages.AdvertisedFrame if kind is messages.Advertised else messages.SharedFrame
        )
        return messages.encode(msgspec.structs.replace(outer, header=self.resign(outer.header, kind, by, **changes)))

    @property
    def view(self):
        """The server's view of exchange 1."""
        state = self.session._state
        return getattr(state, "_masked", getattr(state, "_state", None)).view


def phase_before(phase):
    """The exchange before this one."""
    return PHASES[PHASES.index(phase) - 1]


def flip(frame, rnd):
    """A frame damaged on the way: bytes changed, cut off, put in or taken out."""
    data, kind = bytearray(frame), rnd.randrange(4)
    place = rnd.randrange(len(data))
    if kind == 0:
        data[place] ^= rnd.randrange(1, 256)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place:place] = bytes(rnd.randrange(256) for _ in range(rnd.choice((1, 4, 40))))
    else:
        del data[place : place + rnd.choice((1, 4, 40))]
    return bytes(data)


ODD_VALUES = (0, 1, 2, 3, -1, 2**63, 2**64 - 1, True, None, 1.0, "x", b"", bytes(32), [], {})


def distort(value, rnd):
    """Some other value in a decoded message: lists shuffled, lengthened or shortened, bytes flipped, odd values."""
    if isinstance(value, list) and value:
        out, kind = list(value), rnd.randrange(8)
        if kind == 0:
            rnd.shuffle(out)
        elif kind == 1:
            out.append(rnd.choice(out))
        elif kind == 2:
            out.pop(rnd.randrange(len(out)))
        else:
            place = rnd.randrange(len(out))
            out[place] = distort(out[place], rnd)
        return out
    if isinstance(value, bytes) and value and rnd.randrange(3):
        return flip(value, rnd)
    return rnd.choice(ODD_VALUES)


def lie(rd, frame, signer, rnd):
    """A frame distorted by its own sender, which signs what it made."""

    def header(data):
        items = distort(msgspec.msgpack.decode(msgspec.msgpack.decode(data)[0]), rnd)
        payload = msgspec.msgpack.encode(items)
        return msgspec.msgpack.encode([payload, signer.sign(Label.SIGNATURE_FRAME, payload)])

    if len(frame) > 4 and len(frame) > (end := 4 + int.from_bytes(frame[:4], "big")):
        head = header(frame[4:end])
        front = len(head).to_bytes(4, "big") + head
        return front + bytes(-len(front) % 16) + frame[end + -end % 16 :]
    items = msgspec.msgpack.decode(frame)
    if items[0] == "shares" and rnd.randrange(4):
        leaves = list(items[2])
        place = rnd.randrange(len(leaves))
        leaves[place] = flip(leaves[place], rnd)
        return rd.share_frame(signer.id, leaves)
    if isinstance(items[0], str):
        return msgspec.msgpack.encode(distort(items, rnd))
    return header(frame)


@pytest.fixture(scope="session")
def distortions():
    """`(flip, lie)`: damage on the way, `flip(frame, rnd)`, and by the sender, `lie(rd, frame, signer, rnd)`."""
    return flip, lie


@pytest.fixture
def explore(new_round, distortions):
    """`explore(machine, examples, **settings)`: run a state machine's rules in many orders; what it counted in `ended`."""

    def run(machine, examples, **fields):
        machine.ended = collections.Counter()
        chosen = settings(
            max_examples=examples,
            stateful_step_count=14,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **fields,
        )
        run_state_machine_as_test(functools.partial(machine, new_round, distortions), settings=chosen)
        return machine.ended

    return run


@pytest.fixture(scope="session")
def params_of():
    """`params_of(n=4, **fields)`: parameters of a small round."""
    return make_params


@pytest.fixture(scope="session")
def inputs_of():
    """`inputs_of(params)`: inputs of every client."""
    return make_inputs


@pytest.fixture
def new_round():
    """`new_round(n=4, inputs=None, hooks=None, **fields)`: a round to drive step by step, its invariants checked at the end."""
    rounds = []

    def build(n=4, *, inputs=None, hooks=None, **fields):
        rounds.append(Round(make_params(n, **fields), inputs=inputs, hooks=hooks))
        return rounds[-1]

    yield build
    for each in rounds:
        each.check_what_left()
