"""CGE: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flwr_robust import aggregate
from tests.aggregators.problems import assert_value, choose, column, rows
from tests.oracles import selections

quick = settings(deadline=None, max_examples=80)


@quick
@given(st.data())
def test_cge_like_oracle(data):
    x, _, f = choose(data, 1)
    lengths = np.sort((x**2).sum(1))
    assume(f == 0 or lengths[-f] > lengths[-f - 1] * (1 + 1e-12) or lengths[-f] == lengths[-f - 1])
    result = aggregate(torch.from_numpy(x), f"cge(f={f})")
    value, weights = selections.cge(x, f)
    np.testing.assert_allclose(result.weights, weights)
    assert_value(result, value, x)


def test_cge_by_hand():
    # Norms 5, 1, 2, 3, 13.
    x = rows([3, 4], [0, 1], [-2, 0], [0, -3], [5, 12])
    assert aggregate(x, "cge(f=1)").value.tolist() == [0.25, 0.5]
    result = aggregate(x, "cge(f=2)")
    np.testing.assert_allclose(result.value, [-2 / 3, -2 / 3])
    assert result.stats["kept"] == [1, 2, 3]
    # Equal norms: the highest index goes.
    assert aggregate(rows([1, 0], [0, 1], [-1, 0]), "cge(f=1)").stats["kept"] == [0, 1]


def test_cge_does_not_see_directions():
    # What the docstring admits: a short row is kept, wherever it points; Krum-like rules would drop it.
    x = column(1, 1.1, 1.2, -0.9, 1.3)
    assert float(aggregate(x, "cge(f=1)").value) == pytest.approx((1 + 1.1 + 1.2 - 0.9) / 4)
    assert float(aggregate(x, "faba(f=1)").value) == pytest.approx(1.15)
