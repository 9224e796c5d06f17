"""The `secagg roster` command, and a consortium's way from keys to a round."""

import importlib
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
from click.testing import CliRunner

from secagg import Block, ClientSession, RoundParams, run_round
from secagg.cli import main
from secagg.cli.roster import roster
from secagg.engines.inprocess import InProcessEngine
from secagg.errors import ParameterError, RosterError
from secagg.keyfile import create_client, create_consortium, create_server, load_client, load_server
from secagg.rosterfile import load
from secagg.spool import MemorySpool
from secagg.testing import client_handler

PASSPHRASE = b"one for all"


def secagg(*arguments, passphrase=None):
    """The command, without a terminal: (exit code, standard output, standard error)."""
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["secagg", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.StringIO())
        patch.delenv("SECAGG_PASSPHRASE", raising=False)
        if passphrase is not None:
            patch.setenv("SECAGG_PASSPHRASE", passphrase.decode())
        try:
            main()
        except SystemExit as ended:
            return ended.code, output.getvalue(), errors.getvalue()
    return 0, output.getvalue(), errors.getvalue()


def reported(*arguments, **options):
    """What a command that succeeds says as JSON."""
    code, output, errors = secagg(*arguments, "--json", **options)
    assert (code, errors) == (0, "")
    return json.loads(output)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with the keys of clients 1 to 3, a server and a consortium, not encrypted."""
    folder = tmp_path_factory.mktemp("keys")
    for client in (1, 2, 3):
        create_client(folder / f"client-{client}.pem", client, f"site {client}")
    create_server(folder / "server.pem", "classical", "server")
    create_consortium(folder / "consortium.pem", "consortium")
    create_consortium(folder / "other.pem", "other")
    return folder


@pytest.fixture
def file(tmp_path, keys):
    """A roster of clients 1 and 2 and the server, signed."""
    path = tmp_path / "roster.json"
    halves = [keys / f"{name}.pub.json" for name in ("client-1", "client-2", "server")]
    reported("roster", "add", path, *halves)
    reported("roster", "sign", path, "--key", keys / "consortium.pem")
    return path


def pinned(keys, name="consortium"):
    """The public key of a consortium, in hex."""
    return json.loads((keys / f"{name}.pub.json").read_text())["public_key"]


def one_round(folder, file, *, at_least, cohort):
    """A round of parties that each load their own key, and the roster as they have pinned it."""
    key = bytes.fromhex(pinned(folder))
    ours = load(file, pinned=key, at_least=at_least).roster("hybrid")
    params = RoundParams(cohort=cohort, blocks=(Block("update", 5, 20, 1000),), suite="hybrid")
    inputs = {client: {"update": np.full(5, client)} for client in cohort}
    handlers = {}
    for client in cohort:
        identity = load_client(folder / f"client-{client}.pem", client)
        handlers[client] = client_handler(ClientSession(params, identity, ours, inputs[client]))
    server = load_server(folder / "server-hybrid.pem", passphrase=PASSPHRASE)
    outcome = run_round(InProcessEngine(handlers), params, server, ours, spool=MemorySpool())
    assert outcome.survivors == cohort
    return outcome.sums["update"]


def test_from_keys_to_a_round_and_to_a_revocation(tmp_path):
    """Keys, a signed roster and a round with them; then one client is revoked, and the old roster serves nobody any more."""
    for client in (1, 2, 3, 4):
        arguments = ("client", "--id", client, "--name", f"site {client}")
        reported("keygen", *arguments, "--out", tmp_path, "--no-passphrase")
    reported("keygen", "server", "--out", tmp_path, passphrase=PASSPHRASE)
    reported("keygen", "consortium", "--out", tmp_path, passphrase=PASSPHRASE)
    file, key = tmp_path / "roster.json", tmp_path / "consortium.pem"
    halves = [tmp_path / f"client-{client}.pub.json" for client in (1, 2, 3, 4)]
    assert reported("roster", "add", file, *halves, tmp_path / "server-hybrid.pub.json")["active"] == 4
    first = reported("roster", "sign", file, "--key", key, passphrase=PASSPHRASE)
    old = file.read_bytes()
    assert list(one_round(tmp_path, file, at_least=first["sequence"], cohort=(1, 2, 3, 4))) == [10] * 5

    changed = reported("roster", "revoke", file, 4)
    assert (changed["signature_dropped"], changed["active"]) == (True, 3)
    with pytest.raises(RosterError, match="not signed"):
        one_round(tmp_path, file, at_least=first["sequence"], cohort=(1, 2, 3))
    second = reported("roster", "sign", file, "--key", key, passphrase=PASSPHRASE)
    assert list(one_round(tmp_path, file, at_least=second["sequence"], cohort=(1, 2, 3))) == [6] * 5
    with pytest.raises(ParameterError, match=r"clients \[4\] of the cohort are not on the roster"):
        one_round(tmp_path, file, at_least=second["sequence"], cohort=(1, 2, 3, 4))

    file.write_bytes(old)
    with pytest.raises(RosterError, match=f"older than {second['sequence']}"):
        one_round(tmp_path, file, at_least=second["sequence"], cohort=(1, 2, 3, 4))
    code, _, errors = secagg("roster", "show", file, "--pinned", pinned(tmp_path), "--at-least", second["sequence"])
    assert (code, errors.count("\n")) == (1, 1)


def test_adding_makes_the_roster_and_names_the_state(tmp_path, keys):
    """The file is made when there is none, and sequence, members and fingerprint are those of the file."""
    path = tmp_path / "new.json"
    report = reported("roster", "add", path, keys / "client-1.pub.json", keys / "server.pub.json")
    found = load(path, pinned=None)
    assert report == {
        "file": str(path),
        "sequence": 1,
        "active": 1,
        "signed": False,
        "signature_dropped": False,
        "fingerprint": found.digest().hex(),
    }


def test_a_change_says_that_the_signature_is_gone(file, keys):
    """People read it in words, and the file is unsigned."""
    code, output, errors = secagg("roster", "add", file, keys / "client-3.pub.json")
    assert (code, errors) == (0, "")
    assert "sequence 3, 3 active clients, not signed" in output
    assert "the change dropped the signature: sign it again" in output
    assert load(file, pinned=None).signature is None


def test_a_site_leaves_and_comes_back_with_a_new_key(file, tmp_path):
    """`--left` is shown as such, and `--replace` takes a new key only."""
    reported("roster", "revoke", file, 2, "--left")
    assert {m["id"]: m["status"] for m in reported("roster", "show", file)["members"]} == {"1": "active", "2": "left"}
    create_client(tmp_path / "new.pem", 2, "site 2")
    code, _, errors = secagg("roster", "add", file, tmp_path / "new.pub.json")
    assert code == 1
    assert errors == f"secagg: {file}: client 2 is on the roster already\n"
    reported("roster", "add", file, tmp_path / "new.pub.json", "--replace")
    shown = reported("roster", "show", file)
    assert {m["id"]: m["status"] for m in shown["members"]} == {"1": "active", "2": "active"}
    assert [old["owner"] for old in shown["retired"]] == ["client 2"]


def test_show_prints_what_people_compare(file, keys, tmp_path):
    """The fingerprint in groups of four, who signed, and each party with its status, whether replaced, revoked or present."""
    create_client(tmp_path / "new.pem", 1, "site 1")
    reported("roster", "add", file, tmp_path / "new.pub.json", "--replace")
    reported("roster", "revoke", file, 2)
    reported("roster", "sign", file, "--key", keys / "consortium.pem")
    code, output, errors = secagg("roster", "show", file, "--pinned", pinned(keys))
    assert (code, errors) == (0, "")
    lines = [" ".join(line.split()) for line in output.splitlines()]
    found = load(file, pinned=None)
    digest = found.digest().hex()
    assert lines[0] == f"{file}: sequence 4, signed by the pinned key"
    assert lines[1] == "fingerprint " + " ".join(digest[at : at + 4] for at in range(0, 64, 4))
    assert lines[2] == f"consortium {pinned(keys)}"
    assert lines[3].startswith("server classical active since 1 ")
    assert lines[4] == f"client 1 active since 3 {found.members[0].public_key} site 1"
    assert lines[5] == f"client 2 revoked since 4 {found.members[1].public_key} site 2"
    assert lines[6] == f"client 1 retired since 3 {found.retired[0].key}"
    assert "which is not pinned here" in secagg("roster", "show", file)[1]
    shown = reported("roster", "show", file, "--pinned", pinned(keys).upper())
    assert (shown["fingerprint"], shown["pinned"], shown["sequence"]) == (digest, True, 4)


def test_show_refuses_a_roster_of_another_key(file, keys):
    """A pinned key that did not sign, a changed file, and text that is no key: exit codes 1, 1 and 2."""
    code, output, errors = secagg("roster", "show", file, "--pinned", pinned(keys, "other"))
    assert (code, output) == (1, "")
    assert f"secagg: {file}: the consortium key is {pinned(keys)}" in errors
    file.write_text(file.read_text().replace('"site 1"', '"site 9"'))
    code, output, errors = secagg("roster", "show", file)
    assert (code, output, errors) == (1, "", f"secagg: {file}: the signature does not fit the content\n")
    code, _, errors = secagg("roster", "show", file, "--pinned", "xyz")
    assert code == 2
    assert "64 hex digits" in errors


def test_another_consortium_key_signs_only_when_told(file, keys):
    """`sign` with another key needs `--replace`, and the old one is retired."""
    code, _, errors = secagg("roster", "sign", file, "--key", keys / "other.pem")
    assert code == 1
    assert f"secagg: {file}: the consortium key is" in errors
    assert load(file, pinned=bytes.fromhex(pinned(keys)))
    assert reported("roster", "sign", file, "--key", keys / "other.pem", "--replace")["signed"] is True
    assert load(file, pinned=bytes.fromhex(pinned(keys, "other"))).retired[0].owner == "consortium"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("add", "{file}", "{keys}/client-1.pub.json"), 1, "{file}: client 1 is on the roster already"),
        (("add", "{file}", "{keys}/consortium.pub.json"), 1, "{keys}/consortium.pub.json: the consortium's key comes"),
        (("add", "{file}", "{keys}/client-3.pem"), 1, "{keys}/client-3.pem: not the public half of a key"),
        (("add", "{file}"), 2, "PUB.json"),
        (("revoke", "{file}", "7"), 1, "{file}: client 7 is not on the roster"),
        (("revoke", "{file}", "one"), 2, "one"),
        (("revoke", "{file}.none", "1"), 1, "{file}.none: No such file"),
        (("show", "{keys}/client-1.pub.json"), 1, "{keys}/client-1.pub.json: Object"),
        (("sign", "{file}", "--key", "{keys}/server.pem"), 1, "{keys}/server.pem: has Ed25519PrivateKey, X25519"),
        (("sign", "{file}", "--key", "{keys}/client-1.pem"), 1, "{file}: the consortium key is"),
        (("sign", "{file}"), 2, "--key"),
    ],
)
def test_errors_name_the_file_or_the_entry(file, keys, arguments, code, words):
    """Each mistake has its exit code and one line that names the culprit, and the roster stays as it was."""
    before = file.read_bytes()
    found, output, errors = secagg("roster", *(text.format(file=file, keys=keys) for text in arguments))
    assert found == code
    assert words.format(file=file, keys=keys) in errors
    assert code == 2 or errors.count("\n") == 1
    assert "Traceback" not in errors
    assert "PRIVATE KEY" not in errors
    assert not output
    assert file.read_bytes() == before


def test_an_encrypted_key_signs_with_its_passphrase_only(tmp_path, keys):
    """Without a passphrase and with a wrong one there is no signature; at a terminal it is asked for, once."""
    create_consortium(tmp_path / "c.pem", "consortium", passphrase=PASSPHRASE)
    path, arguments = tmp_path / "roster.json", ("--key", tmp_path / "c.pem")
    reported("roster", "add", path, keys / "client-1.pub.json")
    for passphrase, words in ((None, "is encrypted, and no passphrase"), (b"wrong", "wrong passphrase")):
        code, _, errors = secagg("roster", "sign", path, *arguments, passphrase=passphrase)
        assert code == 1
        assert words in errors
    assert load(path, pinned=None).signature is None


def test_a_terminal_is_asked_for_the_passphrase_once(tmp_path, keys, monkeypatch):
    """Somebody at a terminal types the passphrase of the key, unseen."""
    create_consortium(tmp_path / "c.pem", "consortium", passphrase=PASSPHRASE)
    path = tmp_path / "roster.json"
    reported("roster", "add", path, keys / "client-1.pub.json")
    monkeypatch.delenv("SECAGG_PASSPHRASE", raising=False)
    monkeypatch.setattr(importlib.import_module("secagg.cli.keygen"), "at_terminal", lambda: True)
    typed = CliRunner().invoke(
        roster, ["sign", str(path), "--key", str(tmp_path / "c.pem")], input=PASSPHRASE.decode() + "\n"
    )
    assert typed.exit_code == 0
    assert PASSPHRASE.decode() not in typed.output
    assert load(path, pinned=bytes.fromhex(pinned(tmp_path, "c"))).signature is not None
