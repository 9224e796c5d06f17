import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import messages, ring
from secagg.crypto import prg
from secagg.crypto.kdf import Label, derive
from secagg.errors import (
    BelowThresholdError,
    DecodeError,
    DisputeError,
    InputError,
    PeerFault,
    ServerFault,
    SignatureError,
)
from secagg.params import Block, RoundParams
from secagg.protocols.pairwise import mask
from secagg.protocols.pairwise.mask import settle

P = RoundParams(
    cohort=range(3), blocks=(Block("update", 4, 20, 1000), Block("count", 1, 64, 10**15)), suite="classical"
)
GOOD = {"update": np.array([-1000, 0, 5, 1000]), "count": np.array([10**15])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"update": np.array([1.0, 2, 3, 4])}, "block 'update': an integer array is needed, got float64"),
        ({"update": np.full(4, np.nan)}, "block 'update': an integer array is needed, got float64"),
        ({"update": np.array([True] * 4)}, "block 'update': an integer array is needed, got bool"),
        ({"update": np.array([1, 2, 3, 4], object)}, "got object"),
        ({"update": np.array([1, 2, 3, 4], complex)}, "got complex128"),
        ({"update": [1, 2, 3, 4]}, "an integer array is needed, got list"),
        ({"update": 5}, "got int"),
        ({"update": None}, "got NoneType"),
        ({"update": np.int64(5)}, "got int64"),
        ({"update": np.zeros(3, int)}, r"block 'update': shape \(3,\) instead of \(4,\)"),
        ({"update": np.zeros((4, 1), int)}, r"shape \(4, 1\) instead of \(4,\)"),
        ({"update": np.zeros((), int)}, r"shape \(\) instead of \(4,\)"),
        ({"update": np.array([0, 0, 0, 1001])}, r"block 'update': values 0\.\.1001 are outside \+-1000"),
        ({"update": np.array([0, 0, 0, -1001])}, r"values -1001\.\.0"),
        ({"update": np.array([0, 0, 0, 2**63], np.uint64)}, r"values 0\.\.9223372036854775808"),
        ({"count": np.array([10**15 + 1])}, "block 'count': values"),
        ({"count": np.array([-(2**63)])}, r"block 'count': values -9223372036854775808"),
    ],
)
def test_s8_inputs_are_checked_before_any_cast(changes, message):
    """Dtype, shape and bounds, on the original dtype; the message names the block."""
    with pytest.raises(InputError, match=message):
        mask.check_inputs(P, GOOD | changes)


def test_missing_and_unknown_blocks_are_named():
    """The inputs are exactly the agreed blocks."""
    with pytest.raises(InputError, match=r"blocks \['count'\] are missing, \['weights'\] are unknown"):
        mask.check_inputs(P, {"update": GOOD["update"], "weights": GOOD["count"]})


@pytest.mark.parametrize("dtype", ["int16", "int32", ">i4", "int64", "<u2"])
def test_s13_every_integer_dtype_and_byte_order_is_taken(new_round, dtype):
    """The sum does not depend on a client's integer type."""
    rd = new_round()
    values = np.arange(5) * 200
    rd.inputs[1] = rd.inputs[1] | {"update": values}
    rd.clients[1] = rd.client(1, inputs={"update": values.astype(dtype), "count": rd.inputs[1]["count"]})
    rd.run()
    rd.check((0, 1, 2, 3))


def test_a_hidden_value_of_a_masked_array_does_not_pass():
    """An array type that hides entries from `min` and `max` is not let past the bound."""
    hidden = np.ma.masked_array([0, 0, 0, 10**6], mask=[False, False, False, True])
    with pytest.raises(InputError, match="block 'update'"):
        mask.check_inputs(P, GOOD | {"update": hidden})


def test_the_masked_vector_is_input_plus_streams(new_round):
    """The frame is y = x + PRG(b) + sum of +-PRG(s), recomputed here from the secrets, for every client and block."""
    rd = new_round()
    rd.run("share")
    seeds = {i: rd.clients[i]._state.secrets.self_seed for i in range(4)}
    rd.run("mask")
    rd.ask("mask")
    transcript = rd.view.transcript
    for i, frame in rd.sent["mask"].items():
        near = rd.clients[i]._state.near
        body = split(frame)[1]
        for index, block in enumerate(rd.params.blocks):
            size = ring.packed_length(block.length, block.bits)
            words, body = ring.unpack(body[:size], block.length, block.bits), body[size:]
            dtype = words.dtype
            masks = prg.stream(derive(seeds[i], Label.SELF_STREAM, index, salt=transcript), block.length, dtype)
            for j, seed in near.pair_seeds.items():
                stream = prg.stream(derive(seed, Label.PAIR_STREAM, index, salt=transcript), block.length, dtype)
                masks = masks + stream if i < j else masks - stream
            ring.reduce_in_place(words := words - masks, block.bits)
            assert np.array_equal(ring.decode(words, block.bits), rd.inputs[i][block.name])
        assert body == b""


