"""clustering: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from flwr_robust import Rows, aggregate
from flwr_robust.aggregators.clustering import larger_cluster
from tests.aggregators.problems import assert_like, rows, small_matrices
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


@quick
@given(small_matrices(least=3), st.sampled_from(["average", "complete", "single"]))
def test_clustering_like_oracle(x, link):
    result = aggregate(torch.from_numpy(x), f"clustering(linkage='{link}')")
    assert_like(result, similarities.clustering(x, link), x)


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
    apart = Rows.from_tensor(x).cosine_distances
    assert apart[:3, :3].abs().max() == 0
    assert apart[3].tolist() == [1, 1, 1, 0, 1]
    np.testing.assert_allclose(apart[4, :3], 2)
    assert Rows.from_tensor(torch.zeros(3, 2)).cosine_distances.tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_cosine_distances_keep_small_angles():
    # 1 - cos of 1e-9 radians is 5e-19, which 1 minus a cosine cannot hold; nor may lengths of 1e-20 and 1e20 matter.
    for scale in (1.0, 1e-20, 1e20):
        x = rows([1, 0], [scale, 1e-9 * scale], [0, 1])
        apart = Rows.from_tensor(x).cosine_distances
        assert float(apart[0, 1]) == pytest.approx(5e-19, rel=1e-6)
        assert float(apart[0, 2]) == pytest.approx(1)
