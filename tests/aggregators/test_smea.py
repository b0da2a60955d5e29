"""SMEA: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flwr_robust import InfeasibleError, aggregate, parse
from tests.aggregators.problems import assert_like, column, rows, small_matrices
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


@quick
@given(small_matrices(least=3, most=9), st.data())
def test_smea_like_oracle(x, data):
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    values = sorted(
        similarities.largest_eigenvalue(x[list(s)]) for s in itertools.combinations(range(len(x)), len(x) - f)
    )
    assume(len(values) == 1 or values[1] > values[0] * (1 + 1e-7))  # ties have their own test
    result = aggregate(torch.from_numpy(x), f"smea(f={f})")
    assert_like(result, similarities.smea(x, f), x)
    assert result.stats["eigenvalue"] == pytest.approx(values[0], rel=1e-8)


def test_smea_by_hand():
    # P = R = (0, 0), Q = (10, 0), S = (5, 9.2). {P, Q, R} has the least diameter, 10, but lies along one line with
    # variance 2 * 100 / 9 = 22.2. {P, Q, S} is wider, 10.47, and rounder: 16.7 along x, 2 * 9.2^2 / 9 = 18.81 along y.
    # {Q, R, S} is the same triangle; {P, R, S} has 2 * 10.47^2 / 9 = 24.4.
    x = rows([0, 0], [10, 0], [0, 0], [5, 9.2])
    result = aggregate(x, "smea(f=1)")
    assert result.stats["kept"] == [0, 1, 3]
    assert result.stats["eigenvalue"] == pytest.approx(2 * 9.2**2 / 9)
    np.testing.assert_allclose(result.value, [5, 9.2 / 3])


def test_smea_gives_a_tie_to_the_first_subset():
    # Dropping -1 or 1 leaves two points at distance 1.
    assert aggregate(column(-1, 0, 1), "smea(f=1)").stats["kept"] == [0, 1]
    # However the sums are rounded: thirds, and rows that repeat.
    third = 1 / 3
    x = rows(*[[third * i, -third * i, 0.1] for i in (0, 1, 2, 0, 1, 2)])
    assert aggregate(x, "smea(f=2)").stats["kept"] == [0, 1, 3, 4]
    assert aggregate(torch.full((7, 3), third), "smea(f=3)").stats["kept"] == [0, 1, 2, 3]


def test_smea_refuses_too_many_subsets():
    assert parse("smea(f=5)").check(20) is None  # 15504
    assert parse("smea(f=10)").check(40) == (
        "smea looks at no more than maximum=100000 subsets; got n=40, f=10, which make 847660528: "
        "lower f, raise maximum or take caf(f=10)"
    )
    with pytest.raises(InfeasibleError, match="maximum=3 subsets; got n=4, f=1, which make 4"):
        aggregate(torch.zeros(4, 2), "smea(f=1, maximum=3)")
    aggregate(torch.zeros(4, 2), "smea(f=1, maximum=4)")
