import hashlib
import json
from pathlib import Path

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.errors import LedgerError
from privacy.ledger import Ledger, compare, read_entries, verify, witness
from privacy.ledger.chain import ChainError
from privacy.ledger.head import head_path, parse_heads
from privacy.plan import Plan

SERVER, NORTH, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([at]) * 32) for at in range(3))
NORTH_KEY = NORTH.public_key().public_bytes_raw().hex()
FIELDS = json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8"))
PLAN = Plan.solve(**FIELDS)
ALL = (0, 1, 2, 3)


def book(path, rounds, *, data_set=None, signer=None, party="writer", run="run", plan=PLAN):
    """Write (round, attempt, survivors or None for no commit[, transcript[, private]]) into a ledger."""
    with Ledger(path, signer=signer, party=party) as ledger:
        for number, attempt, survivors, *rest in rounds:
            transcript = rest[0] if rest else f"{number:02x}{attempt:02x}"
            private = rest[1] if len(rest) > 1 else True
            held = ledger.reserve(run=run, round=number, attempt=attempt, plan=plan, private=private, data_set=data_set)
            if survivors is not None:
                ledger.commit(held, survivors=survivors, transcript=transcript)
    return path


@pytest.fixture
def pair(tmp_path):
    """Compares a server's and a site's ledger of the rounds given."""

    def make(ours, theirs, **rest):
        book(tmp_path / "server.jsonl", ours)
        book(tmp_path / "site.jsonl", [(9, 0, ALL)], data_set="ab", run="before")
        book(tmp_path / "site.jsonl", theirs, data_set="ab")
        return compare(tmp_path / "server.jsonl", tmp_path / "site.jsonl", **rest)

    return make


def test_what_agrees_is_counted(pair):
    """A server's and a site's ledger of one run agree, whatever else the site's holds, and in any order of survivors."""
    found = pair([(0, 0, ALL), (1, 0, (0, 1, 2))], [(0, 0, (3, 2, 1, 0)), (1, 0, (0, 1, 2))], site=0)
    assert (found.agree, found.findings, found.runs, found.copies) == (2, (), ("run",), False)


@pytest.mark.parametrize(
    ("ours", "theirs", "fields"),
    [
        ((1, 0, (0, 1, 2)), (1, 0, (0, 1, 3)), ["survivors"]),
        ((1, 0, ALL), (1, 0, (0, 1, 3)), ["survivors", "sigma_eff"]),
        ((1, 0, ALL, "aa"), (1, 0, ALL, "bb"), ["transcript"]),
        ((1, 0, ALL, "aa", True), (1, 0, ALL, "aa", False), ["private"]),
    ],
)
def test_contradictions_are_named(pair, ours, theirs, fields):
    """Of each sum: survivors, noise, transcript, privacy; with the round, and what either says."""
    found = pair([(0, 0, ALL), ours], [(0, 0, ALL), theirs])
    assert found.agree == 1
    assert [(each.run, each.round, each.field, each.contradiction) for each in found.findings] == [
        ("run", 1, field, True) for field in fields
    ]
    assert found.contradictions == found.findings
    assert all(each.first != each.second for each in found.findings)


def test_another_plan_is_a_contradiction(tmp_path):
    """Two parties that booked one sum under two plans have not agreed to one run."""
    book(tmp_path / "server.jsonl", [(0, 0, ALL)])
    book(tmp_path / "site.jsonl", [(0, 0, ALL)], data_set="ab", plan=Plan.solve(**FIELDS | {"epsilon": 2.0}))
    found = compare(tmp_path / "server.jsonl", tmp_path / "site.jsonl")
    assert [each.field for each in found.contradictions] == ["plan", "sigma_eff"]


def test_dropouts_and_crashes_are_no_contradictions(pair):
    """A site that fell silent keeps a reservation or has none, and so may a server that stopped: told, and not blamed."""
    found = pair(
        [(0, 0, (1, 2, 3)), (1, 0, (1, 2, 3)), (2, 0, None), (2, 1, ALL), (3, 0, ALL)],
        [(1, 0, None), (2, 0, ALL), (2, 1, ALL), (3, 0, ALL)],
        site=0,
    )
    assert [(each.round, each.field, each.contradiction) for each in found.findings] == [
        (0, "release", False),
        (1, "commit", False),
        (2, "commit", False),
    ]
    assert found.agree == 2
    assert found.findings[1].first == "a sum over 1, 2, 3"
    assert found.findings[2].second == f"a sum over {', '.join(map(str, ALL))}"


