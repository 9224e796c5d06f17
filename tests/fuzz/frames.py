"""Mutated frames against every state of both sides: no crash, no hang, no acceptance.

`python tests/fuzz/frames.py --frames 1000000` prints how many mutants ended at which check. Half of them are damaged on the way
(bits flipped, cut, lengthened, MessagePack restructured, whole frames of another round or sender), half are signed anew, after the
mutation, with the key of the frame's own sender, so that they reach what lies behind the signature.

A mutant has other bytes than the right frame. It is *accepted*, which must not happen, if the step takes it although
it was damaged on the way, or although its sender, with its own key, was not free to send it (`Station.may`, written apart from the
code under test). What a sender may freely choose (another commitment, a reason to decline, a smaller U3) is counted as `free choice`.
A proposal carries no signature, and any sound round inside the client's policy is one that it may be asked to join.
"""

import argparse
import collections
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
import traceback

import msgspec
from stations import COHORT, ME, OTHERS, REFUSED, TAKEN, Rig, split_mask, still_right

from secagg.crypto import merkle, prg
from secagg.crypto.kdf import Label
from secagg.errors import SecaggError
from secagg.protocols.pairwise.parties import advertisement_digest

WAY, ANEW = "on the way", "signed anew"
CHUNK = 5_000
HANG_S = 10
ODD = (
    0,
    1,
    2,
    -1,
    2**32,
    2**63,
    2**64 - 1,
    True,
    None,
    1.5,
    "x",
    "",
    b"",
    bytes(16),
    bytes(32),
    bytes(36),
    [],
    [[]],
    {},
    {"a": 1},
)
FORM = re.compile(
    "Expected `|codec can't decode|malformed|Invalid enum value|truncated|out of range|expected 1\\.\\.|Object contains|recursion"
)
encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode


class HangError(BaseException):
    """A frame took too long."""


def say(line):
    """Prints a line."""
    sys.stdout.write(line + "\n")


# Mutations of values and of bytes.


def damage(data, rnd):
    """Bytes changed, cut off, put in, taken out or doubled."""
    out, kind = bytearray(data), rnd.randrange(6)
    place = rnd.randrange(len(out)) if out else 0
    if kind <= 1 and out:
        for _ in range(rnd.choice((1, 1, 1, 3))):
            out[rnd.randrange(len(out))] ^= 1 << rnd.randrange(8)
    elif kind == 2:
        del out[place:]
    elif kind == 3:
        out[place:place] = rnd.randbytes(rnd.choice((1, 2, 16, 64, 400)))
    elif kind == 4:
        del out[place : place + rnd.choice((1, 2, 16, 32, 64))]
    else:
        out[place:place] = out[: rnd.choice((1, 8, 40, len(out)))]
    return bytes(out)


def nudge(value, rnd):
    """A decoded value with one thing changed: mostly of the same type and length, so that the check behind the form is reached."""
    if rnd.randrange(16) == 0:
        return rnd.choice(ODD)
    match value:
        case list() if value and rnd.randrange(4):
            at = rnd.randrange(len(value))
            return [*value[:at], nudge(value[at], rnd), *value[at + 1 :]]
        case list() if value:
            return rearranged(value, rnd)
        case bytes() if value and rnd.randrange(8):
            at = rnd.randrange(len(value))
            return value[:at] + bytes([value[at] ^ (1 << rnd.randrange(8))]) + value[at + 1 :]
        case bytes():
            return damage(value, rnd)
        case bool() | None | float():
            return rnd.choice(ODD)
        case int():
            other = rnd.choice((value + 1, value - 1, value ^ (1 << rnd.randrange(64)), 0))
            return max(-(2**63), min(2**64 - 1, other))
        case str():
            return rnd.choice((value + "x", value[:-1], value[::-1], "advertise", "self", "root", "lying", "hybrid"))
        case _:
            return rnd.choice((*ODD, [rnd.randrange(7)], [0, 1]))


def rearranged(value, rnd):
    """A list with an item taken out, doubled, swapped or copied over another."""
    at, other, out = rnd.randrange(len(value)), rnd.randrange(len(value)), list(value)
    match rnd.randrange(4):
        case 0:
            del out[at]
        case 1:
            out.insert(at, out[other])
        case 2:
            out[at], out[other] = out[other], out[at]
        case _:
            out[at] = out[other]
    return out


