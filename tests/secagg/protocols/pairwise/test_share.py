import dataclasses
import itertools

import msgspec
import numpy as np
import pytest

from secagg import messages
from secagg.crypto import shamir
from secagg.crypto.sealing import Purpose
from secagg.errors import BelowThresholdError, DecodeError, DisputeError, PeerFault, ServerFault
from secagg.protocols.pairwise import evidence
from secagg.protocols.pairwise.parties import pair_seed

GARBAGE = np.arange(9, dtype="<u4").tobytes()
OUTSIDE = b"\xff\xff\xff\x7f" + bytes(32)


def near_of(rd, client):
    """What a client holds after exchange 2."""
    return rd.clients[client]._state.near


def test_any_t_shares_give_both_secrets(new_round):
    """What the holders got opens R and b of every client, with every choice of t of them."""
    rd = new_round()
    rd.run("share")
    secrets = {i: rd.clients[i]._state.secrets for i in range(4)}
    rd.run("confirm")
    held = {i: near_of(rd, i).held for i in range(4)}
    for dealer, chosen in itertools.product(range(4), itertools.combinations(range(4), 3)):
        for kind, secret in (("root", secrets[dealer].root), ("self_seed", secrets[dealer].self_seed)):
            shares = [shamir.decode_share(getattr(held[i][dealer], kind)) for i in chosen]
            assert shamir.reconstruct([i + 1 for i in chosen], np.stack(shares)) == secret


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
def test_both_ends_of_an_edge_have_the_choosers_seed(new_round, suite):
    """s_ij is HKDF of the chooser's root, at both ends."""
    rd = new_round(suite=suite)
    rd.run("share")
    roots = {i: rd.clients[i]._state.secrets.root for i in range(4)}
    rd.run("confirm")
    for i, j in itertools.permutations(range(4), 2):
        chooser, peer = (i, j) if rd.view.graph.is_chooser(i, j) else (j, i)
        seed = pair_seed(roots[chooser], rd.view.transcript, chooser, peer)
        assert near_of(rd, i).pair_seeds[j] == near_of(rd, j).pair_seeds[i] == seed


def test_a_frame_of_exchange_2_shows_no_share_or_seed(new_round):
    """Neither the server nor a wrong neighbour reads a share or a pair seed in the clear."""
    rd = new_round()
    rd.run("mask")
    rd.ask("mask")
    rd.collect_secrets()
    assert len(rd.secrets) > 30
    for frame in (*rd.sent["share"].values(), *rd.answers.values()):
        assert not [s for s in rd.secrets if s in frame]


def test_the_own_leaf_goes_to_the_server_alone(new_round):
    """No neighbour gets the commitments to the shares that a dealer keeps."""
    rd = new_round()
    rd.run("mask")
    for client, answer in rd.answers.items():
        deliveries = messages.decode(answer, messages.SharedFrame).deliveries
        dealers = [i for i in range(4) if i != client]
        dealt = [leaves_of(rd.sent["share"][dealer]) for dealer in dealers]
        assert [d.leaf for d in deliveries] == [leaves[client] for leaves in dealt]
        for dealer, leaves in zip(dealers, dealt, strict=True):
            assert len(leaves[dealer]) == 64
            assert leaves[dealer][:32] not in answer
            assert leaves[dealer][32:] not in answer


def bad_parts(rd):
    """Every way in which dealer 1's part for client 0 can be wrong under a valid signature; 0 chooses seeds for 1."""
    seal = lambda plain: rd.seal(Purpose.SHARES, 1, 0, plain)  # noqa: E731 - the transcript exists later
    return {
        "a box that does not open": lambda part: dataclasses.replace(part, share_box=b"\0" * len(part.share_box)),
        "two other shares": lambda part: dataclasses.replace(part, share_box=seal(GARBAGE * 2)),
        "a limb out of range": rd.reseal(1, 0, root=OUTSIDE, self_seed=GARBAGE),
        "the other limb out of range": rd.reseal(1, 0, root=GARBAGE, self_seed=OUTSIDE),
        "a wrong commitment": lambda part: dataclasses.replace(part, root_commitment=b"\0" * 32),
        "commitments swapped": lambda part: dataclasses.replace(
            part, root_commitment=part.self_commitment, self_commitment=part.root_commitment
        ),
    }


