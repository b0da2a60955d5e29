"""krum: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError, InfeasibleError, aggregate
from tests.aggregators.problems import LINE, VARIANTS, choose, column, rows
from tests.oracles import basic

quick = settings(deadline=None, max_examples=150)


@quick
@given(st.data(), st.sampled_from(VARIANTS))
def test_krum_like_oracle(data, variant):
    x, grid, f = choose(data, 3)
    result = aggregate(torch.from_numpy(x), f"krum(f={f}, variant='{variant}')")
    scores = basic.krum_scores(x, f, variant)
    chosen = int(result.weights.argmax())
    np.testing.assert_array_equal(result.value, x[chosen])
    np.testing.assert_allclose(result.stats["scores"], scores, rtol=1e-8, atol=0)
    assert scores[chosen] <= min(scores) * (1 + 1e-9)
    if grid and variant != "byzantine_momentum":  # sums of squares of integers: a tie is exact
        assert chosen == scores.index(min(scores))


@pytest.mark.parametrize(("variant", "chosen"), [("paper", 8), ("byzfl", 6), ("byzantine_momentum", 7)])
def test_krum_variants_choose_three_different_clients(variant, chosen):
    assert float(aggregate(column(*LINE), f"krum(f=1, variant='{variant}')").value) == chosen
    assert basic.krum(np.array(LINE, float)[:, None], 1, variant)[0] == [chosen]


def test_krum_scores_by_hand():
    result = aggregate(column(*LINE), "krum(f=1)")
    assert result.stats["scores"] == [0 + 1 + 36 + 49, 1 + 25 + 36, 21, 11, 9, 4 + 9 + 16]


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ((0, 1, 2, 3, 4), 1),  # scores 5 2 2 2 5
        ((4, 0, 3, 1, 2), 2),  # the same points, in another order
        ((7, 7, 7, 7, 7), 0),
        ((5, 0, 0, 0, 5), 1),
    ],
)
def test_krum_gives_a_tie_to_the_lowest_index(values, index):
    assert int(aggregate(column(*values), "krum(f=1)").weights.argmax()) == index


def test_krum_is_not_fooled_by_f_colluders():
    # Two at the same far place have distance 0 from each other; n - f - 2 = 3 neighbours reach the honest.
    x = rows([1e30, 1e30], [0, 0], [0, 1], [1e30, 1e30], [1, 0], [1, 1], [0.4, 0.4])
    assert aggregate(x, "krum(f=2)").value.tolist() == [0.4, 0.4]


def test_krum_among_few():
    x = rows([1e30, 1e30], [0, 0], [0, 1], [1e30, 1e30], [1, 0], [0.4, 0.4])
    assert aggregate(x, "krum(f=2, strict=False)").value.tolist() == [0.4, 0.4]  # two neighbours are enough here
    three = rows([1e30], [0], [1e30], [1], [1e30], [0.4])
    assert float(aggregate(three, "krum(f=3, strict=False)").value) == pytest.approx(1e30)  # one neighbour is not
    for name in ("krum", "multi_krum"):
        with pytest.raises(InfeasibleError, match=rf"{name} needs n >= 2f \+ 3; got n=6, f=2"):
            aggregate(x, f"{name}(f=2)")
        with pytest.raises(InfeasibleError, match=rf"{name} needs n >= f \+ 3; got n=6, f=4"):
            aggregate(x, f"{name}(f=4, strict=False)")
        with pytest.raises(ConfigurationError, match="strict"):
            aggregate(x, f"{name}(f=2, strict=1)")
    assert aggregate(x, "multi_krum(f=2, m=1, strict=False)").value.tolist() == [0.4, 0.4]
