"""Ledgers of runs with Poisson batches, whole: reserved, committed, verified here and by the independent verifier, added up."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

from privacy.accounting.releases import Release, releases_epsilon
from privacy.budget import Budget
from privacy.errors import BudgetExceededError
from privacy.ledger import Ledger, compare, read_entries, total_of, verify
from privacy.ledger.chain import ChainError
from privacy.plan import Plan

FIELDS = json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8"))
PLAN = Plan.solve(**FIELDS)
SAMPLED = Plan.solve(**FIELDS, sample_rate=0.1)
REPLACED = Plan.solve(**(FIELDS | {"relation": "replace-one"}))
TRANSCRIPT = "ab" * 32


@pytest.fixture
def path(tmp_path):
    """Where a ledger may be written."""
    return tmp_path / "ledger.jsonl"


@pytest.fixture(scope="module")
def verifier():
    """The independent verifier, as a module."""
    file = Path(__file__).parents[3] / "docs" / "verify_ledger.py"
    spec = importlib.util.spec_from_file_location("verify_ledger", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reserve(ledger, number=0, *, run="run", plan=SAMPLED, data_set=None, budget=None):
    """Reserve round `number`."""
    return ledger.reserve(run=run, round=number, attempt=0, plan=plan, private=True, data_set=data_set, budget=budget)


def release(ledger, number=0, *, survivors=(0, 1, 2, 3), **rest):
    """Reserve and commit round `number`."""
    return ledger.commit(reserve(ledger, number, **rest), survivors=survivors, transcript=TRANSCRIPT)


def write(path, rounds=3, **rest):
    """Append committed rounds and return the ledger's lines."""
    with Ledger(path) as ledger:
        for number in range(rounds):
            release(ledger, number, **rest)
    return path.read_bytes().splitlines(keepends=True)


def edited(lines, number, **changes):
    """The lines with one entry changed, canonical again, and the chain mended; a value that is None is left out."""
    values = json.loads(lines[number]) | changes
    values = {name: value for name, value in values.items() if name not in changes or value is not None}
    prev, result = "0" * 64, []
    for at, line in enumerate(lines):
        told = (values if at == number else json.loads(line)) | {"prev": prev}
        text = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
        prev = hashlib.sha256(text).hexdigest()
        result.append(text + b"\n")
    return b"".join(result)


def test_a_sampled_run_is_booked_and_verified(path):
    """Reserve, commit, verify: the rate is in each line, epsilon by both routes is the accountant's, the total has a third."""
    lines = write(path, rounds=4, plan=SAMPLED, survivors=(0, 1, 2))
    entries = read_entries(path)
    assert [entry.sample_rate for entry in entries[1:]] == [0.1] * 8
    assert [b'"sample_rate"' in line for line in lines[1:]] == [True] * 8
    expected = SAMPLED.accounted_epsilon(rounds=4)
    assert entries[-1].epsilon["rdp"] == pytest.approx(expected.routes["rdp"], rel=1e-9)
    assert entries[-1].epsilon["closed_form"] == pytest.approx(expected.routes["closed_form"], rel=1e-9)
    report = verify(path)
    assert report.total.epsilon.routes == pytest.approx(dict(expected.routes), rel=1e-9)
    assert report.total.epsilon.upper == report.total.runs[0].epsilon.upper < entries[-1].epsilon["rdp"]
    assert b"sample_rate" not in b"".join(write(path.with_name("full.jsonl"), plan=PLAN))


def test_more_survivors_than_the_floor_cost_a_sampled_run_less(path):
    """Realised noise keeps its meaning: a commit takes its reservation's place at every order."""
    with Ledger(path) as ledger:
        held = reserve(ledger, plan=SAMPLED)
        at_floor = ledger.total().epsilon.routes
        ledger.commit(held, survivors=(0, 1, 2, 3), transcript=TRANSCRIPT)
        realised = ledger.total().epsilon.routes
    kinds = {Release(SAMPLED.mu(4), 0.1): 1}
    expected = releases_epsilon(kinds, 1e-4, sampler_delta=SAMPLED.draws * 2.0**-100).routes
    assert realised == pytest.approx(dict(expected), rel=1e-9)
    assert all(realised[route] < at_floor[route] for route in ("closed_form", "rdp", "pld"))


@pytest.mark.parametrize(("at", "rate"), [(1, 0.05), (2, 0.05), (1, 0.5), (2, None), (1, None)])
def test_a_wrong_rate_in_a_line_is_found(path, at, rate):
    """P21: a line that claims another rate than its plan's, or leaves it out, is named, whoever mends the chain."""
    lines = write(path, rounds=1, plan=SAMPLED)
    path.write_bytes(edited(lines, at, sample_rate=rate))
    for opener in (lambda: Ledger(path), lambda: verify(path)):
        with pytest.raises(ChainError, match=f"line {at + 1}: mu = .* do not follow from the plan"):
            opener()


