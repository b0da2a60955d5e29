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