# What a sender signs.


def signed(items, signer):
    """A frame over a payload that need not be a message at all."""
    payload = encode(items)
    return encode([payload, signer.sign(Label.SIGNATURE_FRAME, payload)])


def resigned(frame, signer, rnd):
    """A frame whose payload was changed by its own sender."""
    payload = decode(frame)[0]
    if rnd.randrange(8) == 0:
        raw = damage(payload, rnd)
        return encode([raw, signer.sign(Label.SIGNATURE_FRAME, raw)])
    return signed(nudge(decode(payload), rnd), signer)


def forge_confirm(rig, frame, rnd):
    """A signature over another statement, or another head around the right one; it is the frame's only signature."""
    items = decode(frame)
    if rnd.randrange(2):
        statement = encode(nudge(rig.states["unmask"].agreed.statement, rnd))
        return encode([*items[:-1], rig.identities[ME].sign(Label.SIGNATURE_STATEMENT, statement)])
    return encode(nudge(items, rnd))


def forge_share(rig, frame, rnd):
    """Other leaves under their own root, or another head."""
    _, header, leaves = decode(frame)
    head = decode(decode(header)[0])
    kind = rnd.randrange(3)
    if kind == 0:
        return encode(["shares", resigned(header, rig.identities[ME], rnd), leaves])
    leaves = nudge(leaves, rnd)
    if kind == 1 and isinstance(leaves, list) and leaves and all(isinstance(leaf, bytes) for leaf in leaves):
        head[-1] = merkle.Tree(leaves).root
    return encode(["shares", signed(head, rig.identities[ME]), leaves])


def forge_mask(rig, frame, rnd):
    """Another body under its own tag, another head, other refusals."""
    header, body = split_mask(frame)
    head, kind = decode(decode(header)[0]), rnd.randrange(4)
    if kind == 0:
        changed = damage(body, rnd) if rnd.randrange(3) == 0 else nudge(body, rnd)
        body = changed if isinstance(changed, bytes) and changed else bytes(16)
        head[-3:] = [len(body), head[-2], prg.gmac(rig.mac_key, body)]
    elif kind == 1:
        head[-2] = sorted(rnd.sample(range(7), rnd.randrange(3)))
    elif kind == 2:
        head[-2] = nudge([rnd.choice(COHORT)], rnd)
    header = resigned(header, rig.identities[ME], rnd) if kind == 3 else signed(head, rig.identities[ME])
    front = len(header).to_bytes(4, "big") + header
    padding = bytes(-len(front) % 16)
    return front + (padding if rnd.randrange(16) else damage(padding or b"\0", rnd)) + body


def forge_u1(rig, frame, rnd):
    """Other members, digests or advertisements, each with the T1 that follows from them; or another head."""
    tag, header, digests, frames = decode(frame)
    kind = rnd.randrange(5)
    if kind == 0:
        return encode([tag, resigned(header, rig.server, rnd), digests, frames])
    entries = [digests[at : at + 40] for at in range(0, len(digests), 40)]
    place = rnd.randrange(len(OTHERS))
    i = OTHERS[place]
    if kind == 1:
        entries = nudge(entries, rnd)
    elif kind == 2:
        frames = nudge(frames, rnd)
    elif kind == 3:
        del entries[i], frames[place]
    else:
        frames[place] = resigned(frames[place], rig.identities[i], rnd)
        entries[i] = i.to_bytes(8, "big") + advertisement_digest(frames[place])
    if not isinstance(entries, list) or not all(isinstance(e, bytes) for e in entries):
        return encode([tag, header, entries, frames])
    digests, members = b"".join(entries), [int.from_bytes(e[:8], "big") for e in entries]
    head = decode(decode(header)[0])
    if set(members) <= set(COHORT):
        head[-1] = rig.transcript(digests, members)
    return encode([tag, signed(head, rig.server), digests, frames])