def test_pair_masks_cancel_and_self_masks_do_not(new_round):
    """The server's masked sum is off by the survivors' self streams alone."""
    rd = new_round()
    rd.run("share")
    seeds = [rd.clients[i]._state.secrets.self_seed for i in range(4)]
    rd.run("confirm")
    words = rd.session._state._masked.sums[0].copy()
    assert not np.array_equal(ring.decode(words, 20), rd.expected(range(4)))
    for seed in seeds:
        prg.add_stream(words, derive(seed, Label.SELF_STREAM, 0, salt=rd.view.transcript), subtract=True)
    assert np.array_equal(ring.decode(words, 20), rd.expected(range(4)))


# The server's reading of a mask frame.


def split(frame):
    """Header frame and body."""
    end = 4 + int.from_bytes(frame[:4], "big")
    return frame[4:end], frame[end + -end % 16 :]


def joined(header, body, pad=b"\0"):
    """A mask frame."""
    front = len(header).to_bytes(4, "big") + header
    return front + pad * (-len(front) % 16) + body


def padded_otherwise(frame):
    """The frame with bytes other than zero between header and body."""
    changed = joined(*split(frame), pad=b"\1")
    assert changed != frame, "this header needs no padding"
    return changed


def flipped(frame, place):
    """The frame with one bit changed."""
    return frame[:place] + bytes([frame[place] ^ 1]) + frame[place:][1:]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f[:-1], DecodeError, "mask frame of"),
        (lambda f: f + b"\0", DecodeError, "mask frame of"),
        (lambda f: f[:3], DecodeError, "mask frame of 3 bytes"),
        (lambda f: b"\xff\xff\xff\xff" + f[4:], DecodeError, "mask frame of"),
        (lambda f: b"\0\0\0\0" + f[4:], DecodeError, "mask frame of"),
        (lambda f: flipped(f, len(f) - 1), DecodeError, "not the one that its header authenticates"),
        (lambda f: flipped(f, len(f) - 20), DecodeError, "not the one that its header authenticates"),
        (lambda f: joined(split(f)[0][:-1], b"\0" + split(f)[1]), DecodeError, "mask frame of"),
        (lambda f: joined(split(f)[0][:-1], split(f)[1]), DecodeError, "Signed"),
        (lambda f: joined(split(f)[0] + b"\0", split(f)[1]), DecodeError, "Signed"),
        (padded_otherwise, DecodeError, "not padded with zeros"),
        (lambda f: flipped(f, 30), DecodeError, "another round"),
        (lambda f: flipped(f, 4 + len(split(f)[0]) - 1), SignatureError, "wrong signature"),
    ],
)
def test_a_mask_frame_that_is_not_whole_makes_a_dropout(new_round, change, error, message):
    """Sizes, header, padding, tag: whatever was changed on the way, the sender's vector is not in the sum, and nobody is to blame."""
    rd = new_round()
    rd.up["mask", 1] = change
    rd.run()
    rd.check((0, 2, 3))
    assert rd.session.result.dropped == {1: "mask"}
    assert type(rd.session.result.rejected[1]) is error
    with pytest.raises(error, match=message):
        raise rd.session.result.rejected[1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"refused": (1,)}, PeerFault, "client 1: refused clients that are not its neighbours, or not in order"),
        ({"refused": (9,)}, PeerFault, "client 1: refused clients that are not its neighbours, or not in order"),
        ({"refused": (3, 3)}, PeerFault, "client 1: refused clients that are not its neighbours, or not in order"),
        ({"refused": (3, 2)}, PeerFault, "client 1: refused clients that are not its neighbours, or not in order"),
        ({"refused": (-1,)}, DecodeError, "MaskHeader"),
        ({"refused": (2, 3)}, PeerFault, "client 1: refused 2 dealers, more than c = 1"),
        ({"body_length": 0}, DecodeError, "not the one that its header authenticates"),
        ({"tag": bytes(16)}, DecodeError, "not the one that its header authenticates"),
        ({"binding": bytes(32)}, DecodeError, "bound to another round"),
        ({"sender": 2}, DecodeError, "sender 2 instead of 1"),
    ],
)
def test_a_signed_header_that_is_wrong_makes_a_dropout(new_round, changes, error, message):
    """Whom a client may refuse, and how many; length, tag, binding, sender. The signed header is the evidence of a false refusal."""
    rd = new_round()
    rd.run("mask")
    header = split(rd.ask("mask")[1])[0]
    header = rd.resign(header, messages.MaskHeader, by=1, **changes)
    digests = rd.view.digests
    rd.up["mask", 1] = lambda f: joined(header, split(f)[1])
    rd.run()
    rd.check((0, 2, 3))
    assert rd.session.result.dropped == {1: "mask"}
    with pytest.raises(error, match=message) as caught:
        raise rd.session.result.rejected[1]
    if error is PeerFault:
        assert caught.value.evidence == {"mask header": header, "digests": digests}


