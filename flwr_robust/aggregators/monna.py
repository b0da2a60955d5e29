"""MoNNA: the mean of the nearest neighbours of a trusted row.

    S     = the n - f rows x_i with the least ||x_i - t||, ties to the lowest index
    value = mean of the rows in S

t is a row the server trusts: an update of its own. Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust
collaborative learning with linear gradient overhead" (ICML 2023), where every node takes its own row for t.

Convention: t itself is not averaged. ByzFL takes the row of a given index for t and averages it with the others; pass
that row as the trusted one to get the same.

Condition: n >= 2f + 1, and a trusted row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from flwr_robust.aggregators.krum import lowest
from flwr_robust.core.fields import Integer
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators
from flwr_robust.kernels.nearest import squared_distances_to

__all__ = ["Monna"]


@aggregators.register("monna")
@dataclass(frozen=True)
class Monna(Rule):
    """Mean of the n - f rows nearest to a trusted one.

    Attributes
    ----------
    f : int
        Declared number of faulty rows, and of rows left out.
    """

    f: Annotated[int, Integer(minimum=0)]

    @property
    def needs_trust(self) -> bool:
        """Return True: the rule compares with a trusted row."""
        return True

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Average the neighbours of the trusted row."""
        assert rows.trusted is not None
        distances = squared_distances_to(rows.blocks(), rows.trusted)
        kept = lowest(distances, rows.n - self.f).sort().values
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[kept] = 1 / len(kept)
        stats = {"distances": distances.sqrt().tolist(), "kept": kept.tolist()}
        return Aggregate(rows.mix(weights), weights, stats=stats), state


CASES = (Case("monna(f=3)"), Case("monna(f=2)", n=5))
