import dataclasses

import msgspec
import numpy as np
import pytest

from secagg import messages
from secagg.crypto import shamir
from secagg.errors import EvidenceError, PeerFault
from secagg.identity import Roster
from secagg.protocols.pairwise.evidence import check

SUITES = pytest.mark.parametrize("suite", ["classical", "hybrid"])


def altered_answer(rd, client, owner, **changes):
    """Makes a client answer something else about one owner."""
    rd.up["unmask", client] = lambda f: rd.resign(
        f,
        messages.Unmask,
        by=client,
        answers=tuple(
            msgspec.structs.replace(a, **changes) if a.owner == owner else a
            for a in rd.payload(f, messages.Unmask).answers
        ),
    )


def deal(monkeypatch, root, change):
    """Makes the client with this mask root deal `change(real, secrets, t, points, entropy)`."""
    real = shamir.share

    def share(secrets, t, points, entropy):
        return change(real, secrets, t, points, entropy) if secrets[0] == root else real(secrets, t, points, entropy)

    monkeypatch.setattr(shamir, "share", share)


# Every kind of proof: each gives the round, the accused, the evidence, and what the sentence says.


def bad_key(new_round, suite, _):
    """An advertised key that nobody can seal to."""
    rd = new_round(suite=suite)
    size = {"classical": 32, "hybrid": 1216}[suite]
    rd.up["advertise", 2] = lambda f: rd.resign(f, messages.Advertise, by=2, mask_key=bytes(size))
    rd.run()
    return rd, 2, rd.session.rejected[2].evidence, "proves that client 2 signed an advertisement with keys"


def one_key(new_round, suite, _):
    """One key for two purposes."""
    rd = new_round(suite=suite)
    rd.up["advertise", 2] = lambda f: rd.resign(
        f, messages.Advertise, by=2, channel_key=rd.payload(f, messages.Advertise).mask_key
    )
    rd.run()
    return rd, 2, rd.session.rejected[2].evidence, "one key for two purposes"


def short_part(new_round, suite, _):
    """A signed part that is a byte short."""
    rd = new_round(suite=suite)

    def cut(frame):
        leaves = messages.decode(frame, messages.ShareFrame).leaves
        return rd.share_frame(1, [leaves[0][:-1], *leaves[1:]])

    rd.up["share", 1] = cut
    rd.run()
    return rd, 1, rd.fault_of(1), "proves that client 1 signed parts of a wrong number"


def unsorted_refusals(new_round, suite, _):
    """Refusals out of order."""
    rd = new_round(suite=suite)
    rd.sign_mask_header(1, refused=(3, 2))
    rd.run()
    return rd, 1, rd.fault_of(1), "not in order"


def strange_refusal(new_round, suite, _):
    """A refusal of somebody who is nobody's neighbour."""
    rd = new_round(suite=suite)
    rd.sign_mask_header(1, refused=(9,))
    rd.run()
    return rd, 1, rd.fault_of(1), "not its neighbours"


def many_refusals(new_round, suite, _):
    """More refusals than may be needed."""
    rd = new_round(suite=suite)
    rd.sign_mask_header(1, refused=(2, 3))
    rd.run()
    return rd, 1, rd.fault_of(1), "proves that client 1 refused 2 dealers"


def wrong_own_share(new_round, suite, _):
    """A client's own share, which contradicts its own commitment."""
    rd = new_round(suite=suite)
    altered_answer(rd, 1, 1, share=bytes(36))
    rd.run()
    return rd, 1, rd.fault_of(1), "proves that client 1 revealed another share of the self secret of client 1"


def wrong_share(new_round, suite, _):
    """A survivor's share, which contradicts what its dealer signed."""
    rd = new_round(suite=suite)
    altered_answer(rd, 0, 1, share=bytes(36))
    rd.run()
    return rd, 0, rd.fault_of(0), "of client 1 than the committed one, or that client 1 signed two roots in one round"


def wrong_root_share(new_round, suite, _):
    """A dropped client's root share."""
    rd = new_round(5, colluders=0, threshold=3, suite=suite)
    rd.silence(2, "mask")
    altered_answer(rd, 0, 2, share=bytes(36))
    rd.run()
    return rd, 0, rd.fault_of(0), "another share of the root secret of client 2"


def wrong_seed_of_ones_own(new_round, suite, _):
    """A pair seed that the revealing client itself committed to: positions 1 and 2, the lower chooses."""
    rd = new_round(suite=suite)
    rd.silence(2, "mask")
    altered_answer(rd, 1, 2, pair_seed=bytes(32))
    rd.run()
    text = "proves that client 1 revealed another pair seed with client 2 than the committed one"
    return rd, 1, rd.fault_of(1), text


def wrong_seed_of_anothers(new_round, suite, _):
    """A pair seed that the dropped client committed to."""
    rd = new_round(suite=suite)
    rd.silence(2, "mask")
    altered_answer(rd, 0, 2, pair_seed=bytes(32))
    rd.run()
    return rd, 0, rd.fault_of(0), "or that client 2 signed two roots"


