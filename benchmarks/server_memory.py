"""How much memory does a server need for the vectors of a round, when it reads its frames from disk?

One process plays a whole round, clients one after the other, and writes every frame that a client sends to a folder. A second
one has the server alone: it reads those frames, one at a time. The keys are drawn from a seed, the session is fixed, and a
server draws nothing else, so the recorded frames fit the second server as they did the first.

When the frames of exchange 2 are in, the resident memory is noted and the kernel's high-water mark set back. How far the mark
rises from there, less the frame in hand while there is one, is what the server adds for the vectors: at most four of them,
whatever n is. The server's process gives large blocks back to the system as soon as they are free (MALLOC_MMAP_THRESHOLD_);
left alone, glibc keeps the last frame's: one frame more. `--traced` asks Python's and NumPy's own allocation counters instead,
which see no page that the allocator keeps and no memory of the cipher library.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secagg import Block, ClientSession, Identity, Roster, RoundParams, ServerIdentity, ServerSession
from secagg.params import PHASES, SlackWarning
from secagg.spool import FileSpool
from secagg.testing import seeded_entropy

TARGET_VECTORS = 4
BOUND = 1000


def round_params(n: int, d: int, suite: str) -> RoundParams:
    """The same round in both processes."""
    block = Block("update", d, 32, BOUND)
    return RoundParams(cohort=tuple(range(n)), blocks=(block,), suite=suite, session=bytes(16))


def keys(params: RoundParams) -> tuple[dict[int, Identity], ServerIdentity, Roster]:
    """The same keys in both processes."""
    clients = {i: Identity.generate(i, seeded_entropy(0, i)) for i in params.cohort}
    server = ServerIdentity.generate(params.suite, seeded_entropy(1))
    public = {i: identity.public_key for i, identity in clients.items()}
    roster = Roster(clients=public, server_verify_key=server.verify_key, server_sealing_key=server.sealing_key)
    return clients, server, roster


def vector(d: int) -> npt.NDArray[np.int64]:
    """Every client's input."""
    return np.random.default_rng(0).integers(-BOUND, BOUND, d, endpoint=True)


def path(folder: Path, phase: str, client: int) -> Path:
    """Where a frame is kept."""
    return folder / f"{phase}-{client}"


def record(folder: Path, params: RoundParams, drop: int) -> None:
    """Plays the round and keeps every client's frames."""
    identities, server, roster = keys(params)
    length = params.blocks[0].length
    clients = {
        i: ClientSession(params, identities[i], roster, lambda: {"update": vector(length)}) for i in params.cohort
    }
    session = ServerSession(params, server, roster)
    silent = set(params.cohort[len(params.cohort) - drop :])
    answers = session.open()
    for phase in PHASES:
        for i in answers:
            if i in silent and phase not in ("advertise", "share"):
                continue
            frame = clients[i].start() if phase == "advertise" else clients[i].receive(answers[i])
            if frame is None:
                raise RuntimeError(f"client {i} has no frame in phase {phase}")
            path(folder, phase, i).write_bytes(frame)
            session.receive(i, frame)
        answers = session.close_phase()


def memory(field: str) -> int:
    """A field of this process's status, in bytes: VmRSS (resident now) or VmHWM (the most since the mark was set back)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def mark(*, traced: bool) -> int:
    """Sets the high-water mark back; bytes in use now."""
    if traced:
        tracemalloc.reset_peak()
        return tracemalloc.get_traced_memory()[0]
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory("VmRSS")


def high_water(*, traced: bool) -> int:
    """The most bytes in use since the mark was set back."""
    return tracemalloc.get_traced_memory()[1] if traced else memory("VmHWM")


def replay(folder: Path, params: RoundParams, *, traced: bool) -> dict[str, Any]:
    """The server alone; its memory from the end of exchange 2 to the end of the round."""
    _, server, roster = keys(params)
    if traced:
        tracemalloc.start()
    session = ServerSession(params, server, roster, spool=FileSpool(str(folder)))
    answers: Mapping[int, bytes] = session.open()
    baseline, beyond = 0, {}
    for phase in PHASES:
        in_hand = 0
        for client in params.cohort:
            if path(folder, phase, client).exists():
                frame = path(folder, phase, client).read_bytes()
                in_hand = max(in_hand, len(frame))
                session.receive(client, frame)
                del frame
        if phase == "share":
            # Closing exchange 2 makes the running sum: it belongs to what is measured.
            gc.collect()
            baseline = mark(traced=traced)
        elif baseline:
            # A frame counts only in the exchange in which it is in hand.
            beyond[phase] = high_water(traced=traced) - baseline - in_hand
            mark(traced=traced)
        answers = session.close_phase()
        for client in answers:
            if not answers[client]:
                raise RuntimeError(f"no answer for client {client}")
    beyond["end"] = high_water(traced=traced) - baseline
    if not np.array_equal(
        session.result.sums["update"], len(session.result.survivors) * vector(params.blocks[0].length)
    ):
        raise RuntimeError("the sum is not the sum of the survivors' vectors")
    most = max(beyond.values())
    return {
        "baseline_bytes": baseline,
        "beyond_bytes": beyond,
        "most_bytes": most,
        "vectors": most / (4 * params.blocks[0].length),
    }


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Memory of a server that reads its frames from disk.")
    parser.add_argument("--n", type=int, default=100, help="clients; default 100")
    parser.add_argument("--d", type=int, default=1_000_000, help="coordinates; default 10^6")
    parser.add_argument("--drop", type=int, default=0, help="clients silent from the upload on")
    parser.add_argument("--suite", choices=("hybrid", "classical"), default="hybrid")
    parser.add_argument("--traced", action="store_true", help="count allocations instead of resident pages")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Record, replay, and print one line."""
    chosen = options()
    warnings.simplefilter("ignore", SlackWarning)
    params = round_params(chosen.n, chosen.d, chosen.suite)
    if chosen.record:
        record(chosen.record, params, chosen.drop)
        return
    if chosen.replay:
        print(json.dumps(replay(chosen.replay, params, traced=chosen.traced)))
        return
    if not chosen.traced and not Path("/proc/self/clear_refs").exists():
        print("not run: this system has no /proc/self/clear_refs to set the high-water mark back; --traced works")
        return
    with tempfile.TemporaryDirectory() as folder:
        outputs = [
            subprocess.run(  # noqa: S603 - this file, with its own arguments
                [sys.executable, __file__, *sys.argv[1:], mode, folder],
                check=True,
                env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)},
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
            for mode in ("--record", "--replay")
        ]
    found = json.loads(outputs[1])
    met = found["vectors"] < TARGET_VECTORS
    if chosen.json:
        sizes = {"n": chosen.n, "d": chosen.d, "drop": chosen.drop, "suite": chosen.suite, "traced": chosen.traced}
        print(json.dumps(sizes | found | {"met": met}))
        return
    steps = ", ".join(f"{1e-6 * value:.2f} by {name}" for name, value in found["beyond_bytes"].items())
    print(
        f"n = {chosen.n}, d = {chosen.d}, {chosen.drop} silent, {chosen.suite}: {found['baseline_bytes'] / 1e6:.1f} MB when exchange 2 "
        f"is in; beyond that and the frame in hand, MB: {steps}; most {found['vectors']:.2f} vectors of 32-bit words, "
        f"{'under' if met else 'NOT under'} {TARGET_VECTORS}"
    )


if __name__ == "__main__":
    main()
