"""The rows about a round's mean: what must not enter it, what it is when nothing arrives, and what the server makes of it."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fl import run
from fl.algorithms import (
    ClippedEncoding,
    LocalResult,
    Mean,
    Server,
    SiteUpdate,
    WeightedEncoding,
    optimizer,
    plain_mean,
)
from fl.checkpoint import Checkpoints
from fl.errors import FlError, ModelError, RoundFailedError
from fl.experiment import prepare
from fl.model import Adapter, Functional
from fl.simulation.device import contribution
from privacy.adaptive import AdaptiveClip
from privacy.codec import FixedPoint
from privacy.errors import InputError
from secagg.params import PHASES
from secagg.testing import simulate_round

MODES = ("secure", "ideal", "plain")
BAD = [np.nan, np.inf, -np.inf]


def scores(w, factor=1.0):
    """Linear scores x · w, times a factor, as a pure function."""

    def apply(params, state, x, *, key, train):  # noqa: ARG001 - the adapter's call
        return factor * (x @ params["w"]), state

    return Functional({"w": w}, apply)


def of(delta, weight=1, loss=0.5, **extra):
    """A site's update."""
    return SiteUpdate(np.array(delta), weight, loss, {name: np.array(value) for name, value in extra.items()})


@pytest.mark.case("F1")
@pytest.mark.parametrize("weight", [0, 1, 1000])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", ["delta", "loss", "control"])
def test_a_bad_value_at_any_weight(place, bad, weight):
    """Whatever is not finite, at weight 0 too, leaves its site out of the mean by name; the mean is that of the others."""
    good = {"east": of([1.0, 2.0], 3, control=[0.0, 1.0]), "north": of([5.0, -2.0], 1, control=[4.0, 1.0])}
    fields = {"delta": [1.0, 2.0], "loss": 0.5, "control": [0.0, 0.0]}
    fields[place] = bad if place == "loss" else [0.0, bad]
    mean, excluded = plain_mean(
        {**good, "south": of(fields["delta"], weight, fields["loss"], control=fields["control"])}
    )
    assert excluded == ("south",)
    expected, nobody = plain_mean(good)
    assert nobody == ()
    assert (mean.gradient.tolist(), mean.weight, mean.loss) == ([-2.0, -1.0], 4, 0.5)
    assert mean.extra["control"].tolist() == expected.extra["control"].tolist() == [1.0, 1.0]


@pytest.mark.case("F1")
@pytest.mark.parametrize("strategy", ["mean", "median", "trimmed_mean"])
@pytest.mark.parametrize("upload", ["delta", "gradient", "parameters"])
def test_nobody_is_finite(strategy, upload):
    """Where no site is left there is no mean at all: every site is named, and nothing is NaN."""
    mean, excluded = plain_mean({"east": of([np.nan]), "west": of([np.inf], 0)}, strategy=strategy, upload=upload)
    assert excluded == ("east", "west")
    assert (mean.gradient, mean.parameters, mean.weight) == (None, None, 0)


@pytest.mark.case("F1")
@pytest.mark.parametrize(("mode", "bad"), [*((mode, np.nan) for mode in MODES), ("plain", np.inf), ("ideal", -np.inf)])
def test_a_run_goes_on_without_that_site(toy, tmp_path, spoil, *, mode, bad, mean_of, weights_of, start_of):
    """In every mode the site that sends a bad value at weight 0 is out of the round and named, and the model is the others' mean."""
    updates = spoil(lambda site, update: of([bad] * 3, 0) if site.name == "south" else update)
    config = toy(mode=mode)
    result = run(config, out=tmp_path / "run")
    assert result.survivors == (("east", "north", "west"),)
    [line] = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["dropped"] == {"south": "mask"}
    there = [update for name, update in updates.items() if name != "south"]
    moved = weights_of(result.model) - start_of(config)
    np.testing.assert_allclose(moved, mean_of(there), rtol=0, atol=2.0**-20)


