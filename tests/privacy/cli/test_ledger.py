import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.accounting.gaussian import as_text
from privacy.ledger import Ledger
from privacy.plan import Plan

PLAN = Plan.solve(
    unit="record",
    relation="add-remove",
    sites=4,
    dropouts=1,
    colluders=1,
    clip=1.0,
    records_per_site=303,
    dimension=40,
    rounds=40,
    delta=1e-4,
    epsilon=1.0,
    divisor=720.0,
)


@pytest.fixture
def ledger(tmp_path):
    """A signed ledger of one private and one seeded run, with an open reservation."""
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, signer=Ed25519PrivateKey.from_private_bytes(bytes(range(32)))) as ledger:
        for run, private in (("real", True), ("seeded", False)):
            held = ledger.reserve(run=run, round=0, attempt=0, plan=PLAN, private=private, data_set="ab")
            ledger.commit(held, survivors=(0, 1, 2), transcript="")
        ledger.reserve(run="real", round=1, attempt=0, plan=PLAN, private=True, data_set="ab")
    return path


def test_verify_reports_and_exits_0(call, ledger):
    """A ledger in order exits 0; JSON has the total by both routes, the runs, and what is not private."""
    code, out, _ = call("ledger", "verify", ledger, "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["entries"], report["rounds"], report["head"], report["torn"], report["open"]) == (
        6,
        2,
        "ok",
        False,
        1,
    )
    assert report["private"] is False
    assert [(run["run"], run["private"]) for run in report["runs"]] == [("real", True), ("seeded", False)]
    assert report["epsilon"] == report["routes"]["closed_form"] < report["routes"]["rdp"]
    code, out, _ = call("ledger", "verify", ledger)
    assert code == 0
    assert "signed head agrees" in out
    assert "NOT PRIVATE: epsilon covers nothing that was released by seeded" in out


def test_rounds_that_differ_by_one_site_are_told(call, tmp_path):
    """S29: verify and total name run, rounds and site, in words and as JSON, and keep runs apart."""
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        for run, number, survivors in (
            ("a", 0, (0, 1, 2, 3)),
            ("b", 0, (0, 1, 3)),
            ("a", 1, (0, 1, 3)),
            ("a", 2, (0, 1, 2, 3)),
        ):
            held = ledger.reserve(run=run, round=number, attempt=0, plan=PLAN, private=True, data_set="ab")
            ledger.commit(held, survivors=survivors, transcript="")
    for command in ("verify", "total"):
        code, out, _ = call("ledger", command, path)
        assert code == 0
        assert out.count("differ by site") == 1
        assert "run a: the survivors of rounds 0 and 1 differ by site 2 alone" in out
        _, out, _ = call("ledger", command, path, "--json")
        assert json.loads(out)["differences"] == [{"run": "a", "site": "2", "rounds": [0, 1]}]


def test_verify_exits_2_when_tampered(call, ledger):
    """P21: one changed digit, or a cut tail, exits 2 and names file and line; stdout stays empty."""
    text = ledger.read_bytes()
    ledger.write_bytes(text.replace(b'"round":0', b'"round":9', 1))
    code, out, err = call("ledger", "verify", ledger, "--json")
    assert (code, out) == (2, "")
    assert "ledger.jsonl, line 3" in err
    ledger.write_bytes(b"".join(text.splitlines(keepends=True)[:-1]))
    for command in ("verify", "total"):
        code, out, err = call("ledger", command, ledger)
        assert (code, out) == (2, "")
        assert "tail was cut" in err


@pytest.mark.parametrize("command", ["verify", "show", "total"])
def test_what_is_no_ledger_is_one_line_of_error(call, tmp_path, command):
    """A folder exits 1; a line nested beyond any entry is foreign bytes and exits 2."""
    code, out, err = call("ledger", command, tmp_path)
    assert (code, out, err) == (1, "", f"privacy: {tmp_path}: cannot be read: Is a directory\n")
    path = tmp_path / "ledger.jsonl"
    path.write_text("[" * 200_000 + "\n")
    code, out, err = call("ledger", command, path)
    assert (code, out) == (2, "")
    assert err == f"privacy: tampered: {path}, line 1: not an entry: it is nested too deeply\n"


def test_endless_epsilon_is_null_and_no_bound(call, tmp_path):
    """Once the noise sampler alone may cost delta, JSON says null and the text says that there is no bound."""
    path = tmp_path / "ledger.jsonl"
    plan = dataclasses.replace(PLAN, epsilon=30.0, noise_multiplier=1.0, rounds=1)
    with Ledger(path) as ledger:
        for number in range(60):
            ledger.reserve(run=f"run {number}", round=0, attempt=0, plan=plan, private=True, data_set="ab")
    for command in ("verify", "total", "show"):
        code, out, _ = call("ledger", command, path, "--json")
        answer = json.loads(out, parse_constant=pytest.fail)
        last = answer["entries"][-1]["epsilon_total"] if command == "show" else answer["routes"]
        assert (code, last) == (0, {"closed_form": None, "rdp": None})
        code, out, _ = call("ledger", command, path)
        assert code == 0
        assert "inf" not in out
        assert command == "show" or "epsilon has no bound at delta = 0.0001 over 60 runs" in out
    assert answer["entries"][1]["epsilon"]["closed_form"] > 1


def test_verify_says_what_it_cannot_see(call, ledger):
    """Without a head the audit says that a cut tail cannot be seen; an interrupted write is told too."""
    ledger.with_name("ledger.head.json").unlink()
    ledger.write_bytes(ledger.read_bytes() + b'{"att')
    code, out, _ = call("ledger", "verify", ledger)
    assert code == 0
    assert "cannot be seen" in out
    assert "interrupted write" in out


def test_verify_takes_other_heads(call, ledger, tmp_path):
    """P21: another party's head that does not lie on the chain exits 2."""
    from privacy.ledger.head import sign_head

    other = tmp_path / "site.head.json"
    other.write_bytes(sign_head(2, "ab" * 32, Ed25519PrivateKey.from_private_bytes(bytes(32))))
    code, _, err = call("ledger", "verify", ledger, "--head", other)
    assert code == 2
    assert "fork" in err


def test_show_lists_every_entry(call, ledger):
    """One line an entry, and the same as JSON."""
    code, out, _ = call("ledger", "show", ledger)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == [
        "plan",
        "reserve",
        "commit",
        "reserve",
        "commit",
        "reserve",
    ]
    listed = json.loads(call("ledger", "show", ledger, "--json")[1])["entries"]
    assert [entry["seq"] for entry in listed] == list(range(6))
    assert listed[2]["survivors"] == [0, 1, 2]


def test_total_adds_up_at_the_delta_asked(call, ledger):
    """A smaller delta gives a larger epsilon; words and JSON agree."""
    own = json.loads(call("ledger", "total", ledger, "--json")[1])
    smaller = json.loads(call("ledger", "total", ledger, "--delta", "1e-6", "--json")[1])
    assert own["delta"] == 1e-4
    assert smaller["epsilon"] > own["epsilon"]
    assert f"epsilon <= {as_text(own['epsilon'])} at delta = 0.0001" in call("ledger", "total", ledger)[1]
