"""clipped_clustering: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import aggregate
from tests.aggregators.problems import assert_like, rows, small_matrices
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


@quick
@given(small_matrices(least=3), st.integers(0, 2**32 - 1))
def test_clipped_clustering_like_oracle(x, seed):
    first, state = aggregate(torch.from_numpy(x), "clipped_clustering", state=None)
    assert_like(first, similarities.clipped_clustering(x), x)
    again = x * np.random.default_rng(seed).uniform(0.1, 10)
    second, state = aggregate(torch.from_numpy(again), "clipped_clustering", state=state)
    assert_like(second, similarities.clipped_clustering(again, seen=np.linalg.norm(x, axis=1)), again)
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
