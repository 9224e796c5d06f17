"""SIGKILL at every step of a run, in processes of their own, and what `resume` makes of what is left."""

import json
import random
import signal
import subprocess
import sys

import pytest

from fl import model
from fl.checkpoint import Checkpoints
from fl.config import dump_config
from fl.model import Adapter
from fl.simulation import resume, run
from privacy.ledger import read_entries, verify

ROUNDS = 9  # enough of them that the survivors beyond the floor pay for two rounds that are done again
SILENCES = {1: {"east": "mask"}, 2: {"west": "unmask"}}
SITES = ("east", "north", "south", "west")

# Keeps batch statistics and a personal bias at its site, and draws dropout.
NORMED = """
from flax import nnx

from fl import model

class Normed(nnx.Module):
    def __init__(self, features, rngs):
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.unit = nnx.Linear(features, 1, rngs=rngs)

    def __call__(self, x):
        return self.unit(self.dropout(self.norm(x)))

def factory(kind, *rest, real=model.factory):
    return Normed if kind == "own:normed" else real(kind, *rest)
"""

# A process that imports everything once and forks for each run; nothing is computed before the fork, so that no thread is lost.
NURSERY = (
    NORMED
    + """
import json, os, shutil, signal, sys, threading, time
from pathlib import Path

import matplotlib.figure, orbax.checkpoint, sklearn.metrics

from fl import load_config, rounds
from fl.checkpoint import Checkpoints
from fl.simulation import folder, resume, run, runs
from privacy.ledger import Ledger

model.factory = factory

def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

def after(owner, name, when):
    real = getattr(owner, name)
    def call(*args, **kwargs):
        result = real(*args, **kwargs)
        if when(*args, **kwargs):
            die()
        return result
    setattr(owner, name, call)

def before(owner, name, when):
    real = getattr(owner, name)
    def call(*args, **kwargs):
        if when(*args, **kwargs):
            die()
        return real(*args, **kwargs)
    setattr(owner, name, call)

def watch(self, state, sites=(), real=Checkpoints.save):
    def spin(stem=f"round-{state.round:08d}"):
        while not any(path.is_file() for path in self._folder.glob(f"{stem}*tmp*/**/*")):
            pass
        die()
    if state.round == number + 1:
        threading.Thread(target=spin, daemon=True).start()
    return real(self, state, sites)

def half(target, real=shutil.rmtree, **rest):
    if target.name != "keys":
        return real(target, **rest)
    (target / "site-1.pem").unlink()
    die()

def arm(where):
    server = lambda ledger, *_, **told: ledger.path.name == "ledger.jsonl" and told.get("round") == number
    closing = lambda ledger, reservation, **_: ledger.path.name == "ledger.jsonl" and reservation.round == number
    north = lambda ledger, *_, **told: ledger.path.name != "ledger.jsonl" and told.get("round") == number
    if where == "the run reserved":
        after(Ledger, "reserve", server)
    elif where == "a site reserved":
        after(Ledger, "reserve", north)
    elif where == "the run committed":
        after(Ledger, "commit", closing)
    elif where == "the first head":
        before(Ledger, "_write_head", lambda ledger: ledger._signer is not None)
    elif where == "the line of metrics":
        after(rounds, "append_line", lambda _path, entry: entry["round"] == number)
    elif where == "in Orbax":
        Checkpoints.save = watch
    elif where == "the checkpoint":
        after(Checkpoints, "save", lambda _self, state, *_: state.round == number + 1)
    elif where == "before result.json":
        before(runs, "write_file", lambda path, _: path.name == "result.json")
    elif where == "before the keys go":
        runs.discard_keys = die
    elif where == "while the keys go":
        folder.shutil.rmtree = half

frames = 0

def tap(*_):
    global frames
    frames += 1
    if job["where"] == "a frame" and frames == number:
        die()

for line in sys.stdin:
    job = json.loads(line)
    number = job["number"]
    child = os.fork()
    if child == 0:
        signal.alarm(300)
        arm(job["where"])
        out, ledgers = Path(job["out"]), Path(job["ledgers"])
        if out.exists():
            resume(out, ledgers=ledgers, tap=tap)
        else:
            silences = {int(number): silent for number, silent in job["silences"].items()}
            seed = job["seed"]
            run(load_config(job["config"]), out=out, ledgers=ledgers, insecure_test_seed=seed, silences=silences, tap=tap)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
)


@pytest.fixture(scope="module")
def nursery():
    """The process that forks."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    process.stdout.close()
    process.stderr.close()
    process.wait()


@pytest.fixture(scope="module")
def config(toy):
    """Record-level privacy through the protocol."""
    return toy(private=True, rounds=ROUNDS)


@pytest.fixture
def kill(nursery, config, tmp_path):
    """A function that starts a run, or goes on with it, in a process that kills itself; where, and in which round or frame."""

    def start(where, number=0, seed=1, config=config):
        file = tmp_path / "run.toml"
        file.write_text(dump_config(config))
        job = {"config": str(file), "out": str(tmp_path / "run"), "ledgers": str(tmp_path / "ledgers")}
        job |= {"where": where, "number": number, "seed": seed, "silences": SILENCES}
        nursery.stdin.write(json.dumps(job) + "\n")
        nursery.stdin.flush()
        assert int(nursery.stdout.readline()) == signal.SIGKILL

    return start


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    return run(config, out=folder / "run", ledgers=folder / "ledgers", insecure_test_seed=1, silences=SILENCES)


def bits(result):
    """Of the published model."""
    adapter = Adapter.of(result.model)
    return adapter.hash(adapter.params)


def every_bit(result):
    """What the sites keep, as the last checkpoint has it."""
    checkpoints = Checkpoints(result.folder / "checkpoint")
    try:
        return {(i, name): leaf.tobytes() for i in range(4) for name, leaf in checkpoints.local(i).items()}
    finally:
        checkpoints.close()


def lines(result, name, *without):
    """The lines of a file, without some keys."""
    entries = [json.loads(line) for line in (result.folder / name).read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in without} for entry in entries]


