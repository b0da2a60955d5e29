"""Mixers, spectral rules, clusterings, trust and similarity, weighted order statistics: oracles, and cases by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.cluster import HDBSCAN

from flwr_robust import ConfigurationError, InfeasibleError, Outcome, Rows, aggregate, parse
from flwr_robust.aggregators.clustering import cosine_distances, larger_cluster
from flwr_robust.aggregators.flame import densest_majority
from flwr_robust.aggregators.foolsgold import sybil_weights
from flwr_robust.aggregators.signguard import sign_counts
from tests import oracles
from tests import oracles_more_b as more

quick = settings(deadline=None, max_examples=60)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine cost more than these small tensors take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def matrices(draw, least=1, most=16):
    """Normal rows of any size and place, sometimes rounded to float32."""
    n, d = draw(st.integers(least, most)), draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = (rng.standard_normal((n, d)) + draw(st.sampled_from([0, 1, 30]))) * 10.0 ** draw(st.integers(-6, 6))
    return x.astype(np.float32).astype(float) if draw(st.booleans()) else x


def column(*values):
    return torch.tensor([[v] for v in values], dtype=torch.float64)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def assert_like(result, expected, x):
    """Value and, where the oracle has them, weights."""
    value, weights = expected
    np.testing.assert_allclose(result.value.double(), value, rtol=1e-8, atol=1e-9 * np.abs(x).max())
    if weights is not None:
        np.testing.assert_allclose(result.weights, weights, rtol=1e-6, atol=1e-9)


# -- nearest-neighbour mixing --------------------------------------------------------------------


@quick
@given(matrices(), st.data())
def test_nnm_like_oracle(x, data):
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    for rule in ("mean", "median"):
        mixed = more.nnm(x, f) @ x
        assert_like(aggregate(torch.from_numpy(x), f"nnm(f={f}) | {rule}"), (oracles.RULES[rule](mixed)[0], None), x)


def test_nnm_by_hand():
    # With f=1 of 4, three nearest: 0 -> {0, 1, 3}, 1 -> {0, 1, 3}, 3 -> {1, 3, 0}, 10 -> {10, 3, 1}.
    result = aggregate(column(0, 1, 3, 10), "nnm(f=1) | mean")
    assert float(result.value) == pytest.approx((4 / 3 + 4 / 3 + 4 / 3 + 14 / 3) / 4)
    np.testing.assert_allclose(result.weights, [3 / 12, 4 / 12, 4 / 12, 1 / 12])
    assert result.stats["nnm.chosen_by"] == [3, 4, 4, 1]


def test_nnm_gives_ties_to_the_lowest_index_and_keeps_the_row_itself():
    # 1 is as far from 0 as from 2: row 0 joins it. Of four equal rows each keeps itself and the first of the others.
    x = Rows.from_tensor(column(0, 1, 2))
    stage = parse("nnm(f=1) | mean").stages[0]
    assert (stage.matrix(x, {})[0] > 0).int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 1, 1]]
    same = stage.matrix(Rows.from_tensor(column(5, 5, 5)), {})[0]
    assert (same > 0).int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 1]]


def test_nnm_lets_the_mean_survive_what_it_does_not_alone():
    honest = np.random.default_rng(0).standard_normal((7, 20))
    x = torch.from_numpy(np.vstack([honest, 1e8 * np.ones((3, 20))])).float()
    away = np.linalg.norm(aggregate(x, "nnm(f=3) | krum(f=3)").value - honest.mean(0))
    assert away <= 2.5
    assert float(aggregate(x, "mean").value.abs().max()) > 1e7


# -- adaptive robust clipping --------------------------------------------------------------------


@quick
@given(matrices(), st.data())
def test_arc_like_oracle(x, data):
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    weights = more.arc(x, f).diagonal() / len(x)
    assert_like(aggregate(torch.from_numpy(x), f"arc(f={f}) | mean"), (weights @ x, weights), x)


@pytest.mark.parametrize(("f", "clipped", "radius"), [(0, [], 5), (1, [2], 4), (2, [0, 2], 3)])
def test_arc_by_hand(f, clipped, radius):
    # Norms 4, 1, 5, 3, 2. k = floor(2 f (5 - f) / 5): 0, floor(1.6) = 1, floor(2.4) = 2.
    result = aggregate(column(4, -1, 5, 3, 2), f"arc(f={f}) | mean")
    assert result.stats == {"arc.radius": radius, "arc.clipped": clipped}
    assert float(result.value) == pytest.approx((min(4, radius) - 1 + radius + 3 + 2) / 5)


def test_arc_counts_in_integers():
    # 2 f (n - f) / n = 2 * 3 * 12 / 15 = 4.8, and 2 * 5 * 20 / 25 = 8 exactly, which 2 * (5 / 25) * 20 might miss.
    for n, f, k in ((15, 3, 4), (25, 5, 8)):
        result = aggregate(torch.arange(1.0, n + 1)[:, None], f"arc(f={f}) | mean")
        assert len(result.stats["arc.clipped"]) == k


def test_arc_shortens_one_huge_row():
    x = torch.ones(9, 4)
    x[3] = 1e30
    assert float((aggregate(x, "arc(f=1) | mean").value - 1).abs().max()) < 1e-6


def test_arc_leaves_zeros_alone():
    assert aggregate(torch.zeros(5, 2), "arc(f=2) | mean").value.tolist() == [0, 0]


# -- bucketing -----------------------------------------------------------------------------------


@quick
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 5))
def test_bucketing_makes_buckets(n, s, seed):
    stage = parse(f"bucketing(s={s}, seed={seed}) | mean").stages[0]
    matrix, stats, state = stage.matrix(Rows.from_tensor(torch.zeros(n, 2)), {})
    assert matrix.shape == (math.ceil(n / s), n) == (stage.rows_out(n), n)
    sizes = (matrix > 0).sum(1).tolist()
    assert sorted(sizes, reverse=True) == [*[s] * (n // s), *[n % s] * (n % s > 0)]
    assert sorted(i for bucket in stats["buckets"] for i in bucket) == list(range(n))
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix), dtype=torch.float64))
    assert int(state["draws"]) == 1
    np.testing.assert_array_equal(matrix, more.bucketing(np.zeros((n, 2)), s, seed))


def test_bucketing_draws_again_each_round():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    first, state = aggregate(x, "bucketing(s=3) | median", state=None)
    second, after = aggregate(x, "bucketing(s=3) | median", state=state)
    assert first.stats["bucketing.buckets"] != second.stats["bucketing.buckets"]
    assert {key: int(v) for key, v in after.items()} == {"0.draws": 2}
    again, _ = aggregate(x, "bucketing(s=3) | median", state=state)
    assert torch.equal(second.value, again.value)
    other = aggregate(x, "bucketing(s=3, seed=1) | median")
    assert other.stats["bucketing.buckets"] != first.stats["bucketing.buckets"]


def test_bucketing_and_its_rule_keep_their_states_apart():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    _, state = aggregate(x, "bucketing(s=2) | centered_clipping(tau=1.0)", state=None)
    assert set(state) == {"0.draws", "1.centre"}


def test_bucketing_at_its_ends():
    # One row per bucket is the rows themselves, in their order, so that counts still belong to them.
    x, counts = column(1, 2, 30), [10, 10, 20]
    plain = aggregate(x, "mean(weighted=True)", counts=counts)
    assert torch.equal(aggregate(x, "bucketing(s=1) | mean(weighted=True)", counts=counts).value, plain.value)
    # One bucket for all is the mean, whatever follows.
    assert float(aggregate(x, "bucketing(s=5) | median").value) == pytest.approx(11)


@quick
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 5))
def test_resampling_uses_every_row_as_often(n, s, seed):
    stage = parse(f"resampling(s={s}, seed={seed}) | mean").stages[0]
    matrix, stats, state = stage.matrix(Rows.from_tensor(torch.zeros(n, 2)), {})
    assert matrix.shape == (n, n) == (stage.rows_out(n), n)
    for side in (0, 1):  # each mean is of s rows, and each row in s means
        torch.testing.assert_close(matrix.sum(side), torch.ones(n, dtype=torch.float64))
    assert [len(rows) for rows in stats["rows"]] == [s] * n
    assert int(state["draws"]) == 1
    np.testing.assert_array_equal(matrix, more.resampling(np.zeros((n, 2)), s, seed))


def test_resampling_draws_again_each_round_and_keeps_the_number_of_rows():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    first, state = aggregate(x, "resampling(s=2) | median", state=None)
    second, _ = aggregate(x, "resampling(s=2) | median", state=state)
    assert first.stats["resampling.rows"] != second.stats["resampling.rows"]
    assert parse("resampling(s=2) | krum(f=4)").check(11) is None
    assert "got n=10" in parse("resampling(s=2) | krum(f=4)").check(10)


def test_a_faulty_row_spoils_s_of_the_resampled():
    x = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    x[4] += 1000
    means, _, _ = parse("resampling(s=3) | mean").stages[0].matrix(Rows.from_tensor(x), {})
    assert 1 < int((means[:, 4] > 0).sum()) <= 3
    assert float(aggregate(x, "resampling(s=3) | trimmed_mean(f=3)").value.abs().max()) < 3
    assert float(aggregate(x, "resampling(s=3) | trimmed_mean(f=1)").value.abs().max()) > 10


def test_bucketing_leaves_the_rule_fewer_rows():
    # Seven buckets of two: krum(f=2) needs 7 rows. Thirteen rows make seven buckets, too; twelve do not.
    rule = parse("bucketing(s=2) | krum(f=2)")
    assert rule.check(14) is None
    assert rule.check(13) is None
    assert "got n=6" in rule.check(12)


# -- SMEA ----------------------------------------------------------------------------------------


@quick
@given(matrices(least=3, most=9), st.data())
def test_smea_like_oracle(x, data):
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    values = sorted(more.largest_eigenvalue(x[list(s)]) for s in itertools.combinations(range(len(x)), len(x) - f))
    assume(len(values) == 1 or values[1] > values[0] * (1 + 1e-7))  # ties have their own test
    result = aggregate(torch.from_numpy(x), f"smea(f={f})")
    assert_like(result, more.smea(x, f), x)
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


# -- CAF -----------------------------------------------------------------------------------------


@quick
@given(matrices(), st.data())
def test_caf_like_oracle(x, data):
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    assert_like(aggregate(torch.from_numpy(x), f"caf(f={f})"), more.caf(x, f), x)


def test_caf_by_hand():
    # n - 2f = 1. First mu = 8/3, differences -11/3, -5/3, 16/3: the squares are to the largest as 121 : 25 : 256, so
    # c = 135/256, 231/256, 0, of sum 366/256. Now mu = (231 - 135) / 366 and the variance is below 1; row 0 is the
    # farther and goes, row 1 is left with less than 1: the end.
    result = aggregate(column(-1, 1, 8), "caf(f=1)")
    np.testing.assert_allclose(result.weights, [135 / 366, 231 / 366, 0])
    assert float(result.value) == pytest.approx(96 / 366)
    assert result.stats["eigenvalue"] == pytest.approx(4 * 135 * 231 / 366**2)
    assert result.stats["steps"] == 2


def test_caf_without_faults_is_the_mean():
    result = aggregate(column(0, 1, 5), "caf(f=0)")
    assert float(result.value) == pytest.approx(2)
    assert result.stats == {"steps": 0, "eigenvalue": None}


def test_caf_stops_where_rows_coincide():
    # mu = 2: the differences are -2 and 8, so the 10 goes and the zeros keep 15/16 each.
    result = aggregate(column(0, 0, 10, 0, 0), "caf(f=1)")
    np.testing.assert_allclose(result.weights, [0.25, 0.25, 0, 0.25, 0.25], atol=1e-15)
    assert result.stats == {"steps": 2, "eigenvalue": 0.0}


def test_caf_removes_colluders_together():
    # Equal rows have equal projections but for rounding; a rest of weight at 1e30 would be worse than all of it.
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((7, 30))
    x = torch.from_numpy(np.vstack([np.full((3, 30), 1e30), honest]))
    result = aggregate(x, "caf(f=3)")
    assert result.weights[:3].tolist() == [0, 0, 0]
    assert np.linalg.norm(result.value - honest.mean(0)) < np.linalg.norm(honest[0] - honest.mean(0))


def test_spectral_rules_are_exact_and_repeat():
    x = torch.randn(10, 50, generator=torch.Generator().manual_seed(1))
    for rule in ("smea(f=2)", "caf(f=2)"):
        values = {tuple(aggregate(x, rule).value.tolist()) for _ in range(3)}
        assert len(values) == 1


# -- clustering ----------------------------------------------------------------------------------


@quick
@given(matrices(least=3), st.sampled_from(["average", "complete", "single"]))
def test_clustering_like_oracle(x, link):
    result = aggregate(torch.from_numpy(x), f"clustering(linkage='{link}')")
    assert_like(result, more.clustering(x, link), x)


@quick
@given(st.integers(3, 25), st.integers(0, 2**32 - 1), st.sampled_from(["average", "complete", "single"]))
def test_two_clusters_like_scipy(n, seed, link):
    points = np.random.default_rng(seed).standard_normal((n, 4))
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    labels = fcluster(linkage(squareform(apart), link), 2, "maxclust")
    kept = larger_cluster(torch.from_numpy(apart), link).numpy()
    assert len(set(labels[kept])) == len(set(labels[~kept])) == 1
    assert 2 * kept.sum() > n or (2 * kept.sum() == n and kept[0])


def test_linkages_differ():
    # 0 1 2.1 3.3 4.6 on a line. Single: the chain grows from the left, and 4.6 is last, 1.3 away. Complete: {0, 1},
    # {2.1, 3.3}; these are 3.3 apart, and 4.6 is 2.5 from the second.
    points = torch.tensor([0, 1, 2.1, 3.3, 4.6], dtype=torch.float64)
    apart = (points[:, None] - points[None, :]).abs()
    assert larger_cluster(apart, "single").tolist() == [True, True, True, True, False]
    assert larger_cluster(apart, "complete").tolist() == [False, False, True, True, True]
    # 0 2 | 5 6, and 9.2. Complete: 9.2 to {5, 6} is 4.2, {0, 2} to {5, 6} is 6. A row of ten at 2 makes the mean
    # distance from there to {5, 6} 3.68, but 9.2 keeps 3.7 from it: average joins the halves, complete does not.
    points = torch.tensor([0, *[2] * 10, 5, 6, 9.2], dtype=torch.float64)
    apart = (points[:, None] - points[None, :]).abs()
    assert larger_cluster(apart, "average").tolist() == [True] * 13 + [False]
    assert larger_cluster(apart, "complete").tolist() == [True] * 11 + [False] * 3


def test_clustering_by_hand():
    # Directions 0, 10, 20 degrees and 180: lengths do not matter for the clusters, but for the mean they do.
    x = rows(
        [1, 0], [100 * math.cos(0.17), 100 * math.sin(0.17)], [-7, 0], [0.5 * math.cos(0.34), 0.5 * math.sin(0.34)]
    )
    result = aggregate(x, "clustering")
    assert result.stats["kept"] == [0, 1, 3]
    torch.testing.assert_close(result.value, x[[0, 1, 3]].mean(0))


def test_clustering_gives_a_tie_to_row_0():
    for order in itertools.permutations(range(4)):
        x = rows([1, 0], [2, 0.1], [-1, 0], [-3, 0.1])[list(order)]
        assert 0 in aggregate(x, "clustering").stats["kept"]


def test_clustering_of_parallel_and_zero_rows():
    # Multiples of one row are at distance 0, whatever rounding says of x / ||x||; zeros are at 1 from everything.
    base = np.random.default_rng(3).standard_normal(50)
    x = torch.from_numpy(np.vstack([base, 3 * base, 0.1 * base, 0 * base, -base]))
    apart = cosine_distances(Rows.from_tensor(x))
    assert apart[:3, :3].abs().max() == 0
    assert apart[3].tolist() == [1, 1, 1, 0, 1]
    np.testing.assert_allclose(apart[4, :3], 2)
    assert cosine_distances(Rows.from_tensor(torch.zeros(3, 2))).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_cosine_distances_keep_small_angles():
    # 1 - cos of 1e-9 radians is 5e-19, which 1 minus a cosine cannot hold; nor may lengths of 1e-20 and 1e20 matter.
    for scale in (1.0, 1e-20, 1e20):
        x = rows([1, 0], [scale, 1e-9 * scale], [0, 1])
        apart = cosine_distances(Rows.from_tensor(x))
        assert float(apart[0, 1]) == pytest.approx(5e-19, rel=1e-6)
        assert float(apart[0, 2]) == pytest.approx(1)


# -- clipped clustering --------------------------------------------------------------------------


@quick
@given(matrices(least=3), st.integers(0, 2**32 - 1))
def test_clipped_clustering_like_oracle(x, seed):
    first, state = aggregate(torch.from_numpy(x), "clipped_clustering", state=None)
    assert_like(first, more.clipped_clustering(x), x)
    again = x * np.random.default_rng(seed).uniform(0.1, 10)
    second, state = aggregate(torch.from_numpy(again), "clipped_clustering", state=state)
    assert_like(second, more.clipped_clustering(again, seen=np.linalg.norm(x, axis=1)), again)
    assert len(state["norms"]) == 2 * len(x)


def test_clipped_clustering_remembers_norms():
    # Norms 4, 2, 1, 8: the median is 3. The first three rows are one cluster; clipped they are 3, 2, 1.
    x = rows([4, 0], [2, 0], [1, 0], [0, 8])
    first, state = aggregate(x, "clipped_clustering", state=None)
    np.testing.assert_allclose(first.value, [2, 0])
    np.testing.assert_allclose(first.weights, [0.25, 1 / 3, 1 / 3, 0])
    assert first.stats == {"radius": 3.0, "kept": [0, 1, 2], "clipped": [0, 3]}
    # Ten times as long: of 1 2 4 8 10 20 40 80 the median is 9; alone it would be 30.
    second, after = aggregate(10 * x, "clipped_clustering", state=state)
    np.testing.assert_allclose(second.value, [9, 0])
    np.testing.assert_allclose(aggregate(10 * x, "clipped_clustering").value, [20, 0])
    assert state["norms"].tolist() == [4, 2, 1, 8]
    assert after["norms"].tolist() == [4, 2, 1, 8, 40, 20, 10, 80]


# -- SignGuard -----------------------------------------------------------------------------------


@quick
@given(matrices(), st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 5))
def test_signguard_like_oracle(x, share, seed):
    expected = more.signguard(x, share=share, seed=seed)
    norms = np.linalg.norm(x, axis=1)
    edges = np.abs(norms / np.median(norms) - np.array([[0.1], [3.0]]))
    assume(edges.min() > 1e-9)
    assert_like(aggregate(torch.from_numpy(x), f"signguard(share={share}, seed={seed})"), expected, x)


SIGNS = ([1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, -1, -1, -1], [10, 10, 10, -10])


def test_signguard_by_hand():
    # Norms 2, 2, 2, 2, 20: the last is out. Rows 0, 1, 2 and 4 have three positive signs and one negative, row 3 none.
    result = aggregate(rows(*SIGNS), "signguard(share=1.0)")
    assert result.stats["usual_norm"] == [0, 1, 2, 3]
    assert result.stats["usual_signs"] == [0, 1, 2, 4]
    assert result.stats["signs"] == [[3, 0, 1]] * 3 + [[0, 0, 4]] + [[3, 0, 1]]
    np.testing.assert_allclose(result.value, [1, 1 / 3, 1 / 3, 1 / 3])
    # Where ten times the median is allowed the last row counts, shortened to 2.
    wide = aggregate(rows(*SIGNS), "signguard(share=1.0, upper=10.0)")
    np.testing.assert_allclose(wide.value, [1, 0.5, 0.5, 0], atol=1e-15)
    np.testing.assert_allclose(wide.weights, [0.25, 0.25, 0.25, 0, 0.025])


def test_signguard_says_when_no_row_passes_both_filters():
    # Three rows agree in sign, but are 0.01, 0.01 and 100 long; the median length is 1.
    x = rows([0.01, 0], [0.01, 0], [100, 0], [0, -1], [0, -1])
    result = aggregate(x, "signguard(share=1.0)")
    assert result.outcome is Outcome.INFEASIBLE
    assert result.value.tolist() == [0, 0]
    assert result.weights.tolist() == [0] * 5


def test_signguard_counts_a_share_of_the_coordinates():
    x = torch.randn(5, 97, generator=torch.Generator().manual_seed(0))
    first, state = aggregate(x, "signguard", state=None)
    assert all(sum(signs) == 9 for signs in first.stats["signs"])  # a tenth, rounded down
    second, after = aggregate(x, "signguard", state=state)
    assert first.stats["signs"] != second.stats["signs"]
    assert int(after["draws"]) == 2
    assert aggregate(x, "signguard(seed=1)").stats["signs"] != first.stats["signs"]
    assert aggregate(x[:, :3], "signguard").stats["signs"] != [[0, 0, 0]] * 5  # never none
    counts = sign_counts(Rows.from_tensor(torch.tensor([[0.0, 1, -2, 3], [0, 0, 0, -0.0]])), torch.ones(4).bool())
    assert counts.tolist() == [[2, 1, 1], [0, 4, 0]]


# -- FLTrust -------------------------------------------------------------------------------------


@quick
@given(matrices(), st.integers(0, 2**32 - 1))
def test_fltrust_like_oracle(x, seed):
    trusted = np.abs(x).max() * np.random.default_rng(seed).standard_normal(x.shape[1])
    value, weights = more.fltrust(x, trusted)
    result = aggregate(torch.from_numpy(x), "fltrust", trusted=torch.from_numpy(trusted))
    assume(not 0 < np.abs(result.stats["scores"]).max() < 1e-3)
    assert_like(result, (value, weights), np.vstack([x, trusted]))


def test_fltrust_by_hand():
    # Cosines 1, 1 / sqrt 2 and -1. At the trusted length the first two are (2, 0) and (sqrt 2, sqrt 2).
    x, trusted = rows([3, 0], [1, 1], [-5, 0]), rows(2, 0)
    result = aggregate(x, "fltrust", trusted=trusted)
    total = 1 + math.sqrt(0.5)
    np.testing.assert_allclose(result.value, [3 / total, 1 / total])
    np.testing.assert_allclose(result.weights, [2 / 3 / total, 1 / total, 0])
    assert result.stats["scores"] == pytest.approx([1, math.sqrt(0.5), 0])
    # Longer replies buy nothing.
    np.testing.assert_allclose(
        aggregate(rows([1e30, 0], [1, 1], [-5, 0]), "fltrust", trusted=trusted).value, result.value
    )


@pytest.mark.parametrize("trusted", [[-1, 0], [0, -1], [0, 0]])
def test_fltrust_says_when_it_trusts_no_one(trusted):
    result = aggregate(rows([1, 0], [2, 0], [0, 3]), "fltrust", trusted=rows(*trusted))
    assert result.outcome is Outcome.INFEASIBLE
    assert result.value.tolist() == [0, 0]
    assert result.weights.tolist() == [0, 0, 0]


def test_fltrust_takes_rounding_for_no_agreement():
    # Orthogonal in exact arithmetic; 0.1 + 0.2 is not 0.3.
    result = aggregate(rows([0.1, 0.2, -0.3]), "fltrust", trusted=rows(1, 1, 1))
    assert result.outcome is Outcome.INFEASIBLE


def test_fltrust_says_what_to_pass():
    with pytest.raises(ConfigurationError, match=r"pass trusted=\.\.\., .* of shape \(2,\); got none"):
        aggregate(torch.ones(3, 2), "fltrust")
    with pytest.raises(ConfigurationError, match="got one with NaN or Inf"):
        aggregate(torch.ones(3, 2), "fltrust", trusted=torch.tensor([1.0, math.nan]))


def test_fltrust_with_one_row_left():
    x = torch.tensor([[math.nan, 1.0], [2.0, 0.0], [math.inf, 1.0]])
    result = aggregate(x, "fltrust", trusted=torch.tensor([1.0, 0.0]))
    assert result.value.tolist() == [1, 0]
    assert result.weights.tolist() == [0, 0.5, 0]


def test_fltrust_after_a_mixer_still_sees_the_trusted_row():
    x = rows([3, 0], [1, 1], [-5, 0])
    result = aggregate(x, "clip(c=0.5) | fltrust", trusted=rows(2, 0))
    np.testing.assert_allclose(result.value, aggregate(x, "fltrust", trusted=rows(2, 0)).value)


# -- FoolsGold -----------------------------------------------------------------------------------


@quick
@given(matrices(), st.sampled_from([0.5, 1.0, 2.0]))
def test_foolsgold_like_oracle(x, confidence):
    assert_like(aggregate(torch.from_numpy(x), f"foolsgold(confidence={confidence})"), more.foolsgold(x, confidence), x)


def test_foolsgold_by_hand():
    # Cosines .6, 0, 0: a = .4, .4, 1. ln(.4 / .6) + .5 = .0945; the last is alone and counts fully.
    x = rows([1, 0, 0], [0.6, 0.8, 0], [0, 0, 1])
    small = math.log(2 / 3) + 0.5
    result = aggregate(x, "foolsgold")
    assert result.stats["scores"] == pytest.approx([small, small, 1])
    np.testing.assert_allclose(result.weights, np.array([small, small, 1]) / (2 * small + 1))


def test_foolsgold_pardons():
    # v = .9, .9, .5. Row 2 is like row 1 by .5, but row 1 is liker to row 0: .5 * .5 / .9 = .278 counts, so a = .1, .1,
    # .722; over .722 that is .138, whose logit + 1/2 is below 0. With kappa = 1 the rows 0 and 1 are out.
    cosines = rows([1, 0.9, 0.2], [0.9, 1, 0.5], [0.2, 0.5, 1])
    assert sybil_weights(1 - cosines, 1.0).tolist() == [0, 0, 1]
    # Where it tells: v = .7, .7, .65, so row 2 has a = 1 - .65 * .65 / .7 = .396 and not .35; the others have .3.
    cosines = rows([1, 0.7, 0.1], [0.7, 1, 0.65], [0.1, 0.65, 1])
    share = 0.3 / (1 - 0.65 * 0.65 / 0.7)
    expected = 0.5 * (math.log(share / (1 - share)) + 0.5)
    assert 0.8 < expected < 0.9
    assert sybil_weights(1 - cosines, 0.5).tolist() == pytest.approx([expected, expected, 1])


def test_foolsgold_drops_sybils():
    rng = np.random.default_rng(0)
    honest, sybil = np.eye(5, 40) + 0.05 * rng.standard_normal((5, 40)), rng.standard_normal(40)
    x = torch.from_numpy(np.vstack([honest, sybil, 2 * sybil, 1e6 * sybil]))
    result = aggregate(x, "foolsgold")
    assert result.weights[5:].tolist() == [0, 0, 0]
    assert bool((result.weights[:5] > 0.15).all())
    # A single attacker goes free, whatever it sends: that is what the rule does not do.
    assert float(aggregate(x[:6], "foolsgold").weights[5]) > 0.15


def test_foolsgold_says_when_all_rows_are_sybils():
    for factor in (1, 3):
        x = rows([1, 2], [factor, 2 * factor], [1, 2])
        result = aggregate(x, "foolsgold")
        assert result.outcome is Outcome.INFEASIBLE
        assert result.value.tolist() == [0, 0]
    assert aggregate(rows([1, 2]), "foolsgold").value.tolist() == [1, 2]  # one row is like no other


# -- FLAME ---------------------------------------------------------------------------------------


@quick
@given(matrices(), st.sampled_from([0.0, 0.1]), st.integers(0, 5))
def test_flame_like_oracle(x, noise, seed):
    result = aggregate(torch.from_numpy(x), f"flame(noise={noise}, seed={seed})")
    assert_like(result, more.flame(x, noise, seed), x)


@quick
@given(st.integers(4, 24), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_flame_keeps_what_hdbscan_keeps(n, d, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) + rng.choice([0, 2], d)
    apart = more.cosine_distances(x)
    labels = HDBSCAN(
        min_cluster_size=n // 2 + 1, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True
    ).fit_predict(apart)
    kept = densest_majority(torch.from_numpy(apart)).nonzero().flatten().tolist()
    assert kept == np.flatnonzero(labels == 0).tolist()


def test_flame_by_hand():
    # Angles 0, 1, 3, 6 and 50, 50.5 degrees: links 0.5, 1, 2, 3 and 44. Four of six are together at 3 degrees.
    angles = np.radians([0, 50, 1, 50.5, 3, 6])
    lengths = np.array([1, 1, 2, 3, 4, 8])
    x = torch.from_numpy(lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1))
    result = aggregate(x, "flame")
    assert result.stats["kept"] == [0, 2, 4, 5]
    assert result.stats["radius"] == pytest.approx(2.5)  # of 1 1 2 3 4 8, the rows left out included
    assert result.stats["clipped"] == [3, 4, 5]
    np.testing.assert_allclose(result.weights, [1 / 4, 0, 1 / 4, 0, 2.5 / 4 / 4, 2.5 / 8 / 4])


def test_flame_keeps_all_rows_that_tie_at_the_last_link():
    assert aggregate(torch.ones(7, 3), "flame").stats["kept"] == list(range(7))
    # Three of six lie at 0 degrees; the twins at 10 come together.
    angles = np.radians([10, 0, 0, 0, 10, 90])
    x = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1))
    assert aggregate(x, "flame").stats["kept"] == [0, 1, 2, 3, 4]


def test_flame_keeps_a_majority_even_of_opposites():
    assert aggregate(column(1, -1), "flame").stats["kept"] == [0, 1]
    assert aggregate(column(1, -1, -2), "flame").stats["kept"] == [1, 2]
    assert aggregate(column(3), "flame").value.tolist() == [3]


def test_flame_noise_is_drawn_anew_and_repeats():
    x = torch.ones(9, 4000)
    quiet = aggregate(x, "flame")
    first, state = aggregate(x, "flame(noise=0.01)", state=None)
    radius = math.sqrt(4000)
    spread = float((first.value - quiet.value).std())
    assert 0.95 * 0.01 * radius < spread < 1.05 * 0.01 * radius
    second, after = aggregate(x, "flame(noise=0.01)", state=state)
    assert int(after["draws"]) == 2
    assert not torch.equal(first.value, second.value)
    assert torch.equal(second.value, aggregate(x, "flame(noise=0.01)", state=state)[0].value)
    assert not torch.equal(first.value, aggregate(x, "flame(noise=0.01, seed=1)").value)
    assert aggregate(x, "flame", state=None)[1] == {}  # nothing drawn, nothing counted


# -- weighted median and trimmed mean ------------------------------------------------------------


@quick
@given(matrices(), st.sampled_from([1.0, 2.0, 1e9]), st.integers(0, 2**32 - 1), st.data())
def test_weighted_order_statistics_like_oracle(x, clamp, seed, data):
    counts = np.random.default_rng(seed).integers(1, 1000, len(x)).astype(float)
    fields = {"weighted": True, "clamp": clamp}
    text = f"weighted=True, clamp={clamp}"
    result = aggregate(torch.from_numpy(x), f"median({text})", counts=counts)
    assert_like(result, more.median(x, **fields, counts=counts), x)
    assert float(result.weights.sum()) == pytest.approx(1)
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    result = aggregate(torch.from_numpy(x), f"trimmed_mean(f={f}, {text})", counts=counts)
    assert_like(result, more.trimmed_mean(x, f, **fields, counts=counts), x)
    assert float(result.weights.sum()) == pytest.approx(1)


@quick
@given(matrices(), st.sampled_from([1, 3, 7, 1e6]))
def test_equal_counts_change_nothing(x, count):
    counts, x = [count] * len(x), torch.from_numpy(x)
    f = (len(x) - 1) // 3
    for rule, fields in (("median", ""), ("trimmed_mean", f"f={f}, ")):
        plain = aggregate(x, f"{rule}({fields})")
        weighted = aggregate(x, f"{rule}({fields}weighted=True)", counts=counts)
        torch.testing.assert_close(weighted.value, plain.value, rtol=1e-12, atol=1e-12 * float(x.abs().max()))
        torch.testing.assert_close(weighted.weights, plain.weights)


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


@pytest.mark.parametrize("rule", ["median(weighted=True)", "trimmed_mean(f=1, weighted=True)"])
@pytest.mark.parametrize("counts", [None, [1, 2, 0], [1, 2, math.nan]])
def test_weighted_rules_need_positive_counts(rule, counts):
    with pytest.raises(ConfigurationError, match="counts"):
        aggregate(column(0, 1, 2), rule, counts=counts)


def test_weighted_median_bears_the_f_it_accepts():
    # Seven clients, two of which lie: 2 * 20 of 90. With three it would be 60 of 100, and is refused.
    x, counts = column(1.0, 1.1, 1.2, 1.3, 1.4, 1e8, 1e8), [10] * 5 + [10**9] * 2
    assert float(aggregate(x, "median(f=2, weighted=True)", counts=counts).value) < 2
    assert parse("median(f=3, weighted=True)").check(7) is not None


# -- the fields ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
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


@pytest.mark.parametrize(
    ("text", "smallest", "condition"),
    [
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
    rule = parse(text)
    assert rule.check(smallest) is None
    x = torch.randn(smallest, 3, generator=torch.Generator().manual_seed(0))
    aggregate(x, rule, counts=[1.0] * smallest)
    with pytest.raises(InfeasibleError, match=condition):
        aggregate(torch.zeros(smallest - 1, 3), rule)


# -- numbers to survive --------------------------------------------------------------------------

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
    more_ = {"counts": [5.0] * 9, "trusted": torch.ones(30)}
    torch.testing.assert_close(
        aggregate(x, rule, **more_).value.double(), aggregate(exact, rule, **more_).value, rtol=1e-7, atol=0
    )
