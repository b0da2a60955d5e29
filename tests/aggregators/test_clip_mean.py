"""clip_mean: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import torch

from flwr_robust import aggregate
from tests.aggregators.problems import rows


def test_clip_mean_by_hand():
    # Norms 5, 1, 2: the median is 2, so (3, 4) becomes (1.2, 1.6).
    result = aggregate(rows([3, 4], [0, 1], [-2, 0]), "clip_mean")
    np.testing.assert_allclose(result.value, [-0.8 / 3, 2.6 / 3])
    np.testing.assert_allclose(result.weights, [0.4 / 3, 1 / 3, 1 / 3])
    assert result.stats == {"bound": 2, "clipped": [0]}
    # Norms 5, 1, 2, 0: the mean of the middle two, 1.5; the zero row stays what it is.
    result = aggregate(rows([3, 4], [0, 1], [-2, 0], [0, 0]), "clip_mean")
    np.testing.assert_allclose(result.value, [(0.9 - 1.5) / 4, 2.2 / 4])
    # When the median is zero nothing is left of the others.
    assert aggregate(rows([3, 4], [0, 0], [0, 0]), "clip_mean").value.tolist() == [0, 0]


def test_weighted_clip_mean_by_hand():
    # The median norm, of clients, is 2, whatever they claim: (1.2, 1.6), (0, 1) and (-2, 0) by 2, 1 and 1.
    result = aggregate(rows([3, 4], [0, 1], [-2, 0]), "clip_mean(weighted=True)", counts=[1000, 1, 1])
    np.testing.assert_allclose(result.value, [0.4 / 4, 4.2 / 4])
    np.testing.assert_allclose(result.weights, [0.4 * 2 / 4, 1 / 4, 1 / 4])
    # It is the step that clips and the weighted mean, with a condition on f.
    x, counts = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), [1, 5, 3, 9, 2, 2, 60, 4, 1]
    both = aggregate(x, "clip(c='median') | mean(weighted=True)", counts=counts)
    torch.testing.assert_close(aggregate(x, "clip_mean(f=2, weighted=True)", counts=counts).value, both.value)
