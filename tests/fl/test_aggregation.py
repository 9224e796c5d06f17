import dataclasses

import numpy as np
import pytest

from fl.aggregation import Ideal, Secure
from fl.algorithms import SiteUpdate
from fl.errors import RoundFailedError
from fl.experiment import prepare
from fl.simulation import Consortium
from fl.site import Announcement, Site
from secagg.engines.inprocess import InProcessEngine
from secagg.errors import BelowThresholdError
from secagg.params import PHASES

MODES = ("secure", "ideal")


@pytest.fixture(scope="module")
def experiments(toy):
    """Federated averaging without privacy, by mode; one compiled algorithm serves all."""
    secure = prepare(toy(), "run-1", silences={})
    return {mode: dataclasses.replace(secure, config=toy(mode=mode)) for mode in ("secure", "ideal", "plain")}


def announce(experiment, *, number=0, attempt=0):
    """The initial model, announced."""
    adapter = experiment.adapter
    return Announcement(number, attempt, adapter.ravel(adapter.params), adapter.hash(adapter.params))


def aggregate(experiment, silences=None):
    """One round with planned silences, by name."""
    chosen = dataclasses.replace(experiment, silences={0: silences or {}})
    return Consortium(chosen, {}).aggregate(announce(chosen))


def inputs(experiment):
    """Every site's integers, by client id."""
    sites = Consortium(experiment, {}).sites
    return {client: site.contribution(announce(experiment))[0] for client, site in sites.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("phase", PHASES)
def test_who_is_in_the_sum(experiments, mode, phase):
    """Silent at advertise, share or mask: not in the sum. Silent at confirm or unmask: in it. The sum is exact."""
    result = aggregate(experiments[mode], {"north": phase})
    expected = (0, 2, 3) if phase in PHASES[:3] else (0, 1, 2, 3)
    assert result.survivors == expected
    assert result.dropped == {1: phase}
    sent = inputs(experiments[mode])
    for block, total in result.sums.items():
        assert np.array_equal(total, sum(sent[client][block] for client in expected))


def test_secure_ideal_and_plain_agree(experiments):
    """S21: integers agree bit for bit, and with the float mean up to the fixed point's step."""
    means = {mode: aggregate(experiments[mode], {"west": "mask"}).mean for mode in experiments}
    assert np.array_equal(means["secure"].gradient, means["ideal"].gradient)
    assert means["secure"].loss == means["ideal"].loss
    np.testing.assert_allclose(means["plain"].gradient, means["secure"].gradient, atol=2.0**-32)
    assert means["plain"].weight == means["secure"].weight


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("phase", PHASES)
def test_below_the_threshold_is_a_named_error(experiments, mode, phase):
    """Two silent sites of four end the round in the phase in which they went silent, in both modes alike."""
    with pytest.raises(BelowThresholdError) as caught:
        aggregate(experiments[mode], {"north": phase, "west": phase})
    assert caught.value.phase == phase
    assert caught.value.needed == 3


@pytest.mark.parametrize("mode", MODES)
def test_zero_replies(experiments, mode):
    """F15: when nobody replies the error has the numbers."""
    with pytest.raises(BelowThresholdError, match="advertise: 0 of at least 3"):
        aggregate(experiments[mode], dict.fromkeys(("east", "north", "south", "west"), "advertise"))


def test_order_of_arrival_changes_nothing(experiments):
    """F11: replies that arrive in any order give bitwise the same mean."""

    class Shuffled(InProcessEngine):
        def exchange(self, phase, frames, *, deadline_s):
            replies = list(super().exchange(phase, frames, deadline_s=deadline_s))
            order = np.random.default_rng(len(phase)).permutation(len(replies))
            return [replies[place] for place in order]

    experiment = experiments["secure"]
    consortium = Consortium(experiment, {})

    def connect(announcement):
        return Shuffled({client: part.handle for client, part in consortium._participants(announcement).items()})

    secure = Secure(experiment.agreement, experiment.algorithm, connect, consortium.server, consortium.sites[0].roster)
    shuffled = secure(announce(experiment))
    assert np.array_equal(shuffled.mean.gradient, aggregate(experiment).mean.gradient)
    backwards = Ideal(
        experiment.agreement,
        experiment.algorithm,
        lambda announcement: dict(reversed(consortium._participants(announcement).items())),
        lambda _announcement: {},
    )
    assert np.array_equal(backwards(announce(experiment)).mean.gradient, shuffled.mean.gradient)


@pytest.mark.parametrize("mode", MODES)
def test_a_site_with_nan_is_a_dropout(experiments, mode, monkeypatch, caplog):
    """S6: a site whose update is NaN refuses by itself; it is a dropout, by name, and the sum is the others'."""
    experiment = experiments[mode]
    honest = inputs(experiment)
    train = Site.train

    def spoiled(site, announcement):
        update, local = train(site, announcement)
        return (SiteUpdate(update.delta * np.nan, update.weight, update.loss) if site.id == 2 else update), local

    monkeypatch.setattr(Site, "train", spoiled)
    result = Consortium(experiment, {}).aggregate(announce(experiment))
    assert result.survivors == (0, 1, 3)
    assert result.dropped == {2: "mask"}
    assert np.array_equal(result.sums["update"], sum(honest[client]["update"] for client in (0, 1, 3)))
    assert "round 0: site south refused: leaf \"['bias']\"" in caplog.text


@pytest.mark.parametrize("mode", MODES)
def test_too_many_refusals_fail_the_run_by_name(experiments, mode, monkeypatch):
    """When the sites whose updates are NaN are too many for a sum, the run ends with a name and a leaf, not a head count."""
    train = Site.train

    def spoiled(site, announcement):
        update, local = train(site, announcement)
        return (SiteUpdate(update.delta * np.nan, update.weight, update.loss) if site.id > 1 else update), local

    monkeypatch.setattr(Site, "train", spoiled)
    with pytest.raises(RoundFailedError, match=r"round 0: site south refused: leaf .*\['bias'\]"):
        aggregate(experiments[mode])


def test_the_float_mean_leaves_nan_out_by_name(experiments, monkeypatch):
    """F1: in plain mode the NaN site is not a survivor, and is listed as dropped."""
    train = Site.train

    def spoiled(site, announcement):
        update, local = train(site, announcement)
        return (SiteUpdate(update.delta * np.nan, 0, update.loss) if site.id == 2 else update), local

    monkeypatch.setattr(Site, "train", spoiled)
    result = aggregate(experiments["plain"])
    assert result.survivors == (0, 1, 3)
    assert result.dropped == {2: "mask"}
    assert np.isfinite(result.mean.gradient).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda values: values | {"update": values["update"] * 0 + 2**62}, "block 'update': values"),
        (lambda values: values | {"update": values["update"][:1]}, r"block 'update': shape \(1,\) instead of \(3,\)"),
        (lambda values: values | {"update": values["update"].astype(float)}, "block 'update': an integer array"),
        (lambda values: {"update": values["update"]}, "blocks .* are missing"),
    ],
    ids=["out of bound", "shape", "dtype", "missing block"],
)
def test_integers_that_do_not_fit_are_named(experiments, mode, spoil, message, monkeypatch):
    """S5, S8: an out-of-bound integer, a wrong shape and a wrong dtype stop the site, naming site and block."""
    contribution = Site.contribution

    def spoiled(site, announcement):
        values, local = contribution(site, announcement)
        return (spoil(values) if site.id == 1 else values), local

    monkeypatch.setattr(Site, "contribution", spoiled)
    with pytest.raises(RoundFailedError, match=rf"site north refused: .*{message}"):
        aggregate(experiments[mode])


