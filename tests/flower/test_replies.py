"""Replies become rows in one place: what is learnt of them, relative to the model where they are models."""

import numpy as np
import pytest
import torch

from flwr_robust import ConfigurationError
from flwr_robust.flower.admission import Admitted
from flwr_robust.flower.expected import SentModel
from flwr_robust.flower.replies import admitted_rows, layout_of, learnt_of, rows_of
from flwr_robust.flower.wire import encode_record
from tests.house import ROOT

MODEL = {
    "w": np.array([[1.0, 2.0]], np.float32),
    "norm.running_mean": np.array([5.0], np.float32),
    "count": np.array(3),
    "b": np.array([4.0], np.float32),
}


def admitted(offset, examples=8.0):
    arrays = tuple((values + offset).astype(values.dtype) for values in MODEL.values())
    return Admitted(1, None, arrays, examples, None, tuple(MODEL))


def test_only_what_is_learnt_is_in_the_rows_and_parameters_are_read_as_changes():
    sent, replies = SentModel(encode_record(MODEL)), [admitted(0.5, 3.0), admitted(2.0)]
    assert list(learnt_of(sent)) == ["w", "b"]
    assert [(layer.name, tuple(layer.shape)) for layer in layout_of(learnt_of(sent))] == [("w", (1, 2)), ("b", (1,))]
    changes = admitted_rows(replies, sent, relative=True, asked=5)
    assert changes.slice(0, changes.d).tolist() == [[0.5] * 3, [2.0] * 3]
    assert (changes.counts.tolist(), changes.asked) == ([3.0, 8.0], 5)
    assert [layer.name for layer in changes.layout] == ["w", "b"]
    whole = admitted_rows(replies, sent, relative=False, asked=5)
    assert whole.slice(0, whole.d).tolist() == [[1.5, 2.5, 4.5], [3.0, 4.0, 6.0]]


def test_rows_of_bare_arrays_may_know_no_counts_and_hold_the_servers_own():
    model = {"w": MODEL["w"]}
    trusted = torch.tensor([7.0, 8.0], dtype=torch.float64)
    found = rows_of([[MODEL["w"] + 1]], model, relative=True, counts=None, asked=1, trusted=trusted)
    assert found.slice(0, found.d).tolist() == [[1.0, 1.0]]
    assert found.trusted.tolist() == [7.0, 8.0]
    with pytest.raises(ConfigurationError, match="the layout holds 2 coordinates, but a row has 3"):
        rows_of([[MODEL["w"], MODEL["b"]]], model, relative=False, counts=None, asked=1)


def test_no_other_module_of_the_room_makes_rows():
    makers = {path.name for path in (ROOT / "flwr_robust" / "flower").glob("*.py") if "Rows.from_" in path.read_text()}
    assert makers == {"replies.py"}
