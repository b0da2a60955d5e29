"""Metrics: the table of names."""

import pytest

from flwr_robust.tasks.metrics import METRICS, metric_named


@pytest.mark.parametrize("name", METRICS)
def test_a_known_name_is_known_on_validation_samples_too(name):
    known, validation = metric_named(name), metric_named(f"validation_{name}")
    assert known == METRICS[name]
    assert validation.name == f"validation_{name}"
    assert (validation.doc, validation.share, validation.higher) == (known.doc, known.share, known.higher)


def test_the_errors_are_better_when_lower_and_the_shares_are_shares():
    lower = {"loss", "calibration_error", "attack_success", "perplexity", "xi", "A", "sigma2", "gradient2"}
    lower |= {"pool_broken", "pool_lambda", "pool_length"}
    lower |= {"mean_absolute_error", "root_mean_squared_error"}
    assert {name for name, metric in METRICS.items() if not metric.higher} == lower
    assert not METRICS["r2"].share
    assert METRICS["accuracy"].share
    assert METRICS["exact_match"].share


def test_any_other_name_is_of_the_users_own():
    own = metric_named("profit")
    assert own.best([1.0, 3.0, 2.0]) == 3.0
    assert metric_named("validation_loss").best([1.0, 3.0, 2.0]) == 1.0
    assert (own.name, own.share, own.higher) == ("profit", False, True)