def is_whole(result, whole):
    """Model, rounds and evaluations are bitwise those of the run that nothing happened to, and nothing is left over."""
    assert bits(result) == bits(whole)
    free = ("seconds", "attempt", "transcript", "epsilon")  # what a repeated round may change
    assert lines(result, "metrics.jsonl", *free) == lines(whole, "metrics.jsonl", *free)
    assert lines(result, "evaluation.jsonl") == lines(whole, "evaluation.jsonl")
    assert {path.name for path in result.folder.iterdir()} == {path.name for path in whole.folder.iterdir()}
    assert result.summary["ended"] is None
    assert [path.name for path in (result.folder / "checkpoint").iterdir()] == [f"round-{ROUNDS:08d}"]


def are_sound(result, ledgers, before):
    """No ledger went back, none has an attempt twice, all hold, and everybody signs the run's last entry."""
    for path in [result.ledger, *ledgers.glob("*.jsonl")]:
        assert path.read_bytes().startswith(before.get(path, b""))
        reserved = [(e.round, e.attempt) for e in read_entries(path) if e.kind == "reserve"]
        assert len(reserved) == len(set(reserved))
        assert {number for number, _ in reserved} >= set(range(ROUNDS)) - set(
            SILENCES
        )  # who was silent released nothing
        verify(path)
    report = verify(result.ledger)
    assert report.head == "ok"
    assert {each.party: each.seq for each in report.signatures} == dict.fromkeys(("server", *SITES), report.entries - 1)


def booked(folder):
    """Every ledger as it lies on disk."""
    return {
        path: path.read_bytes() for path in [folder / "run" / "ledger.jsonl", *(folder / "ledgers").glob("*.jsonl")]
    }


@pytest.mark.parametrize(
    ("where", "number", "seed"),
    [
        ("a frame", 30, 1),
        ("a site reserved", 2, None),
        ("the run committed", 2, 1),
        ("in Orbax", 2, 1),
        ("the checkpoint", ROUNDS - 1, None),
        ("while the keys go", 0, None),
        *(
            pytest.param(*point, marks=pytest.mark.sweep)
            for point in (
                ("the first head", 0, 1),
                ("the run reserved", 1, 1),
                ("the run committed", 2, None),
                ("the line of metrics", ROUNDS - 1, 1),
                ("before result.json", 0, 1),
                ("before the keys go", 0, None),
            )
        ),
    ],
)
def test_a_killed_run_goes_on(kill, whole, tmp_path, *, where, number, seed):
    """F9: wherever SIGKILL hits, the run goes on to the bits it would have had, and no ledger goes back."""
    kill(where, number, seed)
    before = booked(tmp_path)
    result = resume(tmp_path / "run", ledgers=tmp_path / "ledgers")
    are_sound(result, tmp_path / "ledgers", before)
    if seed is None:
        assert result.summary["private"]
        assert result.summary["rounds"] == ROUNDS
    else:
        is_whole(result, whole)
    if where.endswith("the keys go"):
        assert booked(tmp_path) == before  # it was finished: nothing was booked any more


@pytest.mark.parametrize("kind", ["normed", "scaffold"])
@pytest.mark.parametrize("where", ["the line of metrics", "the checkpoint"])
def test_what_sites_keep_is_of_the_same_round(kill, toy, tmp_path, monkeypatch, *, kind, where):
    """F9: statistics, personal leaves and control variates go on with the model that they belong to, to the same bits."""
    space = {}
    exec(compile(NORMED, "normed", "exec"), space)  # noqa: S102 - the text above, as the other process has it
    monkeypatch.setattr(model, "factory", space["factory"])
    chosen = {
        "normed": ("model.kind='own:normed'", "model.personal=['unit.bias']"),
        "scaffold": ("algorithm.name='scaffold'",),
    }
    config = toy(*chosen[kind], "checkpoint.every=2", mode="ideal", rounds=5)
    whole = run(config, out=tmp_path / "whole", insecure_test_seed=1, silences=SILENCES)
    kill(where, 3, config=config)
    result = resume(tmp_path / "run")
    assert [bits(result), every_bit(result)] == [bits(whole), every_bit(whole)]
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        assert lines(result, name, "seconds", "transcript") == lines(whole, name, "seconds", "transcript")
    assert len(set(every_bit(whole).values())) > (3 if kind == "normed" else 0)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", [1, None], ids=["test seed", "private"])
@pytest.mark.parametrize("number", range(12))
def test_a_run_is_killed_twice_at_random_frames(kill, whole, tmp_path, number, seed):
    """F9: killed at a random frame, and again while it goes on."""
    draw = random.Random(number)
    kill("a frame", draw.randrange(1, 130), seed)
    before = booked(tmp_path)
    kill("a frame", draw.randrange(1, 20), seed)
    assert all(data.startswith(before[path]) for path, data in booked(tmp_path).items() if path in before)
    before = booked(tmp_path)
    result = resume(tmp_path / "run", ledgers=tmp_path / "ledgers")
    are_sound(result, tmp_path / "ledgers", before)
    if seed is not None:
        is_whole(result, whole)