def test_padding_that_is_not_zero_makes_a_dropout(new_round):
    """A corrupt client that authenticates a body with bits in the padding is rejected, not added, and found out."""
    rd = new_round()
    rd.run("mask")
    mac_key = rd.session._state._state.before.mac_keys[1]

    def alter(frame):
        header, body = split(frame)
        size = ring.packed_length(5, 20)
        body = body[: size - 1] + b"\xff" + body[size:]
        return joined(rd.resign(header, messages.MaskHeader, by=1, tag=prg.gmac(mac_key, body)), body)

    rd.up["mask", 1] = alter
    rd.run()
    rd.check((0, 2, 3))
    with pytest.raises(PeerFault, match="client 1: block 'update': the padding"):
        raise rd.session.result.rejected[1]


def test_s28_a_copied_vector_is_rejected(new_round):
    """Client 2 sends client 1's frame, or its body under its own header."""
    for copied in (lambda f1, _: f1, lambda f1, f2: joined(split(f2)[0], split(f1)[1])):
        rd = new_round()
        rd.up["mask", 2] = lambda f, rd=rd, copied=copied: copied(rd.sent["mask"][1], f)
        rd.run()
        rd.check((0, 1, 3))


# Disputes.


@pytest.mark.parametrize(
    ("refusals", "c", "dropped"),
    [
        ({0: (), 1: (), 2: ()}, 1, ()),
        ({0: (1,), 1: (), 2: ()}, 1, (1,)),
        ({0: (1,), 1: (0,), 2: ()}, 1, (0,)),
        ({0: (), 1: (0,), 2: (0,)}, 1, (0,)),
        ({0: (), 1: (0,), 2: (0,)}, 2, (0,)),
        ({0: (1, 2), 1: (), 2: ()}, 1, (0,)),
        ({0: (1, 2), 1: (), 2: ()}, 2, (0,)),
        ({0: (9,), 1: (), 2: ()}, 1, ()),
        ({0: (1,), 2: (3,), 1: (), 3: ()}, 2, (1, 3)),
        ({0: (1,), 1: (2,), 2: (0,)}, 2, (0, 2)),
        ({0: (1,), 1: (), 2: ()}, 0, (1,)),
        ({0: (1, 2), 3: (1, 2), 1: (), 2: ()}, 2, (1, 2)),
        ({1: (0,), 2: (0,), 3: (0, 4), 0: (), 4: ()}, 1, (0, 3)),
        ({1: (0,), 2: (0,), 3: (0, 4), 0: (), 4: ()}, 2, (0, 4)),
    ],
)
def test_disputes_are_settled_by_the_rule(refusals, c, dropped):
    """More than max(c, 1) disputes, then the most open ones, ties to the refused with the lowest id; the absent don't count."""
    assert settle(refusals, c) == dropped


@st.composite
def refusal_maps(draw):
    """Refusals among up to seven clients, some of them absent."""
    n = draw(st.integers(3, 7))
    arrived = draw(st.sets(st.integers(0, n - 1), min_size=1))
    pick = {i: st.sets(st.integers(0, n - 1).filter(lambda j, i=i: j != i), max_size=3) for i in arrived}
    return {i: tuple(sorted(draw(sets))) for i, sets in pick.items()}, draw(st.integers(0, 3))


@settings(deadline=None)
@given(refusal_maps())
def test_no_dispute_stays_open(case):
    """Whoever is left refused nobody who is left; without a dispute nobody goes; only parties of a dispute go."""
    refusals, c = case
    dropped = settle(refusals, c)
    left = set(refusals) - set(dropped)
    disputes = [(i, j) for i, js in refusals.items() for j in js if j in refusals]
    assert not [(i, j) for i, j in disputes if i in left and j in left]
    assert set(dropped) <= {party for pair in disputes for party in pair}
    assert dropped == tuple(sorted(set(dropped)))


def test_an_honest_client_is_never_dropped_as_refused_by_too_many():
    """With c corrupt clients against everybody, honest ones have at most c disputes: at most c of them go."""
    for n, c in ((5, 1), (7, 2), (10, 3)):
        corrupt = range(c)
        for targets in itertools.islice(itertools.combinations(range(c, n), c), 40):
            refusals = {i: (targets if i in corrupt else ()) for i in range(n)}
            assert len(set(settle(refusals, c)) - set(corrupt)) <= c


