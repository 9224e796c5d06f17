import hashlib
import json
import math

import pytest

from privacy.plan import Plan

HEART = {
    "unit": "record",
    "sites": 4,
    "dropouts": 1,
    "colluders": 1,
    "clip": 1,
    "records-per-site": 303,
    "dimension": 40,
    "rounds": 40,
    "delta": "1e-4",
    "epsilon": 1,
    "divisor": 720,
}
ADAPTIVE = {
    "adaptive-quantile": 0.5,
    "adaptive-learning-rate": 0.2,
    "adaptive-bit-noise": 36,
    "adaptive-expected": 720,
    "adaptive-min-clip": 0.01,
    "adaptive-max-clip": 100,
}


def options(**changes):
    """The heart plan's options, changed; one that is None is left out."""
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    return [part for name, value in (HEART | named).items() if value is not None for part in (f"--{name}", str(value))]


def test_page_has_words_and_every_table(call):
    """Words first, then the plan's numbers, signal to noise, epsilon by rounds and by colluders, both routes."""
    code, out, err = call("plan", *options())
    assert (code, err) == (0, "")
    plan = Plan.solve(
        unit="record",
        relation="add-remove",
        sites=4,
        dropouts=1,
        colluders=1,
        clip=1,
        records_per_site=303,
        dimension=40,
        rounds=40,
        delta=1e-4,
        epsilon=1,
        divisor=720,
    )
    assert out.startswith(plan.explain())
    for part in ("1048576", "3 (floor)", "40 (the plan)", "80 (over the budget)", "2 (more than planned)", "Rényi"):
        assert part in out


def test_json_is_one_object_that_agrees_with_the_plan(call):
    """One object on stdout, nothing else: fields, hash, bounds by route, and the three tables."""
    code, out, err = call("plan", *options(), "--json")
    answer = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    plan = Plan.from_json(json.dumps(answer["plan"]))
    assert answer["hash"] == plan.hash
    assert answer["epsilon"] == plan.accounted_epsilon().upper == answer["routes"]["closed_form"]
    assert [row["survivors"] for row in answer["signal"]] == [3, 4]
    assert [row["rounds"] for row in answer["by_rounds"]] == [*range(4, 41, 4), 80]
    assert [row["colluders"] for row in answer["by_colluders"]] == [0, 1, 2]
    assert answer["by_colluders"][1]["epsilon"] == answer["epsilon"]
    assert answer["by_rounds"][-1]["routes"].keys() == {"closed_form", "rdp"}
    assert (answer["grid"], answer["length"], answer["bit"], answer["warnings"]) == (1 << 20, 40, 0, [])


@pytest.mark.parametrize("epsilon", [0.3, 1, 7.77])
def test_printed_bounds_are_rounded_up(call, epsilon):
    """Every epsilon of the tables, read back from the page, is at least the JSON's."""
    answer = json.loads(call("plan", *options(epsilon=epsilon), "--json")[1])
    lines = call("plan", *options(epsilon=epsilon))[1].splitlines()
    for title, rows in (("Epsilon after", "by_rounds"), ("Epsilon of all", "by_colluders")):
        start = next(at for at, line in enumerate(lines) if line.startswith(title)) + 2
        for line, row in zip(lines[start:], answer[rows], strict=False):
            printed = [float(text) for text in line.split()[-3:]]
            exact = [row["epsilon"], row["routes"]["closed_form"], row["routes"]["rdp"]]
            assert all(text >= value for text, value in zip(printed, exact, strict=True))
            assert printed == pytest.approx(exact, rel=1e-5)


def test_noise_in_place_of_the_budget(call):
    """A noise multiplier gives the least budget; with a budget, and without rounds, the most rounds."""
    question = ("epsilon", "--noise-multiplier", 21, "--steps", 40, "--delta", "1e-4", "--json")
    accounted = json.loads(call(*question)[1])["epsilon"]
    answer = json.loads(call("plan", *options(epsilon=None, noise_multiplier=21), "--json")[1])
    assert answer["plan"]["noise_multiplier"] == 21
    assert answer["epsilon"] <= answer["plan"]["epsilon"] == pytest.approx(accounted, rel=1e-6)
    answer = json.loads(call("plan", *options(rounds=None, noise_multiplier=21), "--json")[1])
    assert answer["plan"]["rounds"] == 43


