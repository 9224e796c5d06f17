"""What both sides of every exchange work with: who is speaking, what was agreed, and secrets that never print."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NoReturn, SupportsIndex

import numpy as np

from secagg import graph, messages
from secagg.crypto.kdf import Entropy, Label, derive, digest, framed
from secagg.crypto.sealing import MLKEM_SEED_LENGTH, SUITES, SecretKey, Suite
from secagg.errors import SecaggError
from secagg.graph import Graph
from secagg.identity import Identity, Roster, ServerIdentity
from secagg.params import RoundParams


class Redacted:
    """Base of everything that holds a secret: its representation is its type, and it is never copied or pickled.

    A copy of a session or state could answer a phase a second time.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce_ex__(self, _protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is never pickled or copied")


@dataclasses.dataclass(frozen=True, repr=False)
class Party(Redacted):
    """Anybody in one round."""

    params: RoundParams
    roster: Roster

    @functools.cached_property
    def context(self) -> bytes:
        """The hash of the parameters, 32 bytes."""
        return self.params.context

    @property
    def suite(self) -> Suite:
        """How this round seals."""
        return SUITES[self.params.suite]


@dataclasses.dataclass(frozen=True, repr=False)
class Member(Party):
    """A client in one round: what it agreed to and who it is."""

    identity: Identity
    entropy: Entropy

    @property
    def id(self) -> int:
        """The client id."""
        return self.identity.id


@dataclasses.dataclass(frozen=True, repr=False)
class Host(Party):
    """The server in one round."""

    identity: ServerIdentity


@dataclasses.dataclass(frozen=True)
class View:
    """What exchange 1 fixed: who advertised what, who is whose neighbour, and the hash that binds the rest of the round to it.

    Attributes:
        transcript: T1, 32 bytes.
        graph: The edges over U1.
        digests: What T1 is over: u64be id ‖ 32-byte digest for every member of U1, in order of id.
        peers: The advertisements, by client id (a client's view: its neighbours').
    """

    transcript: bytes
    graph: Graph
    digests: bytes
    peers: Mapping[int, messages.Advertise]

    @property
    def advertisers(self) -> tuple[int, ...]:
        """U1, sorted."""
        return self.graph.members


def view(party: Party, digests: bytes, members: tuple[int, ...], peers: Mapping[int, messages.Advertise]) -> View:
    """T1 over the context and the digest of every advertisement, and the graph that follows from it.

    Args:
        party: Whose view it is.
        digests: u64be id ‖ 32-byte digest for every member of U1, in order of id.
        members: U1, sorted.
        peers: The advertisements that this party knows.
    """
    transcript = digest(Label.TRANSCRIPT, party.context, digests)
    edges = graph.build(party.params.cohort, members, party.params.degree, transcript)
    return View(transcript, edges, digests, peers)


ENTRY_LENGTH = 40
"""Bytes of one member's place among the digests of U1: u64be id ‖ 32-byte digest."""


def encode_entries(frames: Mapping[int, bytes]) -> bytes:
    """The digests of some advertisements, by id and in order of id, side by side."""
    return b"".join(encode_ids((client,)) + advertisement_digest(frame) for client, frame in frames.items())


def entry_ids(digests: bytes) -> tuple[int, ...]:
    """Whose digests these are; a whole number of entries."""
    return tuple(np.frombuffer(digests, ">u8").reshape(-1, ENTRY_LENGTH // 8)[:, 0].tolist())


def entry_digest(digests: bytes, place: int) -> bytes:
    """The digest in one place."""
    return digests[ENTRY_LENGTH * place + 8 : ENTRY_LENGTH * (place + 1)]


def advertisement_digest(frame: bytes) -> bytes:
    """32 bytes over an advertisement as it was received, signature included."""
    return digest(Label.ADVERTISEMENT, frame)


def key_pair(suite: Suite, root: bytes, context: bytes, mlkem: Label, x25519: Label) -> SecretKey:
    """The key pair that a 32-byte root gives under two labels; the ML-KEM one is of no use in the classical suite."""
    seed = derive(root, mlkem, salt=context, length=MLKEM_SEED_LENGTH) if suite.hybrid else None
    return suite.key_pair(seed, derive(root, x25519, salt=context))


def mask_key_pair(suite: Suite, root: bytes, context: bytes) -> SecretKey:
    """The key pair that pair seeds are sealed to: a function of the mask root R, so that R alone opens the edges."""
    return key_pair(suite, root, context, Label.MASK_KEY_MLKEM, Label.MASK_KEY_X25519)


def pair_seed(root: bytes, transcript: bytes, chooser: int, peer: int) -> bytes:
    """s_ij = HKDF(R_i, "pair", T1, i, j), 32 bytes."""
    return derive(root, Label.PAIR_SEED, chooser, peer, salt=transcript)


def pair_commitment(transcript: bytes, chooser: int, peer: int, seed: bytes) -> bytes:
    """C_ij, 32 bytes: what a revealed pair seed is checked against."""
    return digest(Label.PAIR_COMMITMENT, transcript, chooser, peer, seed)


ROOT, SELF = b"root", b"self"
"""The two kinds of share, as they stand in a commitment."""


def share_commitment(transcript: bytes, dealer: int, holder: int, kind: bytes, share: bytes) -> bytes:
    """32 bytes over all nine limbs at once: a single limb would be searchable.

    Args:
        transcript: T1.
        dealer: Whose secret it is.
        holder: Who keeps the share.
        kind: `ROOT` or `SELF`.
        share: 36 bytes.
    """
    return _share_committer(transcript, holder, kind)(dealer, share)


@functools.lru_cache(maxsize=4)
def _share_committer(transcript: bytes, holder: int, kind: bytes) -> Callable[[int, bytes], bytes]:
    """What `digest` gives, with all that a holder's shares have in common framed once: a server checks one for every share."""
    before = framed(Label.SHARE_COMMITMENT) + b"\x01" + len(transcript).to_bytes(4, "big") + transcript + b"\x00"
    between = b"\x00" + holder.to_bytes(8, "big") + b"\x01" + len(kind).to_bytes(4, "big") + kind + b"\x01"

    def commitment(dealer: int, share: bytes) -> bytes:
        item = len(share).to_bytes(4, "big") + share
        return hashlib.sha256(before + dealer.to_bytes(8, "big") + between + item).digest()

    return commitment


def seed_commitment(context: bytes, client: int, self_seed: bytes) -> bytes:
    """32 bytes in the advertisement: what a reconstructed self seed is checked against."""
    return digest(Label.SEED_COMMITMENT, context, client, self_seed)


def statement(transcript: bytes, sharers: tuple[int, ...], survivors: tuple[int, ...]) -> bytes:
    """The digest of S = (T1, U2, U3), 32 bytes: what a client signs at most once a round. S itself never travels."""
    return digest(Label.STATEMENT, transcript, encode_ids(sharers), encode_ids(survivors))


def encode_ids(clients: tuple[int, ...]) -> bytes:
    """Ids side by side, u64be."""
    return np.array(clients, ">u8").tobytes()


class Outbox(Mapping[int, bytes]):
    """Answers by recipient, each made when it is asked for: together they can be larger than memory.

    Args:
        recipients: Client ids, sorted.
        make: Gives the answer to one of them, the same one every time.
    """

    def __init__(self, recipients: Iterable[int], make: Callable[[int], bytes]) -> None:
        self._recipients = dict.fromkeys(recipients)
        self._make = make

    def __getitem__(self, recipient: int) -> bytes:
        if recipient not in self._recipients:
            raise KeyError(recipient)
        return self._make(recipient)

    def __contains__(self, recipient: object) -> bool:
        return recipient in self._recipients

    def __iter__(self) -> Iterator[int]:
        return iter(self._recipients)

    def __len__(self) -> int:
        return len(self._recipients)


Answers = Mapping[int, bytes]
Rejected = dict[int, SecaggError]
