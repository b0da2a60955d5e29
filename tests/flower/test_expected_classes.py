"""What a round of class-wise momenta demands: the model's arrays for each class answered, or nothing."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flwr_robust.flower import InProcessGrid, Reason
from flwr_robust.flower.admission import Terms, admit
from flwr_robust.flower.expected import SentModel
from flwr_robust.flower.expected_classes import ClassesAsked
from tests.flower_helpers import FIRST, content, record

MODEL = {"w": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}


@pytest.mark.parametrize(
    ("classes", "held", "answered", "demanded"),
    [
        ((3,), ["w", "b"], (3,), ["w", "b"]),
        ((3,), ["3/w"], (3,), ["w", "b"]),
        ((3, 7), ["7/w"], (7,), ["7/w", "7/b"]),
        ((3, 7), ["7/w", "3/b"], (3, 7), ["3/w", "3/b", "7/w", "7/b"]),
        ((3, 7), ["w", "b", "77/w", "5/w"], (), []),
    ],
)
def test_classes_are_read_from_the_names_of_arrays(classes, held, answered, demanded):
    asked = ClassesAsked(record(MODEL), classes)
    assert asked.answered(held) == answered
    assert list(asked.demanded(held)) == demanded
    assert [values.shape for values in asked.demanded(held).values()] == [MODEL[n[-1]].shape for n in demanded]


def judged(made, expected):
    InProcessGrid(ClientApp(), 1)
    asked = Message(RecordDict(), FIRST, "train")
    return admit([Message(made, reply_to=asked)], [asked], Terms(), expected)


def test_only_a_round_that_asks_for_classes_lets_a_node_abstain():
    nothing = RecordDict({"metrics": MetricRecord({"num-examples": 3})})
    (admitted,), _ = judged(nothing, ClassesAsked(record(MODEL), (1,)))
    assert admitted.abstains
    assert admitted.arrays == ()
    _, (refused,) = judged(nothing, SentModel(record(MODEL)))
    assert refused.reason is Reason.RECORDS


def test_whoever_answers_does_not_abstain():
    (admitted,), _ = judged(content({"1/w": MODEL["w"], "1/b": MODEL["b"]}), ClassesAsked(record(MODEL), (0, 1)))
    assert not admitted.abstains
    assert admitted.names == ("1/w", "1/b")
