"""Weights from numbers of examples: what one client may weigh, and when the heaviest weigh too much."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError, InfeasibleError, aggregate, parse
from flwr_robust.core.weighing import Weighing
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.world import World
from tests.aggregators.problems import column
from tests.oracles import basic

quick = settings(deadline=None, max_examples=200)
SITES = [51.7, 21.3, 10.2, 7.4, 4.6, 2.9, 1.3, 0.6]

# Each with f = 1 of eight rows, and its weights bounded by `most` alone.
BOUND = "weighted=True, clamp=1e9, most=0.4"
WEIGHTED = [
    f"mean({BOUND})",
    f"median(f=1, {BOUND})",
    f"trimmed_mean(f=1, {BOUND})",
    f"geometric_median(f=1, {BOUND})",
    f"multi_krum(f=1, {BOUND})",
    f"faba(f=1, {BOUND})",
    f"clip_mean(f=1, {BOUND})",
    f"centered_clipping(tau='median', steps=2, f=1, {BOUND})",
    f"nnm(f=1, {BOUND}) | mean()",
]


def held(values, **fields):
    return Weighing("rule", True, **fields).shares(torch.tensor(values, dtype=torch.float64)).tolist()


def problem(seed=0, n=8, d=5):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(1 + rng.standard_normal((n, d))), rng.integers(1, 60, n).astype(float)


# -- the bounds --------------------------------------------------------------------------------------


@quick
@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=12), st.data())
def test_bounds_like_oracle(counts, data):
    f = data.draw(st.one_of(st.none(), st.integers(0, len(counts) // 2)))
    few = max(f or 0, 1)
    share = few / len(counts)  # all that equal weights leave to so few
    most = data.draw(st.one_of(st.none(), st.floats(share, 0.999)) if share < 0.999 else st.none())
    clamp = data.draw(st.sampled_from([1.0, 2.0, 1e12]))
    weighing = Weighing("rule", True, clamp, most, f)
    found = weighing.shares(torch.tensor(counts, dtype=torch.float64))
    np.testing.assert_allclose(found, basic.shares(counts, clamp, most, f), rtol=1e-6)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    if most is not None:
        assert float(found.topk(few).values.sum()) <= most + 1e-9
    # The bounds change neither who is heavier, nor a number that they do not reach.
    bounded = weighing.bounded(torch.tensor(counts, dtype=torch.float64)).numpy()
    np.testing.assert_array_equal(bounded, np.minimum(counts, bounded.max()))


def test_bounds_by_hand():
    # No more than 0.3: U = 0.3 (U + 500) gives 214.3, above the second; so one is cut, and 200 stays.
    assert held([500, 200, 100, 100, 100], clamp=99, most=0.3) == pytest.approx([0.3, 0.28, 0.14, 0.14, 0.14])
    # 0.25 takes two: U = 0.25 (2 U + 300) gives 150.
    assert held([500, 200, 100, 100, 100], clamp=99, most=0.25) == pytest.approx([0.25, 0.25, 1 / 6, 1 / 6, 1 / 6])
    # The two heaviest together: 2 U = 0.5 (2 U + 300).
    assert held([500, 200, 100, 100, 100], clamp=99, most=0.5, f=2) == pytest.approx([0.25, 0.25, 1 / 6, 1 / 6, 1 / 6])
    # They hold 0.7 as they are; 0.65 cuts the first alone: U + 200 = 0.65 (U + 500).
    cut = (0.65 * 500 - 200) / 0.35
    assert held([500, 200, 100, 100, 100], clamp=99, most=0.65, f=2)[0] == pytest.approx(cut / (cut + 500))
    # A share of f / n leaves nothing but equal weights; a bound that does not bite changes nothing.
    assert held([500, 200, 100, 100, 100], clamp=99, most=0.2) == pytest.approx([0.2] * 5)
    assert held([5, 3, 2], clamp=99, most=0.5) == held([5, 3, 2], clamp=99)
    # Both bounds: the median is 100, so 500 counts as 200, and then holds less than 0.3.
    assert held([500, 200, 100, 100, 100], clamp=2, most=0.3) == pytest.approx([2 / 7, 2 / 7, 1 / 7, 1 / 7, 1 / 7])


@pytest.mark.parametrize("claim", [1e3, 1e9, 1e300])
def test_a_claim_buys_no_more_than_the_bound(claim):
    counts = [*SITES[:-1], claim]
    assert held(counts, clamp=1e9)[-1] > 0.9
    assert held(counts, clamp=1e9, most=0.3)[-1] == pytest.approx(0.3)
    # By comparison with the median client: twice (10.2 + 7.4) / 2.
    assert held(counts, clamp=2)[-1] == pytest.approx(17.6 / (3 * 17.6 + 10.2 + 7.4 + 4.6 + 2.9 + 1.3))


def test_most_is_refused_where_it_bounds_nothing():
    for text in ("mean(most=0.3)", "faba(f=1, most=0.3)", "nnm(f=1, most=0.3) | mean", "median(most=0.3)"):
        with pytest.raises(ConfigurationError, match=r"most needs weighted=True.*got most=0.3, weighted=False"):
            parse(text)
    for most in (0, 1, -0.1, math.nan, True):
        with pytest.raises(ConfigurationError, match="clip_mean: most must be"):
            parse(f"clip_mean(weighted=True, most={most})".replace("nan", "1e999"))


@pytest.mark.parametrize(
    ("text", "smallest", "condition"),
    [
        ("mean(weighted=True, most=0.3)", 4, r"n >= 1 / most with most=0.3"),
        ("median(f=2, weighted=True)", 7, r"n > \(1 \+ clamp\) f with clamp=2"),
        ("faba(f=2, weighted=True)", 7, r"n > \(1 \+ clamp\) f with clamp=2"),
        ("faba(f=2, weighted=True, clamp=100.0)", 203, r"n > \(1 \+ clamp\) f with clamp=100"),
        ("faba(f=2, weighted=True, clamp=100.0, most=0.45)", 5, r"n >= 2f \+ 1|n >= f / most"),
        ("faba(f=2, weighted=True, clamp=100.0, most=0.25)", 8, r"n >= f / most with most=0.25"),
        ("faba(f=2, weighted=True, most=0.6)", 7, r"n > \(1 \+ clamp\) f"),
        ("clip_mean(f=1, weighted=True)", 4, r"n > \(1 \+ clamp\) f"),
        ("centered_clipping(tau=1.0, f=1, weighted=True, clamp=1)", 3, r"n > \(1 \+ clamp\) f"),
        ("multi_krum(f=2, weighted=True, clamp=1e6)", 7, r"n >= 2f \+ 3"),
        ("multi_krum(f=2, weighted=True, most=0.25)", 8, r"n >= f / most"),
        ("trimmed_mean(f=2, weighted=True, clamp=1e6)", 5, r"n >= 2f \+ 1"),
        ("trimmed_mean(fraction=0.25, weighted=True, most=0.26)", 4, r"n >= f / most|fraction \* n"),
        ("nnm(f=2, weighted=True) | mean", 7, r"nnm needs n > \(1 \+ clamp\) f"),
        ("nnm(f=2, weighted=True, most=0.2) | mean", 10, r"nnm needs n >= f / most"),
    ],
)
def test_the_smallest_n_under_weights(text, smallest, condition):
    rule = parse(text)
    assert rule.check(smallest) is None
    with pytest.raises(InfeasibleError, match=condition):
        aggregate(torch.zeros(smallest - 1, 2), rule, counts=[1.0] * (smallest - 1))


# -- when the heaviest weigh too much ----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "median(f=2, weighted=True)",
        "geometric_median(f=2, weighted=True)",
        "faba(f=2, weighted=True)",
        "clip_mean(f=2, weighted=True)",
        "centered_clipping(tau=1.0, f=2, weighted=True)",
        "nnm(f=2, weighted=True) | median",
        "clip(c='median') | faba(f=2, weighted=True)",
    ],
)
def test_heaviest_rows_with_half_of_the_weight_are_infeasible(text):
    # The median is 4: two rows of 8, and 1 + 1 + 1 + 4 + 4 = 11 against 16.
    x, counts = torch.eye(7, dtype=torch.float64), [1, 1, 1, 4, 4, 8, 8]
    with pytest.raises(InfeasibleError, match=r"less than half of the weight; got 59.3% for f=2 of n=7 with clamp=2"):
        aggregate(x, text, counts=counts)
    assert parse(text).check_counts(torch.tensor(counts, dtype=torch.float64))
    aggregate(x, text.replace("weighted=True", "weighted=True, most=0.45"), counts=counts)
    aggregate(x, text, counts=[1, 1, 1, 1, 1, 8, 8])  # both count as 2: 4 against 5
    aggregate(x, text.replace("f=2", "f=1"), counts=counts)


def test_the_share_is_that_of_the_rows_that_are_left():
    # Without the row that is not finite f is 1, and the heaviest holds 8 of 19.
    x = torch.eye(7, dtype=torch.float64)
    x[6] = math.nan
    assert aggregate(x, "faba(f=2, weighted=True)", counts=[1, 1, 1, 4, 4, 8, 8]).stats["not_finite"] == [6]


@pytest.mark.parametrize(
    "text", ["trimmed_mean(f=2, weighted=True)", "multi_krum(f=2, weighted=True)", "mean(weighted=True)"]
)
def test_where_weights_place_nobody_they_need_no_half(text):
    aggregate(torch.eye(7, dtype=torch.float64), text, counts=[1, 1, 1, 4, 4, 8, 8])


def test_a_run_whose_sizes_do_not_fit_is_refused_before_round_1():
    keys = {"task": "digits", "clients": 7, "partition": "sizes(shares=[1, 1, 1, 4, 4, 8, 8])"}
    defence = "faba(f=2, weighted=True)"
    with pytest.raises(ConfigurationError, match=r"faba needs the f heaviest clients.* less than half.*give most"):
        World(RunConfig.from_mapping({**keys, "defence": defence})).check_counts()
    World(RunConfig.from_mapping({**keys, "defence": "faba(f=2, weighted=True, most=0.45)"})).check_counts()
    # Who is asked in a round is not known yet.
    World(RunConfig.from_mapping({**keys, "clients": 14, "partition": "iid", "defence": defence})).check_counts()


# -- what every weighted rule promises ---------------------------------------------------------------


@pytest.mark.parametrize("text", WEIGHTED)
@pytest.mark.parametrize("number", [1, 20, 3])
def test_equal_numbers_give_the_unweighted_result_to_the_bit(text, number):
    for seed in range(3):
        x, _ = problem(seed)
        plain = aggregate(x, text.replace(f", {BOUND}", "").replace(BOUND, ""))
        weighted = aggregate(x, text, counts=[number] * 8)
        if text.startswith(("median", "trimmed_mean")):  # sums of products, and of values alone
            torch.testing.assert_close(weighted.value, plain.value, rtol=1e-14, atol=1e-15)
        else:
            assert torch.equal(weighted.value, plain.value)
            assert torch.equal(weighted.weights, plain.weights)


@pytest.mark.parametrize("text", WEIGHTED)
def test_the_unit_of_the_numbers_does_not_matter(text):
    for seed in range(3):
        x, counts = problem(seed)
        first = aggregate(x, text, counts=counts)
        assert torch.equal(aggregate(x, text, counts=4 * counts).value, first.value)
        scaled = aggregate(x, text, counts=1e-3 * counts)
        torch.testing.assert_close(scaled.value, first.value, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("text", WEIGHTED)
def test_numbers_matter(text):
    x, counts = problem()
    assert not torch.allclose(aggregate(x, text, counts=counts).value, aggregate(x, text, counts=[1] * 8).value)


@pytest.mark.parametrize("text", WEIGHTED)
@pytest.mark.parametrize("far", [-1, 1])
def test_the_heaviest_client_cannot_decide_alone(text, far):
    # Seven honest rows near (1, ..., 1), and the site of 51.7 % far away, or one that claims a million.
    rng = np.random.default_rng(1)
    x = torch.from_numpy(1 + 0.01 * rng.standard_normal((8, 5)))
    x[0] = far * 1e3
    free = text.replace(", most=0.4", "")
    for counts in (SITES, [1e6, *SITES[1:]]):
        value = aggregate(x, text, counts=counts).value
        if text.startswith("mean"):  # it resists nobody: its share of the value is the bound
            assert float(value[0]) == pytest.approx(0.4 * far * 1e3, abs=1)
            continue
        if text.startswith("nnm"):  # the far row's own neighbourhood is the mean of what is near it, by the bound
            assert float((value - 1).abs().max()) < 0.4 * 1e3
            continue
        assert float((value - 1).abs().max()) < (1.5 if text.startswith(("clip_mean", "centered")) else 0.1)
        if not text.startswith(("trimmed_mean", "multi_krum")):
            with pytest.raises(InfeasibleError):
                aggregate(x, free, counts=counts)


@pytest.mark.parametrize(
    "text",
    [
        "median(weighted=True, clamp=1e9)",
        "geometric_median(weighted=True, clamp=1e9)",
        "clip(c=1e9) | mean(weighted=True, clamp=1e9)",
    ],
)
def test_without_a_declared_f_and_a_bound_a_claim_decides(text):
    x, counts = column(1, 1, 1, 1, 1, 1, 1, 99), [1.0] * 7 + [1e6]
    assert float(aggregate(x, text, counts=counts).value) == pytest.approx(99, abs=0.1)
    bounded = aggregate(x, text.replace("1e9)", "1e9, most=0.4)").replace("c=1e9, most=0.4", "c=1e9"), counts=counts)
    assert float(bounded.value) <= 0.4 * 99 + 0.6


def two_halves(x, counts, row):
    """Rows and numbers after a client has become two, each with its row and half of its number."""
    halved = counts.copy()
    halved[row] /= 2
    return torch.cat([x, x[row : row + 1]]), np.append(halved, halved[row])


@pytest.mark.parametrize(
    "text",
    [
        "mean(weighted=True, clamp=1e9)",
        "median(weighted=True, clamp=1e9)",
        "geometric_median(weighted=True, clamp=1e9)",
        "nnm(f=1, weighted=True, clamp=1e9, most=0.45) | mean(weighted=True, clamp=1e9)",
    ],
)
def test_a_light_client_that_becomes_two_changes_nothing(text):
    for seed in range(3):
        x, counts = problem(seed)
        row = int(counts.argmin())
        more, halves = two_halves(x, counts, row)
        first, second = aggregate(x, text, counts=counts), aggregate(more, text, counts=halves)
        torch.testing.assert_close(second.value, first.value, rtol=1e-5, atol=1e-6)
        assert float(second.weights[row] + second.weights[-1]) == pytest.approx(float(first.weights[row]), abs=1e-5)


def test_where_clients_are_counted_two_are_more_than_one():
    for text in ("multi_krum(f=1, weighted=True, clamp=1e9)", "trimmed_mean(f=2, weighted=True, clamp=1e9)"):
        x, counts = problem(3)
        before = aggregate(x, text, counts=counts).value
        pairs = [two_halves(x, counts, row) for row in range(8)]
        changed = [aggregate(more, text, counts=halves).value for more, halves in pairs]
        assert not all(torch.allclose(value, before, atol=1e-4) for value in changed)


def test_rows_without_numbers_are_an_error_for_steps_too():
    with pytest.raises(ConfigurationError, match="weighted=True needs the number of examples"):
        aggregate(torch.eye(4), "nnm(f=1, weighted=True) | mean")
