import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.accounting.gaussian import closed_form
from privacy.budget import Budget
from privacy.errors import AccountingError, BudgetExceededError, LedgerError, PlanError
from privacy.ledger import Ledger, read_entries, verify
from privacy.ledger.chain import ChainError
from privacy.ledger.head import head_path
from privacy.plan import Plan

ROOT = Path(__file__).parents[3]
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
FIELDS = json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8"))
PLAN = Plan.solve(**FIELDS)
TRANSCRIPT = "ab" * 32


@pytest.fixture
def path(tmp_path):
    """Where a ledger may be written."""
    return tmp_path / "ledger.jsonl"


def reserve(ledger, number=0, *, run="run", plan=PLAN, private=True, data_set=None, budget=None):
    """Reserve round `number`."""
    return ledger.reserve(
        run=run, round=number, attempt=0, plan=plan, private=private, data_set=data_set, budget=budget
    )


def release(ledger, number=0, *, survivors=(0, 1, 2, 3), **rest):
    """Reserve and commit round `number`."""
    return ledger.commit(reserve(ledger, number, **rest), survivors=survivors, transcript=TRANSCRIPT)


def write(path, rounds=3, signer=SIGNER, **rest):
    """Write a ledger of committed rounds and return its lines."""
    with Ledger(path, signer=signer) as ledger:
        for number in range(rounds):
            release(ledger, number, **rest)
    return path.read_bytes().splitlines(keepends=True)


def test_committed_rounds_add_up_to_the_closed_form(path):
    """Each entry has the run's epsilon so far by both routes, at the noise that the survivors gave."""
    with Ledger(path, signer=SIGNER) as ledger:
        for number, present in enumerate([(0, 1, 2, 3), (0, 1, 3), (1, 2, 3)]):
            entry = release(ledger, number, survivors=present)
        total = ledger.total()
    squares = PLAN.mu(4) ** 2 + 2 * PLAN.mu(3) ** 2
    assert entry.epsilon["closed_form"] == pytest.approx(closed_form(squares, 1e-4), rel=1e-9)
    assert entry.epsilon["closed_form"] < entry.epsilon["rdp"]
    assert entry.sigma_eff == PLAN.sigma_effective(3)
    assert total.epsilon.upper == pytest.approx(entry.epsilon["closed_form"], rel=1e-12)
    assert (total.private, total.open, total.delta) == (True, 0, 1e-4)


def test_whole_plan_agrees_with_the_accountant(path):
    """A run whose every round is at the floor spends what `epsilon` says for its noise, and one more round is refused."""
    from privacy.accounting import epsilon

    with Ledger(path) as ledger:
        for number in range(PLAN.rounds):
            entry = release(ledger, number, survivors=(0, 1, 2))
        with pytest.raises(BudgetExceededError):
            reserve(ledger, PLAN.rounds)
    asked = epsilon(noise_multiplier=PLAN.noise_multiplier, steps=40, delta=1e-4)
    assert entry.epsilon["closed_form"] == pytest.approx(asked.upper, rel=1e-9)
    assert entry.epsilon["rdp"] == pytest.approx(asked.routes["rdp"], rel=1e-9)


def test_lines_are_canonical_and_chained(path):
    """Each line is RFC 8785 JSON, and its prev is the SHA-256 of the line before it."""
    import rfc8785

    lines = write(path)
    prev = "0" * 64
    for number, line in enumerate(lines):
        values = json.loads(line)
        assert rfc8785.dumps(values) + b"\n" == line
        assert (values["seq"], values["prev"]) == (number, prev)
        prev = hashlib.sha256(line[:-1]).hexdigest()
    assert [json.loads(line)["kind"] for line in lines] == ["plan"] + ["reserve", "commit"] * 3
    assert {"plan", "run", "round", "survivors", "sigma_eff", "mu", "epsilon", "transcript", "versions"} <= json.loads(
        lines[2]
    ).keys()


def test_spend_never_falls(path):
    """From commit to commit, over failures, runs and reopening, no epsilon of the total is below an earlier one."""
    seen = []
    for number in range(4):
        with Ledger(path, signer=SIGNER) as ledger:
            reserve(ledger, number)
            release(ledger, number, run=f"run{number % 2}")
            seen.append(ledger.total().epsilon.upper)
    assert seen == sorted(seen)
    assert len(set(seen)) == len(seen)


