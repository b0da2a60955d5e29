"""Buffers: which arrays are learnt, and what becomes of the others."""

from __future__ import annotations

import numpy as np
import pytest

from flwr_robust.protocol.buffers import change, following, learnt
from flwr_robust.protocol.messages import MESSAGES, message_kind


def test_learnt_is_what_is_a_float_not_empty_and_no_statistic():
    model = {
        "w": np.zeros(2, np.float16),
        "norm.running_mean": np.zeros(2),
        "running_var": np.zeros(2),
        "running_mean.w": np.zeros(2),
        "empty": np.zeros((0, 2)),
        "steps": np.int64(1),
    }
    assert learnt(model) == ["w", "running_mean.w"]


def test_statistics_are_told_by_patterns():
    model = {"dense/kernel": np.zeros(2), "norm/moving_mean": np.zeros(2), "norm/moving_variance": np.zeros(2)}
    assert len(learnt(model)) == 3  # torch's names say nothing of Keras'
    assert learnt(model, ("*/moving_*",)) == ["dense/kernel"]
    assert learnt(model, ("*/moving_mean", "norm/*_variance")) == ["dense/kernel"]
    assert learnt(model, ("*/Moving_mean", "moving_mean")) == list(model)
    assert learnt({"running_mean": np.zeros(1), "n.num_batches_tracked": np.zeros(1)}) == []
    assert learnt({"running_mean": np.zeros(1)}, ()) == ["running_mean"]


# What is sent, what three clients hold after their steps, and what it then is.
BUFFERS = {
    "floats": (
        np.float32([0, 1]),
        [np.float32([2, 1]), np.float32([4, 9]), np.float32([1e30, -1])],
        np.float32([4, 1]),
    ),
    "counter": (np.array(3), [np.array(5), np.array(10**9), np.array(4)], np.array(5)),
    "mask": (
        np.array([True, False]),
        [np.array([True, True])] * 2 + [np.array([False, False])],
        np.array([True, True]),
    ),
    "nothing": (np.zeros((0, 2)), [np.zeros((0, 2))] * 3, np.zeros((0, 2))),
}


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("name", BUFFERS)
def test_a_buffer_takes_the_median_of_values_or_of_changes_and_keeps_its_type(name, message):
    sent, held, middle = BUFFERS[name]
    kind = message_kind(message)
    replies = [np.asarray(change(each, sent)) for each in held] if kind.buffers == "change" else held
    found = following(kind, sent, replies)
    np.testing.assert_array_equal(found, sent if kind.buffers == "keep" else middle)
    assert (found.dtype, found.shape) == (sent.dtype, sent.shape)


def test_of_an_even_number_integers_take_the_lower_median():
    kind = message_kind("parameters")
    assert following(kind, np.array(0), [np.array(1), np.array(4)]) == 1
    assert following(kind, np.array(0.0), [np.array(1.0), np.array(4.0)]) == 2.5
