"""reweighted_geometric_median: solved by hand, and how it chooses among rows that lie far apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flwr_robust import ConfigurationError, Outcome, aggregate
from tests.oracles import basic


def test_by_hand_on_a_line():
    # z_0 = 1 (the middle row). Importance e^-1, 1, e^-9: the row at 1 holds more than half, and stays the median.
    x = torch.tensor([[0.0], [1.0], [10.0]], dtype=torch.float64)
    found = aggregate(x, "reweighted_geometric_median()")
    assert found.value.tolist() == [1.0]
    assert found.weights.tolist() == [0.0, 1.0, 0.0]


def test_weights_fade_from_the_last_point():
    # Any point between the two middle rows is a median of four; theirs is the middle. The far pair fades twice.
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [4.0, 4.0], [5.0, 3.0]])
    found = aggregate(torch.from_numpy(x), "reweighted_geometric_median(times=2, scale=2.0)")
    z, _ = basic.reweighted_geometric_median(x, times=2, scale=2.0)
    np.testing.assert_allclose(found.value, z, atol=1e-5)
    plain = aggregate(torch.from_numpy(x), "geometric_median()").value
    assert np.linalg.norm(found.value - x[:3].mean(0)) < np.linalg.norm(plain - x[:3].mean(0))


def test_without_repetition_it_is_the_geometric_median():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((9, 6)))
    np.testing.assert_allclose(
        aggregate(x, "reweighted_geometric_median(times=0)").value, aggregate(x, "geometric_median()").value, atol=1e-12
    )


def test_rows_far_apart_are_chosen_among_like_krum_does():
    # Ten rows about 140 apart: all weight goes to the one nearest to the median, and e^-100 does not vanish to nothing.
    x = torch.from_numpy(10 * np.random.default_rng(1).standard_normal((10, 100)))
    found = aggregate(x, "reweighted_geometric_median()")
    assert found.outcome is Outcome.OK
    assert found.weights.max() > 1 - 1e-9
    first = aggregate(x, "geometric_median()").value
    nearest = int(torch.linalg.vector_norm(x - first, dim=1).argmin())
    assert int(found.weights.argmax()) == nearest
    # Near together the weights hardly fade.
    near = aggregate(x / 1e6, "reweighted_geometric_median()")
    assert near.weights.max() < 0.2


def test_scale_is_a_length_of_the_rows():
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((8, 5)))
    one = aggregate(x, "reweighted_geometric_median(scale=1.0)")
    ten = aggregate(10 * x, "reweighted_geometric_median(scale=10.0)")
    np.testing.assert_allclose(ten.value, 10 * one.value, atol=1e-4)


@pytest.mark.parametrize("text", ["times=-1", "scale=0.0", "maximum=0", "f=-1"])
def test_what_is_refused(text):
    with pytest.raises(ConfigurationError, match=f"reweighted_geometric_median: {text.split('=')[0]} must be"):
        aggregate(torch.zeros(3, 2), f"reweighted_geometric_median({text})")