def test_second_run_continues_the_ledger(path):
    """Five runs on the same patients add up; each run's own epsilon starts at nothing."""
    for run in range(5):
        with Ledger(path, signer=SIGNER) as ledger:
            entry = release(ledger, 0, run=f"run{run}", data_set="ab")
    assert entry.epsilon["closed_form"] == pytest.approx(closed_form(PLAN.mu(4) ** 2, 1e-4), rel=1e-9)
    assert entry.epsilon_total["closed_form"] == pytest.approx(closed_form(5 * PLAN.mu(4) ** 2, 1e-4), rel=1e-9)
    report = verify(path)
    assert [run.run for run in report.total.runs] == [f"run{run}" for run in range(5)]
    assert report.total.epsilon.upper == pytest.approx(entry.epsilon_total["closed_form"], rel=1e-12)
    assert (report.rounds, report.head) == (5, "ok")


def test_plan_budget_limits_one_run_and_the_data_sets_limits_all(path):
    """A second run has the plan's whole budget, unless the data set's own is used up; a refusal books nothing."""
    plan = Plan.solve(**(FIELDS | {"rounds": 2}))
    lifetime = Budget(1.3, 1e-4)
    with Ledger(path) as ledger:
        for number in range(2):
            release(ledger, number, plan=plan, survivors=(0, 1, 2), budget=lifetime)
        before = path.read_bytes()
        with pytest.raises(BudgetExceededError):
            reserve(ledger, 2, plan=plan)
        assert path.read_bytes() == before
        release(ledger, 0, plan=plan, run="second", survivors=(0, 1, 2), budget=lifetime)
        with pytest.raises(BudgetExceededError):
            reserve(ledger, 1, plan=plan, run="second", budget=lifetime)
        release(ledger, 1, plan=plan, run="second", survivors=(0, 1, 2))
        assert ledger.total().epsilon.upper > 1.3


def test_p17_commit_below_the_floor_is_refused(path):
    """P17: two survivors where the plan counts on three: the reservation stands, at the floor."""
    with Ledger(path) as ledger:
        reservation = reserve(ledger)
        before = ledger.total()
        with pytest.raises(PlanError, match="2 survivors"):
            ledger.commit(reservation, survivors=(0, 1), transcript=TRANSCRIPT)
        assert ledger.total() == before
        assert before.open == 1


@pytest.mark.parametrize("survivors", [(0, 0, 1, 2), (-1, 0, 1), (0, 1, 1 << 64)])
def test_survivors_that_are_no_ids_are_refused(path, survivors):
    """A repeated, negative or too large id is refused; 2**64 - 1 is kept exactly."""
    with Ledger(path) as ledger:
        reservation = reserve(ledger)
        with pytest.raises(LedgerError, match="survivors"):
            ledger.commit(reservation, survivors=survivors, transcript="")
        ledger.commit(reservation, survivors=(1, 2, (1 << 64) - 1), transcript="")
    assert read_entries(path)[-1].survivors == (1, 2, (1 << 64) - 1)


def test_commit_twice_or_elsewhere_is_refused(path, tmp_path):
    """A reservation is closed once, and only in its own ledger; nothing is written for the second."""
    with Ledger(path) as ledger, Ledger(tmp_path / "other.jsonl") as other:
        reservation = reserve(ledger)
        reserve(other, 7)
        with pytest.raises(LedgerError, match="no open reservation"):
            other.commit(reservation, survivors=(0, 1, 2), transcript="")
        ledger.commit(reservation, survivors=(0, 1, 2), transcript="")
        before = path.read_bytes()
        with pytest.raises(LedgerError, match="no open reservation"):
            ledger.commit(reservation, survivors=(0, 1, 2), transcript="")
        assert path.read_bytes() == before


def test_reservation_outlives_the_open_ledger(path):
    """A site may close its ledger between reserve and commit, and commit when it opened it again."""
    with Ledger(path) as ledger:
        reservation = reserve(ledger)
    with Ledger(path) as ledger:
        ledger.commit(reservation, survivors=(0, 1, 2, 3), transcript=TRANSCRIPT)
        assert ledger.total().open == 0


