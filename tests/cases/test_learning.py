"""The rows that need models, plans or runs, as somebody sees them who calls `fl.run` or types `fl run`."""

import dataclasses
import json
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fl import model, run
from fl.algorithms import SiteUpdate, WeightedEncoding
from fl.errors import ConfigError, ModelError, RoundFailedError
from fl.experiment import prepare
from fl.model import Adapter
from fl.simulation import Consortium
from fl.site import Announcement, Site
from privacy.cli import main as privacy_main
from privacy.codec import FixedPoint
from privacy.ledger import verify
from secagg import RoundParams
from secagg.params import SlackWarning
from secagg.testing import simulate_round

SITES = ("east", "north", "south", "west")


@pytest.mark.case("S5")
def test_a_site_beyond_the_maximum_weight(shell):
    """A site with more rows than the agreed maximum is refused by name before anything is written; its mean is not bent."""
    code, said, made = shell("algorithm.max_weight=29")
    assert (code, made) == (1, False)
    assert said == "fl: site east: 30 training rows, and the agreed cap is 29\n"


@pytest.mark.case("S6")
@pytest.mark.parametrize("bad", [{0: np.nan}, {2: -np.inf}, {1: 1e6}], ids=str)
def test_one_bad_value_in_one_leaf_of_one_client(toy, tmp_path, spoil, *, weights_of, start_of, mean_of, caplog, bad):
    """That client refuses, by leaf, and counts as a dropout: the model is the one that the others' updates give."""
    [(place, value)] = bad.items()

    def change(site, update):
        if site.name == "south":
            return SiteUpdate(np.where(np.arange(3) == place, value, update.delta), update.weight, update.loss)
        return update

    updates = spoil(change)
    result = run(toy(), out=tmp_path / "run")
    assert result.survivors == (("east", "north", "west"),)
    assert result.history[0].dropped == {"south": "mask"}
    there = [update for name, update in updates.items() if name != "south"]
    np.testing.assert_allclose(weights_of(result.model) - start_of(toy()), mean_of(there), rtol=0, atol=2.0**-20)
    assert f"round 0: site south refused: leaf \"['{('bias', 'kernel')[place > 0]}']\"" in caplog.text


@pytest.mark.case("S7")
@pytest.mark.parametrize("rows", [{}, {"east": (16, 4)}], ids=["all empty", "the only one with rows is silent"])
def test_all_example_counts_are_zero(toy, write_tables, tmp_path, *, weights_of, start_of, caplog, rows):
    """A sum without a single record leaves the old model as it was, says "no data", and ends the run in order."""
    folder = write_tables(tmp_path / "data", dict.fromkeys(SITES, (0, 0)) | rows)
    config = toy(folder=folder)
    result = run(config, out=tmp_path / "run", silences={0: dict.fromkeys(rows, "mask")})
    assert result.history[0].weight == 0
    assert result.history[0].loss is None
    assert np.array_equal(weights_of(result.model), start_of(config))
    assert "round 0: no data: " in caplog.text


class Bare(nnx.Module):
    """A model with one leaf of a given shape, which is its score for every row as far as it is summed."""

    def __init__(self, shape, dtype=jnp.float32):
        self.leaf = nnx.Param(jnp.zeros(shape, dtype))

    def __call__(self, x):
        """(batch, features) → (batch,)."""
        return jnp.broadcast_to(jnp.sum(self.leaf.get_value()), x.shape[:1])