def forge_u2(rig, frame, rnd):
    """Other members with or without their parts, other parts, another head."""
    tag, header, deliveries = decode(frame)
    head, kind = decode(decode(header)[0]), rnd.randrange(4)
    if kind == 0:
        return encode([tag, resigned(header, rig.server, rnd), deliveries])
    if kind == 1:
        place = rnd.randrange(len(OTHERS))
        head[-1] = [i for i in head[-1] if i != OTHERS[place]]
        del deliveries[place]
    if kind != 1 or rnd.randrange(2):
        deliveries = nudge(deliveries, rnd)
    return encode([tag, signed(head, rig.server), deliveries])


def forge_part(rig, frame, rnd):
    """What one dealer dealt the receiver is changed, or is another holder's, under the dealer's own signed root."""
    tag, header, deliveries = decode(frame)
    place = rnd.randrange(len(OTHERS))
    dealer = OTHERS[place]
    _, dealt, leaves = decode(rig.sent["share"][dealer])
    at = rig.view.graph.holders(dealer).index(ME)
    if rnd.randrange(6) == 0:
        deliveries[place][0] = resigned(dealt, rig.identities[dealer], rnd)
    else:
        leaf = rnd.choice(leaves) if rnd.randrange(8) == 0 else nudge(leaves[at], rnd)
        leaves[at] = leaf if isinstance(leaf, bytes) else b""
        tree = merkle.Tree(leaves)
        head = decode(decode(dealt)[0])
        head[-1] = tree.root
        deliveries[place] = [signed(head, rig.identities[dealer]), leaves[at], tree.paths[at]]
    return encode([tag, header, deliveries])


FORGE = {
    "server: confirm": forge_confirm,
    "server: share": forge_share,
    "server: mask": forge_mask,
    "client: U1": forge_u1,
    "client: U2": forge_u2,
    "client: a part of U2": forge_part,
    "client: U3": lambda rig, frame, rnd: resigned(frame, rig.server, rnd),
    "client: quorum": lambda rig, frame, rnd: resigned(frame, rig.server, rnd),
    "client: proposal": lambda _, frame, rnd: encode(nudge(decode(frame), rnd)),
}


def forge(rig, station, rnd):
    """A mutant that its own sender signed."""
    make = FORGE.get(station.name, lambda rig, frame, rnd: resigned(frame, rig.identities[ME], rnd))
    return make(rig, station.right, rnd)


def on_the_way(rig, other, station, rnd):
    """A mutant that nobody signed: damaged, restructured, another's, another state's, another round's, or spliced."""
    frame, kind = station.right, rnd.randrange(12)
    if kind == 0:
        return other.stations[station.name].right
    if kind == 1:
        return rnd.choice(list(rig.stations.values())).right
    if kind == 2:
        return rnd.choice(list(rig.sent[rnd.choice(list(rig.sent))].values()))
    if kind == 3:
        donor = rnd.choice((other.stations[station.name], *rig.stations.values())).right
        cut = rnd.randrange(len(frame))
        return frame[:cut] + donor[cut:]
    if kind <= 6 and station.name != "server: mask":
        return encode(nudge(decode(frame), rnd))
    return damage(frame, rnd)


# Counting.


def check_name(error):
    """The class of an error and its message without what varies: which check it was."""
    if FORM.search(str(error)):
        return f"{type(error).__name__}: not the MessagePack of this message"
    text = re.sub(r"\[[^\]]*\]|'[^']*'|(?<![A-Z])-?\d+(\.\d+)?", "…", str(error))
    return f"{type(error).__name__}: {text[:100]}"


class Count:
    """What became of the mutants.

    Attributes:
        ends: `{(station, "signed anew" or "on the way", outcome): mutants}`.
        wrong: Crashes, hangs and acceptances, with the frame in hex: the first few.
        slowest: Seconds of the slowest frame.
    """

    def __init__(self):
        self.ends, self.wrong, self.slowest = collections.Counter(), [], 0.0

    def blame(self, kind, station, how, frame, detail):
        """Puts a finding on record."""
        self.ends[station, how, kind.upper()] += 1
        if len(self.wrong) < 5:
            self.wrong.append({"kind": kind, "station": station, "how": how, "frame": frame.hex(), "detail": detail})


