"""resampling: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import Rows, aggregate, parse
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


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
    np.testing.assert_array_equal(matrix, similarities.resampling(np.zeros((n, 2)), s, seed))


def test_resampling_draws_again_each_round_and_keeps_the_number_of_rows():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    first, state = aggregate(x, "resampling(s=2) | median", state=None, seed=0)
    second, _ = aggregate(x, "resampling(s=2) | median", state=state, seed=0)
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