@pytest.fixture(scope="module")
def fifty(toy):
    """An experiment by mode, on a model of one leaf of 50 values; one compiled algorithm serves all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "factory", lambda *_: lambda _features, _rngs: Bare((50,)))
        secure = prepare(toy("model.loss=squared"), "run-1", silences={})
    modes = {mode: toy("model.loss=squared", mode=mode) for mode in ("secure", "ideal", "plain")}
    return {mode: dataclasses.replace(secure, config=config) for mode, config in modes.items()}


@pytest.fixture(scope="module")
def announced(fifty):
    """Round 0 on that model."""
    adapter = fifty["secure"].adapter
    return Announcement(0, 0, adapter.ravel(adapter.params), adapter.hash(adapter.params))


@pytest.mark.case("S8")
@pytest.mark.parametrize("mode", ["secure", "ideal", "plain"])
@pytest.mark.parametrize("shape", [(1,), (), (49,), (50, 1), (1, 50)])
def test_a_leaf_of_another_shape(fifty, announced, mode, shape):
    """One site whose leaf has another shape is refused by its schema in every mode, also where the number of values is the same."""
    experiment = fifty[mode]
    consortium, adapter = Consortium(experiment, {}), experiment.adapter
    consortium.sites[2].adapter = Adapter.of(Bare(shape))
    with pytest.raises(
        (RoundFailedError, ModelError), match=r"float vector of shape|is not the one that was announced"
    ):
        consortium.aggregate(announced)
    with pytest.raises(ModelError) as caught:
        adapter.ravel(consortium.sites[2].adapter.params)
    assert str(caught.value) == f"leaf ['leaf'] has shape {list(shape)}, and must have [50]"


def numbers(value):
    """Every number in a JSON value."""
    if isinstance(value, dict | list):
        return [x for part in (value.values() if isinstance(value, dict) else value) for x in numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


@pytest.mark.case("S11")
def test_what_the_server_saw(toy, tmp_path, spoil):
    """In its metrics and in every frame that it received there are sums; no site's count, loss or vector, in any word size."""
    frames = []
    updates = spoil()
    result = run(toy(), out=tmp_path / "run", tap=lambda _phase, _sender, frame: frames.append(bytes(frame)))
    [line] = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = numbers(line)
    assert result.history[0].weight == sum(update.weight for update in updates.values())
    assert result.history[0].weight in seen
    assert not {update.weight for update in updates.values()} & set(seen)
    assert not [x for x in seen for update in updates.values() if x == pytest.approx(update.loss, rel=1e-6)]
    encoding = FixedPoint(64.0, 32, 3)
    for update in updates.values():
        for number in (*encoding.encode(update.delta) * update.weight, round(update.loss * 2**20) * update.weight):
            for order in ("little", "big"):
                assert not [frame for frame in frames if int(number).to_bytes(8, order, signed=True) in frame]


@pytest.mark.case("S11")
def test_what_a_server_prints_of_a_round(params_of, inputs_of):
    """The outcome of a round, printed whole, has no value of a single client in it."""
    blocks = WeightedEncoding((("w", 4),), FixedPoint(8.0, 20, 4), 10**6).blocks(5)
    params = params_of(5, blocks)
    inputs = inputs_of(params)
    outcome = simulate_round(params, inputs, drops={1: "unmask"})
    text = repr(outcome)
    assert all(str(x) in text for total in outcome.sums.values() for x in total)
    assert not [x for values in inputs.values() for block in values.values() for x in block if str(abs(x)) in text]


@pytest.mark.case("S12")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((), "float32"), ((), "bfloat16")],
    ids=str,
)
def test_a_parameter_without_dimensions(toy, tmp_path, make_model, shape, dtype):
    """A 0-d parameter comes back 0-d and in its dtype, and at the mean, 0.5, that the records of all sites have."""
    make_model(lambda _features, _rngs: Bare(shape, dtype))
    result = run(toy("model.loss=squared"), out=tmp_path / "run")
    leaf = result.model.leaf.get_value()
    assert (leaf.shape, str(leaf.dtype)) == (shape, dtype)
    assert float(leaf.sum()) == pytest.approx(0.5, rel=0, abs=2.0**-7 if dtype == "bfloat16" else 0)


@pytest.mark.case("S16")
@pytest.mark.parametrize(("sites", "rows"), [(4, 5_000), (10, 4_800), (10, 2**16), (20, 4_800)])
def test_weighted_sums_have_room(params_of, sites, rows):
    """As many rows as are allowed at every site, every value at its limit: the rings are wide enough by construction."""
    encoding = WeightedEncoding((("w", 3),), FixedPoint(64.0, 20, 3), rows)
    blocks = encoding.blocks(sites)
    limit = SiteUpdate(np.array([64.0, -64.0, 64.0]), rows, 1e6)
    inputs = dict.fromkeys(range(sites), encoding.encode(limit))
    outcome = simulate_round(params_of(sites, blocks), inputs)
    assert abs(int(outcome.sums["update"][0])) > 2**32
    mean = encoding.decode(outcome.sums)
    assert (-mean.gradient).tolist() == [64.0, -64.0, 64.0]
    assert (mean.weight, mean.loss) == (sites * rows, 1e6)


