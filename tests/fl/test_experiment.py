import shutil
from pathlib import Path

import numpy as np
import pytest

from fl.algorithms import SiteUpdate
from fl.config import load_config
from fl.demo import heart
from fl.errors import ConfigError, DataError
from fl.experiment import _silences, prepare
from privacy.errors import PlanError
from secagg.errors import ParameterError

EXAMPLES = Path(__file__).parents[2] / "examples"
SITES = ("cleveland", "hungary", "switzerland", "va_long_beach")


def test_the_demo_is_prepared():
    """The heart experiment: four hospitals, 33 parameters in one 32-bit block, and a note on its lack of slack."""
    experiment = prepare(heart(), "run-1")
    plan = experiment.agreement.plan
    assert tuple(experiment.train) == SITES
    assert [(b.name, b.length, b.bits) for b in experiment.agreement.blocks] == [("update", 33, 32)]
    assert plan.grid == 2**20
    assert plan.accounted_epsilon().upper <= 1
    assert (
        sum(len(site.y) for site in experiment.train.values()) + sum(len(s.y) for s in experiment.test.values()) == 918
    )
    assert any("under threshold" in note for note in experiment.notes)


def test_the_seed_sets_split_model_and_silences():
    """One seed gives one experiment; another gives another split, start and plan of silences."""
    first, again, other = (prepare(heart(seed=seed), "run-1") for seed in (1, 1, 2))
    for a, b in ((first, again),):
        assert np.array_equal(a.train["hungary"].x, b.train["hungary"].x)
        assert a.adapter.hash(a.adapter.params) == b.adapter.hash(b.adapter.params)
        assert a.silences == b.silences
    assert not np.array_equal(first.train["hungary"].x, other.train["hungary"].x)
    assert first.adapter.hash(first.adapter.params) != other.adapter.hash(other.adapter.params)
    assert first.silences != other.silences


def test_silences_are_spread_over_the_phases():
    """A fifth of forty rounds has a silence, by one site that the seed chooses, and all five phases take their turn."""
    chosen = set()
    for seed in range(8):
        planned = _silences(heart(seed=seed), SITES)
        assert len(planned) == 8
        assert np.diff(sorted(planned)).max() <= 9
        assert {phase for drops in planned.values() for phase in drops.values()} == {
            "advertise",
            "share",
            "mask",
            "confirm",
            "unmask",
        }
        (site,) = {site for drops in planned.values() for site in drops}
        chosen.add(site)
    assert len(chosen) > 1


def test_no_drop_rate_no_silences(toy):
    """Without a drop rate nobody goes silent; a named site is the one that does, and a misspelt one is refused."""
    sites = ("east", "north")
    assert _silences(toy(), sites) == {}
    planned = _silences(toy("simulation={drop_rate=1.0,drop_site='north'}"), sites)
    assert planned == {0: {"north": planned[0]["north"]}, 1: {"north": planned[1]["north"]}}
    with pytest.raises(ConfigError, match=r"simulation\.drop_site: there is no site 'nroth'; did you mean north\?"):
        _silences(toy("simulation.drop_site=nroth"), sites)


