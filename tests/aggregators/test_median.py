"""median: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from flwr_robust import aggregate, parse
from tests.aggregators.problems import assert_value, column, matrices, rows
from tests.oracles import basic

quick = settings(deadline=None, max_examples=150)


@quick
@given(matrices())
def test_median_like_oracle(problem):
    x, _ = problem
    result = aggregate(torch.from_numpy(x), "median")
    assert_value(result, basic.median(x)[0], x)
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


def test_weighted_median_by_hand():
    # In order 1, 2, 3, 9 the counts are 10, 10, 20, 20: 20 of 60 lie below 3 and 40 up to it.
    x, counts = column(9, 1, 3, 2), [20, 10, 20, 10]
    result = aggregate(x, "median(weighted=True)", counts=counts)
    assert float(result.value) == 3
    assert result.weights.tolist() == [0, 0, 1, 0]
    # With 10, 10, 5, 15 just half lies up to 2 and just half from 3 on.
    result = aggregate(x, "median(weighted=True)", counts=[15, 10, 5, 10])
    assert float(result.value) == 2.5
    assert result.weights.tolist() == [0, 0, 0.5, 0.5]
    # 1000 is lowered to twice the median of the counts, 30: in order 10, 10, 20, 30 of 70. Not lowered, 9 wins.
    counts = [1000, 10, 20, 10]
    assert float(aggregate(x, "median(weighted=True)", counts=counts).value) == 3
    assert float(aggregate(x, "median(weighted=True, clamp=1000)", counts=counts).value) == 9
    assert float(aggregate(x, "median").value) == 2.5


def test_weighted_median_bears_the_f_it_accepts():
    # Seven clients, two of which lie: 2 * 20 of 90. With three it would be 60 of 100, and is refused.
    x, counts = column(1.0, 1.1, 1.2, 1.3, 1.4, 1e8, 1e8), [10] * 5 + [10**9] * 2
    assert float(aggregate(x, "median(f=2, weighted=True)", counts=counts).value) < 2
    assert parse("median(f=3, weighted=True)").check(7) is not None
