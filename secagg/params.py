"""What everybody must agree on before a round: cohort, thresholds, blocks, suite, and the application's context.

`RoundParams` proves on construction that the round can work (enough honest clients above the threshold, a quorum that
makes the survivor set unique) and that no honest sum can wrap around, or refuses with the numbers. The server proposes
parameters; a client holds its own and refuses frames bound to others, because the hash of all of them, `context`, is in
every key, signature and box.
"""

import collections
import dataclasses
import os
import warnings
from typing import Annotated, Literal

import msgspec

from secagg import graph, ring
from secagg.crypto.kdf import Label, digest
from secagg.crypto.sealing import SERVER_ID, SUITES
from secagg.errors import DecodeError, ParameterError

PROTOCOL_VERSION: Literal[1] = 1
PHASES = ("advertise", "share", "mask", "confirm", "unmask")
COMPLETE_GRAPH_MAX = 200
MAX_COHORT = 20_000
MAX_BODY_LENGTH = 2**31
MAX_ENCODED_LENGTH = 2**18
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

    @property
    def packed_length(self) -> int:
        """Bytes of the packed vector."""
        return ring.packed_length(self.length, self.bits)

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
        threshold: Shares needed to open a secret, t. None: the smallest sound one for `colluders`, or the one that comes with
            the degree of a sparse graph.
        colluders: Clients, c, that may cheat or share what they see with the server; on a sparse graph against a curious
            server only share.
        dropouts: Clients, r, that may go silent. None: as many as the threshold and the quorum leave room for; on a sparse
            graph one in twenty.
        suite: "hybrid" (ML-KEM-768 + X25519) or "classical" (X25519).
        degree: Neighbours of a client, k. None: everybody (the complete graph, n - 1) up to 200 clients, above that
            what `secagg.graph.choose` gives. An even k below n - 1 is a sparse graph and needs a threshold beside it;
            against a lying server that is experimental.
        session: 16 bytes. None: fresh from the operating system.
        round: Round number (u64), 0 is valid.
        app_context: 32-byte hash of everything at the application that determines the inputs (model, plan, reservation).
        min_survivors: Fewest vectors that a sum may contain. None: max(n - r, quorum).
        adversary: "lying" (a server that may show different things to different clients) or "curious" (waives 2t > n + c,
            or the bounds of a sparse graph at 2^-104). A sparse curious round does not cover clients that cheat: everybody
            has to follow the protocol, the colluders too.

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
        if _unset(self.session):
            self._resolve("session", os.urandom(16))
        for name, value, length in (("session", self.session, 16), ("app_context", self.app_context, 32)):
            if not isinstance(value, bytes) or len(value) != length:
                raise ParameterError(f"{name} must be {length} bytes")
        _require_int("round", self.round, 0, _U64_MAX)
        self._resolve_graph(n)
        self._resolve_quorum(n)
        self._check_blocks(n)
        self._warn_without_slack(n)

    def _resolve(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_cohort(self) -> int:
        ids = [_require_int("client id", i, 0, SERVER_ID - 1) for i in self.cohort]
        self._resolve("cohort", tuple(sorted(ids)))
        if len(ids) < 3:
            raise ParameterError(f"a cohort of {len(ids)} cannot hide anybody: at least 3 clients are needed")
        if len(ids) > MAX_COHORT:
            raise ParameterError(f"a cohort of {len(ids)} is more than the {MAX_COHORT} that a round takes")
        if len(set(ids)) != len(ids):
            raise ParameterError(
                f"client ids appear twice: {sorted(i for i, count in collections.Counter(ids).items() if count > 1)}"
            )
        return len(ids)

    @property
    def body_length(self) -> int:
        """Bytes of a client's packed blocks, side by side."""
        return sum(block.packed_length for block in self.blocks)

    @property
    def complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.degree >= len(self.cohort) - 1

    def _resolve_graph(self, n: int) -> None:
        """Degree and threshold."""
        c = _require_int("colluders", self.colluders, 0, n - 1)
        sparse = n > COMPLETE_GRAPH_MAX if _unset(self.degree) else self.degree != n - 1
        if not sparse:
            self._resolve("degree", n - 1)
            self._resolve_complete(n, c)
            return
        if _unset(self.dropouts):
            self._resolve("dropouts", n // 20)
        r = _require_int("dropouts", self.dropouts, 0, n)
        if _unset(self.degree) != _unset(self.threshold):
            raise ParameterError(
                f"n = {n}: a sparse graph needs its degree and threshold together, or neither: got degree "
                f"{self.degree} and threshold {self.threshold}"
            )
        if _unset(self.degree):
            degree, threshold = graph.choose(n, c, r, self.adversary)
            if degree == n - 1:
                raise ParameterError(
                    f"no sparse graph withstands c = {c} colluders and r = {r} dropouts of n = {n}, and the complete graph is "
                    f"for up to {COMPLETE_GRAPH_MAX} clients"
                )
            self._resolve("degree", degree)
            self._resolve("threshold", threshold)
        self._check_sparse(n, c, r)

    def _resolve_complete(self, n: int, c: int) -> None:
        if n > COMPLETE_GRAPH_MAX:
            raise ParameterError(
                f"n = {n}: the complete graph is for up to {COMPLETE_GRAPH_MAX} clients; above, leave the degree to the default"
            )
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
            self._resolve("dropouts", max(0, n - max(t, self.quorum(n))))

    def _check_sparse(self, n: int, c: int, r: int) -> None:
        k = _require_int("degree", self.degree, 0, _U64_MAX)
        t = _require_int("threshold", self.threshold, 0, _U64_MAX)
        if k % 2 or not 2 <= k < n - 1:
            raise ParameterError(
                f"degree k = {k} must be even and in 2..{n - 2}, or n - 1 = {n - 1} for the complete graph"
            )
        if not 2 <= t <= k:
            raise ParameterError(
                f"threshold t = {t} must be in 2..{k} (k = {k} neighbours; a client keeps one share itself)"
            )
        # A client goes on with as few as min_survivors, so the bounds must hold for that many.
        least = n - r if _unset(self.min_survivors) else _require_int("min_survivors", self.min_survivors, 0, n)
        missing = max(r, n - least)
        found = graph.bounds(n, c, missing, k, t, self.adversary)
        needed = graph.SECURITY_BITS[self.adversary]
        if found.security_bits < needed:
            raise ParameterError(
                f"degree k = {k} and threshold t = {t} are too small for n = {n}, c = {c}, r = {missing} against a {self.adversary} "
                f"server: the graph is bad with probability up to 2^-{found.security_bits:.1f}, at most 2^-{needed} is needed"
            )
        if found.correctness_bits < graph.CORRECTNESS_BITS:
            warnings.warn(
                f"degree k = {k}, threshold t = {t}: {missing} silent clients end the round with probability up to "
                f"2^-{found.correctness_bits:.1f}, since somebody's secrets then have fewer than t holders left",
                SlackWarning,
                stacklevel=6,
            )

    def _resolve_quorum(self, n: int) -> None:
        q = self.quorum(n)
        r = _require_int("dropouts", self.dropouts, 0, n)
        # On a sparse graph t holders are few of n, and that enough of them are left is the graph's correctness.
        t = self.threshold
        if n - r < t or n - r < q:
            raise ParameterError(
                f"n - r = {n - r} clients cannot reach threshold t = {t} and quorum q = {q} (n = {n}, r = {r}, c = {self.colluders})"
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
        if self.body_length >= MAX_BODY_LENGTH:
            largest = max(self.blocks, key=lambda block: block.packed_length)
            raise ParameterError(
                f"the blocks take {self.body_length} bytes a client, and one tag covers less than {MAX_BODY_LENGTH}; "
                f"block {largest.name!r} is the largest with {largest.packed_length}: split it over rounds"
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
