"""What a round will cost before it runs: operations of either party, exact bytes, and seconds from a quick calibration.

Counted are the operations that take time on this protocol's scale, for a round of honest clients of which some fall silent before they
send their vector. Seconds are counts times what one operation takes on this machine, alone and warm: an estimate, which leaves out waiting,
cold memory and the network.
"""

import dataclasses
import os
import time
from collections.abc import Callable

import numpy as np

from secagg import messages, ring
from secagg.crypto import merkle, prg, shamir
from secagg.crypto.kdf import Label, derive, digest
from secagg.crypto.sealing import SUITES, Purpose, box_info
from secagg.errors import ParameterError
from secagg.identity import Identity, Roster
from secagg.params import PHASES, RoundParams
from secagg.sizes import FrameSizes, frame_sizes

_MOST_TIMED_STREAMS = 8
_MOST_TIMED_BYTES = 4 * 2**20
_MOST_TIMED_OWNERS = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Operations of one party, as counts or as the seconds that one of each takes.

    Attributes:
        key_pairs: HPKE key pairs made from a root.
        seals: Boxes made.
        opens: Boxes opened.
        key_checks: Public keys proved fit for sealing.
        signatures: Ed25519 signatures made.
        verifications: Ed25519 signatures checked.
        derivations: Seeds and stream keys derived.
        digests: Commitments and other short hashes.
        frames: Signed frames decoded and encoded again.
        deals: Two secrets shared among a client's holders.
        reconstructions: Secrets put together from t shares.
        trees: Merkle trees over a client's parts.
        paths: Merkle paths made or checked.
        streams: Keystreams started.
        stream_bytes: Bytes of keystream made and added.
        mac_bytes: Bytes of masked vectors authenticated.
        encoded_bytes: Bytes of masked vectors packed from a client's integers.
        summed_bytes: Bytes of masked vectors checked and added to the running sum.
        decoded_bytes: Bytes of words turned into the integers of the sum.
        copied_bytes: Bytes of frames put together or taken apart.
    """

    key_pairs: float = 0.0
    seals: float = 0.0
    opens: float = 0.0
    key_checks: float = 0.0
    signatures: float = 0.0
    verifications: float = 0.0
    derivations: float = 0.0
    digests: float = 0.0
    frames: float = 0.0
    deals: float = 0.0
    reconstructions: float = 0.0
    trees: float = 0.0
    paths: float = 0.0
    streams: float = 0.0
    stream_bytes: float = 0.0
    mac_bytes: float = 0.0
    encoded_bytes: float = 0.0
    summed_bytes: float = 0.0
    decoded_bytes: float = 0.0
    copied_bytes: float = 0.0

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(**{name: getattr(self, name) + getattr(other, name) for name in _NAMES})

    def seconds(self, unit: "Operations") -> float:
        """Seconds of these counts.

        Args:
            unit: Seconds of one of each.
        """
        total: float = sum(getattr(self, name) * getattr(unit, name) for name in _NAMES)
        return total


_NAMES = tuple(field.name for field in dataclasses.fields(Operations))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one round takes.

    Attributes:
        client: `{phase: operations}` of one client that stays to the end, the mean over the cohort: edges have one chooser each, so
            counts can be halves.
        server: `{phase: operations}` of the server.
        sizes: Bytes of every frame.
    """

    client: dict[str, Operations]
    server: dict[str, Operations]
    sizes: FrameSizes

    @property
    def bytes_up(self) -> dict[str, int]:
        """`{phase: bytes}` that clients send, all together."""
        return {phase: sum(frames.values()) for phase, frames in self.sizes.up.items()}

    @property
    def bytes_down(self) -> dict[str, int]:
        """`{phase: bytes}` that the server sends before that phase."""
        return {phase: sum(frames.values()) for phase, frames in self.sizes.down.items()}

    def seconds(self, unit: Operations) -> dict[str, dict[str, float]]:
        """`{"server": {phase: s}, "client": {phase: s}}`, as in a round's outcome.

        Args:
            unit: From `calibrate` on the machine in question.
        """
        parties = {"server": self.server, "client": self.client}
        return {name: {phase: o.seconds(unit) for phase, o in phases.items()} for name, phases in parties.items()}


