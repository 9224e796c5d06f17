import dataclasses
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.accounting.gaussian import as_text
from privacy.ledger import Ledger, witness
from privacy.plan import Plan

PLAN = Plan.solve(**json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8")))


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
    what = "no ledger in this folder" if command == "total" else "cannot be read: Is a directory"
    assert (code, out, err) == (1, "", f"privacy: {tmp_path}: {what}\n")
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
    other.write_bytes(sign_head(2, "ab" * 32, Ed25519PrivateKey.from_private_bytes(bytes(32))).to_json())
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


SIGNERS = {name: Ed25519PrivateKey.from_private_bytes(bytes([at]) * 32) for at, name in enumerate(["server", "north"])}
KEYS = {name: signer.public_key().public_bytes_raw().hex() for name, signer in SIGNERS.items()}


def book(path, rounds, *, data_set=None, run="run", signer=None, party="writer"):
    """Write committed rounds with these survivors."""
    with Ledger(path, signer=signer, party=party) as ledger:
        for number, survivors in enumerate(rounds):
            held = ledger.reserve(run=run, round=number, attempt=0, plan=PLAN, private=True, data_set=data_set)
            ledger.commit(held, survivors=survivors, transcript=f"{number:064x}")
    return path


@pytest.fixture
def signed(tmp_path):
    """A server's ledger that a site signed too."""
    path = book(tmp_path / "server.jsonl", [(1, 2, 3)], signer=SIGNERS["server"], party="server")
    with Ledger(path, signer=SIGNERS["server"], party="server") as ledger:
        head = witness(path.read_bytes(), [], run="run", site=0, signer=SIGNERS["north"])
        ledger.countersign("north", head, key=KEYS["north"])
    return path


def test_verify_names_who_signed_with_which_key(call, signed, tmp_path):
    """Without keys it says that none is pinned; hex and PEM pin them; then a stranger's signature exits 2."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    code, out, _ = call("ledger", "verify", signed)
    assert code == 0
    assert out.count("a key that is not pinned: anybody may have made it") == 2
    assert (
        f"north signs 3 of 3 entries, with a key that is not pinned: anybody may have made it ({KEYS['north']})" in out
    )
    pem = tmp_path / "north.pem"
    pem.write_bytes(SIGNERS["north"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    pins = ("--key", f"server={KEYS['server']}", "--key", f"north={pem}")
    code, out, _ = call("ledger", "verify", signed, *pins)
    assert (code, out.count("its pinned key"), "not pinned" in out) == (0, 2, False)
    report = json.loads(call("ledger", "verify", signed, *pins, "--json")[1])
    assert [(each["party"], each["seq"], each["pinned"]) for each in report["signatures"]] == [
        ("north", 2, True),
        ("server", 2, True),
    ]
    assert (report["data_set"], report["unbound"]) == (None, 0)
    code, out, err = call("ledger", "verify", signed, "--key", f"server={KEYS['server']}")
    assert (code, out) == (2, "")
    assert "(north): signed by" in err
    assert "none of the pinned keys" in err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("server", "is not PARTY=HEX"),
        ("=ab", "is not PARTY=HEX"),
        ("\x1b=ab", "is not PARTY=HEX"),
        ("server=abcd", "neither 64 digits of hex nor a file"),
        (f"server={'zz' * 32}", "neither 64 digits of hex nor a file"),
        (f"server={__file__}", "PEM|pem"),
        ("server=/dev/zero", "not a plain file"),
        ("server=/", "directory"),
    ],
)
def test_keys_that_are_none_are_wrong_usage(call, ledger, value, message):
    """A key that cannot be read is wrong usage, exit 1, and says why."""
    import re

    code, out, err = call("ledger", "verify", ledger, "--key", value)
    assert (code, out) == (1, "")
    assert re.search(message, err)
    assert "\x1b" not in err


def test_parties_have_one_key_each(call, ledger):
    """A party named twice, and a key of two parties, are wrong usage."""
    for second in (f"server={KEYS['north']}", f"north={KEYS['server']}"):
        code, _, err = call("ledger", "verify", ledger, "--key", f"server={KEYS['server']}", "--key", second)
        assert code == 1
        assert "each party once" in err or "key of another party" in err


def test_private_commits_without_transcript_are_told(call, ledger):
    """A private commit that names no secure-aggregation transcript is counted in words and in JSON."""
    assert json.loads(call("ledger", "verify", ledger, "--json")[1])["unbound"] == 1
    assert (
        "1 commits that claim to be private name no secure-aggregation transcript"
        in call("ledger", "verify", ledger)[1]
    )


def test_compare_says_what_agrees_and_exits_2_on_contradiction(call, tmp_path):
    """A site's ledger against the server's: agreement exits 0; other survivors exit 2, with round and field."""
    server = book(tmp_path / "server.jsonl", [(0, 1, 2, 3), (0, 1, 2)])
    good = book(tmp_path / "good.jsonl", [(0, 1, 2, 3), (0, 1, 2)], data_set="ab")
    bad = book(tmp_path / "bad.jsonl", [(0, 1, 2, 3), (0, 1, 3)], data_set="ab")
    code, out, _ = call("ledger", "compare", server, good, "--site", "0")
    assert code == 0
    assert out.endswith("1 runs in common; they agree on 2 sums\nno contradiction\n")
    code, out, err = call("ledger", "compare", server, bad)
    assert (code, err) == (2, f"privacy: tampered: {server} and {bad} contradict each other on 1 points\n")
    assert "CONTRADICTION: run run, round 1: survivors: 0, 1, 2 in the first, 0, 1, 3 in the second" in out
    code, out, _ = call("ledger", "compare", server, bad, "--json")
    told = json.loads(out)
    assert (code, told["agree"], told["contradictions"], told["copies"]) == (2, 1, 1, False)
    assert (told["findings"][0]["round"], told["findings"][0]["field"]) == (1, "survivors")
    assert call("ledger", "compare", server, good, "--run", "other")[0] == 1
    good.write_bytes(good.read_bytes().replace(b'"round":0', b'"round":7', 1))
    code, out, err = call("ledger", "compare", server, good)
    assert (code, out) == (2, "")
    assert "good.jsonl, line 3" in err


def test_compare_of_copies_names_the_line(call, tmp_path):
    """Two copies: the shorter one is told and exits 0; a fork exits 2 by its first line."""
    path = book(tmp_path / "a.jsonl", [(0, 1, 2)])
    copy = tmp_path / "b.jsonl"
    copy.write_bytes(path.read_bytes())
    book(path, [(0, 1, 2)], run="second")
    code, out, _ = call("ledger", "compare", path, copy)
    assert code == 0
    assert "they agree on 3 lines of two copies\n  line 4: 5 entries in the first, 3 entries in the second" in out
    book(copy, [(0, 1, 3)], run="third")
    code, out, _ = call("ledger", "compare", path, copy)
    assert code == 2
    assert "CONTRADICTION: line 4: reserve" in out


def test_compare_lists_no_more_than_can_be_read(call, tmp_path):
    """Twenty contradictions are listed and the rest counted; JSON has all."""
    first = book(tmp_path / "a.jsonl", [(0, 1, 2)] * 25)
    second = book(tmp_path / "b.jsonl", [(0, 1, 3)] * 25, data_set="ab")
    out = call("ledger", "compare", first, second)[1]
    assert (out.count("CONTRADICTION"), "and 5 more" in out, "25 contradictions" in out) == (20, True, True)
    assert len(json.loads(call("ledger", "compare", first, second, "--json")[1])["findings"]) == 25


def test_total_of_a_folder_adds_up_by_data_set(call, tmp_path):
    """One line a ledger, the sum of each data set, a copy counted once; the same as JSON; a server's stands alone."""
    for name, data_set, run in (("a", "ab", "one"), ("b", "ab", "two"), ("c", "cd", "one"), ("s", None, "one")):
        book(tmp_path / f"{name}.jsonl", [(0, 1, 2, 3)], data_set=data_set, run=run)
    (tmp_path / "d.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    code, out, _ = call("ledger", "total", tmp_path)
    assert code == 0
    one = as_text(json.loads(call("ledger", "total", tmp_path / "a.jsonl", "--json")[1])["epsilon"])
    assert out.count(f": epsilon <= {one} at delta = 0.0001, 1 runs") == 5
    assert "data set ab, 2 ledgers:" in out
    assert "not counted again" in out
    told = json.loads(call("ledger", "total", tmp_path, "--json")[1])["data_sets"]
    assert [(each["data_set"], len(each["ledgers"]), len(each["runs"])) for each in told] == [
        ("ab", 3, 2),
        ("cd", 1, 1),
        (None, 1, 1),
    ]
    assert told[0]["epsilon"] > told[1]["epsilon"]
    assert sum(each["copy"] for each in told[0]["ledgers"]) == 1
    (tmp_path / "a.jsonl").write_bytes(b"x\n")
    assert call("ledger", "total", tmp_path)[0] == 2


def test_names_in_files_cannot_write_to_the_terminal(call, tmp_path):
    """A run's name with an escape sequence is shown as what it is, by every subcommand."""
    path = book(tmp_path / "a\x1b[2Jb.jsonl", [(0, 1, 2)], run="\x1b[2J\nrun: all is well", data_set="\x1b]0;x\x07")
    other = book(tmp_path / "b.jsonl", [(0, 1, 3)], run="\x1b[2J\nrun: all is well")
    for arguments in (
        ("verify", path),
        ("show", path),
        ("total", path),
        ("total", path, other),
        ("compare", path, other),
    ):
        _, out, err = call("ledger", *arguments)
        assert "\x1b" not in out + err
        assert "\nrun: all" not in out


def test_what_cannot_be_printed_is_no_crash(tmp_path):
    """A path that is no text is told in escapes by every subcommand."""
    import os
    import subprocess
    import sys

    path = book(tmp_path / "ledger.jsonl", [(0, 1, 2)] * 3)
    odd = os.fsencode(tmp_path) + b"/\xff.jsonl"
    os.link(path, odd)
    for command in ("verify", "total", "show"):
        done = subprocess.run(
            [sys.executable, "-m", "privacy.cli", "ledger", command, odd], capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_sampled_rounds_are_shown_with_their_rate(call, tmp_path):
    """The listing names the rate where it is below 1, and totals have the bound of the loss distribution, in words and JSON."""
    fields = json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8"))
    plan, path = Plan.solve(**fields, sample_rate=0.1), tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        for each in (plan, PLAN):
            ledger.reserve(run=each.hash[:4], round=0, attempt=0, plan=each, private=True, data_set="ab")
    _, out, _ = call("ledger", "show", path)
    assert ["rate 0.1" in line for line in out.splitlines()] == [False, True, False, False]
    _, out, _ = call("ledger", "total", path)
    assert "upper bounds: pld" in out
    _, out, _ = call("ledger", "total", path, "--json")
    answer = json.loads(out)
    assert answer["epsilon"] == answer["routes"]["pld"] < answer["routes"]["rdp"] < answer["routes"]["closed_form"]
