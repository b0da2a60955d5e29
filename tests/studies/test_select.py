"""[select] of a study: where candidates stand, who is judged across what, and what is refused."""

import pytest

from flwr_robust.errors import ConfigurationError
from flwr_robust.studies.select import CANDIDATE, Select
from flwr_robust.studies.study import load_study

OWN = """
[config]
rounds = 2
validation = 0.1
[axes]
defence = [
  { label = "clipping", candidate = "tau = 0.1", defence = "centered_clipping(tau=0.1)" },
  { label = "clipping", candidate = "tau = 1", defence = "centered_clipping(tau=1.0)" },
  { label = "median", defence = "median()" },
]
attack = [{ label = "none" }, { label = "flip", attack = "label_flip()", attackers = 1 }]
seed = [0, 1]
[select]
[report]
baseline = "clipping"
"""
SHARED = """
[config]
rounds = 2
validation = 0.1
[axes]
defence = ["mean()", "median()"]
rate = [{ label = "small", server-learning-rate = 0.1 }, { label = "large", server-learning-rate = 1.0 }]
partition = ["iid", "by_label"]
attack = [{ label = "none" }, { label = "flip", attack = "label_flip()", attackers = 1 }]
[select]
over = "rate"
"""


def load(folder, text):
    path = folder / "own.toml"
    path.write_text(text)
    return load_study(str(path))


def test_candidates_of_a_rule_are_points_of_one_label(tmp_path):
    study = load(tmp_path, OWN)
    assert study.axes == {
        "defence": ("clipping", "median"),
        CANDIDATE: ("tau = 0.1", "tau = 1", "-"),
        "attack": ("none", "flip"),
        "seed": ("0", "1"),
    }
    assert study.select == Select((CANDIDATE,), ("defence",), ("attack",))
    assert len(study.cells) == 3 * 2 * 2
    assert {tuple(cell.labels.values())[:2]: cell.config.defence for cell in study.cells} == {
        ("clipping", "tau = 0.1"): "centered_clipping(tau=0.1)",
        ("clipping", "tau = 1"): "centered_clipping(tau=1.0)",
        ("median", "-"): "median()",
    }
    assert all(list(cell.labels) == list(study.axes) for cell in study.cells)
    assert len({cell.name for cell in study.cells}) == len(study.cells)
    assert (study.rows, study.columns) == ("defence", "attack")


def test_candidates_that_rows_share_are_an_axis(tmp_path):
    study = load(tmp_path, SHARED)
    assert study.select == Select(("rate",), ("defence",), ("partition", "attack"))
    assert (study.rows, study.columns) == ("defence", "attack")
    study = load(tmp_path, SHARED + 'for = ["defence", "partition"]\nby = "mean"\nmetric = "validation_loss"\n')
    assert study.select == Select(("rate",), ("defence", "partition"), ("attack",), "mean", "validation_loss")
    assert load(tmp_path, SHARED + "for = []\n").select.across == ("defence", "partition", "attack")


def test_both_kinds_go_together_and_exceptions_may_name_a_candidate(tmp_path):
    rates = "rate = [{ label = 'a', server-learning-rate = 0.1 }, { label = 'b', server-learning-rate = 0.2 }]\nseed ="
    text = OWN.replace("seed =", rates, 1).replace("[select]", '[select]\nover = ["candidate", "rate"]')
    text += "[[exceptions]]\nwhere = { candidate = 'tau = 1', rate = 'b' }\nset = { alpha = 0.5 }\n"
    study = load(tmp_path, text)
    assert study.select.over == (CANDIDATE, "rate")
    changed = {(c.labels[CANDIDATE], c.labels["rate"]) for c in study.cells if c.config.alpha == 0.5}
    assert changed == {("tau = 1", "b")}


def test_without_select_a_study_is_what_it_was(tmp_path):
    study = load(tmp_path, SHARED.partition("[select]")[0])
    assert study.select is None
    assert list(study.axes) == ["defence", "rate", "partition", "attack"]


WRONG = [
    (OWN.replace("[select]\n", ""), ["a candidate need the table [select]"]),
    (OWN.replace("validation = 0.1\n", ""), ["validation_accuracy", "no validation samples", "set validation"]),
    ("select = 3\n" + OWN.replace("[select]\n", ""), ["[select] must be a table; got 3"]),
    (OWN.replace('candidate = "tau = 1"', "candidate = 1.0"), ["axis defence must be a text", "1.0", "quotes"]),
    (OWN.replace('candidate = "tau = 1"', 'candidate = "tau = 0.1"'), ["labels of axis defence must differ"]),
    (OWN.replace('label = "flip"', 'label = "flip", candidate = "x"'), ["one axis", "defence, attack"]),
    (OWN.replace("seed =", "candidate = ['iid']\nseed ="), ["one axis", "defence, candidate"]),
    (OWN.replace("[select]", '[select]\nover = "attack"'), ["over of [select] must name 'candidate'", "['attack']"]),
    (OWN.replace("[select]", '[select]\nfor = "attack"'), ["for of [select] must name it", "['attack']"]),
    (OWN.replace("[select]", '[select]\nby = "median"'), ["by of [select]", "mean, worst case", "median"]),
    (
        OWN.replace("[select]", '[select]\nmetric = "accuracy"'),
        ["test values do not enter", "take validation_accuracy"],
    ),
    (OWN.replace("[select]", '[select]\nmetric = "validation_acc"'), ["validation_acc", "validation_accuracy"]),
    (OWN.replace("[select]", '[select]\nacross = "seed"'), ["across of [select] cannot name seed"]),
    (OWN.replace("[select]", "[select]\nacross = 3"), ["across of [select] must be an axis or a list", "3"]),
    (OWN.replace("[select]", '[select]\nacross = "attak"'), ["attak", "Did you mean 'attack'"]),
    (OWN.replace("[select]", "[select]\nfrom = 'x'"), ["key of [select]", "'from'", "over"]),
    (OWN + 'take = "best_on_test"\n', ["best_on_test", "looks at the test set", "final"]),
    (SHARED.replace('"rate"', "[]"), ["over of [select] must name at least one"]),
    (SHARED + 'across = "rate"', ["must share no axis; got rate"]),
    (SHARED + 'across = "attack"', ["must say what axis partition is", "name it in for"]),
    (SHARED + '[report]\nrows = "rate"', ["axis", "rate"]),
    (SHARED.replace("validation = 0.1", "validation = 0.0"), ["there are no validation samples"]),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[words[0] for _, words in WRONG])
def test_wrong_choices_are_one_sentence(tmp_path, text, words):
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


def test_the_best_round_needs_validation_samples(tmp_path):
    plain = '[config]\nrounds = 2\n[axes]\ndefence = ["mean()"]\nseed = [0]\n[report]\ntake = "best"\n'
    with pytest.raises(ConfigurationError, match=r"take = 'best' .*: set validation in \[config\].*best_on_test"):
        load(tmp_path, plain)
    assert load(tmp_path, plain.replace('"best"', '"best_on_test"')).report.take == "best_on_test"
    assert load(tmp_path, plain.replace("rounds = 2", "rounds = 2\nvalidation = 0.1")).report.take == "best"
