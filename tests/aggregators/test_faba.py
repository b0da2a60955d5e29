"""FABA: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flwr_robust import aggregate
from tests.aggregators.problems import assert_value, choose, column, rows
from tests.oracles import basic

quick = settings(deadline=None, max_examples=150)


@quick
@given(st.data())
def test_faba_like_oracle(data):
    x, _, f = choose(data, 1)
    removed, gap = basic.faba_removals(x, f)
    assume(gap > 1e-9)  # of nearly equal distances rounding may choose either; ties have their own tests
    result = aggregate(torch.from_numpy(x), f"faba(f={f})")
    assert result.stats["removed"] == removed
    value, weights = basic.faba(x, f)
    assert_value(result, value, x)
    np.testing.assert_allclose(result.weights, weights)


def test_faba_by_hand():
    # Mean 5: 16 is 11 away and goes. Mean of 0 1 3 is 4/3: 3 is 5/3 away and goes. Left: 0 and 1.
    result = aggregate(column(0, 1, 3, 16), "faba(f=1)")
    assert result.stats["removed"] == [3]
    assert float(result.value) == pytest.approx(4 / 3)
    # Five rows allow f = 2. Mean 4: 16 goes; mean of 0 0 1 3 is 1: 3 is 2 away and goes.
    result = aggregate(column(0, 0, 1, 3, 16), "faba(f=2)")
    assert result.stats["removed"] == [4, 3]
    assert float(result.value) == pytest.approx(1 / 3)


def test_faba_recomputes_the_mean():
    # The mean is 9, and 0 is farthest from it but for 30: by first distances 30 and 0 would go.
    # After 30 the mean is 3.75: 8 is 4.25 away, 0 is 3.75 away. So 30 and 8 go.
    x = column(0, 3, 4, 8, 30)
    assert aggregate(x, "faba(f=2)").stats["removed"] == [4, 3]
    assert float(aggregate(x, "faba(f=2)").value) == pytest.approx(7 / 3)


def test_faba_gives_a_tie_to_the_lowest_index():
    # Both ends are 2 away from the mean.
    assert float(aggregate(column(-2, 0, 2), "faba(f=1)").value) == 1
    assert float(aggregate(column(2, 0, -2), "faba(f=1)").value) == -1
    # All five equal: rows 0 and 1 go.
    assert aggregate(column(3, 3, 3, 3, 3), "faba(f=2)").stats["removed"] == [0, 1]


def test_faba_gives_a_tie_to_the_lowest_index_when_the_mean_is_not_representable():
    # The sum is (-3, -12). Five times the differences to the mean: (-12, -3) for row 0, (3, 12) for row 3, the
    # longest two, of equal length.
    x = rows([-3, -3], [0, -3], [1, -3], [0, 0], [-1, -3])
    assert aggregate(x, "faba(f=1)").stats["removed"] == [0]


# -- weighted: IOS -----------------------------------------------------------------------------------


@quick
@given(st.data(), st.sampled_from([1.0, 2.0, 1e9]))
def test_weighted_faba_like_oracle(data, clamp):
    x, _, f = choose(data, 1)
    counts = np.random.default_rng(len(x)).integers(1, 100, len(x)).astype(float)
    most = (max(f, 1) / len(x) + 0.5) / 2  # between what equal weights leave and one half
    assume(most < 0.5)
    removed, gap = basic.faba_removals(x, f, basic.weights_of(x, True, clamp, most, f, counts))
    assume(gap > 1e-6)
    result = aggregate(torch.from_numpy(x), f"faba(f={f}, weighted=True, clamp={clamp}, most={most})", counts=counts)
    assert result.stats["removed"] == removed
    value, weights = basic.faba(x, f, True, clamp, most, counts)
    np.testing.assert_allclose(result.value, value, rtol=1e-6, atol=1e-6 * np.abs(x).max())
    np.testing.assert_allclose(result.weights, weights, rtol=1e-6)


def test_weighted_faba_by_hand():
    # Weights 3 1 1 1: the mean of 0 1 3 16 is 20 / 6, and 16 goes. The mean of 0 1 3 is 4 / 5.
    result = aggregate(column(0, 1, 3, 16), "faba(f=1, weighted=True, clamp=9.0, most=0.49)", counts=[2.7, 1, 1, 1])
    assert result.stats["removed"] == [3]
    assert float(result.value) == pytest.approx(4 / 4.7)
    # Where the weights lie decides which of two ends is the farther: 4 | 0 0 0 | -4.5.
    x, light, heavy = column(4, 0, 0, 0, -4.5), [1, 1, 1, 1, 1], [1, 1, 1, 1, 2]
    assert aggregate(x, "faba(f=1, weighted=True)", counts=light).stats["removed"] == [4]
    assert aggregate(x, "faba(f=1, weighted=True)", counts=heavy).stats["removed"] == [0]
