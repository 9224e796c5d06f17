"""The noise in what a site really sends, seen through the integers that leave it.

A site without rows contributes nothing but noise, so its contribution must have the variance that its plan promises.
Each check gives a p-value at which the right noise passes and noise of another scale fails. The noise key is fixed, so
the outcome is too.
"""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from fl.config import build_config
from fl.experiment import prepare
from fl.simulation import Consortium
from fl.site import Announcement
from privacy.ledger import Ledger
from privacy.noise import NoiseSource

pytestmark = pytest.mark.statistical

ALPHA = 1e-6
DRAWS = 10

SCHEMA = """
name = "two columns"
[label]
column = "sick"
positive = ["1"]
negative = ["0"]
[[columns]]
name = "a"
kind = "number"
low = -3
high = 3
lowest = -10
highest = 10
"""


@pytest.fixture(scope="module")
def contributions(tmp_path_factory):
    """What an empty site sends in attempts at several rounds, by block ``(DRAWS, d)``, and its sigma_local."""
    folder = tmp_path_factory.mktemp("sites")
    (folder / "schema.toml").write_text(SCHEMA)
    for number, name in enumerate(("east", "north", "south", "west")):
        (folder / f"site_{name}.csv").write_text("a,sick\n" + f"1.{number},1\n-1,0\n" * 6)
    experiment = prepare(
        build_config(
            {
                "name": "noise",
                "rounds": DRAWS,
                "data": {"path": str(folder), "test_fraction": 0.3},
                "model": {"kind": "mlp", "hidden": [100, 100]},
                "algorithm": {"name": "dp_fedsgd"},
                "privacy": {
                    "epsilon": 2.0,
                    "delta": 1e-4,
                    "unit": "record",
                    "records_per_site": 16,
                    "divisor": 30,
                    "colluders": 1,
                    "dropouts": 1,
                },
                "secagg": {"suite": "classical"},
            }
        ),
        "run",
    )
    ledgers = {name: Ledger(folder / f"{name}.jsonl") for name in experiment.train}
    site = Consortium(experiment, ledgers).sites[0]
    empty = dataclasses.replace(
        site, rows=site.rows.take(np.arange(0)), noise=NoiseSource(entropy=lambda length: bytes(range(length)))
    )
    model = experiment.adapter.ravel(experiment.adapter.params)
    digest = experiment.adapter.hash(experiment.adapter.params)
    sent = [empty.contribution(Announcement(draw // 2, draw % 2, model, digest))[0] for draw in range(DRAWS)]
    for ledger in ledgers.values():
        ledger.close()
    blocks = {block.name: np.stack([values[block.name] for values in sent]) for block in experiment.agreement.blocks}
    return blocks, experiment.agreement.plan.sigma_local


def normal_p(z):
    """Two-sided p-value of a standard normal."""
    return float(2 * stats.norm.sf(abs(z)))


def scale_p(x, sigma):
    """Mean square against sigma**2; the kurtosis of the law is 3."""
    return normal_p((np.mean((x / sigma) ** 2) - 1) / math.sqrt(2 / x.size))


def likeness_p(x, y, sigma):
    """Correlation of two vectors that should have nothing in common."""
    return normal_p((x / sigma) @ (y / sigma) / math.sqrt(len(x)))


def test_a_site_adds_the_noise_of_its_plan(contributions):
    """The variance of every block is sigma_local**2; noise 3 % off either way, half of it and none are rejected."""
    blocks, sigma = contributions
    assert blocks
    for sent in blocks.values():
        assert sent.size > 80_000
        assert scale_p(sent, sigma) > ALPHA
        for fault in (0.0, 0.5, 0.97, 1.03):
            assert scale_p(sent * fault, sigma) < ALPHA


def test_attempts_have_nothing_in_common(contributions):
    """No attempt at any round repeats another's noise, not even a twentieth of it."""
    blocks, sigma = contributions
    for sent in blocks.values():
        for i in range(DRAWS):
            for j in range(i):
                assert likeness_p(sent[i], sent[j], sigma) > ALPHA
        assert likeness_p(sent[1], sent[0] + sent[1] / 20, sigma) < likeness_p(sent[1], sent[0], sigma) < 1
        assert likeness_p(sent[1], sent[0] + sent[1] / 10, sigma) < ALPHA
