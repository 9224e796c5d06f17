"""The rows about a whole run: it goes on where it was killed, and does not depend on who is fast."""

import functools
import itertools
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx

from fl import model, resume, rounds, run
from fl.checkpoint import Checkpoints
from fl.cli import main
from fl.config import dump_config
from fl.errors import DataError
from fl.model import Adapter
from fl.simulation import Consortium, consortium, runs
from fl.simulation.folder import held
from privacy.errors import BudgetExceededError
from privacy.ledger import read_entries
from secagg.engines.inprocess import InProcessEngine
from secagg.params import PHASES


class Normed(nnx.Module):
    """With batch statistics, which stay at the sites, and dropout."""

    def __init__(self, features, rngs):
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.linear = nnx.Linear(features, 1, rngs=rngs)

    def __call__(self, x):
        """(batch, features) → (batch, 1)."""
        return self.linear(self.dropout(self.norm(x)))


ADAPTIVE = "privacy.adaptive={bit_noise=12.0, expected=60, min_clip=0.01, max_clip=100.0}"
KINDS = {
    "averaging": ("model.kind=mlp", "model.hidden=[3]", "server.optimizer=adam", "server.average=last_half"),
    "normed": (
        "model.kind=own:normed",
        "algorithm.local_steps=2",
        "algorithm.batch_size=8",
        "model.personal=['linear.bias']",
    ),
    "scaffold": ("algorithm={name='scaffold', local_steps=3, batch_size=8, learning_rate=0.5}",),
    "private": (ADAPTIVE,),
}
SILENCES = {0: {"east": "mask"}, 1: {"south": "mask"}, 2: {"west": "unmask"}}
WHOLE = {"averaging": SILENCES, "normed": SILENCES, "scaffold": SILENCES, "private": {}}  # who is missing costs budget


@pytest.fixture(scope="module")
def config_of(toy):
    """`config_of(kind)`: three rounds of an experiment that keeps state on both sides; five under privacy, whose budget has a round to spare."""
    factory = model.factory

    def build(kind, mode="secure"):
        private = kind == "private"
        return toy(*KINDS[kind], rounds=5 if private else 3, privacy={} if private else None, mode=mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "factory", lambda kind, *rest: Normed if kind == "own:normed" else factory(kind, *rest))
        yield build


class KilledError(BaseException):
    """What no handler of the product catches, as it catches no SIGKILL."""


def kill(*_args, **_kwargs):
    """In the place of something that a killed process did not come to."""
    raise KilledError


def counted(times, then=kill):
    """A function that does nothing so many times, and then kills."""
    left = [times]

    def call(*args, **kwargs):
        left[0] -= 1
        return then(*args, **kwargs) if left[0] < 0 else None

    return call


def before(place, name, times):
    """Kill where a method is called for the (times + 1)-th time, before it does anything."""
    whole, tick = getattr(place, name), counted(times)

    def call(*args, **kwargs):
        tick()
        return whole(*args, **kwargs)

    return place, name, call


def in_frame(phase, number):
    """A tap that kills when the first frame of a phase arrives in a round."""
    begun = []

    def tap(at, sender, _frame):
        if at == PHASES[0] and sender == 0:
            begun.append(at)
        if at == phase and len(begun) == number + 1:
            raise KilledError

    return tap


KILLS = {
    "after round 0": lambda: {"progress": counted(0)},
    "after round 1": lambda: {"progress": counted(1)},
    "after the last round": lambda: {"progress": counted(2)},
    "in round 0, at the masked vectors": lambda: {"tap": in_frame("mask", 0)},
    "in round 1, before anything": lambda: {"tap": in_frame("advertise", 1)},
    "in round 2, at the last frames": lambda: {"tap": in_frame("unmask", 2)},
    "before a line of metrics": lambda: {"patch": before(rounds, "append_line", 1)},
    "before an evaluation": lambda: {"patch": before(runs, "append_line", 1)},
    "before the first checkpoint": lambda: {"patch": before(Checkpoints, "save", 0)},
    "before the second checkpoint": lambda: {"patch": before(Checkpoints, "save", 1)},
    "before result.json": lambda: {"patch": before(runs, "write_file", 0)},
    "before the report": lambda: {"patch": before(runs, "write_report", 0)},
}
SOME = (
    "after round 1",
    "in round 1, before anything",
    "in round 2, at the last frames",
    "before the second checkpoint",
)


def killed(config, folder, ledgers, how, silences=SILENCES):
    """A run that dies in that way."""
    given = how() | {"silences": silences}
    with pytest.MonkeyPatch.context() as patch:
        if "patch" in given:
            patch.setattr(*given.pop("patch"))
        with pytest.raises(KilledError):
            run(config, out=folder, ledgers=ledgers, insecure_test_seed=5, **given)


