import dataclasses
import json

import numpy as np
import optax
import pytest

from fl.aggregation import Aggregate
from fl.algorithms import Mean, Server
from fl.checkpoint import Checkpoints
from fl.errors import RoundFailedError, RunError
from fl.experiment import prepare
from fl.rounds import Coordinator, first_attempt
from fl.simulation import Consortium
from privacy.errors import BudgetExceededError
from privacy.ledger import Ledger, read_entries
from secagg.errors import BelowThresholdError, PeerFault


@pytest.fixture(scope="module")
def public(toy):
    """Federated averaging without privacy."""
    return prepare(toy(rounds=4), "run-1")


@pytest.fixture(scope="module")
def private(toy):
    """Record-level privacy."""
    return prepare(toy(private=True, rounds=4), "run-1")


@pytest.fixture(scope="module")
def adaptive(toy):
    """Record-level privacy with a clip norm that adapts."""
    return prepare(toy(private=True, adaptive=True, rounds=4), "run-1")


class Scripted:
    """An aggregator that plays what it is given: a mean, or an error, for each attempt."""

    def __init__(self, *steps, survivors=(0, 1, 2, 3)):
        self.steps = list(steps)
        self.survivors = survivors
        self.announcements = []

    def __call__(self, announcement):
        """The next step."""
        self.announcements.append(announcement)
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        dropped = {3: "mask"} if 3 not in self.survivors else {}
        return Aggregate(Mean(step), self.survivors, dropped, transcript="ab" * 32)


@pytest.fixture
def coordinate(tmp_path):
    """A function that builds a coordinator in a fresh folder."""
    opened = []

    def build(experiment, aggregate, attempts=1, ledger=None):
        checkpoints = Checkpoints(tmp_path / "checkpoint")
        opened.append(checkpoints)
        return Coordinator(
            agreement=experiment.agreement,
            algorithm=experiment.algorithm,
            adapter=experiment.adapter,
            aggregate=aggregate,
            save=lambda _record, state: checkpoints.save(state),
            metrics=tmp_path / "metrics.jsonl",
            attempts=attempts,
            ledger=ledger,
        )

    yield build
    for checkpoints in opened:
        checkpoints.close()


def start(experiment):
    """The state before round 0."""
    return experiment.algorithm.init(experiment.adapter.params)


def saved(folder, experiment):
    """The state in the newest checkpoint."""
    checkpoints = Checkpoints(folder / "checkpoint")
    try:
        return checkpoints.load(experiment.adapter, start(experiment))[0]
    finally:
        checkpoints.close()


def lines(folder):
    """What metrics.jsonl holds."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_rounds_are_committed_one_by_one(public, coordinate, tmp_path):
    """Each round starts from the model that the one before committed, and leaves a line and a checkpoint."""
    step = np.array([1.0, 0.0, -1.0])
    aggregate = Scripted(step, step, survivors=(0, 1, 2))
    coordinator = coordinate(public, aggregate)
    seen = []
    state = coordinator.run(start(public), 2, lambda record, after: seen.append((record.round, after.round)))
    assert seen == [(0, 1), (1, 2)]
    first, second = aggregate.announcements
    np.testing.assert_allclose(second.model, first.model - step, rtol=1e-6)
    assert second.model_hash == public.adapter.hash(public.adapter.unravel(second.model))
    assert saved(tmp_path, public).round == state.round == 2
    recorded = lines(tmp_path)
    assert [line["round"] for line in recorded] == [0, 1]
    assert recorded[0]["survivors"] == ["east", "north", "south"]
    assert recorded[0]["dropped"] == {"west": "mask"}
    assert recorded[0]["update_norm"] == pytest.approx(2**0.5)
    assert recorded[0]["epsilon"] is None
    assert recorded[0]["sigma_eff"] is None


def test_a_failed_attempt_is_retried_and_booked(private, coordinate, tmp_path):
    """A retry is a new attempt at the same round: announced as such, and reserved again."""
    error = BelowThresholdError("mask", 3, (0, 1), "min_survivors")
    aggregate = Scripted(error, np.zeros(3), np.zeros(3))
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        coordinate(private, aggregate, attempts=2, ledger=ledger).run(start(private), 2, lambda *_: None)
        total = ledger.total()
    assert [(a.round, a.attempt) for a in aggregate.announcements] == [(0, 0), (0, 1), (1, 0)]
    kinds = [entry.kind for entry in read_entries(tmp_path / "ledger.jsonl") if entry.kind != "plan"]
    assert kinds == ["reserve", "reserve", "commit", "reserve", "commit"]
    assert total.open == 1
    assert [line["attempt"] for line in lines(tmp_path)] == [1, 0]


def test_epsilon_is_the_ledgers(private, coordinate, tmp_path):
    """Each line has the run's cumulative epsilon by both routes, and the noise of the survivors that really were."""
    aggregate = Scripted(np.zeros(3), np.zeros(3), survivors=(0, 1, 2))
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        coordinate(private, aggregate, ledger=ledger).run(start(private), 2, lambda *_: None)
        total = ledger.total(private.agreement.plan.delta)
    first, second = lines(tmp_path)
    assert first["epsilon"]["closed_form"] < second["epsilon"]["closed_form"]
    assert min(second["epsilon"].values()) == pytest.approx(total.epsilon.upper, rel=1e-9)
    assert first["sigma_eff"] == private.agreement.plan.sigma_effective(3)


