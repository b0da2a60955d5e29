"""NNM: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import Rows, aggregate, parse
from tests import oracles
from tests.aggregators.problems import assert_like, column, small_matrices
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


@quick
@given(small_matrices(), st.data())
def test_nnm_like_oracle(x, data):
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    for rule in ("mean", "median"):
        mixed = similarities.nnm(x, f) @ x
        assert_like(aggregate(torch.from_numpy(x), f"nnm(f={f}) | {rule}"), (oracles.RULES[rule](mixed)[0], None), x)


def test_nnm_by_hand():
    # With f=1 of 4, three nearest: 0 -> {0, 1, 3}, 1 -> {0, 1, 3}, 3 -> {1, 3, 0}, 10 -> {10, 3, 1}.
    result = aggregate(column(0, 1, 3, 10), "nnm(f=1) | mean")
    assert float(result.value) == pytest.approx((4 / 3 + 4 / 3 + 4 / 3 + 14 / 3) / 4)
    np.testing.assert_allclose(result.weights, [3 / 12, 4 / 12, 4 / 12, 1 / 12])
    assert result.stats["nnm.chosen_by"] == [3, 4, 4, 1]


def test_nnm_gives_ties_to_the_lowest_index_and_keeps_the_row_itself():
    # 1 is as far from 0 as from 2: row 0 joins it. Of four equal rows each keeps itself and the first of the others.
    x = Rows.from_tensor(column(0, 1, 2))
    stage = parse("nnm(f=1) | mean").stages[0]
    assert (stage.matrix(x, {})[0] > 0).int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 1, 1]]
    same = stage.matrix(Rows.from_tensor(column(5, 5, 5)), {})[0]
    assert (same > 0).int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 1]]


def test_nnm_lets_the_mean_survive_what_it_does_not_alone():
    honest = np.random.default_rng(0).standard_normal((7, 20))
    x = torch.from_numpy(np.vstack([honest, 1e8 * np.ones((3, 20))])).float()
    away = np.linalg.norm(aggregate(x, "nnm(f=3) | krum(f=3)").value - honest.mean(0))
    assert away <= 2.5
    assert float(aggregate(x, "mean").value.abs().max()) > 1e7
