import json
import re

import pytest

SOLVED = ("noise", "--epsilon", 1, "--delta", "1e-5", "--steps", 100)
BLOCK = (
    *("epsilon", "--noise-multiplier", 1, "--sample-rate", 0.1, "--local-steps", 100),
    *("--client-rate", 0.2, "--steps", 10, "--delta", "1e-5"),
)


def test_epsilon_prints_one_json_object(call):
    """The command of the design gives epsilon, lower and routes, and nothing else on stdout."""
    code, out, err = call(
        "epsilon", "--noise-multiplier", 1, "--sample-rate", 1, "--steps", 1, "--delta", "1e-5", "--json"
    )
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert answer["epsilon"] == pytest.approx(4.3771780956812245, rel=1e-10)
    assert answer["lower"] <= answer["epsilon"] == min(answer["routes"].values())
    assert answer.keys() == {"epsilon", "lower", "routes"}


def test_epsilon_takes_the_relation(call):
    """Replace-one gives 9.997, in words too."""
    question = ("epsilon", "--noise-multiplier", 1, "--delta", "1e-5", "--relation", "replace-one")
    code, out, _ = call(*question)
    assert code == 0
    assert "9.997" in out
    assert "replace-one" in out
    assert json.loads(call(*question, "--json")[1])["epsilon"] == pytest.approx(9.997256, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words", "epsilon"),
    [
        ((), "(add-remove)", 4.3771781),
        (("--unit", "client"), "(zero-out, unit client)", 4.3771781),
        (("--silos", 2), "(add-remove, a patient at 2 sites)", 9.9972561),
        (
            ("--sample-rate", 0.1, "--sampling", "fixed", "--relation", "zero-out"),
            "(zero-out, batches of a fixed size, so every record counts in every step)",
            4.3771781,
        ),
        (("--sample-rate", 0.1), "(add-remove, Poisson sampling with secret coins)", 1.68455),
    ],
)
def test_epsilon_says_what_it_is_about(call, options, words, epsilon):
    """Unit, relation, sites and what the sampling was taken to be stand beside the bound, in words."""
    code, out, _ = call("epsilon", "--noise-multiplier", 1, "--delta", "1e-5", *options)
    assert code == 0
    assert words in out
    assert float(re.match(r"epsilon <= (\S+)", out)[1]) == pytest.approx(epsilon, rel=1e-5)


@pytest.mark.parametrize("command", ["epsilon", "noise"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--unit", "client", "--sample-rate", 0.1), "signed cohort"),
        (("--unit", "client", "--relation", "add-remove"), "zero-out"),
        (("--unit", "client", "--silos", 2), "ask about the record"),
        (("--sampling", "fixed", "--sample-rate", 0.1), "needs a relation"),
        (("--sampling", "fixed", "--sample-rate", 0.1, "--relation", "add-remove"), "another takes its place"),
        (("--silos", 0), "silos"),
        (("--sample-rate", "nan"), "sample_rate"),
        (("--steps", 0), "steps"),
        (("--relation", "swap"), "swap"),
    ],
)
def test_a_question_that_contradicts_itself_is_refused(call, command, options, message):
    """Wrong relations, units and samplers end in one line on stderr and exit code 1, for both commands."""
    of = ("--noise-multiplier", 1) if command == "epsilon" else ("--epsilon", 1)
    code, out, err = call(command, *of, "--delta", "1e-5", *options)
    assert (code, out) == (1, "")
    assert message in err


def test_p23_the_client_coin_counts_once_a_round(call):
    """P23: 8.52, with its condition, beside the 14.5 of a coin that is seen; never 3.90."""
    code, out, err = call(*BLOCK)
    assert (code, err) == (0, "")
    assert re.match(r"epsilon <= 8\.52\d* at delta = 1e-05 \(add-remove, Poisson", out)
    assert re.search(r"if it may be seen.*epsilon <= 14\.49", out)
    answer = json.loads(call(*BLOCK, "--json")[1])
    assert answer["epsilon"] == pytest.approx(8.5222, rel=1e-3)
    assert answer["epsilon_if_seen"] == pytest.approx(14.4955, rel=1e-3)
    assert answer["coin"] == "secret"
    assert answer["lower"] > 3.9


def test_replace_one_behind_a_client_coin_is_a_coin_that_is_seen(call):
    """Where a secret coin proves nothing, the answer is the other one, and says so."""
    answer = json.loads(call(*BLOCK, "--relation", "replace-one", "--json")[1])
    assert answer["coin"] == "seen"
    assert answer["epsilon"] == answer["epsilon_if_seen"] > 14.5


def test_local_steps_alone_are_steps(call):
    """Without a client's coin, L local steps in R rounds are L R steps."""
    question = ("epsilon", "--noise-multiplier", 4, "--delta", "1e-5")
    every = json.loads(call(*question, "--steps", 50, "--json")[1])
    assert json.loads(call(*question, "--steps", 5, "--local-steps", 10, "--json")[1])["epsilon"] == every["epsilon"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--silos", 2), "--silos"),
        (("--unit", "client"), "--unit"),
        (("--sampling", "fixed"), "--sampling"),
        (("--local-steps", 0), "local_steps"),
        (("--client-rate", 0), "client_rate"),
        (("--client-rate", 1.5), "client_rate"),
    ],
)
def test_what_has_no_bound_behind_a_client_coin_is_refused(call, options, message):
    """Options that do not go with the coin, and coins that are none, are refused by name."""
    code, out, err = call(*BLOCK, *options)
    assert (code, out) == (1, "")
    assert message in err


def test_noise_keeps_to_the_budget(call):
    """P5: the JSON epsilon is at most the target; the printed digits are rounded up."""
    question = (*SOLVED, "--sample-rate", 1)
    code, out, _ = call(*question, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer.keys() == {"noise_multiplier", "epsilon"}
    assert 1 - 1e-8 < answer["epsilon"] <= 1
    printed = float(call(*question)[1].split()[2].rstrip(":"))
    assert answer["noise_multiplier"] <= printed < answer["noise_multiplier"] * (1 + 1e-6)


def test_noise_takes_the_unit_and_the_sites(call):
    """A patient at three sites needs three times the noise; a client as much as one record, zeroed out."""
    one = json.loads(call(*SOLVED, "--json")[1])["noise_multiplier"]
    assert json.loads(call(*SOLVED, "--silos", 3, "--json")[1])["noise_multiplier"] == pytest.approx(3 * one, rel=1e-8)
    code, out, _ = call(*SOLVED, "--unit", "client")
    assert code == 0
    assert "(zero-out, unit client)" in out
    assert json.loads(call(*SOLVED, "--unit", "client", "--json")[1])["noise_multiplier"] == one


def test_noise_has_no_client_coin(call):
    """What a plan may not count is not solved for."""
    code, _, err = call(*SOLVED, "--client-rate", 0.2)
    assert code == 1
    assert "client-rate" in err
