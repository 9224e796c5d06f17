import copy
import dataclasses
import itertools

import msgspec
import numpy as np
import pytest

from secagg import graph, messages, ring
from secagg.crypto import shamir
from secagg.crypto.sealing import Purpose
from secagg.errors import BelowThresholdError, PeerFault, RoundError
from secagg.protocols.pairwise import evidence, mask, unmask
from secagg.protocols.pairwise.parties import share_commitment

SHARE = np.arange(9, dtype="<u4").tobytes()


def answers_of(rd, client):
    """What a client answered in exchange 5, by owner."""
    return {a.owner: a for a in rd.payload(rd.sent["unmask"][client], messages.Unmask).answers}


def reveal(rd, client, change):
    """Makes a client send `change(answers) -> answers`, signed by itself, in exchange 5."""
    rd.up["unmask", client] = lambda f: rd.resign(
        f, messages.Unmask, by=client, answers=tuple(change(rd.payload(f, messages.Unmask).answers))
    )


def test_each_owner_gets_one_kind_of_answer(new_round):
    """A self share for each member of U3, oneself included; a root share and the pair seed for each one that dropped."""
    rd = new_round(5, colluders=0)
    rd.silence(4, "mask")
    rd.run()
    for i in range(4):
        kinds = {owner: type(answer) for owner, answer in answers_of(rd, i).items()}
        assert kinds == {0: messages.SelfShare, 1: messages.SelfShare, 2: messages.SelfShare, 3: messages.SelfShare} | {
            4: messages.RootShare
        }
    rd.check((0, 1, 2, 3))


def test_nobody_is_asked_for_what_was_never_sent(new_round):
    """Who fell silent before its shares, or was refused, has no answer."""
    rd = new_round(6, colluders=1)
    rd.silence(5, "share")
    rd.redeal(4, 0, lambda part: dataclasses.replace(part, root_commitment=bytes(32)))
    rd.run()
    assert sorted(answers_of(rd, 0)) == [0, 1, 2, 3]
    assert sorted(answers_of(rd, 1)) == [0, 1, 2, 3, 4]
    rd.check((0, 1, 2, 3))


@pytest.mark.parametrize(
    ("suite", "dropped", "silent"),
    [("classical", i, j) for i, j in itertools.permutations(range(4), 2)] + [("hybrid", 0, 1), ("hybrid", 1, 0)],
)
def test_a_silent_survivors_edges_come_from_the_dropped_ones_root(new_round, suite, dropped, silent):
    """One drops before its vector, another before exchange 5: R is rebuilt, for either chooser of the edge between them."""
    rd = new_round(5, colluders=0, suite=suite, threshold=3)
    rd.silence(dropped, "mask")
    rd.silence(silent, "unmask")
    opened = []
    original = unmask.CollectingAnswers._open_root
    with pytest.MonkeyPatch.context() as patch:
        watched = lambda self, dropped, rejected: opened.append(dropped) or original(self, dropped, rejected)  # noqa: E731 - short
        patch.setattr(unmask.CollectingAnswers, "_open_root", watched)
        rd.run()
    assert opened == [dropped]
    rd.check([i for i in range(5) if i != dropped])


def test_both_directions_of_the_chooser_are_covered():
    """The pairs above have the dropped client as chooser, and as the other end; (0, 1) and (1, 0) do."""
    whole = graph.build(tuple(range(5)), tuple(range(5)), 4, bytes(32))
    assert (whole.is_chooser(0, 1), whole.is_chooser(1, 0)) == (True, False)