@pytest.mark.parametrize("transcript", ["xyz", "abc", "AB", "ab" * 65])
def test_transcript_must_be_hex(path, transcript):
    """A transcript that is no hash is refused before anything is written."""
    with Ledger(path) as ledger:
        reservation = reserve(ledger)
        before = path.read_bytes()
        with pytest.raises(LedgerError, match="transcript"):
            ledger.commit(reservation, survivors=(0, 1, 2), transcript=transcript)
        assert path.read_bytes() == before
        ledger.commit(reservation, survivors=(0, 1, 2), transcript=TRANSCRIPT)


@pytest.mark.parametrize("number", [-1, 1.0, True, 1 << 53])
def test_round_must_be_a_count(path, number):
    """A round that is no count is refused by name."""
    with Ledger(path) as ledger, pytest.raises(LedgerError, match="round"):
        reserve(ledger, number)


def test_one_ledger_is_for_one_data_set(path):
    """Another data set's release is refused: its patients would get a budget that others used."""
    with Ledger(path) as ledger:
        release(ledger, 0, data_set="aa")
        with pytest.raises(LedgerError, match="data set aa, not of bb"):
            reserve(ledger, 1, data_set="bb")
        with pytest.raises(LedgerError, match="not of None"):
            reserve(ledger, 1)


def test_what_is_not_private_is_named(path):
    """A run under a test seed counts, is listed, and makes the whole total not private."""
    with Ledger(path) as ledger:
        release(ledger, 0, run="real")
        assert ledger.total().private
        entry = release(ledger, 0, run="seeded", private=False)
        total = ledger.total()
    assert not entry.private
    assert not total.private
    assert total.not_private == ("seeded",)
    assert [run.private for run in total.runs] == [True, False]


@pytest.mark.parametrize("seeded", [{0}, {1}, {2}, {0, 2}])
def test_a_seeded_run_counts_in_full_wherever_it_stands(path, seeded):
    """Before, between or after private runs, a release under a test seed counts as much, and the total is not private."""
    with Ledger(path) as ledger:
        for number in range(3):
            release(ledger, 0, run=f"run {number}", private=number not in seeded)
        total = ledger.total()
    assert not total.private
    assert total.not_private == tuple(f"run {number}" for number in sorted(seeded))
    assert total.epsilon.upper == pytest.approx(closed_form(3 * PLAN.mu(4) ** 2, 1e-4), rel=1e-9)
    assert verify(path).total == total


def test_an_open_seeded_reservation_makes_the_total_not_private(path):
    """What may have left under a test seed is told without a commit too."""
    with Ledger(path) as ledger:
        release(ledger, 0)
        reserve(ledger, 1, private=False)
        assert not ledger.total().private


def test_runs_under_different_relations_are_brought_to_one(path):
    """Add-remove doubles mu to become replace-one; a total never mixes units of unlike meaning."""
    other = Plan.solve(**(FIELDS | {"relation": "replace-one"}))
    with Ledger(path) as ledger:
        release(ledger, 0, run="first")
        assert (ledger.total().unit, ledger.total().relation) == ("record", "add-remove")
        release(ledger, 0, run="second", plan=other)
        total = ledger.total()
    assert (total.unit, total.relation) == ("record", "replace-one")
    squares = 4 * PLAN.mu(4) ** 2 + other.mu(4) ** 2
    assert total.epsilon.upper == pytest.approx(closed_form(squares, 1e-4), rel=1e-9)
    assert verify(path).total == total


def test_total_at_another_delta(path):
    """Epsilon is for the delta asked, and a delta that means nothing raises."""
    write(path)
    with Ledger(path, signer=SIGNER) as ledger:
        assert ledger.total(1e-6).epsilon.upper > ledger.total(1e-4).epsilon.upper
        for delta in (0.0, 2.0, float("nan")):
            with pytest.raises(AccountingError, match="delta"):
                ledger.total(delta)


def test_empty_ledger_has_spent_nothing(path):
    """A new ledger totals zero, and verifies."""
    with Ledger(path, signer=SIGNER) as ledger:
        assert ledger.total().epsilon.upper == 0
    assert verify(path).entries == 0
    with Ledger(path, signer=SIGNER) as ledger:
        release(ledger)


def test_second_opener_is_refused(path):
    """While a ledger is open nobody else can open or verify it; the error names the file."""
    with Ledger(path):
        for attempt in (lambda: Ledger(path), lambda: verify(path)):
            with pytest.raises(LedgerError, match=r"ledger\.jsonl: in use"):
                attempt()
    Ledger(path).close()


