"""Each rule against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import flwr_robust
from flwr_robust import ConfigurationError, InfeasibleError, Outcome, Rows, UnknownNameError, aggregate, parse
from flwr_robust.aggregators.geometric_median import radius
from flwr_robust.aggregators.lfighter import two_means
from flwr_robust.core.rows import Layer
from tests import oracles

quick = settings(deadline=None, max_examples=150)


@st.composite
def matrices(draw, least=1, most=30, grid=None):
    """A matrix and whether it is a grid: small integers times a power of two, full of ties and exact in float64."""
    n, d = draw(st.integers(least, most)), draw(st.integers(1, 50))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()) if grid is None else grid:
        few = rng.integers(-3, 4, (n, d))[rng.integers(0, n, n)]
        return few * 2.0 ** draw(st.integers(-20, 20)), True
    x = rng.standard_normal((n, d)) + draw(st.sampled_from([0, 1, 30]))
    x = x * 10.0 ** draw(st.integers(-6, 6))
    if draw(st.booleans()):
        x = x.astype(np.float32).astype(float)
    return x, False


def column(*values):
    return torch.tensor([[v] for v in values], dtype=torch.float64)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def assert_value(result, expected, x):
    scale = np.abs(np.asarray(x, float)).max()
    np.testing.assert_allclose(result.value.double(), expected, rtol=1e-9, atol=1e-12 * scale)


def choose(data, least):
    """Rows and the largest f, or a smaller one, that fits 2f + least of them."""
    x, grid = data.draw(matrices(least))
    return x, grid, data.draw(st.integers(0, (len(x) - least) // 2))


# -- mean ----------------------------------------------------------------------------------------


@quick
@given(matrices(), st.integers(0, 10**6))
def test_mean_like_oracle(problem, seed):
    x, _ = problem
    assert_value(aggregate(torch.from_numpy(x), "mean"), oracles.mean(x)[0], x)
    counts = 10.0 ** np.random.default_rng(seed).uniform(0, 6, len(x))
    for clamp in (1.0, 2.0, 1e9):
        result = aggregate(torch.from_numpy(x), f"mean(weighted=True, clamp={clamp})", counts=counts)
        value, weights = oracles.mean(x, weighted=True, clamp=clamp, counts=counts)
        assert_value(result, value, x)
        np.testing.assert_allclose(result.weights, weights, rtol=1e-12)


def test_mean_by_hand():
    assert aggregate(rows([1, 10], [2, 20], [6, 60]), "mean").value.tolist() == [3, 30]


def test_weighted_mean_by_hand():
    # The median of the counts is (20 + 30) / 2 = 25, so 1000 counts as 2 * 25 = 50: 11 * 50 / 110.
    x, counts = column(0, 0, 0, 11), [10, 20, 30, 1000]
    assert float(aggregate(x, "mean(weighted=True)", counts=counts).value) == pytest.approx(5)
    # With clamp=1 the largest is 25, too: 11 * 25 / 80.
    assert float(aggregate(x, "mean(weighted=True, clamp=1)", counts=counts).value) == pytest.approx(3.4375)
    # Without a bound that bites it is the plain weighted mean: 11 * 1000 / 1060.
    wide = aggregate(x, "mean(weighted=True, clamp=1000)", counts=counts)
    assert float(wide.value) == pytest.approx(11000 / 1060)
    # Not weighted, the counts do not matter.
    assert float(aggregate(x, "mean", counts=counts).value) == pytest.approx(2.75)


@pytest.mark.parametrize("rule", ["mean(weighted=True)", "geometric_median(weighted=True)"])
@pytest.mark.parametrize("counts", [None, [1, 2, 0], [1, 2, -1], [1, 2, math.nan], [1, 2, math.inf]])
def test_weighted_rules_need_positive_counts(rule, counts):
    with pytest.raises(ConfigurationError, match="counts"):
        aggregate(column(0, 1, 2), rule, counts=counts)


# -- median --------------------------------------------------------------------------------------


@quick
@given(matrices())
def test_median_like_oracle(problem):
    x, _ = problem
    result = aggregate(torch.from_numpy(x), "median")
    assert_value(result, oracles.median(x)[0], x)
    assert_value(result, np.median(x, axis=0), x)
    assert float(result.weights.sum()) == pytest.approx(1)


def test_median_of_an_even_number_is_the_mean_of_the_middle_two():
    x = column(10, 1, 3, 2)
    assert float(aggregate(x, "median").value) == 2.5
    assert float(torch.median(x)) == 2  # the lower one: another rule


def test_median_by_hand():
    x = rows([1, -5, 0], [2, 7, 0], [9, 1, 1])
    result = aggregate(x, "median")
    assert result.value.tolist() == [2, 1, 0]
    # Row 1 gives the first column, row 2 the second; rows 0 and 1 share the third.
    np.testing.assert_allclose(result.weights, [0.5 / 3, 1.5 / 3, 1 / 3])


def test_median_survives_just_less_than_half():
    honest = [1.0, 1.1, 1.2]
    assert 1.0 <= float(aggregate(column(*honest, 1e30, 1e30), "median").value) <= 1.2
    assert float(aggregate(column(*honest, 1e30, 1e30, 1e30), "median").value) > 1e29


# -- trimmed mean --------------------------------------------------------------------------------


@quick
@given(st.data())
def test_trimmed_mean_like_oracle(data):
    x, _, f = choose(data, 1)
    result = aggregate(torch.from_numpy(x), f"trimmed_mean(f={f})")
    assert_value(result, oracles.trimmed_mean(x, f)[0], x)
    assert float(result.weights.sum()) == pytest.approx(1)


def test_trimmed_mean_by_hand():
    # Column 1 keeps 2, 3, 4; column 2 keeps -1, 0, 7.
    x = rows([2, 7], [100, -1], [3, 50], [4, -50], [-100, 0])
    assert aggregate(x, "trimmed_mean(f=1)").value.tolist() == [3, 2]
    assert aggregate(x, "trimmed_mean(f=2)").value.tolist() == [3, 0]
    assert aggregate(x, "trimmed_mean(f=0)").value.tolist() == pytest.approx([1.8, 1.2])


def test_trimmed_mean_weights_are_the_kept_shares():
    # Column 1 keeps rows 1 and 2, column 2 rows 0 and 2; each has half of its column.
    x = rows([0, 2], [1, 9], [2, 3], [9, 0])
    result = aggregate(x, "trimmed_mean(f=1)")
    assert result.value.tolist() == [1.5, 2.5]
    assert result.weights.tolist() == [0.25, 0.25, 0.5, 0]


def test_trimmed_mean_fraction_is_of_the_clients_asked():
    # Ten were asked, seven answered: a fifth is two per side, not floor(1.4) = 1.
    x = column(-50, -40, 1, 2, 3, 60, 71)
    assert float(aggregate(x, "trimmed_mean(fraction=0.2)", asked=10).value) == 2
    # Of seven asked it is one per side: (-40 + 1 + 2 + 3 + 60) / 5.
    assert float(aggregate(x, "trimmed_mean(fraction=0.2)").value) == pytest.approx(5.2)
    assert parse("trimmed_mean(fraction=0.29)").declared(100) == 29  # 0.29 * 100 is 28.999999999999996
    with pytest.raises(InfeasibleError, match=r"n >= 2f \+ 1; got n=4, f=2"):
        aggregate(column(1, 2, 3, 4), "trimmed_mean(fraction=0.2)", asked=10)


@pytest.mark.parametrize("size", [1e8, 1e16, 1e30])
def test_trimmed_mean_is_not_the_sum_minus_the_extremes(size):
    values = [0.1, 0.2, 0.3, 0.4, size, -size / 3]
    shortcut = (sum(values) - max(values) - min(values)) / 4
    assert abs(shortcut - 0.25) > 1e-10  # what the shortcut loses
    assert float(aggregate(column(*values), "trimmed_mean(f=1)").value) == pytest.approx(0.25, abs=1e-15)


@pytest.mark.parametrize("rule", ["trimmed_mean(f=1)", "median"])
@pytest.mark.parametrize("values", [(0, 1, 2, 5, 9), (0, 0, 1, 2, 3), (0, 1, 1, 1, 7), (0, 1, 2, 2, 2)])
def test_kept_shares_give_the_value_of_one_column(rule, values):
    # With one column the kept shares are the coefficients of the rows, ties or not.
    result = aggregate(column(*values), rule)
    assert float(result.weights @ column(*values)[:, 0]) == pytest.approx(float(result.value))


# -- krum ----------------------------------------------------------------------------------------

VARIANTS = ["paper", "byzfl", "byzantine_momentum"]


@quick
@given(st.data(), st.sampled_from(VARIANTS))
def test_krum_like_oracle(data, variant):
    x, grid, f = choose(data, 3)
    result = aggregate(torch.from_numpy(x), f"krum(f={f}, variant='{variant}')")
    scores = oracles.krum_scores(x, f, variant)
    chosen = int(result.weights.argmax())
    np.testing.assert_array_equal(result.value, x[chosen])
    np.testing.assert_allclose(result.stats["scores"], scores, rtol=1e-8, atol=0)
    assert scores[chosen] <= min(scores) * (1 + 1e-9)
    if grid and variant != "byzantine_momentum":  # sums of squares of integers: a tie is exact
        assert chosen == scores.index(min(scores))


# Points 0, 1, 6, 7, 8, 10 on a line, f = 1. Distances to the nearest others:
#   6: 1 2 4 5    7: 1 1 3 6    8: 1 2 2 7    10: 2 3 4 9
# paper, three squared:  6: 1+4+16 = 21    7: 1+1+9 = 11       8: 1+4+4 = 9        -> 8
# byzfl, four squared:   6: 21+25 = 46     7: 11+36 = 47       8: 9+49 = 58        -> 6
# plain, four:           6: 12             7: 11               8: 12               -> 7
LINE = (0, 1, 6, 7, 8, 10)


@pytest.mark.parametrize(("variant", "chosen"), [("paper", 8), ("byzfl", 6), ("byzantine_momentum", 7)])
def test_krum_variants_choose_three_different_clients(variant, chosen):
    assert float(aggregate(column(*LINE), f"krum(f=1, variant='{variant}')").value) == chosen
    assert oracles.krum(np.array(LINE, float)[:, None], 1, variant)[0] == [chosen]


def test_krum_scores_by_hand():
    result = aggregate(column(*LINE), "krum(f=1)")
    assert result.stats["scores"] == [0 + 1 + 36 + 49, 1 + 25 + 36, 21, 11, 9, 4 + 9 + 16]


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ((0, 1, 2, 3, 4), 1),  # scores 5 2 2 2 5
        ((4, 0, 3, 1, 2), 2),  # the same points, in another order
        ((7, 7, 7, 7, 7), 0),
        ((5, 0, 0, 0, 5), 1),
    ],
)
def test_krum_gives_a_tie_to_the_lowest_index(values, index):
    assert int(aggregate(column(*values), "krum(f=1)").weights.argmax()) == index


def test_krum_is_not_fooled_by_f_colluders():
    # Two at the same far place have distance 0 from each other; n - f - 2 = 3 neighbours reach the honest.
    x = rows([1e30, 1e30], [0, 0], [0, 1], [1e30, 1e30], [1, 0], [1, 1], [0.4, 0.4])
    assert aggregate(x, "krum(f=2)").value.tolist() == [0.4, 0.4]


def test_krum_among_few():
    x = rows([1e30, 1e30], [0, 0], [0, 1], [1e30, 1e30], [1, 0], [0.4, 0.4])
    assert aggregate(x, "krum(f=2, strict=False)").value.tolist() == [0.4, 0.4]  # two neighbours are enough here
    three = rows([1e30], [0], [1e30], [1], [1e30], [0.4])
    assert float(aggregate(three, "krum(f=3, strict=False)").value) == pytest.approx(1e30)  # one neighbour is not
    for name in ("krum", "multi_krum"):
        with pytest.raises(InfeasibleError, match=rf"{name} needs n >= 2f \+ 3; got n=6, f=2"):
            aggregate(x, f"{name}(f=2)")
        with pytest.raises(InfeasibleError, match=rf"{name} needs n >= f \+ 3; got n=6, f=4"):
            aggregate(x, f"{name}(f=4, strict=False)")
        with pytest.raises(ConfigurationError, match="strict"):
            aggregate(x, f"{name}(f=2, strict=1)")
    assert aggregate(x, "multi_krum(f=2, m=1, strict=False)").value.tolist() == [0.4, 0.4]


# -- multi-krum ----------------------------------------------------------------------------------


@quick
@given(st.data(), st.sampled_from(VARIANTS))
def test_multi_krum_like_oracle(data, variant):
    x, grid, f = choose(data, 3)
    m = data.draw(st.one_of(st.none(), st.integers(1, len(x))))
    result = aggregate(torch.from_numpy(x), f"multi_krum(f={f}, m={m}, variant='{variant}')")
    size = len(x) - f if m is None else m
    chosen = np.flatnonzero(result.weights)
    assert len(chosen) == size
    np.testing.assert_allclose(result.weights[chosen], 1 / size)
    assert_value(result, x[chosen].mean(0), x)
    scores = oracles.krum_scores(x, f, variant)
    assert sorted(scores)[:size] == pytest.approx(sorted(scores[i] for i in chosen), rel=1e-9)
    if grid and variant != "byzantine_momentum":
        assert chosen.tolist() == oracles.best(scores, size)


def test_multi_krum_by_hand():
    # The scores on LINE are 86 62 21 11 9 29: m = n - f = 5 leaves out the point 0.
    assert float(aggregate(column(*LINE), "multi_krum(f=1)").value) == pytest.approx((1 + 6 + 7 + 8 + 10) / 5)
    # n - f - 2 = 3, as in ByzantineMomentum, leaves out 1 and 10, too.
    assert float(aggregate(column(*LINE), "multi_krum(f=1, m=3)").value) == pytest.approx(7)
    assert float(aggregate(column(*LINE), "multi_krum(f=1, m=1)").value) == 8
    assert float(aggregate(column(*LINE), "multi_krum(f=1, m=1, variant='byzfl')").value) == 6
    assert float(aggregate(column(*LINE), "multi_krum(f=1, m=6)").value) == pytest.approx(32 / 6)


def test_multi_krum_gives_a_tie_to_the_lowest_indices():
    # Scores 5 2 2 2 5: the second of the chosen two is row 2, not row 3.
    result = aggregate(column(0, 1, 2, 3, 4), "multi_krum(f=1, m=2)")
    assert result.weights.tolist() == [0, 0.5, 0.5, 0, 0]


def test_multi_krum_needs_m_rows():
    with pytest.raises(InfeasibleError, match=r"n >= m = 9; got n=6"):
        aggregate(column(*LINE), "multi_krum(f=1, m=9)")


# -- FABA ----------------------------------------------------------------------------------------


@quick
@given(st.data())
def test_faba_like_oracle(data):
    x, _, f = choose(data, 1)
    removed, gap = oracles.faba_removals(x, f)
    assume(gap > 1e-9)  # of nearly equal distances rounding may choose either; ties have their own tests
    result = aggregate(torch.from_numpy(x), f"faba(f={f})")
    assert result.stats["removed"] == removed
    value, weights = oracles.faba(x, f)
    assert_value(result, value, x)
    np.testing.assert_allclose(result.weights, weights)


def test_faba_by_hand():
    # Mean 5: 16 is 11 away and goes. Mean of 0 1 3 is 4/3: 3 is 5/3 away and goes. Left: 0 and 1.
    result = aggregate(column(0, 1, 3, 16), "faba(f=1)")
    assert result.stats["removed"] == [3]
    assert float(result.value) == pytest.approx(4 / 3)
    # Five rows allow f = 2. Mean 4: 16 goes; mean of 0 0 1 3 is 1: 3 is 2 away and goes.
    result = aggregate(column(0, 0, 1, 3, 16), "faba(f=2)")
    assert result.stats["removed"] == [4, 3]
    assert float(result.value) == pytest.approx(1 / 3)


def test_faba_recomputes_the_mean():
    # The mean is 9, and 0 is farthest from it but for 30: by first distances 30 and 0 would go.
    # After 30 the mean is 3.75: 8 is 4.25 away, 0 is 3.75 away. So 30 and 8 go.
    x = column(0, 3, 4, 8, 30)
    assert aggregate(x, "faba(f=2)").stats["removed"] == [4, 3]
    assert float(aggregate(x, "faba(f=2)").value) == pytest.approx(7 / 3)


def test_faba_gives_a_tie_to_the_lowest_index():
    # Both ends are 2 away from the mean.
    assert float(aggregate(column(-2, 0, 2), "faba(f=1)").value) == 1
    assert float(aggregate(column(2, 0, -2), "faba(f=1)").value) == -1
    # All five equal: rows 0 and 1 go.
    assert aggregate(column(3, 3, 3, 3, 3), "faba(f=2)").stats["removed"] == [0, 1]


def test_faba_gives_a_tie_to_the_lowest_index_when_the_mean_is_not_representable():
    # The sum is (-3, -12). Five times the differences to the mean: (-12, -3) for row 0, (3, 12) for row 3, the
    # longest two, of equal length.
    x = rows([-3, -3], [0, -3], [1, -3], [0, 0], [-1, -3])
    assert aggregate(x, "faba(f=1)").stats["removed"] == [0]


# -- geometric median ----------------------------------------------------------------------------


def objective(x, z, alpha=None):
    alpha = np.full(len(x), 1 / len(x)) if alpha is None else alpha
    return oracles.summed_distance(np.asarray(x, float), np.asarray(z, float), alpha)


@quick
@given(matrices(), st.booleans())
def test_geometric_median_minimises_like_oracle(problem, weighted):
    x, _ = problem
    counts = np.arange(3.0, 3 + len(x))
    alpha = oracles.shares(counts) if weighted else np.full(len(x), 1 / len(x))
    near = np.linalg.norm(x - alpha @ x, axis=1).min()
    assume(len(x) == 1 or near > 1e-6 * np.abs(x).max())  # a mean that meets a row has its own test
    result = aggregate(torch.from_numpy(x), f"geometric_median(weighted={weighted})", counts=counts)
    best, _ = oracles.geometric_median(x, weighted=weighted, counts=counts, steps=2000)
    # The point need not be unique, its objective is.
    assert objective(x, result.value, alpha) <= objective(x, best, alpha) * (1 + 1e-5) + 1e-12 * np.abs(x).max()
    np.testing.assert_allclose(result.weights.numpy() @ x, result.value, rtol=1e-7, atol=1e-9 * np.abs(x).max())
    assert result.stats["objective"] == pytest.approx(objective(x, result.value, alpha), rel=1e-6, abs=1e-20)


def test_geometric_median_like_a_general_minimiser():
    for seed in range(4):
        x = np.random.default_rng(seed).standard_normal((9, 3)) + 5
        general = minimize(lambda z, x=x: objective(x, z), x.mean(0), method="BFGS", options={"gtol": 1e-10}).x
        np.testing.assert_allclose(aggregate(torch.from_numpy(x), "geometric_median").value, general, atol=1e-5)
        np.testing.assert_allclose(oracles.geometric_median(x)[0], general, atol=1e-6)


@quick
@given(matrices(), st.integers(1, 4))
def test_geometric_median_takes_the_steps_it_is_told(problem, iterations):
    x, _ = problem
    near = np.linalg.norm(x - x.mean(0), axis=1).min()
    assume(near > 1e-6 * np.abs(x).max())
    result = aggregate(torch.from_numpy(x), f"geometric_median(iterations={iterations})")
    assert result.stats["iterations"] == iterations
    assert result.outcome is Outcome.OK
    expected, _ = oracles.geometric_median(x, iterations=iterations)
    # A later step may land within the smoothing of a row; then only the bound of the smoothing remains.
    np.testing.assert_allclose(result.value, expected, rtol=1e-6, atol=1e-5 * np.abs(x - x.mean(0)).max())


def test_geometric_median_one_step_by_hand():
    # From the mean 2 the distances are 2, 1, 3: (0 / 2 + 1 / 1 + 5 / 3) / (1 / 2 + 1 + 1 / 3) = 16 / 11.
    result = aggregate(column(0, 1, 5), "geometric_median(iterations=1)")
    assert float(result.value) == pytest.approx(16 / 11)
    np.testing.assert_allclose(result.weights, [3 / 11, 6 / 11, 2 / 11])


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
    # The gradient at zero is the mean of the unit vectors towards the rows, 1 - 1 + 1 over 3.
    assert result.stats["residual"] == pytest.approx(1 / 3)
    # A row at zero, and all rows there.
    assert abs(float(aggregate(column(0, 0, 5), "geometric_median(iterations=1, start='zero')").value)) < 1e-3
    assert float(aggregate(column(0, 0, 0), "geometric_median(start='zero')").value) == 0


@pytest.mark.parametrize("offset", [0.0, 2.0, 100.0])
def test_geometric_median_ends_where_it_does_from_either_start(offset):
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((9, 4)) + offset)
    first, second = (aggregate(x, f"geometric_median(start={start!r})") for start in ("mean", "zero"))
    assert first.outcome is second.outcome is Outcome.OK
    np.testing.assert_allclose(second.value, first.value, atol=1e-5)
    # After one step they are still apart.
    short = [aggregate(x, f"geometric_median(start={start!r}, iterations=1)").value for start in ("mean", "zero")]
    assert float((short[0] - short[1]).abs().max()) > 1e-3


def test_geometric_median_starts_at_one_of_two_points():
    with pytest.raises(ConfigurationError, match="start must be one of mean, zero; got start='median'"):
        parse("geometric_median(start='median')")


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
        # More than half at one place.
        ([[4, 4], [4, 4], [4, 4], [0, 9], [100, 7]], [4, 4]),
        ([[7, 8]], [7, 8]),
    ],
)
def test_geometric_median_by_hand(points, median):
    result = aggregate(rows(*points), "geometric_median")
    assert result.outcome is Outcome.OK
    np.testing.assert_allclose(result.value, median, atol=1e-4)
    if len(points) > 1:  # the mean is elsewhere
        assert np.linalg.norm(np.mean(points, axis=0) - median) > 0.1


def test_geometric_median_weighted_by_hand():
    # Counts 1 1 1 6 have the median 1: 6 counts as 2 of 5, less than half, and the middle of the line is 2.
    x, counts = column(0, 1, 2, 10), [1, 1, 1, 6]
    assert float(aggregate(x, "geometric_median(weighted=True)", counts=counts).value) == pytest.approx(2, abs=1e-4)
    # As 6 of 9 it has more than half.
    free = aggregate(x, "geometric_median(weighted=True, clamp=6)", counts=counts)
    assert float(free.value) == pytest.approx(10, abs=1e-4)


def test_geometric_median_says_when_it_did_not_converge():
    x = rows([0, 0], [1, 0], [0, 3], [9, 9], [20, -4])
    short = aggregate(x, "geometric_median(maximum=2)")
    assert short.outcome is Outcome.NOT_CONVERGED
    assert short.stats["iterations"] == 2
    full = aggregate(x, "geometric_median")
    assert full.outcome is Outcome.OK
    assert objective(x, full.value) < objective(x, short.value)
    # The fixed count is no failure.
    assert aggregate(x, "geometric_median(iterations=2)").outcome is Outcome.OK


def test_geometric_median_leaves_a_row_that_the_mean_meets():
    # The mean is the first row, (0, 0). The directions from there to the others sum to
    # (1, 0) + (0.6, 0.8) + (0.6, -0.8) + (-1, 0) = (1.2, 0), longer than 1: going right lowers the sum of distances,
    # from 26 at 0 to 0.7 + 4.3 + 2 sqrt(2.3^2 + 4^2) + 11.7 = 25.93 at (0.7, 0).
    x = rows([0, 0], [5, 0], [3, 4], [3, -4], [-11, 0])
    result = aggregate(x, "geometric_median")
    assert objective(x, result.value) <= objective(x, [0.7, 0]) + 1e-6 or result.outcome is not Outcome.OK


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
    assert radius(torch.zeros(1, 1, dtype=torch.float64)) == 0


# -- centered clipping ---------------------------------------------------------------------------


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
    expected, _ = oracles.centered_clipping(x, tau, steps, centre=centre)
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
    np.testing.assert_allclose(result.value, oracles.centered_clipping(x, 0.1, steps)[0], rtol=1e-6, atol=1e-9)
    assert float(result.value.norm()) <= 0.1 * steps


# -- LFighter ------------------------------------------------------------------------------------


@quick
@given(st.integers(2, 20), st.integers(2, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 4]))
def test_lfighter_like_oracle(n, classes, features, seed, offset):
    rng = np.random.default_rng(seed)
    layout = [("w", (3, 2)), ("head", (classes, features)), ("bias", (classes,))]
    x = rng.standard_normal((n, 6 + classes * features + classes)) * 10.0 ** rng.integers(-4, 5)
    x[: n // 3] += offset * np.abs(x).max()
    value, weights = oracles.lfighter(x, layout)
    result = aggregate(torch.from_numpy(x), "lfighter", layout=layout)
    scores = result.stats["scores"]
    assume(abs(scores[0] - scores[1]) > 1e-9)  # ties have their own test
    np.testing.assert_allclose(result.weights, weights)
    assert_value(result, value, x)


HEAD = [("features", (2, 2)), ("head", (2, 2)), ("bias", (2,))]


def with_head(*heads):
    """Rows whose head is given; features and bias would separate them otherwise."""
    noise = [[100 * (-1) ** i] * 4 for i in range(len(heads))]
    return rows(*[[*noise[i], *head, 1000 * i, -1000] for i, head in enumerate(heads)])


def test_lfighter_keeps_the_dissimilar_cluster():
    # The rows farthest apart are in {0, 1, 2} and {3, 4}. In the first all cosines are 1 and the row minima are
    # cos(i, i) - 1 = 0: d = 3/5. In the second the cosine is -1: d = 2/5 * 2 = 4/5, the larger.
    x = with_head([100, 0, 0, 0], [101, 0, 0, 0], [99, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0])
    result = aggregate(x, "lfighter", layout=HEAD)
    assert result.stats["scores"] == pytest.approx([0.6, 0.8])
    assert result.stats["kept"] == [3, 4]
    torch.testing.assert_close(result.value, x[3:].mean(0))


def test_lfighter_keeps_the_larger_of_two_alike_clusters():
    # Row 4 points the same way as row 3 now: d = 2/5 against 3/5.
    x = with_head([100, 0, 0, 0], [101, 0, 0, 0], [99, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0])
    result = aggregate(x, "lfighter", layout=HEAD)
    assert result.stats["scores"] == pytest.approx([0.6, 0.4])
    torch.testing.assert_close(result.value, x[:3].mean(0))


def test_lfighter_looks_at_the_two_strongest_classes():
    # Class 1 has the summed norm 15, class 2 has 8 and class 0 has 5: on (1, 2) the clusters are {0, 1, 2}, {3, 4}.
    layout = [("head", (3, 1))]
    x = rows([1, 3, 2], [-1, 3, 2], [1, 3, 2], [-1, -3, 1], [1, -3, 1])
    result = aggregate(x, "lfighter", layout=layout)
    assert result.stats["classes"] == [1, 2]
    assert result.stats["kept"] == [0, 1, 2]


def test_lfighter_gives_a_tie_to_the_cluster_of_row_0():
    # Two clusters of two, all cosines positive: both have d = 1/2.
    for seed in range(20):
        rng = np.random.default_rng(seed)
        heads = np.array([[0, 1, 2, 3], [0, 1, 2, 3], [90, 80, 70, 60], [90, 80, 70, 60]]) + rng.uniform(1, 2, (4, 4))
        assert aggregate(with_head(*heads.tolist()), "lfighter", layout=HEAD).stats["kept"] == [0, 1]


def test_lfighter_reads_the_head_it_is_told():
    x = with_head([100, 0, 0, 0], [101, 0, 0, 0], [99, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0])
    # The feature matrix alternates between 100 and -100: rows 0, 2, 4 are one cluster, the larger.
    result = aggregate(x, "lfighter(head='features')", layout=HEAD)
    assert result.stats["kept"] == [0, 2, 4]


@pytest.mark.parametrize(
    ("rule", "layout", "words"),
    [
        ("lfighter", (), "layout"),
        ("lfighter(head='nowhere')", HEAD, "features, head"),
        ("lfighter(head='bias')", HEAD, "features, head"),
        ("lfighter", [("bias", (10,))], "it has none"),
    ],
)
def test_lfighter_says_which_heads_there_are(rule, layout, words):
    with pytest.raises(ConfigurationError, match=words):
        aggregate(torch.zeros(3, 10), rule, layout=layout)


def test_two_means_by_hand():
    # From 0 and 10: 4 joins 0. Means 2 and 9.5; nothing changes.
    assert two_means(column(4, 9, 0, 10)).tolist() == [True, False, True, False]
    # From 0 and 12: 0 5 | 7 12. From 0 and 13: 6 joins 0, then 3 and 13; the fixed point.
    assert two_means(column(0, 6, 13)).tolist() == [True, True, False]
    # Row 0 is in the cluster called True wherever it lies.
    assert two_means(column(13, 6, 0)).tolist() == [True, False, False]
    assert two_means(column(9, 0, 10)).tolist() == [True, False, True]
    assert two_means(column(5, 5, 5)).tolist() == [True, True, True]
    # Lloyd's second step matters: from 0 and 10 the point 5.5 joins 10, and stays; 4.9, 4.9 join 0. The means are
    # then 3.27 and 7.75, their middle 5.51: 5.5 changes sides.
    assert two_means(column(0, 4.9, 4.9, 5.5, 10)).tolist() == [True, True, True, True, False]


# -- clip ----------------------------------------------------------------------------------------


@quick
@given(matrices(), st.sampled_from([0.01, 0.7, 5.0]))
def test_clip_like_oracle(problem, c):
    x, _ = problem
    c *= float(np.linalg.norm(x, axis=1).max()) or 1.0
    for rule in ("mean", "median"):
        result = aggregate(torch.from_numpy(x), f"clip(c={c!r}) | {rule}")
        assert_value(result, oracles.RULES[rule](oracles.clipped(x, c))[0], x)


def test_clip_by_hand():
    # (3, 4) has length 5 and becomes (1.2, 1.6); (0, 1) and (0, 0) are short enough.
    result = aggregate(rows([3, 4], [0, 1], [0, 0]), "clip(c=2.0) | mean")
    np.testing.assert_allclose(result.value, [0.4, 2.6 / 3])
    np.testing.assert_allclose(result.weights, [0.4 / 3, 1 / 3, 1 / 3])
    assert result.stats["clip.clipped"] == [0]


def test_clips_follow_each_other():
    x = rows([30, 40], [0, 1])
    both = aggregate(x, "clip(c=2.0) | clip(c=0.5) | mean")
    np.testing.assert_allclose(both.value, [0.15, (0.4 + 0.5) / 2])
    np.testing.assert_allclose(both.weights, [0.01 / 2, 0.5 / 2])  # of the rows that came in
    # Krum measures what comes out of the clipping: three equal rows instead of three scattered ones.
    x = column(0, 0.3, 10, 20, 40)
    assert int(aggregate(x, "clip(c=1.0) | krum(f=1)").weights.argmax()) == 2
    assert int(aggregate(x, "krum(f=1)").weights.argmax()) == 1


# -- the fields ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("centered_clipping(tau=0)", "tau .* > 0; got .*=0"),
        ("centered_clipping(tau=True)", "tau"),
        ("centered_clipping(tau='mean')", "'median'.* got .*'mean'"),
        ("centered_clipping(tau=1.0, steps=0)", "steps must be an integer >= 1; got steps=0"),
        ("centered_clipping(tau=1.0, f=-1)", "f must be an integer >= 0; got f=-1"),
        ("clip(c=0.0) | mean", "c must be a finite number and > 0; got c=0.0"),
        ("clip(c=1e999) | mean", "finite"),
        ("faba(f=1.0)", "f must be an integer >= 0; got f=1.0"),
        ("faba(f=True)", "f must be an integer"),
        ("geometric_median(f=-1)", "f must be"),
        ("geometric_median(tolerance=0)", "tolerance"),
        ("geometric_median(nu=0)", "nu"),
        ("geometric_median(iterations=0)", "iterations"),
        ("geometric_median(maximum=0)", "maximum"),
        ("geometric_median(clamp=0.5)", "clamp must be a finite number and >= 1"),
        ("krum(f=-1)", "f must be an integer >= 0; got f=-1"),
        ("krum(f=1, variant='best')", "byzantine_momentum, byzfl, paper; got variant='best'"),
        ("mean(clamp=0.99)", "clamp"),
        ("median(f='2')", "f must be"),
        ("multi_krum(f=-2)", "f must be"),
        ("multi_krum(f=1, m=0)", "m must be an integer >= 1; got m=0"),
        ("multi_krum(f=1, variant='best')", "variant must be one of"),
        ("trimmed_mean()", "either f or fraction; got f=None, fraction=None"),
        ("trimmed_mean(f=1, fraction=0.1)", "either f or fraction"),
        ("trimmed_mean(f=-1)", "f must be"),
        ("trimmed_mean(fraction=0.5)", "fraction must be a finite number and >= 0 and < 0.5"),
        ("trimmed_mean(fraction=-0.1)", "fraction"),
    ],
)
def test_fields_outside_their_bounds_are_refused(text, words):
    with pytest.raises(ConfigurationError, match=words):
        parse(text)


@pytest.mark.parametrize("text", ["mean(weighted='no')", "geometric_median(weighted='False')", "mean(weighted=2)"])
def test_flags_are_true_or_false(text):
    with pytest.raises(ConfigurationError, match="weighted"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "smallest", "condition"),
    [
        ("mean", 1, "n >= 1"),
        ("median(f=2)", 5, r"n >= 2f \+ 1"),
        ("trimmed_mean(f=2)", 5, r"n >= 2f \+ 1"),
        ("krum(f=2)", 7, r"n >= 2f \+ 3"),
        ("multi_krum(f=2)", 7, r"n >= 2f \+ 3"),
        ("multi_krum(f=0, m=5)", 5, "n >= m = 5"),
        ("geometric_median(f=2)", 5, r"n >= 2f \+ 1"),
        ("faba(f=2)", 5, r"n >= 2f \+ 1"),
        ("centered_clipping(tau=1.0, f=2)", 5, r"n >= 2f \+ 1"),
        ("clip(c=1.0) | krum(f=2)", 7, r"n >= 2f \+ 3"),
    ],
)
def test_smallest_number_of_rows(text, smallest, condition):
    rule = parse(text)
    assert rule.check(smallest) is None
    aggregate(torch.randn(smallest, 3, generator=torch.Generator().manual_seed(0)), rule)
    if smallest > 1:
        assert f"got n={smallest - 1}" in rule.check(smallest - 1)
        with pytest.raises(InfeasibleError, match=condition):
            aggregate(torch.zeros(smallest - 1, 3), rule)


@pytest.mark.parametrize(
    ("text", "n", "words"),
    [
        ("lfighter", 1, "ask at least 2 clients$"),
        ("multi_krum(f=0, m=5)", 4, "lower m$"),
        ("trimmed_mean(fraction=0.4)", 5, "lower fraction$"),
    ],
)
def test_the_advice_names_a_field_of_the_rule(text, n, words):
    with pytest.raises(InfeasibleError, match=words):
        aggregate(torch.zeros(n, 2), text, asked=10)


# -- the one-call form ---------------------------------------------------------------------------


def test_aggregate_takes_rules_rows_and_text_alike():
    x = torch.tensor([[1.0, 2.0], [1.1, 2.1], [0.9, 1.9], [1e8, -1e8]])
    rule = parse("trimmed_mean(f=1)")
    results = [aggregate(x, rule), aggregate(x, str(rule)), aggregate(Rows.from_tensor(x), rule)]
    assert all(torch.equal(result.value, torch.tensor([1.05, 1.95])) for result in results)


def test_aggregate_hands_the_state_on():
    x = column(0, 2, 4)
    first, state = aggregate(x, "centered_clipping(tau=1.0)", state=None)
    # The moves from 0 are 0, 1, 1; from 2/3 they are -2/3, 1, 1.
    assert float(first.value) == pytest.approx(2 / 3)
    second, _ = aggregate(x, "centered_clipping(tau=1.0)", state=state)
    assert float(second.value) == pytest.approx(10 / 9)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3), torch.zeros(0, 2), torch.zeros(2, 0)],
    ids=["integers", "vector", "no rows", "no columns"],
)
def test_aggregate_refuses_what_is_no_matrix_of_floats(x):
    with pytest.raises(ConfigurationError, match="floating-point tensor"):
        aggregate(x, "mean")


def test_layout_must_cover_the_columns():
    with pytest.raises(ConfigurationError, match="layout holds 6 coordinates, but a row has 5"):
        Rows.from_tensor(torch.zeros(2, 5), layout=[Layer("w", (2, 3))])


def test_every_rule_is_exported():
    assert {"CenteredClipping", "FABA", "Krum", "Mean"} <= set(flwr_robust.aggregators.__all__)
    assert flwr_robust.aggregators.Krum(f=2) == parse("krum(f=2)")
    with pytest.raises(UnknownNameError):
        parse("crum(f=2)")