def test_the_root_is_not_rebuilt_while_the_neighbours_answer(new_round, monkeypatch):
    """R stays closed where no survivor is silent: its neighbours' seeds are enough."""
    monkeypatch.setattr(unmask.CollectingAnswers, "_open_root", None)
    rd = new_round()
    rd.silence(1, "mask")
    rd.run()
    rd.check((0, 2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: [msgspec.structs.replace(a[0], share=SHARE), *a[1:]], "wrong share of the self secret of client 0"),
        (lambda a: [*a[:1], msgspec.structs.replace(a[1], share=a[0].share), *a[2:]], "self secret of client 1"),
        (lambda a: a[:-1], "exactly the clients that the signed statement asks for"),
        (lambda a: [*a, a[-1]], "exactly the clients that the signed statement asks for"),
        (lambda a: a[::-1], "exactly the clients that the signed statement asks for"),
        (lambda _: [], "exactly the clients that the signed statement asks for"),
        (
            lambda a: [messages.RootShare(a[0].owner, a[0].share, bytes(32)), *a[1:]],
            "exactly the clients that the signed statement asks for",
        ),
        (lambda a: [msgspec.structs.replace(a[0], owner=9), *a[1:]], "exactly the clients"),
    ],
)
def test_a_wrong_answer_names_its_sender_and_the_sum_stands(new_round, change, message):
    """A revealed share that is not the dealt one, too few, too many, another kind: rejected; t others are left."""
    rd = new_round()
    reveal(rd, 3, change)
    rd.run()
    rd.check((0, 1, 2, 3))
    assert rd.session.result.dropped == {3: "unmask"}
    fault = rd.session.result.rejected[3]
    assert isinstance(fault, PeerFault)
    assert fault.party == 3
    assert message in str(fault)
    assert evidence.check(fault.evidence, 3, rd.params, rd.roster)


def test_valid_answers_beside_a_wrong_one_count(new_round):
    """With exactly t answering clients one lies about one owner: only that owner's secret is short of shares."""
    rd = new_round()
    rd.silence(0, "unmask")
    reveal(rd, 3, lambda a: [*a[:2], msgspec.structs.replace(a[2], share=SHARE), *a[3:]])
    with pytest.raises(BelowThresholdError, match="shares of the self secret of client 2") as caught:
        rd.run()
    assert caught.value.alive == (1, 2)


def test_a_wrong_root_share_names_its_sender(new_round):
    """A false share of R is found by its commitment; the seeds of the others are enough."""
    rd = new_round(5, colluders=0, threshold=3)
    rd.silence(4, "mask")
    reveal(rd, 3, lambda a: [*a[:4], msgspec.structs.replace(a[4], share=SHARE)])
    rd.silence(0, "unmask")
    with pytest.raises(BelowThresholdError, match="shares of the root secret of client 4") as caught:
        rd.run()
    assert caught.value.alive == (1, 2)
    fault = caught.value.rejected[3]
    assert isinstance(fault, PeerFault)
    assert fault.party == 3
    assert "wrong share of the root secret of client 4" in str(fault)


@pytest.mark.parametrize("liar", [0, 1, 2])
def test_a_wrong_pair_seed_names_its_sender_and_is_replaced(new_round, liar):
    """A false seed of the edge to a dropped client is found by C_ij; the true one comes from the dropped one's root."""
    rd = new_round(4, colluders=1)
    rd.silence(3, "mask")
    reveal(rd, liar, lambda a: [x if x.owner != 3 else msgspec.structs.replace(x, pair_seed=bytes(32)) for x in a])
    rd.run()
    rd.check((0, 1, 2))
    fault = rd.session.result.rejected[liar]
    assert isinstance(fault, PeerFault)
    assert fault.party == liar
    assert "pair seed with client 3 that is not the committed one" in str(fault)


@pytest.mark.parametrize("kind", ["self", "root"])
def test_an_inconsistent_polynomial_names_its_dealer_and_nothing_is_published(new_round, kind):
    """A dealer commits to shares that lie on no polynomial of degree t - 1: t valid shares prove it corrupt."""
    rd = new_round(5, colluders=0, threshold=3)
    for holder in (0, 2):
        rd.redeal(1, holder, rd.reseal(1, holder, root=SHARE, self_seed=SHARE))
    if kind == "root":
        rd.silence(1, "mask")
        rd.silence(4, "unmask")
    with pytest.raises(PeerFault, match="dealt shares of") as caught:
        rd.run()
    assert caught.value.party == 1
    with pytest.raises(Exception, match="no result"):
        _ = rd.session.result


