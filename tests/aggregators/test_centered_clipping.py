"""centered_clipping: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import Rows, aggregate, parse
from tests.aggregators.problems import column, matrices, rows
from tests.oracles import basic

quick = settings(deadline=None, max_examples=150)


@quick
@given(matrices(), st.integers(1, 5), st.sampled_from([0.05, 1.0, 20.0, "median"]), st.booleans())
def test_centered_clipping_like_oracle(problem, steps, tau, moved):
    x, _ = problem
    size = float(np.linalg.norm(x, axis=1).max()) or 1.0
    tau = tau if tau == "median" else tau * size
    centre = 0.3 * size * np.ones(x.shape[1]) if moved else None
    state = {"centre": torch.from_numpy(centre)} if moved else None
    rule = parse(f"centered_clipping(tau={tau!r}, steps={steps})")
    result, following = rule(Rows.from_tensor(torch.from_numpy(x)), state)
    expected, _ = basic.centered_clipping(x, tau, steps, centre=centre)
    np.testing.assert_allclose(result.value, expected, rtol=1e-6, atol=1e-6 * size)
    torch.testing.assert_close(following["centre"], result.value)


def test_centered_clipping_two_rounds_by_hand():
    rule, x = parse("centered_clipping(tau=1.0)"), rows([0, 0], [0.5, 0], [0, 4])
    # From (0, 0): the moves are (0, 0), (0.5, 0) and (0, 1) instead of (0, 4). Their mean is (1/6, 1/3).
    first, state = rule(Rows.from_tensor(x))
    np.testing.assert_allclose(first.value, [1 / 6, 1 / 3])
    # From there: (-1/6, -1/3) of length 0.37 and (1/3, -1/3) of length 0.47 stay; (-1/6, 11/3) has length
    # sqrt(1/36 + 121/9) = sqrt(485)/6 and is shortened to (-1, 22) / sqrt(485).
    second, _ = rule(Rows.from_tensor(x), state)
    length = math.sqrt(485)
    expected = [1 / 6 + (-1 / 6 + 1 / 3 - 1 / length) / 3, 1 / 3 + (-1 / 3 - 1 / 3 + 22 / length) / 3]
    np.testing.assert_allclose(second.value, expected)
    assert second.stats["distances"] == pytest.approx([math.sqrt(5) / 6, math.sqrt(2) / 3, length / 6])
    # Two steps in one round come to the same place.
    together = aggregate(x, "centered_clipping(tau=1.0, steps=2)")
    np.testing.assert_allclose(together.value, second.value)


def test_centered_clipping_median_radius_by_hand():
    # From 0 the distances are 1, 2, 9, their median 2: the mean of 1, 2, 2.
    result = aggregate(column(1, 2, 9), "centered_clipping(tau='median')")
    assert float(result.value) == pytest.approx(5 / 3)
    assert result.stats["radius"] == 2


def test_centered_clipping_counts_rows_at_the_centre_in_full():
    # All at the centre: no distance to shorten, each row has its 1 / n and nothing of the centre is left.
    result = aggregate(column(0, 0, 0, 0), "centered_clipping(tau=0.1)")
    assert result.weights.tolist() == [0.25] * 4
    assert result.stats["kept_of_centre"] == 0
    # A median radius of 0 moves nothing; of the two coinciding rows each counts in full, the one far off not at all.
    result = aggregate(column(0, 0, 9), "centered_clipping(tau='median')")
    assert result.stats["radius"] == 0
    assert result.value.tolist() == [0]
    np.testing.assert_allclose(result.weights, [1 / 3, 1 / 3, 0])
    assert result.stats["kept_of_centre"] == pytest.approx(1 / 3)
    # Rows that coincide elsewhere have equal weights: 1/2 of each step of length 1 towards 4, and the centre the rest.
    result = aggregate(column(4, 4), "centered_clipping(tau=1.0)")
    np.testing.assert_allclose(result.weights, [1 / 8, 1 / 8])
    assert result.value.tolist() == [1]


def test_centered_clipping_weights_complete_the_centre():
    rule, x = parse("centered_clipping(tau=0.5, steps=3)"), rows([1, 2], [3, 4], [0, -1])
    _, state = rule(Rows.from_tensor(x))
    result, _ = rule(Rows.from_tensor(x), state)
    kept = result.stats["kept_of_centre"]
    assert kept + float(result.weights.sum()) == pytest.approx(1)
    np.testing.assert_allclose(result.weights @ x + kept * state["centre"], result.value)


@pytest.mark.parametrize("steps", [1, 4])
def test_centered_clipping_bounds_what_a_huge_row_moves(steps):
    x = np.vstack([np.random.default_rng(0).standard_normal((7, 5)), np.full((3, 5), 1e30)])
    x[-1] *= -1
    result = aggregate(torch.from_numpy(x), f"centered_clipping(tau=0.1, steps={steps})")
    np.testing.assert_allclose(result.value, basic.centered_clipping(x, 0.1, steps)[0], rtol=1e-6, atol=1e-9)
    assert float(result.value.norm()) <= 0.1 * steps


# -- weighted: ClippedGossip's sums --------------------------------------------------------------------


@quick
@given(matrices(least=2), st.integers(1, 3), st.sampled_from([0.3, "median"]))
def test_weighted_centered_clipping_like_oracle(problem, steps, tau):
    x, _ = problem
    size = float(np.linalg.norm(x, axis=1).max()) or 1.0
    tau = tau if tau == "median" else tau * size
    counts = np.random.default_rng(len(x)).integers(1, 100, len(x)).astype(float)
    rule = f"centered_clipping(tau={tau!r}, steps={steps}, weighted=True, clamp=5.0, most=0.6)"
    expected, _ = basic.centered_clipping(x, tau, steps, None, True, 5.0, 0.6, counts)
    result = aggregate(torch.from_numpy(x), rule, counts=counts)
    np.testing.assert_allclose(result.value, expected, rtol=1e-6, atol=1e-6 * size)


def test_weighted_centered_clipping_by_hand():
    # From 0 the distances are 1, 2, 9, their median, of clients, 2: the mean of 1, 2, 2 by 4, 1, 1.
    x = column(1, 2, 9)
    assert float(aggregate(x, "centered_clipping(tau='median', weighted=True, clamp=9.0)", counts=[4, 1, 1]).value) == (
        pytest.approx(8 / 6)
    )
    # A state moves it as without weights: from 1 the moves are 0, 1 and 2 of 8.
    rule, at_one = parse("centered_clipping(tau=2.0, weighted=True, clamp=9.0)"), {"centre": torch.ones(1).double()}
    value = rule(Rows.from_tensor(x, counts=[4, 1, 1]), at_one)[0].value
    assert float(value) == pytest.approx(1 + 3 / 6)