def test_a_rate_in_a_full_plans_line_is_found(path):
    """P21: Poisson accounting cannot be claimed for a plan of full batches; nor can its epsilon."""
    lines = write(path, rounds=1, plan=PLAN)
    path.write_bytes(edited(lines, 1, sample_rate=0.1))
    with pytest.raises(ChainError, match=r"line 2: mu = .*, sample_rate = 0\.1 do not follow from the plan"):
        verify(path)
    told = {"closed_form": 0.01, "rdp": 0.02}
    path.write_bytes(edited(lines, 2, epsilon=told, epsilon_total=told))
    with pytest.raises(ChainError, match="line 3: epsilon by closed_form"):
        verify(path)


@pytest.mark.parametrize("route", ["closed_form", "rdp"])
def test_verify_recomputes_every_epsilon_of_sampled_rounds(path, route):
    """An epsilon that does not follow from sampled entries is found, by either route."""
    lines = write(path, plan=SAMPLED)
    told = json.loads(lines[4])["epsilon"]
    path.write_bytes(edited(lines, 4, epsilon=told | {route: told[route] * (1 - 1e-6)}))
    with pytest.raises(ChainError, match=f"line 5: epsilon by {route}"):
        verify(path)


def test_an_interrupted_sampled_reservation_counts_at_its_rate(path):
    """P22: alone it costs what one of the plan's releases costs; beside a plan of full batches it counts as one of them."""
    write(path, rounds=1, plan=SAMPLED)
    for plan, rate in ((SAMPLED, 0.1), (PLAN, 1.0)):
        with Ledger(path) as ledger:
            reserve(ledger, 5, run=plan.hash, plan=plan)
        with path.open("ab") as stream:
            stream.write(b'{"attempt"')
        Ledger(path).close()
        recovered = read_entries(path)[-1]
        assert (recovered.kind, recovered.plan, recovered.sample_rate) == ("recovered", SAMPLED.hash, rate)
        assert recovered.mu == SAMPLED.release.mu
        verify(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(edited(lines, len(lines) - 1, sample_rate=0.1))
    with pytest.raises(ChainError, match="does not count the interrupted write"):
        verify(path)


def test_a_sampled_run_ends_with_its_schedule(path):
    """T releases, attempts included, and verify finds a writer that went on; the next run has its own."""
    plan = Plan.solve(**(FIELDS | {"rounds": 3}), sample_rate=0.1)
    with Ledger(path) as ledger:
        for number in range(3):
            release(ledger, number // 2, plan=plan)
        with pytest.raises(BudgetExceededError, match=r"ledger\.jsonl: run 'run' under its plan: the 3 releases"):
            reserve(ledger, 2, plan=plan)
        reserve(ledger, 0, run="next", plan=plan)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(edited(lines, len(lines) - 1, run="run", round=2))
    with pytest.raises(ChainError, match="line 8: run 'run' has passed its plan's budget of epsilon = 1"):
        Ledger(path)


def test_a_lifetime_budget_holds_over_sampled_and_full_runs(path):
    """Of a ledger that starts with a sampled plan: Rényi at one order; what it lets through stays within epsilon."""
    lifetime, made = Budget(1.5, 1e-4), 0
    with Ledger(path) as ledger:
        for number in range(400):
            plan = PLAN if number % 4 == 3 else SAMPLED
            run = f"{plan.hash[:4]} {number // 40}"
            try:
                reserve(ledger, number, run=run, plan=plan, data_set="ab", budget=lifetime)
            except BudgetExceededError as error:
                assert "data set ab over all its runs: the next release would bring epsilon to" in str(error)  # noqa: PT017 - the loop ends here
                break
            made += 1
        total = ledger.total()
        assert 1.3 < total.epsilon.routes["rdp"] <= 1.5 < total.epsilon.routes["closed_form"]
        assert 30 < made < 400
    report = verify(path)
    assert report.total.epsilon == total.epsilon


def test_p20_ten_thousand_sampled_entries_are_replayed_once_each(path, monkeypatch):
    """P20: opening 10 000 entries computes the divergences of each kind once, and no epsilon."""
    from privacy.accounting import releases
    from privacy.ledger import spend

    wide = Plan(**FIELDS | {"rounds": 10_000}, noise_multiplier=40.0, sample_rate=0.1)
    lines = write(path, rounds=1, plan=wide)
    reserved, committed = json.loads(lines[1]), json.loads(lines[2])
    prev, data = hashlib.sha256(lines[0][:-1]).hexdigest(), [lines[0]]
    for number in range(1, 10_001, 2):
        for values in (reserved | {"seq": number}, committed | {"seq": number + 1, "closes": number}):
            line = json.dumps(values | {"prev": prev}, sort_keys=True, separators=(",", ":")).encode()
            prev = hashlib.sha256(line).hexdigest()
            data.append(line + b"\n")
    path.write_bytes(b"".join(data))
    computed, solved = [], []
    real_step, real_form = releases.rdp_add_remove, spend.rdp_epsilon
    releases._divergences.cache_clear()
    monkeypatch.setattr(releases, "rdp_add_remove", lambda *args: computed.append(1) or real_step(*args))
    monkeypatch.setattr(spend, "rdp_epsilon", lambda *args: solved.append(1) or real_form(*args))
    with Ledger(path) as ledger:
        assert (len(computed), len(solved)) == (2 * 66, 0)  # at the floor, and with four survivors
        expected = releases_epsilon({Release(wide.mu(4), 0.1): 5000}, 1e-4)
        assert ledger.total().epsilon.upper == pytest.approx(expected.upper, rel=1e-9)


@pytest.fixture
def kinds(path):
    """A ledger of sampled, full and replace-one runs, with dropouts, an open reservation and recovered writes."""
    for plan, torn in ((SAMPLED, b'{"attempt"'), (PLAN, b'{"closes"'), (REPLACED, b""), (SAMPLED, b'{"at')):
        with Ledger(path) as ledger:
            for number in range(3):
                release(ledger, number, run=plan.hash[:4], plan=plan, survivors=(0, 1, 2, 3)[: 3 + number % 2])
            reserve(ledger, 3, run=plan.hash[:4] + " open", plan=plan)
        with path.open("ab") as stream:
            stream.write(torn)
    Ledger(path).close()
    return path


def test_both_verifiers_hold_every_kind_of_entry(kinds, verifier, capsys):
    """Sampled, full, replaced, recovered, open: what we write holds in both, mixed relations included."""
    assert {(entry.kind, entry.sample_rate) for entry in read_entries(kinds)} >= {
        ("reserve", 0.1), ("commit", 0.1), ("recovered", 0.1), ("reserve", 1.0), ("commit", 1.0), ("recovered", 1.0),
    }  # fmt: skip
    report = verify(kinds)
    assert report.total.relation == "replace-one"
    assert report.total.epsilon.upper == report.total.epsilon.routes["rdp"]
    assert verifier.main(str(kinds)) == 0
    assert "HOLDS" in capsys.readouterr().out


@pytest.mark.parametrize("factor", [1 - 1e-4, 1 + 1e-4])
@pytest.mark.parametrize(
    "told", ["epsilon.closed_form", "epsilon.rdp", "epsilon_total.closed_form", "epsilon_total.rdp"]
)
def test_both_verifiers_find_an_epsilon_that_does_not_follow(kinds, verifier, capsys, told, factor):
    """In the last line, after sampled and replaced releases: either route off by a ten-thousandth is found by both."""
    lines = kinds.read_bytes().splitlines(keepends=True)
    name, route = told.split(".")
    told = json.loads(lines[-1])[name]
    kinds.write_bytes(edited(lines, len(lines) - 1, **{name: told | {route: told[route] * factor}}))
    assert verifier.main(str(kinds)) == 3
    assert f"CONTRADICTION: line {len(lines)}: {name} by {route}" in capsys.readouterr().out
    with pytest.raises(ChainError, match=f"{name} by {route}"):
        verify(kinds)


@pytest.mark.parametrize(("at", "rate"), [(1, 0.05), (2, 0.05), (2, None), (3, 0.9)])
def test_the_independent_verifier_finds_a_wrong_rate(path, verifier, capsys, at, rate):
    """Another rate than the plan's, or none: a contradiction that names the line."""
    path.write_bytes(edited(write(path, rounds=2), at, sample_rate=rate))
    assert verifier.main(str(path)) == 3
    assert f"CONTRADICTION: line {at + 1}: sample_rate" in capsys.readouterr().out


def test_a_site_and_its_server_agree_on_sampled_sums(path, tmp_path):
    """Two parties' ledgers of a sampled run agree; one that ran it with full batches has another plan."""
    write(path)
    site = tmp_path / "site.jsonl"
    write(site, data_set="ab")
    found = compare(path, site)
    assert (found.agree, found.findings) == (3, ())
    other = tmp_path / "other.jsonl"
    write(other, data_set="ab", plan=PLAN)
    assert {finding.field for finding in compare(path, other).contradictions} == {"plan", "sigma_eff"}


def test_sampled_ledgers_of_one_data_set_add_up(path, tmp_path):
    """Releases of two machines' ledgers come together, by every route."""
    other = tmp_path / "other.jsonl"
    write(path, rounds=2, data_set="ab")
    write(other, rounds=3, data_set="ab", run="next")
    (both,) = total_of([path, other])
    sampler = 5 * SAMPLED.draws * 2.0**-100
    expected = releases_epsilon({Release(SAMPLED.mu(4), 0.1): 5}, 1e-4, sampler_delta=sampler)
    assert both.total.epsilon.routes == pytest.approx(dict(expected.routes), rel=1e-9)
    assert [run.epsilon.routes.keys() for run in both.total.runs] == [expected.routes.keys()] * 2
