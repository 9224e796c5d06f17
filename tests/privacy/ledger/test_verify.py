import json
import os
from pathlib import Path

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.errors import LedgerError
from privacy.ledger import Ledger, read_entries, verify, witness
from privacy.ledger.chain import ChainError
from privacy.ledger.head import head_path, sign_head
from privacy.plan import Plan

SIGNERS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([at]) * 32)
    for at, name in enumerate(["server", "north", "south", "stranger"])
}
KEYS = {name: signer.public_key().public_bytes_raw().hex() for name, signer in SIGNERS.items()}
PLAN = Plan.solve(**json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8")))


def release(ledger, number, *, transcript="ab", private=True, data_set=None):
    """Reserve and commit a round."""
    held = ledger.reserve(run="run", round=number, attempt=0, plan=PLAN, private=private, data_set=data_set)
    ledger.commit(held, survivors=(1, 2, 3), transcript=transcript)


@pytest.fixture
def path(tmp_path):
    """A server's ledger of three rounds, which two sites signed after the first and the second."""
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, signer=SIGNERS["server"], party="server") as ledger:
        for number, site in enumerate(["north", "south", None]):
            release(ledger, number)
            if site:
                head = witness(path.read_bytes(), [], run="run", site=0, signer=SIGNERS[site])
                ledger.countersign(site, head, key=KEYS[site])
    return path


def known(*names):
    """The keys of these parties."""
    return {name: KEYS[name] for name in names}


def test_everybodys_heads_are_checked(path):
    """Each party's head lies on the chain, as far as it signed; without pinned keys it is told that none is known."""
    report = verify(path)
    assert {each.party: each.seq for each in report.signatures} == {"server": 6, "north": 2, "south": 4}
    assert not any(each.pinned for each in report.signatures)
    report = verify(path, keys=known("server", "north", "south"))
    assert all(each.pinned for each in report.signatures)
    assert (report.head, report.entries, report.rounds) == ("ok", 7, 3)


def test_with_pinned_keys_nobody_elses_signature_counts(path):
    """A key that is not pinned, a party under another's name, a party that has not signed: each refused by name."""
    with pytest.raises(ChainError, match=rf"\(south\): signed by {KEYS['south']}, which is none of the pinned"):
        verify(path, keys=known("server", "north"))
    with pytest.raises(ChainError, match="stranger, whose key is pinned, has signed no head"):
        verify(path, keys=known(*KEYS))
    swapped = {"server": KEYS["server"], "north": KEYS["south"], "south": KEYS["north"]}
    with pytest.raises(ChainError, match="signed with the key of"):
        verify(path, keys=swapped)
    head_path(path).unlink()
    with pytest.raises(ChainError, match="server, whose key is pinned, has signed no head"):
        verify(path, keys=known("server"))
    assert verify(path).head == "missing"


def test_a_head_that_a_party_kept_is_known_by_its_key(path, tmp_path):
    """A file of one head has no name; a pinned key gives it one, and it shows a tail that was cut since."""
    kept = tmp_path / "kept.json"
    kept.write_bytes(
        sign_head(6, json.loads(head_path(path).read_bytes())["heads"]["server"]["hash"], SIGNERS["north"]).to_json()
    )
    report = verify(path, heads=[kept], keys=known("server", "north", "south"))
    assert [(each.party, each.seq) for each in report.signatures if each.file == kept] == [("north", 6)]
    head_path(path).unlink()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    assert verify(path).entries == 5
    with pytest.raises(ChainError, match=r"the tail was cut: .*kept\.json"):
        verify(path, heads=[kept])


@pytest.mark.parametrize("party", ["server", "north"])
def test_two_heads_of_one_entry_are_a_fork(path, tmp_path, party):
    """Two parties' heads that sign different entries of one number are both named, whoever is right."""
    other = tmp_path / "other.json"
    seq = {"server": 6, "north": 2}[party]
    other.write_bytes(sign_head(seq, "ab" * 32, SIGNERS["stranger"]).to_json())
    with pytest.raises(ChainError, match=rf"line {seq + 1}: a fork: .*\({party}\) and .*other.json \(writer\) sign"):
        verify(path, heads=[other])


def test_a_site_that_signed_another_chain_is_found(path):
    """A head in the heads file that left the chain is named, when the ledger is verified and when it is opened."""
    whole = json.loads(head_path(path).read_bytes())
    whole["heads"]["north"] = sign_head(2, "ab" * 32, SIGNERS["north"]).to_fields()
    head_path(path).write_bytes(rfc8785.dumps(whole) + b"\n")
    for opener in (lambda: verify(path), lambda: Ledger(path, signer=SIGNERS["server"], party="server")):
        with pytest.raises(ChainError, match=r"line 3: a fork: .*\(north\) signs another entry here"):
            opener()


def test_another_writer_cannot_go_on(path):
    """A ledger is continued by the party and the key that wrote it; a site that only signed is not its writer."""
    for signer, party, error, message in [
        ("north", "north", ChainError, "not by this signer"),
        ("north", "server", ChainError, "not by this signer"),
        ("server", "north", LedgerError, "'server' writes this ledger, not 'north'"),
        ("server", "", LedgerError, "no name"),
    ]:
        with pytest.raises(error, match=message):
            Ledger(path, signer=SIGNERS[signer], party=party)
    Ledger(path, signer=SIGNERS["server"], party="server").close()


def test_head_without_names_is_continued(tmp_path):
    """A ledger whose head file is one nameless head is its writer's, and takes a name when it is opened with one."""
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, signer=SIGNERS["server"]) as ledger:
        release(ledger, 0)
    head = json.loads(head_path(path).read_bytes())["heads"]["writer"]
    head_path(path).write_bytes(rfc8785.dumps(head) + b"\n")
    assert verify(path).head == "ok"
    with Ledger(path, signer=SIGNERS["server"], party="server") as ledger:
        release(ledger, 1)
    assert [each.party for each in verify(path, keys=known("server")).signatures] == ["server"]
    assert list(json.loads(head_path(path).read_bytes())["heads"]) == ["server"]


def test_private_commits_without_transcript_are_told(tmp_path):
    """A commit that claims to be private and names no sum is counted; one under a test seed claims nothing."""
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        for number, transcript, private in [(0, "ab", True), (1, "", True), (2, "", False)]:
            release(ledger, number, transcript=transcript, private=private, data_set="cd")
    report = verify(path)
    assert (report.unbound, report.data_set) == (1, "cd")
    assert [entry.transcript for entry in read_entries(path) if entry.kind == "commit"] == ["ab", "", ""]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_plain_file_does_not_hang(tmp_path, make):
    """A pipe, a folder, a device: an error that names it, at once."""
    path = tmp_path / "ledger.jsonl"
    make(path)
    for reader in (verify, read_entries, Ledger):
        with pytest.raises(LedgerError, match=r"ledger\.jsonl"):
            reader(path)


def test_files_that_may_not_be_read_are_named(path, monkeypatch):
    """No permission for the ledger or its heads is an error of this package, not of the system."""
    real = os.open
    for name in (path, head_path(path)):

        def refuse(what, *arguments, name=name, **rest):
            if str(what) == str(name):
                raise PermissionError(13, "Permission denied")
            return real(what, *arguments, **rest)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(LedgerError, match=f"{name}: cannot be read: Permission denied"):
            verify(path)
