"""What does a whole secure-aggregation round cost, phase by phase, beside the bare masking that no protocol of this kind avoids?

Rounds run whole in this process, with the real frames and keys. A client's time is what passes inside its handler, the median over
the clients of a round. The server's is what passes inside its session, twice: "alone", the frames of that round fed once more to a
session that has its process to itself, as a server has; and "among clients", where hundreds of clients' work in between keeps
emptying the caches. The floor is a loop of our own here over AES-256-CTR
keystreams and additions, chunk by chunk into warm buffers, on one core or on all, whichever is faster: as many streams as the
party must at least add (a client: its neighbours' and its own; the server: one for each survivor, and for each client that fell
silent one for each of its neighbours that did not). It is measured between the rounds that it is compared with.

`--targets` prints the cases that have a figure to hold, with that figure.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from secagg import Block, RoundOutcome, RoundParams
from secagg.crypto import prg
from secagg.errors import ParameterError
from secagg.params import PHASES, SlackWarning
from secagg.session import run_round
from secagg.spool import MemorySpool
from secagg.testing import parties, simulate_round

Frames = dict[str, dict[int, bytes]]

CHUNK_BYTES = 256 * 1024
MOST_FLOOR_STREAMS = 64
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of round.

    Attributes:
        n: Clients.
        d: Coordinates.
        drop: Clients that fall silent before they send their vector.
        suite: "hybrid" or "classical".
        bits: The ring.
        bound: Largest absolute value of a client; None: the largest that the ring allows.
        corrupt: Colluders c.
    """

    n: int
    d: int
    drop: int
    suite: str
    bits: int = 32
    bound: int | None = None
    corrupt: int = 0

    def params(self) -> RoundParams:
        """The round's parameters; above 200 clients a sparse graph for a lying server, with one in twenty corrupt."""
        sparse = self.n > 200
        return RoundParams(
            cohort=tuple(range(self.n)),
            blocks=(Block("update", self.d, self.bits, self.bound or (2 ** (self.bits - 1) - 1) // self.n),),
            suite=self.suite,
            colluders=self.corrupt or (self.n // 20 if sparse else 0),
            dropouts=max(self.drop, self.n // 20) if sparse else None,  # type: ignore[arg-type]  # None: what the graph allows
        )


class Recorded:
    """An engine whose clients said everything before: what reaches the server is what reached it in another run of the round."""

    client_seconds: Mapping[str, Mapping[int, float]] = {}

    def __init__(self, cohort: tuple[int, ...], frames: Frames) -> None:
        self.peers = cohort
        self._frames = frames

    def exchange(
        self, phase: str, frames: Mapping[int, bytes], *, deadline_s: float | None
    ) -> Iterator[tuple[int, bytes]]:
        """The answers of this phase; the server makes each client's frame for it."""
        del deadline_s
        for client in frames:
            frames[client]
            if client in self._frames[phase]:
                yield client, self._frames[phase][client]

    def close(self) -> None:
        """Nothing to close."""


def run(params: RoundParams, drop: int) -> tuple[RoundOutcome, RoundOutcome]:
    """One round among its clients, and the same once more for the server alone, their sums checked.

    All clients have the same vector: memory for one of them is enough.
    """
    block, n = params.blocks[0], len(params.cohort)
    x = np.random.default_rng(0).integers(-block.bound, block.bound, block.length, endpoint=True)
    frames: Frames = {phase: {} for phase in PHASES}
    among = simulate_round(
        params,
        {i: {"update": x} for i in params.cohort},
        dict.fromkeys(params.cohort[n - drop :], "mask"),
        tap=lambda phase, client, frame: frames[phase].__setitem__(client, frame),
    )
    _, server, roster = parties(params.cohort, params.suite)
    alone = run_round(Recorded(params.cohort, frames), params, server, roster, spool=MemorySpool())
    for outcome in (among, alone):
        if not np.array_equal(outcome.sums["update"], (n - drop) * x):
            raise RuntimeError("the sum is not the sum of the survivors' vectors")
        outcome.sums.clear()  # as a server does before the next round: memory that is kept must be found anew
    return among, alone


# The floor.


@functools.cache
def pool() -> ThreadPoolExecutor:
    """A thread a core, this one not counted."""
    return ThreadPoolExecutor(max(CORES - 1, 1))


@functools.cache
def buffers(cores: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """One warm keystream buffer a core."""
    return [np.ones(CHUNK_BYTES, np.uint8) for _ in range(cores)]


def add_keystreams(words: np.ndarray[Any, Any], keys: list[bytes], first: int, keystream: np.ndarray[Any, Any]) -> None:
    """Add the keystreams, from their block `first` on, to a vector: streams inside, chunks outside."""
    counter = first.to_bytes(16, "big")
    encryptors = [Cipher(AES(key), CTR(counter)).encryptor() for key in keys]
    zeros, pad = bytes(CHUNK_BYTES), keystream.view(words.dtype)
    for start in range(0, words.size, pad.size):
        part = words[start : start + pad.size]
        view, addend, source = memoryview(keystream)[: part.nbytes], pad[: part.size], memoryview(zeros)[: part.nbytes]
        for encryptor in encryptors:
            encryptor.update_into(source, view)
            np.add(part, addend, out=part)


def floor(words: np.ndarray[Any, Any], streams: int, cores: int) -> float:
    """Seconds to add some streams to a vector; more than a few are measured in part, since the loop is linear in them."""
    measured = min(streams, MOST_FLOOR_STREAMS)
    if not measured or not words.size:
        return 0.0
    keys = [i.to_bytes(32, "big") for i in range(measured)]
    step = -(-words.size // cores // 16) * 16
    cuts = range(0, words.size, step)
    start = time.perf_counter()
    jobs = [
        pool().submit(add_keystreams, words[cut : cut + step], keys, cut * words.itemsize // 16, buffers(cores)[i])
        for i, cut in enumerate(cuts)
        if i
    ]
    add_keystreams(words[:step], keys, 0, buffers(cores)[0])
    for job in jobs:
        job.result()
    return (time.perf_counter() - start) * streams / measured


def best_floor(words: np.ndarray[Any, Any], streams: int) -> float:
    """The faster of one core and all."""
    return min(floor(words, streams, cores) for cores in {1, CORES})


# One case.


def measure(case: Case, repeat: int) -> dict[str, Any]:
    """Medians over rounds, and the floors between them."""
    params = case.params()
    k, alive = params.degree, case.n - case.drop
    streams = {"client": k + 1, "server": alive + case.drop * round(k * alive / (case.n - 1))}
    words = np.zeros(case.d, next(f"<u{size}" for size in (1, 2, 4, 8) if 8 * size >= case.bits))
    for count in streams.values():
        best_floor(words, min(count, 2))
    if case.n * case.d <= 10**7:
        run(params, case.drop)  # warm
    rounds, floors = [], []
    for _ in range(repeat):
        rounds.append(run(params, case.drop))
        floors.append({party: best_floor(words, count) for party, count in streams.items()})
    row: dict[str, Any] = dataclasses.asdict(case) | {"degree": k, "threshold": params.threshold, "repeat": repeat}
    among, alone = zip(*rounds, strict=True)
    for name, party, outcomes in (
        ("client", "client", among),
        ("server", "server", alone),
        ("server_among", "server", among),
    ):
        row[name] = {
            "phases_s": {p: statistics.median(o.seconds[party][p] for o in outcomes) for p in PHASES},
            "seconds": statistics.median(sum(o.seconds[party].values()) for o in outcomes),
            "floor_s": statistics.median(f[party] for f in floors),
            "streams": streams[party],
        }
    senders = {p: case.n if p in ("advertise", "share") else alive for p in PHASES}
    row["upload"] = {p: among[-1].bytes_up[p] / senders[p] for p in PHASES}
    row["download"] = {p: among[-1].bytes_down[p] / senders[p] for p in PHASES}
    return row


def show(row: dict[str, Any]) -> None:
    """One case as a small table."""
    print(
        f"\nn = {row['n']}, d = {row['d']}, {row['drop']} silent from the upload on, {row['suite']}, {row['bits']}-bit ring,"
        f" k = {row['degree']}, t = {row['threshold']}; median of {row['repeat']}"
    )
    print(f"{'':<20}" + "".join(f"{phase:>11}" for phase in PHASES) + f"{'all':>11}{'floor':>9}{'ratio':>7}")
    for party, words in (("client", "client"), ("server", "server alone"), ("server_among", "server among them")):
        figures = row[party]
        cells = [*figures["phases_s"].values(), figures["seconds"]]
        ratio = f"{figures['seconds'] / figures['floor_s']:>7.1f}" if figures["floor_s"] else ""
        print(
            f"{words + ' ms':<20}"
            + "".join(f"{1e3 * x:>11.2f}" for x in cells)
            + f"{1e3 * figures['floor_s']:>9.2f}{ratio}"
        )
    for way in ("upload", "download"):
        cells = [*row[way].values(), sum(row[way].values())]
        print(f"{way + ' kB':<20}" + "".join(f"{x / 1e3:>11.2f}" for x in cells), flush=True)


def skip_reason(case: Case) -> str | None:
    """Why a case cannot run here, if it cannot."""
    try:
        case.params()
    except ParameterError as error:
        return str(error)
    needed = 2 * case.n * case.d * case.bits // 8
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return f"the frames of one exchange take about {needed >> 20} MiB of memory" if needed > memory else None


def grid(chosen: argparse.Namespace) -> Iterator[Case]:
    """The cases of the command line."""
    quick = chosen.quick
    for n in chosen.n or ((10, 100) if quick else (10, 100, 1000)):
        for d in chosen.d or ((10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)):
            for drop in (0, n // 10) if chosen.drop is None else (chosen.drop,):
                for suite in chosen.suite or ("hybrid", "classical"):
                    yield Case(n, d, drop, suite, chosen.bits)


# The figures to hold.


def masking(repeat: int) -> dict[str, float]:
    """Throughput of the package's masking, as a share of the floor's, ten streams over 10**6 words of 32 bits."""
    words = np.zeros(10**6, np.uint32)
    keys = [(bytes([i] * 32), False) for i in range(10)]
    ours, floors = [], []
    for _ in range(max(repeat, 3) * 5):
        start = time.perf_counter()
        prg.add_streams(words, keys)
        ours.append(time.perf_counter() - start)
        floors.append(best_floor(words, 10))
    return {"ours_s": statistics.median(ours), "floor_s": statistics.median(floors)}


def client_ms(row: dict[str, Any]) -> float:
    """Milliseconds of one client, all phases."""
    return 1e3 * row["client"]["seconds"]


def server_ms(row: dict[str, Any]) -> float:
    """Milliseconds of the server alone, all phases."""
    return 1e3 * row["server"]["seconds"]


def upload_mb(row: dict[str, Any]) -> float:
    """Megabytes that one client sends."""
    return sum(row["upload"].values()) / 1e6


# Each with the most that it may be.
TARGETS: tuple[tuple[Case, tuple[tuple[Callable[[dict[str, Any]], float], float], ...]], ...] = (
    (Case(10, 10**6, 0, "hybrid"), ((client_ms, 15), (server_ms, 17))),
    (Case(10, 10**6, 3, "hybrid"), ((server_ms, 28),)),
    (Case(100, 10**5, 10, "hybrid"), ((client_ms, 75), (server_ms, 220))),
    (Case(100, 10**5, 10, "classical"), ((client_ms, 45),)),
    (Case(1000, 10**5, 50, "hybrid"), ((server_ms, 1300),)),
    (Case(10, 10**6, 0, "hybrid", bits=26, bound=2**21), ((upload_mb, 3.3),)),
)


def show_targets(repeat: int, *, as_json: bool) -> None:
    """Every figure to hold, and whether it does."""
    took = masking(repeat)
    ratio = took["floor_s"] / took["ours_s"]
    what = "masking 10^6 words with 10 streams, speed / the floor's"
    target_line(what, {"measured": ratio, "least": 0.9, "met": ratio >= 0.9} | took, as_json=as_json)
    for case, figures in TARGETS:
        reason = skip_reason(case)
        row = {} if reason else measure(case, max(1, repeat if case.n == 10 else repeat // 2 if case.n == 100 else 1))
        for figure, most in figures:
            what = (
                f"{figure.__name__}, n = {case.n}, d = {case.d}, {case.drop} silent, {case.suite}, {case.bits}-bit ring"
            )
            if reason:
                target_line(what, {"not_run": reason, "met": False}, as_json=as_json)
                continue
            measured = figure(row)
            target_line(what, {"measured": measured, "most": most, "met": measured <= most}, as_json=as_json)


def target_line(what: str, result: dict[str, Any], *, as_json: bool) -> None:
    """One figure to hold."""
    if as_json:
        print(json.dumps({"what": what} | result), flush=True)
        return
    if "not_run" in result:
        print(f"{what:<70} not run, unmet: {result['not_run']}", flush=True)
        return
    limit = f">= {result['least']:g}" if "least" in result else f"<= {result['most']:g}"
    print(f"{what:<70} {result['measured']:>9.2f}  {limit:<8} {'met' if result['met'] else 'UNMET'}", flush=True)


def guarded(job: Callable[[], dict[str, Any]], case: Case, *, as_json: bool) -> None:
    """Runs and prints a case, or says why it does not run."""
    reason = skip_reason(case)
    if reason:
        row = dataclasses.asdict(case) | {"skipped": reason}
        print(
            json.dumps(row) if as_json else f"\nn = {case.n}, d = {case.d}, {case.drop} silent: not run: {reason}",
            flush=True,
        )
        return
    row = job()
    print(json.dumps(row), flush=True) if as_json else show(row)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Whole rounds, timed by party and phase.")
    parser.add_argument("--n", type=int, action="append", help="clients; may be repeated; default 10, 100, 1000")
    parser.add_argument("--d", type=int, action="append", help="coordinates; may be repeated; default 10^4, 10^5, 10^6")
    parser.add_argument("--drop", type=int, help="silent clients; default: none, and one in ten")
    parser.add_argument("--suite", action="append", choices=("hybrid", "classical"), help="default both")
    parser.add_argument("--bits", type=int, default=32, help="ring; default 32")
    parser.add_argument("--repeat", type=int, help="rounds a case; default 5, fewer where n * d is large")
    parser.add_argument("--quick", action="store_true", help="n up to 100, d up to 10^5, one round each")
    parser.add_argument("--targets", action="store_true", help="the figures to hold, instead of the grid")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser.parse_args()


def main() -> None:
    """Print a table a case."""
    chosen = options()
    warnings.simplefilter("ignore", SlackWarning)
    if not chosen.json:
        print(f"{CORES} cores; ratio = measured / floor")
    if chosen.targets:
        show_targets(chosen.repeat or 5, as_json=chosen.json)
        return
    for case in grid(chosen):
        work = case.n * (case.d + 100_000)
        repeat = chosen.repeat or (1 if chosen.quick or work > 10**8 else 3 if work > 10**7 else 5)
        guarded(functools.partial(measure, case, repeat), case, as_json=chosen.json)


if __name__ == "__main__":
    main()
