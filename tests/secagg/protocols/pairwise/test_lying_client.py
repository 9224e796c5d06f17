import contextlib
import dataclasses
import itertools

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secagg import messages
from secagg.crypto import shamir
from secagg.errors import BelowThresholdError, DisputeError, LocalError, PeerFault, RoundError, ServerFault
from secagg.params import PHASES
from secagg.protocols.pairwise import share

WRONG = bytes(36)


def break_commitment(part):
    """A part whose box does not hold what it commits to."""
    return dataclasses.replace(part, self_commitment=bytes(32))


def refusing(rd, liar, *refused):
    """Makes a client refuse dealers whose parts were right."""

    def alter(frame):
        end = 4 + int.from_bytes(frame[:4], "big")
        header = rd.resign(frame[4:end], messages.MaskHeader, by=liar, refused=refused)
        front = len(header).to_bytes(4, "big") + header
        return front + bytes(-len(front) % 16) + frame[end + -end % 16 :]

    rd.up["mask", liar] = alter


def disputed(rd):
    """Who was dropped to end a dispute; each with the refusals that show it."""
    found = {i: e for i, e in rd.session.result.rejected.items() if isinstance(e, DisputeError)}
    assert all(e.parties[0] == i and len(e.parties) > 1 and e.evidence for i, e in found.items())
    return tuple(found)


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
@pytest.mark.parametrize("dealer", range(4))
def test_a_lying_dealer_is_out_and_the_others_sum_stands(new_round, suite, dealer):
    """Whichever client deals a wrong share: its one victim refuses it, and the sum of the other three is exact."""
    rd = new_round(suite=suite)
    victim = (dealer + 1) % 4
    rd.redeal(dealer, victim, break_commitment)
    rd.run()
    rd.check([i for i in range(4) if i != dealer])
    assert rd.errors == {}
    assert disputed(rd) == (dealer,)


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
def test_a_dealer_that_lies_to_everybody_is_out(new_round, suite):
    """More than max(c, 1) disputes prove a dealer wrong."""
    rd = new_round(suite=suite)
    for victim in (0, 1, 2):
        rd.redeal(3, victim, break_commitment)
    rd.run()
    rd.check((0, 1, 2))
    assert disputed(rd) == (3,)


def test_two_lying_dealers_are_out_where_two_are_planned_for(new_round):
    """Two of seven may be corrupt, c = 2: both wrong dealers go, the five others' sum is exact."""
    rd = new_round(7, colluders=2)
    for dealer, victims in ((5, (0, 1)), (6, (0, 2))):
        for victim in victims:
            rd.redeal(dealer, victim, break_commitment)
    rd.run()
    rd.check((0, 1, 2, 3, 4))


def test_a_false_refusal_costs_one_party_and_not_the_sum(new_round, monkeypatch):
    """A client refuses an honest dealer and leaves out their edge: by the rule the refused one goes, the others' sum stands."""
    real = share.accept

    def accept(state, frame):
        near = real(state, frame)
        if state.me.id != 3:
            return near
        held = {i: x for i, x in near.held.items() if i != 1}
        seeds = {i: x for i, x in near.pair_seeds.items() if i != 1}
        return dataclasses.replace(near, held=held, pair_seeds=seeds, refused=(1,))

    monkeypatch.setattr(share, "accept", accept)
    rd = new_round(7, colluders=1)
    rd.run()
    rd.check((0, 2, 3, 4, 5, 6))
    assert disputed(rd) == (1,)


def test_a_refusal_of_an_edge_that_was_masked_is_never_published(new_round):
    """A client says that it left an edge out and did not: the mask stays, the range gives it away, nothing is published."""
    rd = new_round(7, colluders=1)
    refusing(rd, 3, 1)
    with pytest.raises(RoundError, match="a mask did not cancel; nothing is published"):
        rd.run()


def test_a_false_refusal_of_two_is_a_wrong_frame(new_round):
    """More refusals than clients can be corrupt: the refuser's frame is not taken."""
    rd = new_round()
    refusing(rd, 3, 0, 1)
    rd.run()
    rd.check((0, 1, 2))
    assert isinstance(rd.session.result.rejected[3], PeerFault)
    assert rd.session.result.rejected[3].party == 3


def test_a_refuser_of_two_honest_dealers_is_out(new_round):
    """With c = 2 two refusals pass as a frame, and the one with most disputes goes: the liar."""
    rd = new_round(7, colluders=2)
    refusing(rd, 6, 0, 1)
    rd.run()
    rd.check((0, 1, 2, 3, 4, 5))
    assert disputed(rd) == (6,)


def test_a_dealer_that_lies_and_drops_out_costs_nothing(new_round):
    """A wrong dealer that then falls silent: its victim left the edge out, the others' seeds are revealed."""
    rd = new_round()
    rd.redeal(1, 0, break_commitment)
    rd.silence(1, "mask")
    rd.run()
    rd.check((0, 2, 3))


def test_a_victim_that_drops_out_costs_nothing(new_round):
    """The refuser of a wrong dealer falls silent before its vector: no dispute is open, the dealer stays."""
    rd = new_round()
    rd.redeal(1, 0, break_commitment)
    rd.silence(0, "mask")
    rd.run()
    rd.check((1, 2, 3))
    assert disputed(rd) == ()


