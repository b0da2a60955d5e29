"""foolsgold: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import Outcome, aggregate
from flwr_robust.aggregators.foolsgold import sybil_weights
from tests.aggregators.problems import assert_like, rows, small_matrices
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


@quick
@given(small_matrices(), st.sampled_from([0.5, 1.0, 2.0]))
def test_foolsgold_like_oracle(x, confidence):
    assert_like(
        aggregate(torch.from_numpy(x), f"foolsgold(confidence={confidence})"), similarities.foolsgold(x, confidence), x
    )


def test_foolsgold_by_hand():
    # Cosines .6, 0, 0: a = .4, .4, 1. ln(.4 / .6) + .5 = .0945; the last is alone and counts fully.
    x = rows([1, 0, 0], [0.6, 0.8, 0], [0, 0, 1])
    small = math.log(2 / 3) + 0.5
    result = aggregate(x, "foolsgold")
    assert result.stats["scores"] == pytest.approx([small, small, 1])
    np.testing.assert_allclose(result.weights, np.array([small, small, 1]) / (2 * small + 1))


def test_foolsgold_pardons():
    # v = .9, .9, .5. Row 2 is like row 1 by .5, but row 1 is liker to row 0: .5 * .5 / .9 = .278 counts, so a = .1, .1,
    # .722; over .722 that is .138, whose logit + 1/2 is below 0. With kappa = 1 the rows 0 and 1 are out.
    cosines = rows([1, 0.9, 0.2], [0.9, 1, 0.5], [0.2, 0.5, 1])
    assert sybil_weights(1 - cosines, 1.0).tolist() == [0, 0, 1]
    # Where it tells: v = .7, .7, .65, so row 2 has a = 1 - .65 * .65 / .7 = .396 and not .35; the others have .3.
    cosines = rows([1, 0.7, 0.1], [0.7, 1, 0.65], [0.1, 0.65, 1])
    share = 0.3 / (1 - 0.65 * 0.65 / 0.7)
    expected = 0.5 * (math.log(share / (1 - share)) + 0.5)
    assert 0.8 < expected < 0.9
    assert sybil_weights(1 - cosines, 0.5).tolist() == pytest.approx([expected, expected, 1])


def test_foolsgold_drops_sybils():
    rng = np.random.default_rng(0)
    honest, sybil = np.eye(5, 40) + 0.05 * rng.standard_normal((5, 40)), rng.standard_normal(40)
    x = torch.from_numpy(np.vstack([honest, sybil, 2 * sybil, 1e6 * sybil]))
    result = aggregate(x, "foolsgold")
    assert result.weights[5:].tolist() == [0, 0, 0]
    assert bool((result.weights[:5] > 0.15).all())
    # A single attacker goes free, whatever it sends: that is what the rule does not do.
    assert float(aggregate(x[:6], "foolsgold").weights[5]) > 0.15


def test_foolsgold_says_when_all_rows_are_sybils():
    for factor in (1, 3):
        x = rows([1, 2], [factor, 2 * factor], [1, 2])
        result = aggregate(x, "foolsgold")
        assert result.outcome is Outcome.INFEASIBLE
        assert result.value.tolist() == [0, 0]
    assert aggregate(rows([1, 2]), "foolsgold").value.tolist() == [1, 2]  # one row is like no other