def answer_twice(new_round, suite, _):
    """Two answers about one client."""
    rd = new_round(suite=suite)
    rd.up["unmask", 1] = lambda f: rd.resign(
        f, messages.Unmask, by=1, answers=2 * rd.payload(f, messages.Unmask).answers
    )
    rd.run()
    evidence = {name: rd.fault_of(1)[name] for name in ("unmask", "digests")}  # the statement is not needed for that
    return rd, 1, evidence, "proves that client 1 answered for a client twice"


def answer_missing(new_round, suite, _):
    """An answer missing, seen beside the statement and the refusals that the client signed."""
    rd = new_round(suite=suite)
    rd.up["unmask", 1] = lambda f: rd.resign(
        f, messages.Unmask, by=1, answers=rd.payload(f, messages.Unmask).answers[1:]
    )
    rd.run()
    return rd, 1, rd.fault_of(1), "for exactly the clients that its own signed statement asks for"


def higher_degree(new_round, suite, monkeypatch):
    """Shares that no three holders agree about."""
    rd = new_round(suite=suite)
    rd.run("share")
    root = rd.clients[3]._state.secrets.root
    deal(monkeypatch, root, lambda real, s, t, points, entropy: real(s, t + 1, points, entropy))
    with pytest.raises(PeerFault):
        rd.run()
    return rd, 3, rd.fault_of(3), "proves that client 3 dealt shares of "


def other_self_seed(new_round, suite, monkeypatch):
    """Shares of another self seed."""
    rd = new_round(suite=suite)
    rd.run("share")
    root = rd.clients[3]._state.secrets.root
    deal(monkeypatch, root, lambda real, s, *rest: real([s[0], bytes(32)], *rest))
    with pytest.raises(PeerFault):
        rd.run()
    return rd, 3, rd.fault_of(3), "another self seed than it committed to"


def no_secret(new_round, suite, monkeypatch):
    """Shares whose limbs do not fit into a secret."""
    rd = new_round(suite=suite)
    rd.run("share")
    root = rd.clients[3]._state.secrets.root
    large = np.uint64(2**30)
    deal(
        monkeypatch,
        root,
        lambda real, *rest: ((real(*rest).astype(np.uint64) + large) % shamir.PRIME).astype(np.uint32),
    )
    with pytest.raises(PeerFault):
        rd.run()
    return rd, 3, rd.fault_of(3), "self secret that come from no 32-byte secret"


def with_an_edge_to_open(new_round, suite, dropped, silent):
    """A round in which `dropped` is silent from exchange 3 and `silent` in exchange 5, before exchange 2, and its roots."""
    rd = new_round(5, colluders=0, threshold=3, suite=suite)
    rd.silence(dropped, "mask")
    rd.silence(silent, "unmask")
    rd.run("share")
    return rd, {i: client._state.secrets.root for i, client in rd.clients.items()}


def other_root(new_round, suite, monkeypatch):
    """Shares of another mask root, opened for an edge to a silent survivor."""
    rd, roots = with_an_edge_to_open(new_round, suite, 4, 0)
    deal(monkeypatch, roots[4], lambda real, s, *rest: real([bytes(32), s[1]], *rest))
    with pytest.raises(PeerFault):
        rd.run()
    return rd, 4, rd.fault_of(4), "a mask root that does not give its mask key"


def false_seed(new_round, suite, _):
    """The dropped client sealed and committed to a seed that its root does not give: positions 3 and 0, the lower chooses."""
    rd, _ = with_an_edge_to_open(new_round, suite, 2, 0)
    rd.redeal(2, 0, rd.false_seed(2, 0))
    with pytest.raises(PeerFault):
        rd.run()
    return rd, 2, rd.fault_of(2), "proves that client 2 committed to another pair seed with client 0"


def false_commitment(new_round, suite, _):
    """The silent survivor committed to another seed than it sealed for the dropped client, who never looked."""
    rd, _ = with_an_edge_to_open(new_round, suite, 1, 0)
    rd.redeal(0, 1, lambda part: dataclasses.replace(part, pair_commitment=bytes(32)))
    with pytest.raises(PeerFault):
        rd.run()
    return rd, 0, rd.fault_of(0), "proves that client 0 committed to another pair seed with client 1"


def broken_box(new_round, suite, _):
    """The silent survivor sealed nothing that opens."""
    rd, _ = with_an_edge_to_open(new_round, suite, 1, 0)
    rd.redeal(0, 1, lambda part: dataclasses.replace(part, pair_box=bytes(len(part.pair_box))))
    with pytest.raises(PeerFault):
        rd.run()
    return rd, 0, rd.fault_of(0), "proves that client 0 sealed its pair seed for client 1 wrongly"


def many_accusers(new_round, suite, _):
    """A dealer that more clients refuse than may be corrupt."""
    rd = new_round(suite=suite)
    for holder in (0, 1, 2):
        rd.redeal(3, holder, lambda part: dataclasses.replace(part, self_commitment=bytes(32)))
    rd.run()
    return rd, 3, rd.fault_of(3), "proves that client 3 dealt wrong parts, if at most 1 are corrupt"


