"""CAF: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import aggregate
from tests.aggregators.problems import assert_like, column, small_matrices
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


@quick
@given(small_matrices(), st.data())
def test_caf_like_oracle(x, data):
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    assert_like(aggregate(torch.from_numpy(x), f"caf(f={f})"), similarities.caf(x, f), x)


def test_caf_by_hand():
    # n - 2f = 1. First mu = 8/3, differences -11/3, -5/3, 16/3: the squares are to the largest as 121 : 25 : 256, so
    # c = 135/256, 231/256, 0, of sum 366/256. Now mu = (231 - 135) / 366 and the variance is below 1; row 0 is the
    # farther and goes, row 1 is left with less than 1: the end.
    result = aggregate(column(-1, 1, 8), "caf(f=1)")
    np.testing.assert_allclose(result.weights, [135 / 366, 231 / 366, 0])
    assert float(result.value) == pytest.approx(96 / 366)
    assert result.stats["eigenvalue"] == pytest.approx(4 * 135 * 231 / 366**2)
    assert result.stats["steps"] == 2


def test_caf_without_faults_is_the_mean():
    result = aggregate(column(0, 1, 5), "caf(f=0)")
    assert float(result.value) == pytest.approx(2)
    assert result.stats == {"steps": 0, "eigenvalue": None}


def test_caf_stops_where_rows_coincide():
    # mu = 2: the differences are -2 and 8, so the 10 goes and the zeros keep 15/16 each.
    result = aggregate(column(0, 0, 10, 0, 0), "caf(f=1)")
    np.testing.assert_allclose(result.weights, [0.25, 0.25, 0, 0.25, 0.25], atol=1e-15)
    assert result.stats == {"steps": 2, "eigenvalue": 0.0}


def test_caf_removes_colluders_together():
    # Equal rows have equal projections but for rounding; a rest of weight at 1e30 would be worse than all of it.
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((7, 30))
    x = torch.from_numpy(np.vstack([np.full((3, 30), 1e30), honest]))
    result = aggregate(x, "caf(f=3)")
    assert result.weights[:3].tolist() == [0, 0, 0]
    assert np.linalg.norm(result.value - honest.mean(0)) < np.linalg.norm(honest[0] - honest.mean(0))