@pytest.mark.case("F2")
@pytest.mark.parametrize("weight", [-1, -(2**31)])
@pytest.mark.parametrize("uniform", [True, False])
def test_a_negative_weight(weight, uniform):
    """It is refused wherever a weight is taken: in the float mean by the site, on the way to integers by the number."""
    updates = {"east": of([1.0], 2), "south": of([1.0], weight), "west": of([1.0], 2)}
    for strategy in ("mean", "median", "trimmed_mean"):
        with pytest.raises(InputError, match=f"^site south: weight {weight} is negative$"):
            plain_mean(updates, uniform=uniform, strategy=strategy)
    encoding = WeightedEncoding((("w", 1),), FixedPoint(64.0, 20, 1), 100, uniform=uniform)
    with pytest.raises(InputError, match=f"^weight {weight} is negative$"):
        encoding.encode(updates["south"])


@pytest.mark.case("F2")
@pytest.mark.parametrize("mode", ["secure", "ideal"])
def test_a_site_with_a_negative_weight_is_a_dropout(toy, tmp_path, spoil, *, mode, caplog):
    """Under a sum of integers it sends nothing, and the others' round stands."""
    spoil(lambda site, update: dataclasses.replace(update, weight=-3) if site.name == "south" else update)
    result = run(toy(mode=mode), out=tmp_path / "run")
    assert result.survivors == (("east", "north", "west"),)
    assert "round 0: site south refused: weight -3 is negative" in caplog.text


@pytest.mark.case("F2")
def test_a_negative_weight_in_a_float_mean(toy, tmp_path, spoil):
    """Without a protocol the round is refused, with the site's name."""
    spoil(lambda site, update: dataclasses.replace(update, weight=-3) if site.name == "south" else update)
    with pytest.raises(InputError, match="site south: weight -3 is negative"):
        run(toy(mode="plain"), out=tmp_path / "run")


@pytest.mark.case("F2")
@pytest.mark.parametrize("weight", [-1, -100])
def test_weights_that_sum_to_less_than_nothing(weight):
    """A sum of weights that no honest sites can give is refused when it is decoded; nothing is divided by it."""
    encoding = WeightedEncoding((("w", 1),), FixedPoint(64.0, 20, 1), 100)
    sums = {"update": np.array([5]), "weight": np.array([weight]), "loss": np.array([1])}
    with pytest.raises(FlError, match=f"{weight}"):
        encoding.decode(sums)


@pytest.mark.case("F2")
@pytest.mark.parametrize("weight", ["-1.0", "0", "nan"])
def test_a_weight_of_a_class_that_is_not_positive(shell, weight):
    """The public factors of a loss are weights too."""
    code, said, made = shell(f"model.class_weights=[1.0, {weight}]")
    assert (code, made) == (1, False)
    assert "model.class_weights" in said


OPTIMIZERS = ["yogi", "adam", "adamw", "adagrad", "amsgrad", "rmsprop", "adabelief", "lamb", "nadam", "adamax", "sgd"]


@pytest.mark.case("F8")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 1e3], ids=str)
def test_adaptive_servers_start_from_a_state(name, size):
    """Every Optax optimiser is initialised before the first step: 20 rounds on gradients of any size stay finite, and it moves."""
    adapter = Adapter.of(scores(jnp.ones(3)))
    server = Server(adapter, optimizer("server", name, 0.1, {}), "last", 20)
    state = server.init(adapter.params)
    for number in range(20):
        state = server.update(state, Mean(np.array([1.0, -1.0, 0.5]) * size, weight=1))
        assert np.isfinite(adapter.ravel(state.params)).all(), f"round {number}"
    if size >= 1e-3:
        assert not np.array_equal(adapter.ravel(state.params), np.ones(3))
    for leaf in jax.tree.leaves(state.opt_state):
        assert np.isfinite(np.asarray(leaf)).all()


@pytest.mark.case("F8")
@pytest.mark.parametrize("name", ["yogi", "adam", "adagrad"])
def test_an_adaptive_run(toy, tmp_path, *, name, weights_of, start_of):
    """Five rounds of FedYogi, FedAdam and FedAdagrad under secure aggregation, data and all."""
    config = toy(f"server.optimizer={name}", "server.learning_rate=0.1", rounds=5)
    result = run(config, out=tmp_path / "run")
    weights = weights_of(result.model)
    assert np.isfinite(weights).all()
    assert (weights != start_of(config)).all()