def test_a_victim_that_is_silent_at_the_end_costs_nothing(new_round):
    """The refuser stays in the sum and does not unmask: its refused edge is never looked for."""
    rd = new_round(5, colluders=0, threshold=3)
    rd.redeal(1, 0, break_commitment)
    rd.silence(0, "unmask")
    rd.run()
    rd.check((0, 2, 3, 4))


@pytest.mark.parametrize("holder", [0, 2, 3])
def test_a_false_share_in_the_end_names_its_holder(new_round, holder):
    """The share does not fit the dealer's commitment: the holder is named, three others open the sum."""
    rd = new_round()
    rd.up["unmask", holder] = lambda f: rd.resign(
        f,
        messages.Unmask,
        by=holder,
        answers=tuple(
            msgspec.structs.replace(a, share=WRONG) if a.owner == 1 else a
            for a in rd.payload(f, messages.Unmask).answers
        ),
    )
    rd.run()
    rd.check((0, 1, 2, 3))
    assert rd.session.result.rejected[holder].party == holder


def test_a_dealers_own_share_is_checked_too(new_round):
    """A dealer that reveals another own share than it committed to is named, and the others' shares do."""
    rd = new_round()

    def other(frame):
        leaves = list(messages.decode(frame, messages.ShareFrame).leaves)
        leaves[1] = leaves[1][:32] + bytes(32)
        return rd.share_frame(1, leaves)

    rd.up["share", 1] = other
    rd.run()
    rd.check((0, 1, 2, 3))
    assert rd.session.result.rejected[1].party == 1
    assert "wrong share of the self secret of client 1" in str(rd.session.result.rejected[1])


def test_a_key_that_makes_others_sealing_fail_costs_its_owner_only(new_round):
    """All-zero keys never reach the others: the round goes on without their owner."""
    for key, suite in itertools.product(("channel_key", "mask_key"), ("classical", "hybrid")):
        rd = new_round(suite=suite)

        def zero(frame, rd=rd, key=key):
            length = len(getattr(rd.payload(frame, messages.Advertise), key))
            return rd.resign(frame, messages.Advertise, by=2, **{key: bytes(length)})

        rd.up["advertise", 2] = zero
        rd.run()
        rd.check((0, 1, 3))
        assert rd.session.result.rejected[2].party == 2
        assert rd.errors == {}


def test_a_copied_public_key_harms_its_copier_only(new_round):
    """Client 2 advertises client 1's channel key: it can't open what is sent to it, and that is all."""
    rd = new_round(5, colluders=0)
    copied = {}
    rd.up["advertise", 1] = lambda f: copied.setdefault("frame", f)
    rd.up["advertise", 2] = lambda f: rd.resign(
        f, messages.Advertise, by=2, channel_key=rd.payload(copied["frame"], messages.Advertise).channel_key
    )
    rd.run()
    assert isinstance(rd.errors[2], ServerFault)
    rd.check((0, 1, 3, 4))


def test_a_polynomial_of_a_higher_degree_is_found(new_round, monkeypatch):
    """A dealer shares with threshold t + 1: any t valid shares give another secret, so the dealer has a name."""
    rd = new_round(5, colluders=0, threshold=3)
    rd.run("share")
    real = shamir.share
    root = rd.clients[4]._state.secrets.root
    monkeypatch.setattr(shamir, "share", lambda s, t, points, entropy: real(s, t + (s[0] == root), points, entropy))
    with pytest.raises(PeerFault, match="dealt shares of") as caught:
        rd.run()
    assert caught.value.party == 4


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(
    liar=st.integers(0, 3),
    lies=st.dictionaries(st.sampled_from(PHASES), st.booleans(), min_size=1, max_size=2),
    trouble=st.tuples(
        st.none() | st.tuples(st.integers(0, 3), st.sampled_from(PHASES)), st.randoms(use_true_random=False)
    ),
)
def test_whatever_one_client_sends_the_sum_is_exact_or_there_is_none(new_round, distortions, liar, lies, trouble):
    """Damaged or distorted frames make a dropout or end the round with a `SecaggError`; honest clients are not blamed."""
    flip, lie = distortions
    silent, rnd = trouble
    rd = new_round()
    if silent is not None and silent[0] != liar:
        rd.silence(*silent)
    for phase, signed in lies.items():
        rd.up[phase, liar] = lambda f, signed=signed: lie(rd, f, rd.identities[liar], rnd) if signed else flip(f, rnd)
    with contextlib.suppress(BelowThresholdError, PeerFault):
        rd.run()
    if rd.raised is not None:
        assert rd.session.phase is None
        assert getattr(rd.raised, "party", liar) == liar
    else:
        rd.check(rd.session.result.survivors)
        blamed = {e.party for e in rd.session.result.rejected.values() if isinstance(e, PeerFault)}
        assert blamed <= {liar}
        assert all(liar in rd.session.result.rejected[i].parties for i in disputed(rd))
    others = {i: e for i, e in rd.errors.items() if i != liar}
    assert not [e for e in others.values() if isinstance(e, LocalError | ServerFault)]