KINDS = [
    "a box that does not open",
    "two other shares",
    "a limb out of range",
    "the other limb out of range",
    "a wrong commitment",
    "commitments swapped",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_dealer_whose_part_is_wrong_is_refused_and_the_others_sum_stands(new_round, kind):
    """The client leaves out the edge and says so; the dispute costs the dealer its place; the sum is that of the others."""
    rd = new_round()
    rd.redeal(1, 0, bad_parts(rd)[kind])
    rd.run("confirm")
    assert near_of(rd, 0).refused == (1,)
    assert set(near_of(rd, 0).held) == {0, 2, 3}
    assert set(near_of(rd, 0).pair_seeds) == {2, 3}
    rd.run()
    rd.check((0, 2, 3))
    dispute = rd.session.result.rejected[1]
    assert isinstance(dispute, DisputeError)
    assert dispute.parties == (1, 0)


@pytest.mark.parametrize("kind", ["box", "other seed", "commitment", "short"])
def test_a_chooser_whose_seed_is_wrong_is_refused(new_round, kind):
    """A pair seed that does not open, is not the committed one, or has another length: the same as a wrong share."""
    rd = new_round()
    dealer, holder = 0, 1

    def change(part):
        assert rd.view.graph.is_chooser(dealer, holder)
        box, commitment = part.pair_box, part.pair_commitment
        if kind == "box":
            box = bytes(len(box))
        if kind == "other seed":
            box = rd.seal(Purpose.PAIR_SEED, dealer, holder, b"\7" * 32)
        if kind == "commitment":
            commitment = bytes(32)
        return dataclasses.replace(part, pair_box=box if kind != "short" else box[:-1], pair_commitment=commitment)

    rd.redeal(dealer, holder, change)
    rd.run("confirm")
    if kind == "short":
        assert rd.session._dropped == {dealer: "share"}
    else:
        assert near_of(rd, holder).refused == (dealer,)
    rd.run()
    rd.check((1, 2, 3))


def test_a_false_seed_with_a_fitting_commitment_is_consistent(new_round):
    """A chooser that takes a seed of its own, properly committed, harms nobody while both ends answer."""
    rd = new_round()
    rd.redeal(0, 1, rd.false_seed(0, 1))
    rd.silence(0, "mask")
    rd.run()
    rd.check((1, 2, 3))


def test_more_wrong_dealers_than_can_be_corrupt_end_the_clients_round(new_round):
    """Two wrong parts where c = 1: the client stops with a named error, sends nothing, and the others go on."""
    rd = new_round(5, colluders=1)
    for dealer in (1, 2):
        rd.redeal(dealer, 0, lambda part: dataclasses.replace(part, root_commitment=b"\0" * 32))
    rd.run("mask")
    rd.ask("mask")
    assert isinstance(rd.errors[0], PeerFault)
    assert rd.errors[0].party == 2
    assert "more than c = 1" in str(rd.errors[0])
    assert 0 not in rd.sent["mask"]


# The server's reading of a dealer's frame.


def leaves_of(frame):
    """The leaves of a dealer's frame."""
    return list(messages.decode(frame, messages.ShareFrame).leaves)


def swapped(leaves):
    """The first two leaves in each other's place."""
    return [leaves[1], leaves[0], *leaves[2:]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda leaves: leaves[:-1], PeerFault, "client 1: sent 3 parts for 4 holders"),
        (lambda leaves: [*leaves, leaves[0]], DecodeError, "5 parts are more than there are clients"),
        (lambda _: [], PeerFault, "client 1: sent 0 parts for 4 holders"),
        (swapped, PeerFault, "client 1: sent 4 parts for 4 holders, or parts of a wrong length"),
        (lambda leaves: [leaves[0], b"", *leaves[2:]], PeerFault, "parts of a wrong length"),
        (lambda leaves: [leaves[0], leaves[1] + b"\0", *leaves[2:]], PeerFault, "parts of a wrong length"),
        (lambda leaves: [leaves[2], *leaves[1:]], PeerFault, "parts of a wrong length"),
    ],
)
def test_a_frame_of_the_wrong_form_makes_a_dropout(new_round, change, error, message):
    """Too few, too many, swapped or broken parts under a valid root: rejected with its reason, before U2."""
    rd = new_round()

    def alter(frame):
        leaves = change(leaves_of(frame))
        signed = rd.share_frame(1, leaves or [b""])
        header = messages.decode(signed, messages.ShareFrame).header
        return messages.encode(messages.ShareFrame(header, tuple(leaves)))

    rd.up["share", 1] = alter
    rd.run()
    rd.check((0, 2, 3))
    assert rd.session.result.dropped == {1: "share"}
    assert type(rd.session.result.rejected[1]) is error
    with pytest.raises(error, match=message) as caught:
        raise rd.session.result.rejected[1]
    if error is PeerFault:
        assert evidence.check(caught.value.evidence, 1, rd.params, rd.roster)


