import importlib.util
import json
from pathlib import Path

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.adaptive import AdaptiveClip
from privacy.ledger import Ledger, witness
from privacy.ledger.verify import read_entries
from privacy.plan import Plan

ROOT = Path(__file__).parents[2]
SIGNERS = {name: Ed25519PrivateKey.from_private_bytes(bytes([at]) * 32) for at, name in enumerate(["server", "north"])}
PLAN = Plan.solve(**json.loads((Path(__file__).parents[1] / "heart_plan.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def docs():
    """The folder of the pages."""
    return ROOT / "docs"


@pytest.fixture(scope="session")
def verifier(docs):
    """The independent verifier, as a module."""
    spec = importlib.util.spec_from_file_location("verify_ledger", docs / "verify_ledger.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def keys():
    """The parties' public keys, hex."""
    return {name: signer.public_key().public_bytes_raw().hex() for name, signer in SIGNERS.items()}


def release(ledger, number, *, plan=PLAN, run="run", survivors=(0, 1, 2, 3), data_set=None, private=True):
    """Reserve and commit a round."""
    held = ledger.reserve(run=run, round=number, attempt=0, plan=plan, private=private, data_set=data_set)
    return ledger.commit(held, survivors=survivors, transcript=f"{number:064x}")


@pytest.fixture
def write(tmp_path):
    """Writes a server's ledger of some rounds, signed by the server and, after two rounds, by a site."""

    def make(name="ledger", rounds=3, survivors=(0, 1, 2, 3), signer=SIGNERS["server"]):
        path = tmp_path / f"{name}.jsonl"
        with Ledger(path, signer=signer, party="server") as ledger:
            for number in range(rounds):
                release(ledger, number, survivors=survivors)
                if number == 1:
                    head = witness(path.read_bytes(), read_entries(path), run="run", site=0, signer=SIGNERS["north"])
                    ledger.countersign("north", head, key=SIGNERS["north"].public_key().public_bytes_raw().hex())
        return path

    return make


@pytest.fixture
def rechained():
    """Mends the chain of changed lines, as somebody without a key could."""
    import hashlib

    def mend(lines):
        prev, result = "0" * 64, []
        for number, line in enumerate(lines):
            text = rfc8785.dumps(json.loads(line) | {"seq": number, "prev": prev})
            prev = hashlib.sha256(text).hexdigest()
            result.append(text + b"\n")
        return result

    return mend


@pytest.fixture
def every_kind(tmp_path):
    """A data set's ledger with every kind of entry, two plans, a seeded run and an open reservation."""
    path = tmp_path / "kinds.jsonl"
    path.write_bytes(b'{"attempt"')
    adaptive = AdaptiveClip(
        quantile=0.5, learning_rate=0.2, bit_noise=60.0, expected=1212.0, min_clip=0.1, max_clip=10.0
    )
    changed = {"format", "noise_multiplier", "relation"}
    same = {name: getattr(PLAN, name) for name in PLAN.to_fields() if name not in changed}
    other = Plan.solve(**same, relation="replace-one", silos=2, adaptive=adaptive)
    with Ledger(path, signer=SIGNERS["north"], party="north") as ledger:
        release(ledger, 0, data_set="ab")
        release(ledger, 1, data_set="ab", survivors=(0, 1, 3))
        release(ledger, 0, data_set="ab", run="seeded", plan=other, private=False)
        ledger.reserve(run="run", round=2, attempt=1, plan=PLAN, private=True, data_set="ab")
    for torn in (b'{"attempt":0,"data', b'{"closes":3'):
        with path.open("ab") as stream:
            stream.write(torn)
        Ledger(path, signer=SIGNERS["north"], party="north").close()
    return path
