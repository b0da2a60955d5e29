"""Rows that someone chose to be hard: many scales, multiples of one row, near and equal rows, far ones."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

__all__ = ["KINDS", "rough_rows"]

KINDS = ("scaled rows", "scaled columns", "near rows", "multiples", "ties", "far rows", "mean on a row", "plain")


@st.composite
def rough_rows(draw, least=1, most=60, widest=2000, kinds=KINDS):
    """Rows (n, d), float64, with scales from 1e-12 to 1e12 between rows or within."""
    n = draw(st.integers(least, most))
    d = round(widest ** draw(st.floats(0, 1)))
    kind = draw(st.sampled_from(kinds))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((n, d))
    scales = 10.0 ** rng.uniform(-12, 12, (n, 1))
    if kind == "scaled rows":
        x *= scales
    elif kind == "scaled columns":
        x *= 10.0 ** rng.uniform(-12, 12, (1, d))
    elif kind == "near rows":
        x = x[rng.integers(0, n, n)] + 10.0 ** rng.uniform(-12, 0, (n, 1)) * rng.standard_normal((n, d))
    elif kind == "multiples":
        x = rng.choice([-1, 1], (n, 1)) * scales * x[:1]
    elif kind == "ties":
        x = rng.integers(-2, 3, (n, d))[rng.integers(0, n, n)].astype(float)
    elif kind == "far rows":
        f = (n - 1) // 2
        x = 1 + 1e-4 * x
        x[:f] = scales[:f] * x[-1] * rng.choice([-1, 1], (f, 1))
    elif kind == "mean on a row" and n >= 3:
        x[0] *= 1e8
        x[1] = (n - 1) * x[0]
    return x.astype(np.float32).astype(float) if draw(st.booleans()) else x
