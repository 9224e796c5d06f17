"""What everybody must agree on before a round: cohort, thresholds, blocks, suite, and the application's context.

`RoundParams` proves on construction that the round can work (enough honest clients above the threshold, a quorum that
makes the survivor set unique) and that no honest sum can wrap around, or refuses with the numbers. The server proposes
parameters; a client holds its own and refuses frames bound to others, because the hash of all of them, `context`, is in
every key, signature and box.
"""

import dataclasses
import os
import warnings
from typing import Annotated, Literal

import msgspec

from secagg import ring
from secagg.crypto.kdf import Label, digest
from secagg.crypto.sealing import SERVER_ID, SUITES
from secagg.errors import DecodeError, ParameterError

PROTOCOL_VERSION: Literal[1] = 1
PHASES = ("advertise", "share", "mask", "confirm", "unmask")
COMPLETE_GRAPH_MAX = 200
MAX_BODY_LENGTH = 2**31
MAX_ENCODED_LENGTH = 2**16
_U64_MAX = 2**64 - 1


class SlackWarning(UserWarning):
    """Parameters that are sound but leave no room for a client that is slow or silent."""


def _unset(value: object) -> bool:
    """Whether the caller left a field to its default, which the constructor resolves."""
    return value is None


def _encoded_length(name: str) -> int:
    """Bytes in UTF-8; 0 for a string that has no encoding, such as a lone surrogate."""
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        return 0


