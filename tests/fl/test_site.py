import dataclasses
import re

import numpy as np
import pytest

from fl.errors import DataError, ModelError, RoundFailedError
from fl.experiment import prepare
from fl.simulation import Consortium
from fl.site import Announcement, Participation, require_capacity
from privacy.budget import Budget
from privacy.errors import BudgetExceededError, PlanError
from privacy.ledger import Ledger, read_entries
from privacy.noise import NoiseSource
from secagg import messages
from secagg.params import PHASES, Block
from secagg.protocols.pairwise import ServerSession


@pytest.fixture(scope="module")
def experiment(toy):
    """Record-level privacy over four small sites, one dropout and one colluder."""
    return prepare(toy(private=True), "run-1")


@pytest.fixture
def consortium(experiment, tmp_path):
    """The four sites with empty ledgers."""
    ledgers = {name: Ledger(tmp_path / f"{name}.jsonl") for name in experiment.train}
    yield Consortium(experiment, ledgers)
    for ledger in ledgers.values():
        ledger.close()


def announce(experiment, *, number=0, attempt=0):
    """The initial model, announced."""
    adapter = experiment.adapter
    return Announcement(number, attempt, adapter.ravel(adapter.params), adapter.hash(adapter.params))


def take_part(consortium, announcement):
    """Every site in one attempt."""
    return {client: Participation(site, announcement) for client, site in consortium.sites.items()}


def relay(consortium, parts, announcement, last):
    """The server's side of a round, up to the phase `last`; the sites' answers in it."""
    agreement = consortium.experiment.agreement
    params = agreement.round_params(announcement.round, announcement.model_hash, clip=announcement.clip)
    session = ServerSession(params, consortium.server, consortium.sites[0].roster)
    frames = session.open()
    for phase in PHASES:
        answers = {client: parts[client].handle(phase, frame) for client, frame in frames.items()}
        if phase == last:
            return answers
        for client, answer in answers.items():
            if answer is not None:
                session.receive(client, answer)
        frames = session.close_phase()
    raise AssertionError(last)


def kinds(consortium, client):
    """What a site's ledger holds, plans apart."""
    path = consortium.sites[client].ledger.path
    return [entry.kind for entry in read_entries(path) if entry.kind != "plan"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("app_context", bytes(32)),
        ("cohort", (0, 1, 2, 9)),
        ("blocks", (Block("update", 3, 32, 5),)),
        ("blocks", (Block("update", 3, 32, 5), Block("rows", 1, 32, 5))),
        ("threshold", 2),
        ("colluders", 0),
        ("suite", "hybrid"),
        ("round", 7),
        ("adversary", "curious"),
        ("min_survivors", 4),
    ],
)
def test_other_parameters_are_refused_by_field(consortium, experiment, field, value):
    """S10: whatever the server changes in a round's parameters, the site refuses and names the field."""
    site, announcement = consortium.sites[0], announce(experiment)
    agreed = experiment.agreement.round_params(0, announcement.model_hash)
    site.check(announcement, agreed)
    changes = {field: value} | ({"adversary": "curious"} if field == "threshold" else {})
    changes |= {"dropouts": 0} if field in ("colluders", "min_survivors") else {}
    with pytest.raises(RoundFailedError, match=r"round 0: \w+ is not what site \w+ agreed to"):
        site.check(announcement, dataclasses.replace(agreed, **changes))


def test_another_app_context_is_silence(consortium, experiment):
    """A site that is handed parameters for another model does not even advertise."""
    announcement = announce(experiment)
    part = Participation(consortium.sites[0], announcement)
    params = experiment.agreement.round_params(0, "00" * 32)
    assert part.handle("advertise", params.encode()) is None
    assert "app_context is not what site east agreed to" in str(part.refusal)
    assert part.handle("share", b"anything") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model + 1e-9, "is not the one that was announced"),
        (lambda model: model[:-1], r"float vector of shape \(3,\)"),
        (lambda model: model * np.nan, r"leaf \['bias'\] is not finite"),
    ],
    ids=["other values", "other shape", "not finite"],
)
def test_another_model_is_refused(consortium, experiment, change, message):
    """A model that differs from the announced hash, has another shape or is not finite is refused."""
    good = announce(experiment)
    bad = dataclasses.replace(good, model=change(good.model))
    with pytest.raises(ModelError, match=message):
        consortium.sites[0].check(bad, experiment.agreement.round_params(0, good.model_hash))