def test_silos_and_adaptive_clipping_from_the_shell(call):
    """A bound over a person's hospitals and an adaptive clip are options like the others."""
    more = {name.replace("-", "_"): value for name, value in ADAPTIVE.items()}
    code, out, _ = call("plan", *options(clip=None, total_clip=1, silos=2, epsilon=4, **more), "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["plan"]["clip"], answer["plan"]["silos"], answer["total_clip"]) == (0.5, 2, 1)
    assert answer["plan"]["adaptive"]["bit_noise"] == 36
    assert (answer["length"], answer["bit"] > 0) == (41, True)
    assert answer["sensitivity"] == pytest.approx(2 * math.hypot(answer["grid"], answer["bit"]), rel=1e-5)


def test_clients_have_their_own_defaults(call):
    """For the client unit the relation is zero-out and the cap is 1, without saying so; a large delta warns on stderr."""
    code, out, err = call("plan", *options(unit="client", records_per_site=None, delta=0.3), "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["plan"]["relation"], answer["plan"]["records_per_site"]) == ("zero-out", 1)
    assert err == f"privacy: warning: {answer['warnings'][0]}\n"
    assert "1 / 4 clients" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_multiplier": 21}, "two of epsilon, noise_multiplier, rounds"),
        ({"epsilon": None}, "two of epsilon, noise_multiplier, rounds"),
        ({"dropouts": 3}, "sites - dropouts - colluders < 1"),
        ({"bits": 11}, "no grid fits 11 bits"),
        ({"rounds": None, "noise_multiplier": 0.5}, "one round at noise_multiplier = 0.5 spends epsilon = 8."),
        ({"silos": 5}, "more than the 4 sites"),
        ({"unit": "client"}, "records_per_site = 303"),
        ({"relation": "zero-out"}, "does not go with unit record"),
        ({"clip": None}, "clip and total_clip"),
        ({"total_clip": 1}, "clip and total_clip"),
        ({"epsilon": "nan"}, "epsilon = nan"),
        ({"delta": 2}, "delta"),
        ({"sites": None}, "missing --sites"),
        ({"unit": None, "divisor": None}, "missing --unit, --divisor"),
        ({"records_per_site": None}, "missing --records-per-site"),
        ({"adaptive_quantile": 0.5}, "missing --adaptive-learning-rate, --adaptive-bit-noise"),
        ({"unit": "patient"}, "patient"),
    ],
)
def test_plans_that_cannot_be_are_refused_with_the_numbers(call, tmp_path, changes, message):
    """Exit 1, the reason on stderr, nothing on stdout, and no file."""
    code, out, err = call("plan", *options(**changes), "--out", tmp_path / "plan.json")
    assert (code, out) == (1, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_plan_is_written_and_read_back(call, tmp_path):
    """The file is the canonical JSON whose SHA-256 is the plan's hash; --from says what made it said."""
    path = tmp_path / "plan.json"
    answer = json.loads(call("plan", *options(), "--out", path, "--json")[1])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == answer["hash"]
    assert json.loads(call("plan", "--from", path, "--json")[1]) == answer
    assert call("plan", "--from", path)[1] == call("plan", *options())[1]
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_is_not_overwritten_unasked(call, tmp_path):
    """A file that is there stays byte for byte without --force, and is replaced with it."""
    path = tmp_path / "plan.json"
    path.write_text("mine")
    code, out, err = call("plan", *options(), "--out", path)
    assert (code, out, path.read_text()) == (1, "", "mine")
    assert "--force" in err
    assert call("plan", *options(), "--out", path, "--force")[0] == 0
    assert Plan.from_json(path.read_bytes()).rounds == 40


def test_a_plan_that_cannot_be_written_is_an_error(call, tmp_path):
    """A folder that is not there: exit 1, the path on stderr, and no answer on stdout."""
    code, out, err = call("plan", *options(), "--out", tmp_path / "nowhere" / "plan.json")
    assert (code, out) == (1, "")
    assert "nowhere" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"{", "not JSON"),
        (b"{}", "privacy-plan/1"),
        (b" " * 70_000, "no plan"),
        (b"\xff\xfe\xff", "not JSON"),
    ],
)
def test_bad_files_are_named(call, tmp_path, content, message):
    """A file that is missing, no plan, or endless: exit 1, and its path with the reason."""
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    code, out, err = call("plan", "--from", path)
    assert (code, out) == (1, "")
    assert str(path) in err
    assert message in err


def test_from_takes_no_fields_and_force_needs_out(call, tmp_path):
    """A plan that is read cannot be changed on the way, since its hash is what was signed."""
    path = tmp_path / "plan.json"
    call("plan", *options(), "--out", path)
    code, out, err = call("plan", "--from", path, "--rounds", 20, "--total-clip", 2)
    assert (code, out) == (1, "")
    assert "--rounds" in err
    assert "--total-clip" in err
    assert "--force goes with --out" in call("plan", *options(), "--force")[2]


def test_poisson_batches_from_the_shell(call, tmp_path):
    """--sample-rate makes a sampled plan: the page says so, JSON has the rate and the third route, the file reads back."""
    code, out, _ = call("plan", *options(sample_rate=0.1), "--out", tmp_path / "plan.json", "--json")
    answer = json.loads(out)
    assert (code, answer["sample_rate"], answer["plan"]["sample_rate"]) == (0, 0.1, 0.1)
    assert answer["epsilon"] == answer["routes"]["pld"] <= 1.0 < answer["routes"]["rdp"]
    plan = Plan.from_json((tmp_path / "plan.json").read_bytes())
    assert (plan.hash, plan.sample_rate) == (answer["hash"], 0.1)
    code, page, _ = call("plan", "--from", tmp_path / "plan.json")
    assert code == 0
    assert page.startswith(plan.explain())
    assert "40 (the plan)" in page
    code, _, err = call("plan", *options(sample_rate=0.1, silos=2))
    assert code != 0
    assert "silos = 2: each site flips a coin of its own" in err
