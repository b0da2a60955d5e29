"""clip: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import aggregate
from tests import oracles
from tests.aggregators.problems import assert_value, column, matrices, rows
from tests.oracles import basic

quick = settings(deadline=None, max_examples=150)


@quick
@given(matrices(), st.sampled_from([0.01, 0.7, 5.0]))
def test_clip_like_oracle(problem, c):
    x, _ = problem
    c *= float(np.linalg.norm(x, axis=1).max()) or 1.0
    for rule in ("mean", "median"):
        result = aggregate(torch.from_numpy(x), f"clip(c={c!r}) | {rule}")
        assert_value(result, oracles.RULES[rule](basic.clipped(x, c))[0], x)


def test_clip_by_hand():
    # (3, 4) has length 5 and becomes (1.2, 1.6); (0, 1) and (0, 0) are short enough.
    result = aggregate(rows([3, 4], [0, 1], [0, 0]), "clip(c=2.0) | mean")
    np.testing.assert_allclose(result.value, [0.4, 2.6 / 3])
    np.testing.assert_allclose(result.weights, [0.4 / 3, 1 / 3, 1 / 3])
    assert result.stats["clip.clipped"] == [0]


def test_clips_follow_each_other():
    x = rows([30, 40], [0, 1])
    both = aggregate(x, "clip(c=2.0) | clip(c=0.5) | mean")
    np.testing.assert_allclose(both.value, [0.15, (0.4 + 0.5) / 2])
    np.testing.assert_allclose(both.weights, [0.01 / 2, 0.5 / 2])  # of the rows that came in
    # Krum measures what comes out of the clipping: three equal rows instead of three scattered ones.
    x = column(0, 0.3, 10, 20, 40)
    assert int(aggregate(x, "clip(c=1.0) | krum(f=1)").weights.argmax()) == 2
    assert int(aggregate(x, "krum(f=1)").weights.argmax()) == 1
