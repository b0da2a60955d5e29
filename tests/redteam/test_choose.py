"""The choice among candidates of a red team: on validation samples alone."""

import io
import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flwr_robust.cli import app
from flwr_robust.errors import ConfigurationError
from flwr_robust.redteam.battery import HONEST_MEAN, NO_ATTACK, choose
from flwr_robust.redteam.choose import choose_candidate
from flwr_robust.redteam.run import RedTeam, Run, Setting, red_team, run_once
from flwr_robust.runs.results import evaluator
from tests.redteam.test_red_team import SMALL, trimmed

FAMILIES = {"zero()": "noise", "nan()": "noise"}


def team(name, values, accuracy=0.5, **setting):
    """A red team with accuracies on validation samples, by attack and real f; two seeds around each."""
    runs = [
        Run(attack, f, seed, accuracy, validation=value + noise)
        for (attack, f), value in values.items()
        for seed, noise in ((0, -0.02), (1, 0.02))
    ]
    own = Setting(name, name, **{"declared_f": 2, "validation": 0.1, **setting})
    return RedTeam(own, FAMILIES, {run.key: run for run in runs}, {})


STEADY = {("no attack", 0): 0.8, ("zero()", 1): 0.7, ("nan()", 1): 0.7, ("zero()", 2): 0.65, ("nan()", 2): 0.6}
BRIGHT = {("no attack", 0): 0.95, ("zero()", 1): 0.9, ("nan()", 1): 0.9, ("zero()", 2): 0.9, ("nan()", 2): 0.5}


def test_the_worst_case_and_the_mean_choose_each_their_own():
    steady, bright = team("steady", STEADY), team("bright", BRIGHT)
    worst = choose_candidate([bright, steady])
    assert worst.chosen is steady
    assert [(each.attack, each.real_f, round(each.value, 6)) for each in worst.ranking] == [
        ("nan()", 2, 0.6),
        ("nan()", 2, 0.5),
    ]
    mean = choose_candidate([steady, bright], "mean")
    assert mean.chosen is bright
    assert mean.ranking[0].value == pytest.approx(sum(BRIGHT.values()) / 5)
    assert worst.sentence.startswith("Chosen among 2 candidates: steady, by its worst case over attacks on the 10 %")


NAMED = (("s", STEADY), ("b", BRIGHT))


def test_test_accuracies_do_not_enter_and_the_first_of_equals_is_chosen():
    for accuracies in ((0.1, 0.9), (0.9, 0.1)):
        steady, bright = (team(*pair, accuracy=a) for pair, a in zip(NAMED, accuracies, strict=True))
        assert choose_candidate([steady, bright]).chosen is steady
        same, other = (team(name, STEADY, accuracy=a) for name, a in zip("ab", accuracies, strict=True))
        assert choose_candidate([same, other]).chosen is same


def test_more_attackers_than_declared_and_attacks_that_one_never_met_do_not_count():
    beyond = team("beyond", {**STEADY, ("nan()", 3): 0.0})
    assert choose_candidate([beyond]).ranking[0].value == pytest.approx(0.6)
    spared = team("spared", {place: value for place, value in STEADY.items() if place[0] != "nan()"})
    pick = choose_candidate([spared, team("steady", STEADY)])
    assert [round(each.value, 6) for each in pick.ranking] == [0.65, 0.65]


def test_the_table_names_the_attack():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(choose_candidate([team("steady", STEADY), team("bright", BRIGHT)]).table())
    text = console.export_text()
    assert re.search(r"steady +│ +60.0 │ nan\(\), f = 2", text)
    assert re.search(r"bright +│ +50.0 │", text)


@pytest.mark.parametrize(
    ("results", "by", "words"),
    [
        ([], "mean", "set --validation"),
        ([team("a", STEADY, validation=0.0)], "mean", "set --validation"),
        ([team("a", STEADY), team("b", STEADY, declared_f=1)], "mean", "declare the same f.*got 1, 2"),
        ([team("a", STEADY)], "median", "--by must be one of mean, worst case"),
    ],
)
def test_what_cannot_be_compared_is_refused(results, by, words):
    with pytest.raises(ConfigurationError, match=words):
        choose_candidate(results, by)


def test_the_attackers_samples_do_not_validate(monkeypatch):
    """Whoever attacks messages is not in the configuration, and its samples do not count all the same."""
    asked = []

    def listening(config, **options):
        asked.append([*options["honest"]])
        return evaluator(config, **options)

    monkeypatch.setattr("flwr_robust.redteam.run.evaluator", listening)
    setting = Setting("it", "it", 1, clients=6, rounds=1, partition="iid", model="softmax", validation=0.2)
    (attack,) = choose(["sign_flip(c=10.0)"])
    found = [run_once(trimmed, setting, which, f, 0) for which, f in ((attack, 2), (NO_ATTACK, 0), (HONEST_MEAN, 1))]
    assert asked == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]
    assert all(0 < run.validation < 1 for run in found)
    assert (
        setting.config(0).samples[0].size < Setting("it", "it", 1, clients=6, partition="iid").config(0).samples[0].size
    )


def test_without_validation_runs_have_none():
    result = red_team(trimmed, name="it", attacks=choose(["zero()"]), real_f=[1], **SMALL)
    assert {run.validation for run in result.runs.values()} == {None}
    assert result.validated("zero()", 1) is None


def test_the_command_shows_the_chosen_candidate(tmp_path):
    arguments = ["red-team", "--defence", "centered_clipping(tau=1e-06, f=1)", "--validation", "0.2"]
    arguments += ["--candidate", "centered_clipping(tau=1.0, f=1)", "--clients", "6", "--rounds", "4", "--workers", "1"]
    arguments += ["--partition", "iid", "--model", "softmax", "--real-f", "1", "--attacks", "zero()"]
    done = CliRunner().invoke(app, [*arguments, "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    text = re.sub(r"\s+", " ", done.output)
    assert "Chosen among 2 candidates: centered_clipping(tau=1.0, f=1), by its worst case over attacks" in text
    assert "4 rounds, 20 % of the training samples held out" in text
    assert len(list(tmp_path.glob("*.json"))) == 2
    (picture,) = tmp_path.glob("*.png")
    told = json.loads(CliRunner().invoke(app, [*arguments, "--results", str(tmp_path), "--json"]).stdout)
    assert told["subject"] == "centered_clipping(tau=1.0, f=1)"
    assert told["results"] == str(picture.with_suffix(".json"))
    first, second = told["chosen"]["candidates"]
    assert (first["subject"], second["subject"]) == (told["subject"], "centered_clipping(tau=1e-06, f=1)")
    assert first["value"] > second["value"]
    assert first["value"] != told["worst"]["accuracy"]
    assert (told["chosen"]["by"], told["chosen"]["validation"]) == ("worst case", 0.2)
