"""How tight and how fast is the accountant, beside dp-accounting's own two and OpenDP's in the same run?

Run ``python benchmarks/accounting.py`` from the repository root; ``--json`` prints one JSON object a line. Each epsilon is an
upper bound, so smaller is better: the ratio is theirs over ours. Seconds are the best of ``--repeat`` in one warm process; ours is
the whole answer, every route, the lower bound and the cross-check. dp-accounting runs as it comes: its default orders, its
default grid of 1e-4. OpenDP (``pip install opendp``; "not run" without it) composes Gaussians as zero-concentrated mechanisms, and has no
answer where records are sampled.
"""

import argparse
import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable
from importlib import util
from importlib.metadata import version
from typing import Any, NamedTuple

from dp_accounting import (
    DpEvent,
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    PrivacyAccountant,
    SelfComposedDpEvent,
    UnsupportedEventError,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from privacy.accounting import Relation, block_epsilon, epsilon
from privacy.accounting.gaussian import as_text


class Case(NamedTuple):
    """One mechanism: ``z`` noise multiplier, ``q`` sampling rate, ``steps`` releases."""

    what: str
    z: float
    q: float
    steps: int
    delta: float
    relation: Relation = "add-remove"


CASES = (
    Case("one release", 1.0, 1.0, 1, 1e-5),
    Case("50 full rounds", 4.0, 1.0, 50, 1e-6),
    Case("one release, replace-one", 1.0, 1.0, 1, 1e-5, "replace-one"),
    Case("one release, delta = 1e-20", 1.0, 1.0, 1, 1e-20),
    Case("DP-SGD, 60 epochs", 1.1, 256 / 60_000, 14_062, 1e-5),
    Case("DP-SGD, 1000 steps", 1.1, 0.01, 1000, 1e-5),
    Case("the same, replace-one", 1.1, 0.01, 1000, 1e-5, "replace-one"),
    Case("a fifth of a consortium", 6.0, 0.2, 300, 1e-8),
    Case("a million steps", 1.0, 1e-4, 1_000_000, 1e-9),
)
RELATIONS = {
    "add-remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace-one": NeighboringRelation.REPLACE_ONE,
}


def timed(job: Callable[[], float], repeat: int) -> tuple[float, float]:
    """The answer, and the seconds of the quickest of several runs."""
    times, answer = [], math.nan
    for _ in range(repeat):
        start = time.perf_counter()
        answer = job()
        times.append(time.perf_counter() - start)
    return answer, min(times)


def rdp_accountant(relation: NeighboringRelation) -> PrivacyAccountant:
    """dp-accounting's Rényi accountant, with its default orders."""
    return RdpAccountant(neighboring_relation=relation)


def pld_accountant(relation: NeighboringRelation) -> PrivacyAccountant:
    """dp-accounting's PLD accountant, with its default grid."""
    return PLDAccountant(neighboring_relation=relation)


def library(accountant: Callable[[NeighboringRelation], PrivacyAccountant], case: Case) -> float:
    """Epsilon by one of dp-accounting's accountants; NaN where it does not take the mechanism."""
    step: DpEvent = GaussianDpEvent(case.z)
    if case.q < 1:
        step = PoissonSampledDpEvent(case.q, step)
    try:
        composed = accountant(RELATIONS[case.relation]).compose(SelfComposedDpEvent(step, case.steps))
    except UnsupportedEventError:
        return math.nan
    return float(composed.get_epsilon(case.delta))


def opendp(case: Case) -> float:
    """Epsilon by OpenDP's zero-concentrated route; NaN where it is not installed or has no such mechanism."""
    if case.q < 1 or util.find_spec("opendp") is None:
        return math.nan
    import opendp.prelude as dp  # noqa: PLC0415 - optional

    dp.enable_features("contrib", "idealized-numerics")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l2_distance(T=float)
    composed = dp.c.make_composition([dp.m.make_gaussian(*space, scale=case.z)] * case.steps)
    distance = 2.0 if case.relation == "replace-one" else 1.0
    return float(dp.c.make_zCDP_to_approxDP(composed).map(d_in=distance).epsilon(case.delta))


def measure(case: Case, repeat: int) -> dict[str, Any]:
    """One row: epsilon and seconds of the three accountants, and theirs over ours."""
    question = {"noise_multiplier": case.z, "sample_rate": case.q, "steps": case.steps, "delta": case.delta}
    ours, ours_s = timed(lambda: epsilon(**question, relation=case.relation).upper, repeat)  # type: ignore[arg-type]
    row: dict[str, Any] = case._asdict() | {"epsilon": ours, "seconds": ours_s}
    for name, accountant in (("rdp", rdp_accountant), ("pld", pld_accountant)):
        theirs, seconds = timed(functools.partial(library, accountant, case), repeat)
        row |= {
            f"dp_accounting_{name}": theirs,
            f"{name}_seconds": seconds,
            f"{name}_epsilon_ratio": theirs / ours,
            f"{name}_time_ratio": seconds / ours_s,
        }
    theirs, seconds = timed(functools.partial(opendp, case), repeat)
    return row | {"opendp_zcdp": theirs, "opendp_seconds": seconds, "opendp_epsilon_ratio": theirs / ours}


def block_row(repeat: int) -> dict[str, Any]:
    """What dp-accounting has no answer to: local steps behind a client's coin, and the wrong product of rates."""
    question = {"noise_multiplier": 1.0, "sample_rate": 0.1, "local_steps": 100, "client_rate": 0.2, "rounds": 10}
    secret, seconds = timed(lambda: block_epsilon(**question, delta=1e-5).upper, repeat)  # type: ignore[arg-type]
    seen, _ = timed(lambda: block_epsilon(**question, delta=1e-5, coin="seen").upper, 1)  # type: ignore[arg-type]
    product = library(pld_accountant, Case("product of rates", 1.0, 0.02, 1000, 1e-5))
    return {
        "what": "client coin and local steps",
        **question,
        "delta": 1e-5,
        "epsilon": secret,
        "seconds": seconds,
        "epsilon_if_seen": seen,
        "product_of_rates_by_pld": product,
    }


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row with null for what is no finite number."""
    return {name: None if isinstance(each, float) and not math.isfinite(each) else each for name, each in row.items()}


def show(row: dict[str, Any]) -> None:
    """Print one line of the table."""
    print(
        f"{row['what']:28}{as_text(row['epsilon'], 5):>10}{row['dp_accounting_rdp']:10.4f}{row['dp_accounting_pld']:10.4f}{row['opendp_zcdp']:10.4f}"
        f"{row['rdp_epsilon_ratio']:8.3f}{row['pld_epsilon_ratio']:8.3f}{row['opendp_epsilon_ratio']:8.3f}"
        f"{1e3 * row['seconds']:10.1f}{1e3 * row['rdp_seconds']:10.1f}{1e3 * row['pld_seconds']:10.1f}"
        f"{row['pld_time_ratio']:9.1f}x"
    )


def main() -> None:
    """Print the table, or one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each answer; the quickest counts")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    chosen = parser.parse_args()
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "scipy", "dp-accounting")},
        "opendp": version("opendp") if util.find_spec("opendp") else "not run",
    }
    epsilon(noise_multiplier=1.0, sample_rate=0.5, steps=2, delta=1e-5)  # imports are not what is timed
    if chosen.json:
        print(json.dumps(machine))
    else:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        print(
            f"{'':28}{'epsilon':>10}{'their':>10}{'their':>10}{'OpenDP':>10}{'over ours':>24}{'ms':>10}{'their':>10}{'their':>10}{'PLD /':>10}"
        )
        print(
            f"{'':28}{'ours':>10}{'RDP':>10}{'PLD':>10}{'zCDP':>10}{'RDP':>8}{'PLD':>8}{'zCDP':>8}{'ours':>10}{'RDP':>10}{'PLD':>10}{'ours':>10}"
        )
    for case in CASES:
        row = measure(case, chosen.repeat)
        print(json.dumps(finite(row)), flush=True) if chosen.json else show(row)
    row = block_row(chosen.repeat)
    if chosen.json:
        print(json.dumps(finite(row)))
        return
    print(
        f"{row['what']}: {as_text(row['epsilon'], 5)} in {1e3 * row['seconds']:.0f} ms ({as_text(row['epsilon_if_seen'], 5)} if the coin is "
        f"seen); the rates multiplied, as must not be done: {row['product_of_rates_by_pld']:.4f}"
    )


if __name__ == "__main__":
    main()
