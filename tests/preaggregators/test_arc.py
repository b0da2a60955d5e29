"""ARC: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import aggregate
from tests.aggregators.problems import assert_like, column, small_matrices
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


@quick
@given(small_matrices(), st.data())
def test_arc_like_oracle(x, data):
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    weights = similarities.arc(x, f).diagonal() / len(x)
    assert_like(aggregate(torch.from_numpy(x), f"arc(f={f}) | mean"), (weights @ x, weights), x)


@pytest.mark.parametrize(("f", "clipped", "radius"), [(0, [], 5), (1, [2], 4), (2, [0, 2], 3)])
def test_arc_by_hand(f, clipped, radius):
    # Norms 4, 1, 5, 3, 2. k = floor(2 f (5 - f) / 5): 0, floor(1.6) = 1, floor(2.4) = 2.
    result = aggregate(column(4, -1, 5, 3, 2), f"arc(f={f}) | mean")
    assert result.stats == {"arc.radius": radius, "arc.clipped": clipped}
    assert float(result.value) == pytest.approx((min(4, radius) - 1 + radius + 3 + 2) / 5)


def test_arc_counts_in_integers():
    # 2 f (n - f) / n = 2 * 3 * 12 / 15 = 4.8, and 2 * 5 * 20 / 25 = 8 exactly, which 2 * (5 / 25) * 20 might miss.
    for n, f, k in ((15, 3, 4), (25, 5, 8)):
        result = aggregate(torch.arange(1.0, n + 1)[:, None], f"arc(f={f}) | mean")
        assert len(result.stats["arc.clipped"]) == k


def test_arc_shortens_one_huge_row():
    x = torch.ones(9, 4)
    x[3] = 1e30
    assert float((aggregate(x, "arc(f=1) | mean").value - 1).abs().max()) < 1e-6


def test_arc_leaves_zeros_alone():
    assert aggregate(torch.zeros(5, 2), "arc(f=2) | mean").value.tolist() == [0, 0]
