"""The roster on disk: who takes part, with which keys, and who no longer does; every change counted, chained and signed.

The file is JSON. What is hashed and signed is its canonical form [RFC8785] without the signature, so that spacing and order are free. A key
that was retired or revoked stays in the file, and can come back for nobody.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import msgspec
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from secagg.crypto.kdf import Label, digest, framed
from secagg.crypto.sealing import SUITES
from secagg.errors import ParameterError, RosterError, SealError
from secagg.files import one_line, parse_json, read_file, write_file
from secagg.identity import Roster, Signer, checked
from secagg.keyfile import ClientKey, Id, KeyHex, Name, SealingHex, ServerKey, check_id, check_name

StrPath = str | os.PathLike[str]

FORMAT: Final = "secagg-roster/1"
MAX_FILE = 8 * 2**20
"""Bytes of the largest roster that is read: about 40 000 clients."""

Sequence = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
SignatureHex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}\Z")]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    since: Sequence


class Member(_Entry, frozen=True, kw_only=True):
    """One client.

    Attributes:
        id: The client id (u64) in decimal.
        name: What people call the site.
        public_key: Raw Ed25519 public key in hex.
        status: Only an active member is on the roster of a round. Revoked: its key may be in wrong hands. Left: it went.
        since: The sequence number of the change that made this entry what it is.
    """

    id: Id
    name: Name
    public_key: KeyHex
    status: Literal["active", "revoked", "left"]


class Server(_Entry, frozen=True, kw_only=True):
    """The server's keys for one suite.

    Attributes:
        suite: "hybrid" or "classical"; one entry each at most.
        name: What people call the server.
        verify_key: Raw Ed25519 public key in hex.
        sealing_key: Raw HPKE public key in hex.
        since: As of a member.
    """

    suite: Literal["hybrid", "classical"]
    name: Name
    verify_key: KeyHex
    sealing_key: SealingHex


class Retired(_Entry, frozen=True, kw_only=True):
    """A key that was replaced.

    Attributes:
        owner: Whose it was: "client 3", "server hybrid", "consortium".
        key: In hex.
        since: The sequence number of the change that replaced it.
    """

    owner: Annotated[str, msgspec.Meta(pattern=r"^(client [0-9]{1,20}|server (hybrid|classical)|consortium)\Z")]
    key: SealingHex


class RosterFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One state of the roster; every change gives a new one, unsigned.

    Attributes:
        format: "secagg-roster/1".
        sequence: How many changes there were.
        previous: The digest of every earlier state, in hex, from the empty one on: `previous[k]` is that of sequence k. Whoever has
            seen one of them can tell a successor from a fork, however many states it missed.
        consortium: The public key that signs the roster, in hex; None before the first signature.
        members: Clients, in order of id.
        servers: In order of suite.
        retired: Keys that were replaced, oldest first.
        signature: The consortium's over `digest()`, in hex.

    Raises:
        RosterError: Entries contradict each other; names them.

    Guarantees:
        No key is there twice, whether active, revoked or retired, whoever it belongs to.
    """

    format: Literal["secagg-roster/1"]
    sequence: Sequence
    previous: tuple[KeyHex, ...]
    consortium: KeyHex | None
    members: tuple[Member, ...]
    servers: tuple[Server, ...]
    retired: tuple[Retired, ...]
    signature: SignatureHex | None

    @classmethod
    def empty(cls) -> Self:
        """The state that every roster begins with."""
        return cls(
            format=FORMAT, sequence=0, previous=(), consortium=None, members=(), servers=(), retired=(), signature=None
        )

    def __post_init__(self) -> None:
        if len(self.previous) != self.sequence:
            raise RosterError(f"sequence {self.sequence} with {len(self.previous)} earlier states")
        if self.signature is not None and self.consortium is None:
            raise RosterError("a signature, and no consortium key that it could be of")
        _check_entries(self)
        _check_keys(self)

    def digest(self) -> bytes:
        """SHA-256 over the canonical content, all but the signature (32 bytes): what the consortium signs and people compare."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        del content["signature"]
        return digest(Label.ROSTER_FILE, rfc8785.dumps(content))

    def roster(self, suite: str = "hybrid") -> Roster:
        """The roster of a round: the active members and the server's keys for one suite.

        Raises:
            RosterError: There is no server for this suite.
        """
        for server in self.servers:
            if server.suite == suite:
                return Roster(
                    clients={int(m.id): bytes.fromhex(m.public_key) for m in self.members if m.status == "active"},
                    server_verify_key=bytes.fromhex(server.verify_key),
                    server_sealing_key=bytes.fromhex(server.sealing_key),
                )
        raise RosterError(f"the roster has no server for the {suite} suite")

    def add(self, *keys: ClientKey | ServerKey, replace: bool = False) -> Self:
        """The roster with some more keys, in one change.

        Args:
            *keys: Public halves.
            replace: They take the place of these parties' present keys, which are retired; a client that was revoked or left is
                active again, with its new key.

        Raises:
            RosterError: A party is on the roster already (`replace`: is not), or a key is or was somebody's.
        """
        since = self.sequence + 1
        members, servers = {m.id: m for m in self.members}, {s.suite: s for s in self.servers}
        retired = list(self.retired)
        for key in keys:
            known: dict[Any, Any] = members if isinstance(key, ClientKey) else servers
            place, owner = (
                (key.id, f"client {key.id}") if isinstance(key, ClientKey) else (key.suite, f"server {key.suite}")
            )
            if (place in known) != replace:
                raise RosterError(f"{owner} is not on the roster" if replace else f"{owner} is on the roster already")
            if replace:
                retired += [Retired(owner=owner, key=old, since=since) for old in _keys_of(known[place])]
            fields = {name: getattr(key, name) for name in key.__struct_fields__ if name != "format"}
            if isinstance(key, ClientKey):
                members[key.id] = Member(**fields, status="active", since=since)
            else:
                servers[key.suite] = Server(**fields, since=since)
        return self._next(
            members=tuple(sorted(members.values(), key=lambda member: int(member.id))),
            servers=tuple(sorted(servers.values(), key=lambda server: server.suite)),
            retired=tuple(retired),
        )

    def revoke(self, id: int, *, left: bool = False) -> Self:  # noqa: A002 - the field that it names
        """The roster with a member no longer active; it stays in the file, so that its key can't come back.

        Args:
            id: The client id.
            left: The site went, and nothing is wrong with its key.

        Raises:
            RosterError: There is no such member, or it is not active.
        """
        found = [member for member in self.members if member.id == str(id)]
        if not found:
            raise RosterError(f"client {id} is not on the roster")
        if found[0].status != "active":
            raise RosterError(f"client {id} is not active: {found[0].status} since sequence {found[0].since}")
        changed = msgspec.structs.replace(found[0], status="left" if left else "revoked", since=self.sequence + 1)
        return self._next(members=tuple(changed if member is found[0] else member for member in self.members))

    def sign(self, signer: Signer, *, replace: bool = False) -> Self:
        """The roster, signed. The first signature, and one of a new consortium key, is a change and raises the sequence number.

        Args:
            signer: The consortium's key.
            replace: It takes the place of the present consortium key, which is retired; every site must pin it anew.

        Raises:
            RosterError: The roster names another consortium key, or the key is or was somebody's.
            SignerError: The signer failed.
        """
        key = checked(signer)
        roster, public = self, key.public_key.hex()
        if self.consortium is None:
            roster = self._next(consortium=public)
        elif self.consortium != public:
            if not replace:
                raise RosterError(f"the consortium key is {self.consortium}, and this is {public}")
            old = Retired(owner="consortium", key=self.consortium, since=self.sequence + 1)
            roster = self._next(consortium=public, retired=(*self.retired, old))
        signature = key.sign(framed(Label.SIGNATURE_ROSTER) + roster.digest())
        return msgspec.structs.replace(roster, signature=signature.hex())

    def save(self, path: StrPath) -> None:
        """Write the file whole, on the disk when this returns; a link stays one, and the file that it names is replaced.

        Raises:
            RosterError: It cannot be written, or would be too large to be read.
        """
        data = msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"
        if len(data) > MAX_FILE:
            raise RosterError(f"{path}: would have more than {MAX_FILE} bytes")
        write_file(Path(path).resolve(), data, kind=RosterError, mode=0o644, overwrite=True)

    def _next(self, **changes: Any) -> Self:  # noqa: ANN401 - fields of this class
        previous = (*self.previous, self.digest().hex())
        return msgspec.structs.replace(self, sequence=self.sequence + 1, previous=previous, signature=None, **changes)

    def _check_signature(self, pinned: bytes | None) -> None:
        if pinned is not None and self.consortium != pinned.hex():
            raise RosterError(f"the consortium key is {self.consortium or 'none'}, and {pinned.hex()} is pinned")
        if self.signature is None or self.consortium is None:
            if pinned is not None:
                raise RosterError("not signed, and the consortium key is pinned")
            return
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.consortium))
        try:
            key.verify(bytes.fromhex(self.signature), framed(Label.SIGNATURE_ROSTER) + self.digest())
        except InvalidSignature:
            raise RosterError("the signature does not fit the content") from None


def load(path: StrPath, *, pinned: bytes | None, at_least: int = 0, seen: bytes | None = None) -> RosterFile:
    """A roster from its file, strictly.

    Args:
        path: The file.
        pinned: The consortium's public key (32 bytes), as the site got it out of band. None: an unsigned roster is taken too, and
            a signed one says only that its own key signed it.
        at_least: The sequence number last accepted.
        seen: The digest of the state last accepted (32 bytes). None: forks are not looked for.

    Raises:
        RosterError: It cannot be read; is malformed; is not signed by the pinned key, or its content was changed; is older than
            `at_least`, or does not come after `seen`. Names the file and the entry.

    Guarantees:
        With a pinned key, returns only what its owner signed; with `at_least`, nothing older; with `seen`, no fork.
    """
    data = read_file(Path(path), MAX_FILE, kind=RosterError)
    try:
        roster = msgspec.convert(parse_json(data), RosterFile)
        roster._check_signature(pinned)  # noqa: SLF001 - a loaded roster has been through it, always
    except (ValueError, RosterError) as error:
        raise RosterError(f"{path}: {one_line(error)}") from None
    if roster.sequence < at_least:
        raise RosterError(f"{path}: sequence {roster.sequence} is older than {at_least}, which was seen before")
    if seen is not None and seen.hex() not in (*roster.previous, roster.digest().hex()):
        raise RosterError(f"{path}: does not come after the state {seen.hex()[:16]}… that was seen before: a fork")
    return roster


def _keys_of(entry: Member | Server) -> tuple[str, ...]:
    return (entry.public_key,) if isinstance(entry, Member) else (entry.verify_key, entry.sealing_key)


def _owned(roster: RosterFile) -> Iterator[tuple[str, str]]:
    """(key, whose), of every key in the file."""
    for member in roster.members:
        yield member.public_key, f"client {member.id}" + ("" if member.status == "active" else f" ({member.status})")
    for server in roster.servers:
        for key in _keys_of(server):
            yield key, f"server {server.suite}"
    for old in roster.retired:
        yield old.key, f"{old.owner} (retired)"
    if roster.consortium is not None:
        yield roster.consortium, "consortium"


def _check_keys(roster: RosterFile) -> None:
    owners: dict[str, str] = {}
    for key, owner in _owned(roster):
        if key in owners:
            raise RosterError(f"{owners[key]} and {owner} have the same key; no key ever serves twice")
        owners[key] = owner
    signing = [(m.public_key, f"client {m.id}") for m in roster.members]
    signing += [(s.verify_key, f"server {s.suite}") for s in roster.servers]
    signing += [(roster.consortium, "consortium")] if roster.consortium is not None else []
    for key, owner in signing:
        if int.from_bytes(bytes.fromhex(key), "little") % 2**255 in _SMALL_ORDER:
            raise RosterError(f"{owner} has a key of small order, for which anybody can sign")


def _check_entries(roster: RosterFile) -> None:
    try:
        ids = [check_id(member.id) for member in roster.members]
        for name in [member.name for member in roster.members] + [server.name for server in roster.servers]:
            check_name(name)
        for server in roster.servers:
            SUITES[server.suite].check_public_key(bytes.fromhex(server.sealing_key))
    except (ParameterError, SealError) as error:
        raise RosterError(str(error)) from None
    _check_order("client", ids)
    _check_order("server", [server.suite for server in roster.servers])
    for entry in (*roster.members, *roster.servers, *roster.retired):
        if not 1 <= entry.since <= roster.sequence:
            raise RosterError(f"an entry of sequence {entry.since} in a roster of sequence {roster.sequence}")


def _check_order(what: str, places: list[Any]) -> None:
    for one, other in itertools.pairwise(places):
        if one == other:
            raise RosterError(f"{what} {one} is there twice")
        if one > other:
            raise RosterError(f"{what} {other} comes after {what} {one}: out of order")


_P = 2**255 - 19
_Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
# The y-coordinates of the eight points of small order on edwards25519, and the encodings of them that are not reduced [RFC8032] 5.1.3.
_SMALL_ORDER = {0, 1, _P - 1, _Y8, _P - _Y8, _P, _P + 1}