@pytest.mark.parametrize(
    ("overrides", "private", "error", "message"),
    [
        (["privacy.dropouts=4"], True, PlanError, "leave nobody honest"),
        (["privacy.bits=8"], True, PlanError, "sigma_local = 7"),
        (["privacy.records_per_site=5"], True, DataError, "site east: 19 training rows, and the agreed cap is 5"),
        (["privacy.silos=5"], True, PlanError, r"silos = 5: .* more than the 4 sites"),
        (["privacy.adaptive.min_clip=2.0"], True, PlanError, r"clip = 1\.0 is outside \[2, 100\]"),
        (["privacy.adaptive.max_clip=0.01"], True, PlanError, r"adaptive\.min_clip = 0\.01 is not below max_clip"),
        (["privacy.adaptive.bit_noise=0.1"], True, PlanError, r"adaptive\.bit_noise = 0\.1 leaves nothing"),
        (["privacy.adaptive.expected=1000"], True, PlanError, r"adaptive\.expected = 1000 is above the 256 records"),
        (["secagg.threshold=4"], False, ParameterError, "threshold t = 4 must be in"),
        (["algorithm.fraction_bits=52", "algorithm.max_weight=4194304"], False, ConfigError, r"algorithm\.limit"),
        (["algorithm.learning_rate=1", "algorithm.options.mumentum=1"], False, ConfigError, r"algorithm\.options"),
        (["server.optimizer=lbfgs"], False, ConfigError, r"server\.optimizer: optax\.lbfgs needs more than gradients"),
        (["server.optimizer=noisy_sgd"], False, ConfigError, r"server\.optimizer: optax\.noisy_sgd draws random"),
        (["model.kind=os:getcwd"], False, ConfigError, r'model\.kind: "os:getcwd" cannot be built for 2 features'),
        (["model.kind=:x"], False, ConfigError, r'model\.kind: ":x" cannot be imported'),
        (["model.kind=operator:add"], False, ConfigError, r"model\.kind"),
        (["model.kind=flax.nnx:Linear"], False, ConfigError, r"model\.kind"),
    ],
)
@pytest.mark.filterwarnings("ignore:Specifying a key")  # what Optax says of the optimiser that is refused here
def test_what_cannot_work_is_refused_before_round_one(toy, overrides, private, error, message):
    """S16, S20: infeasible plans, rows over the cap and rings that are too small are refused with the numbers."""
    with pytest.raises(error, match=message):
        prepare(toy(*overrides, private=private, adaptive="adaptive" in overrides[0]), "run-1")


@pytest.mark.parametrize("mode", ["plain", "ideal"])
def test_a_site_that_takes_part_under_secure_aggregation_only(toy, mode):
    """S20: what one site demands holds for all: another mode is refused by its name, and so is a name that no site has."""
    demand = "simulation.secure_only=['north']"
    assert prepare(toy(demand), "run-1").config.simulation.secure_only == ("north",)
    with pytest.raises(ConfigError, match=r"secagg\.mode: site north takes part under secure aggregation only"):
        prepare(toy(demand, mode=mode), "run-1")
    with pytest.raises(ConfigError, match=r"simulation\.secure_only: there is no site 'nroth'; did you mean north\?"):
        prepare(toy("simulation.secure_only=['nroth']"), "run-1")


@pytest.mark.parametrize(
    ("overrides", "private", "rounds", "said"),
    [
        ([], False, 2, "without [privacy] nothing covers it"),
        ([], True, 2, "the noise covers its records, not the site"),
        ([], False, 1, None),
        (["privacy.dropouts=0"], True, 2, None),
        (["privacy={epsilon=2.0,delta=1e-4,unit='client',divisor=4,dropouts=1,colluders=1}"], False, 2, None),
    ],
    ids=["no plan", "records", "one round", "nobody may be missing", "clients"],
)
def test_rounds_that_may_differ_by_one_site_are_warned_of(toy, overrides, private, rounds, said):
    """S29: a note says what the difference of two sums shows, where survivors may differ and no noise covers a site."""
    notes = [
        note for note in prepare(toy(*overrides, private=private, rounds=rounds), "run-1").notes if "differ" in note
    ]
    assert len(notes) == (said is not None)
    assert all(note.endswith(str(said)) for note in notes)


def test_two_sites_with_the_same_table_are_refused(toy, toy_folder, tmp_path):
    """One patient at two sites would count twice, so equal tables are refused by both names; empty ones are allowed."""
    folder = tmp_path / "copies"
    shutil.copytree(toy_folder, folder)
    (folder / "site_west.csv").write_text((folder / "site_north.csv").read_text())
    with pytest.raises(DataError, match="sites north and west hold the same table"):
        prepare(toy(f"data.path={folder}"), "run-1")
    for name in ("north", "west"):
        (folder / f"site_{name}.csv").write_text("a,b,sick\n")
    assert len(prepare(toy(f"data.path={folder}"), "run-1").train["west"].y) == 0


def test_a_folder_without_sites_is_named(toy, tmp_path):
    """A data folder without site files is refused by its path."""
    with pytest.raises(DataError, match=r"has no site_\*\.csv"):
        prepare(toy(f"data.path={tmp_path}"), "run-1")