def test_more_parts_than_holders_in_a_smaller_u1_make_a_dropout(new_round):
    """A signed part too many is the dealer's fault, also where there are no more parts than clients in the cohort."""
    rd = new_round(5, colluders=0)
    rd.silence(4, "advertise")
    rd.up["share", 1] = lambda f: rd.share_frame(1, [*leaves_of(f), leaves_of(f)[0]])
    rd.run()
    rd.check((0, 2, 3))
    fault = rd.session.result.rejected[1]
    assert isinstance(fault, PeerFault)
    assert "client 1: sent 5 parts for 4 holders" in str(fault)
    assert evidence.check(fault.evidence, 1, rd.params, rd.roster)


@pytest.mark.parametrize(
    ("holder", "change"),
    [
        (0, lambda part: dataclasses.replace(part, share_box=part.share_box + b"\0")),
        (0, lambda part: dataclasses.replace(part, pair_box=b"x" * 80, pair_commitment=b"\0" * 32)),
        (2, lambda part: dataclasses.replace(part, pair_box=None, pair_commitment=None)),
        (2, lambda part: dataclasses.replace(part, pair_box=part.pair_box[:-1])),
    ],
)
def test_a_part_of_the_wrong_form_makes_a_dropout(new_round, holder, change):
    """Box sizes and the chooser rule are checked by the server too; the frame that the dealer signed is the evidence."""
    rd = new_round()
    rd.redeal(1, holder, change)
    sent, alter = [], rd.up["share", 1]
    rd.up["share", 1] = lambda frame: sent.append(alter(frame)) or sent[0]
    rd.run("mask")
    digests = rd.view.digests
    rd.run()
    rd.check((0, 2, 3))
    assert rd.session.result.dropped == {1: "share"}
    fault = rd.session.result.rejected[1]
    assert isinstance(fault, PeerFault)
    assert fault.party == 1
    assert "parts of a wrong length" in str(fault)
    assert fault.evidence == {"shares": sent[0], "digests": digests}
    assert evidence.check(fault.evidence, 1, rd.params, rd.roster)


def test_another_holders_part_makes_the_holder_refuse(new_round):
    """A dealer that signs client 3's part at client 0's place: the box is bound to its recipient and does not open."""
    rd = new_round(5, colluders=1)
    rd.up["share", 1] = lambda f: rd.share_frame(1, [(x := leaves_of(f))[3], *x[1:]])
    rd.run("confirm")
    assert near_of(rd, 0).refused == (1,)
    rd.run()
    rd.check((0, 2, 3, 4))


def test_parts_that_are_not_under_the_signed_root_are_rejected(new_round):
    """Leaves changed after signing are not taken, and nobody is blamed: the network could have changed them."""
    rd = new_round()

    def alter(frame):
        shares = messages.decode(frame, messages.ShareFrame)
        changed = shares.leaves[2][:-1] + bytes([shares.leaves[2][-1] ^ 1])
        leaves = [*shares.leaves[:2], changed, *shares.leaves[3:]]
        return messages.encode(messages.ShareFrame(shares.header, tuple(leaves)))

    rd.up["share", 1] = alter
    rd.run()
    rd.check((0, 2, 3))
    assert rd.session.result.dropped == {1: "share"}
    assert type(rd.session.result.rejected[1]) is DecodeError
    assert "client 1 are not under its signed root" in str(rd.session.result.rejected[1])


def test_the_right_parts_are_taken_after_some_that_are_not_under_the_signed_root(new_round):
    """What the network changed costs its sender nothing once the signed frame comes."""
    rd = new_round()
    rd.run("share")
    shares = messages.decode(rd.ask("share")[1], messages.ShareFrame)
    damaged = messages.encode(messages.ShareFrame(shares.header, shares.leaves[::-1]))
    with pytest.raises(DecodeError, match="not under its signed root"):
        rd.session.receive(1, damaged)
    rd.run()
    rd.check((0, 1, 2, 3))
    assert rd.session.result.rejected == {}


