"""The rows about processes: a site that comes up again, a second one in its name, two hundred rounds, and frames of any size."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from fl import run
from fl.config import dump_config
from fl.errors import RunError
from fl.model import Adapter
from fl.simulation import Consortium, ledgers
from fl.simulation.folder import held
from fl.site import Site
from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.noise import NoiseSource
from secagg import Block, messages
from secagg.engines.inprocess import InProcessEngine
from secagg.errors import DecodeError, GuardError, ParameterError, ServerFault, UnexpectedFrameError
from secagg.guard import FileGuard, MemoryGuard
from secagg.identity import Identity, Roster, ServerIdentity
from secagg.keyfile import create_client, load_client
from secagg.params import MAX_BODY_LENGTH, PHASES
from secagg.protocols.pairwise import ClientSession
from secagg.session import run_round
from secagg.testing import client_handler, simulate_round

UPDATE = Block("update", 7, 20, 1000)


# A site's process: it has its key file, its guard's file and the pinned roster, takes part in one round, and is gone.
SITE = """
import json, struct, sys
import numpy as np
from secagg import ClientPolicy
from secagg.guard import FileGuard
from secagg.identity import Roster
from secagg.keyfile import load_client
from secagg.protocols.pairwise import ClientSession

key, guard_file, roster_file, value = sys.argv[1:]
pinned = json.load(open(roster_file))
roster = Roster(
    clients={int(i): bytes.fromhex(k) for i, k in pinned["clients"].items()},
    server_verify_key=bytes.fromhex(pinned["verify"]),
    server_sealing_key=bytes.fromhex(pinned["sealing"]),
)

def read():
    return sys.stdin.buffer.read(struct.unpack(">I", sys.stdin.buffer.read(4))[0])

def write(frame):
    sys.stdout.buffer.write(struct.pack(">I", len(frame)) + frame)
    sys.stdout.buffer.flush()

policy = ClientPolicy(suites={"classical"}, max_rounds=3)
with FileGuard(guard_file) as guard:
    inputs = lambda params: {"update": np.full(7, int(value))}
    session = ClientSession.join(read(), policy, load_client(key, 2), roster, inputs, guard=guard)
    write(session.start())
    for _ in range(4):
        write(session.receive(read()))
"""


class Process:
    """A site in a process of its own, as a handler of the engine."""

    def __init__(self, *arguments):
        self.child = subprocess.Popen(
            [sys.executable, "-c", SITE, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def handle(self, _phase, frame):
        """One frame there, one back; None where the process has ended."""
        try:
            self.child.stdin.write(len(frame).to_bytes(4, "big") + frame)
            self.child.stdin.flush()
        except BrokenPipeError:
            return None
        size = self.child.stdout.read(4)
        return self.child.stdout.read(int.from_bytes(size, "big")) if size else None

    def end(self):
        """What it said as it ended."""
        return self.child.communicate()[1].decode()


@pytest.fixture
def household(tmp_path):
    """Keys of four clients, that of client 2 in a file, the server's, and the roster, also as a file."""
    create_client(tmp_path / "site.pem", 2, "south")
    identities = {i: Identity.generate(i) for i in (0, 1, 3)} | {2: load_client(tmp_path / "site.pem", 2)}
    server = ServerIdentity.generate("classical")
    roster = Roster({i: each.public_key for i, each in identities.items()}, server.verify_key, server.sealing_key)
    pinned = {
        "clients": {i: key.hex() for i, key in roster.clients.items()},
        "verify": roster.server_verify_key.hex(),
        "sealing": roster.server_sealing_key.hex(),
    }
    (tmp_path / "roster.json").write_text(json.dumps(pinned))
    return identities, server, roster


@pytest.mark.case("F10")
def test_a_site_comes_up_again_between_rounds(params_of, household, tmp_path):
    """A new process with the same key and guard files is in the next round as if it had never gone; while it lives, a second one is refused."""
    identities, server, roster = household
    files = (tmp_path / "site.pem", tmp_path / "guard.jsonl", tmp_path / "roster.json")

    def play(params, value, second=False):
        inputs = {"update": np.full(7, 10)}
        others = {
            i: client_handler(ClientSession(params, identities[i], roster, inputs)) for i in params.cohort if i != 2
        }
        site, twin = Process(*files, value), None

        def handle(phase, frame):
            nonlocal twin
            answer = site.handle(phase, frame)
            if second and phase == PHASES[0]:
                twin = Process(*files, value)
                assert twin.handle(phase, params.encode()) is None
            return answer

        outcome = run_round(InProcessEngine(others | {2: handle}), params, server, roster)
        return outcome, site.end(), twin.end() if twin else ""

    for number in range(3):
        params = params_of(4, (UPDATE,), round=number, app_context=bytes([number]) * 32)
        outcome, said, refused = play(params, number, second=number == 1)
        assert said == ""
        assert (outcome.survivors, outcome.dropped) == ((0, 1, 2, 3), {})
        assert outcome.sums["update"].tolist() == [30 + number] * 7
        assert ("another process acts for this client" in refused) == (number == 1)
    # A round that this site took part in is none to come into again, and the rounds of its life are counted over all its processes.
    outcome, said, _ = play(params, 99)
    assert "policy max_rounds: 3 rounds were begun, 3 are allowed" in said
    assert (outcome.survivors, outcome.dropped) == ((0, 1, 3), {2: "advertise"})