@pytest.mark.case("F8")
@pytest.mark.parametrize(
    ("name", "gradient", "message"),
    [("sgd", 1e39, "leaf ['w'] is not finite"), ("adam", 1e30, "optimiser state"), ("yogi", 1e30, "optimiser state")],
)
def test_a_step_that_is_not_finite_changes_nothing(name, gradient, message):
    """Parameters or optimiser state that are not finite are refused by name, and the state before is as it was."""
    adapter = Adapter.of(scores(jnp.ones(3)))
    server = Server(adapter, optimizer("server", name, 1.0, {}), "last_half", 4)
    state = server.update(server.init(adapter.params), Mean(np.full(3, 0.5), weight=1))
    before = [
        np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.params, state.opt_state, state.iterate_sum))
    ]
    with pytest.raises(ModelError, match=re.escape(message)):
        server.update(state, Mean(np.full(3, gradient), weight=1))
    after = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.params, state.opt_state, state.iterate_sum))]
    assert (before, state.round) == (after, 1)


@pytest.mark.case("F8")
def test_a_run_rolls_back(toy, tmp_path, spoil):
    """A round whose model is not finite is not committed: the run ends by name, and on the disk is the round before."""
    spoil(
        lambda site, update: of([60.0] * 3, update.weight) if site.agreement and spoiled(site) else of([1e-39] * 3, 1)
    )
    rounds = []
    config = toy("server.learning_rate=1e38", rounds=5)
    experiment = prepare(config, "run-1")

    def spoiled(_site):
        return len(rounds) == 2

    with pytest.raises(
        RoundFailedError, match=r"round 2: the new model is refused .* leaf \['(bias|kernel)'\] is not finite"
    ):
        run(config, out=tmp_path / "run", progress=rounds.append)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoint")
    algorithm = experiment.algorithm
    state, _ = checkpoints.load(experiment.adapter, algorithm.init(algorithm.params), [algorithm.local] * 4)
    checkpoints.close()
    assert state.round == 2
    assert np.isfinite(experiment.adapter.ravel(state.params)).all()


@pytest.mark.case("F8")
def test_an_optimiser_that_does_not_exist(shell):
    """Names of papers that Optax does not have are refused with the one that it has, before anything is trained."""
    code, said, made = shell("server.optimizer=fedyogi")
    assert (code, made) == (1, False)
    assert 'server.optimizer: Optax has no "fedyogi"' in said
    assert '"yogi"' in said


@pytest.mark.case("F15")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("mode", MODES)
def test_nobody_replies(toy, tmp_path, *, mode, phase):
    """A round in which every site is silent is an error that counts: none of four, and how many it takes; nothing is divided."""
    silences = {0: dict.fromkeys(("east", "north", "south", "west"), phase)}
    config = toy("secagg.attempts=1", mode=mode)
    if mode == "plain" and phase in PHASES[3:]:  # a float mean ends with the vectors
        assert len(run(config, out=tmp_path / "run", silences=silences).survivors[0]) == 4
        return
    minimum = 1 if mode == "plain" else {"confirm": 3, "unmask": 3}.get(phase, 4 - config_dropouts(config))
    told = "mask" if mode == "plain" else phase
    expected = rf"round 0 failed in 1 attempt\(s\): 0 of 4 sites replied in phase {told}, minimum {minimum}$"
    with pytest.raises(RoundFailedError, match=expected):
        run(config, out=tmp_path / "run", silences=silences)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def config_dropouts(config):
    """How many sites a round of this configuration can miss."""
    agreement = prepare(config, "run-1").agreement
    params = agreement.round_params(0, "0" * 64)
    return len(params.cohort) - params.min_survivors


@pytest.mark.case("F15")
@pytest.mark.parametrize("phase", PHASES[:3])
def test_nobody_replies_in_a_later_round(toy, tmp_path, phase):
    """What was committed before stands; a second attempt at the round, with everybody there, goes on from it."""
    silences = {1: dict.fromkeys(("east", "north", "south", "west"), phase)}
    lost = []
    with pytest.raises(RoundFailedError, match=r"round 1 failed in 1 attempt\(s\): 0 of 4 sites replied"):
        run(toy("secagg.attempts=1", rounds=3), out=tmp_path / "one", silences=silences, progress=lost.append)
    assert [record.round for record in lost] == [0]
    result = run(toy("secagg.attempts=2", rounds=3), out=tmp_path / "two", silences=silences)
    assert [(record.round, record.attempt) for record in result.history] == [(0, 0), (1, 1), (2, 0)]


