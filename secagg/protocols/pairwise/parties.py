"""What both sides of every exchange work with: who is speaking, what was agreed, and secrets that never print."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NoReturn, SupportsIndex

from secagg import graph, messages
from secagg.crypto.kdf import Entropy, Label, derive, digest
from secagg.crypto.sealing import MLKEM_SEED_LENGTH, SUITES, SecretKey, Suite
from secagg.errors import SecaggError
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
    roster: Roster
    entropy: Entropy

    @property
    def id(self) -> int:
        """The client id."""
        return self.identity.id


@dataclasses.dataclass(frozen=True, repr=False)
class Host(Party):
    """The server in one round."""

    identity: ServerIdentity
    roster: Roster


@dataclasses.dataclass(frozen=True)
class View:
    """What exchange 1 fixed: who advertised what, and the transcript hash that binds the rest of the round to it.

    Attributes:
        transcript: T1, 32 bytes.
        advertisers: U1, sorted.
        peers: The advertisements, by client id (a client's view: its neighbours').
    """

    transcript: bytes
    advertisers: tuple[int, ...]
    peers: Mapping[int, messages.Advertise]


def transcript_hash(context: bytes, digests: Mapping[int, bytes]) -> bytes:
    """T1 over the context and the digest of every advertisement, in cohort order."""
    items: list[bytes | int] = [context]
    for client in sorted(digests):
        items += [client, digests[client]]
    return digest(Label.TRANSCRIPT, *items)


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


def share_commitment(transcript: bytes, dealer: int, holder: int, kind: bytes, share: bytes) -> bytes:
    """32 bytes over all nine limbs at once: a single limb would be searchable.

    Args:
        transcript: T1.
        dealer: Whose secret it is.
        holder: Who keeps the share.
        kind: b"root" or b"self".
        share: 36 bytes.
    """
    return digest(Label.SHARE_COMMITMENT, transcript, dealer, holder, kind, share)


def seed_commitment(context: bytes, client: int, self_seed: bytes) -> bytes:
    """32 bytes in the advertisement: what a reconstructed self seed is checked against."""
    return digest(Label.SEED_COMMITMENT, context, client, self_seed)


def statement(transcript: bytes, sharers: tuple[int, ...], survivors: tuple[int, ...]) -> bytes:
    """S = (T1, U2, U3) as the bytes that clients sign."""
    return messages.encode(messages.Statement(transcript, sharers, survivors))


def holders(params: RoundParams, advertisers: tuple[int, ...], dealer: int) -> tuple[int, ...]:
    """N(i) and i itself, sorted: who holds shares of dealer i's secrets, and the order of its Merkle leaves."""
    return tuple(sorted((*graph.neighbours(params, advertisers, dealer), dealer)))


Replies = Mapping[int, bytes]
Answers = dict[int, bytes]
Rejected = dict[int, SecaggError]
