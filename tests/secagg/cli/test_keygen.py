"""The `secagg keygen` command."""

import importlib
import json
import os
import stat
import subprocess
import sys
import threading

import click
import pytest
from click.testing import CliRunner

from secagg.errors import KeyFileError
from secagg.keyfile import is_encrypted, load_client, load_public, load_server, load_signer

keygen = importlib.import_module("secagg.cli.keygen")  # the package's attribute of this name is the command


def secagg(*arguments, passphrase=None):
    """The command in a process of its own, without a terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "SECAGG_PASSPHRASE"}
    return subprocess.run(
        [sys.executable, "-m", "secagg.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment if passphrase is None else environment | {"SECAGG_PASSPHRASE": passphrase.decode()},
    )


def private(path, data):
    """A file that only its owner can read."""
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_keys_of_every_kind_are_made_and_load(tmp_path):
    """A folder gets one private file and one public half a key, named by kind, and what is printed is what loads."""
    for arguments, stem in (
        (("client", "--id", 2**63 + 9, "--name", "St. Mary"), f"client-{2**63 + 9}"),
        (("server", "--suite", "classical"), "server-classical"),
        (("server",), "server-hybrid"),
        (("consortium", "--name", "All"), "consortium"),
    ):
        result = secagg("keygen", *arguments, "--out", tmp_path, "--no-passphrase", "--json")
        assert (result.returncode, result.stderr) == (0, "")
        report = json.loads(result.stdout)
        assert report["private"] == str(tmp_path / f"{stem}.pem")
        assert report["public"] == str(tmp_path / f"{stem}.pub.json")
        assert report["encrypted"] is False
        on_disk = json.loads((tmp_path / f"{stem}.pub.json").read_text())
        assert {name: report[name] for name in on_disk if name != "format"} == {
            name: value for name, value in on_disk.items() if name != "format"
        }
        assert stat.S_IMODE((tmp_path / f"{stem}.pem").stat().st_mode) == 0o600
    assert load_client(tmp_path / f"client-{2**63 + 9}.pem", 2**63 + 9).id == 2**63 + 9
    assert load_server(tmp_path / "server-hybrid.pem").suite == "hybrid"
    assert load_server(tmp_path / "server-classical.pem").suite == "classical"
    public = load_public(tmp_path / "consortium.pub.json")
    assert load_signer(tmp_path / "consortium.pem").public_key.hex() == public.public_key


def test_the_passphrase_comes_from_a_file_or_the_environment(tmp_path):
    """Either encrypts the key, the file goes first, its line end does not count, and neither is printed."""
    file = private(tmp_path / "passphrase", b"from a file\r\n")
    for arguments, passphrase in (
        (("--passphrase-file", file), b"from a file"),
        ((), b"from the environment"),
    ):
        out = tmp_path / f"{len(arguments)}.pem"
        result = secagg("keygen", "consortium", "--out", out, *arguments, passphrase=b"from the environment")
        assert result.returncode == 0
        assert "encrypted" in result.stdout
        assert "from a file" not in result.stdout + result.stderr
        assert "from the environment" not in result.stdout + result.stderr
        assert is_encrypted(out)
        assert load_signer(out, passphrase=passphrase).public_key.hex() in result.stdout


def test_no_key_is_left_unencrypted_by_accident(tmp_path):
    """Without a terminal and without a passphrase nothing is made, and the three ways out are named."""
    result = secagg("keygen", "consortium", "--out", tmp_path)
    assert result.returncode == 2
    assert "--passphrase-file, SECAGG_PASSPHRASE or --no-passphrase" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_replaced_only_by_force(tmp_path):
    """A second key of one name needs `--force`, and the first stays otherwise."""
    arguments = ("keygen", "consortium", "--out", tmp_path / "key.pem", "--no-passphrase")
    assert secagg(*arguments).returncode == 0
    first = load_signer(tmp_path / "key.pem").public_key
    result = secagg(*arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"secagg: {tmp_path / 'key.pub.json'}: exists already\n"
    assert load_signer(tmp_path / "key.pem").public_key == first
    assert secagg(*arguments, "--force").returncode == 0
    assert load_signer(tmp_path / "key.pem").public_key != first


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("client", "--id", str(2**64 - 1), "--name", "x"), 1, "a client id is in"),
        (("client", "--id", "1", "--name", "a\x1b[2J"), 1, "a name has 1 to 100"),
        (("client", "--name", "x"), 2, "--id"),
        (("server", "--suite", "quantum"), 2, "quantum"),
        (("consortium", "--out", "/nowhere/at/all.pem"), 1, "secagg: /nowhere/at/all.pem: No such file"),
    ],
)
def test_errors_are_one_line_without_a_traceback(tmp_path, arguments, code, words):
    """Wrong ids, names, suites and folders have their exit code and name the culprit; nothing is made."""
    out = () if "--out" in arguments else ("--out", tmp_path)
    result = secagg("keygen", *arguments, *out, "--no-passphrase")
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert code == 2 or result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "mode", "words"),
    [
        (b"", 0o600, "one line of 1 to 1024 bytes"),
        (b"\n", 0o600, "one line"),
        (b"one\ntwo\n", 0o600, "one line"),
        (b"x" * 1025, 0o600, "one line"),
        (b"fine", 0o644, "mode 0644 is wider than 0600"),
    ],
)
def test_a_passphrase_file_is_private_and_one_line(tmp_path, data, mode, words):
    """Empty files, several lines, too many bytes and wide modes are refused by name."""
    path = private(tmp_path / "passphrase", data)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"passphrase: .*{words}"):
        keygen.read_passphrase(path)
    with pytest.raises(KeyFileError, match="none: No such file"):
        keygen.read_passphrase(tmp_path / "none")


def test_a_passphrase_may_come_through_a_pipe(tmp_path):
    """A pipe has no mode to check; what comes through it is the passphrase."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o644)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"through a pipe\n",), daemon=True)
    writer.start()
    assert keygen.read_passphrase(pipe) == b"through a pipe"
    writer.join(30)


def test_an_empty_variable_is_not_no_passphrase(monkeypatch):
    """A variable that is set and empty is an error, one that is not set is no passphrase."""
    monkeypatch.setenv("SECAGG_PASSPHRASE", "")
    with pytest.raises(KeyFileError, match="SECAGG_PASSPHRASE is set, and empty"):
        keygen.read_passphrase(None)
    monkeypatch.delenv("SECAGG_PASSPHRASE")
    assert keygen.read_passphrase(None) is None


def test_a_terminal_is_asked_twice(tmp_path, monkeypatch):
    """Somebody at a terminal types the passphrase unseen, again until both are the same."""
    monkeypatch.delenv("SECAGG_PASSPHRASE", raising=False)
    monkeypatch.setattr(keygen, "at_terminal", lambda: True)
    out = tmp_path / "key.pem"
    result = CliRunner().invoke(
        keygen.keygen, ["consortium", "--out", str(out)], input="typed\nmistyped\ntyped\ntyped\n"
    )
    assert result.exit_code == 0
    assert load_signer(out, passphrase=b"typed").public_key.hex() in result.stdout
    assert "typed" not in result.output


def test_a_passphrase_is_never_an_argument():
    """No command takes the passphrase itself: arguments are seen by every user of the machine."""
    for command in keygen.keygen.commands.values():
        options = {
            name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts
        }
        assert {name for name in options if "pass" in name} == {"--passphrase-file", "--no-passphrase"}
