"""How fast is a simulated round, beside pfl, FedJAX and Flower on the same task in the same run, and how does it scale?

The task: 100 clients with 20 examples each, all of them in every round, an MLP 784-128-10, one local epoch in batches of 10 by
SGD with rate 0.1, FedAvg; random data of MNIST's shape from a fixed seed, the same first parameters, nothing evaluated. Each
peer is its own released package under an interpreter of its own (see benchmarks/peers/README.md):

    python benchmarks/simulation.py --pfl PYTHON --fedjax PYTHON --flower PYTHON

or the same paths in SECAGG_BENCH_PFL, SECAGG_BENCH_FEDJAX and SECAGG_BENCH_FLOWER. A peer without one, that fails, or whose
last loss shows that it trained something else is "not run", and its line stays unmet. Our rounds and a peer's alternate: some
of ours, a whole run of the peer, again ours. A ratio is the median of those of neighbours, so that a slow minute of the machine
falls on both; beside it stands that of the quickest round of either, which a busy machine disturbs least. Both must reach the
target. "floor" is the same round written by hand in JAX, without anything around it: what a compiled program takes.

Beside it: the sum of integers instead of floats; 10 000 clients a round, and its peak memory against that of 100; a whole run
of logistic regression, 1000 clients, 10 a round, 100 rounds, compilation included; and memory at round 200 against round 50.
Each of these is measured in a process of its own. 10 000 clients share the records of 100, so the memory is the simulation's.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx

from fl import build_config, run
from fl.algorithms import LocalTraining, Server, WeightedEncoding, fedavg
from fl.data import GeneratedPopulation
from fl.model import MLP, Adapter, loss_function
from fl.simulation.aggregator import CohortAggregator
from fl.simulation.cohort import Cohort, Plainly
from fl.site import Agreement, Announcement
from privacy.codec import FixedPoint
from secagg.cores import CORES

Ids: TypeAlias = npt.NDArray[np.int64]
Mode: TypeAlias = Literal["plain", "ideal"]
Row: TypeAlias = dict[str, Any]

FEATURES, CLASSES, BATCH, RATE = 784, 10, 10, 0.1
LOSS_TOLERANCE = 5e-3
WARMUP = 3
PEERS_FOLDER = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        clients: Those that exist.
        cohort: Those that take part in a round.
        holders: Different sets of records; client i has those of i modulo this.
        examples: Of each client.
        hidden: Width of the hidden layer; 0 for logistic regression.
    """

    clients: int = 100
    cohort: int = 100
    holders: int = 100
    examples: int = 20
    hidden: int = 128

    @cached_property
    def start(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], list[npt.NDArray[np.float32]]]:
        """Features (holders, examples, 784), labels (holders, examples), and the first parameters w (in, out), b (out,) by layer."""
        rng = np.random.default_rng(0)
        x = rng.random((self.holders, self.examples, FEATURES), np.float32)
        y = rng.integers(0, CLASSES, (self.holders, self.examples))
        params: list[npt.NDArray[np.float32]] = []
        widths = [FEATURES, *([self.hidden] if self.hidden else []), CLASSES]
        for rows, columns in itertools.pairwise(widths):
            scale = np.float32(np.sqrt(2 / rows))
            params += [rng.standard_normal((rows, columns), np.float32) * scale, np.zeros(columns, np.float32)]
        return x, y, params

    def ids(self, number: int) -> Ids:
        """The cohort of a round, ascending."""
        if self.cohort == self.clients:
            return np.arange(self.clients)
        return np.sort(np.random.default_rng((1, number)).choice(self.clients, self.cohort, replace=False))


class Program(Protocol):
    """A simulation of a task."""

    def round(self, number: int) -> None:
        """One round; returns when the new model is there."""
        ...

    def loss(self) -> float:
        """The mean loss of the model on all training data."""
        ...


