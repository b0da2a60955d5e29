"""mean: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import aggregate
from tests.aggregators.problems import assert_value, column, matrices, rows
from tests.oracles import basic

quick = settings(deadline=None, max_examples=150)


@quick
@given(matrices(), st.integers(0, 10**6))
def test_mean_like_oracle(problem, seed):
    x, _ = problem
    assert_value(aggregate(torch.from_numpy(x), "mean"), basic.mean(x)[0], x)
    counts = 10.0 ** np.random.default_rng(seed).uniform(0, 6, len(x))
    for clamp in (1.0, 2.0, 1e9):
        result = aggregate(torch.from_numpy(x), f"mean(weighted=True, clamp={clamp})", counts=counts)
        value, weights = basic.mean(x, weighted=True, clamp=clamp, counts=counts)
        assert_value(result, value, x)
        np.testing.assert_allclose(result.weights, weights, rtol=1e-12)


def test_mean_by_hand():
    assert aggregate(rows([1, 10], [2, 20], [6, 60]), "mean").value.tolist() == [3, 30]


def test_weighted_mean_by_hand():
    # The median of the counts is (20 + 30) / 2 = 25, so 1000 counts as 2 * 25 = 50: 11 * 50 / 110.
    x, counts = column(0, 0, 0, 11), [10, 20, 30, 1000]
    assert float(aggregate(x, "mean(weighted=True)", counts=counts).value) == pytest.approx(5)
    # With clamp=1 the largest is 25, too: 11 * 25 / 80.
    assert float(aggregate(x, "mean(weighted=True, clamp=1)", counts=counts).value) == pytest.approx(3.4375)
    # Without a bound that bites it is the plain weighted mean: 11 * 1000 / 1060.
    wide = aggregate(x, "mean(weighted=True, clamp=1000)", counts=counts)
    assert float(wide.value) == pytest.approx(11000 / 1060)
    # Not weighted, the counts do not matter.
    assert float(aggregate(x, "mean", counts=counts).value) == pytest.approx(2.75)