def predict(params: RoundParams, dropouts: int = 0) -> Cost:
    """The cost of a round of honest clients.

    Args:
        params: The round.
        dropouts: How many clients, the last of the cohort, are silent from exchange 3 on.

    Raises:
        ParameterError: Fewer clients are left than the round's minimum.

    Guarantees:
        Counts of sealing, signing, deriving and keystreams are those of a real round.
        Bytes are those of a real round; on a sparse graph those of one whose transcript is zeros, since the real one is known only
        after exchange 1 (`secagg.sizes.frame_sizes` takes it).
    """
    n = len(params.cohort)
    if not 0 <= dropouts <= n - params.min_survivors:
        raise ParameterError(f"{dropouts} silent clients of {n} leave fewer than {params.min_survivors} survivors")
    sizes = frame_sizes(params, dropouts)
    return Cost(_client(params, sizes), _server(params, sizes, dropouts), sizes)


def _words(params: RoundParams) -> int:
    """Bytes of the unpacked vectors."""
    return sum(block.length * ring.word_dtype(block.bits).itemsize for block in params.blocks)


def _client(params: RoundParams, sizes: FrameSizes) -> dict[str, Operations]:
    n, k, blocks = len(params.cohort), params.degree, len(params.blocks)
    down = {phase: sum(frames.values()) / len(frames) for phase, frames in sizes.down.items()}
    up = {phase: sum(frames.values()) / len(frames) for phase, frames in sizes.up.items()}
    body = params.body_length
    streams, half = (k + 1) * blocks, k / 2
    quorum = params.quorum(n)
    return dict(
        zip(
            PHASES,
            (
                Operations(key_pairs=2, seals=1, signatures=1, digests=1),
                Operations(
                    seals=k + half,
                    signatures=1,
                    verifications=k + 1,
                    derivations=half,
                    digests=3 * (k + 1) + half,
                    frames=k + 1,
                    deals=1,
                    trees=1,
                    copied_bytes=down["share"] + up["share"],
                ),
                Operations(
                    opens=k + half,
                    signatures=1,
                    verifications=k + 1,
                    derivations=half + streams,
                    digests=2 * k + half,
                    frames=k + 1,
                    paths=k,
                    streams=streams,
                    stream_bytes=(k + 1) * _words(params),
                    mac_bytes=body,
                    encoded_bytes=body,
                    copied_bytes=down["mask"] + up["mask"],
                ),
                Operations(signatures=1, verifications=1, digests=1, frames=1),
                Operations(signatures=1, verifications=quorum + 1, frames=1, copied_bytes=up["unmask"]),
            ),
            strict=True,
        )
    )


def _server(params: RoundParams, sizes: FrameSizes, dropouts: int) -> dict[str, Operations]:
    n, k, blocks = len(params.cohort), params.degree, len(params.blocks)
    alive = n - dropouts
    # A dropped client's edges to survivors; on a sparse graph what a random one has of them.
    edges = dropouts * k * alive / (n - 1)
    body = params.body_length
    streams = (alive + edges) * blocks
    up, down = ({p: sum(frames.values()) for p, frames in way.items()} for way in (sizes.up, sizes.down))
    return dict(
        zip(
            PHASES,
            (
                Operations(
                    opens=n,
                    key_checks=2 * n,
                    signatures=1,
                    verifications=n,
                    digests=n + 1,
                    frames=n,
                    copied_bytes=up["advertise"] + down["share"],
                ),
                Operations(
                    signatures=1,
                    verifications=n,
                    frames=n,
                    trees=n,
                    paths=n * k,
                    copied_bytes=up["share"] + down["mask"],
                ),
                Operations(
                    signatures=1, verifications=alive, frames=alive, mac_bytes=alive * body, summed_bytes=alive * body
                ),
                Operations(signatures=1, verifications=alive, frames=alive, digests=1),
                Operations(
                    verifications=alive,
                    derivations=streams,
                    digests=alive * (k + 2) + edges,
                    frames=alive,
                    reconstructions=alive,
                    streams=streams,
                    stream_bytes=(alive + edges) * _words(params),
                    decoded_bytes=_words(params),
                    copied_bytes=up["unmask"],
                ),
            ),
            strict=True,
        )
    )


def calibrate(params: RoundParams, budget_s: float = 0.4) -> Operations:
    """Seconds of one of each operation on this machine, at the sizes of a round.

    Args:
        params: The round whose suite, ring, threshold and degree are measured.
        budget_s: About how long it may take.
    """
    jobs = _sealing_jobs(params) | _sharing_jobs(params) | _vector_jobs(params)
    share = budget_s / len(jobs)
    return Operations(**{name: _seconds(job, share) / count for name, (job, count) in jobs.items()})


_Jobs = dict[str, tuple[Callable[[], object], float]]


