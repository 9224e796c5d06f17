import dataclasses
from contextlib import ExitStack

import jax
import numpy as np
import pytest

from fl.errors import ConfigError, RoundFailedError
from fl.experiment import prepare
from fl.simulation import Consortium, open_ledgers, run
from fl.simulation.consortium import party_keys
from fl.site import Announcement, Participation
from privacy.errors import BudgetExceededError, InputError
from privacy.ledger import Ledger, read_entries, verify
from privacy.ledger.chain import ChainError
from secagg.errors import BelowThresholdError

NAMES = ("east", "north", "south", "west")


@pytest.fixture(scope="module")
def public(toy):
    """Federated averaging, without the protocol."""
    return prepare(toy(mode="ideal", rounds=4), "run-1", {1: {"west": "mask"}, 2: {"north": "mask", "east": "mask"}})


@pytest.fixture(scope="module")
def private(toy):
    """Record-level privacy through the protocol, under a test seed."""
    return prepare(toy(private=True), "run-1", {}, 7)


@pytest.fixture
def ledgers(private, tmp_path):
    """The sites' ledgers."""
    with ExitStack() as stack:
        yield open_ledgers(private, tmp_path, stack)


def announce(experiment, number=0, attempt=0):
    """What the server would tell the sites."""
    adapter = experiment.adapter
    params = adapter.params
    return Announcement(number, attempt, adapter.ravel(params), adapter.hash(params))


def refusing(error, at="inputs"):
    """In place of a site's step: it refuses."""

    def step(self, *_):
        if self.site.name == "north":
            raise error

    return at, step


def test_the_sum_is_that_of_the_survivors(public):
    """What comes out is the sum of exactly the integers that the survivors sent, and the silent site is not in it."""
    consortium = Consortium(public, {})
    result = consortium.aggregate(announce(public, 1))
    assert result.survivors == (0, 1, 2)
    assert result.dropped == {3: "mask"}
    sent = [consortium.sites[client].contribution(announce(public, 1))[0] for client in result.survivors]
    for block, total in result.sums.items():
        assert np.array_equal(total, sum(values[block] for values in sent))


def test_a_wrong_sum_fails_the_round(public, monkeypatch):
    """The harness sees what no party could: one unit too many in one entry ends the run."""
    consortium = Consortium(public, {})
    honest = Participation.inputs

    def lying(self):
        values = honest(self)
        return {block: value + 1 if self.site.name == "north" else value for block, value in values.items()}

    monkeypatch.setattr(Participation, "inputs", lying)
    consortium.aggregate(announce(public))  # what is sent is what is summed, whatever it is
    monkeypatch.undo()
    real = consortium._aggregator(None)

    def cheating(announcement):
        result = real(announcement)
        return dataclasses.replace(result, sums={block: total + 1 for block, total in result.sums.items()})

    with pytest.raises(
        RoundFailedError, match=r"round 0: block \w+ of the sum is not the sum of the survivors' inputs"
    ):
        consortium._checked(cheating)(announce(public))


@pytest.mark.parametrize("error", [InputError("leaf ['kernel'] is not finite"), BudgetExceededError("used up")])
def test_a_site_that_refuses_its_own_update_is_a_dropout(public, monkeypatch, caplog, error):
    """A site with a NaN, or without budget, is missing from the sum, by name; the others go on."""
    consortium = Consortium(public, {})
    honest = Participation.inputs
    monkeypatch.setattr(Participation, "inputs", lambda self: refusing(error)[1](self) or honest(self))
    result = consortium.aggregate(announce(public))
    assert result.survivors == (0, 2, 3)
    assert f"site north refused: {error}; it counts as a dropout" in caplog.text


def test_parties_of_one_process_must_agree(public, monkeypatch):
    """Any other refusal fails the run and names the site: in one process there is no reason for it."""
    consortium = Consortium(public, {})
    monkeypatch.setattr(Participation, "open", refusing(ConfigError("another plan"), "open")[1])
    with pytest.raises(RoundFailedError, match="round 0: site north refused: another plan"):
        consortium.aggregate(announce(public))


