"""Guard: its parameters, and the metrics that functions of others are given."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from flwr_robust import ConfigurationError
from flwr_robust.flower import (
    Guarded,
    Mean,
    Reason,
)
from tests.flower_helpers import client_app, content, drive, sends
from tests.guard_helpers import ONE, SILENT, nodes


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"quarantine_after": 0}, "quarantine_after must be an integer >= 1"),
        ({"on_infeasible": "raise"}, "on_infeasible must be one of keep, stop"),
        ({"max_examples": -1}, "max_examples must be"),
        (
            {"train_metrics": "loss"},
            r"strategy: train_metrics must be a tuple of names such as \(.*; got train_metrics='loss'",
        ),
        ({"evaluate_metrics": ["loss"]}, "strategy: evaluate_metrics must be a tuple of names"),
        ({"records": ("one",)}, "records must be two names"),
    ],
)
def test_a_guards_parameters_are_checked(options, sentence):
    for make in (Mean, lambda **o: Guarded(FedAvg(), **o)):
        with pytest.raises(ConfigurationError, match=sentence):
            make(**options)


def test_the_users_function_is_given_replies_that_fit_together():
    answers = [
        content({"w": np.zeros(2, np.float32)}, 10, loss=1.0),
        content({"w": np.zeros(2, np.float32)}, 10, loss=2.0, top=[1.0]),
        content({"w": np.zeros(2, np.float32)}, 10**12, mine=9.0, partition_id=7),
    ]
    from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords, validate_message_reply_consistency

    def weighted(contents, key):
        validate_message_reply_consistency(contents, key, check_arrayrecord=True)
        return aggregate_metricrecords(contents, key)

    strategy = Mean(train_metrics_aggr_fn=weighted, **SILENT)
    _, result = drive(strategy, sends(answers), ONE, 3)
    # 10, 10 and 20 examples; the third says nothing of a loss and is given the middle.
    assert dict(result.train_metrics_clientapp[1]) == {"loss": pytest.approx((10 * 1.0 + 10 * 2.0 + 20 * 1.5) / 40)}


def test_stated_metrics_are_demanded_in_training_and_in_evaluation():
    def train(i, model, config, context):
        return content(model, **({"loss": 1.0} if i else {"los": 1.0}))

    def evaluate(i, model, config, context):
        return content(None, **({"accuracy": 0.5} if i < 2 else {"loss": 1.0}))

    stated = {"train_metrics": ("loss",), "evaluate_metrics": ("accuracy",)}
    for strategy in (Mean(min_evaluate_nodes=3, **stated), Guarded(FedAvg(), **stated)):
        _, result = drive(strategy, client_app(train, evaluate), ONE, 3)
        assert strategy.history[0].admitted == nodes(1, 2)
        assert strategy.evaluations[0].admitted == nodes(0, 1)
        assert [refusal.reason for refusal in strategy.history[0].refused] == [Reason.METRICS]
        assert dict(result.evaluate_metrics_clientapp[1]) == {"accuracy": 0.5}


def test_replies_to_messages_that_the_strategy_did_not_send_are_dropped_with_a_word(caplog):
    class Own(Mean):
        def configure_train(self, server_round, arrays, config, grid):
            asked = list(super().configure_train(server_round, arrays, config, grid))
            if not self.whole:
                self.guard.judge("train", [])  # as a round that nobody opened
            return asked

    caplog.set_level("WARNING", logger="flwr")
    logging.getLogger("flwr").addHandler(caplog.handler)
    for whole in (True, False):
        caplog.clear()
        strategy = Own(**SILENT)
        strategy.whole = whole
        drive(strategy, sends([content(ONE, 10)] * 3), ONE, 3)
        assert ("3 replies are dropped" in caplog.text) is not whole
        assert len(strategy.history) == whole
    logging.getLogger("flwr").removeHandler(caplog.handler)
