"""How many bytes is each message of a round? Computed from the definitions, and checked against the frames of a real round.

On a sparse graph the real round's transcript is taken, since it decides who is whose neighbour. Lengths vary with a client's id and
with how many of its edges it chooses the seed of: the least, the mean and the largest are printed, and the sum over all clients.
"""

import argparse
import dataclasses
import json
import statistics
import warnings
from collections import defaultdict

import numpy as np

from secagg import Block, RoundOutcome, RoundParams
from secagg.params import COMPLETE_GRAPH_MAX, PHASES, SlackWarning
from secagg.sizes import FrameSizes, frame_sizes
from secagg.testing import simulate_round

MESSAGES = {
    ("up", "advertise"): "advertisement",
    ("up", "share"): "shares for the neighbours",
    ("up", "mask"): "masked vector",
    ("up", "confirm"): "signature over the survivors",
    ("up", "unmask"): "one share for each dealer",
    ("down", "advertise"): "parameters",
    ("down", "share"): "who is there, neighbours' keys",
    ("down", "mask"): "shares from the neighbours",
    ("down", "confirm"): "survivors",
    ("down", "unmask"): "quorum of signatures",
}


def real_round(params: RoundParams, drop: int) -> tuple[RoundOutcome, dict[str, dict[int, int]]]:
    """A round of vectors of one coordinate, and the length of every frame that a client sent."""
    small = dataclasses.replace(params, blocks=tuple(dataclasses.replace(block, length=1) for block in params.blocks))
    sent: dict[str, dict[int, int]] = defaultdict(dict)

    def tap(phase: str, client: int, frame: bytes) -> None:
        sent[phase][client] = len(frame)

    inputs = {block.name: np.zeros(1, np.int64) for block in small.blocks}
    silent = dict.fromkeys(small.cohort[len(small.cohort) - drop :], "mask")
    outcome = simulate_round(small, dict.fromkeys(small.cohort, inputs), silent, tap=tap)
    check(frame_sizes(small, drop, transcript=outcome.transcript), sent, outcome)
    return outcome, sent


def check(sizes: FrameSizes, sent: dict[str, dict[int, int]], outcome: RoundOutcome) -> None:
    """That computed and real lengths are the same.

    Raises:
        RuntimeError: They are not.
    """
    down = {phase: sum(frames.values()) for phase, frames in sizes.down.items()}
    if sizes.up != sent or down != outcome.bytes_down:
        raise RuntimeError(f"the frames of a real round have other lengths: {sent} up, {outcome.bytes_down} down")


def table(params: RoundParams, drop: int) -> list[dict[str, object]]:
    """One row a message."""
    outcome, _ = real_round(params, drop)
    sizes = frame_sizes(params, drop, transcript=outcome.transcript)
    rows: list[dict[str, object]] = []
    for way, frames in (("up", sizes.up), ("down", sizes.down)):
        for phase in PHASES:
            lengths = list(frames[phase].values())
            row = {"way": way, "phase": phase, "message": MESSAGES[way, phase], "clients": len(lengths)}
            row |= {"least": min(lengths), "mean": statistics.mean(lengths), "most": max(lengths), "all": sum(lengths)}
            rows.append(row)
    return rows


def show(rows: list[dict[str, object]]) -> None:
    """The rows as a table."""
    print(f"{'':<5}{'exchange':<11}{'message':<32}{'clients':>8}{'least':>12}{'mean':>14}{'most':>12}{'all':>16}")
    for row in rows:
        print(
            f"{row['way']:<5}{row['phase']:<11}{row['message']:<32}{row['clients']:>8}{row['least']:>12}{row['mean']:>14.1f}"
            f"{row['most']:>12}{row['all']:>16}"
        )


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Bytes of every message of a round.")
    parser.add_argument("--n", type=int, default=10, help="clients; default 10")
    parser.add_argument("--d", type=int, default=1_000_000, help="coordinates; default 10^6")
    parser.add_argument("--bits", type=int, default=26, help="ring; default 26, which holds ten 22-bit values")
    parser.add_argument("--suite", choices=("hybrid", "classical"), help="default both")
    parser.add_argument("--corrupt", type=int, default=0, help="clients that may collude")
    parser.add_argument("--degree", type=int, help="neighbours; with --threshold; default all, or what fits above 200")
    parser.add_argument("--threshold", type=int, help="shares that open a secret")
    parser.add_argument("--drop", type=int, default=0, help="clients silent from the upload on")
    parser.add_argument("--json", action="store_true", help="one JSON object a suite")
    return parser.parse_args()


def main() -> None:
    """Print a table for each suite."""
    chosen = options()
    warnings.simplefilter("ignore", SlackWarning)
    for suite in [chosen.suite] if chosen.suite else ["hybrid", "classical"]:
        sparse = chosen.n > COMPLETE_GRAPH_MAX
        params = RoundParams(
            cohort=tuple(range(chosen.n)),
            blocks=(Block("update", chosen.d, chosen.bits, (2 ** (chosen.bits - 1) - 1) // chosen.n),),
            suite=suite,
            colluders=chosen.corrupt,
            degree=chosen.degree,
            threshold=chosen.threshold,
            dropouts=max(chosen.drop, chosen.n // 20) if sparse else None,  # type: ignore[arg-type]  # None: the default
        )
        rows = table(params, chosen.drop)
        if chosen.json:
            print(
                json.dumps({"suite": suite, "degree": params.degree, "threshold": params.threshold, "messages": rows})
            )
            continue
        print(
            f"\n{suite}: n = {chosen.n}, d = {chosen.d}, {chosen.bits}-bit ring, k = {params.degree}, t = {params.threshold}, "
            f"{chosen.drop} silent from the upload on; bytes, checked against a real round"
        )
        show(rows)
        client = sum(float(str(row["mean"])) for row in rows if row["way"] == "up")
        print(f"one client sends {client / 1e6:.3f} MB")


if __name__ == "__main__":
    main()
