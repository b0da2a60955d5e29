"""The hot loops against sorting and exact arithmetic, and the rows that feed them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError, Rows, aggregate
from flwr_robust.core import segments
from flwr_robust.kernels.gram import accumulate_gram, better_centre, pair_distances, squared_distances
from flwr_robust.kernels.network import PROGRAMS, comparators, groups
from flwr_robust.kernels.order import kept_shares, ranks

# -- order statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 41))
def test_ranks_sort(n):
    rng = np.random.default_rng(n)
    # Distinct values, ties, one huge value, signed zeros.
    block = np.hstack([rng.standard_normal((n, 6)), rng.integers(-2, 3, (n, 6)), np.zeros((n, 1)), -np.eye(n)[:, :1]])
    block[rng.integers(n), 0] = 1e30
    ordered, kept = np.sort(block, axis=0), torch.from_numpy(block.copy())
    everything = [(low, high) for low in range(n) for high in range(low + 1, n + 1)]
    if n > 12:  # all prefixes, suffixes and trims, and a sample of the rest
        chosen = [(low, high) for low, high in everything if low == 0 or high == n or low + high == n]
        everything = chosen + [everything[i] for i in rng.choice(len(everything), 25)]
    for low, high in everything:
        found = ranks(kept, low, high)
        assert found.shape == (high - low, block.shape[1])
        np.testing.assert_array_equal(found, ordered[low:high])
    np.testing.assert_array_equal(kept, block)


@pytest.mark.parametrize("n", [127, 128, 129, 200])
def test_ranks_sort_on_both_sides_of_the_switch(n):
    block = torch.from_numpy(np.random.default_rng(n).standard_normal((n, 5)))
    ordered = np.sort(block.numpy(), axis=0)
    for low, high in ((0, n), (n // 4, n - n // 4), (n // 2, n // 2 + 1), (0, 1), (n - 1, n)):
        np.testing.assert_array_equal(ranks(block, low, high), ordered[low:high])


@pytest.mark.parametrize("n", [*range(1, 70), 100, 127, 128, 130, 257])
def test_groups_sort(n):
    rng = np.random.default_rng(n)
    block = np.hstack([rng.standard_normal((n, 20)), rng.integers(0, 2, (n, 300))])  # zeros and ones find any mistake
    ordered = np.sort(block, axis=0)
    for low, high in {(0, n), (n // 5, n - n // 5), ((n - 1) // 2, n // 2 + 1), (0, 1), (n - 1, n)}:
        rows, comparisons = block.copy(), 0
        for program, places in groups(n, low, high):
            assert len(places) == 1 + max(j for _, j in PROGRAMS[program])
            assert len(set(places)) == len(places)
            for a, b in PROGRAMS[program]:
                i, j = places[a], places[b]
                rows[i], rows[j] = np.minimum(rows[i], rows[j]), np.maximum(rows[i], rows[j])
                comparisons += 1
        np.testing.assert_array_equal(rows[low:high], ordered[low:high])
        assert comparisons >= len(comparators(n, low, high))
        if high - low == n:
            assert comparisons == len(comparators(n, low, high))


def test_groups_read_fewer_rows_than_their_comparators():
    read = sum(len(rows) for _, rows in groups(100, 20, 80))
    assert read < 0.65 * 2 * len(comparators(100, 20, 80))


def test_ranks_keep_the_type_and_the_block():
    block = torch.tensor([[3.0, 1.0], [1.0, 5.0], [2.0, 4.0]], dtype=torch.float32)
    kept = block.clone()
    assert ranks(block, 1, 2).tolist() == [[2.0, 4.0]]
    assert ranks(block, 0, 3).dtype == torch.float32
    assert torch.equal(block, kept)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 140), st.integers(1, 8), st.integers(0, 2**32 - 1), st.booleans(), st.data())
def test_kept_shares_sum_to_the_columns(n, columns, seed, grid, data):
    rng = np.random.default_rng(seed)
    block = rng.integers(-2, 3, (n, columns)).astype(float) if grid else rng.standard_normal((n, columns))
    low = data.draw(st.integers(0, n - 1))
    high = data.draw(st.integers(low + 1, n))
    ordered = np.sort(block, axis=0)
    shares = kept_shares(torch.from_numpy(block), torch.from_numpy(ordered[low:high]))
    assert float(shares.sum()) == pytest.approx(columns)
    assert bool((shares >= 0).all())
    kept = (block >= ordered[low]) & (block <= ordered[high - 1])
    assert bool((shares.numpy()[~kept.any(1)] == 0).all())
    if not grid:
        np.testing.assert_allclose(shares, kept.sum(1) / (high - low))


def test_kept_shares_by_hand():
    # Column 1 keeps rows 1 and 2; in column 2 all rows are tied and share it; in column 3 rows 0 and 1 share one place.
    block = torch.tensor([[0.0, 7.0, 3.0], [1.0, 7.0, 3.0], [2.0, 7.0, 4.0], [9.0, 7.0, 5.0]])
    shares = kept_shares(block, torch.tensor([[1.0, 7.0, 3.0], [2.0, 7.0, 4.0]]))
    assert shares.tolist() == [0.5, 1.0, 1.25, 0.25]


def test_kept_shares_of_ties_are_float64():
    # Three tied rows share one place.
    block = torch.tensor([[0.0], [0.0], [0.0], [5.0]], dtype=torch.float64)
    shares = kept_shares(block, torch.tensor([[0.0], [5.0]], dtype=torch.float64))
    assert shares.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2], rel=1e-14)


# -- Gram matrix and distances -------------------------------------------------------------------


def exact_squared_distance(a, b) -> Fraction:
    return sum(((Fraction(float(p)) - Fraction(float(q))) ** 2 for p, q in zip(a, b, strict=True)), Fraction(0))


def assert_exact_distances(x: torch.Tensor, relative: float = 1e-9) -> None:
    found = Rows.from_tensor(x).squared_distances
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    assert bool((found.diagonal() == 0).all())
    for i in range(len(x)):
        for j in range(i):
            exact = exact_squared_distance(x[i], x[j])
            assert abs(Fraction(float(found[i, j])) - exact) <= Fraction(relative) * exact, (i, j)


def noise(n, d, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)))


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-4, 1e-6])
def test_distances_of_close_rows_far_from_the_origin(size):
    x = (1 + size * noise(6, 20)).float()
    assert_exact_distances(x)
    # The plain identity in float32 loses them: this is data on which it can be told.
    norms = x.square().sum(1)
    plain = norms[:, None] + norms[None, :] - 2 * x @ x.T
    exact = float(exact_squared_distance(x[0], x[1]))
    if size <= 1e-3:
        assert abs(float(plain[0, 1]) - exact) > 0.01 * exact


def test_distances_of_colluders_at_1e30():
    x = noise(7, 11).float()
    x[2] = x[5] = 1e30  # identical
    x[3] = -1e30
    x[3, 0] = 0
    assert_exact_distances(x)
    assert float(Rows.from_tensor(x).squared_distances[2, 5]) == 0
    # Nearly identical: their distance is 1e24 and cancels against 1e30.
    x[5, 4] = 1.000001e30
    assert_exact_distances(x)


def test_distances_of_a_pair_far_from_the_centre():
    x = noise(8, 5)
    x[0] = 1e6 + 1e-5 * noise(1, 5, 1)
    x[7] = 1e6 + 1e-5 * noise(1, 5, 2)
    assert_exact_distances(x)


def test_distances_when_the_centre_is_a_row_far_from_the_others():
    # The mirrored row has the median norm, so the others are close to each other and far from it.
    close = 1 + 1e-4 * noise(8, 6)
    order = close.norm(dim=1).sort().values
    mirrored = -torch.ones(6, dtype=torch.float64) / 6**0.5 * (order[3] + order[4]) / 2
    assert_exact_distances(torch.vstack([close, mirrored]))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distances_of_few_rows(n):
    assert_exact_distances(noise(n, 3))
    assert_exact_distances(torch.ones(n, 1))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(-30, 30), st.integers(0, 2**32 - 1), st.booleans())
def test_distances_are_exact(n, d, exponent, seed, double):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy((rng.choice([0.0, 1.0, 50.0]) + rng.standard_normal((n, d))) * 10.0**exponent)
    assert_exact_distances(x if double else x.float())


def test_distances_are_exact_in_integers():
    x = torch.from_numpy(np.random.default_rng(0).integers(-9, 10, (9, 30)).astype(float))
    expected = torch.tensor([[int(exact_squared_distance(a, b)) for b in x] for a in x], dtype=torch.float64)
    assert torch.equal(Rows.from_tensor(x).squared_distances, expected)


def test_distances_in_blocks():
    x = 1 + 1e-4 * noise(5, 700)
    x[4] = x[1]
    whole = Rows.from_tensor(x).squared_distances
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "BLOCK_ELEMENTS", 1)
        cut = Rows.from_tensor(x)
        torch.testing.assert_close(cut.squared_distances, whole, rtol=1e-12, atol=0)
        assert len(list(cut.blocks())) == 3


def test_gram_is_of_the_points_about_the_centre():
    x = torch.tensor([[1.0, 2.0], [4.0, 6.0], [0.0, 0.0]], dtype=torch.float64)
    # Minus row 0: (0, 0), (3, 4), (-1, -2), and the origin (-1, -2).
    expected = [[0, 0, 0, 0], [0, 25, -11, -11], [0, -11, 5, 5], [0, -11, 5, 5]]
    for cut in ([(0, x)], [(0, x[:, :1]), (1, x[:, 1:])]):
        assert accumulate_gram(cut, 3, 0).tolist() == expected


def test_squared_distances_subtract_cancelled_pairs_directly():
    # A Gram matrix that lost the distance of rows 0 and 1 to rounding; the rows still have it.
    x = torch.tensor([[1e8, 1e-3], [1e8, 0.0], [0.0, 0.0]], dtype=torch.float64)
    gram = x @ x.T
    assert float(gram[0, 0] + gram[1, 1] - 2 * gram[0, 1]) != pytest.approx(1e-6, rel=0.01)
    found = squared_distances(gram, lambda left, right: pair_distances([(0, x)], left, right))
    assert float(found[0, 1]) == pytest.approx(1e-6)


@pytest.mark.parametrize(("bad", "far"), [([0], 1e30), ([0, 1], 1e30), ([0, 3], 1e8), ([0], 10.0)])
def test_a_row_far_from_most_is_no_centre(bad, far):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 50))) * 1e-3 + 1
    x[bad] *= far
    points = torch.vstack([x, torch.zeros(50)])
    about = [better_centre((points - row) @ (points - row).T, i) for i, row in enumerate(x)]
    assert set(about).isdisjoint(bad)
    assert all(about[i] == i for i in range(7) if i not in bad)


def test_a_centre_that_will_do_is_kept():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 50)))
    points = torch.vstack([x, torch.zeros(50)]) - x[0]
    assert better_centre(points @ points.T, 0) == 0
    assert better_centre(torch.zeros(2, 2, dtype=torch.float64), 0) == 0


# -- rows ----------------------------------------------------------------------------------------


def sample_rows():
    x = torch.tensor([[3.0, 4.0], [0.0, 1.0], [-6.0, 8.0]], dtype=torch.float64)
    return x, Rows.from_tensor(x)


def test_norms():
    x, rows = sample_rows()
    assert rows.squared_norms.tolist() == [25, 1, 100]
    far = 1e6 + 1e-3 * x
    np.testing.assert_allclose(Rows.from_tensor(far).squared_norms, far.square().sum(1), rtol=1e-14)


def test_mixed_rows_know_their_distances_and_norms():
    x, rows = sample_rows()
    matrix = torch.tensor([[0.5, 0.5, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    mixed, expected = rows.mixed(matrix), matrix @ x
    assert (mixed.n, mixed.d) == (4, 2)
    np.testing.assert_allclose(torch.cat([block for _, block in mixed.blocks()], dim=1), expected)
    np.testing.assert_allclose(mixed.squared_norms, expected.square().sum(1), atol=1e-12)
    np.testing.assert_allclose(mixed.squared_distances, torch.cdist(expected, expected).square(), atol=1e-12)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    np.testing.assert_allclose(mixed.mix(weights), weights @ expected)
    # Once more, then fewer, then one more.
    again = mixed.mixed(matrix.T.contiguous())
    np.testing.assert_allclose(again.squared_norms, (matrix.T @ expected).square().sum(1), atol=1e-12)
    fewer = again.subset(torch.tensor([True, False, True]))
    np.testing.assert_allclose(fewer.slice(0, 2), (matrix.T @ expected)[[0, 2]])
    more = fewer.with_row(torch.tensor([7.0, -7.0], dtype=torch.float64))
    assert more.slice(0, 2)[2].tolist() == [7, -7]
    np.testing.assert_allclose(more.squared_norms[2], 98)


def test_subsets_and_extra_rows_with_a_reference():
    layers = [[torch.full((2, 2), float(i)), torch.full((1,), 10.0 * i)] for i in range(4)]
    rows = Rows.from_layers(layers, reference=[torch.ones(2, 2), torch.ones(1)], counts=[1, 2, 3, 4], asked=9)
    more = rows.with_row(torch.full((5,), 0.5))
    assert more.slice(0, 5)[:, [0, 4]].tolist() == [[-1, -1], [0, 9], [1, 19], [2, 29], [0.5, 0.5]]
    fewer = more.subset(torch.tensor([False, True, False, True, True]))
    assert fewer.slice(0, 5)[:, [0, 4]].tolist() == [[0, 9], [2, 29], [0.5, 0.5]]
    kept = rows.subset(torch.tensor([True, False, False, True]))
    assert kept.counts.tolist() == [1, 4]
    assert kept.asked == 9


def test_slice_crosses_layers_and_blocks():
    x = noise(3, 600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "BLOCK_ELEMENTS", 1)
        rows = Rows.from_layers([[row[:300], row[300:]] for row in x])
        for start, stop in ((0, 600), (250, 310), (299, 300), (599, 600), (0, 1)):
            assert torch.equal(rows.slice(start, stop), x[:, start:stop])


def test_a_reference_is_cut_like_the_rows():
    x, model = noise(3, 600), noise(1, 600, seed=1)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "BLOCK_ELEMENTS", 1)
        rows = Rows.from_layers([[row] for row in x], reference=[model])
        assert len(list(rows.blocks())) > 1
        assert torch.equal(rows.slice(0, 600), x - model)


def test_faulty_rows():
    x = torch.zeros(6, 3, dtype=torch.float64)
    x[1, 2], x[3, 0], x[4, 1], x[5] = torch.nan, torch.inf, -torch.inf, 1e30
    assert Rows.from_tensor(x).faulty.tolist() == [False, True, False, True, True, False]


@pytest.mark.parametrize("looks", ["norms", "distances"])
@pytest.mark.parametrize("n", [2, 5])
def test_rows_whose_squares_could_overflow_in_a_sum_are_faulty(n, looks):
    limit = torch.finfo(torch.float64).max / (8 * n * (n + 1))  # of a squared norm
    for factor, faulty in ((1 - 1e-9, False), (1 + 1e-9, True), (1e100, True)):
        x = torch.zeros(n, 3, dtype=torch.float64)
        x[-1, 1] = math.sqrt(limit) * math.sqrt(factor)
        assert bool(torch.isfinite(x).all())  # nothing but its size tells such a row
        rows = Rows.from_tensor(x)
        if looks == "distances":
            _ = rows.gram
        assert rows.faulty.tolist() == [False] * (n - 1) + [faulty]
    # What the guard is for: sums of squares of rows that pass are finite, whatever their signs.
    x = torch.full((n, 1), math.sqrt(limit * (1 - 1e-9)), dtype=torch.float64)
    x[0] *= -1
    rows = Rows.from_tensor(x)
    assert not bool(rows.faulty.any())
    assert bool(torch.isfinite(rows.squared_distances).all())
    assert math.isfinite(float(rows.squared_distances.sum()))


def test_the_value_saturates_instead_of_overflowing():
    x = torch.full((3, 2), 60000.0, dtype=torch.float16)
    rows = Rows.from_tensor(x)
    assert rows.mix(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)).tolist() == [65504, 65504]
    assert rows.mix(torch.full((3,), 1 / 3, dtype=torch.float64)).tolist() == [60000, 60000]


@pytest.mark.parametrize("width", [5, 1])
def test_layers_of_other_sizes_are_refused(width):
    with pytest.raises(ConfigurationError):
        list(Rows.from_layers([[torch.zeros(3)], [torch.zeros(width)]]).blocks())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rows.from_layers([]),
        lambda: Rows.from_tensor(torch.zeros(3, 2), counts=[1, 2]),
        lambda: Rows.from_tensor(torch.zeros(3, 2), asked=2),
    ],
    ids=["no rows", "counts", "asked"],
)
def test_rows_check_what_belongs_to_them(make):
    with pytest.raises(ConfigurationError):
        make()


def test_a_layer_of_nothing_has_no_columns():
    given = [[torch.full((2,), float(i)), torch.zeros(0), torch.full((1,), float(-i))] for i in range(3)]
    value, shares = Rows.from_layers(given).window_mean(1, 2)
    assert value.tolist() == [1, 1, -1]
    assert shares.tolist() == [0, 1, 0]


@pytest.mark.parametrize("row", [torch.ones(3), torch.ones(60), torch.ones(1, 50), None])
def test_a_row_of_another_shape_is_not_added(row):
    with pytest.raises(ConfigurationError, match=r"tensor of shape \(50,\)"):
        Rows.from_tensor(torch.randn(4, 50)).with_row(row)


@pytest.mark.parametrize("reference", [[torch.ones(3)], [torch.ones(50), torch.ones(1)], []])
def test_a_reference_of_another_shape_is_refused(reference):
    with pytest.raises(ConfigurationError, match="reference must have one row per stack"):
        Rows.from_stacks([torch.randn(4, 50)], reference=reference)


@pytest.mark.parametrize("centre", [torch.ones(3), torch.ones(60), torch.full((50,), torch.nan), None])
def test_a_state_that_does_not_fit_is_refused(centre):
    with pytest.raises(ConfigurationError, match=r"centre|added"):
        aggregate(torch.randn(4, 50), "centered_clipping(tau=1.0)", state={"centre": centre})


@pytest.mark.parametrize("rule", [5, None, ["krum(f=1)"]])
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(ConfigurationError, match="defence string or a Rule"):
        aggregate(torch.randn(4, 50), rule)
