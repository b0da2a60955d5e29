"""Loop: a run under guard, its end, and what it makes of what strategies return."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg

from flwr_robust import ConfigurationError, Outcome
from flwr_robust.flower import (
    InProcessGrid,
    Mean,
    Median,
    Observer,
    RobustStrategy,
)
from flwr_robust.flower.loop import METHODS, replaced
from flwr_robust.round_seeds import LENGTH
from tests.flower_helpers import Deployed, client_app, drive, record, values
from tests.guard_helpers import ONE, SILENT, both, failing_from


@pytest.mark.parametrize("which", [0, 1])
def test_a_run_can_end_with_the_first_round_that_is_infeasible(which):
    seen = []

    def evaluate(server_round, arrays):
        seen.append(server_round)
        return MetricRecord({"at": values(arrays)["w"][0].item()})

    strategy = both(on_infeasible="stop")[which]
    found, result = drive(strategy, failing_from(3), ONE, 3, rounds=50, evaluate_fn=evaluate)
    assert found["w"].tolist() == [2, 2]
    assert [record_.outcome for record_ in strategy.history] == [Outcome.OK, Outcome.OK, Outcome.INFEASIBLE]
    assert seen == [0, 1, 2, 3]  # the round is finished, and none follows
    assert {k: dict(v) for k, v in result.train_metrics_clientapp.items()} == {1: {"loss": 0.5}, 2: {"loss": 0.5}}
    assert {k: dict(v) for k, v in result.evaluate_metrics_clientapp.items()} == {
        k: {"loss": min(k, 2)} for k in (1, 2, 3)
    }
    assert {k: dict(v) for k, v in result.evaluate_metrics_serverapp.items()} == {
        k: {"at": min(k, 2)} for k in (0, 1, 2, 3)
    }
    assert strategy.guard.stopped == "no reply was admitted"
    # Driven by hand it asks nobody any more; a new start begins anew.
    assert list(strategy.configure_train(4, record(ONE), ConfigRecord(), InProcessGrid(failing_from(9), 3))) == []
    drive(strategy, failing_from(9), ONE, 3, rounds=2)
    assert strategy.guard.stopped == ""
    assert len(strategy.history) == 5


@pytest.mark.parametrize("which", [0, 1])
def test_by_default_a_run_goes_on(which):
    strategy = both()[which]
    found, result = drive(strategy, failing_from(3), ONE, 3, rounds=5)
    assert found["w"].tolist() == [2, 2]
    assert len(strategy.history) == 5
    assert sorted(result.evaluate_metrics_clientapp) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("which", [0, 1])
def test_a_stop_in_the_last_round_is_an_ordinary_end(which):
    strategy = both(on_infeasible="stop")[which]
    found, result = drive(strategy, failing_from(2), ONE, 3, rounds=2)
    assert found["w"].tolist() == [1, 1]
    assert sorted(result.evaluate_metrics_clientapp) == [1, 2]


def test_other_exceptions_are_not_taken_for_the_end():
    def evaluate(server_round, arrays):
        raise RuntimeError("no test data")

    for strategy in both(on_infeasible="stop"):
        with pytest.raises(RuntimeError, match="no test data"):
            drive(strategy, failing_from(1), ONE, 3, evaluate_fn=evaluate)


class Overriding(RobustStrategy):
    """Moves the model once more, after its round is on record, and keeps some rounds to itself."""

    hidden = ()

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if server_round in self.hidden:
            return None, None
        return record({"w": values(arrays)["w"] + 10}), metrics


class Seen(Observer):
    """Keeps the model of every round that is over."""

    def __init__(self):
        self.models = []

    def round_finished(self, progress, *, last):
        self.models.append((progress.round, values(progress.result.arrays)["w"][0].item(), last))


def test_observers_see_the_model_that_goes_into_the_next_round():
    seen = Seen()
    strategy = Overriding("mean()", observers=[seen], **SILENT)
    found, _ = drive(strategy, failing_from(9), ONE, 3, rounds=2)
    assert found["w"].tolist() == [22, 22]
    assert seen.models == [(0, 0.0, False), (1, 11.0, False), (2, 22.0, True)]


def test_a_round_whose_model_is_kept_back_leaves_the_model_and_is_over():
    seen = Seen()
    strategy = Overriding("mean()", observers=[seen], **SILENT)
    strategy.hidden = (2,)
    found, _ = drive(strategy, failing_from(9), ONE, 3, rounds=3)
    assert found["w"].tolist() == [22, 22]
    assert seen.models == [(0, 0.0, False), (1, 11.0, False), (2, 11.0, False), (3, 22.0, True)]


def test_a_stopped_run_returns_what_its_strategy_returned_last():
    strategy = Overriding("mean()", on_infeasible="stop", **SILENT)
    found, _ = drive(strategy, failing_from(2), ONE, 3, rounds=5)
    assert len(strategy.history) == 2
    assert found["w"].tolist() == [21, 21]


def test_methods_are_replaced_for_a_while():
    strategy = FedAvg()
    vars(strategy)["configure_train"] = own = object()
    with replaced(strategy, dict.fromkeys(METHODS, 7)):
        assert [getattr(strategy, name) for name in METHODS] == [7] * 4
    assert strategy.configure_train is own
    assert strategy.aggregate_train.__func__ is FedAvg.aggregate_train


def test_a_strategy_is_as_it_was_after_a_run_that_failed():
    def evaluate(server_round, arrays):
        raise RuntimeError("no test data")

    strategy = Mean(**SILENT)
    with pytest.raises(RuntimeError, match="no test data"):
        drive(strategy, failing_from(9), ONE, 3, evaluate_fn=evaluate)
    assert not set(METHODS) & set(vars(strategy))


@pytest.mark.parametrize(
    ("rule", "seed", "predictable"),
    [
        ("median()", None, False),
        ("median()", "secret", False),
        ("median()", 0, True),
        ("median()", f"1:{64 * '0'}", True),
        ("bucketing(s=2) | dnc(f=1, seed=3)", None, True),
        ("bucketing(s=2) | dnc(f=1)", None, False),
    ],
)
@pytest.mark.parametrize("kind", [InProcessGrid, Deployed])
def test_a_deployment_whose_draws_can_be_predicted_is_warned(rule, seed, predictable, kind, caplog):
    caplog.set_level(logging.WARNING, logger="flwr")  # other tests silence it
    app = client_app(lambda partition, model, config, context: {"w": model["w"] + 1.0})
    strategy = RobustStrategy(rule, seed=seed, min_train_nodes=8, fraction_evaluate=0.0)
    drive(strategy, app, {"w": np.zeros(2)}, 8, grid=kind(app, 8))
    warned = "the seed is not secret: clients that know it can predict whom the server asks" in caplog.text
    assert warned == (predictable and kind is Deployed)


@pytest.mark.parametrize(
    ("kind", "deadline", "warned"),
    [(Deployed, None, True), (Deployed, 5.0, False), (InProcessGrid, None, False)],
)
def test_a_deployment_without_a_deadline_is_warned_once(kind, deadline, warned, caplog):
    caplog.set_level(logging.WARNING, logger="flwr")
    app = client_app(lambda partition, model, config, context: {"w": model["w"] + 1.0})
    strategy = Median(deadline=deadline, min_train_nodes=3, fraction_evaluate=0.0)
    drive(strategy, app, {"w": np.zeros(2)}, 3, rounds=2, grid=kind(app, 3), timeout=90)
    told = "start: one silent node makes every round last timeout=90 seconds; set deadline="
    assert caplog.text.count(told) == warned


def test_more_rounds_than_there_are_secret_seeds_are_refused_before_the_first():
    app = client_app(lambda partition, model, config, context: {"w": model["w"] + 1.0})
    with pytest.raises(ConfigurationError, match=f"num_rounds must be at most {LENGTH} with secret seeds"):
        drive(Median(min_train_nodes=3), app, {"w": np.zeros(2)}, 3, rounds=LENGTH + 1)