PROOFS = [
    bad_key,
    one_key,
    short_part,
    unsorted_refusals,
    strange_refusal,
    many_refusals,
    wrong_own_share,
    wrong_share,
    wrong_root_share,
    wrong_seed_of_ones_own,
    wrong_seed_of_anothers,
    answer_twice,
    answer_missing,
    higher_degree,
    other_self_seed,
    no_secret,
    other_root,
    false_seed,
    false_commitment,
    broken_box,
    many_accusers,
]


@SUITES
@pytest.mark.parametrize("proof", PROOFS)
def test_evidence_proves_the_fault(new_round, monkeypatch, proof, suite):
    """What the server kept of a cheater's frames convinces somebody who has the parameters and the roster only."""
    rd, party, evidence, sentence = proof(new_round, suite, monkeypatch)
    assert sentence in check(evidence, party, rd.params, rd.roster)


@pytest.mark.parametrize("proof", PROOFS)
def test_tampered_evidence_proves_nothing(new_round, monkeypatch, proof):
    """No entry can be changed, cut, left out or taken from elsewhere, and nobody else is proven anything by it."""
    rd, party, evidence, _ = proof(new_round, "classical", monkeypatch)
    for name, value in evidence.items():
        others = {
            "flipped at the front": bytes([value[0] ^ 1]) + value[1:] if value else b"\1",
            "flipped at the end": value[:-1] + bytes([value[-1] ^ 1]) if value else b"\1",
            "flipped in the middle": value[: len(value) // 2] + b"\xa5" + value[len(value) // 2 + 1 :],
            "cut": value[:-1],
            "empty": b"",
            "longer": value + b"\0",
        }
        for how, other in others.items():
            if other != value:
                with pytest.raises(EvidenceError):
                    pytest.fail(f"{name} {how}: {check(evidence | {name: other}, party, rd.params, rd.roster)}")
        if not name.startswith("mask header "):  # one accuser of three may be missing: two are more than c, too
            with pytest.raises(EvidenceError):
                check({key: kept for key, kept in evidence.items() if key != name}, party, rd.params, rd.roster)
    for params in (
        dataclasses.replace(rd.params, round=rd.params.round + 1),
        dataclasses.replace(rd.params, app_context=bytes([1]) * 32),
    ):
        with pytest.raises(EvidenceError):
            check(evidence, party, params, rd.roster)
    keys, other = rd.roster.clients, (party + 1) % 4
    swapped = dict(keys) | {party: keys[other], other: keys[party]}
    with pytest.raises(EvidenceError):
        check(evidence, party, rd.params, Roster(swapped, rd.roster.server_verify_key, rd.roster.server_sealing_key))
    for innocent in (*(set(rd.params.cohort) - {party}), 77):
        with pytest.raises(EvidenceError):
            refused_only(check(evidence, innocent, rd.params, rd.roster))


def refused_only(sentence):
    """A dispute is shown from either side, and proves nothing about one: for the tests above it counts as no proof."""
    if not sentence.startswith("shows a dispute"):
        pytest.fail(sentence)
    raise EvidenceError(sentence)


def test_digests_must_be_those_of_the_round(new_round):
    """Without the digests that give T1, in order and of the cohort, nothing about the round is believed."""
    rd, party, evidence, _ = wrong_own_share(new_round, "classical", None)
    whole = evidence["digests"]
    for digests, words in (
        (b"", "is not in U1"),
        (whole[:-1], "bytes, 40 a member"),
        (whole[40:80] + whole[:40] + whole[80:], "in order"),
        (whole[:40] + whole, "in order"),
        (whole + b"\xff" * 40, "members of the cohort"),
        (whole[:80], "another round"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "another round"),
    ):
        with pytest.raises(EvidenceError, match=words):
            check(evidence | {"digests": digests}, party, rd.params, rd.roster)


def test_strange_names_prove_nothing(new_round):
    """Names that are no kind of evidence, numbers that are none, and values that are not bytes."""
    rd, party, evidence, _ = wrong_share(new_round, "classical", None)
    digests = {"digests": evidence["digests"]}
    for strange in (
        {},
        digests,
        digests | {"rumour": b"x"},
        evidence | {"leaf x": b""},
        evidence | {"leaf -1": b""},
        evidence | {"leaf 99": b""},
        evidence | {"leaf " + "9" * 30: b""},
        evidence | {"unmask": None},
        {name: value for name, value in evidence.items() if not name.startswith("leaf")} | {"leaf 7": b""},
    ):
        with pytest.raises(EvidenceError):
            check(strange, party, rd.params, rd.roster)


def test_errors_are_of_one_kind(new_round, distortions):
    """Evidence of every form ends in a sentence or an `EvidenceError`, never in another error."""
    import random

    flip, _ = distortions
    rnd = random.Random(5)
    rd, party, evidence, _ = wrong_share(new_round, "classical", None)
    for _ in range(300):
        name = rnd.choice(sorted(evidence))
        changed = evidence | {name: flip(evidence[name], rnd)}
        if changed == evidence:
            continue
        with pytest.raises(EvidenceError):
            check(changed, party, rd.params, rd.roster)
