"""monna: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError, aggregate
from tests.aggregators.problems import assert_value, choose, column, rows
from tests.oracles import selections

quick = settings(deadline=None, max_examples=80)


@quick
@given(st.data(), st.integers(0, 2**32 - 1))
def test_monna_like_oracle(data, seed):
    x, _, f = choose(data, 1)
    trusted = x[0] + np.random.default_rng(seed).integers(-2, 3, x.shape[1]) * (np.abs(x).max() or 1)
    result = aggregate(torch.from_numpy(x), f"monna(f={f})", trusted=torch.from_numpy(trusted))
    value, weights = selections.monna(x, f, trusted)
    away = np.sort(((x - trusted) ** 2).sum(1))
    assume(f == 0 or away[-f] > away[-f - 1] * (1 + 1e-12))  # ties have their own test
    np.testing.assert_allclose(result.weights, weights)
    assert_value(result, value, x)


def test_monna_by_hand():
    # From 3: distances 3, 1, 2, 4, 17. The mean of the nearest three: (0 + 2 + 5) / 3.
    x = column(0, 2, 5, 7, 20)
    near = aggregate(x, "monna(f=2)", trusted=torch.tensor([3.0]))
    assert float(near.value) == pytest.approx(7 / 3)
    assert near.stats["kept"] == [0, 1, 2]
    assert near.stats["distances"] == [3, 1, 2, 4, 17]
    # From 20 it follows the trusted row, however lonely.
    assert float(aggregate(x, "monna(f=2)", trusted=torch.tensor([20.0])).value) == pytest.approx(32 / 3)
    # From 3.5: 0 and 7 tie for the third place; the lower index stays.
    assert aggregate(x, "monna(f=2)", trusted=torch.tensor([3.5])).stats["kept"] == [0, 1, 2]
    # Row 0 as its own pivot, as every node does it in the paper.
    assert aggregate(x, "monna(f=2)", trusted=x[0]).stats["kept"] == [0, 1, 2]


def test_monna_says_what_it_needs():
    with pytest.raises(ConfigurationError, match=r"pass trusted=\.\.\., .* of shape \(2,\)"):
        aggregate(torch.zeros(3, 2), "monna(f=1)")
    with pytest.raises(ConfigurationError, match="finite"):
        aggregate(torch.zeros(3, 2), "monna(f=1)", trusted=torch.tensor([0, math.nan]))
    with pytest.raises(ConfigurationError, match=r"shape \(2,\); got \(3,\)"):
        aggregate(torch.zeros(3, 2), "monna(f=1)", trusted=torch.zeros(3))


def test_monna_keeps_the_trusted_row_when_others_are_left_out():
    x = rows([0, 0], [1, 1], [math.nan, 0], [50, 50], [2, 2])
    result = aggregate(x, "monna(f=2)", trusted=torch.tensor([1.0, 1.0]))
    assert result.value.tolist() == [1, 1]
    np.testing.assert_allclose(result.weights, [1 / 3, 1 / 3, 0, 0, 1 / 3])
