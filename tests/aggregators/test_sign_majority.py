"""sign_majority: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import aggregate
from tests.aggregators.problems import matrices, rows
from tests.oracles import selections

quick = settings(deadline=None, max_examples=80)


@quick
@given(matrices(), st.sampled_from([1.0, 0.125, 1e-3]))
def test_sign_majority_like_oracle(problem, scale):
    x, _ = problem
    result = aggregate(torch.from_numpy(x), f"sign_majority(scale={scale})")
    np.testing.assert_array_equal(result.value, selections.sign_majority(x, scale)[0])
    assert float(result.weights.sum()) == pytest.approx(1)


def test_sign_majority_by_hand():
    # Column 1: two against one. 2: one each, and an abstention: 0. 3: a zero abstains, one vote decides. 4: all zero.
    x = rows([1e30, 5, 0, 0], [-0.1, -7, 0, 0], [-1e-30, 0, -3, 0])
    result = aggregate(x, "sign_majority(scale=0.5)")
    assert result.value.tolist() == [-0.5, 0, -0.5, 0]
    # Column 1 is shared by rows 1 and 2, column 3 is row 2's, columns 2 and 4 are everybody's.
    np.testing.assert_allclose(result.weights, [(2 / 3) / 4, (1 / 2 + 2 / 3) / 4, (1 / 2 + 1 + 2 / 3) / 4])


def test_sign_majority_does_not_see_lengths():
    honest = np.full((6, 5), 1e-4)
    x = torch.from_numpy(np.vstack([honest, np.full((5, 5), -1e30)]))
    assert aggregate(x, "sign_majority").value.tolist() == [1.0] * 5
    assert aggregate(torch.cat([x, x[-1:], x[-1:]]), "sign_majority").value.tolist() == [-1.0] * 5