def mean_loss(params: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross entropy of x (n, 784), y (n,); () float32."""
    outputs = x
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        outputs = (outputs if weight is params[0] else jax.nn.relu(outputs)) @ weight + bias
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1).mean()


class Floor:
    """The round by hand: one compiled scan over the clients, its carry the sum of their parameters. One device."""

    def __init__(self, task: Task) -> None:
        self.task = task
        x, y, params = task.start
        self.data = jnp.asarray(x), jnp.asarray(y)
        self.params = [jnp.asarray(leaf) for leaf in params]
        self.step = jax.jit(self._step, donate_argnums=0)

    def _step(self, params: list[jax.Array], x: jax.Array, y: jax.Array, ids: jax.Array) -> list[jax.Array]:
        steps = self.task.examples // BATCH

        def batch(current: list[jax.Array], records: tuple[jax.Array, jax.Array]) -> tuple[list[jax.Array], None]:
            gradients = jax.grad(mean_loss)(current, *records)
            return [leaf - RATE * slope for leaf, slope in zip(current, gradients, strict=True)], None

        def client(total: list[jax.Array], holder: jax.Array) -> tuple[list[jax.Array], None]:
            batches = x[holder].reshape(steps, BATCH, FEATURES), y[holder].reshape(steps, BATCH)
            trained, _ = jax.lax.scan(batch, params, batches, unroll=steps)
            return [a + b for a, b in zip(total, trained, strict=True)], None

        total, _ = jax.lax.scan(client, [jnp.zeros_like(leaf) for leaf in params], ids % self.task.holders)
        return [leaf / len(ids) for leaf in total]

    def round(self, number: int) -> None:
        """One round."""
        self.params = self.step(self.params, *self.data, jnp.asarray(self.task.ids(number)))
        self.params[0].block_until_ready()

    def loss(self) -> float:
        """The loss at the end."""
        x, y = self.data
        return float(mean_loss(self.params, x.reshape(-1, FEATURES), y.reshape(-1)))


class Product:
    """Rounds as `fl run` takes them with `simulation.engine = "cohort"`: announce, train, encode, add up, the server's step."""

    def __init__(self, task: Task, mode: Mode) -> None:
        self.task = task
        x, y, params = task.start
        hidden = (task.hidden,) if task.hidden else ()
        built = Adapter.of(MLP(FEATURES, hidden, nnx.Rngs(0), outputs=CLASSES))
        values = [
            params[2 * (index // 2) + (index % 2 == 0)] for index in range(len(params))
        ]  # a bias comes before its kernel
        self.start = {name: jnp.asarray(value) for name, value in zip(built.params, values, strict=True)}
        self.adapter = dataclasses.replace(built, params=self.start)
        self.data = jnp.asarray(x), jnp.asarray(y, jnp.int32)
        encoding = WeightedEncoding(built.schema.layout, FixedPoint(64.0, 32, built.schema.dimension), max_weight=64)
        server = Server(self.adapter, optax.sgd(1.0), "last", 10_000)
        training = LocalTraining(optax.sgd(RATE), BATCH, epochs=1)
        self.algorithm = fedavg(server, loss_function("softmax"), training, encoding, task.cohort)
        clients = GeneratedPopulation(task.clients, task.examples, self._records, seed=0, data=self.data)
        agreement = Agreement("benchmark", clients.names, self.algorithm.blocks, None, "0" * 64, built.fingerprint)
        self.aggregate = CohortAggregator(
            Cohort(self.algorithm, clients, Plainly(built.schema.layout) if mode == "plain" else encoding, seed=0),
            agreement,
            self.adapter,
            clients=task.cohort if task.cohort < task.clients else None,
        )
        self.state = self.algorithm.init(self.start)

    def _records(
        self, _key: jax.Array, client: jax.Array, data: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        holder = client % self.task.holders
        return data[0][holder], data[1][holder], jnp.ones(self.task.examples, bool)

    def round(self, number: int) -> None:  # noqa: ARG002 - its own state counts
        """One round."""
        state, adapter = self.state, self.adapter
        announcement = Announcement(state.round, 0, adapter.ravel(state.params), adapter.hash(state.params))
        self.state = self.algorithm.server_update(state, self.aggregate(announcement).mean)

    def loss(self) -> float:
        """The loss at the end."""
        x, y = self.data
        outputs, _, _ = self.adapter.forward(
            self.state.params, {}, x.reshape(-1, FEATURES), key=jax.random.key(0), train=False
        )
        return float(loss_function("softmax")(outputs, y.reshape(-1)).mean())


def ours(mode: Mode, task: Task) -> Program:
    """The product's simulation of a task."""
    return Product(task, mode)


def logistic_clients(seed: int) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """1000 clients with 60 examples of MNIST's shape each, for a whole run."""
    x, y, _ = Task(clients=1000, holders=1000, examples=60, hidden=0).start
    del seed
    return {f"client-{index:04d}": pair for index, pair in enumerate(zip(x, y, strict=True))}


def rounds(program: Program, count: int, first: int) -> tuple[float, float]:
    """The median of the seconds of some rounds, numbered from `first`, and the quickest."""
    seconds: list[float] = []
    for number in range(first, first + count):
        start = time.perf_counter()
        program.round(number)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), min(seconds)


def status(field: str) -> int:
    """A field of this process's status, in bytes: VmRSS (resident now) or VmHWM (the most ever).

    The kernel's record of a process's usage (`ru_maxrss`) will not do: it is inherited through exec from the parent.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


# What is measured in a process of its own.


def many(clients: int, mode: Mode, repeat: int) -> Row:
    """Seconds of a round in which all of these take part, and the most memory ever."""
    program = ours(mode, Task(clients=clients, cohort=clients))
    program.round(0)
    return {"seconds": rounds(program, repeat, 1)[0], "peak": status("VmHWM")}


def logistic() -> Row:
    """Seconds of a whole `fl run`: 100 rounds with 10 of 1000 clients, 60 examples each; split, checkpoints and report included."""
    experiment = build_config(
        {
            "name": "logistic",
            "rounds": 100,
            "data": {"source": f"{__name__}:logistic_clients"},
            "model": {"kind": "logistic", "outputs": CLASSES, "loss": "softmax"},
            "algorithm": {"name": "fedavg", "local_epochs": 1, "batch_size": BATCH, "learning_rate": RATE},
            "secagg": {"mode": "plain"},
            "simulation": {"engine": "cohort", "cohort": 10, "evaluate_every": 20},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run(experiment, out=Path(folder) / "run")
        return {"seconds": time.perf_counter() - start}


def growth(mode: Mode) -> Row:
    """Resident memory after 50 and after 200 rounds of the task."""
    program = ours(mode, Task())
    resident = []
    for count, first in ((50, 0), (150, 50)):
        rounds(program, count, first)
        gc.collect()
        resident.append(status("VmRSS"))
    return {"early": resident[0], "late": resident[1]}


ALONE: dict[str, Callable[[], Row]] = {
    "100": partial(many, 100, "plain", 5),
    "10000": partial(many, 10_000, "plain", 3),
    "logistic": logistic,
    "growth": partial(growth, "plain"),
}


def output(command: list[str], timeout: float) -> Row:
    """The JSON object that a program printed last, or the reason why there is none."""
    try:
        # Our own files, with interpreters from the command line.
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)  # noqa: S603
        if done.returncode:
            return {"reason": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
        row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError, IndexError) as error:
        return {"reason": f"{type(error).__name__}: {error}"}
    return row


def alone(what: str, devices: int) -> Row:
    """One of `ALONE`, in a process of its own."""
    return output([sys.executable, __file__, "--devices", str(devices), "--alone", what], 600)


# Peers.


@dataclass(frozen=True)
class Peer:
    """A peer to compare with.

    Attributes:
        name: As it is printed.
        key: The option, and the end of the variable's name, that has its interpreter.
        arguments: How its script runs it: each peer's quickest way on two cores, pfl's plainest one beside it.
        target: The least ratio of its time to ours.
    """

    name: str
    key: str
    arguments: tuple[str, ...]
    target: float


PEERS = (
    Peer("pfl, one process", "pfl", ("--workers", "1"), 4.5),
    Peer("pfl, two processes", "pfl", ("--workers", "2"), 4.5),
    Peer("FedJAX", "fedjax", ("--backend", "jit"), 2.5),
    Peer("Flower with Ray", "flower", ("--cpus", "0.5"), 60),
)


def peer_row(peer: Peer, interpreter: str | None, program: Program, *, repeat: int, count: int) -> Row:
    """Some of our rounds, a run of the peer, and so on."""
    row: Row = {"case": peer.name, "target": f">= {peer.target:g} x"}
    if interpreter is None:
        return row | {"reason": f"no interpreter: --{peer.key} or SECAGG_BENCH_{peer.key.upper()}"}
    command = [interpreter, str(PEERS_FOLDER / f"{peer.key}_round.py"), *peer.arguments]
    command += ["--warmup", str(WARMUP), "--rounds", str(count)]
    expected = last_loss(WARMUP + count)
    theirs, mine = [], []
    for _ in range(repeat):
        mine.append(rounds(program, count, 0))
        found = output(command, 900)
        if "reason" in found:
            return row | found
        if abs(found["final_loss"] - expected) > LOSS_TOLERANCE:
            return row | {"reason": f"it ended with loss {found['final_loss']:.4f} where {expected:.4f} was expected"}
        theirs.append((found["seconds_per_round"], found["quickest"]))
        row |= {key: found[key] for key in ("version", "with", "final_loss")}
    ratios = [a / b for (a, _), (b, _) in zip(theirs, mine, strict=True)]
    best = min(quickest for _, quickest in theirs) / min(quickest for _, quickest in mine)
    return (
        row
        | timed(theirs)
        | {"ours": timed(mine), "ratio": statistics.median(ratios), "ratios": ratios, "ratio_of_quickest": best}
        | {"met": min(statistics.median(ratios), best) >= peer.target}
    )


def timed(turns: list[tuple[float, float]]) -> Row:
    """Some turns of (median, quickest) seconds: their median, the least and the greatest, and the quickest round."""
    medians = [median for median, _ in turns]
    return {
        "seconds": statistics.median(medians),
        "spread": [min(medians), max(medians)],
        "quickest": min(quickest for _, quickest in turns),
    }


def last_loss(count: int) -> float:
    """Where the hand-written round ends after some rounds: what all must reach."""
    program = Floor(Task())
    for number in range(count):
        program.round(number)
    return program.loss()


# Ours.


def own_row(case: str, program: Program, *, repeat: int, count: int, target: float | None) -> Row:
    """Rounds of 100 clients; checked to train what the hand-written round trains."""
    row: Row = {"case": case, "target": f"<= {1e3 * target:g} ms" if target else ""}
    for number in range(WARMUP):
        program.round(number)
    turns = [rounds(program, count, WARMUP + i * count) for i in range(repeat)]
    loss, expected = program.loss(), last_loss(WARMUP + repeat * count)
    if abs(loss - expected) > LOSS_TOLERANCE:
        return row | {"reason": f"it ended with loss {loss:.4f} where {expected:.4f} was expected"}
    row |= timed(turns) | {"final_loss": loss}
    return row | ({"met": row["seconds"] <= target} if target else {})


def scale_rows(devices: int) -> Iterator[Row]:
    """What is measured in processes of their own."""
    few, lots = alone("100", devices), alone("10000", devices)
    row: Row = {"case": "10 000 clients a round", "target": "<= 1600 ms"}
    yield row | lots | ({"met": lots["seconds"] <= 1.6} if "seconds" in lots else {})
    row = {"case": "peak memory, 10 000 / 100 clients", "target": "<= 1.1"}
    missing = few if "reason" in few else lots
    if "reason" in missing:
        yield row | missing
    else:
        yield row | {"quotient": lots["peak"] / few["peak"], "met": lots["peak"] <= 1.1 * few["peak"]}
    row, whole = {"case": "LR, 1000 clients, 100 rounds of 10", "target": "<= 10000 ms"}, alone("logistic", devices)
    yield row | whole | ({"met": whole["seconds"] <= 10} if "seconds" in whole else {})
    row, memory = {"case": "memory, round 200 / round 50", "target": "<= 1.01"}, alone("growth", devices)
    if "reason" in memory:
        yield row | memory
    else:
        yield row | {"quotient": memory["late"] / memory["early"], "met": memory["late"] <= 1.01 * memory["early"]}


def rows(chosen: argparse.Namespace) -> Iterator[Row]:
    """All lines of the table."""
    sizes = {"repeat": chosen.repeat, "count": chosen.rounds}
    plain = ours("plain", Task())
    yield own_row("floor: a scan by hand", Floor(Task()), **sizes, target=None)
    yield own_row("ours, plain mean", plain, **sizes, target=15e-3)
    yield own_row("ours, integers (ideal)", ours("ideal", Task()), **sizes, target=45e-3)
    for peer in PEERS:
        interpreter = getattr(chosen, peer.key) or os.environ.get(f"SECAGG_BENCH_{peer.key.upper()}")
        yield peer_row(peer, interpreter, plain, **sizes)
    yield from scale_rows(chosen.devices)


def show(row: Row) -> str:
    """One line of the table."""
    start, target = f"{row['case']:36}", f"{row['target']:>14}"
    if "reason" in row:
        return f"{start}{'not run':>10}{'':26}{target}{'  UNMET' if row['target'] else ''}: {row['reason']}"
    verdict = "" if "met" not in row else "  met" if row["met"] else "  UNMET"
    if "quotient" in row:
        return f"{start}{row['quotient']:>10.3f}{'':26}{target}{verdict}"
    quickest = f"{1e3 * row['quickest']:.1f}" if "quickest" in row else ""
    ratios = "".join(f"{f'{row[key]:.1f} x':>8}" if key in row else f"{'':8}" for key in ("ratio", "ratio_of_quickest"))
    return (
        f"{start}{1e3 * row['seconds']:>10.1f}{quickest:>10}{ratios}{target}{verdict:7}  {row.get('with', '')}".rstrip()
    )


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key in dict.fromkeys(peer.key for peer in PEERS):
        parser.add_argument(f"--{key}", metavar="PYTHON", help="the interpreter that has it")
    parser.add_argument("--repeat", type=int, default=3, help="times that ours and a peer take turns; default 3")
    parser.add_argument("--rounds", type=int, default=20, help="rounds in a turn, after the warm-up; default 20")
    parser.add_argument(
        "--devices", type=int, default=CORES, help="CPU devices that JAX sees for ours; default one a core"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--alone", choices=ALONE, help="measure one thing in this process, and print it as JSON")
    return parser.parse_args()


def main() -> None:
    """Print the table, or one JSON object a line."""
    chosen = options()
    jax.config.update("jax_num_cpu_devices", chosen.devices)  # type: ignore[no-untyped-call]
    if chosen.alone:
        print(json.dumps(ALONE[chosen.alone]()))
        return
    where = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "devices": chosen.devices,
        "load": round(os.getloadavg()[0], 1),
    }
    if chosen.json:
        print(json.dumps({"case": "machine"} | where), flush=True)
    else:
        print(", ".join(f"{name} {value}" for name, value in where.items()))
        print(f"{'case':36}{'ms':>10}{'quickest':>10}{'/ ours':>8}{'':8}{'target':>14}")
    for row in rows(chosen):
        print(json.dumps(row) if chosen.json else show(row), flush=True)


if __name__ == "__main__":
    main()