def bits(result):
    """The published model, every leaf of it."""
    adapter = Adapter.of(result.model)
    return {name: np.asarray(leaf).tobytes() for name, leaf in (adapter.params | adapter.local).items()}


def lines(folder, name, without=()):
    """A run's lines without what two runs never have in common: their times, and the transcripts, which are bound to the run's name."""
    read = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in {"seconds", "transcript", *without}} for line in read
    ]


@pytest.fixture(scope="module")
def uninterrupted(config_of, tmp_path_factory):
    """`uninterrupted(kind)`: the run that nothing happened to."""

    @functools.cache
    def whole(kind):
        folder = tmp_path_factory.mktemp(kind)
        out, ledgers = folder / "run", folder / "ledgers"
        return run(config_of(kind), out=out, ledgers=ledgers, insecure_test_seed=5, silences=WHOLE[kind])

    return whole


def is_as_if_nothing_had_happened(result, whole, *, private):
    """Model, metrics, evaluations and scores are bitwise those of the uninterrupted run."""
    # A round that was reserved and not committed is booked again, as another attempt: that is all that may differ.
    booked = ("attempt", "epsilon") if private else ()
    assert bits(result) == bits(whole)
    assert lines(result.folder, "metrics.jsonl", booked) == lines(whole.folder, "metrics.jsonl", booked)
    assert lines(result.folder, "evaluation.jsonl") == lines(whole.folder, "evaluation.jsonl")
    found, expected = (json.loads((each.folder / "result.json").read_text()) for each in (result, whole))
    for key in ("auc", "accuracy", "sites", "dropouts", "bytes", "rounds", "private"):
        assert found[key] == expected[key]
    assert (result.folder / "report.html").exists()


@pytest.mark.case("F9")
@pytest.mark.parametrize(
    ("kind", "where"),
    [*(("averaging", where) for where in list(KILLS)[::2]), *zip(list(KINDS)[1:], itertools.cycle(SOME), strict=False)],
)
def test_a_killed_server_goes_on(config_of, uninterrupted, tmp_path, *, kind, where):
    """Wherever it was killed, what comes out is bitwise what would have come out: optimiser state and what sites keep included."""
    folder, ledgers = tmp_path / "killed", tmp_path / "ledgers"
    killed(config_of(kind), folder, ledgers, KILLS[where], WHOLE[kind])
    result = resume(folder, ledgers=ledgers)
    is_as_if_nothing_had_happened(result, uninterrupted(kind), private=kind == "private")
    if kind == "private":
        entries = read_entries(result.ledger)
        made = [(entry.round, entry.attempt) for entry in entries if entry.kind == "reserve"]
        assert len(made) == len(set(made)) == 5 + (where != "after round 1")
        assert [entry.round for entry in entries if entry.kind == "commit"][-1] == 4


@pytest.mark.case("F9")
def test_what_was_sent_stays_spent(config_of, tmp_path):
    """A budget without a round to spare ends the run that was killed in one, by name; rounds before it stand, and nothing is forgotten."""
    folder, ledgers = tmp_path / "killed", tmp_path / "ledgers"
    silences = {number: {"east": "mask"} for number in range(5)}
    killed(config_of("private"), folder, ledgers, KILLS["in round 2, at the last frames"], silences)
    before = lines(folder, "metrics.jsonl")
    with pytest.raises(BudgetExceededError, match="the next release would bring epsilon to"):
        resume(folder, ledgers=ledgers)
    assert lines(folder, "metrics.jsonl")[:2] == before
    made = [
        entry.attempt for entry in read_entries(folder / "ledger.jsonl") if (entry.kind, entry.round) == ("reserve", 2)
    ]
    assert made == [0, 1]


@pytest.mark.case("F9")
def test_it_is_killed_again_and_again(config_of, uninterrupted, tmp_path):
    """A run that is killed in every round comes to the same end; taken up once more when it has ended, it stays as it is."""
    folder, ledgers = tmp_path / "killed", tmp_path / "ledgers"
    killed(config_of("averaging"), folder, ledgers, KILLS["after round 0"])
    for _ in range(2):
        with pytest.raises(KilledError):
            resume(folder, ledgers=ledgers, progress=kill)
    results = [resume(folder, ledgers=ledgers) for _ in range(2)]
    for result in results:
        is_as_if_nothing_had_happened(result, uninterrupted("averaging"), private=False)


