"""Profiles of the property tests, and a round that a test drives by hand.

No deadlines anywhere (the machines are shared), and the same examples on every CI run.
"""

import atexit
import collections
import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import settings

from secagg import messages
from secagg.crypto import merkle
from secagg.crypto.sealing import SERVER_ID, SUITES, Purpose, box_info
from secagg.errors import PeerFault, SecaggError
from secagg.params import PHASES
from secagg.protocols.pairwise import ClientSession, ServerSession
from secagg.protocols.pairwise.parties import advertisement_digest, pair_commitment, share_commitment, view
from secagg.testing import parties

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Workers and the processes that tests start inherit it: a program that one of them compiled is compiled for all.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="tests-jax-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


class Round:
    """A round driven step by step, in which a test may change any frame.

    `run` and `step` go on by themselves: `up[phase, client]` changes what a client sends in a phase, `down[phase, client]` what the server
    answers it there; each takes the frame and gives another one, or None for silence. Or a test goes on by hand: it takes what the
    clients send from `ask`, hands over what it likes with `deliver`, and ends the phase with `close`.

    Attributes:
        clients: The sessions by id; replace one to restart it.
        session: The server's session.
        answers: What the server sent last, by recipient; None before the first exchange.
        sent: What each client sent, by phase and id, before `up` changed it.
        answered: What the server answered, by phase and recipient.
        errors: Errors of clients, which are silent from then on.
        refused: (phase, sender, error) of frames that the server did not take.
        raised: What ended the round, if it ended with an error.
        secrets: Every secret that a client held when a phase ended.
    """

    def __init__(self, params, inputs, hooks=None):
        self.params, self.inputs = params, inputs
        self.identities, self.server, self.roster = parties(params.cohort, params.suite)
        self.clients = {i: self.client(i, **(hooks or {}).get(i, {})) for i in params.cohort}
        self.session = ServerSession(params, self.server, self.roster)
        self.up, self.down = {}, {}
        self.errors, self.refused, self.raised = {}, [], None
        self.secrets = set()
        self.sent, self.answered = collections.defaultdict(dict), collections.defaultdict(dict)
        self.answers = None

    def client(self, i, *, params=None, inputs=None, **hooks):
        """A fresh session of client i."""
        values = self.inputs[i] if inputs is None else inputs
        return ClientSession(params or self.params, self.identities[i], self.roster, values, **hooks)

    def ask(self, phase=None):
        """Every awaited client's frame of a phase, as it sent it, before `up` changes it. None: of the phase that is open."""
        phase = self.session.phase if phase is None else phase
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

    def deliver(self, frames):
        """Hands frames, `{sender: frame}` or pairs, to the server."""
        phase = self.session.phase
        for sender, frame in frames.items() if isinstance(frames, dict) else frames:
            try:
                self.session.receive(sender, frame)
            except SecaggError as error:
                self.refused.append((phase, sender, error))

    def close(self):
        """The server closes the phase."""
        phase = self.session.phase
        assert phase not in self.answered, "a phase comes once"
        self.collect_secrets()
        try:
            self.answers = self.session.close_phase()
        except SecaggError as error:
            self.raised = error
            raise
        self.answered[phase] = self.answers

    def step(self):
        """One exchange: clients answer, frames are changed, the server closes the phase."""
        phase = self.session.phase
        changed = ((i, self.up[phase, i](f) if (phase, i) in self.up else f) for i, f in self.ask(phase).items())
        self.deliver((i, frame) for i, frame in changed if frame is not None)  # each is changed when its turn has come
        self.close()

    def run(self, until=None):
        """Steps to the end, for the result, or until `until` is the phase whose frames are awaited."""
        while self.session.phase not in (until, None):
            self.step()
        return self if self.session.phase else self.session.result

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
        rejected, refused = self.session._rejected.values(), [error for _, _, error in self.refused]
        for error in filter(None, (self.raised, *self.errors.values(), *refused, *rejected)):
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

    @staticmethod
    def split_mask(frame):
        """A mask frame's header and body."""
        end = 4 + int.from_bytes(frame[:4], "big")
        return frame[4:end], frame[end + -end % 16 :]

    @staticmethod
    def mask_frame(header, body):
        """A header and a body as they travel."""
        front = len(header).to_bytes(4, "big") + header
        return front + bytes(-len(front) % 16) + body

    def sign_mask_header(self, client, **changes):
        """Makes a client sign another mask header around its body."""

        def change(frame):
            header, body = self.split_mask(frame)
            return self.mask_frame(self.resign(header, messages.MaskHeader, by=client, **changes), body)

        self.up["mask", client] = change

    # What the round leaves behind as evidence.

    @property
    def digests(self):
        """What T1 was made of, as the server told everybody."""
        frame = next(iter(self.answered["advertise"].values()))
        return messages.decode(frame, messages.AdvertisedFrame).digests

    def fault_of(self, party):
        """The evidence of the finding about a client, as the server kept it and nothing added."""
        found = self.raised if isinstance(self.raised, PeerFault) else self.session.rejected[party]
        assert party == (found.party if isinstance(found, PeerFault) else found.parties[0])
        return dict(found.evidence)

    def owed(self, client):
        """What shows which answers a client owed in exchange 5."""
        result = self.session.result
        return {
            "mask header": self.split_mask(self.sent["mask"][client])[0],
            "statement signature": messages.decode(self.sent["confirm"][client], messages.Confirm).signature,
            "sharers": np.array(result.sharers, ">u8").tobytes(),
            "survivors": np.array(result.survivors, ">u8").tobytes(),
        }

    @property
    def view(self):
        """The server's view of exchange 1."""
        state = self.session._state
        return getattr(state, "_masked", getattr(state, "_state", None)).view


def phase_before(phase):
    """The exchange before this one."""
    return PHASES[PHASES.index(phase) - 1]


@pytest.fixture
def by_hand():
    """`by_hand(params, inputs, {client: options of its session})`: a round to drive, what holds in every round checked at the end."""
    rounds = []

    def build(params, inputs, hooks=None):
        rounds.append(Round(params, inputs, hooks))
        return rounds[-1]

    yield build
    for each in rounds:
        each.check_what_left()


MANY_RUNS = [Path(__file__).parent / folder for folder in ("cases", "fl/simulation")]


@pytest.fixture(autouse=True)
def _short_reports(request, monkeypatch):
    """Where tests make many runs, charts take longer than those; a test that reads a run's report asks for `whole_report`."""
    if "whole_report" in request.fixturenames or request.path.parent not in MANY_RUNS:
        return
    from fl.simulation import alone, runs

    def write(folder):
        path = Path(folder) / "report.html"
        path.write_text("a test that reads its report asks for it")
        return path

    for module in (alone, runs):
        monkeypatch.setattr(module, "write_report", write)


@pytest.fixture
def whole_report():
    """The run's report is written as it is for users."""
