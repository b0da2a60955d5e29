"""bucketing: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import Rows, aggregate, parse
from tests.aggregators.problems import column
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


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
    np.testing.assert_array_equal(matrix, similarities.bucketing(np.zeros((n, 2)), s, seed))


def test_bucketing_draws_again_each_round():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    first, state = aggregate(x, "bucketing(s=3) | median", state=None, seed=0)
    second, after = aggregate(x, "bucketing(s=3) | median", state=state, seed=0)
    assert first.stats["bucketing.buckets"] != second.stats["bucketing.buckets"]
    assert {key: int(v) for key, v in after.items()} == {"0.draws": 2}
    again, _ = aggregate(x, "bucketing(s=3) | median", state=state, seed=0)
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


def test_bucketing_leaves_the_rule_fewer_rows():
    # Seven buckets of two: krum(f=2) needs 7 rows. Thirteen rows make seven buckets, too; twelve do not.
    rule = parse("bucketing(s=2) | krum(f=2)")
    assert rule.check(14) is None
    assert rule.check(13) is None
    assert "got n=6" in rule.check(12)
    assert rule.check(12).endswith(": ask at least 13 clients")
    assert rule.check(2).endswith(": ask at least 13 clients")
