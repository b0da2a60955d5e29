"""Numbers that an attacker chooses: what loses digits must neither be believed nor called converged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import Outcome, Rows, Shard, aggregate, aggregate_sharded, parse
from tests.adversary.problems import rough_rows
from tests.oracles import basic

few = settings(deadline=None, max_examples=40)


def column(*values):
    return torch.tensor([[v] for v in values], dtype=torch.float64)


# -- the geometric median ------------------------------------------------------------------------------------


def old_geometric_median(x, tolerance=1e-6, nu=1e-6, maximum=1000):
    """What the rule did before: from the mean, in a Gram matrix, until the weights' change is short."""
    alpha = np.full(len(x), 1 / len(x))
    centre = x[len(x) // 2]  # an honest row
    gram = (x - centre) @ (x - centre).T
    squared = ((x[:, None] - x[None]) ** 2).sum(2)
    others = np.sort(squared + np.diag(np.full(len(x), np.inf)), axis=1)
    smoothing = max(nu * np.sqrt(others[:, (len(x) - 2) // 2].min()), 1e-150)

    def distances(w):
        return np.sqrt(np.maximum(gram.diagonal() - 2 * gram @ w + w @ gram @ w, 0))

    weights = alpha
    for _ in range(maximum):
        beta = alpha / np.maximum(distances(weights), smoothing)
        following = beta / beta.sum()
        change = following - weights
        residual = np.sqrt(max(change @ gram @ change, 0)) * beta.sum()
        weights = following
        if residual <= tolerance:
            return weights @ x, True
    return weights @ x, False


CHOSEN = [
    (column(1e6, 0, 0, 0, 4e6), 0.0),
    (column(0, 1, 1, 1, -3), 1.0),
    (torch.tensor([[0.0, 0]] * 4 + [[1, 2], [3, 1], [2, 2]], dtype=torch.float64), 0.0),
]


@pytest.mark.parametrize(("x", "right"), CHOSEN)
def test_rows_that_the_issue_names(x, right):
    value, converged = old_geometric_median(x.numpy())
    assert np.abs(value - right).max() > 0.5 or not converged
    result = aggregate(x, "geometric_median(f=2)")
    assert result.outcome is Outcome.OK
    assert result.stats["iterations"] == 0
    assert result.value.tolist() == [right] * x.shape[1]


def two_liars(seed, n=10, d=20, size=1e8):
    """Honest rows near 1, and two clients that send S and (n - 1) S: the mean is S, up to the honest rows."""
    rng = np.random.default_rng(seed)
    x = 1 + 0.1 * rng.standard_normal((n, d))
    x[0] = size * rng.standard_normal(d) / np.sqrt(d)
    x[1] = (n - 1) * x[0]
    return x


PLACES = [
    "geometric_median(f=2)",
    "geometric_median(f=2, iterations=1)",
    "geometric_median(f=2, weighted=True, clamp=1.0)",
    "nnm(f=2) | geometric_median(f=2)",
    "bucketing(s=2, seed=1) | geometric_median(f=2)",
    "mixtailor(f=2, pool=('geometric_median',), seed=0)",
    "bulyan(f=1, selection='geometric_median')",
    "bulyan(f=1, selection='median', aggregation='geometric_median')",
]


@pytest.mark.parametrize("text", PLACES)
@pytest.mark.parametrize("size", [1e2, 1e8, 1e14, 1e30])
def test_two_clients_that_put_the_mean_on_a_row_gain_nothing(text, size):
    for seed in range(5):
        x = two_liars(seed, size=size)
        honest = x[2:].mean(0)
        if "f=1" in text:  # bulyan(f=1) has to do with one of them
            x[1] = x[2]
        spread = np.linalg.norm(x[2:] - honest, axis=1).max()
        result = aggregate(torch.from_numpy(x), text, counts=np.full(10, 7.0))
        assert result.outcome is Outcome.OK
        assert np.linalg.norm(result.value.numpy() - honest) <= 3 * spread


def test_the_old_iteration_believed_them():
    lost = 0
    for seed in range(20):
        x = two_liars(seed, size=1e10)
        value, converged = old_geometric_median(x)
        lost += bool(converged and np.linalg.norm(value) > 1e6)
    assert lost >= 8


def test_shards_search_the_same_point():
    for x in (two_liars(3), two_liars(3)[:, :2], np.array([[0.0, 0]] * 4 + [[1, 2], [3, 1], [2, 2]])):
        points = torch.from_numpy(x)
        whole = aggregate(points, "geometric_median(f=2)")
        shards = [Shard(points[:, :1]), Shard(points[:, 1:])]
        found, _ = aggregate_sharded(shards, "geometric_median(f=2)")
        assert found.outcome is Outcome.OK
        np.testing.assert_allclose(torch.cat([shard.value() for shard in shards]), whole.value, rtol=1e-9, atol=1e-9)


@few
@given(rough_rows(least=3), st.sampled_from(["", "nnm(f=1) | ", "bucketing(s=2) | ", "clip(c=1.0) | "]))
def test_behind_any_stage_the_point_is_no_worse_than_any_row(x, stage):
    rule = parse(f"{stage}geometric_median()")
    points = Rows.from_tensor(torch.from_numpy(x))
    if rule.check(points.n):
        return
    mixing = rule.stages[0].matrix(points, rule.stages[0].init())[0] if stage else torch.eye(points.n).double()
    rows = (mixing.to(torch.float64) @ points.slice(0, points.d)).numpy()
    result = rule(points)[0]
    assert result.outcome is Outcome.OK
    alpha = np.full(len(rows), 1 / len(rows))
    least = min(basic.summed_distance(rows, row, alpha) for row in rows)
    rounding = 1e-12 * np.abs(x).max() * np.sqrt(x.shape[1])  # a mixed row is no more exact than its terms
    assert basic.summed_distance(rows, result.value.numpy(), alpha) <= least * (1 + 1e-9) + rounding