def feed(count, station, how, frame):
    """One mutant."""
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        end = station.feed(frame)
    except SecaggError as error:
        count.ends[station.name, how, check_name(error)] += 1
    except HangError:
        count.blame("hang", station.name, how, frame, "")
    except Exception:  # noqa: BLE001 - whatever is no SecaggError is what this program looks for
        count.blame("crash", station.name, how, frame, traceback.format_exc())
    else:
        own = how == ANEW
        if end == REFUSED and own:
            count.ends[station.name, how, REFUSED] += 1
        elif end == TAKEN and (own or station.name == "client: proposal") and station.may(frame):
            count.ends[station.name, how, "free choice"] += 1
        else:
            count.blame("acceptance", station.name, how, frame, end)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    count.slowest = max(count.slowest, time.perf_counter() - start)


def hung(*_):
    """The alarm of a frame that takes too long."""
    raise HangError


def fuzz(frames, seed, suite):
    """Feeds mutants to every station in turn, each time one of either half.

    Args:
        frames: How many.
        seed: Of the mutations.
        suite: How the round seals.
    """
    rnd, count = random.Random(seed), Count()
    rig, other = Rig(suite), Rig(suite)
    turns = itertools.cycle([(how, s) for s in rig.stations.values() for how in (WAY, ANEW)])
    before = signal.signal(signal.SIGALRM, hung)
    for how, station in itertools.islice(turns, frames):
        frame = station.right
        while frame in station.rights:
            frame = forge(rig, station, rnd) if how == ANEW else on_the_way(rig, other, station, rnd)
        feed(count, station, how, frame)
    signal.signal(signal.SIGALRM, before)
    for station in rig.stations.values():
        if not still_right(station):
            count.blame("crash", station.name, "right frame", station.right, "is not taken any more")
    return count


def chunk(job):
    """A worker's share."""
    count = fuzz(*job)
    return list(count.ends.items()), count.wrong, count.slowest


def run(frames, seed, workers):
    """All mutants, on all cores; one chunk in five in the hybrid suite."""
    sizes = [min(CHUNK, frames - at) for at in range(0, frames, CHUNK)]
    jobs = [(size, f"{seed}/{at}", "hybrid" if at % 5 == 1 else "classical") for at, size in enumerate(sizes)]
    if workers == 1:
        return gather(map(chunk, jobs))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        # A loop in compiled code hears no alarm: its chunk never comes, and this raises.
        return gather(pool.map(chunk, jobs, timeout=60 + frames / 100))


def gather(results):
    """Adds the chunks up."""
    total = Count()
    for ends, wrong, slowest in results:
        total.ends.update(dict(ends))
        total.wrong += wrong
        total.slowest = max(total.slowest, slowest)
    return total


def report(count, seconds):
    """The table: the share of each station's mutants that ended at each check."""
    halves, stations = collections.Counter(), collections.defaultdict(collections.Counter)
    for (station, how, end), number in count.ends.items():
        halves[how] += number
        stations[station][end, how] += number
    for station, ends in stations.items():
        say(f"{station}: {ends.total()} mutants")
        for (end, how), number in ends.most_common():
            say(f"  {number / ends.total():8.4%} {number:8d}  {how:11s}  {end}")
    kinds = {
        kind: sum(number for (*_, end), number in count.ends.items() if end == kind.upper())
        for kind in ("crash", "hang", "acceptance")
    }
    say(", ".join(f"{number} {how}" for how, number in halves.items()))
    free = sum(number for (*_, end), number in count.ends.items() if end == "free choice")
    say(f"{free} free choices of their senders; slowest frame {count.slowest * 1e3:.0f} ms")
    say(f"{halves.total()} mutants in {seconds:.0f} s: " + ", ".join(f"{kind} {n}" for kind, n in kinds.items()))


def main():
    """The command line; exit 1 where anything crashed, hung or was accepted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args()
    start = time.perf_counter()
    count = run(options.frames, options.seed, options.workers)
    seconds = time.perf_counter() - start
    if options.json:
        ends = [[*key, number] for key, number in sorted(count.ends.items())]
        say(json.dumps({"ends": ends, "wrong": count.wrong, "seconds": seconds, "slowest": count.slowest}))
    else:
        report(count, seconds)
        for finding in count.wrong[:5]:
            say(json.dumps(finding, indent=1))
    return 1 if count.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