def test_a_sum_that_counts_a_site_must_be_in_its_ledger(pair):
    """A server whose sum has a site that never released is caught, when it is said which site the ledger is."""
    rounds = [(0, 0, ALL), (1, 0, ALL)], [(0, 0, ALL)]
    found = pair(*rounds, site=2)
    assert [(each.round, each.field) for each in found.contradictions] == [(1, "release")]
    assert found.contradictions[0].second == "none"


def test_a_release_that_the_server_dropped_is_a_contradiction(pair):
    """The server reserves first: a site's release that it does not know is forgotten spend, unless its copy ends before."""
    found = pair([(0, 0, ALL), (2, 0, ALL)], [(0, 0, ALL), (1, 0, ALL), (2, 0, ALL), (3, 0, ALL)])
    assert [(each.round, each.contradiction) for each in found.findings] == [(1, True), (3, False)]


def test_a_retried_attempt_with_one_number_is_matched_by_transcript(pair):
    """After a crash a server may book a second release under the same attempt: its transcript tells which one it is."""
    found = pair([(0, 0, None), (0, 0, ALL, "bb")], [(0, 0, ALL, "aa"), (0, 0, ALL, "bb")])
    assert found.agree == 1
    assert [each.contradiction for each in found.findings] == [False]


def test_copies_lie_on_one_chain(tmp_path):
    """A copy of an earlier time agrees as far as it goes; one that went on by itself is a fork, by its first line."""
    early, late, fork = (tmp_path / f"{name}.jsonl" for name in ("early", "late", "fork"))
    book(early, [(0, 0, ALL)])
    for path in (late, fork):
        path.write_bytes(early.read_bytes())
    book(late, [(1, 0, ALL)])
    book(fork, [(1, 0, (0, 1, 2))])
    found = compare(early, late)
    assert (found.copies, found.agree, [each.contradiction for each in found.findings]) == (True, 3, [False])
    assert compare(late, late).findings == ()
    found = compare(late, fork)
    assert [(each.field, each.round) for each in found.contradictions] == [("line", 5)]


def test_what_cannot_be_compared_is_refused(tmp_path):
    """No run in common, a run that one lacks, a ledger that was changed or is not there."""
    first = book(tmp_path / "a.jsonl", [(0, 0, ALL)], run="one")
    second = book(tmp_path / "b.jsonl", [(0, 0, ALL)], run="two", data_set="ab")
    with pytest.raises(LedgerError, match="no run in common"):
        compare(first, second)
    with pytest.raises(LedgerError, match="run 'two' is not in both"):
        compare(first, first, run="two")
    with pytest.raises(LedgerError, match=r"none\.jsonl"):
        compare(first, tmp_path / "none.jsonl")
    second.write_bytes(second.read_bytes().replace(b'"round":0', b'"round":1', 1))
    with pytest.raises(ChainError, match=r"b\.jsonl, line 3"):
        compare(first, second)


def test_witness_signs_what_agrees(tmp_path):
    """A site that finds its own releases in the server's ledger signs its last entry; the server keeps the head."""
    server = book(tmp_path / "server.jsonl", [(0, 0, ALL)], signer=SERVER, party="server")
    site = book(tmp_path / "site.jsonl", [(0, 0, ALL)], data_set="ab", signer=NORTH, party="north")
    head = witness(server.read_bytes(), read_entries(site), run="run", site=0, signer=NORTH)
    with Ledger(server, signer=SERVER, party="server") as ledger:
        ledger.countersign("north", head, key=NORTH_KEY)
        held = ledger.reserve(run="run", round=1, attempt=0, plan=PLAN, private=True, data_set=None)
        ledger.commit(held, survivors=(1, 2, 3), transcript="cc")
    report = verify(server, keys={"server": SERVER.public_key().public_bytes_raw().hex(), "north": NORTH_KEY})
    assert {each.party: (each.seq, each.pinned) for each in report.signatures} == {
        "server": (4, True),
        "north": (2, True),
    }
    again = witness(server.read_bytes(), read_entries(site), run="run", site=0, signer=NORTH, after=head)
    assert parse_heads(again, "x").heads["writer"].seq == 4


