"""Matrices to try rules on, and how close a value must come."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st


@st.composite
def matrices(draw, least=1, most=30, grid=None):
    """A matrix and whether it is a grid: small integers times a power of two, full of ties and exact in float64."""
    n, d = draw(st.integers(least, most)), draw(st.integers(1, 50))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()) if grid is None else grid:
        few = rng.integers(-3, 4, (n, d))[rng.integers(0, n, n)]
        return few * 2.0 ** draw(st.integers(-20, 20)), True
    x = rng.standard_normal((n, d)) + draw(st.sampled_from([0, 1, 30]))
    x = x * 10.0 ** draw(st.integers(-6, 6))
    if draw(st.booleans()):
        x = x.astype(np.float32).astype(float)
    return x, False


def column(*values):
    return torch.tensor([[v] for v in values], dtype=torch.float64)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def assert_value(result, expected, x):
    scale = np.abs(np.asarray(x, float)).max()
    np.testing.assert_allclose(result.value.double(), expected, rtol=1e-9, atol=1e-12 * scale)


def choose(data, least):
    """Rows and the largest f, or a smaller one, that fits 2f + least of them."""
    x, grid = data.draw(matrices(least))
    return x, grid, data.draw(st.integers(0, (len(x) - least) // 2))


VARIANTS = ["paper", "byzfl", "byzantine_momentum"]


# Points 0, 1, 6, 7, 8, 10 on a line, f = 1. Distances to the nearest others:
#   6: 1 2 4 5    7: 1 1 3 6    8: 1 2 2 7    10: 2 3 4 9
# paper, three squared:  6: 1+4+16 = 21    7: 1+1+9 = 11       8: 1+4+4 = 9        -> 8
# byzfl, four squared:   6: 21+25 = 46     7: 11+36 = 47       8: 9+49 = 58        -> 6
# plain, four:           6: 12             7: 11               8: 12               -> 7
LINE = (0, 1, 6, 7, 8, 10)


@st.composite
def small_matrices(draw, least=1, most=16):
    """Normal rows of any size and place, sometimes rounded to float32."""
    n, d = draw(st.integers(least, most)), draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = (rng.standard_normal((n, d)) + draw(st.sampled_from([0, 1, 30]))) * 10.0 ** draw(st.integers(-6, 6))
    return x.astype(np.float32).astype(float) if draw(st.booleans()) else x


def assert_like(result, expected, x):
    """Value and, where the oracle has them, weights."""
    value, weights = expected
    np.testing.assert_allclose(result.value.double(), value, rtol=1e-8, atol=1e-9 * np.abs(x).max())
    if weights is not None:
        np.testing.assert_allclose(result.weights, weights, rtol=1e-6, atol=1e-9)
