"""How much faster and smaller is a round than Flower's SecAgg+ on the same vectors, in the same run?

Both protocols run whole, in this process, without a network: every client's every stage, the server's every stage, the same n,
threshold and silent clients, from the bytes a party receives to the bytes it sends. Flower's side is its own code from the
released package: `SecAggPlusWorkflow` drives `secaggplus_mod`, and every message between them is deflated and inflated the way
its runtime does it. Flower gets float32 vectors and rounds them itself; we get the same values as the integers on its grid
(2**22 steps over -8..8), in the same ring of 32 bits unless another is asked for. "bare" is Flower without its message encoding
and without its rounding: the cryptography and the sums alone.

The figures of a client are the sum over the stages of the median over the clients. Without the package `flwr` (the extra
`flower`) the rows say "not run", and the targets are unmet.
"""

import argparse
import dataclasses
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata, util
from typing import Any

import numpy as np
import numpy.typing as npt

from secagg import Block, RoundParams
from secagg.params import SlackWarning
from secagg.testing import simulate_round

Vectors = Mapping[int, npt.NDArray[Any]]

CLIPPING, STEPS, MODULUS = 8.0, 2**22, 2**32
BOUND = STEPS // 2
WEIGHT = 1000
AFTER_UPLOAD = ("collect_masked_vectors", "unmask")


@dataclasses.dataclass(frozen=True)
class Case:
    """A round to compare: clients, coordinates, clients silent at the upload, and the least ratios asked for."""

    n: int
    d: int
    drop: int
    client_target: float | None = None
    server_target: float | None = None
    repeat: int = 5