@pytest.mark.parametrize(
    ("server", "site", "message"),
    [
        ([(0, 0, ALL)], [], "round 0: release is a release, and this site's own ledger says none"),
        ([(0, 0, (0, 1, 2))], [(0, 0, (0, 1, 3))], "round 0: survivors is 0, 1, 2, and this site's own"),
        ([(0, 0, ALL, "aa")], [(0, 0, ALL, "bb")], "round 0: transcript is aa"),
        ([(0, 0, ALL), (2, 0, ALL)], [(0, 0, ALL), (1, 0, ALL), (2, 0, ALL)], "round 1: release is none"),
    ],
)
def test_witness_refuses_what_contradicts(tmp_path, server, site, message):
    """A site does not sign a ledger that contradicts its own, by round and field."""
    told = book(tmp_path / "server.jsonl", server).read_bytes()
    own = read_entries(book(tmp_path / "site.jsonl", site, data_set="ab"))
    with pytest.raises(ChainError, match=message):
        witness(told, own, run="run", site=0, signer=NORTH)


def test_witness_refuses_a_ledger_that_takes_back_what_it_signed(tmp_path):
    """What a site signed once stays: a shorter or another ledger is refused, and so are broken and empty ones."""
    server = book(tmp_path / "server.jsonl", [(0, 0, ALL), (1, 0, (1, 2, 3))])
    own = read_entries(book(tmp_path / "site.jsonl", [(0, 0, ALL)], data_set="ab"))
    told = server.read_bytes()
    head = witness(told, own, run="run", site=0, signer=NORTH)
    lines = told.splitlines(keepends=True)
    rest = {"run": "run", "site": 0, "signer": NORTH}
    with pytest.raises(ChainError, match="the tail was cut: the head that was signed last"):
        witness(b"".join(lines[:3]), own, **rest, after=head)
    fork = book(tmp_path / "fork.jsonl", [(0, 0, ALL), (1, 0, (1, 2, 3), "ff")]).read_bytes()
    with pytest.raises(ChainError, match="line 5: a fork"):
        witness(fork, own, **rest, after=head)
    with pytest.raises(ChainError, match="line 2"):
        witness(b"".join(lines[:1] + lines[2:]), own, **rest)
    with pytest.raises(LedgerError, match="no entries"):
        witness(b"", own, **rest)
    wrong = rfc8785.dumps(json.loads(lines[4]) | {"epsilon": {"closed_form": 0.0, "rdp": 0.0}}) + b"\n"
    with pytest.raises(ChainError, match="line 5: epsilon by closed_form"):
        witness(b"".join(lines[:4]) + wrong, own, **rest)


def test_countersign_takes_only_that_partys_head_of_this_chain(tmp_path):
    """Another key, another ledger, an older head, the writer's name, a file of several: refused, and nothing is kept."""
    server = book(tmp_path / "server.jsonl", [(0, 0, ALL)], signer=SERVER, party="server")
    own = read_entries(book(tmp_path / "site.jsonl", [(0, 0, ALL), (1, 0, ALL)], data_set="ab"))
    rest = {"run": "run", "site": 0, "signer": NORTH}
    early = witness(server.read_bytes(), own[:3], **rest)
    book(server, [(1, 0, ALL)], signer=SERVER, party="server")
    late = witness(server.read_bytes(), own, **rest)
    fork = book(tmp_path / "fork.jsonl", [(0, 0, ALL, "ff")])
    forged = witness(fork.read_bytes(), [], run="run", site=9, signer=NORTH)
    with Ledger(server, signer=SERVER, party="server") as ledger:
        before = head_path(server).read_bytes()
        for party, head, key, error, message in [
            ("north", late, OTHER.public_key().public_bytes_raw().hex(), ChainError, "its key is"),
            ("north", forged, NORTH_KEY, ChainError, "line 3: a fork: the head of north"),
            ("server", late, NORTH_KEY, LedgerError, "cannot sign beside the writer"),
            ("\x1b", late, NORTH_KEY, LedgerError, "cannot sign"),
            ("north", before, NORTH_KEY, ChainError, "its key is|several"),
            ("north", b"{}", NORTH_KEY, ChainError, "not a head"),
        ]:
            with pytest.raises(error, match=message):
                ledger.countersign(party, head, key=key)
        assert head_path(server).read_bytes() == before
        ledger.countersign("north", late, key=NORTH_KEY)
        with pytest.raises(LedgerError, match="this head is older"):
            ledger.countersign("north", early, key=NORTH_KEY)
        with pytest.raises(ChainError, match="signs for somebody else"):
            ledger.countersign("south", late, key=NORTH_KEY)
    assert verify(server).head == "ok"
    assert hashlib.sha256(head_path(server).read_bytes()).digest() != hashlib.sha256(before).digest()