@pytest.mark.case("S16")
@pytest.mark.parametrize(
    "settings", [("algorithm.limit=1e6",), ("algorithm.fraction_bits=52", "algorithm.max_weight=4194304")]
)
def test_weighted_sums_without_room_are_refused_at_set_up(shell, settings):
    """Where no ring is wide enough the run is refused with the numbers, before anything is written."""
    code, said, made = shell(*settings)
    assert (code, made) == (1, False)
    assert "x 4 sites takes" in said
    assert "bits, and a block has at most 64" in said


@pytest.mark.case("S17")
@pytest.mark.parametrize("n", [3, 4, 5, 7, 12])
def test_the_mean_is_taken_after_decoding(params_of, n):
    """For sums that no number of clients divides, the mean is that of the decoded sum, to the last bit of a double."""
    steps, weights = [[7 * i - 20, -3 * i - 1, i % 3] for i in range(n)], [i % 4 + 1 for i in range(n)]
    encoding = WeightedEncoding((("w", 3),), FixedPoint(64.0, 4, 3), 8)
    inputs = {i: encoding.encode(SiteUpdate(np.array(steps[i]) / 16, weights[i], 0.5)) for i in range(n)}
    mean = encoding.decode(simulate_round(params_of(n, encoding.blocks(n)), inputs).sums)
    for place in range(3):
        total = sum(step[place] * weight for step, weight in zip(steps, weights, strict=True))
        assert -mean.gradient[place] == float(Fraction(total, 16) / sum(weights))
    assert mean.loss == 0.5


@pytest.mark.case("S20")
@pytest.mark.parametrize("mode", ["plain", "ideal"])
@pytest.mark.parametrize("site", SITES)
def test_one_site_demands_secure_aggregation(shell, mode, site):
    """Another mode is refused by the name of the site that does not agree to it, before round 1 and before anything is written."""
    code, said, made = shell(f"simulation.secure_only=['{site}']", f"secagg.mode={mode}")
    assert (code, made) == (1, False)
    assert said == (
        f"fl: secagg.mode: site {site} takes part under secure aggregation only, and the mode of this run is not "
        '"secure"\n'
    )


@pytest.mark.case("S20")
def test_the_demand_is_the_sites_own(toy):
    """A site that demands secure aggregation does not come up under an agreement without it, whoever prepared the run."""
    for mode in ("plain", "ideal"):
        experiment = prepare(toy(mode=mode), "run-1")
        site = Consortium(experiment, {}).sites[0]
        fields = {name: getattr(site, name) for name in site.__dataclass_fields__ if name != "records"}
        with pytest.raises(ConfigError, match="site east takes part under secure aggregation only"):
            Site(**(fields | {"secure_only": True}))


@pytest.mark.case("S21")
@pytest.mark.parametrize("silent", [None, "east"])
def test_sites_with_unlike_row_counts(toy, tmp_path, spoil, *, weights_of, start_of, mean_of, silent):
    """Weights are inside the sum: the model is that of plain FedAvg, computed by hand too, and not that of equal weights."""
    silences = {0: {silent: "mask"} if silent else {}}
    updates = spoil()
    secure = run(toy("simulation.secure_only=['east','west']"), out=tmp_path / "secure", silences=silences)
    plain = run(toy(mode="plain"), out=tmp_path / "plain", silences=silences)
    there = [update for name, update in updates.items() if name != silent]
    moved = weights_of(secure.model) - start_of(toy())
    np.testing.assert_allclose(weights_of(secure.model), weights_of(plain.model), rtol=0, atol=2.0**-20)
    np.testing.assert_allclose(moved, mean_of(there), rtol=0, atol=2.0**-20)
    assert np.abs(moved - np.mean([u.delta for u in there], axis=0)).max() > 2.0**-10