@pytest.mark.case("F19")
@pytest.mark.parametrize("zero", [0.0, -0.0, np.float32(0)], ids=repr)
@pytest.mark.parametrize("fields", ["as planned", "one entry", "adaptive"])
def test_the_clipped_zero(plan_of, zero, fields):
    """All zeros, of one record or of a whole site, become integers that are all zero: no norm is divided by, on either engine."""
    adaptive = (
        AdaptiveClip(quantile=0.5, learning_rate=0.2, bit_noise=12.0, expected=75.0, min_clip=0.01, max_clip=100.0)
        if fields == "adaptive"
        else None
    )
    plan = plan_of(adaptive=adaptive, **({"dimension": 1} if fields == "one entry" else {}))
    d = plan.dimension
    codec, nothing = plan.codec(), np.full(d, zero)
    with np.errstate(all="raise"):
        update = codec.encode_update(nothing)
        records = codec.encode_records(np.stack([nothing, nothing]), np.array([True, False]))
    assert not update[:d].any()
    assert not records[:, :d].any()
    if adaptive is not None:  # within the clip norm, as it is
        assert update[d] == records[0, d] > 0
        assert records[1, d] == 0
    traced = jax.jit(
        lambda delta, clip: contribution(
            ClippedEncoding((("w", d),), plan), LocalResult(delta, jnp.int32(3), jnp.float32(0), {}), clip
        )
    )
    with jax.enable_x64(True):
        blocks, ok = traced(jnp.asarray(nothing, jnp.float32), jnp.float64(plan.clip))
        assert bool(ok)
        assert np.concatenate([np.asarray(piece) for piece in blocks["update"]]).tolist() == update.tolist()


@pytest.mark.case("F19")
@pytest.mark.parametrize("weights", [[3, 1, 2], [3, 0, 0], [1, 1, 1]])
def test_the_mean_of_zeros(params_of, weights):
    """Zeros from every site, with and without rows, sum to a zero step; with a loss of zero too."""
    encoding = WeightedEncoding((("w", 2),), FixedPoint(64.0, 20, 2), 10)
    inputs = {i: encoding.encode(of([0.0, -0.0], weight, 0.0)) for i, weight in enumerate(weights)}
    mean = encoding.decode(simulate_round(params_of(3, encoding.blocks(3)), inputs).sums)
    assert (mean.gradient.tolist(), mean.weight, mean.loss) == ([0.0, 0.0], sum(weights), 0.0)
    plain, excluded = plain_mean({str(i): of([0.0, -0.0], weight, 0.0) for i, weight in enumerate(weights)})
    assert (plain.gradient.tolist(), plain.weight, plain.loss, excluded) == ([0.0, 0.0], sum(weights), 0.0, ())


@pytest.mark.case("F19")
@pytest.mark.parametrize(
    ("optimizer_name", "mode"),
    [*(("sgd", mode) for mode in MODES), ("adam", "ideal"), ("lamb", "ideal"), ("lars", "ideal")],
)
def test_a_round_of_zeros(toy, tmp_path, spoil, *, mode, optimizer_name, weights_of, start_of):
    """When every site's update is zero the model stays where it was, under optimisers that divide by norms too."""
    spoil(lambda _site, update: dataclasses.replace(update, delta=np.zeros(3)))
    config = toy(f"server.optimizer={optimizer_name}", "server.learning_rate=0.1", mode=mode, rounds=2)
    result = run(config, out=tmp_path / "run")
    assert [record.update_norm for record in result.history] == [0.0, 0.0]
    assert np.array_equal(weights_of(result.model), start_of(config))


@pytest.mark.case("F19")
def test_private_rounds_of_zeros(toy, tmp_path, make_model):
    """Record and client level: gradients that are zero leave noise in the sum, and nothing that is not finite."""
    make_model(lambda _features, _rngs: scores(jnp.zeros(2), 0.0))
    client = "privacy={epsilon=8.0,delta=1e-3,unit='client',divisor=4,dropouts=1,colluders=0}"
    for name, config in {"record": toy(privacy={}), "client": toy(client)}.items():
        result = run(config, out=tmp_path / name, ledgers=tmp_path / "ledgers" / name)
        assert 0 < result.history[0].update_norm < np.inf
