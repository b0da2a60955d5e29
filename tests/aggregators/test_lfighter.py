"""lfighter: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError, aggregate
from flwr_robust.aggregators.lfighter import k_means, two_means
from tests.aggregators.problems import assert_value, column, rows
from tests.oracles import basic

FARTHEST = "lfighter(start='farthest')"

quick = settings(deadline=None, max_examples=150)


@quick
@given(st.integers(2, 20), st.integers(2, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 4]))
def test_lfighter_like_oracle(n, classes, features, seed, offset):
    rng = np.random.default_rng(seed)
    layout = [("w", (3, 2)), ("head", (classes, features)), ("bias", (classes,))]
    x = rng.standard_normal((n, 6 + classes * features + classes)) * 10.0 ** rng.integers(-4, 5)
    x[: n // 3] += offset * np.abs(x).max()
    value, weights = basic.lfighter(x, layout, start="farthest")
    result = aggregate(torch.from_numpy(x), FARTHEST, layout=layout)
    scores = result.stats["scores"]
    assume(abs(scores[0] - scores[1]) > 1e-9)  # ties have their own test
    np.testing.assert_allclose(result.weights, weights)
    assert_value(result, value, x)


HEAD = [("features", (2, 2)), ("head", (2, 2)), ("bias", (2,))]


def with_head(*heads):
    """Rows whose head is given; features and bias would separate them otherwise."""
    noise = [[100 * (-1) ** i] * 4 for i in range(len(heads))]
    return rows(*[[*noise[i], *head, 1000 * i, -1000] for i, head in enumerate(heads)])


def test_lfighter_keeps_the_dissimilar_cluster():
    # The rows farthest apart are in {0, 1, 2} and {3, 4}. In the first all cosines are 1 and the row minima are
    # cos(i, i) - 1 = 0: d = 3/5. In the second the cosine is -1: d = 2/5 * 2 = 4/5, the larger.
    x = with_head([100, 0, 0, 0], [101, 0, 0, 0], [99, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0])
    result = aggregate(x, FARTHEST, layout=HEAD)
    assert result.stats["scores"] == pytest.approx([0.6, 0.8])
    assert result.stats["kept"] == [3, 4]
    torch.testing.assert_close(result.value, x[3:].mean(0))


def test_lfighter_keeps_the_larger_of_two_alike_clusters():
    # Row 4 points the same way as row 3 now: d = 2/5 against 3/5.
    x = with_head([100, 0, 0, 0], [101, 0, 0, 0], [99, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0])
    result = aggregate(x, FARTHEST, layout=HEAD)
    assert result.stats["scores"] == pytest.approx([0.6, 0.4])
    torch.testing.assert_close(result.value, x[:3].mean(0))


def test_lfighter_looks_at_the_two_strongest_classes():
    # Class 1 has the summed norm 15, class 2 has 8 and class 0 has 5: on (1, 2) the clusters are {0, 1, 2}, {3, 4}.
    layout = [("head", (3, 1))]
    x = rows([1, 3, 2], [-1, 3, 2], [1, 3, 2], [-1, -3, 1], [1, -3, 1])
    result = aggregate(x, FARTHEST, layout=layout)
    assert result.stats["classes"] == [1, 2]
    assert result.stats["kept"] == [0, 1, 2]


def test_lfighter_gives_a_tie_to_the_cluster_of_row_0():
    # Two clusters of two, all cosines positive: both have d = 1/2.
    for seed in range(20):
        rng = np.random.default_rng(seed)
        heads = np.array([[0, 1, 2, 3], [0, 1, 2, 3], [90, 80, 70, 60], [90, 80, 70, 60]]) + rng.uniform(1, 2, (4, 4))
        assert aggregate(with_head(*heads.tolist()), FARTHEST, layout=HEAD).stats["kept"] == [0, 1]


def test_lfighter_reads_the_head_it_is_told():
    x = with_head([100, 0, 0, 0], [101, 0, 0, 0], [99, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0])
    # The feature matrix alternates between 100 and -100: rows 0, 2, 4 are one cluster, the larger.
    result = aggregate(x, "lfighter(head='features', start='farthest')", layout=HEAD)
    assert result.stats["kept"] == [0, 2, 4]


@pytest.mark.parametrize(
    ("rule", "layout", "words"),
    [
        ("lfighter", (), "layout"),
        ("lfighter(head='nowhere')", HEAD, "features, head"),
        ("lfighter(head='bias')", HEAD, "features, head"),
        ("lfighter", [("bias", (10,))], "it has none"),
    ],
)
def test_lfighter_says_which_heads_there_are(rule, layout, words):
    with pytest.raises(ConfigurationError, match=words):
        aggregate(torch.zeros(3, 10), rule, layout=layout)


def test_two_means_by_hand():
    # From 0 and 10: 4 joins 0. Means 2 and 9.5; nothing changes.
    assert two_means(column(4, 9, 0, 10)).tolist() == [True, False, True, False]
    # From 0 and 12: 0 5 | 7 12. From 0 and 13: 6 joins 0, then 3 and 13; the fixed point.
    assert two_means(column(0, 6, 13)).tolist() == [True, True, False]
    # Row 0 is in the cluster called True wherever it lies.
    assert two_means(column(13, 6, 0)).tolist() == [True, False, False]
    assert two_means(column(9, 0, 10)).tolist() == [True, False, True]
    assert two_means(column(5, 5, 5)).tolist() == [True, True, True]
    # Lloyd's second step matters: from 0 and 10 the point 5.5 joins 10, and stays; 4.9, 4.9 join 0. The means are
    # then 3.27 and 7.75, their middle 5.51: 5.5 changes sides.
    assert two_means(column(0, 4.9, 4.9, 5.5, 10)).tolist() == [True, True, True, True, False]


# -- the published start ---------------------------------------------------------------------------


@quick
@given(
    st.integers(2, 30),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3, 10]),
    st.sampled_from([0, 6]),
)
def test_k_means_is_the_library_s(n, features, seed, starts, offset):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, features)) * 10.0 ** rng.integers(-3, 4)
    points[: n // 3] += offset * np.abs(points).max()
    labels = basic.published_two_means(points, seed % 1000, starts)
    found = k_means(torch.from_numpy(points), seed % 1000, starts).numpy()
    np.testing.assert_array_equal(found, labels == 0)


def test_points_that_coincide_are_one_cluster():
    assert k_means(torch.ones(5, 3, dtype=torch.float64), 0, 10).all()


def test_the_published_start_and_the_farthest_differ():
    """Ten clients of one class each: a drawn start keeps the poisoned client, which stands apart, and drops others."""
    seeds = range(40)
    different = []
    for seed in seeds:
        x = np.random.default_rng(seed).standard_normal((10, 4)) + 3 * np.eye(10, 4)
        layout = [("head", (2, 2))]
        kept = [
            aggregate(torch.from_numpy(x), rule, layout=layout).stats["kept"] for rule in ("lfighter(seed=0)", FARTHEST)
        ]
        different.append(kept[0] != kept[1])
    assert 5 < sum(different) < 40  # two rules, on the same messages


def test_a_seed_of_its_own_draws_the_same_in_every_round():
    x, layout = torch.from_numpy(np.random.default_rng(3).standard_normal((12, 4))), [("head", (2, 2))]
    first, state = aggregate(x, "lfighter(seed=0)", layout=layout, state=None)
    assert state == {}
    assert aggregate(x, "lfighter(seed=0)", layout=layout).stats["kept"] == first.stats["kept"]
    kept = [
        aggregate(x, "lfighter", layout=layout, seed=seed).stats["kept"] for seed in range(30)
    ]  # by the round's seed
    assert len(set(map(tuple, kept))) > 1
    assert kept[4] == aggregate(x, "lfighter", layout=layout, seed=4).stats["kept"]
    with pytest.raises(ConfigurationError, match="seed must be below"):
        aggregate(x, f"lfighter(seed={2**32})", layout=layout)
