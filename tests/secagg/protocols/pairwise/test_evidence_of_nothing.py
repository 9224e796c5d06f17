import dataclasses

import pytest

from secagg import messages
from secagg.crypto import prg
from secagg.errors import DisputeError, EvidenceError, PeerFault
from secagg.protocols.pairwise.evidence import check


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
def test_nothing_is_proven_against_honest_clients(new_round, suite):
    """Whatever a server assembles from the frames of an honest round, each kind, against each client: it proves nothing."""
    rd = new_round(5, colluders=0, threshold=3, suite=suite)
    rd.silence(4, "mask")
    rd.run("share")
    roots = {i: client._state.secrets.root for i, client in rd.clients.items()}
    rd.run("unmask")
    rd.ask("unmask")
    masked = rd.session._state._masked
    deals = masked.sharers.deals
    digests = {"digests": rd.digests}
    rd.run()
    tried = 0
    for party in rd.params.cohort:
        advert = {"advertisement": rd.sent["advertise"][party]}
        tries = [advert, {"shares": rd.sent["share"][party]}]
        if party != 4:
            unmask = {"unmask": rd.sent["unmask"][party]}
            tries += [{"mask header": rd.split_mask(rd.sent["mask"][party])[0]}, unmask | rd.owed(party)]
            tries += [unmask | deals[i].evidence(j) for i in rd.params.cohort for j in rd.params.cohort]
            tries += [{f"mask header {i}": rd.split_mask(rd.sent["mask"][i])[0] for i in range(4)}]
        held = {i: {a.owner: a for a in rd.payload(f, messages.Unmask).answers} for i, f in rd.sent["unmask"].items()}
        for chosen in ((0, 1, 2), (1, 2, 3), (0, 1, 3)):
            dealing = dict(advert)
            for holder in chosen:
                dealing |= deals[party].evidence(holder) | {f"share {holder}": held[holder][party].share}
            tries.append(dealing)
        opened = {"root": roots[4], "advertisement": rd.sent["advertise"][4]}
        tries += [opened | deals[i].evidence(j) for i in rd.params.cohort for j in rd.params.cohort]
        for evidence in tries:
            tried += 1
            with pytest.raises(EvidenceError):
                pytest.fail(f"{party} {sorted(evidence)}: {check(digests | evidence, party, rd.params, rd.roster)}")
    assert tried > 250


def test_shares_of_another_dealer_or_kind_prove_nothing(new_round):
    """Shares of two dealers, of both kinds, or altered ones are not a dealing of anybody."""
    rd = new_round(5, colluders=0, threshold=3)
    rd.silence(4, "mask")
    rd.run("unmask")
    rd.ask("unmask")
    deals, digests = rd.session._state._masked.sharers.deals, rd.digests
    held = {i: {a.owner: a for a in rd.payload(f, messages.Unmask).answers} for i, f in rd.sent["unmask"].items()}
    good = {"digests": digests, "advertisement": rd.sent["advertise"][1]}
    for holder in (0, 1, 2):
        good |= deals[1].evidence(holder) | {f"share {holder}": held[holder][1].share}
    for change in (
        {"share 0": held[0][2].share},
        {"share 0": held[0][4].share},
        {"share 0": held[1][1].share},
        {"share 0": bytes(36)},
        {"share 0": b""},
        deals[2].evidence(0),
        {"advertisement": rd.sent["advertise"][2]},
        {"advertisement": rd.resign(rd.sent["advertise"][1], messages.Advertise, by=1, seed_commitment=bytes(32))},
        {"share header": messages.decode(rd.sent["share"][2], messages.ShareFrame).header},
    ):
        with pytest.raises(EvidenceError):
            check(good | change, 1, rd.params, rd.roster)


def test_what_only_the_server_can_judge_is_said_to_be_so(new_round):
    """A wrong MAC box and a body with wrong padding prove nothing to others, since the server could have made them up."""
    rd = new_round()
    rd.up["advertise", 2] = lambda f: rd.resign(f, messages.Advertise, by=2, mac_box=bytes(80))
    rd.run()
    with pytest.raises(EvidenceError, match="only the server can open its MAC box"):
        check(rd.fault_of(2), 2, rd.params, rd.roster)
    rd = new_round()
    rd.run("share")
    key = rd.clients[1]._state.secrets.mac_key

    def spoil(frame):
        header, body = rd.split_mask(frame)
        body = bytes(b | 255 for b in body)
        return rd.mask_frame(rd.resign(header, messages.MaskHeader, by=1, tag=prg.gmac(key, body)), body)

    rd.up["mask", 1] = spoil
    rd.run()
    with pytest.raises(EvidenceError, match="could have made up any body"):
        check(rd.fault_of(1), 1, rd.params, rd.roster)


def test_a_refusal_of_somebody_who_shared_nothing_is_not_proven(new_round):
    """Who is in U2 is the server's word: a client cannot be held to it by others."""
    rd = new_round(5, colluders=0, threshold=3)
    rd.silence(4, "share")
    rd.sign_mask_header(1, refused=(4,))
    rd.run()
    assert isinstance(rd.session.rejected[1], PeerFault)
    with pytest.raises(EvidenceError, match="the refusals are possible"):
        check(rd.fault_of(1), 1, rd.params, rd.roster)


def test_a_dispute_names_both_sides(new_round):
    """One refusal shows that one of two is wrong, and says no more, whichever of them it is asked about."""
    rd = new_round()
    rd.redeal(3, 0, lambda part: dataclasses.replace(part, self_commitment=bytes(32)))
    rd.run()
    found = rd.session.rejected[3]
    assert isinstance(found, DisputeError)
    evidence = rd.fault_of(3)
    assert check(evidence, 3, rd.params, rd.roster).startswith("shows a dispute: client 3 was refused by [0]")
    assert "refused [3]" in check(evidence, 0, rd.params, rd.roster)
    with pytest.raises(EvidenceError, match="neither refused"):
        check(evidence, 1, rd.params, rd.roster)
