"""minimum_diameter: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import InfeasibleError, aggregate, parse
from flwr_robust.aggregators.minimum_diameter import densest_subset
from tests.aggregators.problems import assert_value, column, matrices
from tests.oracles import selections

quick = settings(deadline=None, max_examples=80)


@quick
@given(matrices(1, 11), st.data())
def test_minimum_diameter_like_oracle(problem, data):
    x, _ = problem
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    result = aggregate(torch.from_numpy(x), f"minimum_diameter(f={f})")
    value, weights = selections.minimum_diameter(x, f)
    kept = weights.nonzero()[0].tolist()
    assert result.stats["diameter"] ** 2 == pytest.approx(selections.diameter(x, kept), rel=1e-9)
    if result.stats["kept"] != kept:  # rounding may tell two subsets apart whose diameters agree on paper
        assert x.shape[1] < 3
        return
    assert_value(result, value, x)
    np.testing.assert_allclose(result.weights, weights)


@quick
@given(matrices(1, 11, grid=True), st.data())
def test_minimum_diameter_breaks_ties_like_oracle(problem, data):
    x, _ = problem
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    result = aggregate(torch.from_numpy(x), f"minimum_diameter(f={f})")
    assert result.stats["kept"] == selections.minimum_diameter(x, f)[1].nonzero()[0].tolist()


def test_minimum_diameter_by_hand():
    # Triples of 0, 1, 4, 5, 7: {4, 5, 7} spans 3, all others at least 4.
    result = aggregate(column(0, 1, 4, 5, 7), "minimum_diameter(f=2)")
    assert result.stats == {"kept": [2, 3, 4], "diameter": 3}
    assert float(result.value) == pytest.approx(16 / 3)
    # Quadruples: {0, 1, 4, 5} spans 5, {1, 4, 5, 7} spans 6.
    assert aggregate(column(0, 1, 4, 5, 7), "minimum_diameter(f=1)").stats["kept"] == [0, 1, 2, 3]
    assert float(aggregate(column(0, 1, 4, 5, 7), "minimum_diameter(f=0)").value) == pytest.approx(3.4)


def test_minimum_diameter_gives_ties_to_the_lowest_indices():
    # {0, 1, 2}, {1, 2, 3}, {2, 3, 4} all span 2. Reversed it is another subset, and another value.
    assert aggregate(column(0, 1, 2, 3, 4), "minimum_diameter(f=2)").stats["kept"] == [0, 1, 2]
    assert float(aggregate(column(0, 1, 2, 3, 4), "minimum_diameter(f=2)").value) == pytest.approx(1)
    assert float(aggregate(column(4, 3, 2, 1, 0), "minimum_diameter(f=2)").value) == pytest.approx(3)


@pytest.mark.parametrize(("n", "f"), [(41, 20), (60, 20), (300, 10), (1000, 3)])
def test_minimum_diameter_search_is_quick(n, f):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 8))
    x[:f] += 3  # colluders on the rim: the hardest to tell
    squared = torch.cdist(torch.from_numpy(x), torch.from_numpy(x)).square().fill_diagonal_(0)
    kept, spread = densest_subset((squared + squared.T) / 2, n - f)
    assert len(kept) == n - f
    assert spread <= float(squared[f:, f:].max().sqrt()) + 1e-12
    assert spread == pytest.approx(float(squared[kept][:, kept].max().sqrt()))


def test_minimum_diameter_refuses_a_search_that_may_not_end():
    rule = parse("minimum_diameter(f=21)")
    sentence = rule.check(100)
    assert sentence == (
        "minimum_diameter searches up to 2^f subsets, and maximum_subsets=1048576 allows f <= 20; got n=100, f=21: "
        "lower f, raise maximum_subsets, or take a rule without a search, such as faba"
    )
    with pytest.raises(InfeasibleError, match="maximum_subsets"):
        aggregate(torch.zeros(100, 2), rule)
    assert parse("minimum_diameter(f=20)").check(100) is None
    assert parse("minimum_diameter(f=21, maximum_subsets=2097152)").check(100) is None
    assert parse("minimum_diameter(f=3, maximum_subsets=7)").check(9).startswith("minimum_diameter searches")
    # Too few rows come first.
    assert "n >= 2f + 1; got n=42, f=21" in rule.check(42)
