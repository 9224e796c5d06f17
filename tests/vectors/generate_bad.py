"""Write the bad_*.json: what each receiver of the recorded classical round must refuse, and with which error.

Each case is a frame that a party of round_classical.json could send, one thing wrong with it and, where its sender could do that, signed
anew; made by the second implementation in generate_round.py. The error and its words are from docs/protocol.md, not from a
run. Boxes are recorded as there. Run from the repository root, after generate_round.py:

    python tests/vectors/generate_bad.py
"""

import generate_crypto as crypto
from bad_cases import LOW_ORDER, A, B, C, Cases, flipped, long_array
from bad_to_client import advertised, leaf, quorum, shared, survivors
from bad_to_server import advertise, confirm, decline, mask, share, unmask
from generate_round import COHORT, FOLDER, PAIR_SEED, SERVER, SHARES, round_of
from reference import Boxes, recorded_boxes


def params(rnd):
    """To anybody: encodings of parameters that are none, or unsound."""
    cases = Cases(rnd, "anybody", A, "proposal")
    good, make, name = rnd.params, rnd.encode_params, "round parameters: "
    blocks = [["update", 5, 20, 1000], ["count", 1, 64, 10**15]]
    ids = list(COHORT)
    for flaw, data, words in (
        ("empty", b"", name),
        ("one byte short", good[:-1], name),
        ("one byte behind", good + b"\0", name),
        ("not in shortest form", long_array(good), f"{name}not in canonical"),
        ("version 2", make(version=2), name),
        ("a session of 15 bytes", make(session=bytes(15)), name),
        ("an application context of 33 bytes", make(app_context=bytes(33)), name),
        ("no threshold", make(threshold=None), name),
        ("a block of three fields", make(blocks=[["update", 5, 20]]), name),
        ("a cohort not in order", make(cohort=ids[::-1]), f"{name}not in canonical"),
    ):
        cases.add(flaw, data, "DecodeError", words)
    for flaw, data, words in (
        ("the server's id in the cohort", make(cohort=[*ids[:-1], SERVER]), "client id"),
        ("a negative id", make(cohort=[-1, *ids[1:]]), "client id"),
        ("a client twice", make(cohort=[A, A, *ids[2:]]), "appear twice"),
        ("a cohort of two", make(cohort=ids[:2]), "a cohort of 2"),
        ("another suite", make(suite="none"), "suite 'none' is unknown"),
        ("another adversary", make(adversary="kind"), "adversary 'kind' is unknown"),
        ("a threshold of two", make(threshold=2), "too low against a lying server"),
        ("a threshold of one", make(threshold=1), "threshold t = 1"),
        ("a threshold of n", make(threshold=4), "threshold t = 4"),
        ("too many colluders", make(colluders=3), "threshold"),
        ("too many dropouts", make(dropouts=2), "cannot reach threshold"),
        ("min_survivors below the quorum", make(min_survivors=2), "min_survivors = 2"),
        ("min_survivors above n", make(min_survivors=5), "min_survivors = 5"),
        ("an odd degree", make(degree=1), "degree k = 1"),
        ("no block", make(blocks=[]), "at least one block"),
        ("a block twice", make(blocks=[blocks[0], blocks[0]]), "appear twice"),
        ("a block without a name", make(blocks=[["", 5, 20, 1000]]), "block name"),
        ("a ring of 65 bits", make(blocks=[["update", 5, 65, 1000]]), "bits"),
        ("a ring of one bit", make(blocks=[["update", 5, 1, 0]]), "bits"),
        ("a bound that the ring does not hold", make(blocks=[["update", 5, 20, 2**19]]), "bits = 21 would do"),
        ("a bound whose sum wraps around", make(blocks=[["update", 5, 20, 2**17]]), "could wrap around"),
        ("a body of 2^31 bytes", make(blocks=[["update", 2**28, 64, 1]]), "one tag covers"),
    ):
        cases.add(flaw, data, "ParameterError", words)
    return cases.found


def box(rnd):
    """Boxes of the round that must not open: which key, which info."""
    cases = Cases(rnd, "anybody", A, "box")
    good = rnd.part_fields(C, A)["shares"]
    right = {"purpose": SHARES, "binding": rnd.t1.hex(), "sender": C, "recipient": A, "key": "channel"}
    for flaw, data, changes in (
        ("another purpose", good, {"purpose": PAIR_SEED}),
        ("the context for T1", good, {"binding": rnd.context.hex()}),
        ("another sender", good, {"sender": B}),
        ("another recipient", good, {"recipient": B}),
        ("the two ends exchanged", good, {"sender": A, "recipient": C}),
        ("the mask key for the channel key", good, {"key": "mask"}),
        ("the encapsulated key altered", flipped(good, 0), {}),
        ("an encapsulated key of zero", bytes(32) + good[32:], {}),
        ("an encapsulated key of low order", LOW_ORDER + good[32:], {}),
        ("the ciphertext altered", flipped(good, 40), {}),
        ("the tag altered", flipped(good), {}),
        ("one byte short", good[:-1], {}),
        ("one byte long", good + b"\0", {}),
        ("shorter than its overhead", good[:47], {}),
        ("empty", b"", {}),
    ):
        cases.add(flaw, data, "SealError", "classical box", **(right | changes))
    return cases.found


KINDS = (advertise, advertised, share, shared, leaf, mask, survivors, confirm, quorum, unmask, decline, params, box)


def files():
    """The text of every file by name."""
    found = {}
    for kind in KINDS:
        name = f"bad_{kind.__name__}.json"
        rnd = round_of("classical")
        rnd.boxes = Boxes(rnd.boxes.used + recorded_boxes(FOLDER / name))
        cases = kind(rnd)
        known = round_of("classical").boxes.used
        sections = {
            "provenance": "tests/vectors/generate_bad.py",
            "count": [len(cases)],
            "boxes": [entry for entry in rnd.boxes.used if entry not in known],
            "cases": cases,
        }
        found[name] = crypto.rendered(sections)
    return found


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, "utf-8")
