"""What do ledgers cost as they grow: opening, verifying, the independent verifier, and one more round?

Run ``python benchmarks/ledger.py`` from the repository root. Every ledger is a real one, signed, written through
`Ledger`; times are the best of three, in one process, after imports. Linear growth shows as a constant time per entry,
and a round must not cost more in a long ledger than in a short one.
"""

import importlib.util
import io
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.ledger import Ledger, verify
from privacy.plan import Plan

SIZES = (1_000, 10_000, 50_000)  # entries
LAST = 100  # rounds of which the quickest is reported
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
SURVIVORS = (0, 1, 2, 3)


def best(job: Callable[[], object], repeats: int = 3) -> float:
    """Time the quickest of several runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return min(times)


def one_round(ledger: Ledger, plan: Plan, number: int) -> None:
    """Reserve and commit: two entries, two heads, six flushes to the disk."""
    held = ledger.reserve(run="run", round=number, attempt=0, plan=plan, private=True, data_set="ab")
    ledger.commit(held, survivors=SURVIVORS, transcript=f"{number:064x}")


def independent(path: Path) -> Callable[[], object]:
    """The verifier of the documentation, as a job."""
    spec = importlib.util.spec_from_file_location("verify_ledger", Path("docs/verify_ledger.py"))
    if spec is None or spec.loader is None:
        sys.exit("run it from the repository root")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def job() -> None:
        with redirect_stdout(io.StringIO()):
            if module.main(str(path)):
                sys.exit("the independent verifier refuses the ledger")

    return job


def main() -> None:
    """Print the table."""
    plan = Plan.solve(
        unit="record",
        relation="add-remove",
        sites=4,
        dropouts=1,
        colluders=1,
        clip=1.0,
        records_per_site=303,
        dimension=40,
        rounds=SIZES[-1],
        delta=1e-4,
        epsilon=1.0,
        divisor=720.0,
    )
    print(f"Python {platform.python_version()}, {platform.machine()}; seconds, best of three")
    print(f"{'entries':>8}  {'open':>7}  {'verify':>7}  {'us/entry':>8}  {'independent':>11}  {'one round, ms':>13}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.jsonl")
        done = 0
        for size in SIZES:
            with Ledger(path, signer=SIGNER) as ledger:
                for number in range(done, size // 2 - LAST):
                    one_round(ledger, plan, number)
                rounds = iter(range(size // 2 - LAST, size // 2))
                quickest = best(lambda ledger=ledger, rounds=rounds: one_round(ledger, plan, next(rounds)), LAST)
            done = size // 2
            opened = best(lambda: Ledger(path, signer=SIGNER).close())
            verified = best(lambda: verify(path))
            print(
                f"{2 * done + 1:>8}  {opened:>7.2f}  {verified:>7.2f}  {1e6 * verified / size:>8.0f}  "
                f"{best(independent(path), 1):>11.2f}  {1e3 * quickest:>13.2f}"
            )


if __name__ == "__main__":
    main()
