"""Tests over several rules: fields, smallest numbers of rows, rows of any size, the one-call form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flwr_robust
from flwr_robust import ConfigurationError, InfeasibleError, Rows, UnknownNameError, aggregate, parse
from flwr_robust.core.rows import Layer
from tests.aggregators.problems import assert_like, assert_value, choose, column, matrices, rows, small_matrices
from tests.oracles import basic, selections, similarities

quick = settings(deadline=None, max_examples=80)


@pytest.mark.parametrize(
    "rule",
    [
        "mean(weighted=True)",
        "geometric_median(weighted=True)",
        "median(weighted=True)",
        "trimmed_mean(f=1, weighted=True)",
    ],
)
@pytest.mark.parametrize("counts", [None, [1, 2, 0], [1, 2, -1], [1, 2, math.nan], [1, 2, math.inf]])
def test_weighted_rules_need_positive_counts(rule, counts):
    with pytest.raises(ConfigurationError, match="counts"):
        aggregate(column(0, 1, 2), rule, counts=counts)


@pytest.mark.parametrize("rule", ["trimmed_mean(f=1)", "median"])
@pytest.mark.parametrize("values", [(0, 1, 2, 5, 9), (0, 0, 1, 2, 3), (0, 1, 1, 1, 7), (0, 1, 2, 2, 2)])
def test_kept_shares_give_the_value_of_one_column(rule, values):
    # With one column the kept shares are the coefficients of the rows, ties or not.
    result = aggregate(column(*values), rule)
    assert float(result.weights @ column(*values)[:, 0]) == pytest.approx(float(result.value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("centered_clipping(tau=0)", "tau .* > 0; got .*=0"),
        ("centered_clipping(tau=True)", "tau"),
        ("centered_clipping(tau='mean')", "'median'.* got .*'mean'"),
        ("centered_clipping(tau=1.0, steps=0)", "steps must be an integer >= 1; got steps=0"),
        ("centered_clipping(tau=1.0, f=-1)", "f must be an integer >= 0; got f=-1"),
        ("clip(c=0.0) | mean", "c must be 'median' or 'quantile' or a finite number and > 0; got c=0.0"),
        ("clip(c=1e999) | mean", "finite"),
        ("faba(f=1.0)", "f must be an integer >= 0; got f=1.0"),
        ("faba(f=True)", "f must be an integer"),
        ("geometric_median(f=-1)", "f must be"),
        ("geometric_median(tolerance=0)", "tolerance"),
        ("geometric_median(nu=0)", "nu"),
        ("geometric_median(iterations=0)", "iterations"),
        ("geometric_median(maximum=0)", "maximum"),
        ("geometric_median(clamp=0.5)", "clamp must be a finite number and >= 1"),
        ("krum(f=-1)", "f must be an integer >= 0; got f=-1"),
        ("krum(f=1, variant='best')", "byzantine_momentum, byzfl, paper; got variant='best'"),
        ("mean(clamp=0.99)", "clamp"),
        ("median(f='2')", "f must be"),
        ("multi_krum(f=-2)", "f must be"),
        ("multi_krum(f=1, m=0)", "m must be an integer >= 1; got m=0"),
        ("multi_krum(f=1, variant='best')", "variant must be one of"),
        ("trimmed_mean()", "either f or fraction; got f=None, fraction=None"),
        ("trimmed_mean(f=1, fraction=0.1)", "either f or fraction"),
        ("trimmed_mean(f=-1)", "f must be"),
        ("trimmed_mean(fraction=0.5)", "fraction must be a finite number and >= 0 and < 0.5"),
        ("trimmed_mean(fraction=-0.1)", "fraction"),
        ("bulyan(f=-1)", "bulyan: f must be an integer >= 0; got f=-1"),
        ("bulyan(f=1, selection='crumb')", "unknown aggregator 'crumb'"),
        ("bulyan(f=1, selection='krum(g=1)')", "unknown field of krum 'g'"),
        ("bulyan(f=1, selection='krum | clip(c=1.0)')", "pre-aggregator"),
        ("bulyan(f=1, selection='')", "bulyan's selection: expected text"),
        ("bulyan(f=1, selection=3)", "bulyan: selection must be a defence string; got selection=3"),
        ("bulyan(f=1, selection='norm_bound')", "norm_bound: c must be given"),
        ("bulyan(f=1, aggregation='crumb')", "unknown aggregator 'crumb'"),
        ("bulyan(f=1, aggregation='')", "bulyan's aggregation: expected text"),
        ("cge(f=0.5)", "cge: f must be an integer >= 0; got f=0.5"),
        ("clip_mean(f=-2)", "clip_mean: f must be"),
        ("dnc(f=-1)", "dnc: f must be"),
        ("dnc(f=1, c=0)", "dnc: c must be a finite number and > 0; got c=0"),
        ("dnc(f=1, iterations=0)", "iterations must be an integer >= 1"),
        ("dnc(f=1, sub_dimension=0)", "sub_dimension must be an integer >= 1"),
        ("dnc(f=1, seed=-1)", "seed must be an integer >= 0"),
        ("generalised_krum(f=-1)", "generalised_krum: f must be"),
        ("generalised_krum(f=1, p=0.5)", "p must be 'inf' or a finite number and >= 1 and <= 100; got p=0.5"),
        ("generalised_krum(f=1, p=1e999)", "finite"),
        ("generalised_krum(f=1, p='max')", "'inf'.*got .*'max'"),
        ("meamed(f=True)", "meamed: f must be an integer"),
        ("minimum_diameter(f=-1)", "minimum_diameter: f must be"),
        ("minimum_diameter(f=1, maximum_subsets=0)", "maximum_subsets must be an integer >= 1"),
        ("monna(f='1')", "monna: f must be"),
        ("norm_bound(c=0)", "norm_bound: c must be a finite number and > 0; got c=0"),
        ("norm_bound(c=1.0, f=-1)", "norm_bound: f must be"),
        ("norm_bound", "norm_bound: c must be given"),
        ("phocas(f=-1)", "phocas: f must be"),
        ("sign_majority(scale=-1)", "sign_majority: scale must be a finite number and > 0"),
        ("sign_majority(f=-1)", "sign_majority: f must be"),
        ("nnm(f=-1) | mean", "nnm: f must be an integer >= 0; got f=-1"),
        ("arc(f=0.5) | mean", "arc: f must be an integer >= 0; got f=0.5"),
        ("bucketing(s=0) | mean", "bucketing: s must be an integer >= 1; got s=0"),
        ("bucketing(s=2, seed='x') | mean", "seed must be an integer"),
        ("bucketing() | mean", "s must be given"),
        ("resampling(s=0) | mean", "resampling: s must be an integer >= 1; got s=0"),
        ("smea(f=True)", "smea: f must be an integer"),
        ("smea(f=1, maximum=0)", "maximum must be an integer >= 1"),
        ("caf(f=-2)", "caf: f must be an integer >= 0"),
        ("clustering(linkage='ward')", "linkage must be one of average, complete, single; got linkage='ward'"),
        ("clipped_clustering(linkage=1)", "linkage must be one of"),
        ("signguard(lower=1.1)", "lower must be a finite number and >= 0 and <= 1"),
        ("signguard(upper=0.9)", "upper must be a finite number and >= 1"),
        ("signguard(share=0)", "share must be a finite number and > 0 and <= 1"),
        ("signguard(seed=-1)", "seed must be an integer >= 0"),
        ("foolsgold(confidence=0)", "confidence must be a finite number and > 0"),
        ("flame(noise=-0.1)", "noise must be a finite number and >= 0"),
        ("flame(seed=0.5)", "seed must be an integer"),
        ("fltrust(f=1)", "unknown field of fltrust 'f'"),
        ("median(weighted='no')", "median: weighted must be True or False; got weighted='no'"),
        ("median(clamp=0.5)", "clamp must be a finite number and >= 1"),
        ("trimmed_mean(f=1, weighted=1)", "trimmed_mean: weighted must be True or False; got weighted=1"),
        ("trimmed_mean(f=1, clamp=0)", "clamp must be"),
    ],
)
def test_fields_outside_their_bounds_are_refused(text, words):
    with pytest.raises(ConfigurationError, match=words):
        parse(text)


@pytest.mark.parametrize("text", ["mean(weighted='no')", "geometric_median(weighted='False')", "mean(weighted=2)"])
def test_flags_are_true_or_false(text):
    with pytest.raises(ConfigurationError, match="weighted"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "smallest", "condition"),
    [
        ("mean", 1, "n >= 1"),
        ("median(f=2)", 5, r"n >= 2f \+ 1"),
        ("trimmed_mean(f=2)", 5, r"n >= 2f \+ 1"),
        ("krum(f=2)", 7, r"n >= 2f \+ 3"),
        ("multi_krum(f=2)", 7, r"n >= 2f \+ 3"),
        ("multi_krum(f=0, m=5)", 5, "n >= m = 5"),
        ("geometric_median(f=2)", 5, r"n >= 2f \+ 1"),
        ("faba(f=2)", 5, r"n >= 2f \+ 1"),
        ("centered_clipping(tau=1.0, f=2)", 5, r"n >= 2f \+ 1"),
        ("clip(c=1.0) | krum(f=2)", 7, r"n >= 2f \+ 3"),
        ("meamed(f=2)", 5, r"n >= 2f \+ 1"),
        ("phocas(f=2)", 5, r"n >= 2f \+ 1"),
        ("generalised_krum(f=2, p=3)", 7, r"n >= 2f \+ 3"),
        ("bulyan(f=2)", 11, r"n >= 4f \+ 3"),
        ("bulyan(f=1, selection='multi_krum')", 7, r"n >= 4f \+ 3"),
        ("minimum_diameter(f=2)", 5, r"n >= 2f \+ 1"),
        ("monna(f=2)", 5, r"n >= 2f \+ 1"),
        ("clip_mean(f=2)", 5, r"n >= 2f \+ 1"),
        ("norm_bound(c=1.0, f=2)", 5, r"n >= 2f \+ 1"),
        ("cge(f=2)", 5, r"n >= 2f \+ 1"),
        ("sign_majority(f=2)", 5, r"n >= 2f \+ 1"),
        ("dnc(f=2)", 5, r"n >= 2f \+ 1"),
        ("dnc(f=2, c=3.0)", 7, "n > c f"),
        ("nnm(f=2) | mean", 5, r"^nnm needs n >= 2f \+ 1; got n=4, f=2: ask at least 5 clients or lower f$"),
        ("arc(f=2) | mean", 5, r"^arc needs n >= 2f \+ 1; got n=4, f=2: ask at least 5 clients or lower f$"),
        ("smea(f=2)", 5, r"n >= 2f \+ 1"),
        ("caf(f=2)", 5, r"n >= 2f \+ 1"),
        ("clustering", 3, "n >= 3"),
        ("clipped_clustering", 3, "n >= 3"),
        ("median(f=2, weighted=True)", 7, r"n > \(1 \+ clamp\) f with clamp=2; got n=6, f=2"),
        ("median(f=2, weighted=True, clamp=1.5)", 6, r"n > \(1 \+ clamp\) f with clamp=1.5; got n=5"),
        ("bucketing(s=3) | median(f=2)", 13, r"n >= 2f \+ 1; got n=4"),
    ],
)
def test_smallest_number_of_rows(text, smallest, condition):
    rule, more = parse(text), {"trusted": torch.zeros(3), "counts": [1.0] * smallest}
    assert rule.check(smallest) is None
    aggregate(torch.randn(smallest, 3, generator=torch.Generator().manual_seed(0)), rule, **more)
    if smallest > 1:
        left = math.ceil((smallest - 1) / rule.stages[0].s) if text.startswith("bucketing") else smallest - 1
        assert f"got n={left}" in rule.check(smallest - 1)
        with pytest.raises(InfeasibleError, match=condition):
            aggregate(torch.zeros(smallest - 1, 3), rule, trusted=torch.zeros(3))


@pytest.mark.parametrize(
    ("text", "n", "words"),
    [
        ("lfighter", 1, "ask at least 2 clients$"),
        ("multi_krum(f=0, m=5)", 4, "lower m$"),
        ("trimmed_mean(fraction=0.4)", 5, "lower fraction$"),
    ],
)
def test_the_advice_names_a_field_of_the_rule(text, n, words):
    with pytest.raises(InfeasibleError, match=words):
        aggregate(torch.zeros(n, 2), text, asked=10)


def test_aggregate_takes_rules_rows_and_text_alike():
    x = torch.tensor([[1.0, 2.0], [1.1, 2.1], [0.9, 1.9], [1e8, -1e8]])
    rule = parse("trimmed_mean(f=1)")
    results = [aggregate(x, rule), aggregate(x, str(rule)), aggregate(Rows.from_tensor(x), rule)]
    assert all(torch.equal(result.value, torch.tensor([1.05, 1.95])) for result in results)


def test_aggregate_hands_the_state_on():
    x = column(0, 2, 4)
    first, state = aggregate(x, "centered_clipping(tau=1.0)", state=None)
    # The moves from 0 are 0, 1, 1; from 2/3 they are -2/3, 1, 1.
    assert float(first.value) == pytest.approx(2 / 3)
    second, _ = aggregate(x, "centered_clipping(tau=1.0)", state=state)
    assert float(second.value) == pytest.approx(10 / 9)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3), torch.zeros(0, 2), torch.zeros(2, 0)],
    ids=["integers", "vector", "no rows", "no columns"],
)
def test_aggregate_refuses_what_is_no_matrix_of_floats(x):
    with pytest.raises(ConfigurationError, match="floating-point tensor"):
        aggregate(x, "mean")


def test_layout_must_cover_the_columns():
    with pytest.raises(ConfigurationError, match="layout holds 6 coordinates, but a row has 5"):
        Rows.from_tensor(torch.zeros(2, 5), layout=[Layer("w", (2, 3))])


def test_every_rule_is_exported():
    assert {"CenteredClipping", "FABA", "Krum", "Mean"} <= set(flwr_robust.aggregators.__all__)
    assert flwr_robust.aggregators.Krum(f=2) == parse("krum(f=2)")
    with pytest.raises(UnknownNameError):
        parse("crum(f=2)")


@quick
@given(st.data(), st.sampled_from(["meamed", "phocas"]))
def test_means_around_a_centre_like_oracle(data, name):
    x, _, f = choose(data, 1)
    result = aggregate(torch.from_numpy(x), f"{name}(f={f})")
    assert_value(result, selections.RULES[name](x, f)[0], x)
    assert float(result.weights.sum()) == pytest.approx(1)
    assert bool((result.weights >= 0).all())


def test_phocas_and_meamed_differ_and_agree():
    # The median is 2, and 30.5 is the farthest from it. The trimmed mean is (1 + 2 + 30) / 3 = 11, and -9 is.
    x = column(-9, 1, 2, 30, 30.5)
    assert float(aggregate(x, "meamed(f=1)").value) == 24 / 4
    assert float(aggregate(x, "phocas(f=1)").value) == 63.5 / 4
    # With n = 2f + 1 or 2f + 2 both centres are the median.
    y = torch.randn(7, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(aggregate(y, "meamed(f=3)").value, aggregate(y, "phocas(f=3)").value)
    torch.testing.assert_close(aggregate(y[:6], "meamed(f=2)").value, aggregate(y[:6], "phocas(f=2)").value)


@pytest.mark.parametrize("rule", ["meamed(f=2)", "phocas(f=2)", "bulyan(f=2)"])
@pytest.mark.parametrize("size", [1e4, 1e8, 1e30])
def test_rules_around_a_centre_survive_far_rows(rule, size):
    honest = 1 + 1e-4 * np.random.default_rng(0).standard_normal((9, 20))
    x = np.vstack([honest, np.full((2, 20), size)])
    x[-1] *= -1
    for dtype in (torch.float32, torch.float64):
        value = aggregate(torch.from_numpy(x).to(dtype), rule).value.double().numpy()
        assert (value >= honest.min(0) - 1e-6).all()
        assert (value <= honest.max(0) + 1e-6).all()


@pytest.mark.parametrize("rule", ["meamed(f=1)", "phocas(f=1)"])
def test_rules_around_a_centre_do_not_subtract_what_they_leave_out(rule):
    # A running sum that held 1e30 would have no digits left for the others.
    assert float(aggregate(column(1e30, 0.1, 0.2, 0.3), rule).value) == pytest.approx(0.2, abs=1e-16)


def test_weights_around_a_centre_are_the_kept_shares():
    # Column 1 leaves out row 3, column 2 row 0; three rows of every column are kept.
    result = aggregate(rows([0, 50], [1, 1], [2, 2], [60, 0]), "meamed(f=1)")
    assert result.value.tolist() == [1, 1]
    np.testing.assert_allclose(result.weights, [1 / 6, 1 / 3, 1 / 3, 1 / 6])


@quick
@given(matrices(), st.sampled_from([0.01, 0.7, 5.0]))
def test_clipped_means_like_oracle(problem, c):
    x, _ = problem
    c *= float(np.linalg.norm(x, axis=1).max()) or 1.0
    for rule, (value, weights) in {
        f"norm_bound(c={c!r})": selections.norm_bound(x, c),
        "clip_mean": selections.clip_mean(x),
    }.items():
        result = aggregate(torch.from_numpy(x), rule)
        assert_value(result, value, x)
        np.testing.assert_allclose(result.weights, weights, rtol=1e-9)
    bounded = aggregate(torch.from_numpy(x), f"clip(c={c!r}) | mean")
    torch.testing.assert_close(aggregate(torch.from_numpy(x), f"norm_bound(c={c!r})").value, bounded.value)


@pytest.mark.parametrize("rule", ["clip_mean", "norm_bound(c=1.5)"])
@pytest.mark.parametrize("size", [1e8, 1e30])
def test_clipped_means_bound_what_far_rows_do(rule, size):
    # Three of ten rows have at most 3/10 of the clipped length; the plain mean is carried away.
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((7, 30))
    honest /= np.linalg.norm(honest, axis=1, keepdims=True)
    x = np.vstack([honest, np.full((3, 30), size)])
    limit = 1.0 if rule == "clip_mean" else 1.5
    moved = aggregate(torch.from_numpy(x), rule).value.numpy() - honest.sum(0) / 10
    assert np.linalg.norm(moved) == pytest.approx(0.3 * limit)
    assert float(aggregate(torch.from_numpy(x), "mean").value.norm()) > 1e7


def test_oracles_agree_with_the_first_ones():
    # The two sets of oracles meet where the definitions do.
    x = np.random.default_rng(0).standard_normal((9, 5))
    np.testing.assert_allclose(selections.meamed(x, 0)[0], basic.mean(x)[0])
    np.testing.assert_allclose(selections.phocas(x, 0)[0], basic.mean(x)[0])
    np.testing.assert_allclose(selections.norm_bound(x, 1e9)[0], basic.mean(x)[0])
    for f, p in itertools.product((0, 2), (2, 2.0)):
        np.testing.assert_allclose(selections.generalised_krum(x, f, p)[0], basic.krum(x, f)[0])
        assert best_of(selections.lp_scores(x, f, 2)) == best_of(basic.krum_scores(x, f))


def best_of(scores):
    return scores.index(min(scores))


def test_spectral_rules_are_exact_and_repeat():
    x = torch.randn(10, 50, generator=torch.Generator().manual_seed(1))
    for rule in ("smea(f=2)", "caf(f=2)"):
        values = {tuple(aggregate(x, rule).value.tolist()) for _ in range(3)}
        assert len(values) == 1


@quick
@given(small_matrices(), st.sampled_from([1.0, 2.0, 1e9]), st.integers(0, 2**32 - 1), st.data())
def test_weighted_order_statistics_like_oracle(x, clamp, seed, data):
    counts = np.random.default_rng(seed).integers(1, 1000, len(x)).astype(float)
    fields = {"weighted": True, "clamp": clamp}
    text = f"weighted=True, clamp={clamp}"
    result = aggregate(torch.from_numpy(x), f"median({text})", counts=counts)
    assert_like(result, similarities.median(x, **fields, counts=counts), x)
    assert float(result.weights.sum()) == pytest.approx(1)
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    result = aggregate(torch.from_numpy(x), f"trimmed_mean(f={f}, {text})", counts=counts)
    assert_like(result, similarities.trimmed_mean(x, f, **fields, counts=counts), x)
    assert float(result.weights.sum()) == pytest.approx(1)


@quick
@given(small_matrices(), st.sampled_from([1, 3, 7, 1e6]))
def test_equal_counts_change_nothing(x, count):
    counts, x = [count] * len(x), torch.from_numpy(x)
    f = (len(x) - 1) // 3
    for rule, fields in (("median", ""), ("trimmed_mean", f"f={f}, ")):
        plain = aggregate(x, f"{rule}({fields})")
        weighted = aggregate(x, f"{rule}({fields}weighted=True)", counts=counts)
        torch.testing.assert_close(weighted.value, plain.value, rtol=1e-12, atol=1e-12 * float(x.abs().max()))
        torch.testing.assert_close(weighted.weights, plain.weights)


def test_weights_stay_when_rows_or_fractions_go():
    # The row that is not finite takes one off f and its count with it. Left: 0, 1, 5 with 10, 10, 20 and f = 0.
    x, counts = column(0, math.nan, 1, 5), [10, 99, 10, 20]
    for rule in ("trimmed_mean(f=1, weighted=True)", "trimmed_mean(fraction=0.25, weighted=True)"):
        assert float(aggregate(x, rule, counts=counts).value) == pytest.approx(110 / 40)
    assert parse("trimmed_mean(fraction=0.25, weighted=True, clamp=3.0)").reduced(1, 8) == parse(
        "trimmed_mean(f=1, weighted=True, clamp=3.0)"
    )


def test_weighted_rules_survive_one_huge_row():
    x = torch.randn(9, 20, generator=torch.Generator().manual_seed(0))
    x[4] = 1e8
    for rule in ("median(weighted=True)", "trimmed_mean(f=1, weighted=True)"):
        assert float(aggregate(x, rule, counts=[10.0] * 9).value.abs().max()) < 3


ALL = [
    "nnm(f=1) | krum(f=1)",
    "arc(f=1) | mean",
    "bucketing(s=2) | median",
    "resampling(s=2) | median",
    "smea(f=1)",
    "caf(f=1)",
    "clustering",
    "clipped_clustering",
    "signguard",
    "fltrust",
    "foolsgold",
    "flame",
    "median(weighted=True)",
    "trimmed_mean(f=1, weighted=True)",
]


@pytest.mark.parametrize("rule", ALL)
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e8, 1e30])
def test_one_row_of_any_size_gives_a_finite_value(rule, size):
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    x[2] *= size
    result, _ = aggregate(x, rule, state=None, counts=[5.0] * 7, trusted=torch.ones(5))
    assert bool(torch.isfinite(result.value).all())
    assert bool(torch.isfinite(result.weights).all())
    assert bool((result.weights >= 0).all())


@pytest.mark.parametrize("rule", ["signguard", "foolsgold", "flame", "caf(f=0)", "smea(f=0)", "median(weighted=True)"])
def test_one_row_and_one_column(rule):
    assert aggregate(column(-3), rule, counts=[1.0]).value.tolist() == [-3]
    many = aggregate(column(1, 2, -3, 4, 5, 6), rule, counts=[1.0] * 6)
    assert bool(torch.isfinite(many.value).all())


@pytest.mark.parametrize("rule", [rule for rule in ALL if rule != "foolsgold"])  # which takes agreement for an attack
def test_small_updates_near_one_direction_keep_their_digits(rule):
    # The rows differ by 1e-4 around one of length 1: in float32 the plain Gram identity would see only rounding.
    rng = np.random.default_rng(0)
    x = torch.from_numpy(1 + 1e-4 * rng.standard_normal((9, 30))).float()
    exact = x.double()
    more_ = {"counts": [5.0] * 9, "trusted": torch.ones(30), "seed": 0}
    torch.testing.assert_close(
        aggregate(x, rule, **more_).value.double(), aggregate(exact, rule, **more_).value, rtol=1e-7, atol=0
    )
