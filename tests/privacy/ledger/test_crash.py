import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.errors import LedgerError
from privacy.ledger import Ledger, book, compare, read_entries, storage, verify
from privacy.plan import Plan

ROOT = Path(__file__).parents[3]
SIGNERS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number, name in enumerate(["server", "site"])
}
KEYS = {name: signer.public_key().public_bytes_raw().hex() for name, signer in SIGNERS.items()}
DATA = {"server": None, "site": "ab"}
ROUNDS = 2
PLAN = Plan.solve(**json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8")))
FLOOR, FULL = PLAN.mu(3) ** 2, PLAN.mu(4) ** 2


class Run:
    """A run of several rounds with the server's and one site's ledger, that remembers what its calls returned."""

    def __init__(self, folder):
        self.folder = folder
        self.spent = dict.fromkeys(DATA, 0.0)  # by what has returned
        self.doing = dict.fromkeys(DATA, "nothing")
        self.between = []  # calls between the server's reservation and its commit, by round
        self.ledgers = {}

    def play(self, disk):
        """All rounds: reserve, send, commit, with two ledgers."""
        for name in DATA:
            self.ledgers[name] = Ledger(self.folder / f"{name}.jsonl", signer=SIGNERS[name], party=name)
        for number in range(ROUNDS):
            held = {"server": self.reserve("server", number)}
            start = len(disk.calls)
            held["site"] = self.reserve("site", number)
            self.commit("site", held["site"], number, 0)  # before it the vector has left
            self.between.append(disk.calls[start:])
            self.commit("server", held["server"], number, 0)
        self.close()

    def reserve(self, name, number, attempt=0):
        """Book a release in one of the ledgers."""
        self.doing[name] = "reserve"
        held = self.ledgers[name].reserve(
            run="run", round=number, attempt=attempt, plan=PLAN, private=True, data_set=DATA[name]
        )
        self.spent[name] += FLOOR
        self.doing[name] = "nothing"
        return held

    def commit(self, name, held, number, attempt):
        """Close it."""
        self.doing[name] = "commit"
        self.ledgers[name].commit(held, survivors=(0, 1, 2, 3), transcript=f"{number:02x}{attempt:02x}")
        self.spent[name] += FULL - FLOOR
        self.doing[name] = "nothing"

    def close(self):
        """Close the ledgers."""
        for ledger in self.ledgers.values():
            ledger.close()

    def allowed(self, name, torn):
        """What may have been spent, to the last release, after a stop."""
        spent, doing = self.spent[name], self.doing[name]
        more = {"nothing": [0.0], "reserve": [0.0, FLOOR], "commit": [0.0, FULL - FLOOR]}[doing]
        if doing == "commit" and 0 < len(torn) < len('{"closes":'):
            more = [FLOOR]  # too little was left to tell it from a reservation
        return [spent + each for each in more]


def check(state, run, folder):
    """The ledgers of one state after a stop: they open, hold what was released, and the run goes on with them."""
    folder.mkdir()
    for name, data in state.items():
        (folder / name).write_bytes(data)
    again = Run(folder)
    for name in DATA:
        path = folder / f"{name}.jsonl"
        torn = path.read_bytes().rpartition(b"\n")[2] if path.exists() else b""
        ledger = again.ledgers[name] = Ledger(path, signer=SIGNERS[name], party=name)
        spent = ledger._books.spend.mu_squared()
        assert spent == pytest.approx(min(run.allowed(name, torn), key=lambda each: abs(each - spent)), rel=1e-9, abs=0)
        again.spent[name] = spent
    for name in DATA:
        again.commit(name, again.reserve(name, ROUNDS, 1), ROUNDS, 1)
    again.close()
    for name in DATA:
        path = folder / f"{name}.jsonl"
        assert verify(path, keys={name: KEYS[name]}).head == "ok"
        closed = [entry.closes for entry in read_entries(path) if entry.kind == "commit"]
        assert len(set(closed)) == len(closed)
    assert not compare(folder / "site.jsonl", folder / "server.jsonl", site=0).contradictions


def counted(crash_disk):
    """The calls of a run that nothing stops, and those of each round between the server's reservation and its commit."""
    disk = crash_disk("whole")
    run = Run(disk.root)
    assert not disk.run(lambda: run.play(disk))
    return disk.calls, run.between


def test_calls_between_reserve_and_commit_are_counted(crash_disk):
    """Between the return of a reservation and its commit there are at least ten calls to stop before and after."""
    calls, between = counted(crash_disk)
    assert len(between) == ROUNDS
    for each in between:
        assert len(each) >= 10
        assert {"open", "pwrite", "write", "fsync", "replace"} <= set(each)
    assert len(calls) > 50


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_p22_stop_at_every_call(crash_disk, tmp_path, after):
    """P22: before and after each open, write, fsync and rename, with whatever of the unsynced reached the disk.

    The ledgers open, nothing that was released is forgotten, nothing counts twice, and the run goes on.
    """
    calls, _ = counted(crash_disk)
    seen = 0
    for at in range(len(calls)):
        disk = crash_disk(f"stop{at}")
        run = Run(disk.root)
        assert disk.run(lambda run=run, disk=disk: run.play(disk), at=at, after=after)
        states = disk.states()
        for ledger in run.ledgers.values():
            os.close(ledger._descriptor)
            ledger._descriptor = -1
        for number, state in enumerate(states):
            check(state, run, tmp_path / f"stop{at}-{number}")
        seen += len(states)
    assert seen > len(calls)


def unsynced_line(descriptor, data, offset):
    """A line that is not flushed."""
    os.pwrite(descriptor, data, offset)


def unsynced_replacement(path, data):
    """A replacement whose bytes are not flushed before it takes the name."""
    descriptor = os.open(f"{path}.partial", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(descriptor, data)
    os.close(descriptor)
    Path(f"{path}.partial").replace(path)
    storage._sync_folder(path.parent)


@pytest.mark.parametrize(
    ("module", "name", "fault"),
    [
        (book, "write_at", unsynced_line),
        (book, "replace_file", unsynced_replacement),
        (storage, "_sync_folder", lambda _folder: None),
    ],
    ids=["line", "head", "folder"],
)
def test_the_disk_finds_a_missing_sync(crash_disk, tmp_path, monkeypatch, module, name, fault):  # noqa: PLR0917 - fixtures
    """The harness has teeth: where one flush is left out, some state after a stop is no longer in order."""
    disk = crash_disk("unsynced")
    monkeypatch.setattr(module, name, fault)
    run = Run(disk.root)
    assert not disk.run(lambda: run.play(disk))
    states = disk.states()
    monkeypatch.undo()
    wrong = 0
    for number, state in enumerate(states):
        try:
            check(state, run, tmp_path / f"state{number}")
        except (AssertionError, LedgerError):
            wrong += 1
    assert wrong


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from privacy.ledger import Ledger
from privacy.plan import Plan
folder, plan = Path(sys.argv[1]), Plan.from_json(sys.argv[2])
kills, chance = int(sys.argv[3]), random.Random(int(sys.argv[4]))

def play(life, ready):
    books = {}
    for number, name in enumerate(["server", "site"]):
        signer = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        books[name] = Ledger(folder / f"{name}.jsonl", signer=signer, party=name)
    sent = os.open(folder / "sent.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = 0
    os.write(ready, b".")
    while True:
        data = {"server": None, "site": "ab"}
        held = {
            name: book.reserve(run="run", round=number, attempt=life, plan=plan, private=True, data_set=data[name])
            for name, book in books.items()
        }
        os.write(sent, f"{number} {life}\\n".encode())
        os.fsync(sent)
        for name in ("site", "server"):
            books[name].commit(held[name], survivors=(0, 1, 2, 3), transcript=f"{number:08x}{life:04x}")
        number += 1

plan.budget()  # imports what is slow to import, once
for life in range(kills):
    listen, ready = os.pipe()
    child = os.fork()
    if not child:
        play(life, ready)
    if life % 5:  # every fifth is killed while it opens the ledgers, or soon after
        os.read(listen, 1)
    time.sleep(chance.uniform(0.0, 0.1))
    os.close(listen)
    os.close(ready)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
"""


def test_p22_fifty_kills_at_random(tmp_path):
    """P22: signal 9 at fifty random moments: the ledgers open, every sent round is spent, and none is spent twice."""
    plan = Plan.solve(
        **{
            name: getattr(PLAN, name)
            for name in PLAN.to_fields()
            if name not in {"format", "noise_multiplier", "rounds"}
        },
        rounds=100_000,
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), plan.to_json(), "50", "11"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sent = [tuple(map(int, line.split())) for line in (tmp_path / "sent.log").read_text().splitlines()]
    assert len(sent) > 20
    still_open = 0
    for name in DATA:
        path = tmp_path / f"{name}.jsonl"
        with Ledger(path, signer=SIGNERS[name], party=name) as ledger:
            still_open += ledger.total().open
        assert verify(path, keys={name: KEYS[name]}).head == "ok"
        entries = read_entries(path)
        reserved = {entry.seq: (entry.round, entry.attempt) for entry in entries if entry.kind == "reserve"}
        assert set(sent) <= set(reserved.values())
        assert len(set(reserved.values())) == len(reserved)
        closed = [entry.closes for entry in entries if entry.kind == "commit"]
        assert len(set(closed)) == len(closed)
        assert {reserved[seq] for seq in closed} <= set(sent)
        torn = [entry for entry in entries if entry.kind == "recovered" and entry.mu]
        squares = len(closed) * plan.mu(4) ** 2 + (len(reserved) - len(closed) + len(torn)) * plan.mu(3) ** 2
        assert ledger._books.spend.mu_squared() == pytest.approx(squares, rel=1e-9)
    assert still_open
    assert not compare(tmp_path / "site.jsonl", tmp_path / "server.jsonl", site=0).contradictions
    assert json.loads((tmp_path / "server.head.json").read_bytes())["writer"] == "server"
