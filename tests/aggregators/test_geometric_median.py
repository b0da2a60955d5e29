"""geometric_median: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from flwr_robust import ConfigurationError, Outcome, Rows, aggregate, parse
from flwr_robust.aggregators.geometric_median import radius
from tests.aggregators.problems import column, matrices, rows
from tests.oracles import basic

quick = settings(deadline=None, max_examples=150)


def objective(x, z, alpha=None):
    alpha = np.full(len(x), 1 / len(x)) if alpha is None else alpha
    return basic.summed_distance(np.asarray(x, float), np.asarray(z, float), alpha)


@quick
@given(matrices(), st.booleans())
def test_geometric_median_minimises_like_oracle(problem, weighted):
    x, _ = problem
    counts = np.arange(3.0, 3 + len(x))
    alpha = basic.shares(counts) if weighted else np.full(len(x), 1 / len(x))
    result = aggregate(torch.from_numpy(x), f"geometric_median(weighted={weighted})", counts=counts)
    best, _ = basic.geometric_median(x, weighted=weighted, counts=counts, steps=2000)
    # The point need not be unique, its objective is.
    assert objective(x, result.value, alpha) <= objective(x, best, alpha) * (1 + 1e-9) + 1e-12 * np.abs(x).max()
    assert result.outcome is Outcome.OK
    assert result.stats["iterations"] <= 15
    np.testing.assert_allclose(result.weights.numpy() @ x, result.value, rtol=1e-7, atol=1e-9 * np.abs(x).max())
    assert result.stats["objective"] == pytest.approx(objective(x, result.value, alpha), rel=1e-6, abs=1e-20)


def test_geometric_median_like_a_general_minimiser():
    for seed in range(4):
        x = np.random.default_rng(seed).standard_normal((9, 3)) + 5
        general = minimize(lambda z, x=x: objective(x, z), x.mean(0), method="BFGS", options={"gtol": 1e-10}).x
        np.testing.assert_allclose(aggregate(torch.from_numpy(x), "geometric_median").value, general, atol=1e-5)
        np.testing.assert_allclose(basic.geometric_median(x)[0], general, atol=1e-6)


@quick
@given(matrices(), st.integers(1, 4))
def test_geometric_median_takes_the_steps_it_is_told(problem, iterations):
    x, _ = problem
    near = np.linalg.norm(x - x.mean(0), axis=1).min()
    assume(near > 1e-6 * np.abs(x).max())
    result = aggregate(torch.from_numpy(x), f"geometric_median(iterations={iterations}, start='mean')")
    assert result.stats["iterations"] == iterations
    assert result.outcome is Outcome.OK
    expected, _ = basic.geometric_median(x, iterations=iterations, start="mean")
    # A later step may land within the smoothing of a row; then only the bound of the smoothing remains.
    np.testing.assert_allclose(result.value, expected, rtol=1e-6, atol=1e-5 * np.abs(x - x.mean(0)).max())


@quick
@given(matrices())
def test_every_step_from_the_medoid_lowers_the_sum(problem):
    x, _ = problem
    least = min(objective(x, row) for row in x)
    for iterations in (1, 2, 3, 15):
        result = aggregate(torch.from_numpy(x), f"geometric_median(iterations={iterations})")
        assert result.outcome is Outcome.OK
        assert result.stats["iterations"] <= iterations
        reached = objective(x, result.weights.numpy() @ x)
        assert reached <= least * (1 + 1e-12) + 1e-13 * np.abs(x).max()
        least = reached
    # Few are enough.
    assert least == pytest.approx(objective(x, aggregate(torch.from_numpy(x), "geometric_median").value), rel=1e-9)


def test_geometric_median_one_step_by_hand():
    # From the mean 2 the distances are 2, 1, 3: (0 / 2 + 1 / 1 + 5 / 3) / (1 / 2 + 1 + 1 / 3) = 16 / 11.
    result = aggregate(column(0, 1, 5), "geometric_median(iterations=1, start='mean')")
    assert float(result.value) == pytest.approx(16 / 11)
    np.testing.assert_allclose(result.weights, [3 / 11, 6 / 11, 2 / 11])
    # There the subgradient is (1 + 1 - 1) / 3.
    assert result.stats["residual"] == pytest.approx(1 / 3)


def naive_rfa(x, alpha, steps, nu, z):
    """Smoothed Weiszfeld as in RFA: nu is a length, z any point."""
    for _ in range(steps):
        beta = [a / max(float(np.sqrt(((z - row) ** 2).sum())), nu) for a, row in zip(alpha, x, strict=True)]
        z = sum(b * row for b, row in zip(beta, x, strict=True)) / sum(beta)
    return z


@pytest.mark.parametrize("start", ["mean", "zero"])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_geometric_median_takes_the_steps_of_rfa(start, steps):
    rng = np.random.default_rng(steps)
    x = rng.standard_normal((12, 7)) + 2
    x[:3] = -6  # three liars, who also claim more examples
    counts = np.array([30.0] * 3 + [20.0] * 9)
    alpha = counts / counts.sum()
    points = torch.from_numpy(x)
    # A smoothing so large that some distances are below it, as a length and as a multiple of the radius.
    nu = 8.0
    distances = ((points[:, None] - points) ** 2).sum(2)
    relative = nu / radius(distances)
    text = f"geometric_median(f=3, iterations={steps}, nu={relative}, weighted=True, start={start!r})"
    result = aggregate(points, text, counts=counts)
    first = alpha @ x if start == "mean" else np.zeros(7)
    np.testing.assert_allclose(result.value, naive_rfa(x, alpha, steps, nu, first), rtol=1e-9)
    assert result.outcome is Outcome.OK
    assert result.stats["iterations"] == steps
    # Neither the smoothing nor the start is without effect.
    assert np.abs(naive_rfa(x, alpha, steps, 1e-9, first) - result.value.numpy()).max() > 1e-4
    other = np.zeros(7) if start == "mean" else alpha @ x
    assert np.abs(naive_rfa(x, alpha, steps, nu, other) - result.value.numpy()).max() > 1e-4


def test_one_step_from_zero_by_hand():
    # Norms 1, 2, 4: (1 / 1 - 2 / 2 + 4 / 4) / (1 + 1 / 2 + 1 / 4) = 4 / 7.
    result = aggregate(column(1, -2, 4), "geometric_median(iterations=1, start='zero')")
    assert float(result.value) == pytest.approx(4 / 7)
    np.testing.assert_allclose(result.weights, [4 / 7, 2 / 7, 1 / 7])
    # A row at zero, and all rows there.
    assert abs(float(aggregate(column(0, 0, 5), "geometric_median(iterations=1, start='zero')").value)) < 1e-3
    assert float(aggregate(column(0, 0, 0), "geometric_median(iterations=2, start='zero')").value) == 0


@pytest.mark.parametrize("offset", [0.0, 2.0, 100.0])
def test_smoothed_steps_end_where_the_search_does(offset):
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((9, 4)) + offset)
    texts = [f"geometric_median(start={start!r}, iterations=60)" for start in ("mean", "zero")]
    for text in texts:
        np.testing.assert_allclose(aggregate(x, text).value, aggregate(x, "geometric_median").value, atol=1e-5)
    # After one step they are still apart.
    short = [aggregate(x, text.replace("60", "1")).value for text in texts]
    assert float((short[0] - short[1]).abs().max()) > 1e-3


def test_geometric_median_starts_at_one_of_three_points():
    with pytest.raises(ConfigurationError, match="start must be one of mean, medoid, zero; got start='median'"):
        parse("geometric_median(start='median')")
    with pytest.raises(ConfigurationError, match="start must be medoid unless iterations is given"):
        parse("geometric_median(start='mean')")


def test_smoothed_steps_from_the_mean_bound_nothing_and_say_so():
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((10, 4)))
    x[:3] = 1e8
    mean, zero, medoid = (
        parse(f"geometric_median(f=3, iterations=3, start={s!r})") for s in ("mean", "zero", "medoid")
    )
    assert float(mean(Rows.from_tensor(x))[0].value.norm()) > 1e5
    assert "from the mean do not bound what a far row moves: leave out start='mean'" in mean.remark(10)
    # From zero the value is no longer than a multiple of the honest rows, from the medoid it is near them.
    for rule in (zero, medoid):
        assert float(rule(Rows.from_tensor(x))[0].value.norm()) < 3
        assert rule.remark(10) is None
    x[3:] += 1e4
    centre = x[3:].mean(0)
    assert float((zero(Rows.from_tensor(x))[0].value - centre).norm()) > 100
    assert float((medoid(Rows.from_tensor(x))[0].value - centre).norm()) < 3


@quick
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([1e-8, 1.0, 1e4, 1e8, 1e150]))
def test_points_no_worse_than_an_honest_row_lie_near_it(seed, iterations, size):
    # The bound in the module's text, after any number of steps.
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(3, 12)), int(rng.integers(1, 6))
    f = (n - 1) // 2
    x = rng.standard_normal((n, d))
    x[:f] = size * rng.standard_normal((f, d)) * 10.0 ** rng.uniform(-3, 0, (f, 1))
    value = aggregate(torch.from_numpy(x), f"geometric_median(f={f}, iterations={iterations})").value.numpy()
    for row in x[f:]:
        bound = 2 / (n - 2 * f) * np.linalg.norm(x[f:] - row, axis=1).sum()
        assert np.linalg.norm(value - row) <= bound * (1 + 1e-9)


@pytest.mark.parametrize(
    ("points", "median"),
    [
        # A tall triangle: all angles below 120 degrees, so the sides are seen under 120 degrees from the point.
        ([[-1, 0], [1, 0], [0, 10]], [0, 1 / math.sqrt(3)]),
        # A flat one: the angle at the third corner is above 120 degrees, and that corner it is.
        ([[-1, 0], [1, 0], [0, 0.2]], [0, 0.2]),
        # A convex quadrilateral: the diagonals cross at (3, 3).
        ([[0, 0], [10, 3], [5, 5], [1, 3]], [3, 3]),
        # An odd number on a line: the middle one.
        ([[0, 0], [1, 1], [2, 2], [50, 50], [90, 90]], [2, 2]),
        # An even number on a line: every point between the middle two is a minimum, and the value is halfway.
        ([[0, 0], [1, 1], [2, 2], [50, 50]], [1.5, 1.5]),
        # More than half at one place.
        ([[4, 4], [4, 4], [4, 4], [0, 9], [100, 7]], [4, 4]),
        ([[7, 8]], [7, 8]),
    ],
)
def test_geometric_median_by_hand(points, median):
    result = aggregate(rows(*points), "geometric_median")
    assert result.outcome is Outcome.OK
    np.testing.assert_allclose(result.value, median, atol=1e-5)
    if len(points) > 1:  # the mean is elsewhere
        assert np.linalg.norm(np.mean(points, axis=0) - median) > 0.1


def test_geometric_median_weighted_by_hand():
    # Counts 1 1 1 6 have the median 1: 6 counts as 2 of 5, less than half, and the middle of the line is 2.
    x, counts = column(0, 1, 2, 10), [1, 1, 1, 6]
    assert float(aggregate(x, "geometric_median(weighted=True)", counts=counts).value) == 2
    # As 6 of 9 it has more than half.
    free = aggregate(x, "geometric_median(weighted=True, clamp=6)", counts=counts)
    assert float(free.value) == 10


def test_geometric_median_says_when_it_did_not_converge():
    x = rows([0, 0], [1, 0], [0, 3], [9, 9], [20, -4])
    short = aggregate(x, "geometric_median(maximum=1)")
    assert short.outcome is Outcome.NOT_CONVERGED
    assert short.stats["iterations"] == 1
    full = aggregate(x, "geometric_median")
    assert full.outcome is Outcome.OK
    assert objective(x, full.value) < objective(x, short.value)
    # The fixed count is no failure.
    assert aggregate(x, "geometric_median(iterations=1)").outcome is Outcome.OK


def test_geometric_median_leaves_a_row_that_the_mean_meets():
    # The mean is the first row, (0, 0). The directions from there to the others sum to
    # (1, 0) + (0.6, 0.8) + (0.6, -0.8) + (-1, 0) = (1.2, 0), longer than 1: going right lowers the sum of distances,
    # from 26 at 0 to 0.7 + 4.3 + 2 sqrt(2.3^2 + 4^2) + 11.7 = 25.93 at (0.7, 0).
    x = rows([0, 0], [5, 0], [3, 4], [3, -4], [-11, 0])
    result = aggregate(x, "geometric_median")
    assert result.outcome is Outcome.OK
    assert objective(x, result.value) <= objective(x, [0.7, 0])


def test_weighted_geometric_median_bears_the_f_it_accepts():
    rule = parse("geometric_median(f=4, weighted=True)")
    x = column(1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1e8, 1e8, 1e8, 1e8)
    rows_with_lies = Rows.from_tensor(x, counts=[10] * 6 + [10**9] * 4)
    assert rule.check(10) is not None or float(rule(rows_with_lies)[0].value) < 2


def test_radius_by_hand():
    # Median distance to the three others: 0 -> 3, 1 -> 2, 3 -> 3, 100 -> 99. The least is 2.
    x = column(0, 1, 3, 100)
    assert radius((x - x.T) ** 2) == 2
    # Of an even number of others the lower one: 0 -> 1, 1 -> 1, 2 -> 1, 3 -> 2, 100 -> 98.
    x = column(0, 1, 2, 3, 100)
    assert radius((x - x.T) ** 2) == 1
    # Rows that coincide do not count: 0 -> 5, 5 -> 5, 9 -> 9.
    x = column(0, 0, 0, 5, 9)
    assert radius((x - x.T) ** 2) == 5
    assert radius(torch.zeros(1, 1, dtype=torch.float64)) == 0