def test_s28_a_copied_box_does_not_open(new_round):
    """Client 2 sends client 1's box to client 0 as its own: bound to its sender, so client 0 refuses client 2."""
    rd = new_round()
    copied = {}

    def keep(frame):
        copied["box"] = rd.part(1, 0, leaves_of(frame)[0]).share_box
        return frame

    rd.up["share", 1] = keep
    rd.redeal(2, 0, lambda part: dataclasses.replace(part, share_box=copied["box"]))
    rd.run("confirm")
    assert near_of(rd, 0).refused == (2,)
    rd.run()
    rd.check((0, 1, 3))


def test_s28_a_copied_frame_is_rejected(new_round):
    """The whole frame of another client is bound to its sender."""
    rd = new_round()
    rd.up["share", 2] = lambda _: rd.sent["share"][1]
    rd.run()
    rd.check((0, 1, 3))
    assert "sender 1 instead of 2" in str(rd.session.result.rejected[2])


def test_too_few_sharers_end_the_round(new_round):
    """Two of four that deal, where three are agreed."""
    rd = new_round()
    rd.silence(1, "share")
    rd.silence(2, "share")
    with pytest.raises(BelowThresholdError, match="share: 2 of at least 3"):
        rd.run()


# What a client checks of the server's answer.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {"deliveries": m.deliveries[:-1]}, "does not come with exactly the parts"),
        (lambda _: {"deliveries": ()}, "does not come with exactly the parts"),
        (lambda m: {"deliveries": (*m.deliveries, m.deliveries[0])}, "does not come with exactly the parts"),
        ((1, 2, 3), "U2 leaves out client 0"),
        ((0, 1, 2), "does not come with exactly the parts"),
        ((0, 1), "U2 has 2 members, fewer than the agreed minimum 3"),
        ((0, 1, 2, 3, 9), r"U2 contains \[9\]"),
        ((0, 1, 2, 2, 3), "names a client twice"),
    ],
)
def test_a_wrong_u2_is_the_servers_fault(new_round, change, message):
    """Missing neighbour parts, the own id left out, strangers, too few: the client stops and blames the server."""
    rd = new_round()
    lies_inside = isinstance(change, tuple)
    rd.lie_to(
        0,
        "share",
        messages.Shared,
        (lambda _: {"members": change}) if lies_inside else (lambda _: {}),
        outer_change=(lambda _: {}) if lies_inside else change,
    )
    rd.run()
    assert isinstance(rd.errors[0], ServerFault)
    with pytest.raises(ServerFault, match=message):
        raise rd.errors[0]
    rd.check((1, 2, 3))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: {"leaf": d[1].leaf},
        lambda d: {"leaf": d[0].leaf[:-1]},
        lambda d: {"header": d[1].header},
        lambda d: {"path": d[1].path},
        lambda d: {"path": d[0].path[:-1]},
        lambda d: {"path": d[0].path + b"\0" * 32},
        lambda d: {"path": d[0].path + b"\0"},
        lambda _: {"path": b""},
        lambda d: {"header": d[0].header[:-1] + bytes([d[0].header[-1] ^ 1])},
    ],
)
def test_a_part_that_its_dealer_did_not_sign_is_the_servers_fault(new_round, change):
    """A dealer is never refused for what the server made up."""
    rd = new_round()

    def lie(frame):
        d = frame.deliveries
        return {"deliveries": (msgspec.structs.replace(d[0], **change(d)), *d[1:])}

    rd.lie_to(0, "share", messages.Shared, lambda _: {}, outer_change=lie)
    rd.run()
    with pytest.raises(ServerFault, match="part of client 1 is not what it signed"):
        raise rd.errors[0]
    rd.check((1, 2, 3))


def test_another_holders_part_is_the_servers_fault(new_round):
    """The part for client 2 with its valid path is not at client 0's place in the tree."""
    rd = new_round()
    rd.run("mask")
    foreign = messages.decode(rd.answers[2], messages.SharedFrame).deliveries[1]
    assert foreign.leaf == leaves_of(rd.sent["share"][1])[2]
    rd.lie_to(
        0, "share", messages.Shared, lambda _: {}, outer_change=lambda f: {"deliveries": (foreign, *f.deliveries[1:])}
    )
    rd.run()
    with pytest.raises(ServerFault, match="part of client 1 is not what it signed"):
        raise rd.errors[0]


def test_parts_in_another_order_are_the_servers_fault(new_round):
    """The order says whose part is whose."""
    rd = new_round()
    rd.lie_to(0, "share", messages.Shared, lambda _: {}, outer_change=lambda f: {"deliveries": f.deliveries[::-1]})
    rd.run()
    with pytest.raises(ServerFault, match="part of client 1 is not what it signed"):
        raise rd.errors[0]
    rd.check((1, 2, 3))
