"""FLAME: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import HDBSCAN

from flwr_robust import aggregate
from flwr_robust.aggregators.flame import densest_majority
from tests.aggregators.problems import assert_like, column, small_matrices
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


@quick
@given(small_matrices(), st.sampled_from([0.0, 0.1]), st.integers(0, 5))
def test_flame_like_oracle(x, noise, seed):
    result = aggregate(torch.from_numpy(x), f"flame(noise={noise}, seed={seed})")
    assert_like(result, similarities.flame(x, noise, seed), x)


@quick
@given(st.integers(4, 24), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_flame_keeps_what_hdbscan_keeps(n, d, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) + rng.choice([0, 2], d)
    apart = similarities.cosine_distances(x)
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
    first, state = aggregate(x, "flame(noise=0.01)", state=None, seed=0)
    radius = math.sqrt(4000)
    spread = float((first.value - quiet.value).std())
    assert 0.95 * 0.01 * radius < spread < 1.05 * 0.01 * radius
    second, after = aggregate(x, "flame(noise=0.01)", state=state, seed=0)
    assert int(after["draws"]) == 2
    assert not torch.equal(first.value, second.value)
    assert torch.equal(second.value, aggregate(x, "flame(noise=0.01)", state=state, seed=0)[0].value)
    assert not torch.equal(first.value, aggregate(x, "flame(noise=0.01, seed=1)").value)
    assert aggregate(x, "flame", state=None)[1] == {}  # nothing drawn, nothing counted
