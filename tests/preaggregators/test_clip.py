"""clip: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError, aggregate
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


@quick
@given(matrices(), st.sampled_from(["c='median'", "c='quantile', quantile=0.25", "c='quantile', quantile=0.9"]))
def test_a_quantile_like_oracle(problem, field):
    x, _ = problem
    q = 0.5 if "median" in field else float(field.rpartition("=")[2])
    c = float(np.quantile(np.linalg.norm(x, axis=1), q))
    result = aggregate(torch.from_numpy(x), f"clip({field}) | mean")
    expected = basic.clipped(x, c).mean(0) if c > 0 else np.zeros(x.shape[1])
    assert_value(result, expected, x)
    assert result.stats["clip.radius"] == pytest.approx(c, rel=1e-12)


def test_the_norms_of_earlier_rounds_count():
    rule, state, seen = "clip(c='median', earlier=2) | mean", None, []
    for server_round, size in enumerate((1.0, 100.0, 10.0, 1000.0)):
        x = size * column(1, 2, 3, 4, 5)
        seen.append(size * np.arange(1, 6))
        result, state = aggregate(x, rule, state=state)
        expected = np.median(np.concatenate(seen[-3:]))  # of this round and the two before
        assert result.stats["clip.radius"] == pytest.approx(expected), server_round
    assert sum(tensor.numel() for tensor in state.values()) == 10 + 2  # bounded: two rounds, and their sizes


def test_one_long_row_moves_a_quantile_no_further_than_the_honest_norms():
    honest = column(1, 1.1, 1.2, 1.3)
    for lie in (1e3, 1e30):
        result = aggregate(torch.cat([honest, column(lie)]), "clip(c='median') | mean")
        assert result.stats["clip.radius"] <= 1.3
        assert float(result.value) <= 1.3


@pytest.mark.parametrize(
    "field", ["", "c=1.0, quantile=0.7", "c=1.0, earlier=3", "c='quantile', quantile=1.0", "c='mean'"]
)
def test_fields_that_do_not_fit(field):
    with pytest.raises(ConfigurationError, match="clip: "):
        aggregate(column(1, 2), f"clip({field}) | mean")
