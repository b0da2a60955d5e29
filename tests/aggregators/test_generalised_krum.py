"""generalised_krum: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import Rows, aggregate
from flwr_robust.aggregators.generalised_krum import squared_lp_distances
from tests.aggregators.problems import choose, matrices, rows
from tests.oracles import selections

quick = settings(deadline=None, max_examples=80)


NORMS = [1, 1.5, 2, 3, 16, "inf"]


@quick
@given(st.data(), st.sampled_from(NORMS))
def test_generalised_krum_like_oracle(data, p):
    x, _, f = choose(data, 3)
    scores = selections.lp_scores(x, f, p)
    result = aggregate(torch.from_numpy(x), f"generalised_krum(f={f}, p={p!r})")
    chosen = int(result.weights.argmax())
    assert result.weights.tolist() == [float(i == chosen) for i in range(len(x))]
    assert result.value.tolist() == x[chosen].tolist()
    assert scores[chosen] <= min(scores) * (1 + 1e-9)
    np.testing.assert_allclose(result.stats["scores"], scores, rtol=1e-9, atol=1e-300)


@quick
@given(st.data(), st.sampled_from([1, 2, "inf"]))
def test_generalised_krum_breaks_ties_like_oracle(data, p):
    x, _ = data.draw(matrices(3, 15, grid=True))
    f = data.draw(st.integers(0, (len(x) - 3) // 2))
    result = aggregate(torch.from_numpy(x), f"generalised_krum(f={f}, p={p!r})")
    np.testing.assert_array_equal(result.weights, selections.generalised_krum(x, f, p)[1])


def test_generalised_krum_with_p_2_is_krum():
    x = torch.randn(11, 40, generator=torch.Generator().manual_seed(1))
    assert aggregate(x, "generalised_krum(f=3)").stats == aggregate(x, "krum(f=3)").stats
    assert torch.equal(aggregate(x, "generalised_krum(f=3, p=2)").value, aggregate(x, "krum(f=3)").value)


def test_generalised_krum_norms_choose_differently():
    y = rows([0, 0], [3, 0], [-3, 0], [2, 42], [0, 40], [-2, 42])
    # n = 6, f = 1: three neighbours count, of which the third is across: rows 0 to 2 see 40, 42, 42 in the maximum.
    scores = {p: aggregate(y, f"generalised_krum(f=1, p={p!r})").stats["scores"] for p in (1, "inf")}
    # Row 0: 3, 3 and 40 to row 4 in both norms.
    assert scores[1][0] == scores["inf"][0] == 9 + 9 + 1600
    # Row 4: 4, 4 (sum) or 2, 2 (maximum), and 40 to row 0.
    assert scores[1][4] == 16 + 16 + 1600
    assert scores["inf"][4] == 4 + 4 + 1600
    assert aggregate(y, "generalised_krum(f=1, p=1)").value.tolist() == [0, 0]
    assert aggregate(y, "generalised_krum(f=1, p='inf')").value.tolist() == [0, 40]


@pytest.mark.parametrize("p", [1, 3, 16, 100, "inf"])
@pytest.mark.parametrize("size", [1e-200, 1e-30, 1.0, 1e30, 1e100])
def test_lp_distances_stay_in_range(p, size):
    # (1, 2, 2) and 0: the p-norm is (1 + 2 * 2^p)^(1/p); 2^-100 of digits below the power must not matter.
    x = size * np.array([[0.0, 0, 0], [1, 2, 2]])
    expected = 2.0 if p == "inf" else 2 * (2 + 0.5**p) ** (1 / p)
    found = squared_lp_distances(Rows.from_tensor(torch.from_numpy(x)), p)
    if size == 1e-200:
        assert torch.equal(found, torch.zeros(2, 2, dtype=torch.float64))  # the square leaves float64, to 0
        return
    np.testing.assert_allclose(found, (size * expected) ** 2 * np.array([[0, 1], [1, 0]]), rtol=1e-12)


def test_lp_distances_of_near_rows_beside_a_far_one():
    x = np.array([[1.0, 1], [1 + 1e-4, 1], [1e30, -1e30]])
    found = squared_lp_distances(Rows.from_tensor(torch.from_numpy(x)), 16)
    assert float(found[0, 1].sqrt()) == pytest.approx((1 + 1e-4) - 1, rel=1e-12)


def test_lp_distances_over_many_blocks(monkeypatch):
    x = torch.randn(6, 3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr("flwr_robust.core.segments.BLOCK_ELEMENTS", 1)
    cut = Rows.from_tensor(x)
    assert len(list(cut.blocks())) > 5
    for p in (1, 3.5, "inf"):
        expected = torch.cdist(x, x, p=math.inf if p == "inf" else float(p)).square()
        torch.testing.assert_close(squared_lp_distances(cut, p), expected, rtol=1e-10, atol=0)