def test_planned_silences_befall_the_first_attempt(public):
    """Two silent sites are too few for round 2; its next attempt has everybody. A process that goes on plans them for its own first."""
    consortium = Consortium(public, {})
    with pytest.raises(BelowThresholdError):
        consortium.aggregate(announce(public, 2))
    assert consortium.aggregate(announce(public, 2, attempt=1)).survivors == (0, 1, 2, 3)
    later = Consortium(public, {}, first=(1, 1))
    assert later.aggregate(announce(public, 1, attempt=0)).survivors == (0, 1, 2, 3)
    assert later.aggregate(announce(public, 1, attempt=1)).survivors == (0, 1, 2)
    assert later.aggregate(announce(public, 2, attempt=1)).survivors == (0, 1, 2, 3)


def test_frames_reach_the_server_and_nothing_else_does(private, ledgers):
    """The tap sees every site's frames of every phase, and the sites' ledgers book the release."""
    seen = []
    consortium = Consortium(private, ledgers, lambda phase, sender, frame: seen.append((phase, sender, len(frame))))
    result = consortium.aggregate(announce(private))
    assert result.survivors == (0, 1, 2, 3)
    assert {(phase, sender) for phase, sender, _ in seen} >= {
        (phase, sender) for phase in ("advertise", "share", "mask", "unmask") for sender in range(4)
    }
    assert list(consortium.ledgers) == list(NAMES)
    for ledger in consortium.ledgers.values():
        assert [entry.kind for entry in read_entries(ledger.path)] == ["plan", "reserve", "commit"]


def test_local_state_is_given_back_in_order(public):
    """What a site keeps is known by name and restored by client id."""
    consortium = Consortium(public, {})
    assert list(consortium.local) == list(NAMES)
    own = [{"x": jax.numpy.full(1, float(i))} for i in range(4)]
    consortium.restore(own)
    assert consortium.local == dict(zip(NAMES, own, strict=True))
    with pytest.raises(ValueError, match="zip"):
        consortium.restore(own[:3])


def test_keys_are_fresh_but_under_a_test_seed(public, private):
    """Two runs never share a key; a test seed gives the same ones each time, one for each party."""
    server, sites = party_keys(public)
    assert server.public_key != party_keys(public)[0].public_key
    assert len({server.public_key, *(key.public_key for key in sites.values())}) == 5
    assert party_keys(private)[0].public_key == party_keys(private)[0].public_key
    given = Consortium(public, {}, keys=(server, sites))
    assert given.signer is server
    assert {client: site.identity.public_key for client, site in given.sites.items()} == {
        client: key.public_key for client, key in sites.items()
    }


def test_a_planned_silence_is_of_the_first_attempt(toy, tmp_path):
    """Two silent sites end an attempt below the threshold; the next attempt has everybody, and both are booked."""
    silences = {0: {"north": "mask", "east": "mask"}}
    result = run(toy(private=True, rounds=4), out=tmp_path / "run", ledgers=tmp_path / "ledgers", silences=silences)
    assert [record.attempt for record in result.history] == [1, 0, 0, 0]
    assert len(result.survivors[0]) == 4
    assert verify(tmp_path / "run" / "ledger.jsonl").entries == 10  # the plan, five reservations, four commits


@pytest.mark.parametrize("mode", ["secure", "ideal"])
def test_every_site_signs_the_runs_ledger(toy, tmp_path, mode):
    """The head has the server's signature and each site's, all of the last entry; a site whose own ledger tells another story signs nothing."""
    folder = tmp_path / "run"
    silences = {1: {"west": "unmask"}}
    run(toy(private=True, mode=mode, rounds=3), out=folder, ledgers=tmp_path / "ledgers", silences=silences)
    report = verify(folder / "ledger.jsonl")
    assert {each.party: each.seq for each in report.signatures} == dict.fromkeys(
        ("server", "east", "north", "south", "west"), report.entries - 1
    )


def test_a_site_does_not_sign_what_it_did_not_see(toy, tmp_path, monkeypatch):
    """A server that books other survivors than those that were signed is found by the first site."""
    real = Ledger.commit

    def commit(self, reservation, *, survivors, transcript):
        mine = survivors[:-1] if self.path.name == "ledger.jsonl" else survivors
        return real(self, reservation, survivors=mine, transcript=transcript)

    monkeypatch.setattr(Ledger, "commit", commit)
    with pytest.raises(ChainError, match="survivors"):
        run(toy(private=True, rounds=1), out=tmp_path / "run", ledgers=tmp_path / "ledgers")
