"""Rows read where they lie against numpy, and against the way that torch takes where nothing is compiled."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import Rows, aggregate
from flwr_robust.kernels import lines as lines_module
from flwr_robust.kernels.lines import Lines

TYPES = (torch.float32, torch.float64)


def draw(n, width, relative, seed, *, wide_reference=False):
    """n rows of mixed types, some relative to a reference; and the same as one float64 array."""
    rng = np.random.default_rng(seed)
    rows = [torch.from_numpy(rng.standard_normal(width) + 3).to(TYPES[rng.integers(2)]) for _ in range(n)]
    reference = torch.from_numpy(rng.standard_normal(width)).to(TYPES[wide_reference])
    exact = np.stack([row.double().numpy() for row in rows])
    exact[:relative] -= reference.double().numpy()
    return rows, reference, exact


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 23),
    st.sampled_from([1, 2, 7, 63, 64, 65, 511, 512, 513, 1300]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.data(),
)
def test_lines_agree_with_numpy(n, width, seed, wide_reference, data):
    relative, centre = data.draw(st.integers(0, n)), data.draw(st.integers(0, n - 1))
    rows, reference, exact = draw(n, width, relative, seed, wide_reference=wide_reference)
    lines = Lines.of(rows, relative, reference)
    assert lines is not None
    points = np.vstack([exact, np.zeros(width)]) - exact[centre]
    np.testing.assert_allclose(lines.gram(centre), points @ points.T, rtol=1e-11, atol=1e-11 * width)
    np.testing.assert_allclose(lines.squared_norms(), (exact**2).sum(1), rtol=1e-12)
    left, right = torch.from_numpy(np.random.default_rng(seed).integers(0, n, (2, 5)))
    apart = exact[left] - exact[right]
    np.testing.assert_allclose(lines.pair_distances(left, right), (apart**2).sum(1), rtol=1e-11, atol=1e-12)
    point = np.random.default_rng(seed).standard_normal(width)
    measured = np.stack([((exact - point) ** 2).sum(1), exact @ point, (exact**2).sum(1)], axis=1)
    np.testing.assert_allclose(lines.against(torch.from_numpy(point)), measured, rtol=1e-11, atol=1e-11 * width)
    weights = np.random.default_rng(seed).standard_normal(n)
    value = torch.full((width,), torch.nan, dtype=torch.float64)
    lines.mix(torch.from_numpy(weights), value)
    np.testing.assert_allclose(value, weights @ exact, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.sampled_from([1, 65, 700]), st.integers(0, 2**32 - 1), st.integers(0, 1), st.data())
def test_spread_agrees_with_numpy(n, width, seed, ddof, data):
    relative = data.draw(st.integers(0, n))
    rows, reference, exact = draw(n, width, relative, seed)
    value = torch.empty(width, dtype=torch.float64)
    Lines.of(rows, relative, reference).spread(ddof, value)
    expected = exact.std(0, ddof=ddof) if n > ddof else np.zeros(width)
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12)
    whole = Rows.from_tensor(torch.from_numpy(exact))
    np.testing.assert_allclose(whole.spread(ddof), expected, rtol=1e-10, atol=1e-12)
    mixed = whole.mixed(torch.eye(n, dtype=torch.float64).flip(0))  # by way of blocks
    np.testing.assert_allclose(mixed.spread(ddof), expected, rtol=1e-10, atol=1e-12)


def test_lines_of_many_chunks_do_not_depend_on_the_threads():
    rows, reference, exact = draw(6, 200_003, 6, 0)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            lines = Lines.of(rows, 6, reference)
            value = torch.empty(200_003, dtype=torch.float64)
            lines.mix(torch.arange(6, dtype=torch.float64), value)
            found.append((lines.gram(2), lines.squared_norms(), value))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    np.testing.assert_allclose(found[0][0][:6, :6], (exact - exact[2]) @ (exact - exact[2]).T, rtol=1e-10)
    np.testing.assert_allclose(found[0][2], np.arange(6) @ exact, rtol=1e-10, atol=1e-12)


def test_a_row_that_is_not_finite_spoils_its_own_norm_and_products_only():
    rows, _, exact = draw(5, 700, 0, 1)
    rows[1][699], rows[3][0] = torch.nan, torch.inf
    lines = Lines.of(rows, 0, None)
    assert torch.isfinite(lines.squared_norms()).tolist() == [True, False, True, False, True]
    good = [0, 2, 4]
    points = exact[good] - exact[0]
    np.testing.assert_allclose(lines.gram(0)[good][:, good], points @ points.T, rtol=1e-11, atol=1e-9)


def test_rows_of_weight_zero_are_not_read():
    rows, _, exact = draw(3, 100, 0, 2)
    rows[1][:] = torch.nan
    value = torch.empty(100, dtype=torch.float64)
    Lines.of(rows, 0, None).mix(torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64), value)
    np.testing.assert_allclose(value, 0.5 * exact[0] + 2 * exact[2])


def test_sums_saturate_to_the_type_they_are_written_in():
    rows = [torch.tensor([3e38, -3e38, 1.0, torch.nan]), torch.tensor([3e38, -3e38, 2.0, 0.0])]
    lines, weights = Lines.of(rows, 0, None), torch.ones(2, dtype=torch.float64)
    narrow, wide = torch.empty(4), torch.empty(4, dtype=torch.float64)
    lines.mix(weights, narrow)
    lines.mix(weights, wide)
    most = torch.finfo(torch.float32).max
    assert narrow[:3].tolist() == [most, -most, 3.0]
    np.testing.assert_allclose(wide[:3], [6e38, -6e38, 3.0], rtol=1e-6)
    assert bool(torch.isnan(narrow[3]))
    assert bool(torch.isnan(wide[3]))


@pytest.mark.parametrize(
    "row", [torch.zeros(4, dtype=torch.float16), torch.zeros(8)[::2], torch.zeros(4, dtype=torch.int64)]
)
def test_other_rows_do_not_fit(row):
    assert Lines.of([torch.zeros(4), torch.ones(4)], 0, None) is not None
    assert Lines.of([torch.zeros(4), row], 0, None) is None


@pytest.mark.parametrize(
    "text", ["krum(f=2)", "nnm(f=2) | trimmed_mean(f=2)", "median()", "centered_clipping(tau=1.0)"]
)
def test_the_same_value_where_nothing_is_compiled(text, monkeypatch):
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((9, 333)))
    x[7:] += 2
    layers = [list(row.float().split([33, 300])) for row in x]
    reference = [torch.ones(33), torch.ones(300)]

    def run():
        from flwr_robust import parse

        return parse(text)(Rows.from_layers(layers, reference=reference))[0]

    compiled = run(), aggregate(x, text)
    monkeypatch.setattr(lines_module, "usable", lambda: False)
    assert Lines.of([x[0]], 0, None) is None
    for one, other in zip(compiled, (run(), aggregate(x, text)), strict=True):
        np.testing.assert_allclose(one.value, other.value, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(one.weights, other.weights, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 9),
    st.lists(st.integers(1, 90), min_size=1, max_size=4),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1e-12, 1e-6, 1e-3, 0.1, 1.0, 1e8]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64, torch.float16]),
)
def test_distances_from_a_point_do_not_cancel(n, widths, seed, spread, shifted, dtype):
    """Rows at every distance from the point, from equal to it to far off, in several layers."""
    rng = np.random.default_rng(seed)
    point = torch.from_numpy(rng.standard_normal(sum(widths))).to(dtype)
    base = point.double().numpy()
    reference = rng.standard_normal(len(base)) if shifted else np.zeros(len(base))
    each = base + spread * rng.standard_normal((n, len(base))) * rng.integers(0, 2, (n, 1))
    edges = np.cumsum([0, *widths])
    cut = [slice(a, b) for a, b in itertools.pairwise(edges)]
    held = [[torch.from_numpy((row + reference)[part]) for part in cut] for row in each]
    rows = Rows.from_layers(held, reference=[torch.from_numpy(reference[part]) for part in cut] if shifted else None)
    exact = (each + reference) - reference if shifted else each
    apart, products, own = rows.against(point).T.numpy()
    np.testing.assert_allclose(apart, ((exact - base) ** 2).sum(1), rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(own, (exact**2).sum(1), rtol=1e-12)
    np.testing.assert_allclose(products, exact @ base, rtol=1e-9, atol=1e-11 * np.abs(exact @ base).max())


def test_distances_of_infinite_and_huge_rows_are_what_they_were():
    x = torch.tensor([[1e200, 0.0], [float("nan"), 0.0], [float("inf"), 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = Rows.from_layers([[row] for row in x]).against(torch.ones(2))
    assert found[3].tolist() == [0.0, 2.0, 2.0]
    assert torch.isinf(found[0, 0])
    assert torch.isnan(found[1]).all()
    assert torch.isinf(found[2, 0])
