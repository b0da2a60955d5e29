"""Static clipping: no row longer than c.

    x'_i = x_i min{1, c / ||x_i||}

Convention: norms are taken from the origin, that is, relative to the model that was sent.

Condition: n >= 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from flwr_robust.core.fields import Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Case, PreAggregator, State, preaggregators

__all__ = ["Clip"]


@preaggregators.register("clip")
@dataclass(frozen=True)
class Clip(PreAggregator):
    """Shorten every row to a norm of at most c.

    Attributes
    ----------
    c : float
        The largest norm, in the units of the rows; > 0.
    """

    c: Annotated[float, Number(above=0)]

    def matrix(self, rows: Rows, state: State) -> tuple[Tensor, Mapping[str, Any], State]:
        """Scale the rows."""
        norms = rows.squared_norms.sqrt()
        factors = (self.c / norms).clamp(max=1)  # a row of zeros: c / 0 is infinite, and stays as it is
        return torch.diag(factors), {"clipped": (norms > self.c).nonzero().flatten().tolist()}, state


CASES = (
    Case(
        "clip(c=2.0) | trimmed_mean(f=2)",
        lacks={
            "translation": "clipping is relative to the origin",
            "scale": "c is in the units of the rows",
            "unanimity": "rows longer than c are shortened",
            "mix": "a coordinate rule is no combination of whole rows",
        },
    ),
    Case(
        "clip(c=2.0) | krum(f=2)",
        lacks={
            "translation": "clipping is relative to the origin",
            "scale": "c is in the units of the rows",
            "unanimity": "rows longer than c are shortened",
        },
    ),
)
