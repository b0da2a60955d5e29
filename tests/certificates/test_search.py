"""The search: ratios by hand, the same result for the same seed, and worst cases that it must find."""

import math

import numpy as np
import pytest

from flwr_robust import parse
from flwr_robust.certificates.search import Problem, search
from flwr_robust.certificates.starts import clustered


def problem(rule, n, f, measure="kappa"):
    return Problem(parse(rule, f=f), n, f, measure)


@pytest.mark.parametrize(("measure", "expected"), [("kappa", 0.25), ("rho", 0.5), ("lambda", 1 / 16)])
def test_a_ratio_by_hand(measure, expected):
    """The honest rows are -1, 1, their mean 0; the median of -1, 1, 1/2 is 1/2."""
    rows = np.array([[-1.0], [1.0], [0.5]])
    assert problem("median", 3, 1, measure).ratios(rows) == (pytest.approx(expected), 0.0)


def test_equal_honest_rows_give_infinity_or_nothing():
    rows = np.array([[2.0], [2.0], [2.0], [5.0]])
    assert problem("mean", 4, 1).ratios(rows)[0] == math.inf
    assert problem("median", 4, 1).ratios(rows)[0] == 0


def test_nearly_equal_rows_far_out_are_rounding_and_do_not_count():
    rows = np.array([[1e9], [1e9 + 1e-3], [1e9], [0.0]])
    assert problem("median", 4, 1).ratios(rows)[0] == 0


def test_a_rule_that_draws_is_averaged():
    one = problem("bucketing(s=2) | median", 7, 1)
    assert one.draws()
    assert not problem("krum", 7, 1).draws()
    assert not problem("dnc", 7, 1).draws()  # it takes all of so few coordinates
    rows = np.random.default_rng(0).standard_normal((7, 2))
    single = [one.ratios(rows, (seed,))[0] for seed in range(30)]
    mean, error = one.ratios(rows, range(30))
    assert mean == pytest.approx(np.mean(single))
    assert error == pytest.approx(np.std(single, ddof=1) / math.sqrt(30))


def test_the_error_of_rho_is_that_of_a_root():
    one = problem("bucketing(s=2) | median", 7, 1, "rho")
    rows = np.random.default_rng(0).standard_normal((7, 2))
    squares = [one.ratios(rows, (seed,))[0] ** 2 for seed in range(200)]
    mean, error = one.ratios(rows, range(200))
    assert mean == pytest.approx(math.sqrt(np.mean(squares)))
    assert error == pytest.approx(np.std(squares, ddof=1) / math.sqrt(200) / (2 * mean))


def test_the_same_seed_finds_the_same():
    first, second = (search(problem("krum", 7, 1), drawn=False, evaluations=500, seconds=600, seed=3) for _ in range(2))
    assert (first.rows == second.rows).all()
    assert first.ratio == second.ratio
    assert 480 <= first.evaluations <= 520


def test_the_time_ends_a_search():
    found = search(problem("krum", 7, 1), drawn=False, evaluations=10**6, seconds=0.5, seed=0)
    assert found.evaluations < 10**4


@pytest.mark.slow
def test_the_worst_of_krum_is_beyond_a_line():
    """Honest rows that stand apart at right angles to each other are worse for it than any start on a line."""
    one = problem("krum", 12, 2)
    found = search(one, drawn=False, evaluations=3000, seconds=600, seed=0)
    rng = np.random.default_rng(0)
    on_line = max(one.ratios(rows)[0] for rows in clustered(12, 2, 1, rng))
    assert found.ratio > 1.01 * on_line
    assert 1 < found.rows.shape[1] <= 12 + 2