def test_the_float_mean_checks_the_model_too(consortium, experiment):
    """Where floats are averaged, a site also trains on no other model than the announced one."""
    good = announce(experiment)
    Participation(consortium.sites[0], good).train()
    with pytest.raises(ModelError, match="is not the one that was announced"):
        Participation(consortium.sites[0], dataclasses.replace(good, model=good.model + 1e-9)).train()


def test_context_binds_everything_but_the_attempt(experiment):
    """The context changes with run, round, model, plan, experiment and schema, and only with them."""
    agreement = experiment.agreement
    others = [
        dataclasses.replace(agreement, run="run-2").app_context(0, "aa"),
        dataclasses.replace(agreement, plan=None).app_context(0, "aa"),
        dataclasses.replace(agreement, experiment="x").app_context(0, "aa"),
        dataclasses.replace(agreement, schema="x").app_context(0, "aa"),
        agreement.app_context(0, "aa", 1.0),
        agreement.app_context(0, "aa", 1.0 + 2**-52),
        agreement.app_context(1, "aa"),
        agreement.app_context(0, "bb"),
        agreement.app_context(0, "aa"),
    ]
    assert len(set(others)) == len(others)
    assert dataclasses.replace(agreement, threshold=3).app_context(0, "aa") == others[-1]


def test_more_rows_than_the_cap_are_refused(experiment):
    """S5: rows over the public cap are never cut; the site is named with both numbers."""
    algorithm = dataclasses.replace(experiment.algorithm, max_rows=18)
    require_capacity(experiment.train["south"], algorithm)
    with pytest.raises(DataError, match="site east: 19 training rows, and the agreed cap is 18"):
        require_capacity(experiment.train["east"], algorithm)


def test_a_retry_draws_fresh_noise(consortium, experiment):
    """Two attempts at a round send different integers; the same attempt can never be sent twice."""
    site = consortium.sites[0]
    first, _ = site.contribution(announce(experiment))
    second, _ = site.contribution(announce(experiment, attempt=1))
    assert not np.array_equal(first["update"], second["update"])
    with pytest.raises(Exception, match="was drawn before"):
        site.contribution(announce(experiment))


def test_a_site_without_rows_still_adds_noise(consortium, experiment):
    """F17: an empty site's integers are its noise, within the block's bound and not zero."""
    site = consortium.sites[0]
    empty = dataclasses.replace(site, rows=site.rows.take(np.arange(0)))
    values, _ = empty.contribution(announce(experiment))
    assert values["update"].any()
    assert np.abs(values["update"]).max() <= experiment.agreement.blocks[0].bound


def test_the_ledger_reserves_before_the_vector_leaves(consortium, experiment):
    """Nothing is booked before exchange 3; when its frame exists the reservation is on the disk."""
    announcement = announce(experiment)
    parts = take_part(consortium, announcement)
    relay(consortium, parts, announcement, "share")
    assert kinds(consortium, 0) == []
    parts = take_part(consortium, announce(experiment, attempt=1))
    answers = relay(consortium, parts, announcement, "mask")
    assert answers[0] is not None
    assert kinds(consortium, 0) == ["reserve"]


def test_no_vector_leaves_without_a_reservation(consortium, experiment):
    """When the data set's lifetime budget is used up the site declines in exchange 3, without a word about its ledger, and nothing was booked."""
    consortium.sites[0].budget = Budget(epsilon=1e-3, delta=1e-4)
    announcement = announce(experiment)
    parts = take_part(consortium, announcement)
    answers = relay(consortium, parts, announcement, "mask")
    told = messages.decode(messages.decode(answers[0], messages.Signed).payload, messages.Decline)
    assert (told.phase, told.rule) == ("mask", "budget")
    assert not any(character.isdigit() for character in told.reason)
    assert isinstance(parts[0].refusal, BudgetExceededError)
    assert kinds(consortium, 0) == []
    assert kinds(consortium, 1) == ["reserve"]


