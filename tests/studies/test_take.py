"""Which value of a curve counts, and that the best round is found without the test set."""

import math

import pytest

from flwr_robust.errors import ConfigurationError
from flwr_robust.studies.take import BEST, BEST_ON_TEST, FINAL, TAKES, comparable, looks, taken, told

CURVE = [
    {"round": 0, "loss": 3.0, "accuracy": 0.1, "validation_loss": 3.0, "validation_accuracy": 0.1},
    {"round": 5, "loss": 1.0, "accuracy": 0.6, "validation_loss": 0.5, "validation_accuracy": 0.8},
    {"round": 10, "loss": 0.9, "accuracy": 0.9, "validation_loss": 0.6, "validation_accuracy": 0.7},
    {"round": 15, "loss": 1.2, "accuracy": 0.5, "validation_loss": 0.7, "validation_accuracy": 0.8},
]


def document(curve=CURVE):
    return {"curve": curve, "final": curve[-1]}


def test_each_take_has_its_value():
    assert [taken(document(), "accuracy", take) for take in (FINAL, BEST, BEST_ON_TEST)] == [0.5, 0.6, 0.9]
    assert [taken(document(), "loss", take) for take in (FINAL, BEST, BEST_ON_TEST)] == [1.2, 1.0, 0.9]


def test_test_values_do_not_decide_on_the_best_round():
    for test in ([0.9, 0.1, 0.2, 0.3], [0.3, 0.9, 0.1, 0.2]):
        curve = [{**point, "accuracy": value} for point, value in zip(CURVE, test, strict=True)]
        assert taken(document(curve), "accuracy", BEST) == test[1]
        assert taken(document(curve), "accuracy", BEST_ON_TEST) == 0.9


def test_a_validation_metric_is_looked_up_on_itself():
    assert taken(document(), "validation_accuracy", BEST) == 0.8
    assert taken(document(), "validation_accuracy", FINAL) == 0.8


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_round_that_is_not_finite_is_never_the_best(value):
    curve = [{**CURVE[0], "validation_accuracy": value}, CURVE[1]]
    assert taken(document(curve), "accuracy", BEST) == 0.6
    assert (comparable(value, True), comparable(value, False)) == (-math.inf, math.inf)


def test_the_best_round_needs_the_metric_on_validation_samples():
    curve = [{"round": 0, "accuracy": 0.1, "xi": 1.0}]
    with pytest.raises(ConfigurationError, match=r"finds the best round by validation_xi, which a result lacks"):
        taken(document(curve), "xi", BEST)


def test_further_metrics_are_those_of_the_same_round():
    assert taken(document(), "loss", BEST, by="accuracy") == 1.0
    curve = [{**point, "xi": point["round"]} for point in CURVE]
    assert taken(document(curve), "xi", BEST, by="loss") == 5
    assert taken(document(curve), "xi", BEST, higher=lambda metric: True, by="loss") == 0  # if a high loss were better


def test_looks_are_counted():
    assert (looks([4, 4]), looks([4, 2]), looks([])) == ("4", "up to 4", "0")
    assert [told(take, "loss", "4") for take in TAKES] == [
        "final loss",
        "loss, in the best of 4 rounds on validation samples",
        "loss, best of 4 looks at the test set",
    ]
