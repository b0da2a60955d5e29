"""CGE, comparative gradient elimination: the mean of the rows without the f longest.

    value = mean of the n - f rows of least ||x_i||, ties to the lowest index

Gupta, Liu, Vaidya, "Byzantine fault-tolerant distributed machine learning with norm-based comparative gradient
elimination" (DSN-W 2021).

Convention: the mean of the rows kept, where the paper takes their sum. Norms are taken from the origin, that is,
relative to the model that was sent. A faulty row no longer than the honest ones is kept whatever its direction.

Condition: n >= 2f + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from flwr_robust.aggregators.krum import lowest
from flwr_robust.core.fields import Integer
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["CGE"]


@aggregators.register("cge")
@dataclass(frozen=True)
class CGE(Rule):
    """Mean of the n - f shortest rows.

    Attributes
    ----------
    f : int
        Declared number of faulty rows, and of rows left out.
    """

    f: Annotated[int, Integer(minimum=0)]

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Leave out the longest rows and average the others."""
        norms = rows.squared_norms.sqrt()
        kept = lowest(norms, rows.n - self.f).sort().values
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[kept] = 1 / len(kept)
        stats = {"norms": norms.tolist(), "kept": kept.tolist()}
        return Aggregate(rows.mix(weights), weights, stats=stats), state


_LACKS = {
    "translation": "norms are taken from the origin",
    "scales": "a row shorter than the honest ones is kept whatever its direction",
}

CASES = (
    Case("cge(f=3)", lacks=_LACKS),
    Case("cge(f=2)", n=5, lacks=_LACKS),
)
