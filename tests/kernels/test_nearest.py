"""The kernel of values nearest to a centre: against sorting, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import Rows
from flwr_robust.kernels.nearest import nearest, squared_distances_to
from tests.aggregators.problems import column, matrices

quick = settings(deadline=None, max_examples=80)


@quick
@given(matrices(most=20), st.integers(0, 2**32 - 1), st.data())
def test_nearest_like_sorting_by_distance(problem, seed, data):
    x, grid = problem
    m = data.draw(st.integers(1, len(x)))
    spread = np.abs(x).max() or 1.0
    rng = np.random.default_rng(seed)
    # Centres on grid points, between them, and outside of all values.
    centre = (
        x[rng.integers(0, len(x), x.shape[1]), np.arange(x.shape[1])] if grid else rng.normal(0, spread, x.shape[1])
    )
    ordered = torch.from_numpy(np.sort(x, axis=0))
    kept = nearest(ordered, torch.from_numpy(centre), m)
    for j in range(x.shape[1]):
        assert kept[:, j].tolist() == sorted(sorted(x[:, j], key=lambda v: (abs(v - centre[j]), v))[:m])


@pytest.mark.parametrize(
    ("centre", "m", "expected"),
    [
        (4.5, 2, [4, 5]),
        (4.5, 3, [0, 4, 5]),  # 0 and 9 tie for the third place: the smaller
        (4.6, 3, [4, 5, 9]),
        (-7.0, 1, [0]),  # a centre outside of the values
        (90.0, 2, [5, 9]),
        (4.5, 4, [0, 4, 5, 9]),
    ],
)
def test_nearest_by_hand(centre, m, expected):
    assert nearest(column(0, 4, 5, 9), torch.tensor([centre]), m)[:, 0].tolist() == expected


@quick
@given(matrices(), st.integers(0, 2**32 - 1))
def test_distances_to_a_point_like_numpy(problem, seed):
    x, _ = problem
    point = x.mean(0) + np.random.default_rng(seed).standard_normal(x.shape[1])
    found = squared_distances_to(Rows.from_tensor(torch.from_numpy(x)).blocks(), torch.from_numpy(point))
    np.testing.assert_allclose(found, ((x - point) ** 2).sum(1), rtol=1e-12)