def _seconds(job: Callable[[], object], budget_s: float) -> float:
    """The median of as many runs as fit, the first not counted."""
    job()
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def _sealing_jobs(params: RoundParams) -> _Jobs:
    suite, root, salt = SUITES[params.suite], os.urandom(32), bytes(32)
    mlkem = os.urandom(64) if suite.hybrid else None
    key = suite.key_pair(mlkem, root)
    info = box_info(Purpose.SHARES, salt, 0, 1)
    box = suite.seal(key.public, bytes(72), info=info)
    identity = Identity.generate(0)
    roster = Roster(
        clients={0: identity.public_key, 1: Identity.generate(1).public_key},
        server_verify_key=Identity.generate(2).public_key,
        server_sealing_key=key.public,
    )
    payload = bytes(200)
    signature = identity.sign(Label.SIGNATURE_FRAME, payload)
    frame = messages.seal(messages.ShareHeader(binding=salt, sender=0, root=salt), identity.sign)
    return {
        "key_pairs": (lambda: suite.key_pair(mlkem, derive(root, Label.MASK_KEY_X25519, salt=salt)), 1),
        "seals": (lambda: suite.seal(key.public, bytes(72), info=info), 1),
        "opens": (lambda: suite.open(key, box, info=info), 1),
        "key_checks": (lambda: suite.check_public_key(key.public), 1),
        "signatures": (lambda: identity.sign(Label.SIGNATURE_FRAME, payload), 1),
        "verifications": (lambda: roster.verify(0, Label.SIGNATURE_FRAME, payload, signature), 1),
        "derivations": (lambda: derive(root, Label.PAIR_SEED, 0, 1, salt=salt), 1),
        "digests": (lambda: digest(Label.SHARE_COMMITMENT, salt, 0, 1, b"self", bytes(36)), 1),
        "frames": (
            lambda: messages.decode(messages.decode(frame, messages.Signed).payload, messages.ShareHeader),
            1,
        ),
    }


def _sharing_jobs(params: RoundParams) -> _Jobs:
    holders, t, suite = params.degree + 1, params.threshold, SUITES[params.suite]
    points = list(range(1, holders + 1))
    owners = min(_MOST_TIMED_OWNERS, len(params.cohort))
    sets = [tuple((place + owner) % holders + 1 for place in range(t)) for owner in range(owners)]
    shares = np.zeros((owners, t, shamir.LIMBS), np.uint32)
    leaves = [bytes(messages.Part.length(suite.box_overhead, pair=bool(i % 2))) for i in range(holders)]
    tree = merkle.Tree(leaves)
    path = tree.paths[0]
    return {
        "deals": (lambda: shamir.share([bytes(32), bytes(32)], t, points, os.urandom), 1),
        "reconstructions": (lambda: shamir.reconstruct_many(sets, shares), owners),
        "trees": (lambda: merkle.Tree(leaves), 1),
        "paths": (
            lambda: merkle.check(leaves[0], index=0, size=holders, path=path, expected_root=tree.root),
            1,
        ),
        "copied_bytes": (
            lambda: messages.decode(messages.encode(messages.ShareFrame(b"", tuple(leaves))), messages.ShareFrame),
            2 * sum(map(len, leaves)),
        ),
    }


def _vector_jobs(params: RoundParams) -> _Jobs:
    block = max(params.blocks, key=lambda block: block.length * block.bits)
    dtype = ring.word_dtype(block.bits)
    length = max(1, min(block.length, _MOST_TIMED_BYTES // dtype.itemsize))
    x, words, short = np.zeros(length, np.int64), np.zeros(length, dtype), np.zeros(1, dtype)
    packed = bytearray(ring.packed_length(length, block.bits))
    streams = min(params.degree + 1, _MOST_TIMED_STREAMS)
    keys = [(i.to_bytes(32, "big"), False) for i in range(streams)]

    def encode() -> None:
        ring.encode_into(x, -block.bound, block.bound, words)
        ring.reduce_in_place(words, block.bits)
        ring.pack(words, block.bits, out=packed)

    def add() -> None:
        ring.check_packed(packed, length, block.bits)
        ring.combine_packed(words, packed, block.bits)

    return {
        "streams": (lambda: prg.add_streams(short, keys), streams),
        "stream_bytes": (lambda: prg.add_streams(words, keys), streams * words.nbytes),
        "mac_bytes": (lambda: prg.gmac(bytes(32), packed), len(packed)),
        "encoded_bytes": (encode, len(packed)),
        "summed_bytes": (add, len(packed)),
        "decoded_bytes": (lambda: ring.decode(words, block.bits), words.nbytes),
    }
