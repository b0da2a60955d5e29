"""The point of least summed distance: optimal by Kuhn's test in long double, whatever the rows' scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import Rows
from flwr_robust.kernels.summed_distance import least_summed_distance, medoid
from tests.adversary.problems import rough_rows

some = settings(deadline=None, max_examples=60)


def searched(x, alpha=None, tolerance=1e-6, maximum=1000):
    """The minimum of rows, and the row from which it was searched."""
    alpha = np.full(len(x), 1 / len(x)) if alpha is None else alpha
    rows = Rows.from_tensor(torch.from_numpy(x))
    start = medoid(rows.gram.numpy(), rows.squared_distances.numpy(), alpha)
    return least_summed_distance(lambda i: rows.gram_about(i).numpy(), start, alpha, tolerance, maximum), start


def least_subgradient(x, weights, alpha):
    """The length of the least subgradient at weights @ x, in long double and about the row of most weight."""
    y = x.astype(np.longdouble) - x[np.argmax(weights)]
    away = weights.astype(np.longdouble) @ y - y
    lengths = np.sqrt((away**2).sum(1))
    far = lengths > 0
    pull = ((alpha[far] / lengths[far])[:, None] * away[far]).sum(0)
    return max(float(np.sqrt((pull**2).sum())) - alpha[~far].sum(), 0.0)


@some
@given(rough_rows(), st.booleans())
def test_the_minimum_is_one_in_long_double(x, uneven):
    alpha = np.arange(1.0, 1 + len(x)) if uneven else np.ones(len(x))
    alpha /= alpha.sum()
    found, start = searched(x, alpha)
    assert found.converged
    assert found.steps <= 40
    assert least_subgradient(x, found.weights, alpha) <= 2e-6
    assert (found.weights >= 0).all()
    assert found.weights.sum() == pytest.approx(1, abs=1e-12)
    if found.steps == 0:
        assert found.weights[start] > 0


def test_the_medoid_among_far_rows():
    # Sums of distances would agree to all digits: each is 2e30.
    x = np.array([[1e30], [-1e30], [0.0], [1.0], [2.0], [3.0], [3.5]])
    assert searched(x)[1] == 4
    np.testing.assert_allclose(searched(x)[0].weights @ x, [2.0])


def test_a_row_is_left_by_a_step_of_known_length():
    # From (0, 0), where a third of the weight lies, the others pull by (1 + 1 + 1.2) / 6: the minimum is off the row.
    x = np.array([[0, 0], [0, 0], [5.0, 0], [3, 4], [3, -4], [4, 0]])
    found, start = searched(x)
    assert found.converged
    assert found.steps > 0
    assert least_subgradient(x, found.weights, np.full(6, 1 / 6)) <= 1e-6
    sums = [np.linalg.norm(x - row, axis=1).sum() for row in x]
    assert sums[start] == min(sums)


def test_too_few_steps_are_no_convergence():
    x = np.random.default_rng(0).standard_normal((9, 4))
    whole, cut = searched(x)[0], searched(x, maximum=1)[0]
    assert whole.converged
    assert not cut.converged
    assert cut.steps == 1
    assert cut.residual > 1e-6
    assert whole.objective < cut.objective


def test_two_near_rows_far_from_the_centre_keep_their_distance():
    # The rows at 1 are 1e-9 apart: products about any other row have no digit of it, and are asked for anew.
    x = np.array([[1.0, 0], [1 + 1e-9, 1e-9], [1, 2e-9], [0, 5], [0, -4], [9, 3.5], [-3, 0.1]])
    found, _ = searched(x)
    assert found.converged
    assert least_subgradient(x, found.weights, np.full(7, 1 / 7)) <= 1e-6
