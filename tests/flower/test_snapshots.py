"""Snapshots: a run's progress goes into a checkpoint and comes back the same."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result

from flwr_robust import ConfigurationError, Outcome
from flwr_robust.audit import RoundRemembered
from flwr_robust.errors import CheckpointError
from flwr_robust.flower import InProcessGrid, Nodes, Opening, Progress, Reason, Refusal, RoundRecord
from flwr_robust.flower.memory import freeze
from flwr_robust.flower.round_records import Chapter
from flwr_robust.flower.snapshots import check_fits, progress_of, remembered, snapshot_of
from flwr_robust.round_seeds import FixedSeed
from tests.flower_helpers import record, same_bits, values

MODEL = {"w": np.float32([1, -2]), "n": np.int64(3)}
METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
REFUSAL = Refusal(4, Reason.NOT_FINITE, "w", 5000)
ABSENCES = {"joined": {8: 2}, "rests": {"train": {"failures": {3: 1}, "until": {3: (5, 2)}}}}
KEPT = {"kept": [0], "by_class": {"3": {"scores": np.float32([0.1, np.inf])}}, "centre": torch.ones(2).bfloat16()}
RECORD = RoundRecord(
    2,
    (3, 4, 5),
    (3,),
    (0,),
    (REFUSAL,),
    Outcome.NOT_CONVERGED,
    "why",
    (1.0,),
    {**KEPT, "other": object(), "long": torch.zeros(1 << 20)},
    "evaluate",
    (9,),
    (5,),
    (8,),
)


def progress():
    result = Result()
    result.arrays = record(MODEL)
    result.train_metrics_clientapp = {2: MetricRecord({"loss": 0.5})}
    result.evaluate_metrics_serverapp = {0: MetricRecord({"accuracy": 0.1}), 2: MetricRecord({"accuracy": 0.9})}
    memory = {"strategy": {"velocity": torch.ones(2)}, "train_config": {"lr": 0.1}, "evaluate_config": {}}
    metrics = {name: getattr(result, name) for name in METRICS}
    chapter = Chapter([RECORD], [], metrics, [(2, [math.inf])])
    return Progress(2, result, [RECORD], [], {3: 0}, {4: 1}, memory, {1: 7}, {5: 2}, chapter, ABSENCES)


def opening(model=MODEL, rounds=5):
    grid, told = InProcessGrid(ClientApp(), 1), (print, print, bool)
    return Opening(Nodes(), "Mean", "mean()", {"rounds": rounds}, record(model), grid, 1.0, *told, FixedSeed(0))


def test_progress_comes_back():
    given = progress()
    snapshot, event = snapshot_of(given, {"seed": 3}), remembered(given)
    assert (snapshot.round, dict(snapshot.config)) == (2, {"seed": 3})
    assert "history" not in snapshot.values
    event = RoundRemembered.from_fields(json.loads(json.dumps(event.to_fields())))  # as the log writes and reads it
    found = progress_of(snapshot, [event])
    assert list(found.chapter.attacks) == [(2, [math.inf])]
    assert found.absences["joined"] == {8: 2}
    assert found.absences["rests"]["train"]["failures"] == {3: 1}
    assert same_bits(values(found.result.arrays), MODEL)
    for name in METRICS:
        assert getattr(found.result, name) == getattr(given.result, name)
    (back,) = found.history
    assert dataclasses.replace(back, stats={}) == dataclasses.replace(RECORD, stats={})
    assert all(getattr(back, each.name) != each.default for each in dataclasses.fields(back))  # none was forgotten
    assert freeze(back.stats) == freeze(KEPT)  # what cannot be stored, or is long, is left out
    assert found.evaluations == []
    assert (found.round, dict(found.partitions), found.refusals, found.replaced) == (2, {3: 0}, {4: 1}, {1: 7})
    assert found.evaluation_refusals == {5: 2}
    assert found.memory["strategy"]["velocity"].tolist() == [1, 1]
    assert found.memory["train_config"] == {"lr": 0.1}


def test_a_checkpoint_fits_the_same_arrays_and_enough_rounds():
    snapshot = snapshot_of(progress(), {})
    check_fits(opening(rounds=2), snapshot)
    with pytest.raises(ConfigurationError, match="num_rounds must be at least the 2 rounds"):
        check_fits(opening(rounds=1), snapshot)
    for other in ({"w": MODEL["w"]}, {**MODEL, "w": np.zeros(3, np.float32)}, dict(reversed(MODEL.items()))):
        with pytest.raises(CheckpointError, match="holds another model"):
            check_fits(opening(other), snapshot)