@pytest.mark.case("F10")
def test_a_restarted_site_changes_nothing(toy, tmp_path):
    """A site object that is made anew after every round, ledger and all, leaves the run as it is, bit for bit."""
    made = []
    build = Consortium.__init__

    def watch(self, *args, **kwargs):
        build(self, *args, **kwargs)
        made.append(self)

    def restart(_record):
        site = made[-1].sites[2]
        site.ledger.close()
        fields = {field.name: getattr(site, field.name) for field in dataclasses.fields(Site) if field.init}
        fresh = {"ledger": Ledger(site.ledger.path), "noise": NoiseSource.insecure_test(4)}
        made[-1].sites[2] = Site(**fields | fresh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Consortium, "__init__", watch)
        weights = []
        for name, progress in {"whole": lambda _record: None, "restarted": restart}.items():
            config = toy(rounds=3, privacy={})
            result = run(
                config,
                out=tmp_path / name,
                ledgers=tmp_path / f"{name}-ledgers",
                insecure_test_seed=4,
                progress=progress,
            )
            adapter = Adapter.of(result.model)
            weights.append(adapter.ravel(adapter.params).tobytes())
            assert result.survivors == (("east", "north", "south", "west"),) * 3
    assert weights[0] == weights[1]


@pytest.mark.case("F10")
@pytest.mark.parametrize("phase", PHASES)
def test_a_second_one_that_got_hold_of_the_key(params_of, inputs_of, by_hand, phase):
    """Where a twin does not share the guard's file, the server takes one frame of that name, and the sum is that of one of the two."""
    params = params_of(4, (UPDATE,))
    rd = by_hand(params, inputs_of(params)).run(until=phase)
    frames = rd.ask()
    twin = rd.client(2, guard=MemoryGuard(), inputs={"update": np.full(7, 999)})
    theirs = twin.start()
    if phase != PHASES[0]:
        with pytest.raises(ServerFault):  # what it advertised is not what the server has of it
            twin.receive(rd.answers[2])
    rd.deliver([*frames.items(), (2, theirs)])
    rd.close()
    result = rd.run()
    [(at, sender, error)] = rd.refused
    assert (at, sender, type(error)) == (phase, 2, UnexpectedFrameError if phase == PHASES[0] else type(error))
    rd.check((0, 1, 2, 3))
    assert result.survivors == (0, 1, 2, 3)


@pytest.mark.case("F10")
def test_the_twin_that_is_first(params_of, inputs_of, by_hand):
    """If the twin's frame is first, the other one finds out in the next exchange and stops by itself; nothing of it is in the sum."""
    params = params_of(4, (UPDATE,))
    rd = by_hand(params, inputs_of(params))
    own = rd.ask()
    twin = rd.client(2, guard=MemoryGuard(), inputs={"update": np.full(7, 999)})
    rd.deliver([(2, twin.start()), *own.items()])
    rd.close()
    with pytest.raises(ServerFault):
        rd.clients[2].receive(rd.answers[2])
    rd.clients[2] = twin
    result = rd.run()
    assert [type(error) for _, _, error in rd.refused] == [UnexpectedFrameError]
    assert np.array_equal(result.sums["update"], rd.expected((0, 1, 3)) + 999)


@pytest.mark.case("F10")
def test_a_second_live_one_on_a_site_s_files(toy, tables, tmp_path, monkeypatch):
    """Ledger, guard and run folder have one writer: while a run lives, a second process on any of them is refused by name."""
    monkeypatch.setattr(ledgers, "TURN_TIMEOUT_S", 0.1)
    refused = []

    def second(_record):
        for ledger in sorted((tmp_path / "ledgers").glob("*.jsonl")):
            with pytest.raises(LedgerError, match=ledger.name) as caught:
                Ledger(ledger)
            refused.append(caught.value)
        with pytest.raises(RunError, match="in use: another process runs in this folder"), held(tmp_path / "run"):
            pass
        with pytest.raises(RunError, match="another run has held this data set"):
            run(toy(privacy={}), out=tmp_path / "second", ledgers=tmp_path / "ledgers")

    run(toy(privacy={}), out=tmp_path / "run", ledgers=tmp_path / "ledgers", progress=second)
    assert len(refused) == len(list(tables.glob("site_*.csv")))
    with FileGuard(tmp_path / "steps"), pytest.raises(GuardError, match="another process acts for this client"):
        FileGuard(tmp_path / "steps")


