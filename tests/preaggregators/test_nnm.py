"""NNM: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
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


# -- weighted ----------------------------------------------------------------------------------------


@quick
@given(small_matrices(), st.data(), st.sampled_from([1.0, 2.0, 1e9]))
def test_weighted_nnm_like_oracle(x, data, clamp):
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    counts = np.random.default_rng(len(x)).integers(1, 100, len(x)).astype(float)
    most = (max(f, 1) / len(x) + 0.5) / 2
    assume(most < 0.5)
    made = Rows.from_tensor(torch.from_numpy(x), counts=counts)
    stage = parse(f"nnm(f={f}, weighted=True, clamp={clamp}, most={most}) | mean").stages[0]
    expected = similarities.nnm(x, f, True, clamp, most, counts)
    np.testing.assert_allclose(stage.matrix(made, {})[0] @ x, expected @ x, rtol=1e-6, atol=1e-6 * np.abs(x).max())


def test_weighted_nnm_by_hand():
    # Weights 2 2 3 1 of 8; the heaviest, f = 1, holds 3, so a neighbourhood holds 5.
    # 0: 2 itself, 2 of row 1, 1 of row 2.     1: 2 itself, 2 of row 0, 1 of row 2.
    # 3: 3 itself, 2 of row 1.                 10: 1 itself, 3 of row 2, 1 of row 1.
    x = Rows.from_tensor(column(0, 1, 3, 10), counts=[2, 2, 3, 1])
    matrix, stats, _ = parse("nnm(f=1, weighted=True, clamp=9.0, most=0.4) | mean").stages[0].matrix(x, {})
    expected = [[2, 2, 1, 0], [2, 2, 1, 0], [0, 2, 3, 0], [0, 1, 3, 1]]
    np.testing.assert_allclose(matrix, np.array(expected) / 5, rtol=1e-12)
    assert stats["chosen_by"] == [2, 4, 4, 1]


def test_weighted_nnm_holds_no_more_of_the_faulty_than_their_share():
    # Whoever is faulty, their part of an honest neighbourhood is at most that of the f heaviest of what it holds.
    rng = np.random.default_rng(0)
    x, counts = torch.from_numpy(rng.standard_normal((9, 3))), rng.integers(1, 50, 9).astype(float)
    stage = parse("nnm(f=2, weighted=True, clamp=1e9, most=0.45) | mean").stages[0]
    matrix, _, _ = stage.matrix(Rows.from_tensor(x, counts=counts), {})
    heaviest = stage.weighing().heaviest(torch.from_numpy(counts))
    np.testing.assert_allclose(matrix.sum(1), 1)
    assert float(matrix.topk(2, dim=1).values.sum(1).max()) <= heaviest / (1 - heaviest) + 1e-12
