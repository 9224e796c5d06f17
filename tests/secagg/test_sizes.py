import collections

import numpy as np
import pytest

from secagg import messages, sizes
from secagg.crypto import merkle
from secagg.params import PHASES, Block, RoundParams
from secagg.sizes import frame_sizes
from secagg.testing import simulate_round

BLOCKS = (Block("update", 7, 20, 1000), Block("count", 1, 64, 10**12))
# Ids at which MessagePack integers grow, and positions at which Merkle paths do.
ODD_IDS = (0, 5, 127, 128, 255, 256, 65_535, 65_536, 2**32, 2**63, 2**64 - 2)

CASES = {
    "smallest": ({"cohort": (0, 1, 2), "suite": "hybrid"}, 0),
    "ids of every length": ({"cohort": ODD_IDS, "suite": "classical"}, 3),
    "hybrid keys": ({"cohort": tuple(range(17)), "suite": "hybrid"}, 2),
    "many neighbours": ({"cohort": tuple(range(0, 40 * 7, 7)), "suite": "classical"}, 9),
    "sparse graph": ({"cohort": tuple(range(120, 160)), "suite": "classical", "degree": 30, "threshold": 25}, 2),
}


def real_round(params, dropouts):
    """A round with some clients silent from exchange 3 on: its outcome, and the length of every frame that a client sent."""
    inputs = {block.name: np.zeros(block.length, np.int64) for block in params.blocks}
    sent = collections.defaultdict(dict)
    outcome = simulate_round(
        params,
        dict.fromkeys(params.cohort, inputs),
        dict.fromkeys(params.cohort[len(params.cohort) - dropouts :], "mask"),
        tap=lambda phase, client, frame: sent[phase].update({client: len(frame)}),
    )
    return outcome, sent


@pytest.mark.parametrize(("fields", "dropouts"), CASES.values(), ids=CASES)
def test_every_frame_has_the_length_that_is_computed_for_it(fields, dropouts):
    """With the round's transcript, each client's frames and all that the server sends have exactly the predicted bytes."""
    params = RoundParams(blocks=BLOCKS, **fields)
    outcome, sent = real_round(params, dropouts)
    expected = frame_sizes(params, dropouts, transcript=outcome.transcript)
    assert expected.up == sent
    assert {phase: sum(frames.values()) for phase, frames in expected.down.items()} == outcome.bytes_down
    assert tuple(expected.up) == tuple(expected.down) == PHASES


def test_a_complete_graph_needs_no_transcript():
    """On the complete graph the lengths are the same for every transcript."""
    params = RoundParams(cohort=ODD_IDS, blocks=BLOCKS)
    assert frame_sizes(params) == frame_sizes(params, transcript=b"\x01" * 32)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 129, 300])
def test_path_lengths_are_those_of_the_tree(size):
    """For every leaf of trees of full and ragged shape the path has the computed length."""
    tree = merkle.Tree([bytes([i % 256]) for i in range(size)])
    assert [sizes._path(i, size) for i in range(size)] == [len(tree.paths[i]) for i in range(size)]


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65_535, 65_536])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 40])
def test_lengths_of_byte_strings_and_lists_are_those_of_the_codec(length, count):
    """A frame with some byte strings has as many bytes more than the empty one as is computed."""
    full = messages.encode(messages.ShareFrame(b"", (bytes(length),) * count))
    assert len(full) == len(messages.encode(messages.ShareFrame(b"", ()))) + sizes._items([length] * count)