def test_second_process_is_refused(path):
    """Another process cannot open it either."""
    code = f"from privacy.ledger import Ledger; Ledger({str(path)!r})"
    with Ledger(path):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "in use" in done.stderr


def test_closed_or_forked_ledger_does_not_write(path, monkeypatch):
    """After close, and in a forked child, an append is refused instead of tearing the file."""
    ledger = Ledger(path)
    reserve(ledger)
    before = path.read_bytes()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(LedgerError, match="its parent's"):
        reserve(ledger)
    monkeypatch.undo()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        reserve(ledger)
    assert path.read_bytes() == before


def test_failed_write_breaks_the_ledger_and_is_recovered(path, monkeypatch):
    """A full disk leaves a torn line: the open ledger refuses to go on, the next one recovers it as a reservation."""
    with Ledger(path) as ledger:
        release(ledger)
        real = os.pwrite

        def half(descriptor, data, offset):
            real(descriptor, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(LedgerError, match="No space left"):
            reserve(ledger, 1)
        monkeypatch.undo()
        with pytest.raises(LedgerError, match="broken by a failed write"):
            reserve(ledger, 1)
    with Ledger(path) as ledger:
        assert ledger.total().epsilon.upper == pytest.approx(
            closed_form(PLAN.mu(4) ** 2 + PLAN.mu(3) ** 2, 1e-4), rel=1e-9
        )


def test_paths_that_cannot_be_written_are_named(tmp_path):
    """A missing folder and a folder in place of the file are errors that name the path."""
    for bad in (tmp_path / "missing" / "ledger.jsonl", tmp_path):
        with pytest.raises(LedgerError, match=str(bad)):
            Ledger(bad)
        with pytest.raises(LedgerError, match=str(bad)):
            verify(bad / "ledger.jsonl")


KILLED = """
import os, signal, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from privacy.ledger import Ledger
from privacy.plan import Plan
plan = Plan.from_json(sys.argv[2])
ledger = Ledger(sys.argv[1], signer=Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
for number in range(2):
    reservation = ledger.reserve(run="run", round=number, attempt=0, plan=plan, private=True, data_set=None)
    if number:
        os.kill(os.getpid(), signal.SIGKILL)
    ledger.commit(reservation, survivors=(0, 1, 2, 3), transcript="")
"""


def test_p22_crash_between_reserve_and_commit_counts_as_spent(path):
    """P22: a process killed with signal 9 after reserving leaves the spend at the floor, and the lock free."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), PLAN.to_json()], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    with Ledger(path, signer=SIGNER) as ledger:
        total = ledger.total()
        assert total.open == 1
        assert total.epsilon.upper == pytest.approx(closed_form(PLAN.mu(4) ** 2 + PLAN.mu(3) ** 2, 1e-4), rel=1e-9)
        release(ledger, 1)
    assert verify(path).head == "ok"


@pytest.mark.parametrize("keep", [1, 4, 12, 200, -1])
@pytest.mark.parametrize("victim", [3, 4])
def test_p22_torn_line_is_recovered(path, victim, keep):
    """P22: a reserve torn anywhere counts at the floor; a torn commit leaves its reservation and counts no more."""
    lines = write(path, rounds=2, signer=None)
    torn = lines[victim][:-1][:keep]
    path.write_bytes(b"".join(lines[:victim]) + torn)
    assert verify(path).torn
    with Ledger(path) as ledger:
        total = ledger.total()
        release(ledger, 5)
    is_known_commit = victim == 4 and torn.startswith(b'{"closes":')
    floors = 1 if victim == 3 or is_known_commit else 2  # a single byte does not tell a commit from a reserve
    assert total.epsilon.upper == pytest.approx(closed_form(PLAN.mu(4) ** 2 + floors * PLAN.mu(3) ** 2, 1e-4), rel=1e-9)
    report = verify(path)
    assert not report.torn
    kept = read_entries(path)[victim]
    assert kept.kind == "recovered"
    import base64

    assert base64.b64decode(kept.torn) == torn


def test_p22_interrupted_recovery_is_recovered(path):
    """P22: a recovery that was torn itself, at any byte, still counts the first reservation."""
    lines = write(path, rounds=2, signer=None)
    torn = b"".join(lines[:3]) + lines[3][:100]
    path.write_bytes(torn)
    Ledger(path).close()
    recovered = path.read_bytes().splitlines(keepends=True)[3]
    for cut in (1, 50, 150, len(recovered) - 1):
        mixed = recovered[:cut] + lines[3][cut:100]
        path.write_bytes(b"".join(lines[:3]) + mixed)
        with Ledger(path) as ledger:
            assert ledger.total().epsilon.upper == pytest.approx(
                closed_form(PLAN.mu(4) ** 2 + PLAN.mu(3) ** 2, 1e-4), rel=1e-9
            )


def test_torn_first_line_counts_nothing(path):
    """Before any plan stands in the ledger nothing can have been released."""
    path.write_bytes(b'{"attempt"')
    with Ledger(path, signer=SIGNER) as ledger:
        assert ledger.total().epsilon.upper == 0
        release(ledger)
    assert verify(path).rounds == 1


def test_garbage_at_the_end_is_not_recovered(path):
    """More bytes than any entry has are not an interrupted write."""
    lines = write(path, signer=None)
    path.write_bytes(b"".join(lines) + b"x" * (1 << 20) + b"x")
    for reader in (Ledger, verify):
        with pytest.raises(ChainError, match="line 8: more than 1048576 bytes"):
            reader(path)


def test_head_one_behind_is_repaired(path):
    """A crash between the entry and its head leaves the head one behind: verify says so, opening repairs it."""
    write(path, rounds=1)
    old = head_path(path).read_bytes()
    with Ledger(path, signer=SIGNER) as ledger:
        reserve(ledger, 1)
    head_path(path).write_bytes(old)
    assert verify(path).head == "behind"
    Ledger(path, signer=SIGNER).close()
    assert verify(path).head == "ok"
    with Ledger(path, signer=SIGNER) as ledger:
        reserve(ledger, 2)
    head_path(path).write_bytes(old)
    for opener in (lambda: Ledger(path, signer=SIGNER), lambda: verify(path)):
        with pytest.raises(ChainError, match="not signed"):
            opener()


def rechain(lines):
    """Rewrite prev and seq so that the chain holds again, as somebody without the key could."""
    prev, result = "0" * 64, []
    for number, line in enumerate(lines):
        values = json.loads(line) | {"seq": number, "prev": prev}
        import rfc8785

        text = rfc8785.dumps(values)
        prev = hashlib.sha256(text).hexdigest()
        result.append(text + b"\n")
    return result


def edited(lines, number=2, **changes):
    """The lines with one entry changed."""
    import rfc8785

    changed = rfc8785.dumps(json.loads(lines[number]) | changes) + b"\n"
    return [*lines[:number], changed, *lines[number + 1 :]]


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda lines: edited(lines, 2, transcript="cd" * 32), "line 4: the chain is broken"),
        (lambda lines: edited(lines, 6, transcript="cd" * 32), "line 7: a fork"),
        (lambda lines: lines[:2] + lines[3:], "line 3: seq is 3"),
        (lambda lines: lines[:3] + lines[5:], "line 4: seq is 5"),
        (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "line 4: seq is 4"),
        (lambda lines: lines[:-2], "tail was cut"),
        (lambda lines: lines[:-1], "tail was cut"),
        (lambda _: [], "tail was cut"),
        (lambda lines: rechain(edited(lines, 2, transcript="cd" * 32)), "line 7: a fork"),
        (lambda lines: rechain(lines[:3] + lines[5:]), "line (5: closes = 5|4: epsilon by closed_form)"),
        (lambda lines: rechain(lines[:3]) + rechain(lines)[3:5], "tail was cut"),
        (lambda lines: [*lines[:3], b"\n", *lines[3:]], "line 4: not JSON"),
        (lambda lines: [*lines[:2], lines[2].replace(b'"v":1', b'"v":1,"v":1'), *lines[3:]], "line 3: not JSON.*twice"),
        (lambda lines: edited(lines, 2, extra=1), "line 3: keys missing or unknown: 'extra'"),
        (lambda lines: edited(lines, 2, mu=-1), "line 3: mu = -1"),
    ],
)
def test_p21_tampering_is_found_and_named(path, tamper, message):
    """P21: a line edited, removed, reordered or added, the tail cut: found when opened and when verified, with its line."""
    lines = write(path)
    path.write_bytes(b"".join(tamper(lines)))
    for opener in (lambda: Ledger(path, signer=SIGNER), lambda: verify(path)):
        with pytest.raises(ChainError, match=f"ledger.jsonl.*{message}"):
            opener()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mu": 1e-9}, "line 3: mu = 1e-09 and sigma_eff"),
        ({"survivors": ["0", "1"]}, "do not follow from the plan"),
        ({"survivors": ["0", "1", "2"]}, "do not follow from the plan"),
        ({"closes": 0}, "closes = 0 is no open reservation"),
        ({"round": 9}, "does not agree with the reservation"),
        ({"private": False}, "does not agree with the reservation"),
        ({"plan": "ab" * 32}, "does not stand before its first use"),
    ],
)
def test_p21_entries_that_contradict_the_plan_are_found(path, change, message):
    """P21: even a forger who mends the chain cannot book less than the plan and survivors say."""
    lines = rechain(edited(write(path, signer=None), 2, **change))
    path.write_bytes(b"".join(lines))
    with pytest.raises(ChainError, match=message):
        Ledger(path)


@pytest.mark.parametrize("name", ["epsilon", "epsilon_total"])
@pytest.mark.parametrize("route", ["closed_form", "rdp"])
def test_verify_recomputes_every_epsilon(path, name, route):
    """An epsilon that does not follow from the entries is found, by either route."""
    lines = write(path, signer=None)
    told = json.loads(lines[4])[name]
    path.write_bytes(b"".join(rechain(edited(lines, 4, **{name: told | {route: told[route] * (1 - 1e-6)}}))))
    with pytest.raises(ChainError, match=f"line 5: {name} by {route}"):
        verify(path)


def test_p21_two_heads_expose_a_fork(path, tmp_path):
    """P21: two parties' signed heads that do not lie on one chain: both are named, or the one that leaves it."""
    write(path, rounds=2)
    fork = tmp_path / "fork" / "ledger.jsonl"
    fork.parent.mkdir()
    write(fork, rounds=2, survivors=(0, 1, 2), signer=Ed25519PrivateKey.from_private_bytes(bytes(32)))
    other = head_path(fork)
    own = head_path(path)
    with pytest.raises(ChainError, match=rf"line 5: a fork: {own} \(writer\) and {other} \(writer\) sign different"):
        verify(path, heads=[other])
    with Ledger(path, signer=SIGNER) as ledger:
        reserve(ledger, 2)
    with pytest.raises(ChainError, match=rf"line 5: a fork: {other} \(writer\) signs another entry"):
        verify(path, heads=[other])
    assert verify(path, heads=[head_path(path)]).head == "ok"
    with pytest.raises(LedgerError, match="no such file"):
        verify(path, heads=[tmp_path / "nowhere.json"])


def test_earlier_head_of_another_party_lies_on_the_chain(path, tmp_path):
    """A site that signed an earlier entry agrees with a ledger that went on."""
    write(path, rounds=1)
    early = tmp_path / "site.head.json"
    early.write_bytes(head_path(path).read_bytes())
    write(path, rounds=1, run="second")
    assert verify(path, heads=[early]).head == "ok"


def test_head_of_another_key_or_removed_is_refused(path):
    """A ledger cannot be taken over by another signer, nor go on without its head, nor without its signer."""
    write(path)
    with pytest.raises(ChainError, match="not by this signer"):
        Ledger(path, signer=Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with pytest.raises(LedgerError, match="appending needs its signer"):
        Ledger(path)
    head_path(path).unlink()
    with pytest.raises(ChainError, match="is missing"):
        Ledger(path, signer=SIGNER)
    assert verify(path).head == "missing"


def test_opening_checks_neither_more_nor_less_than_once(path):
    """Opening again leaves the bytes as they were."""
    write(path)
    before = path.read_bytes(), head_path(path).read_bytes()
    Ledger(path, signer=SIGNER).close()
    assert (path.read_bytes(), head_path(path).read_bytes()) == before


def test_p20_ten_thousand_entries_are_replayed_once_each(path, monkeypatch):
    """P20: opening 10 000 entries decodes each once and computes no epsilon; an append computes its own two only."""
    from privacy.ledger import chain, spend

    small = Plan.solve(**(FIELDS | {"rounds": 10_000}))
    lines = write(path, rounds=1, signer=None, plan=small)
    reserved, committed = json.loads(lines[1]), json.loads(lines[2])
    body, prev, data = lines[0][:-1], hashlib.sha256(lines[0][:-1]).hexdigest(), [lines[0]]
    for number in range(1, 10_001, 2):
        for values in (reserved | {"seq": number}, committed | {"seq": number + 1, "closes": number}):
            line = json.dumps(values | {"prev": prev}, sort_keys=True, separators=(",", ":")).encode()
            prev = hashlib.sha256(line).hexdigest()
            data.append(line + b"\n")
    assert body.startswith(b'{"body"')
    path.write_bytes(b"".join(data))
    decoded, solved = [], []
    real_decode, real_form = chain.decode, spend.closed_form
    monkeypatch.setattr(chain, "decode", lambda line: decoded.append(1) or real_decode(line))
    monkeypatch.setattr(spend, "closed_form", lambda *args: solved.append(1) or real_form(*args))
    with Ledger(path) as ledger:
        assert (len(decoded), len(solved)) == (10_001, 0)
        assert ledger.total().epsilon.upper == pytest.approx(
            closed_form(5000 * small.mu(4) ** 2, small.delta), rel=1e-9
        )
        reserve(ledger, 5000, plan=small)
        assert len(solved) <= 4
        assert ledger.total().open == 1


def test_p19_whose_budget_is_used_up_is_said(path):
    """P19: the refusal names the ledger, and whether the run's plan or the data set's lifetime refuses."""
    plan = Plan.solve(**(FIELDS | {"rounds": 1}))
    with Ledger(path) as ledger:
        release(ledger, 0, plan=plan, survivors=(0, 1, 2), data_set="ab")
        with pytest.raises(BudgetExceededError, match=r"ledger\.jsonl: run 'run' under its plan: .*epsilon"):
            reserve(ledger, 1, plan=plan, data_set="ab")
        with pytest.raises(BudgetExceededError, match=r"ledger\.jsonl: data set ab over all its runs: .*epsilon"):
            reserve(ledger, 0, run="next", plan=plan, data_set="ab", budget=Budget(1.0, 1e-4))


def test_p19_tiny_releases_after_exhaustion_are_refused(path):
    """P19: a plan with a thousand times the noise does not get past a lifetime budget that is used up."""
    plan = Plan.solve(**(FIELDS | {"rounds": 1}))
    lifetime = Budget(1.0, 1e-4, sampler_delta=1e-20)
    quiet = Plan.solve(**(FIELDS | {"rounds": 1, "epsilon": 1e-5}))
    with Ledger(path) as ledger:
        release(ledger, 0, plan=plan, survivors=(0, 1, 2), budget=lifetime)
        for number in range(3):
            with pytest.raises(BudgetExceededError, match="over all its runs"):
                reserve(ledger, number, run="quiet", plan=quiet, budget=lifetime)
        assert ledger.total().epsilon.upper <= 1.0


def test_lifetime_budget_pays_for_the_noise_that_was_drawn(path):
    """A budget made without the sampler's part is tightened by what the ledger's own noise may cost."""
    wide = Plan.solve(**(FIELDS | {"rounds": 1, "dimension": 10**9, "delta": 1e-9, "epsilon": 20.0}))
    exact = Budget(wide.accounted_epsilon().upper, 1e-9)
    with Ledger(path) as ledger:
        reserve(ledger, 0, plan=wide, budget=exact)
        assert ledger.total().epsilon.upper <= exact.epsilon
    assert Budget(wide.epsilon, 1e-9, sampler_delta=wide.draws * 2.0**-100).mu_squared < Budget(20.0, 1e-9).mu_squared
    with Ledger(path.with_name("other.jsonl")) as ledger, pytest.raises(BudgetExceededError, match="sampler alone"):
        reserve(ledger, 0, plan=PLAN, budget=Budget(80.0, 1e-4))


def test_entry_longer_than_any_reader_takes_is_not_written(path):
    """More survivors than fit into a line are refused before anything is written; the reservation stands."""
    plan = Plan.solve(**(FIELDS | {"sites": 30_000, "bits": 64, "delta": 1e-8}))
    with Ledger(path) as ledger:
        held = reserve(ledger, 0, plan=plan)
        before = path.read_bytes()
        with pytest.raises(LedgerError, match="longer than 262144"):
            ledger.commit(held, survivors=range(10**18, 10**18 + 30_000), transcript="")
        assert path.read_bytes() == before
        ledger.commit(held, survivors=range(30_000), transcript="")
    assert verify(path).rounds == 1
