"""fltrust: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError, Outcome, aggregate
from tests.aggregators.problems import assert_like, rows, small_matrices
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


@quick
@given(small_matrices(), st.integers(0, 2**32 - 1))
def test_fltrust_like_oracle(x, seed):
    trusted = np.abs(x).max() * np.random.default_rng(seed).standard_normal(x.shape[1])
    value, weights = similarities.fltrust(x, trusted)
    result = aggregate(torch.from_numpy(x), "fltrust", trusted=torch.from_numpy(trusted))
    assume(not 0 < np.abs(result.stats["scores"]).max() < 1e-3)
    assert_like(result, (value, weights), np.vstack([x, trusted]))


def test_fltrust_by_hand():
    # Cosines 1, 1 / sqrt 2 and -1. At the trusted length the first two are (2, 0) and (sqrt 2, sqrt 2).
    x, trusted = rows([3, 0], [1, 1], [-5, 0]), rows(2, 0)
    result = aggregate(x, "fltrust", trusted=trusted)
    total = 1 + math.sqrt(0.5)
    np.testing.assert_allclose(result.value, [3 / total, 1 / total])
    np.testing.assert_allclose(result.weights, [2 / 3 / total, 1 / total, 0])
    assert result.stats["scores"] == pytest.approx([1, math.sqrt(0.5), 0])
    # Longer replies buy nothing.
    np.testing.assert_allclose(
        aggregate(rows([1e30, 0], [1, 1], [-5, 0]), "fltrust", trusted=trusted).value, result.value
    )


@pytest.mark.parametrize("trusted", [[-1, 0], [0, -1], [0, 0]])
def test_fltrust_says_when_it_trusts_no_one(trusted):
    result = aggregate(rows([1, 0], [2, 0], [0, 3]), "fltrust", trusted=rows(*trusted))
    assert result.outcome is Outcome.INFEASIBLE
    assert result.value.tolist() == [0, 0]
    assert result.weights.tolist() == [0, 0, 0]


def test_fltrust_takes_rounding_for_no_agreement():
    # Orthogonal in exact arithmetic; 0.1 + 0.2 is not 0.3.
    result = aggregate(rows([0.1, 0.2, -0.3]), "fltrust", trusted=rows(1, 1, 1))
    assert result.outcome is Outcome.INFEASIBLE


def test_fltrust_says_what_to_pass():
    with pytest.raises(ConfigurationError, match=r"pass trusted=\.\.\., .* of shape \(2,\); got none"):
        aggregate(torch.ones(3, 2), "fltrust")
    with pytest.raises(ConfigurationError, match="got one with NaN or Inf"):
        aggregate(torch.ones(3, 2), "fltrust", trusted=torch.tensor([1.0, math.nan]))


def test_fltrust_with_one_row_left():
    x = torch.tensor([[math.nan, 1.0], [2.0, 0.0], [math.inf, 1.0]])
    result = aggregate(x, "fltrust", trusted=torch.tensor([1.0, 0.0]))
    assert result.value.tolist() == [1, 0]
    assert result.weights.tolist() == [0, 0.5, 0]


def test_fltrust_after_a_mixer_still_sees_the_trusted_row():
    x = rows([3, 0], [1, 1], [-5, 0])
    result = aggregate(x, "clip(c=0.5) | fltrust", trusted=rows(2, 0))
    np.testing.assert_allclose(result.value, aggregate(x, "fltrust", trusted=rows(2, 0)).value)