def test_commit_follows_the_signed_survivors(consortium, experiment):
    """After exchange 5 the ledger holds the realised noise; a site that was silent at 4 keeps its reservation open."""
    announcement = announce(experiment)
    parts = take_part(consortium, announcement)
    handle = parts[3].handle
    parts[3].handle = lambda phase, frame: None if phase in ("confirm", "unmask") else handle(phase, frame)
    relay(consortium, parts, announcement, "unmask")
    assert kinds(consortium, 0) == ["reserve", "commit"]
    assert kinds(consortium, 3) == ["reserve"]
    ours, theirs = consortium.sites[0].ledger.total(), consortium.sites[3].ledger.total()
    assert theirs.open == 1
    assert ours.epsilon.upper < theirs.epsilon.upper
    commit = read_entries(consortium.sites[0].ledger.path)[-1]
    assert commit.survivors == (0, 1, 2, 3)
    assert commit.sigma_eff == experiment.agreement.plan.sigma_effective(4)


def test_commit_has_the_survivors_and_nobody_else(consortium, experiment):
    """A site that was silent before its vector left is not in the books of the others: three survivors, less noise."""
    announcement, plan = announce(experiment), experiment.agreement.plan
    parts = take_part(consortium, announcement)
    handle = parts[2].handle
    parts[2].handle = lambda phase, frame: handle(phase, frame) if phase in ("advertise", "share") else None
    relay(consortium, parts, announcement, "unmask")
    for client in (0, 1, 3):
        commit = read_entries(consortium.sites[client].ledger.path)[-1]
        assert (commit.kind, commit.survivors) == ("commit", (0, 1, 3))
        assert commit.sigma_eff == plan.sigma_effective(3) < plan.sigma_effective(4)
        assert commit.mu == plan.mu(3)
    assert kinds(consortium, 2) == []


def test_reservations_name_data_set_and_attempt(consortium, experiment):
    """Each site's reservation carries the fingerprint of its own rows' table, and which attempt it was."""
    announcement = announce(experiment, attempt=3)
    relay(consortium, take_part(consortium, announcement), announcement, "mask")
    told = []
    for site in consortium.sites.values():
        reserve = next(entry for entry in read_entries(site.ledger.path) if entry.kind == "reserve")
        assert reserve.data_set == site.rows.fingerprint
        assert (reserve.round, reserve.attempt) == (0, 3)
        told.append(reserve.data_set)
    assert len(set(told)) == len(consortium.sites)


def test_shares_are_withheld_below_the_floor(consortium, experiment):
    """With fewer survivors than the plan's floor a site refuses to open the sum, with the numbers."""
    part = Participation(consortium.sites[0], announce(experiment))
    part.accept((0, 1, 2))
    with pytest.raises(PlanError, match="site east withholds its shares: 2 survivors, of whom 1 may collude"):
        part.accept((0, 1))


def test_shares_are_withheld_inside_the_protocol(consortium, experiment):
    """The floor is checked between the quorum and the shares: a refusing site sends no frame 5."""
    announcement = announce(experiment)
    parts = take_part(consortium, announcement)

    def refuse(_survivors):
        raise PlanError("below the floor")

    parts[2].accept = refuse
    answers = relay(consortium, parts, announcement, "unmask")
    assert answers[2] is None
    assert answers[0] is not None
    assert kinds(consortium, 2) == ["reserve"]


def test_local_state_is_kept_on_commit_only(consortium, experiment):
    """Batch statistics of an attempt that did not come to its end do not stay."""
    site = consortium.sites[0]
    part = Participation(site, announce(experiment))
    before = site.local
    part.open(experiment.agreement.round_params(0, announce(experiment).model_hash))
    part.inputs()
    part._after = marker = experiment.adapter.local.__class__({})
    assert site.local is before
    part.commit()
    assert site.local is marker


def test_a_plan_needs_noise_and_ledger(consortium):
    """A site that agreed to a plan cannot be built without a source of noise or a ledger."""
    for missing in ("noise", "ledger"):
        with pytest.raises(PlanError, match="site east: a plan needs a noise source and a ledger"):
            dataclasses.replace(consortium.sites[0], **{missing: None})


