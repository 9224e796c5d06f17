import json

import pytest


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


def test_noise_keeps_to_the_budget(call):
    """P5: the JSON epsilon is at most the target; the printed digits are rounded up."""
    question = ("noise", "--epsilon", 1, "--delta", "1e-5", "--steps", 100, "--sample-rate", 1)
    code, out, _ = call(*question, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer.keys() == {"noise_multiplier", "epsilon"}
    assert 1 - 1e-8 < answer["epsilon"] <= 1
    printed = float(call(*question)[1].split()[2].rstrip(":"))
    assert answer["noise_multiplier"] <= printed < answer["noise_multiplier"] * (1 + 1e-6)