def test_the_hash_covers_what_shapes_an_update(toy):
    """Model, algorithm, server step, seed and rounds are in the experiment's hash; name and simulation are not."""
    base = prepare(toy(), "a").agreement.experiment
    assert prepare(toy("name=other", "simulation.drop_rate=0.5"), "b").agreement.experiment == base
    for change in (
        "seed=1",
        "rounds=3",
        "algorithm.batch_size=4",
        "server.learning_rate=0.5",
        "model.loss=squared",
        "data.test_fraction=0.4",
    ):
        assert prepare(toy(change), "a").agreement.experiment != base


def test_sites_with_other_ranges_have_another_experiment(toy, toy_folder, tmp_path):
    """Sites that would scale their rows differently do not agree on an experiment, so they cannot train together unseen."""
    folder = tmp_path / "other"
    shutil.copytree(toy_folder, folder)
    schema = folder / "schema.toml"
    schema.write_text(schema.read_text().replace("high = 3", "high = 4", 1))
    base = prepare(toy(), "a").agreement.experiment
    assert prepare(toy(f"data.path={folder}"), "a").agreement.experiment != base


def test_a_clients_update_is_clipped_to_the_plan(toy):
    """At the client level, a huge update leaves with the grid's norm and no more, so the plan's sensitivity holds."""
    experiment = prepare(
        toy(
            "privacy={epsilon=50.0,delta=1e-4,unit='client',clip=1.0,divisor=4,colluders=1,dropouts=1}",
            private=False,
        ),
        "a",
    )
    plan, dimension = experiment.agreement.plan, experiment.adapter.schema.dimension
    sent = experiment.algorithm.encode(SiteUpdate(np.full(dimension, 1e6), 1, 0.0))["update"]
    assert 0.9 * plan.grid < np.linalg.norm(sent.astype(float)) <= plan.grid


def test_a_person_at_several_sites_moves_the_sum_that_many_times(toy):
    """With two silos the sensitivity is twice as many steps and the noise follows; half the clip norm takes it back."""
    one, two = (prepare(toy(f"privacy.silos={k}", private=True), "a").agreement.plan for k in (1, 2))
    assert (two.grid, two.sensitivity) == (one.grid, 2 * one.grid)
    assert two.sigma_local == pytest.approx(2 * one.sigma_local)
    half = prepare(toy("privacy.silos=2", "privacy.total_clip=1.0", private=True), "a").agreement.plan
    assert (half.clip, half.total_clip) == (0.5, 1.0)
    assert half.hash != two.hash


def test_as_many_equal_tables_as_silos_are_allowed(toy, toy_folder, tmp_path):
    """A plan for persons at two sites takes two equal tables, and refuses a third by all names."""
    folder = tmp_path / "copies"
    shutil.copytree(toy_folder, folder)
    north = (folder / "site_north.csv").read_text()
    (folder / "site_west.csv").write_text(north)
    overrides = (f"data.path={folder}", "privacy.silos=2")
    assert prepare(toy(*overrides, private=True), "a").agreement.plan.silos == 2
    (folder / "site_south.csv").write_text(north)
    with pytest.raises(
        DataError, match=r"sites north and south and west hold the same table; privacy\.silos = 2 allows"
    ):
        prepare(toy(*overrides, private=True), "a")


def test_the_adaptive_example_is_prepared():
    """The example has one more coordinate than the model, for the bit, and keeps to its budget."""
    experiment = prepare(load_config(EXAMPLES / "heart_adaptive.toml"), "a")
    plan = experiment.agreement.plan
    assert (plan.length, [block.length for block in experiment.agreement.blocks]) == (34, [34])
    assert plan.sigma_star / (2 * plan.bit) <= plan.adaptive.bit_noise
    assert plan.accounted_epsilon().upper <= 1


def test_everybody_is_one_site(toy):
    """Centralised training has all rows at one site, no plan, no protocol and no promise; what is held out stays by site."""
    federated = prepare(toy(private=True), "a")
    experiment = prepare(toy("mode=centralized", "simulation.drop_rate=0.5", private=True), "a")
    assert list(experiment.train) == ["everybody"]
    assert experiment.agreement.sites == {0: "everybody"}
    assert (experiment.agreement.plan, experiment.agreement.private, experiment.agreement.secure) == (
        None,
        False,
        False,
    )
    assert (experiment.config.secagg.mode, experiment.config.mode) == ("plain", "centralized")
    assert experiment.silences == {}
    for name in ("x", "y"):
        rows = np.concatenate([getattr(site, name) for site in federated.train.values()])
        assert np.array_equal(getattr(experiment.train["everybody"], name), rows)
        assert all(
            np.array_equal(getattr(experiment.test[s], name), getattr(federated.test[s], name)) for s in federated.test
        )
    assert experiment.adapter.hash(experiment.adapter.params) == federated.adapter.hash(federated.adapter.params)
    assert [block.name for block in experiment.algorithm.blocks] == ["update", "weight", "loss"]


