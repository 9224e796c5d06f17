"""Mutated frames against both sides of a round: nothing crashes, and nothing is taken that its sender could not have meant.

    python tests/fuzz/frames.py --frames 1000000

Half of the mutants are signed anew, after the mutation, by the party whose frame it was: those get past the signature and reach the checks
behind it. A mutant that is taken counts as *accepted*, which must not happen, unless it is a *variant*: something that a party may
freely choose and sign (its own round keys and seed commitment, what it seals to others, whom it refuses, which survivors a server lists): such
content is checked by others or later, and has tests of its own. A mutant that decodes to the
very same content is none and is drawn again.
"""

import argparse
import collections
import concurrent.futures
import importlib.util
import json
import os
import random
import sys
import time
import warnings
from pathlib import Path

import msgspec

from secagg.crypto.kdf import Label
from secagg.errors import PeerFault, SecaggError
from secagg.params import PHASES, SlackWarning
from secagg.protocols.pairwise import advertise, confirm, mask, share

_spec = importlib.util.spec_from_file_location("fuzz_helpers", Path(__file__).parents[1] / "secagg" / "conftest.py")
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

TARGETS = [("server", phase) for phase in PHASES] + [("client", phase) for phase in PHASES[:4]]
# What a party may freely choose and sign.
VARIANTS = {("server", "advertise"), ("server", "share"), ("server", "mask"), ("client", "mask")}
ACCEPT = {"advertise": advertise.accept, "share": share.accept, "mask": mask.accept, "confirm": confirm.accept}


def reach(phase):
    """A round whose server awaits a phase, and every client's frame of it."""
    rd = helpers.Round(helpers.make_params())
    while rd.session.phase != phase:
        rd.step()
    return rd, dict(rd.ask(phase))


def resigned(rd, frame, signer, rnd):
    """The frame distorted and then signed by its own party; None where there is no signature to make."""
    try:
        return helpers.lie(rd, frame, signer, rnd)
    except (msgspec.MsgspecError, OverflowError, TypeError, ValueError, IndexError, KeyError):
        return None  # the distortion has no encoding


def resigned_head(frame, signer, rnd):
    """A server's two-layer frame, distorted in its signed header or around it."""
    kind, header, *rest = msgspec.msgpack.decode(frame)
    try:
        if rnd.randrange(2):
            payload = msgspec.msgpack.encode(
                helpers.distort(msgspec.msgpack.decode(msgspec.msgpack.decode(header)[0]), rnd)
            )
            header = msgspec.msgpack.encode([payload, signer.sign(Label.SIGNATURE_FRAME, payload)])
        else:
            rest = helpers.distort(rest, rnd)
        return msgspec.msgpack.encode([kind, header, *rest])
    except (msgspec.MsgspecError, OverflowError, TypeError):
        return None


class Side:
    """One side in one phase, which takes mutants until one changes it."""

    def __init__(self, who, phase):
        self.who, self.phase = who, phase
        self.build()

    def build(self):
        """A fresh state."""
        if self.who == "server":
            self.rd, self.frames = reach(self.phase)
            return
        self.rd, _ = reach(self.phase)
        self.states = {i: client._state for i, client in self.rd.clients.items()}
        for i, frame in self.rd.ask(self.phase).items():
            self.rd.session.receive(i, frame)
        self.frames = dict(self.rd.session.close_phase())
        self.states = {i: client._state for i, client in self.rd.clients.items()}

    def mutant(self, rnd):
        """(whose frame, a mutant of it, whether it was signed anew)."""
        while True:
            client = rnd.choice(sorted(self.frames))
            frame = self.frames[client]
            again = rnd.randrange(2) == 1
            if not again:
                out = helpers.flip(frame, rnd)
            elif self.who == "server":
                out = resigned(self.rd, frame, self.rd.identities[client], rnd)
            elif self.phase in PHASES[:2]:
                out = resigned_head(frame, self.rd.server, rnd)
            else:
                out = resigned(self.rd, frame, self.rd.server, rnd)
            if out is not None and out != frame:
                return client, out, again

    def take(self, client, frame):
        """Hand it over; whatever the error, the state is as it was."""
        if self.who == "client":
            ACCEPT[self.phase](self.states[client], frame)
            return
        session = self.rd.session
        try:
            session.receive(client, frame)
        except PeerFault:
            session._gone.clear()
            raise
        finally:
            session._turned_away.clear()
        taken = client in session._taken
        self.build()
        if not taken:
            raise SecaggError("a word to decline")


def fuzz(frames, seed):
    """Counts by (side, phase, signed anew, outcome)."""
    warnings.simplefilter("ignore", SlackWarning)
    rnd = random.Random(seed)
    sides = [Side(*target) for target in TARGETS]
    counts = collections.Counter()
    for index in range(frames):
        side = sides[index % len(sides)]
        client, mutant, again = side.mutant(rnd)
        try:
            side.take(client, mutant)
        except SecaggError as error:
            outcome = type(error).__name__
        except Exception as error:  # noqa: BLE001 - a crash is what is looked for
            outcome = f"CRASH {type(error).__name__}"
        else:
            free = again and (side.who, side.phase) in VARIANTS
            outcome = "variant" if free else "ACCEPTED"
        counts[side.who, side.phase, "signed" if again else "unsigned", outcome] += 1
    return counts


def run(frames, seed, workers):
    """`fuzz` over some processes."""
    share_of = [frames // workers + (i < frames % workers) for i in range(workers)]
    if workers == 1:
        return fuzz(frames, seed)
    total = collections.Counter()
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        for counts in pool.map(fuzz, share_of, range(seed, seed + workers)):
            total += counts
    return total


def main():
    """Print what became of the mutants; exit 1 if one crashed something or was accepted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    start = time.perf_counter()
    counts = run(options.frames, options.seed, options.workers)
    seconds = time.perf_counter() - start
    bad = {key: n for key, n in counts.items() if key[3].startswith(("CRASH", "ACCEPTED"))}
    if options.json:
        print(
            json.dumps(
                {
                    "frames": counts.total(),
                    "seconds": seconds,
                    "bad": len(bad),
                    "counts": {" ".join(k): n for k, n in counts.items()},
                }
            )
        )
    else:
        for who, phase in TARGETS:
            here = {k: n for k, n in counts.items() if k[:2] == (who, phase)}
            reached = sorted(((n / sum(here.values()), k[2], k[3][:60]) for k, n in here.items()), reverse=True)
            print(
                f"{who} in {phase}: " + ", ".join(f"{what} ({how}) {100 * part:.2f} %" for part, how, what in reached)
            )
        signed = sum(n for k, n in counts.items() if k[2] == "signed")
        print(
            f"{counts.total()} frames, {signed} signed anew, {seconds:.0f} s; crashed or accepted: {sum(bad.values())}"
        )
    for key in list(bad)[:5]:
        print("BAD", *key, file=sys.stderr)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