def test_a_polynomial_of_another_secret_names_its_dealer(new_round, monkeypatch):
    """Consistent shares of a b or an R that was not committed to: the dealer is named."""
    real = shamir.share
    for kind in (0, 1):
        rd = new_round(5, colluders=0, threshold=3)
        rd.run("share")

        def deal(secrets, *args, rd=rd, kind=kind):
            mine = secrets[0] == rd.clients[1]._state.secrets.root if rd.clients[1]._state else True
            changed = list(secrets)
            if mine:
                changed[kind] = b"\x09" * 31 + b"\0"
            return real(changed, *args)

        monkeypatch.setattr(shamir, "share", deal)
        if kind == 0:
            rd.silence(1, "mask")
            rd.silence(4, "unmask")
        with pytest.raises(PeerFault, match=r"dealt shares of (another self seed|a mask root that does not)") as caught:
            rd.run()
        assert caught.value.party == 1
        monkeypatch.setattr(shamir, "share", real)


def test_an_own_share_outside_the_field_names_its_dealer(new_round):
    """A dealer commits to its own share plus the prime and reveals it: no honest dealer makes it, so nothing is published."""
    rd = new_round(5, colluders=0, threshold=3)
    rd.run("share")
    rd.ask("share")
    right = rd.clients[1]._state.own.self_seed
    limbs = np.frombuffer(right, "<u4").copy()
    limbs[0] += shamir.PRIME
    wrong = limbs.tobytes()

    def deal(frame):
        leaves = list(messages.decode(frame, messages.ShareFrame).leaves)
        leaves[1] = leaves[1][:32] + share_commitment(rd.view.transcript, 1, 1, b"self", wrong)
        return rd.share_frame(1, leaves)

    rd.up["share", 1] = deal
    reveal(rd, 1, lambda a: [msgspec.structs.replace(x, share=wrong) if x.owner == 1 else x for x in a])
    with pytest.raises(PeerFault, match="dealt shares of its self secret that come from no 32-byte secret") as caught:
        rd.run()
    assert caught.value.party == 1
    assert evidence.check(caught.value.evidence, 1, rd.params, rd.roster)


def test_a_choosers_false_seed_is_found_when_its_root_is_opened(new_round):
    """The seed of an edge was not HKDF(R): seen only if R must stand in for a silent client, and then it has a name."""
    rd = new_round(5, colluders=0, threshold=3)
    rd.run("share")
    assert rd.view.graph.is_chooser(0, 1)
    rd.redeal(0, 1, rd.false_seed(0, 1))
    rd.silence(0, "mask")
    rd.silence(1, "unmask")
    with pytest.raises(PeerFault, match="committed to another pair seed than it used") as caught:
        rd.run()
    assert caught.value.party == 0


def test_a_survivors_bad_seed_box_is_found_when_the_root_is_opened(new_round):
    """A survivor sealed garbage to one that then dropped, and is silent at the end: named, nothing is published."""
    rd = new_round(5, colluders=0, threshold=3)
    rd.redeal(0, 1, lambda p: dataclasses.replace(p, pair_box=bytes(len(p.pair_box))))
    rd.silence(1, "mask")
    rd.silence(0, "unmask")
    with pytest.raises(PeerFault, match="sealed its pair seed for client 1 wrongly") as caught:
        rd.run()
    assert caught.value.party == 0


def test_a_survivors_other_seed_is_found_when_the_root_is_opened(new_round):
    """The box opens, to another seed than the committed one."""
    rd = new_round(5, colluders=0, threshold=3)
    rd.redeal(
        0,
        1,
        lambda p: dataclasses.replace(p, pair_box=rd.seal(Purpose.PAIR_SEED, 0, 1, b"\7" * 32)),
    )
    rd.silence(1, "mask")
    rd.silence(0, "unmask")
    with pytest.raises(PeerFault, match="committed to another pair seed than it used") as caught:
        rd.run()
    assert caught.value.party == 0