def test_every_attempt_failed(public, coordinate, tmp_path):
    """F15: the error says how many sites replied, in which phase, and the minimum; nothing is committed."""
    error = BelowThresholdError("advertise", 3, (), "min_survivors")
    coordinator = coordinate(public, Scripted(error, error), attempts=2)
    message = r"round 0 failed in 2 attempt\(s\): 0 of 4 sites replied in phase advertise, minimum 3"
    with pytest.raises(RoundFailedError, match=message):
        coordinator.run(start(public), 1, lambda *_: None)
    assert lines(tmp_path) == []
    with pytest.raises(RunError, match="no checkpoint"):
        saved(tmp_path, public)


def test_a_corrupt_site_is_named(public, coordinate):
    """A peer's fault that ends a round is reported under the site's name."""
    coordinator = coordinate(public, Scripted(PeerFault(2, "dealt shares that contradict its commitments")))
    with pytest.raises(RoundFailedError, match="site south: client 2: dealt shares"):
        coordinator.run(start(public), 1, lambda *_: None)


def test_a_model_that_is_not_finite_rolls_back(public, coordinate, tmp_path):
    """F8: the round before stands, in the checkpoint and in the metrics, and the leaf is named."""
    coordinator = coordinate(public, Scripted(np.zeros(3), np.array([0, 1e39, 0])))
    with pytest.raises(RoundFailedError, match=r"round 1: the new model is refused .*leaf \['kernel'\] is not finite"):
        coordinator.run(start(public), 2, lambda *_: None)
    assert [line["round"] for line in lines(tmp_path)] == [0]
    assert saved(tmp_path, public).round == 1


def test_the_budget_stops_before_the_round(private, coordinate, tmp_path):
    """When failed attempts have used the budget up, the next round is not even announced."""
    error = BelowThresholdError("unmask", 3, (0, 1), "shares")
    aggregate = Scripted(*[error] * 20)
    with Ledger(tmp_path / "ledger.jsonl") as ledger, pytest.raises(BudgetExceededError, match="the budget is 2"):
        coordinate(private, aggregate, attempts=20, ledger=ledger).run(start(private), 4, lambda *_: None)
    assert len(aggregate.announcements) == private.config.rounds


def test_a_round_without_data_keeps_the_model(public, coordinate, tmp_path, caplog):
    """S7: a round whose counts are all zero is committed, keeps the model, and says so."""
    aggregate = Scripted(None, np.zeros(3))
    coordinate(public, aggregate).run(start(public), 2, lambda *_: None)
    first, second = aggregate.announcements
    assert first.model_hash == second.model_hash
    assert lines(tmp_path)[0]["update_norm"] == 0
    assert [record.message for record in caplog.records if "no data" in record.message] == [
        "round 0: no data: no site in the sum has a record, and the model stays"
    ]


@pytest.mark.parametrize("kind", ["public", "private", "adaptive"])
def test_a_run_goes_on_from_its_checkpoint_bitwise(kind, toy, coordinate, tmp_path, request):
    """F9: four rounds in one go, and two rounds, a restart and two more, end in the same bits."""
    experiment = request.getfixturevalue(kind)
    server = Server(experiment.adapter, optax.yogi(0.1), "last_half", 4, experiment.agreement.plan)
    algorithm = dataclasses.replace(
        experiment.algorithm, init=server.init, server_update=server.update, final=server.final
    )
    agreement = dataclasses.replace(experiment.agreement, test_seed=5)
    fixed = dataclasses.replace(
        experiment, algorithm=algorithm, agreement=agreement, config=toy(private=kind != "public", rounds=4)
    )

    def consortium(part):
        folder = tmp_path / part
        folder.mkdir()
        names = fixed.train if kind != "public" else ()
        return Consortium(fixed, {name: Ledger(folder / f"{name}.jsonl") for name in names})

    whole = coordinate(fixed, consortium("whole").aggregate).run(start(fixed), 4, lambda *_: None)
    half = coordinate(fixed, consortium("half").aggregate)
    half.run(start(fixed), 2, lambda *_: None)
    loaded = coordinate(fixed, consortium("rest").aggregate)
    again = loaded.run(saved(tmp_path, fixed), 4, lambda *_: None)
    assert experiment.adapter.hash(whole.params) == experiment.adapter.hash(again.params)
    assert experiment.adapter.hash(server.final(whole)) == experiment.adapter.hash(server.final(again))
    assert whole.clip == again.clip
    assert (whole.clip is None) == (kind != "adaptive")