def test_a_dropped_party_of_a_dispute_is_subtracted_again(new_round):
    """Its vector had arrived and was in the running sum; the sum of the others is exact."""
    rd = new_round()
    rd.redeal(1, 0, lambda part: dataclasses.replace(part, root_commitment=bytes(32)))
    rd.run()
    rd.check((0, 2, 3))
    assert rd.session.result.rejected[1].parties == (1, 0)
    assert rd.session.result.dropped == {1: "mask"}


def test_losing_a_dispute_blames_nobody_alone(new_round):
    """A false refusal can cost an honest dealer its place: the reason names both parties, and is no finding against one."""
    rd = new_round()
    rd.run("mask")
    rd.up["mask", 3] = lambda f: joined(rd.resign(split(f)[0], messages.MaskHeader, by=3, refused=(1,)), split(f)[1])
    rd.step()
    assert rd.session._dropped == {1: "mask"}
    reason = rd.session.rejected[1]
    assert type(reason) is DisputeError
    assert reason.parties == (1, 3)
    assert "[1, 3]" in str(reason)
    assert set(reason.evidence) == {"mask header 1", "mask header 3", "digests"}
    for client, refused in ((1, ()), (3, (1,))):
        header = reason.evidence[f"mask header {client}"]
        read = messages.unseal(header, messages.MaskHeader, binding=rd.view.transcript, sender=client, roster=rd.roster)
        assert read.refused == refused
    assert reason.evidence["digests"] == rd.view.digests


# What a client checks of U3.


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((1, 2, 3), "U3 leaves out client 0"),
        ((0, 1), "U3 has 2 members, fewer than the agreed minimum 3"),
        ((0, 1, 2, 9), r"U3 contains \[9\]"),
        ((1, 0, 2), "not sorted"),
        ((0, 0, 1, 2), "twice"),
        ((), "leaves out client 0"),
    ],
)
def test_a_wrong_u3_is_the_servers_fault(new_round, members, message):
    """Own id left out, too few, strangers, order: the client stops before it signs anything."""
    rd = new_round()
    rd.lie_to(0, "mask", messages.Survivors, lambda _: {"members": members})
    rd.run()
    with pytest.raises(ServerFault, match=message):
        raise rd.errors[0]
    assert 0 not in rd.sent["confirm"]
    rd.check((0, 1, 2, 3))


def test_u3_must_come_from_u2(new_round):
    """A client that dealt no shares can't be in the sum."""
    rd = new_round(5, colluders=0)
    rd.silence(4, "share")
    rd.lie_to(0, "mask", messages.Survivors, lambda m: {"members": (*m.members, 4)})
    rd.run()
    with pytest.raises(ServerFault, match=r"U3 contains \[4\]"):
        raise rd.errors[0]


def test_u3_must_not_have_a_refused_client(new_round):
    """An open dispute would leave a mask in the sum: the refuser does not sign."""
    rd = new_round()
    rd.redeal(1, 0, lambda part: dataclasses.replace(part, root_commitment=bytes(32)))
    rd.lie_to(0, "mask", messages.Survivors, lambda _: {"members": (0, 1, 2, 3)})
    rd.silence(3, "confirm")
    with pytest.raises(BelowThresholdError):
        rd.run()
    with pytest.raises(ServerFault, match=r"U3 has \[1\], whom client 0 refused"):
        raise rd.errors[0]


def test_too_few_vectors_end_the_round(new_round):
    """Two of four vectors, where three are agreed."""
    rd = new_round()
    rd.silence(1, "mask")
    rd.up["mask", 2] = lambda f: f[:-1]
    with pytest.raises(BelowThresholdError, match="mask: 2 of at least 3"):
        rd.run()


def test_a_dispute_that_ends_the_round_is_among_the_reasons(new_round):
    """One client is silent and another loses a dispute: too few are left, and the error says whom the dispute cost."""
    rd = new_round()
    rd.redeal(1, 0, lambda part: dataclasses.replace(part, root_commitment=bytes(32)))
    rd.silence(3, "mask")
    with pytest.raises(BelowThresholdError, match=r"mask: 2 of at least 3.*clients \[1, 0\]") as caught:
        rd.run()
    assert isinstance(caught.value.rejected[1], DisputeError)
    assert caught.value.alive == (0, 2)


def test_only_a_dealer_can_be_refused(new_round):
    """A neighbour that fell silent before it dealt anything: whoever refuses it was not sent anything to refuse."""
    rd = new_round(5, colluders=0)
    rd.silence(3, "share")
    rd.up["mask", 1] = lambda f: joined(rd.resign(split(f)[0], messages.MaskHeader, by=1, refused=(3,)), split(f)[1])
    rd.run()
    rd.check((0, 2, 4))
    with pytest.raises(PeerFault, match="client 1: refused clients that are not its neighbours"):
        raise rd.session.result.rejected[1]