@pytest.fixture
def adaptive(toy, tmp_path):
    """The four sites under a plan whose clip norm adapts within [0.01, 100]."""
    experiment = prepare(toy(private=True, adaptive=True), "run-1")
    ledgers = {name: Ledger(tmp_path / f"adaptive-{name}.jsonl") for name in experiment.train}
    yield Consortium(experiment, ledgers)
    for ledger in ledgers.values():
        ledger.close()


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (100.5, r"site east refuses: clip = 100\.5 is outside \[0\.01, 100\]"),
        (0.005, r"site east refuses: clip = 0\.005 is outside"),
        (-1.0, r"site east refuses: clip = -1\.0 is outside"),
        (np.inf, r"site east refuses: clip = inf is outside"),
        (np.nan, r"site east refuses: clip = nan is outside"),
        (None, "adapts, and none was announced, which site east did not agree to"),
    ],
)
def test_a_clip_norm_outside_the_plan_is_refused(adaptive, clip, message):
    """A server that names a clip norm which the plan does not allow, or none, gets silence, and nothing is booked."""
    announcement = dataclasses.replace(announce(adaptive.experiment), clip=clip)
    part = Participation(adaptive.sites[0], announcement)
    params = adaptive.experiment.agreement.round_params(0, announcement.model_hash, clip=clip)
    assert part.handle("advertise", params.encode()) is None
    assert isinstance(part.refusal, RoundFailedError)
    assert re.search(message, str(part.refusal))
    assert kinds(adaptive, 0) == []


def test_a_clip_norm_where_the_plan_has_its_own_is_refused(consortium, experiment):
    """Where the plan's clip norm does not adapt a round has none of its own, not even the plan's."""
    for clip in (0.5, experiment.agreement.plan.clip):
        announcement = dataclasses.replace(announce(experiment), clip=clip)
        params = experiment.agreement.round_params(0, announcement.model_hash, clip=clip)
        with pytest.raises(RoundFailedError, match=f"clip norm {clip} was announced, which site east did not agree"):
            consortium.sites[0].check(announcement, params)


def test_one_clip_norm_for_all(adaptive):
    """A site that was told another clip norm than the round's parameters bind refuses them before anything leaves."""
    told = dataclasses.replace(announce(adaptive.experiment), clip=1.0)
    parts = take_part(adaptive, told)
    parts[0] = Participation(adaptive.sites[0], dataclasses.replace(told, clip=2.0))
    answers = relay(adaptive, parts, told, "advertise")
    assert [client for client, answer in answers.items() if answer is None] == [0]
    assert "app_context is not what site east agreed to" in str(parts[0].refusal)


def test_bit_and_update_share_noise_and_bound(adaptive):
    """One more coordinate leaves, its noise drawn with the others'; an empty site sends noise there too, within the bound."""
    plan, site = adaptive.experiment.agreement.plan, adaptive.sites[0]
    empty = dataclasses.replace(site, rows=site.rows.take(np.arange(0)))
    values, _ = empty.contribution(dataclasses.replace(announce(adaptive.experiment), clip=1.0))
    assert values["update"].shape == (plan.dimension + 1,)
    assert values["update"][-1] != 0
    assert np.abs(values["update"]).max() <= adaptive.experiment.agreement.blocks[0].bound


def test_noise_is_drawn_in_steps_whatever_the_clip_norm(adaptive):
    """P14: under one seed an empty site's integers are the same at every C, so their scale is that of the C that was used."""
    agreement = dataclasses.replace(adaptive.experiment.agreement, test_seed=1)
    sent = []
    for clip in (0.05, 5.0):
        site = dataclasses.replace(
            adaptive.sites[0],
            agreement=agreement,
            noise=NoiseSource.insecure_test(1),
            rows=adaptive.sites[0].rows.take(np.arange(0)),
        )
        sent.append(site.contribution(dataclasses.replace(announce(adaptive.experiment), clip=clip))[0]["update"])
    assert np.array_equal(*sent)
    decode = adaptive.experiment.algorithm.decode
    small, large = (decode({"update": sent[0]}, clip).gradient for clip in (0.05, 5.0))
    np.testing.assert_allclose(large, 100 * small, rtol=1e-12)
