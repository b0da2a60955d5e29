"""signguard: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flwr_robust import Outcome, Rows, aggregate
from flwr_robust.aggregators.signguard import sign_counts
from tests.aggregators.problems import assert_like, rows, small_matrices
from tests.oracles import similarities

quick = settings(deadline=None, max_examples=60)


@quick
@given(small_matrices(), st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 5))
def test_signguard_like_oracle(x, share, seed):
    expected = similarities.signguard(x, share=share, seed=seed)
    norms = np.linalg.norm(x, axis=1)
    edges = np.abs(norms / np.median(norms) - np.array([[0.1], [3.0]]))
    assume(edges.min() > 1e-9)
    assert_like(aggregate(torch.from_numpy(x), f"signguard(share={share}, seed={seed})"), expected, x)


SIGNS = ([1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, -1, -1, -1], [10, 10, 10, -10])


def test_signguard_by_hand():
    # Norms 2, 2, 2, 2, 20: the last is out. Rows 0, 1, 2 and 4 have three positive signs and one negative, row 3 none.
    result = aggregate(rows(*SIGNS), "signguard(share=1.0)")
    assert result.stats["usual_norm"] == [0, 1, 2, 3]
    assert result.stats["usual_signs"] == [0, 1, 2, 4]
    assert result.stats["signs"] == [[3, 0, 1]] * 3 + [[0, 0, 4]] + [[3, 0, 1]]
    np.testing.assert_allclose(result.value, [1, 1 / 3, 1 / 3, 1 / 3])
    # Where ten times the median is allowed the last row counts, shortened to 2.
    wide = aggregate(rows(*SIGNS), "signguard(share=1.0, upper=10.0)")
    np.testing.assert_allclose(wide.value, [1, 0.5, 0.5, 0], atol=1e-15)
    np.testing.assert_allclose(wide.weights, [0.25, 0.25, 0.25, 0, 0.025])


def test_signguard_says_when_no_row_passes_both_filters():
    # Three rows agree in sign, but are 0.01, 0.01 and 100 long; the median length is 1.
    x = rows([0.01, 0], [0.01, 0], [100, 0], [0, -1], [0, -1])
    result = aggregate(x, "signguard(share=1.0)")
    assert result.outcome is Outcome.INFEASIBLE
    assert result.value.tolist() == [0, 0]
    assert result.weights.tolist() == [0] * 5


def test_signguard_counts_a_share_of_the_coordinates():
    x = torch.randn(5, 97, generator=torch.Generator().manual_seed(0))
    first, state = aggregate(x, "signguard", state=None)
    assert all(sum(signs) == 9 for signs in first.stats["signs"])  # a tenth, rounded down
    second, after = aggregate(x, "signguard", state=state)
    assert first.stats["signs"] != second.stats["signs"]
    assert int(after["draws"]) == 2
    assert aggregate(x, "signguard(seed=1)").stats["signs"] != first.stats["signs"]
    assert aggregate(x[:, :3], "signguard").stats["signs"] != [[0, 0, 0]] * 5  # never none
    counts = sign_counts(Rows.from_tensor(torch.tensor([[0.0, 1, -2, 3], [0, 0, 0, -0.0]])), torch.ones(4).bool())
    assert counts.tolist() == [[2, 1, 1], [0, 4, 0]]