# 200 rounds in a process of their own; what lives is counted by type after rounds 50 and 200.
LONG = """
import collections, gc, json, sys
from pathlib import Path
import jax
from fl import load_config, run

def count():
    gc.collect()
    kinds = collections.Counter(type(each).__qualname__ for each in gc.get_objects())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return kinds, len(jax.live_arrays()), sum(a.nbytes for a in jax.live_arrays()), pages * 4096

seen = {}
def progress(record):
    if record.round in (49, 199):
        seen[record.round] = count()

run(load_config(sys.argv[1]), out=Path(sys.argv[2]), progress=progress)
(kinds, *before), (later, *after) = seen[49], seen[199]
later.subtract(kinds)
print(json.dumps({"before": before, "after": after, "grown": {k: n for k, n in later.items() if n > 0}}))
"""


@pytest.mark.case("F12")
def test_two_hundred_rounds(toy, tmp_path):
    """From round 50 to round 200 nothing grows but the rounds' own records: no arrays, sessions, frames or keys stay behind."""
    config = toy("checkpoint.every=20", "simulation.evaluate_every=20", rounds=200)
    (tmp_path / "toy.toml").write_text(dump_config(config))
    arguments = [sys.executable, "-c", LONG, str(tmp_path / "toy.toml"), str(tmp_path / "run")]
    found = json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    (arrays, array_bytes, resident), (later_arrays, later_bytes, later_resident) = found["before"], found["after"]
    assert (arrays, array_bytes) == (later_arrays, later_bytes)
    record = {"RoundRecord": 150, "dict": 6 * 150, "list": 3 * 150}  # a record has its sites, phases, seconds and bytes
    grown = {kind: count for kind, count in found["grown"].items() if count > record.get(kind, 0) + 50}
    assert grown == {}
    assert found["grown"]["RoundRecord"] == 150
    assert later_resident - resident < 32 * 2**20


MIB = 2**20


@pytest.mark.case("F13")
@pytest.mark.parametrize("size", [4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 20 * MIB + 1])
def test_a_vector_of_any_size(params_of, size):
    """Vectors of 4 MiB, a byte less and more, and five times that go through the frames, and the sum is exact at every place."""
    params = params_of(3, (Block("update", size, 8, 42),))
    inputs = {i: {"update": np.full(size, 42 - i)} for i in range(3)}
    for i in range(3):
        inputs[i]["update"][-1] = -42
    sizes = {}
    outcome = simulate_round(
        params, inputs, tap=lambda phase, sender, frame: sizes.update({(phase, sender): len(frame)})
    )
    assert sizes["mask", 0] > params.body_length == size
    assert (outcome.sums["update"][:-1] == 3 * 41).all()
    assert outcome.sums["update"][-1] == -126
    assert max(length for (phase, _), length in sizes.items() if phase != "mask") < 4 * MIB


@pytest.mark.case("F13")
def test_a_model_of_more_than_a_million_parameters(toy, tmp_path):
    """A whole run with frames far beyond 4 MiB: everybody is in the sum, and what went is what the parameters say."""
    sizes = []
    result = run(
        toy("model.kind=mlp", "model.hidden=[1024, 1024]", "algorithm.learning_rate=0.01"),
        out=tmp_path / "run",
        tap=lambda phase, _sender, frame: sizes.append(len(frame)) if phase == "mask" else None,
    )
    assert result.survivors == (("east", "north", "south", "west"),)
    assert min(sizes) > 4 * MIB + 1
    assert result.history[0].bytes["up"]["mask"] == sum(sizes)
    assert Adapter.of(result.model).schema.dimension > 2**20


@pytest.mark.case("F13")
def test_what_is_too_large_is_refused_by_name(params_of):
    """600 MB a client are allowed; what one tag does not cover is refused when the round is made, by the block and the numbers."""
    assert params_of(3, (Block("update", 600_000_000, 8, 42),)).body_length == 600_000_000
    blocks = (Block("small", 10, 8, 42), Block("update", MAX_BODY_LENGTH - 9, 8, 42))
    with pytest.raises(ParameterError, match=rf"{MAX_BODY_LENGTH + 1} bytes a client.*block 'update' is the largest"):
        params_of(3, blocks)
    with pytest.raises(ParameterError, match=r"a cohort of 20001 is more than the 20000"):
        params_of(20_001, (UPDATE,))


@pytest.mark.case("F13")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("size", [4 * MIB + 1, 64 * MIB])
def test_a_frame_that_should_be_small(params_of, inputs_of, by_hand, phase, size):
    """Where no vector travels, 4 MiB are the limit, and where one does, its own length: a flood is refused with the numbers, and the round stands."""
    params = params_of(4, (UPDATE,))
    rd = by_hand(params, inputs_of(params)).run(until=phase)
    frames = rd.ask()
    rd.deliver([(1, bytes(size)), *frames.items()])
    rd.close()
    rd.run()
    [(_, sender, error)] = rd.refused
    assert (sender, type(error)) == (1, DecodeError)
    rd.check((0, 1, 2, 3))
    with pytest.raises(DecodeError, match=rf"Signed: expected 1\.\.{4 * MIB} bytes, got {size}"):
        messages.decode(bytes(size), messages.Signed)