CASES = (
    Case(10, 1_000_000, 0, client_target=4, server_target=8),
    Case(10, 1_000_000, 3),
    Case(32, 1_000_000, 0, server_target=50, repeat=3),
    Case(32, 1_000_000, 3, repeat=3),
    Case(100, 100_000, 0, client_target=15, server_target=300, repeat=1),
    Case(100, 100_000, 10, repeat=1),
)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one round took: seconds of one client and of the server, all stages, and bytes that one client sends.

    `bare_*`: the same seconds without message encoding and rounding.
    """

    client_s: float
    server_s: float
    upload: float
    bare_client_s: float
    bare_server_s: float


def vectors(case: Case) -> tuple[Vectors, Vectors]:
    """One float32 vector a client, and the same on Flower's grid as int32."""
    rng = np.random.default_rng(0)
    grid = {i: rng.integers(-BOUND // 8, BOUND // 8, case.d, dtype=np.int32) for i in range(case.n)}
    return {i: x.astype(np.float32) * np.float32(2 * CLIPPING / STEPS) for i, x in grid.items()}, grid


def our_params(case: Case, suite: str, bits: int | None) -> RoundParams:
    """The round for these vectors; without a ring, in the smallest one that provably holds their sum."""
    bits = bits or (case.n * BOUND).bit_length() + 1
    return RoundParams(cohort=tuple(range(case.n)), blocks=(Block("update", case.d, bits, BOUND),), suite=suite)


def our_round(params: RoundParams, inputs: Vectors, drop: int) -> Figures:
    """One round of ours; its frames are encoded and decoded inside the time, and it rounds nothing."""
    n = len(params.cohort)
    silent = dict.fromkeys(params.cohort[n - drop :], "mask")
    outcome = simulate_round(params, {i: {"update": x} for i, x in inputs.items()}, silent)
    if not np.array_equal(outcome.sums["update"], sum(inputs[i].astype(np.int64) for i in outcome.survivors)):
        raise RuntimeError("our sum is not the sum of the survivors' vectors")
    senders = {phase: n if phase in ("advertise", "share") else n - drop for phase in outcome.bytes_up}
    upload = sum(count / senders[phase] for phase, count in outcome.bytes_up.items())
    client_s, server_s = (sum(outcome.seconds[party].values()) for party in ("client", "server"))
    return Figures(client_s, server_s, upload, client_s, server_s)


class Clock:
    """Seconds of one kind of work, added up."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Adds the seconds spent inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def around(self, job: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*arguments: object) -> Any:  # noqa: ANN401 - whatever the job gives
            with self.running():
                return job(*arguments)

        return timed


class FlowerRound:
    """Flower's workflow and mod around one set of vectors, in one process.

    It plays Flower's grid, strategy and client apps: it carries messages, takes the times, and hands over training results that
    were made before. A strategy that keeps the aggregate as it is adds nothing to the server's time.
    """

    def __init__(self, threshold: int, inputs: Vectors, drop: int) -> None:
        from flwr.app import Context, RecordDict  # noqa: PLC0415 - an optional dependency, here and below
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters  # noqa: PLC0415
        from flwr.compat.common.recorddict_compat import fitres_to_recorddict  # noqa: PLC0415
        from flwr.supercore.task_identity import TaskIdentity  # noqa: PLC0415

        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.threshold = threshold
        # Flower's node ids are random 64-bit numbers; their size is part of its messages.
        ids = np.random.default_rng(1).integers(2**62, size=len(inputs)).tolist()
        self.vectors = dict(zip(ids, inputs.values(), strict=True))
        self.silent = set(ids[len(ids) - drop :])
        self.contexts = {i: Context(1, i, {}, RecordDict(), {}) for i in ids}
        self.results = {
            i: fitres_to_recorddict(
                FitRes(Status(Code.OK, ""), ndarrays_to_parameters([x]), WEIGHT, {}), keep_input=True
            )
            for i, x in self.vectors.items()
        }
        self.client_s: dict[str, list[float]] = defaultdict(list)
        self.bare_client_s: dict[str, list[float]] = defaultdict(list)
        self.sent: dict[str, list[int]] = defaultdict(list)
        self.clients, self.server_codec, self.rounding, self.unrounding = Clock(), Clock(), Clock(), Clock()
        self.aggregate: npt.NDArray[Any] | None = None

    def run(self) -> Figures:
        """The whole round.

        Raises:
            RuntimeError: Flower stopped, or its mean is further from the true one than its rounding explains.
        """
        from flwr.app import Context, RecordDict  # noqa: PLC0415
        from flwr.app.message import ArrayRecord, ConfigRecord  # noqa: PLC0415
        from flwr.server.compat.legacy_context import LegacyContext  # noqa: PLC0415
        from flwr.server.workflow import SecAggPlusWorkflow  # noqa: PLC0415

        state = RecordDict({"config": ConfigRecord({"current_round": 1}), "parameters": ArrayRecord()})
        context = LegacyContext(Context(1, 1, {}, state, {}), strategy=self)
        workflow = SecAggPlusWorkflow(
            1.0,
            self.threshold,
            max_weight=WEIGHT,
            clipping_range=CLIPPING,
            quantization_range=STEPS,
            modulus_range=MODULUS,
        )
        total = Clock()
        with self._rounding_timed(SecAggPlusWorkflow), total.running():
            workflow(self, context)
        self._check()
        client, bare = (sum(map(statistics.median, s.values())) for s in (self.client_s, self.bare_client_s))
        server = total.seconds - self.clients.seconds
        return Figures(
            client,
            server,
            sum(map(statistics.mean, self.sent.values())),
            bare,
            server - self.server_codec.seconds - self.unrounding.seconds,
        )

    @contextmanager
    def _rounding_timed(self, workflow: type) -> Iterator[None]:
        from flwr.client.mod import secaggplus_mod  # noqa: PLC0415 - the package exports the function under the module's name

        mod, server = sys.modules[secaggplus_mod.__module__], sys.modules[workflow.__module__]
        quantize, dequantize = mod.quantize, server.dequantize
        mod.quantize, server.dequantize = self.rounding.around(quantize), self.unrounding.around(dequantize)
        try:
            yield
        finally:
            mod.quantize, server.dequantize = quantize, dequantize

    def _check(self) -> None:
        if self.aggregate is None:
            raise RuntimeError("Flower gave no aggregate")
        alive = [x for i, x in self.vectors.items() if i not in self.silent]
        error = np.abs(self.aggregate - np.mean(alive, axis=0, dtype=np.float64)).max()
        if error > 1e-4:
            raise RuntimeError(f"Flower's mean is off by {error}")

    # What Flower's workflow calls on a grid and on a strategy.

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        """Hands each message to its client and gives back the answers; the encoding of messages counts, for either side."""
        del timeout
        replies = []
        for message in messages:
            client = message.metadata.dst_node_id
            stage = str(message.content.config_records["secaggplus_configs"]["stage"])
            with self.server_codec.running():
                wire = deflate(message)
            if client in self.silent and stage in AFTER_UPLOAD:
                continue
            with self.clients.running():
                answer = self._client(wire, client, stage)
                self.sent[stage].append(sum(map(len, answer[1].values())))
            with self.server_codec.running():
                replies.append(inflate(*answer))
        return replies

    def _client(self, wire: tuple[str, dict[str, bytes]], client: int, stage: str) -> tuple[str, dict[str, bytes]]:
        from flwr.app import Message  # noqa: PLC0415
        from flwr.client.mod import secaggplus_mod  # noqa: PLC0415

        codec, protocol, rounding = Clock(), Clock(), self.rounding.seconds
        with codec.running():
            message = inflate(*wire)
        fit = Message(self.results[client], reply_to=message)
        with protocol.running():
            reply = secaggplus_mod(message, self.contexts[client], lambda _message, _context: fit)
        with codec.running():
            answer = deflate(reply)
        self.client_s[stage].append(codec.seconds + protocol.seconds)
        self.bare_client_s[stage].append(protocol.seconds - (self.rounding.seconds - rounding))
        return answer

    def configure_fit(self, server_round: int, parameters: object, client_manager: object) -> list[tuple[Any, Any]]:
        """Every client takes part; no model is sent."""
        from flwr.common import FitIns, Parameters  # noqa: PLC0415

        del server_round, parameters, client_manager
        proxies = {i: type("Proxy", (), {"node_id": i})() for i in self.vectors}
        return [(proxy, FitIns(Parameters([], "numpy.ndarray"), {})) for proxy in proxies.values()]

    def aggregate_fit(
        self, server_round: int, results: list[tuple[Any, Any]], failures: object
    ) -> tuple[None, dict[str, Any]]:
        """Keeps the aggregate."""
        from flwr.common import parameters_to_ndarrays  # noqa: PLC0415

        del server_round, failures
        self.aggregate = parameters_to_ndarrays(results[0][1].parameters)[0]
        return None, {}


def deflate(message: Any) -> tuple[str, dict[str, bytes]]:  # noqa: ANN401 - Flower's Message, an optional dependency
    """A Flower message as its runtime sends it: the id of its root object, and the bytes of every object."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute  # noqa: PLC0415

    with no_object_id_recompute():
        objects = get_all_nested_objects(message)
        return message.object_id, {name: each.deflate() for name, each in objects.items()}


def inflate(root: str, contents: dict[str, bytes]) -> Any:  # noqa: ANN401
    """The Flower message of these objects."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents  # noqa: PLC0415

    message = inflate_object_from_contents(root, contents, keep_object_contents=True)
    message.metadata.__dict__["_message_id"] = root
    return message


def compare(case: Case, suite: str, bits: int | None, repeat: int, *, flower: bool) -> dict[str, Any]:
    """Rounds of both, one after the other, their medians and ratios."""
    floats, integers = vectors(case)
    params = our_params(case, suite, bits)
    our_round(params, integers, case.drop)
    rounds: dict[str, list[Figures]] = {"ours": [], "flower": []}
    for _ in range(repeat):
        rounds["ours"].append(our_round(params, integers, case.drop))
        if flower:
            rounds["flower"].append(FlowerRound(params.threshold, floats, case.drop).run())
    row: dict[str, Any] = dataclasses.asdict(case) | {"repeat": repeat, "suite": suite, "threshold": params.threshold}
    row["bits"] = params.blocks[0].bits
    for name, figures in rounds.items():
        fields = [field.name for field in dataclasses.fields(Figures)]
        row[name] = {f: statistics.median(getattr(r, f) for r in figures) for f in fields} if figures else None
    row["ratios"] = {f: row["flower"][f] / row["ours"][f] for f in row["ours"]} if flower else None
    return row


def show(row: dict[str, Any]) -> None:
    """One case as a small table."""
    print(
        f"\nn = {row['n']}, d = {row['d']}, {row['drop']} silent at the upload, t = {row['threshold']}; ours: {row['suite']},"
        f" {row['bits']}-bit ring; median of {row['repeat']}"
    )
    print(f"{'':<12}{'ours':>9}{'Flower':>10}{'ratio':>8}{'target':>12}{'bare':>10}{'ratio':>8}")
    for name, unit, scale in (("client", "ms", 1e3), ("server", "ms", 1e3), ("upload", "MB", 1e-6)):
        key = name if name == "upload" else f"{name}_s"
        target = row.get(f"{name}_target")
        start = f"{f'{name} {unit}':<12}{scale * row['ours'][key]:>9.2f}"
        if row["flower"] is None:
            print(f"{start}   not run{f', >= {target:g} x unmet' if target else ''}")
            continue
        ratio, bare = row["ratios"][key], f"bare_{key}"
        verdict = f"{'>=' if ratio >= target else 'under'} {target:g}" if target else ""
        rest = f"{scale * row['flower'][bare]:>10.2f}{row['ratios'][bare]:>8.1f}" if name != "upload" else ""
        print(f"{start}{scale * row['flower'][key]:>10.2f}{ratio:>8.1f}{verdict:>12}{rest}", flush=True)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A round of ours beside one of Flower's SecAgg+.")
    parser.add_argument("--n", type=int, help="only the cases with this many clients")
    parser.add_argument(
        "--d", type=int, help="vectors of this length instead of the cases' own; no target applies then"
    )
    parser.add_argument("--drop", choices=("none", "some", "both"), default="both", help="cases with silent clients")
    parser.add_argument(
        "--suite", action="append", choices=("hybrid", "classical"), help="default hybrid; may be repeated"
    )
    ring = parser.add_mutually_exclusive_group()
    ring.add_argument("--bits", type=int, default=32, help="our ring; default 32, the same as Flower's modulus")
    ring.add_argument(
        "--tight", dest="bits", action="store_const", const=None, help="the smallest ring that holds the sum"
    )
    parser.add_argument("--repeat", type=int, help="rounds a case; default 5, 3 and 1 for n = 10, 32 and 100")
    parser.add_argument("--json", action="store_true", help="one JSON object a case")
    return parser.parse_args()


def main() -> None:
    """Print one table a case, or one JSON object."""
    chosen = options()
    warnings.simplefilter("ignore", SlackWarning)
    # Before Flower is imported: it reads its switches once, and would report every run to its makers.
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    version = metadata.version("flwr") if util.find_spec("flwr") else None
    if version is not None:
        import flwr.supercore  # noqa: F401, PLC0415 - it sets its logger up on import

        logging.getLogger("flwr").setLevel(logging.ERROR)
    if not chosen.json:
        print(f"Flower {version or 'is not installed'}, {os.cpu_count()} cores, ratio = Flower / ours")
    for case in CASES:
        if chosen.n not in (None, case.n) or (chosen.drop != "both" and (chosen.drop == "some") != (case.drop > 0)):
            continue
        shape = dataclasses.replace(case, d=chosen.d, client_target=None, server_target=None) if chosen.d else case
        for suite in chosen.suite or ["hybrid"]:
            row = compare(shape, suite, chosen.bits, chosen.repeat or case.repeat, flower=version is not None)
            if chosen.json:
                print(json.dumps(row | {"flower_version": version}), flush=True)
            else:
                show(row)


if __name__ == "__main__":
    main()
