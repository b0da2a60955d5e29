"""trimmed_mean: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import InfeasibleError, aggregate, parse
from tests.aggregators.problems import assert_value, choose, column, rows
from tests.oracles import basic

quick = settings(deadline=None, max_examples=150)


@quick
@given(st.data())
def test_trimmed_mean_like_oracle(data):
    x, _, f = choose(data, 1)
    result = aggregate(torch.from_numpy(x), f"trimmed_mean(f={f})")
    assert_value(result, basic.trimmed_mean(x, f)[0], x)
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


def test_weighted_trimmed_mean_by_hand():
    # 1, 2, 4 are left, with counts 10, 20, 30 of rows 3, 1, 0: (10 + 40 + 120) / 60.
    x, counts = column(4, 2, -100, 1, 100), [30, 20, 20, 10, 20]
    result = aggregate(x, "trimmed_mean(f=1, weighted=True)", counts=counts)
    assert float(result.value) == pytest.approx(17 / 6)
    np.testing.assert_allclose(result.weights, [0.5, 1 / 3, 0, 1 / 6, 0])
    # A count of 1000 buys twice the median count, no more: 40, 20, 10.
    lied = aggregate(x, "trimmed_mean(f=1, weighted=True)", counts=[1000, 20, 20, 10, 20])
    assert float(lied.value) == pytest.approx((160 + 40 + 10) / 70)
    # And nothing at all for a value that is dropped: the others' shares are as before.
    far = aggregate(x, "trimmed_mean(f=1, weighted=True)", counts=[30, 20, 20, 10, 1000])
    assert float(far.value) == pytest.approx(17 / 6)
    # Of the two ones at the edge the lower row is dropped, and its count with it.
    tied = aggregate(column(1, 1, 2, 3), "trimmed_mean(f=1, weighted=True)", counts=[9, 10, 20, 15])
    assert float(tied.value) == pytest.approx(50 / 30)
