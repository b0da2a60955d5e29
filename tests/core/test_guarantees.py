"""Bounds that rules and steps state: closed forms by hand, published ones above them, and what pipelines pass on."""

import math

import pytest

from flwr_robust import parse
from flwr_robust.aggregators.meamed import nearest_kappa
from flwr_robust.aggregators.trimmed_mean import trimmed_kappa
from flwr_robust.core.guarantees import MEASURES
from flwr_robust.core.rule import aggregators

PAIRS = [(n, f) for n in (5, 7, 10, 12, 20, 25, 101) for f in range(1, (n + 1) // 2)]


def kappa(text, n, f):
    (bound,) = parse(text, f=f).bounds(n, f)
    assert bound.measure == "kappa"
    return bound.value


@pytest.mark.parametrize(("n", "f"), PAIRS)
def test_the_closed_forms(n, f):
    middle = (n - 1) // 2
    assert trimmed_kappa(n, f, f) == f / (n - 2 * f) == kappa("trimmed_mean", n, f)
    assert kappa("median", n, f) == pytest.approx(
        (n - 1) / (n + 1 - 2 * f) if n % 2 else (n - 2) / (n + 2 - 2 * f), rel=1e-12
    )
    assert kappa("phocas", n, f) == pytest.approx(4 * f / (n - 2 * f), rel=1e-12)
    p = n // 2 + 1
    assert kappa("meamed", n, f) == pytest.approx(4 * f * p / ((n - f) * (p - f)), rel=1e-12)
    if 2 * f + 1 == n:  # the centre of both is the median
        assert kappa("phocas", n, f) == pytest.approx(kappa("meamed", n, f))
        assert trimmed_kappa(n, f, middle) == kappa("trimmed_mean", n, f)


@pytest.mark.parametrize(("n", "f"), PAIRS)
def test_no_bound_is_above_the_published_one_nor_below_what_is_possible(n, f):
    ratio = f / (n - 2 * f)
    published = {
        "trimmed_mean": 6 * ratio * (1 + ratio),
        "median": 4 * (1 + ratio) ** 2,
        "smea": 4 * f * (n - f) / (n - 2 * f) ** 2,
    }
    for text, value in published.items():
        assert kappa(text, n, f) <= value * (1 + 1e-12), text
    for name in ("trimmed_mean", "median", "meamed", "phocas", "smea", "geometric_median"):
        assert kappa(name, n, f) >= ratio * (1 - 1e-12), name
    if n >= 2 * f + 3:
        assert kappa("multi_krum", n, f) >= ratio * (1 - 1e-12)
        assert kappa("krum", n, f) >= ratio * (1 - 1e-12)


def test_faulty_rows_beyond_those_dropped_have_no_bound():
    assert kappa("trimmed_mean(f=2)", 20, 3) == math.inf
    assert nearest_kappa(20, 0, 11) == 0
    assert [bound.measure for bound in parse("mean").bounds(20, 1)] == list(MEASURES)
    assert all(bound.value == math.inf for bound in parse("mean").bounds(20, 1))
    assert not parse("mean").bounds(20, 0)


def test_a_step_adds_its_own_and_one_that_changes_n_passes_nothing_on():
    (alone,) = parse("krum(f=2)").bounds(12, 2)
    (mixed,) = parse("nnm(f=2) | krum(f=2)").bounds(12, 2)
    (clipped,) = parse("arc(f=2) | krum(f=2)").bounds(12, 2)
    (both,) = parse("arc(f=2) | nnm(f=2) | krum(f=2)").bounds(12, 2)
    assert mixed.value == pytest.approx(8 * 2 / 10 * (alone.value + 1))
    assert clipped.value == pytest.approx(alone.value + 2 * 2 / 8)
    assert both.value == pytest.approx(mixed.value + 2 * 2 / 8)
    assert alone.source in mixed.source
    assert not parse("bucketing(s=2) | median(f=2)").bounds(12, 2)
    assert not parse("clip(c=1.0) | median(f=2)").bounds(12, 2)
    assert not parse("nnm(f=2) | mean()").bounds(12, 2)


def test_every_bound_names_its_source():
    for name in ("median", "krum", "multi_krum", "faba", "minimum_diameter", "smea", "phocas", "geometric_median"):
        for bound in aggregators.build(name, {"f": 2}).bounds(12, 2):
            assert len(bound.source) > 10
            assert bound.measure in MEASURES