def test_a_wrong_sum_fails_the_run(experiments, monkeypatch):
    """The harness compares every sum with the survivors' integers: one step off in one coordinate is found."""
    from fl import aggregation

    honest = aggregation.run_round

    def off_by_one(*args, **kwargs):
        outcome = honest(*args, **kwargs)
        outcome.sums["update"][0] += 1
        return outcome

    monkeypatch.setattr(aggregation, "run_round", off_by_one)
    with pytest.raises(RoundFailedError, match="round 0: block update of the sum is not the sum"):
        aggregate(experiments["secure"])


def test_secure_has_times_and_bytes(experiments):
    """A secure round has seconds and bytes for exactly the five phases, and a transcript; ideal has zeros, and a hash of the round."""
    secure, ideal = aggregate(experiments["secure"]), aggregate(experiments["ideal"])
    for result in (secure, ideal):
        assert set(result.seconds["server"]) == set(result.seconds["client"]) == set(PHASES)
        assert set(result.bytes_up) == set(result.bytes_down) == set(PHASES)
    assert all(secure.bytes_up.values())
    assert len(secure.transcript) == 64
    assert not any(ideal.bytes_up.values())
    assert len(ideal.transcript) == 64  # of the parameters, which the sites book too


def test_the_float_mean_keeps_no_training_that_went_to_nan(experiments, monkeypatch):
    """F1: a site that is left out of the mean keeps the local leaves that it had; the others keep their new ones."""
    train = Site.train

    def spoiled(site, announcement):
        update, _ = train(site, announcement)
        changed = SiteUpdate(update.delta * np.nan, update.weight, update.loss) if site.id == 2 else update
        return changed, {"trained by": site.name}

    monkeypatch.setattr(Site, "train", spoiled)
    experiment = experiments["plain"]
    consortium = Consortium(experiment, {})
    consortium.aggregate(announce(experiment))
    assert [site.local for site in consortium.sites.values()] == [
        {"trained by": "east"},
        {"trained by": "north"},
        {},
        {"trained by": "west"},
    ]


def test_the_float_mean_of_nothing_is_a_failed_round(experiments, monkeypatch):
    """F15: when no site's update is finite the round fails, and no site keeps what it trained."""
    monkeypatch.setattr(
        Site, "train", lambda _site, _announcement: (SiteUpdate(np.full(3, np.nan), 1, 0.0), {"new": 1})
    )
    consortium = Consortium(experiments["plain"], {})
    with pytest.raises(BelowThresholdError, match="mask: 0 of at least 1"):
        consortium.aggregate(announce(experiments["plain"]))
    assert all(site.local == {} for site in consortium.sites.values())
