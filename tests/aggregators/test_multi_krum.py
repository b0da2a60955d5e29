"""multi_krum: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import InfeasibleError, aggregate
from tests.aggregators.problems import LINE, VARIANTS, assert_value, choose, column
from tests.oracles import basic

quick = settings(deadline=None, max_examples=150)


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
    scores = basic.krum_scores(x, f, variant)
    assert sorted(scores)[:size] == pytest.approx(sorted(scores[i] for i in chosen), rel=1e-9)
    if grid and variant != "byzantine_momentum":
        assert chosen.tolist() == basic.best(scores, size)


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


# -- weighted ----------------------------------------------------------------------------------------


@quick
@given(st.data(), st.sampled_from([2.0, 1e9]), st.booleans())
def test_weighted_multi_krum_like_oracle(data, clamp, bounded):
    x, _, f = choose(data, 3)
    counts = np.random.default_rng(len(x)).integers(1, 100, len(x)).astype(float)
    most = max(f, 1) / len(x) + 0.1 if bounded else None
    rule = f"multi_krum(f={f}, weighted=True, clamp={clamp}, most={most})"
    result = aggregate(torch.from_numpy(x), rule, counts=counts)
    chosen = np.flatnonzero(result.weights)
    held = basic.bounded(counts, clamp, most, f)[chosen]
    assert len(chosen) == len(x) - f
    np.testing.assert_allclose(result.weights[chosen], held / held.sum(), rtol=1e-6)
    assert chosen.tolist() == np.flatnonzero(aggregate(torch.from_numpy(x), f"multi_krum(f={f})").weights).tolist()


def test_weighted_multi_krum_by_hand():
    # The point 0 is left out, whatever it claims; the others by their numbers: (1 + 6 + 2 * 7 + 8 + 10) / 6.
    counts = [1000, 1, 1, 2, 1, 1]
    result = aggregate(column(*LINE), "multi_krum(f=1, weighted=True)", counts=counts)
    assert float(result.value) == pytest.approx(39 / 6)
    # A claim of a chosen row counts as much as the bound says: U = 0.5 (U + 1006), so 1006 of 1012 among those chosen.
    counts = [1000, 1e9, 1, 2, 1, 2]
    result = aggregate(column(*LINE), "multi_krum(f=1, weighted=True, clamp=1e9, most=0.5)", counts=counts)
    assert float(result.value) == pytest.approx((1006 + 6 + 14 + 8 + 20) / 1012)


def test_weighted_multi_krum_is_flowers():
    flwr = pytest.importorskip("flwr.app")
    strategy = pytest.importorskip("flwr.serverapp.strategy.multikrum")
    x = np.random.default_rng(5).standard_normal((9, 20))
    counts = [5, 80, 3, 3, 40, 12, 7, 9, 21]
    contents = [
        flwr.RecordDict({"arrays": flwr.ArrayRecord([row]), "metrics": flwr.MetricRecord({"num-examples": count})})
        for row, count in zip(x, counts, strict=True)
    ]
    for m in (1, 4, 7):
        selected = strategy.select_multikrum(contents, num_malicious_nodes=2, num_nodes_to_select=m)
        theirs = strategy.aggregate_arrayrecords(selected, "num-examples").to_numpy_ndarrays()[0]
        ours = aggregate(torch.from_numpy(x), f"multi_krum(f=2, m={m}, weighted=True, clamp=1e9)", counts=counts)
        np.testing.assert_allclose(ours.value, theirs, rtol=1e-12)
