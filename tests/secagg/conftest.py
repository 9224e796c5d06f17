import collections
import functools

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from secagg.crypto.kdf import Label
from secagg.params import Block, RoundParams

BLOCKS = (Block("update", 5, 20, 1000), Block("count", 1, 64, 10**15))


def make_params(n=4, **fields):
    """Parameters of a small round in the classical suite; n = 4, c = 1, r = 1 gives t = 3, q = 3."""
    defaults = {"cohort": tuple(range(n)), "blocks": BLOCKS, "suite": "classical"}
    if n == 4:
        defaults |= {"colluders": 1, "dropouts": 1}
    return RoundParams(**(defaults | fields))


def make_inputs(params):
    """Inputs at and within the bounds, the same for the same parameters."""
    rng = np.random.default_rng(len(params.cohort))
    return {
        i: {b.name: rng.integers(-b.bound, b.bound, b.length, endpoint=True) for b in params.blocks}
        for i in params.cohort
    }


def flip(frame, rnd):
    """A frame damaged on the way: bytes changed, cut off, put in or taken out."""
    data, kind = bytearray(frame), rnd.randrange(4)
    place = rnd.randrange(len(data))
    if kind == 0:
        data[place] ^= rnd.randrange(1, 256)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place:place] = bytes(rnd.randrange(256) for _ in range(rnd.choice((1, 4, 40))))
    else:
        del data[place : place + rnd.choice((1, 4, 40))]
    return bytes(data)


ODD_VALUES = (0, 1, 2, 3, -1, 2**63, 2**64 - 1, True, None, 1.0, "x", b"", bytes(32), [], {})


def distort(value, rnd):
    """Some other value in a decoded message: lists shuffled, lengthened or shortened, bytes flipped, odd values."""
    if isinstance(value, list) and value:
        out, kind = list(value), rnd.randrange(8)
        if kind == 0:
            rnd.shuffle(out)
        elif kind == 1:
            out.append(rnd.choice(out))
        elif kind == 2:
            out.pop(rnd.randrange(len(out)))
        else:
            place = rnd.randrange(len(out))
            out[place] = distort(out[place], rnd)
        return out
    if isinstance(value, bytes) and value and rnd.randrange(3):
        return flip(value, rnd)
    return rnd.choice(ODD_VALUES)


def lie(rd, frame, signer, rnd):
    """A frame distorted by its own sender, which signs what it made."""

    def header(data):
        items = distort(msgspec.msgpack.decode(msgspec.msgpack.decode(data)[0]), rnd)
        payload = msgspec.msgpack.encode(items)
        return msgspec.msgpack.encode([payload, signer.sign(Label.SIGNATURE_FRAME, payload)])

    if len(frame) > 4 and len(frame) > (end := 4 + int.from_bytes(frame[:4], "big")):
        head = header(frame[4:end])
        front = len(head).to_bytes(4, "big") + head
        return front + bytes(-len(front) % 16) + frame[end + -end % 16 :]
    items = msgspec.msgpack.decode(frame)
    if items[0] == "shares" and rnd.randrange(4):
        leaves = list(items[2])
        place = rnd.randrange(len(leaves))
        leaves[place] = flip(leaves[place], rnd)
        return rd.share_frame(signer.id, leaves)
    if isinstance(items[0], str):
        return msgspec.msgpack.encode(distort(items, rnd))
    return header(frame)


@pytest.fixture(scope="session")
def distortions():
    """`(flip, lie)`: damage on the way, `flip(frame, rnd)`, and by the sender, `lie(rd, frame, signer, rnd)`."""
    return flip, lie


@pytest.fixture
def explore(new_round, distortions):
    """`explore(machine, examples, **settings)`: run a state machine's rules in many orders; what it counted in `ended`."""

    def run(machine, examples, **fields):
        machine.ended = collections.Counter()
        chosen = settings(
            max_examples=examples,
            stateful_step_count=14,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **fields,
        )
        run_state_machine_as_test(functools.partial(machine, new_round, distortions), settings=chosen)
        return machine.ended

    return run


@pytest.fixture(scope="session")
def params_of():
    """`params_of(n=4, **fields)`: parameters of a small round."""
    return make_params


@pytest.fixture(scope="session")
def inputs_of():
    """`inputs_of(params)`: inputs of every client."""
    return make_inputs


@pytest.fixture
def new_round(by_hand):
    """`new_round(n=4, inputs=None, hooks=None, **fields)`: a small round to drive, what holds in every round checked at the end."""

    def build(n=4, *, inputs=None, hooks=None, **fields):
        params = make_params(n, **fields)
        return by_hand(params, make_inputs(params) if inputs is None else inputs, hooks)

    return build