def test_a_sum_is_decoded_with_the_clip_norm_that_made_it(adaptive, coordinate, tmp_path):
    """P14: update and noise have the scale of the C that the sites were told; the next C follows from the noisy bits."""
    plan = adaptive.agreement.plan
    ledgers = {name: Ledger(tmp_path / f"{name}.jsonl") for name in adaptive.train}
    consortium, seen = Consortium(adaptive, ledgers), []

    def watched(announcement):
        aggregate = consortium.aggregate(announcement)
        seen.append((announcement.clip, aggregate.sums["update"], aggregate.mean))
        return aggregate

    state = coordinate(adaptive, watched).run(start(adaptive), 3, lambda *_: None)
    clips = [clip for clip, _, _ in seen] + [state.clip]
    assert clips[0] == plan.clip
    for (clip, total, mean), after in zip(seen, clips[1:], strict=True):
        bits = int(total[-1]) / (2 * plan.bit)
        assert mean.bits == bits
        assert after == plan.adaptive.next_clip(clip, bits) != clip
        assert np.array_equal(mean.gradient, total[:-1] / plan.grid * clip / plan.divisor)
        assert not np.allclose(mean.gradient, total[:-1] / plan.grid * after / plan.divisor)
    assert [line["clip"] for line in lines(tmp_path)] == clips[:-1]
    assert [line["within"] for line in lines(tmp_path)] == [plan.adaptive.fraction(mean.bits) for _, _, mean in seen]


def test_a_retry_has_the_clip_norm_of_its_round(adaptive, coordinate):
    """An attempt without a sum moves nothing: the next one is announced with the same clip norm."""
    aggregate = Scripted(BelowThresholdError("mask", 3, (0, 1), "min_survivors"), np.zeros(3))
    after = coordinate(adaptive, aggregate, attempts=2).run(start(adaptive), 1, lambda *_: None)
    assert [announcement.clip for announcement in aggregate.announcements] == [1.0, 1.0]
    assert after.clip == 1.0  # this sum had no bits


@pytest.mark.parametrize("first", [0.2, 15.0], ids=["from below", "from above"])
def test_the_clip_norm_goes_to_the_quantile_from_both_sides(toy, coordinate, tmp_path, first):
    """P13: with little noise C runs neither to zero nor to infinity, but to the median of the gradients' norms, and stays."""
    fixed = (
        "server.learning_rate=1e-9",
        "privacy.epsilon=40",
        f"privacy.clip={first}",
        "privacy.adaptive.bit_noise=2.0",
    )
    experiment = prepare(toy(*fixed, private=True, adaptive=True, mode="ideal", rounds=12), "run-1", silences={})
    adapter, norms = experiment.adapter, []
    ledgers = {name: Ledger(tmp_path / f"{name}.jsonl") for name in experiment.train}
    consortium = Consortium(experiment, ledgers)
    for site in consortium.sites.values():
        chunks, _ = experiment.algorithm.client_update(adapter.params, adapter.local, site.records, key=site.key)
        norms += [norm for rows, present in chunks for norm in np.linalg.norm(rows[present], axis=1)]
    clips = []
    coordinate(experiment, consortium.aggregate).run(start(experiment), 12, lambda _, state: clips.append(state.clip))
    distances = np.abs(np.log(np.array([first, *clips]) / np.median(norms)))
    far = distances > 0.5  # eta * max(gamma, 1 - gamma)
    assert far[0]
    assert not far[-3:].any()
    assert (np.diff(distances)[far[:-1]] < 0).all()


def test_a_round_is_committed_when_its_state_lasts(public, coordinate, tmp_path):
    """The line is written before the state is saved, so that a crash between the two loses nothing; the caller hears of it last."""
    order = []
    coordinator = dataclasses.replace(
        coordinate(public, Scripted(np.zeros(3))),
        save=lambda record, state: order.append(("save", len(lines(tmp_path)), record.round, state.round)),
    )
    coordinator.run(start(public), 1, lambda record, _: order.append(("committed", record.round)))
    assert order == [("save", 1, 0, 1), ("committed", 0)]


def test_attempts_go_on_after_those_that_were_reserved(private, coordinate, tmp_path):
    """An attempt that a process left behind is never booked twice: the next process takes the next number."""
    plan, run = private.agreement.plan, private.agreement.run
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        assert first_attempt(ledger, run, 0) == 0
        for attempt in (0, 1):
            ledger.reserve(run=run, round=0, attempt=attempt, plan=plan, private=True, data_set=None)
        first = first_attempt(ledger, run, 0)
        assert first == 2
        assert first_attempt(ledger, run, 1) == first_attempt(ledger, "another", 0) == 0
        assert first_attempt(None, run, 0) == 0
        aggregate = Scripted(np.zeros(3), np.zeros(3))
        coordinate(private, aggregate, ledger=ledger).run(start(private), 2, lambda *_: None, attempt=first)
    assert [(a.round, a.attempt) for a in aggregate.announcements] == [(0, 2), (1, 0)]
    assert [line["attempt"] for line in lines(tmp_path)] == [2, 0]