def test_t_silent_survivors_are_too_many(new_round):
    """Two of four answer in the last exchange, three are needed: a named error that names the secret."""
    rd = new_round()
    rd.silence(1, "unmask")
    rd.silence(2, "unmask")
    with pytest.raises(BelowThresholdError, match=r"unmask: 2 of at least 3.*self secret of client 0") as caught:
        rd.run()
    assert (caught.value.phase, caught.value.needed, caught.value.alive) == ("unmask", 3, (0, 3))


def test_a_sum_outside_its_range_is_not_published(new_round):
    """A client that sends more than its bound, past its own checks, ends the round: the sum can't be one of valid inputs."""
    rd = new_round()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask, "check_inputs", lambda _params, _inputs: None)
        real = ring.encode_into
        patch.setattr(ring, "encode_into", lambda x, _low, _high, words: real(x, -(2**62), 2**62, words))
        huge = np.full(5, 2**18)
        rd.clients[2] = rd.client(2, inputs={"update": huge, "count": rd.inputs[2]["count"]})
        with pytest.raises(RoundError, match=r"block 'update': the sum leaves \+-4000.*nothing is published"):
            rd.run()
    with pytest.raises(Exception, match="no result"):
        _ = rd.session.result


def test_the_range_follows_the_survivors(new_round):
    """Three survivors at the bound are published; the limit is that of three."""
    extreme = {i: {"update": np.full(5, 1000), "count": np.array([10**15])} for i in range(4)}
    rd = new_round(inputs=extreme)
    rd.silence(3, "mask")
    rd.run()
    rd.check((0, 1, 2))
    assert rd.session.result.sums["update"].tolist() == [3000] * 5


def test_what_was_revealed_does_not_print(new_round):
    """The server's collection of shares and seeds shows no byte of them, and is not copied."""
    rd = new_round()
    rd.silence(3, "mask")
    rd.run("unmask")
    for i, frame in rd.ask("unmask").items():
        rd.session.receive(i, frame)
    collected = rd.session._state
    assert collected._self_shares
    assert collected._root_shares
    assert collected._pair_seeds
    assert repr(collected) == "<CollectingAnswers>"
    assert repr(unmask.SecretRoot(b"\x5e" * 32, None)) == "<SecretRoot>"
    with pytest.raises(TypeError, match="never pickled or copied"):
        copy.copy(collected)


def test_valid_answers_after_a_wrong_one_count(new_round):
    """Two liars, each about one owner: what they say about the others is needed for t shares, and the sum stands."""
    rd = new_round()
    reveal(rd, 3, lambda a: [msgspec.structs.replace(a[0], share=SHARE), *a[1:]])
    reveal(rd, 2, lambda a: [a[0], msgspec.structs.replace(a[1], share=SHARE), *a[2:]])
    rd.run()
    rd.check((0, 1, 2, 3))
    assert rd.session.result.dropped == {2: "unmask", 3: "unmask"}
    assert {i: error.party for i, error in rd.session.result.rejected.items()} == {2: 2, 3: 3}


@pytest.mark.parametrize(("value", "published"), [(1000, True), (1001, False), (-1000, True), (-1001, False)])
def test_a_sum_of_three_has_the_range_of_three(new_round, value, published):
    """With one of four gone the limit is three bounds, at either end: one more ends the round."""
    extreme = {i: {"update": np.full(5, np.sign(value) * 1000), "count": np.array([1])} for i in range(4)}
    rd = new_round(inputs=extreme)
    rd.silence(3, "mask")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask, "check_inputs", lambda _params, _inputs: None)
        real = ring.encode_into
        patch.setattr(ring, "encode_into", lambda x, _low, _high, words: real(x, -(2**62), 2**62, words))
        rd.clients[2] = rd.client(2, inputs={"update": np.full(5, value), "count": np.array([1])})
        if published:
            rd.run()
            assert rd.session.result.sums["update"].tolist() == [3 * value] * 5
            return
        with pytest.raises(RoundError, match=r"block 'update': the sum leaves \+-3000"):
            rd.run()