def test_unsigned_ledger_takes_no_countersignature(tmp_path):
    """Without a signer of its own a ledger keeps no heads."""
    path = book(tmp_path / "server.jsonl", [(0, 0, (1, 2, 3))])
    head = witness(path.read_bytes(), [], run="run", site=0, signer=NORTH)
    with Ledger(path) as ledger, pytest.raises(LedgerError, match="cannot sign"):
        ledger.countersign("north", head, key=NORTH_KEY)


@pytest.mark.parametrize(
    ("run", "ours", "theirs"),
    [
        ("run", [(0, 1, ALL, "ff")], [(0, 0, (0, 1, 2), "aa")]),  # attempt and transcript renamed
        ("run", [(0, 2, ALL, "aa")], [(0, 0, None), (0, 1, None), (0, 2, ALL, "aa")]),  # failed attempts left out
        ("run", [(0, 0, ALL)], [(0, 0, ALL), (1, 0, ALL)]),  # the tail left out, then signed
        ("other", [(0, 0, ALL)], [(0, 0, ALL)]),  # the run under another name
        ("run", [(0, 0, ALL, "bb")], [(0, 0, None), (0, 0, ALL, "bb")]),  # the reservation of a crash left out
    ],
)
def test_a_ledger_that_lacks_a_release_of_ones_own_is_not_signed(tmp_path, run, ours, theirs):
    """The server reserves first, so at hand-over its ledger has every release of the site, or tells another story."""
    book(tmp_path / "server.jsonl", ours, run=run)
    book(tmp_path / "site.jsonl", theirs, data_set="ab")
    lines, own = (tmp_path / "server.jsonl").read_bytes(), read_entries(tmp_path / "site.jsonl")
    with pytest.raises(ChainError, match="own ledger says"):
        witness(lines, own, run="run", site=0, signer=NORTH)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([(0, 1, ALL, "ff")], [(0, 0, (0, 1, 2), "aa")]),
        ([(0, 0, ALL, "ff")], [(0, 1, (0, 1, 2), "aa")]),
        ([(0, 2, ALL, "aa")], [(0, 0, None), (0, 1, None), (0, 2, ALL, "aa")]),
        ([(0, 0, (0, 1, 2), "aa"), (0, 1, ALL, "aa")], [(0, 0, ALL, "aa")]),
    ],
)
def test_attempts_are_held_against_each_other(pair, ours, theirs):
    """Another attempt or transcript hides no other survivors, and no release that was forgotten."""
    assert pair(ours, theirs, site=0).contradictions


def test_open_reservations_under_two_plans_contradict(tmp_path):
    """A release that nobody closed was still made under one plan."""
    book(tmp_path / "server.jsonl", [(0, 0, None)], plan=Plan.solve(**FIELDS | {"epsilon": 0.1}))
    book(tmp_path / "site.jsonl", [(0, 0, None)], data_set="ab")
    found = compare(tmp_path / "server.jsonl", tmp_path / "site.jsonl").contradictions
    assert [each.field for each in found] == ["plan"]


def test_honest_retries_are_signed(tmp_path):
    """A crash, a failed attempt and rounds without this site are no contradiction."""
    book(tmp_path / "server.jsonl", [(0, 0, None), (0, 0, ALL, "bb"), (1, 0, None), (1, 1, (1, 2, 3)), (2, 0, ALL)])
    book(tmp_path / "site.jsonl", [(0, 0, None), (0, 0, ALL, "bb"), (2, 0, ALL)], data_set="ab")
    lines, own = (tmp_path / "server.jsonl").read_bytes(), read_entries(tmp_path / "site.jsonl")
    assert witness(lines, own, run="run", site=0, signer=NORTH)


def test_a_ledger_beyond_its_plans_budget_does_not_verify(tmp_path, monkeypatch):
    """Eighty rounds at the floor under a plan for forty, by a writer that checked nothing, are refused by whoever reads them."""
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "_check_budgets", lambda *_: None)
        patched.setattr("privacy.ledger.replay.Books._check_budget", lambda *_: None)
        book(tmp_path / "ledger.jsonl", [(number, 0, (0, 1, 2)) for number in range(80)])
    with pytest.raises(ChainError, match="budget"):
        verify(tmp_path / "ledger.jsonl")