@pytest.mark.case("S25")
def test_no_slack_is_said_by_the_plan(toy, shell):
    """A plan without room for a dropout says so when the run is started, with the numbers; one with room says nothing."""
    privacy = "privacy={epsilon=8.0,delta=1e-3,unit='client',divisor=4,dropouts=%d,colluders=0}"
    code, said, made = shell(privacy % 0)
    assert (code, made) == (0, True)
    assert "note: min_survivors = n = 4: one silent client ends the round\n" in said
    assert prepare(toy(privacy % 1), "run-1").notes == ()


@pytest.mark.case("S25")
@pytest.mark.parametrize("n", [3, 4, 5, 10, 100])
def test_no_slack_is_said_by_the_parameters(params_of, recwarn, n):
    """Parameters whose minimum is the whole cohort warn; those that a silent client does not stop do not."""
    blocks = WeightedEncoding((("w", 3),), FixedPoint(64.0, 4, 3), 8).blocks(n)
    params_of(n, blocks, dropouts=1)
    assert not [w for w in recwarn if w.category is SlackWarning]
    with pytest.warns(SlackWarning, match=f"min_survivors = n = {n}: one silent client ends the round"):
        params_of(n, blocks, min_survivors=n)
    with pytest.warns(SlackWarning, match=f"min_survivors = n = {n}"):
        RoundParams(cohort=range(n), blocks=blocks, dropouts=0)


@pytest.mark.case("S29")
def test_cohorts_that_differ_by_one(toy, tmp_path, capsys):
    """The plan warns before the first round; the ledger has both cohorts, and checking it names rounds and site."""
    silences = {1: {"south": "mask"}, 3: {"south": "share"}}
    config = toy(rounds=4, privacy={})
    result = run(config, out=tmp_path / "run", ledgers=tmp_path / "ledgers", silences=silences)
    assert [len(names) for names in result.survivors] == [4, 3, 4, 3]
    assert [note for note in result.notes if "the survivors of two rounds may differ by one site" in note]
    [found] = verify(result.ledger).total.differences
    assert (found.site, found.rounds) == (2, (0, 1))
    files = [verify(file).total.differences for file in (tmp_path / "ledgers").glob("*.jsonl")]
    assert sorted(len(found) for found in files) == [0, 1, 1, 1]  # the site that was missing has one cohort only
    assert privacy_main(["ledger", "verify", str(result.ledger)]) == 0
    assert "the survivors of rounds 0 and 1 differ by site 2 alone" in capsys.readouterr().out


@pytest.mark.case("S29")
@pytest.mark.parametrize("silences", [{0: {"south": "mask"}, 1: {"south": "mask"}}, {1: {"south": "unmask"}}])
def test_cohorts_that_do_not_differ(toy, tmp_path, silences):
    """Equal sets of survivors open nobody, and the ledger says nothing of the kind."""
    result = run(toy(rounds=2, privacy={}), out=tmp_path / "run", ledgers=tmp_path / "ledgers", silences=silences)
    assert verify(result.ledger).total.differences == ()


@pytest.mark.case("S30")
@pytest.mark.parametrize(
    "setting",
    [
        *(f"algorithm.name={name}" for name in ("median", "trimmed_mean", "krum", "geometric_median")),
        *(f"server.{key}=median" for key in ("average", "optimizer", "strategy", "aggregation")),
        "secagg.strategy=median",
        "strategy=median",
    ],
)
def test_a_strategy_that_is_not_linear(shell, setting):
    """Wherever somebody asks for a median, the run is refused by the key and never silently a mean."""
    code, said, made = shell(setting)
    assert (code, made) == (1, False)
    assert setting.partition("=")[0] in said


@pytest.mark.case("S30")
def test_there_is_nothing_to_take_a_median_of(fifty, announced):
    """What an algorithm's server half is given is one vector a block: the sum over the sites, with no place for a single one."""
    given = []

    def decode(sums, clip):
        given.append({name: x.shape for name, x in sums.items()})
        return fifty["secure"].algorithm.decode(sums, clip)

    algorithm = dataclasses.replace(fifty["secure"].algorithm, decode=decode)
    Consortium(dataclasses.replace(fifty["secure"], algorithm=algorithm), {}).aggregate(announced)
    assert given == [{"update": (50,), "weight": (1,), "loss": (1,)}]