DYING = """
import os, signal, sys
from pathlib import Path
from fl import load_config, run

def die(record):
    if record.round == 1:
        os.kill(os.getpid(), signal.SIGKILL)

silences = {0: {"east": "mask"}, 1: {"south": "mask"}, 2: {"west": "unmask"}}
run(load_config(sys.argv[1]), out=Path(sys.argv[2]), insecure_test_seed=5, silences=silences, progress=die)
"""


@pytest.mark.case("F9")
def test_a_process_that_is_killed(config_of, uninterrupted, tmp_path):
    """SIGKILL, then `fl resume` in another process: the same, and a run that is still alive is not taken up by a second process."""
    file, folder = tmp_path / "toy.toml", tmp_path / "killed"
    file.write_text(dump_config(config_of("averaging")))
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(file), str(folder)], capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    with held(folder):
        refused = CliRunner().invoke(main, ["resume", str(folder)])
        assert (refused.exit_code, refused.stderr) == (
            1,
            f"fl: {folder}: in use: another process runs in this folder\n",
        )
    typed = CliRunner().invoke(main, ["resume", str(folder), "--json"])
    assert typed.exit_code == 0, typed.output
    is_as_if_nothing_had_happened(resume(folder), uninterrupted("averaging"), private=False)


@pytest.mark.case("F9")
def test_it_goes_on_with_its_own_data_only(toy, write_tables, tmp_path):
    """Where a site's table is another by then, the run is refused with the site's name: it would be no longer the same run."""
    rows = {"east": (40, 12), "south": (28, 12), "west": (24, 12)}
    data = write_tables(tmp_path / "data", rows)
    killed(toy(folder=data, rounds=3), tmp_path / "run", tmp_path, KILLS["after round 0"])
    write_tables(data, rows | {"south": (28, 13)})
    with pytest.raises(DataError, match="site south: its table is not the one with which the run began"):
        resume(tmp_path / "run", ledgers=tmp_path)
    write_tables(data, rows)
    assert len(resume(tmp_path / "run", ledgers=tmp_path).history) == 3


class Shuffled(InProcessEngine):
    """Asks the sites in another order, and lets their answers arrive in another one again."""

    order = np.random.default_rng(0)

    def exchange(self, phase, frames, *, deadline_s):
        """As the engine it comes from."""
        asked = list(frames)
        self.order.shuffle(asked)
        answers = []
        for client in asked:
            answers += super().exchange(phase, One(frames, client), deadline_s=deadline_s)
        self.order.shuffle(answers)
        yield from answers


class One(dict):
    """The frame for one client, made when it is looked up."""

    def __init__(self, frames, client):
        super().__init__({client: None})
        self.frames = frames

    def __getitem__(self, client):
        """The frame."""
        return self.frames[client]


@pytest.fixture
def shuffle(monkeypatch):
    """`shuffle(seed)`: from now on sites answer, and train, in an order drawn from the seed."""
    participants = Consortium._participants

    def put(seed):
        monkeypatch.setattr(Shuffled, "order", np.random.default_rng(seed))
        monkeypatch.setattr(consortium, "InProcessEngine", Shuffled)

        def turned(self, announcement):
            parts = list(participants(self, announcement).items())
            Shuffled.order.shuffle(parts)
            return dict(parts)

        monkeypatch.setattr(Consortium, "_participants", turned)

    return put


@pytest.mark.case("F11")
@pytest.mark.parametrize(
    ("kind", "mode"),
    [*((kind, "secure") for kind in KINDS), ("averaging", "ideal"), ("averaging", "plain"), ("scaffold", "plain")],
)
def test_arrival_in_another_order(config_of, tmp_path, shuffle, *, kind, mode):
    """Whoever answers first, in every exchange and in every mode: model and metrics are bitwise the same under one seed."""

    def once(name):
        config = config_of(kind, mode)
        given = {"out": tmp_path / name, "ledgers": tmp_path / f"{name}-ledgers", "silences": WHOLE[kind]}
        return run(config, insecure_test_seed=5, **given)

    whole = once("whole")
    shuffle(1)
    result = once("shuffled")
    assert bits(result) == bits(whole)
    assert lines(result.folder, "metrics.jsonl") == lines(whole.folder, "metrics.jsonl")


@pytest.mark.case("F11")
def test_the_order_was_another(toy, tmp_path, shuffle):
    """The test above is not empty: frames did arrive in another order."""

    def order(name):
        arrived = []
        run(toy(), out=tmp_path / name, tap=lambda phase, sender, _frame: arrived.append((phase, sender)))
        return arrived

    usual = order("usual")
    shuffle(1)
    other = order("other")
    assert usual != other
    assert sorted(usual) == sorted(other)