def test_sites_are_compared_before_they_are_pooled(toy):
    """F3: a site whose records have another shape is named in every mode, not lost in one table of all."""
    for mode in ("federated", "centralized", "local"):
        with pytest.raises(
            DataError, match=r"site b: records are float32\[3\], those of the first site are float32\[2\]"
        ):
            prepare(toy(f"data={{source='{__name__}:uneven'}}", f"mode={mode}"), "a")


def uneven(seed):
    """Two sites that have measured different things."""
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(size=(9, width)), rng.integers(0, 2, 9)) for name, width in (("a", 2), ("b", 3))}


def test_alone_an_algorithm_has_one_site(toy):
    """Where each site trains by itself the blocks are those of one site; there is no plan and no promise."""
    alone, together = (prepare(toy(f"mode={mode}", mode="plain"), "a") for mode in ("local", "federated"))
    assert list(alone.train) == list(together.train)
    assert (alone.agreement.plan, alone.agreement.private, alone.agreement.secure) == (None, False, False)
    assert alone.algorithm.blocks[0].bits == together.algorithm.blocks[0].bits - 2


def test_everybody_may_have_more_rows_than_a_site(toy):
    """The cap on a site's rows is one of its integers, and centralised training has none."""
    for name in ("fedavg", "scaffold"):
        cap = f"algorithm={{name='{name}',local_epochs=1,max_weight=25}}"
        assert len(prepare(toy(cap, "mode=centralized"), "a").train["everybody"].y) > 25
    with pytest.raises(DataError, match="site east: 19 training rows, and the agreed cap is 5"):
        prepare(toy("algorithm.max_weight=5"), "a")


def images(seed):
    """Two sites of small images and three classes, and one without rows."""
    rng = np.random.default_rng(seed)
    rows = {"a": 12, "b": 9, "empty": 0}
    return {name: (rng.normal(size=(n, 2, 2)), rng.integers(0, 3, n)) for name, n in rows.items()}


def test_a_source_takes_the_place_of_tables(toy):
    """Records of any shape come from a function; there is no schema, and the seed reaches it."""
    wanted = (f"data={{source='{__name__}:images'}}", "model={kind='mlp',hidden=[3],outputs=3,loss='softmax'}")
    experiment = prepare(toy(*wanted), "a")
    assert experiment.schema is None
    assert {name: len(site.y) + len(experiment.test[name].y) for name, site in experiment.train.items()} == {
        "a": 12,
        "b": 9,
        "empty": 0,
    }
    assert experiment.adapter.schema.dimension == 4 * 3 + 3 + 3 * 3 + 3
    again, other = prepare(toy(*wanted), "b"), prepare(toy(*wanted, "seed=1"), "b")
    assert np.array_equal(again.train["a"].x, experiment.train["a"].x)
    assert other.train["a"].fingerprint != experiment.train["a"].fingerprint


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        (
            "model={kind='mlp',outputs=2,loss='softmax'}",
            DataError,
            "site a: labels that are no class numbers below .* 2",
        ),
        ("model={kind='mlp',outputs=3}", DataError, "site a: labels other than 0 and 1"),
        ("model={kind='mlp',outputs=3,loss='softmax',class_weights=[1.0,2.0]}", DataError, "class weights, 2"),
        ("model={kind='flax.nnx:BatchNorm'}", ConfigError, r"model\.kind: "),
    ],
)
def test_labels_and_models_that_do_not_go_together_are_refused(toy, override, error, message):
    """What the first round would trip over is said before it: training labels beyond the outputs, the loss or the weights."""
    with pytest.raises(error, match=message):
        prepare(toy(f"data={{source='{__name__}:images'}}", override), "a")
