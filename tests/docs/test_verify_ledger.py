import ast
import json
import subprocess
import sys

import pytest
import rfc8785

from privacy.errors import LedgerError
from privacy.ledger import verify
from privacy.ledger.chain import ChainError
from privacy.ledger.head import head_path


def edited(lines, number, **changes):
    """The lines with one entry changed, canonical again."""
    changed = rfc8785.dumps(json.loads(lines[number]) | changes) + b"\n"
    return [*lines[:number], changed, *lines[number + 1 :]]


def ours(path, **rest):
    """Whether our own verifier finds the ledger in order."""
    try:
        verify(path, **rest)
    except ChainError:
        return False
    return True


def test_it_is_short_and_independent(docs):
    """At most 250 lines, and nothing imported but the standard library and cryptography."""
    text = (docs / "verify_ledger.py").read_text()
    assert len(text.splitlines()) <= 250
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}


def test_good_ledgers_hold(verifier, write, every_kind, keys, capsys):
    """Ledgers in order, of every kind of entry, hold in both; so they do with the parties' keys pinned."""
    path = write()
    assert verifier.main(str(path)) == 0
    assert "key not pinned" in capsys.readouterr().out
    assert verifier.main(str(path), *(f"--key={name}={key}" for name, key in keys.items())) == 0
    assert "not pinned" not in capsys.readouterr().out
    assert verifier.main(str(every_kind)) == 0
    assert ours(every_kind)
    head_path(path).unlink()
    assert verifier.main(str(path)) == 0
    assert "cannot be seen" in capsys.readouterr().out


@pytest.mark.parametrize(
    "tamper",
    [
        lambda lines: edited(lines, 2, transcript="cd" * 32),
        lambda lines: edited(lines, 6, transcript="cd" * 32),
        lambda lines: lines[:2] + lines[3:],
        lambda lines: lines[1:],
        lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
        lambda lines: [*lines[:3], lines[2], *lines[3:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: lines[:-1],
        lambda lines: lines[:-2],
        lambda _: [],
        lambda lines: [*lines[:3], b"\n", *lines[3:]],
        lambda lines: [lines[0].replace(b'{"body"', b'{ "body"'), *lines[1:]],
        lambda lines: [*lines[:2], lines[2].replace(b'"v":1', b'"v":1,"v":1'), *lines[3:]],
        lambda lines: [*lines[:6], lines[6].replace(b'"seq":6', b'"seq":6.0')],
        lambda lines: [*lines[:6], b"[" * 100_000 + b"\n"],
        lambda lines: [*lines[:6], b"\xff\n"],
    ],
    ids=[
        "edited", "last edited", "removed", "first removed", "reordered", "doubled", "last doubled", "cut", "cut more",
        "emptied", "blank line", "not canonical", "key twice", "another number", "nested", "no text",
    ],
)  # fmt: skip
def test_p21_changed_bytes_are_found_by_both(verifier, write, tamper, capsys):
    """P21: edited, removed, reordered, doubled, cut: exit 2 here, and refused by our own."""
    path = write()
    path.write_bytes(b"".join(tamper(path.read_bytes().splitlines(keepends=True))))
    assert verifier.main(str(path)) == 2
    assert "CHANGED" in capsys.readouterr().out
    assert not ours(path)


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (2, {"mu": 1e-9}),
        (1, {"mu": 1e-9}),
        (1, {"draws": 1}),
        (1, {"sigma_eff": 1e9}),
        (2, {"survivors": ["0", "1"]}),
        (2, {"survivors": ["0", "1", "2"]}),
        (2, {"survivors": ["0", "1", "2", "2"]}),
        (2, {"closes": 0}),
        (4, {"closes": 1}),
        (2, {"round": 9}),
        (2, {"private": False}),
        (2, {"plan": "ab" * 32}),
        (3, {"data_set": "ab"}),
        (0, {"plan": "ab" * 32}),
        (2, {"epsilon": {"closed_form": 0.0, "rdp": 0.0}}),
        (2, {"epsilon": {"closed_form": None, "rdp": None}}),
        (2, {"epsilon_total": {}}),
    ],
)
def test_numbers_that_contradict_are_found_by_both(verifier, write, rechained, capsys, *, number, change):
    """A forger who mends the chain, and signs nothing, cannot book less than the plan and the survivors say: exit 3."""
    path = write()
    head_path(path).unlink()
    path.write_bytes(b"".join(rechained(edited(path.read_bytes().splitlines(), number, **change))))
    assert verifier.main(str(path)) == 3
    assert f"CONTRADICTION: line {number + 1}" in capsys.readouterr().out
    assert not ours(path)


def test_p21_two_heads_are_found_by_both(verifier, write, keys, capsys):
    """P21: a head of another chain, by whomever, is a fork; pinned keys refuse a stranger's, and one that is missing."""
    path, fork = write(), write("fork", survivors=(0, 1, 2))
    assert verifier.main(str(path), str(head_path(fork))) == 2
    assert "a fork" in capsys.readouterr().out
    assert not ours(path, heads=[head_path(fork)])
    for asked in ({"server": keys["north"]}, {"server": "ab" * 32}, keys | {"south": "cd" * 32}):
        assert verifier.main(str(path), *(f"--key={name}={key}" for name, key in asked.items())) == 2
        assert not ours(path, keys=asked)
    head_path(path).unlink()
    assert verifier.main(str(path), f"--key=server={keys['server']}") == 2
    assert not ours(path, keys={"server": keys["server"]})


def test_changed_heads_are_found_by_both(verifier, write):
    """A signature, number or name that was changed in the heads file."""
    path = write()
    good = head_path(path).read_bytes()
    whole = json.loads(good)
    for party, change in [
        ("server", {"signature": "00" * 64}),
        ("north", {"seq": 1}),
        ("north", {"hash": "00" * 32}),
        ("server", {"extra": 1}),
        ("server", {"key": "zz"}),
    ]:
        heads = {**whole["heads"], party: whole["heads"][party] | change}
        head_path(path).write_bytes(rfc8785.dumps(whole | {"heads": heads}) + b"\n")
        assert verifier.main(str(path)) == 2
        assert not ours(path)
    for change in ({"writer": "north"}, {"writer": "south"}, {"heads": {}}):
        head_path(path).write_bytes(rfc8785.dumps(whole | change) + b"\n")
        assert verifier.main(str(path)) == 2
        assert not ours(path)


def test_as_a_script(docs, write, tmp_path):
    """From the shell: its exit code is the verdict; without arguments it says how it is used; a missing file is 1."""
    script = [sys.executable, str(docs / "verify_ledger.py")]
    path = write()
    done = subprocess.run([*script, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("HOLDS: 7 entries, 0 reservations open\n")
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Usage" in done.stderr
    done = subprocess.run([*script, str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    with pytest.raises(LedgerError):
        verify(tmp_path / "none")


def test_canonical_numbers_agree(verifier):
    """Its own RFC 8785 writer agrees with the library's, over magnitudes and edges."""
    import random

    chance = random.Random(3)
    values = [0.0, 1e-7, 1e-6, 1e21, 1e20, 123456789.0, 5e-324, 1.7976931348623157e308, 2.0**53, 0.1]
    values += [chance.uniform(-1, 1) * 10 ** chance.randint(-30, 30) for _ in range(2000)]
    for value in values:
        assert verifier.canonical(value) == rfc8785.dumps(value).decode()
    text = {"é": '\u20ac\x07"\\', "\U0001f600": 1, "\uffff": [True, None, {}], "a/b": "\x7f"}
    assert verifier.canonical(text) == rfc8785.dumps(text).decode()