def _require_int(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ParameterError(f"{name} = {value} is outside {low}..{high}")
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """One named vector of a round, summed in its own ring Z_2^bits.

    Attributes:
        name: Unique in the round.
        length: Number of coordinates d, 0 or more.
        bits: Ring width b, 2..64.
        bound: Largest absolute value that one client may contribute to a coordinate (its noise's hard maximum included).

    Raises:
        ParameterError: bound >= 2^(bits-1), or a field out of range.
    """

    name: str
    length: int
    bits: int
    bound: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 1 <= _encoded_length(self.name) <= 255:
            raise ParameterError(f"block name {self.name!r} must be a string of 1..255 bytes")
        _require_int(f"block {self.name!r}: length", self.length, 0, 2**40)
        _require_int(f"block {self.name!r}: bits", self.bits, 2, 64)
        _require_int(f"block {self.name!r}: bound", self.bound, 0, 2**63)
        if self.bound >= 2 ** (self.bits - 1):
            raise ParameterError(
                f"block {self.name!r}: bound = {self.bound} does not fit into signed {self.bits}-bit values "
                f"(bound < 2^{self.bits - 1}); bits = {self.bound.bit_length() + 1} would do"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoundParams:
    """The public parameters of one round ([BIK+17] section 4, with the rules of docs/protocol.md).

    Attributes:
        cohort: Client ids (u64 below 2^64 - 1); sorted here, at least 3, no duplicates.
        blocks: The vectors to sum.
        threshold: Shares needed to open a secret, t. None: the smallest sound one for `colluders`.
        colluders: Clients, c, that may cheat or share what they see with the server.
        dropouts: Clients, r, that may go silent. None: as many as the threshold and the quorum leave room for.
        suite: "hybrid" (ML-KEM-768 + X25519) or "classical" (X25519).
        degree: Neighbours of a client, k. None: everybody (the complete graph).
        session: 16 bytes. None: fresh from the operating system.
        round: Round number (u64), 0 is valid.
        app_context: 32-byte hash of everything at the application that determines the inputs (model, plan, reservation).
        min_survivors: Fewest vectors that a sum may contain. None: max(n - r, quorum).
        adversary: "lying" (a server that may show different things to different clients) or "curious" (waives the
            rule 2t > n + c, nothing else).

    Raises:
        ParameterError: Infeasible or unsound; the message has the numbers.

    Guarantees:
        For inputs within each block's bound no sum of any subset of the cohort wraps around in the block's ring.
    """

    cohort: tuple[int, ...]
    blocks: tuple[Block, ...]
    threshold: int = dataclasses.field(default=None)  # type: ignore[assignment]  # resolved to an int on construction
    colluders: int = 0
    dropouts: int = dataclasses.field(default=None)  # type: ignore[assignment]  # resolved to an int on construction
    suite: str = "hybrid"
    degree: int = dataclasses.field(default=None)  # type: ignore[assignment]  # resolved to an int on construction
    session: bytes = dataclasses.field(default=None)  # type: ignore[assignment]  # resolved to bytes on construction
    round: int = 0
    app_context: bytes = bytes(32)
    min_survivors: int = dataclasses.field(default=None)  # type: ignore[assignment]  # resolved to an int on construction
    adversary: str = "lying"

    def __post_init__(self) -> None:
        n = self._check_cohort()
        if self.suite not in SUITES:
            raise ParameterError(f"suite {self.suite!r} is unknown; one of {sorted(SUITES)}")
        if self.adversary not in ("lying", "curious"):
            raise ParameterError(f"adversary {self.adversary!r} is unknown; 'lying' or 'curious'")
        if _unset(self.degree):
            self._resolve("degree", n - 1)
        if self.degree != n - 1:
            raise ParameterError(
                f"degree = {self.degree}: only the complete graph, degree n - 1 = {n - 1}, is supported"
            )
        if _unset(self.session):
            self._resolve("session", os.urandom(16))
        for name, value, length in (("session", self.session, 16), ("app_context", self.app_context, 32)):
            if not isinstance(value, bytes) or len(value) != length:
                raise ParameterError(f"{name} must be {length} bytes")
        _require_int("round", self.round, 0, _U64_MAX)
        self._resolve_thresholds(n)
        self._check_blocks(n)
        self._warn_without_slack(n)

    def _resolve(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_cohort(self) -> int:
        ids = [_require_int("client id", i, 0, SERVER_ID - 1) for i in self.cohort]
        self._resolve("cohort", tuple(sorted(ids)))
        if len(ids) < 3:
            raise ParameterError(f"a cohort of {len(ids)} cannot hide anybody: at least 3 clients are needed")
        if len(ids) > COMPLETE_GRAPH_MAX:
            raise ParameterError(
                f"n = {len(ids)}: only the complete graph is supported, and that up to {COMPLETE_GRAPH_MAX} clients"
            )
        if len(set(ids)) != len(ids):
            raise ParameterError(f"client ids appear twice: {sorted({i for i in ids if ids.count(i) > 1})}")
        return len(ids)

    def _resolve_thresholds(self, n: int) -> None:
        c = _require_int("colluders", self.colluders, 0, n - 1)
        q = self.quorum(n)
        if _unset(self.threshold):
            self._resolve("threshold", max(2, (n + c) // 2 + 1))
        t = _require_int("threshold", self.threshold, 0, _U64_MAX)
        if not 2 <= t <= n - 1:
            raise ParameterError(
                f"threshold t = {t} must be in 2..{n - 1} (n = {n}, c = {c}; a client keeps one share itself)"
            )
        if t <= c:
            raise ParameterError(f"threshold t = {t} must exceed the colluders c = {c}, who would open everybody")
        if self.adversary == "lying" and 2 * t <= n + c:
            raise ParameterError(
                f"threshold t = {t} is too low against a lying server: 2t > n + c = {n + c} is needed, t >= {(n + c) // 2 + 1}"
            )
        if _unset(self.dropouts):
            self._resolve("dropouts", max(0, n - max(t, q)))
        r = _require_int("dropouts", self.dropouts, 0, n)
        if n - r < t or n - r < q:
            raise ParameterError(
                f"n - r = {n - r} clients cannot reach threshold t = {t} and quorum q = {q} (n = {n}, r = {r}, c = {c})"
            )
        if _unset(self.min_survivors):
            self._resolve("min_survivors", max(n - r, q))
        m = _require_int("min_survivors", self.min_survivors, 0, _U64_MAX)
        if not max(q, t) <= m <= n:
            raise ParameterError(f"min_survivors = {m} must be in {max(q, t)}..{n} (quorum q = {q}, threshold t = {t})")

    def _check_blocks(self, n: int) -> None:
        self._resolve("blocks", tuple(self.blocks))
        names = [block.name for block in self.blocks]
        if not names:
            raise ParameterError("a round needs at least one block")
        if len(set(names)) != len(names):
            raise ParameterError(f"block names appear twice: {sorted({x for x in names if names.count(x) > 1})}")
        for block in self.blocks:
            if n * block.bound >= 2 ** (block.bits - 1):
                needed = (n * block.bound).bit_length() + 1
                cure = (
                    f"bits = {needed} would do" if needed <= 64 else "no ring up to 64 bits would do: lower the bound"
                )
                raise ParameterError(
                    f"block {block.name!r} could wrap around: n = {n} clients x bound {block.bound} >= 2^{block.bits - 1} "
                    f"with bits = {block.bits}; {cure}"
                )
        sizes = {block.name: ring.packed_length(block.length, block.bits) for block in self.blocks}
        if sum(sizes.values()) >= MAX_BODY_LENGTH:
            largest = max(sizes, key=lambda name: sizes[name])
            raise ParameterError(
                f"the blocks take {sum(sizes.values())} bytes a client, and one tag covers less than {MAX_BODY_LENGTH}; "
                f"block {largest!r} is the largest with {sizes[largest]}: split it over rounds"
            )

    def _warn_without_slack(self, n: int) -> None:
        # A colluder can go silent, and before that cost one honest client its place by a false refusal.
        left, q = n - self.dropouts - 2 * self.colluders, self.quorum(n)
        if left < max(self.threshold, q):
            warnings.warn(
                f"n - r - 2c = {left} is under threshold t = {self.threshold} or quorum q = {q}: colluders that refuse "
                "honest clients and go silent can end the round (they can open nobody)",
                SlackWarning,
                stacklevel=4,
            )
        if self.min_survivors == n:
            warnings.warn(f"min_survivors = n = {n}: one silent client ends the round", SlackWarning, stacklevel=4)

    def quorum(self, advertised: int) -> int:
        """Signatures over one survivor statement that make it the only one: q = floor((n1 + c) / 2) + 1.

        Args:
            advertised: n1, how many clients are in U1.
        """
        return (advertised + self.colluders) // 2 + 1

    def encode(self) -> bytes:
        """The canonical encoding, which `context` hashes and a server sends to open a round."""
        return _ENCODER.encode(
            _Wire(
                version=PROTOCOL_VERSION,
                suite=self.suite,
                session=self.session,
                round=self.round,
                cohort=self.cohort,
                threshold=self.threshold,
                degree=self.degree,
                colluders=self.colluders,
                dropouts=self.dropouts,
                blocks=tuple((b.name, b.length, b.bits, b.bound) for b in self.blocks),
                app_context=self.app_context,
                min_survivors=self.min_survivors,
                adversary=self.adversary,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> "RoundParams":
        """Parameters from their canonical encoding, with every check of the constructor.

        Raises:
            DecodeError: Not a canonical encoding of this protocol version.
            ParameterError: Decodable, but infeasible or unsound.
        """
        if len(data) > MAX_ENCODED_LENGTH:
            raise DecodeError(f"round parameters: {len(data)} bytes, at most {MAX_ENCODED_LENGTH} are read")
        try:
            wire = _DECODER.decode(data)
        except ValueError as error:  # msgspec's errors, and text that is no UTF-8
            raise DecodeError(f"round parameters: {error}") from None
        params = cls(
            cohort=wire.cohort,
            blocks=tuple(Block(*block) for block in wire.blocks),
            threshold=wire.threshold,
            colluders=wire.colluders,
            dropouts=wire.dropouts,
            suite=wire.suite,
            degree=wire.degree,
            session=wire.session,
            round=wire.round,
            app_context=wire.app_context,
            min_survivors=wire.min_survivors,
            adversary=wire.adversary,
        )
        if params.encode() != data:
            raise DecodeError("round parameters: not in canonical form")
        return params

    @property
    def context(self) -> bytes:
        """SHA-256 over the canonical encoding, 32 bytes: in every key, box and signature of exchange 1."""
        return digest(Label.CONTEXT, self.encode())


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: Literal[1]
    suite: str
    session: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    round: int
    cohort: tuple[int, ...]
    threshold: int
    degree: int
    colluders: int
    dropouts: int
    blocks: tuple[tuple[str, int, int, int], ...]
    app_context: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    min_survivors: int
    adversary: str


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Wire)
