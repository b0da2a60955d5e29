"""Observers: what they must be, and that they are told everything in order."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAvg

from flwr_robust import ConfigurationError, UntrainedError
from flwr_robust.flower import (
    Guarded,
    Krum,
    Mean,
    Observer,
    Reason,
    RobustStrategy,
    TrimmedMean,
)
from tests.flower_helpers import FIRST, client_app, drive, in_vain, values
from tests.guard_helpers import ONE, SILENT, both, failing_from, misbehaving, nodes


@pytest.mark.parametrize("observers", [3, [4], "text"])
def test_observers_are_observers(observers):
    with pytest.raises(ConfigurationError, match="observers must be a list of Observer objects; got"):
        RobustStrategy("median()", observers=observers)


class Diary(Observer):
    """Writes down what it is told."""

    def __init__(self):
        self.lines, self.seen = [], []

    def run_started(self, opening):
        self.lines.append(("started", opening.strategy, opening.rule, opening.config["rounds"]))

    def round_configured(self, opened, model):
        asked, quarantined = len(opened.asked), opened.quarantined
        self.lines.append(("configured", opened.number, opened.kind, asked, quarantined, list(model)))

    def reply_judged(self, server_round, kind, verdict):
        self.lines.append(("judged", server_round, kind, verdict.node, getattr(verdict, "reason", None)))

    def node_quarantined(self, server_round, kind, node, refusals):
        self.lines.append(("quarantined", server_round, kind, node, refusals))

    def node_released(self, node, reason):
        self.lines.append(("released", node))

    def aggregated(self, aggregation):
        self.seen.append(aggregation)
        self.lines.append(("aggregated", aggregation.record.round, aggregation.record.outcome.name))

    def evaluated(self, record_, metrics):
        self.lines.append(("evaluated", record_.round, metrics and dict(metrics)))

    def server_evaluated(self, server_round, metrics):
        self.lines.append(("measured", server_round, dict(metrics)))

    def round_finished(self, progress, *, last):
        self.lines.append(("finished", progress.round, last))

    def run_ended(self, server_round, outcome, sentence):
        self.lines.append(("ended", server_round, outcome, sentence))


def test_observers_are_told_everything_in_order():
    diary = Diary()
    strategy = Krum(f=0, quarantine_after=1, on_infeasible="stop", observers=[diary], min_train_nodes=3)
    score = {"evaluate_fn": lambda server_round, arrays: MetricRecord({"accuracy": 0.5})}
    with pytest.raises(UntrainedError):
        drive(strategy, misbehaving({2}), ONE, 3, rounds=3, **score)
    strategy.release(FIRST + 2)
    sentence = "krum needs n >= 2f + 3; got n=2, f=0: ask at least 3 clients"
    a, b, c = nodes(0, 1, 2)
    assert diary.lines == [
        ("started", "Krum", "krum(f=0)", 3),
        ("finished", 0, False),
        ("measured", 0, {"accuracy": 0.5}),
        ("configured", 1, "train", 3, (), ["w"]),
        ("judged", 1, "train", a, None),
        ("judged", 1, "train", b, None),
        ("judged", 1, "train", c, Reason.NAMES),
        ("quarantined", 1, "train", c, 1),
        ("aggregated", 1, "INFEASIBLE"),
        ("configured", 1, "evaluate", 3, (), ["w"]),
        ("judged", 1, "evaluate", a, None),
        ("judged", 1, "evaluate", b, None),
        ("judged", 1, "evaluate", c, Reason.NUM_EXAMPLES),
        ("quarantined", 1, "evaluate", c, 1),
        ("evaluated", 1, {"loss": 0.5}),
        ("measured", 1, {"accuracy": 0.5}),
        ("finished", 1, True),
        ("ended", 1, "failed", f"UntrainedError: run: 0 of 1 rounds changed the model; the last one: {sentence}"),
        ("released", c),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_observers_see_the_updates_and_the_models(which):
    diary = Diary()
    strategy = [TrimmedMean(f=1, observers=[diary], **SILENT), Guarded(FedAvg(**SILENT), observers=[diary])][which]
    moves = [1.0, 2.0, 4.0, 8.0]
    app = client_app(lambda i, model, config, context: {"w": model["w"] + np.float32(moves[i]), "n": model["n"]})
    drive(strategy, app, {"w": np.ones(2, np.float32), "n": np.int64(3)}, 4)
    (seen,) = diary.seen
    assert values(seen.before)["w"].tolist() == [1, 1]
    assert values(seen.after)["w"].tolist() == ([4, 4] if which == 0 else [4.75, 4.75])
    assert seen.rows.slice(0, 2).tolist() == [[move, move] for move in moves]
    assert (seen.aggregate is None) == (which == 1)
    if which == 0:
        assert seen.aggregate.value.tolist() == [3, 3]
        assert seen.record.weights == tuple(seen.aggregate.weights.tolist())


def test_an_observer_that_cannot_do_its_duty_ends_the_run():
    class Full(Observer):
        def aggregated(self, aggregation):
            raise OSError("no space left")

    for strategy in both(observers=[Full()]):
        with pytest.raises(OSError, match="no space left"):
            drive(strategy, failing_from(9), ONE, 3)


def test_the_model_that_stays_is_the_same_object_and_untouched():
    diary = Diary()
    strategy = Mean(observers=[diary], **SILENT)
    in_vain(strategy, failing_from(1), ONE, 3)
    assert diary.seen[0].before is diary.seen[0].after
    assert diary.seen[0].rows is None
