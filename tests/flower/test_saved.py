"""Saved: attributes of all kinds are put back as they were, and nothing is copied needlessly."""

from __future__ import annotations

import numpy as np
import torch
from flwr.serverapp.strategy import FedAvg

from flwr_robust.flower import (
    Median,
)
from flwr_robust.flower.saved import Saved
from tests.flower_helpers import record
from tests.guard_helpers import ONE


def test_nothing_is_copied_but_what_a_strategy_could_change():
    inner = FedAvg()
    inner.current, inner.frozen, inner.own = record(ONE), np.zeros(3), np.zeros(3)
    inner.frozen.flags.writeable = False
    inner.elsewhere = [print, object(), Median()]
    copied = [content for _, content in Saved(inner)._found.values() if isinstance(content, np.ndarray | bytes)]
    assert [each.tolist() for each in copied] == [inner.own.tolist()]


def test_arrays_and_tensors_of_all_kinds_are_restored(caplog):
    inner = FedAvg()
    base = torch.zeros(1)
    with torch.inference_mode():
        inner.inference = torch.ones(2)
    inner.expanded, inner.base, inner.sparse = base.expand(3), base, torch.eye(2).to_sparse()
    inner.grown, inner.wide = torch.zeros(1), np.zeros((1, 2))
    inner.scalar, inner.objects = np.zeros(()), np.array([1, None], object)
    inner.masked = np.ma.array([1.0, 2.0], mask=[False, True])
    saved = Saved(inner)
    with torch.inference_mode():
        inner.inference += 1
    base += 1
    inner.sparse.mul_(2)
    inner.grown.data = torch.ones(3)
    inner.wide.resize((3, 2), refcheck=False)
    inner.scalar += 1
    inner.objects[0] = "x"
    inner.masked[1] = 9.0
    caplog.set_level("WARNING", logger="flwr")
    saved.restore()
    assert caplog.text == ""
    assert inner.inference.tolist() == [1.0, 1.0]
    assert (inner.expanded.tolist(), inner.base.tolist()) == ([0.0] * 3, [0.0])
    assert (inner.grown.tolist(), inner.wide.tolist()) == ([0.0], [[0.0, 0.0]])
    assert inner.sparse.to_dense().tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert (inner.scalar.item(), inner.objects.tolist()) == (0.0, [1, None])
    assert inner.masked.tolist() == [1.0, None]


def test_what_does_not_let_itself_be_restored_is_named(caplog):
    class Stubborn(dict):
        def clear(self):
            raise TypeError("never")

    inner = FedAvg()
    inner.first, inner.second = Stubborn(), [1]
    saved = Saved(inner)
    inner.first["a"] = 1
    inner.second.append(2)
    caplog.set_level("WARNING", logger="flwr")
    saved.restore()
    assert inner.second == [1]
    assert "a Stubborn of the strategy could not be restored: never" in caplog.text
