"""The measures: what no rule falls below, and what one bound says of another, each on rows that show it."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust.certificates.measures import best_bound, converted, least, spread
from flwr_robust.core.guarantees import MEASURES, Bound

POWER = {"kappa": 2, "rho": 1, "lambda": 2}


def error(measure, honest, value):
    off = float(np.linalg.norm(value - honest.mean(0)))
    return off ** POWER[measure] / spread(measure, honest)


@pytest.mark.parametrize(("n", "f"), [(5, 1), (5, 2), (10, 3), (12, 5), (20, 4), (25, 12)])
@pytest.mark.parametrize("measure", MEASURES)
def test_no_rule_has_less(measure, n, f):
    """Where h rows are 0 and f are 1, the value must be 0; then honest rows may be any n - 2f zeros and the ones."""
    honest = np.array([[0.0]] * (n - 2 * f) + [[1.0]] * f)
    assert error(measure, honest, np.zeros(1)) == pytest.approx(least(measure, n, f), rel=1e-12)


def test_the_spread_is_that_of_its_definition():
    honest = np.random.default_rng(0).standard_normal((6, 3))
    apart = [float(np.linalg.norm(row - honest.mean(0))) for row in honest]
    assert spread("kappa", honest) == pytest.approx(np.mean(np.square(apart)))
    assert spread("rho", honest) == pytest.approx(max(apart))
    pairs = [float(((a - b) ** 2).sum()) for a, b in itertools.combinations(honest, 2)]
    assert spread("lambda", honest) == pytest.approx(max(pairs))


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**9), st.integers(1, 4), st.sampled_from(list(itertools.permutations(MEASURES, 2))))
def test_a_converted_bound_holds_where_the_bound_does(seed, f, pair):
    """The value is as far off as a bound of the first measure allows: the other measure is within what is converted."""
    first, second = pair
    rng = np.random.default_rng(seed)
    n = 2 * f + int(rng.integers(2, 8))
    honest = rng.standard_normal((n - f, int(rng.integers(1, 4)))) * rng.exponential(1, (n - f, 1))
    if rng.random() < 0.3:
        honest[1:] = 0
    bound = float(rng.exponential(3))
    off = (bound * spread(first, honest)) ** (1 / POWER[first])
    reached = off ** POWER[second] / spread(second, honest)
    assert reached <= converted(Bound(first, bound, ""), second, n, f) * (1 + 1e-9)


def test_the_smallest_bound_counts_and_says_where_it_is_from():
    bounds = [Bound("kappa", 4.0, "one"), Bound("rho", 1.5, "two")]
    assert best_bound(bounds, "rho", 10, 2) == Bound("rho", 1.5, "two")
    assert best_bound([*bounds, Bound("kappa", 1.0, "three", exact=True)], "rho", 10, 2) == Bound(
        "rho", 1.0, "from kappa: three"
    )
    assert best_bound([], "kappa", 10, 2) is None
    assert best_bound([Bound("kappa", math.inf, "none")], "rho", 10, 2) is None
