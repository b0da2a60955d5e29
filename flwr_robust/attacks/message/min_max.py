"""Min-max: as far from the honest mean as the two honest rows that are farthest apart allow.

    crafted = mean + gamma p,   gamma the largest with max_i ||crafted - x_i|| <= max_ij ||x_i - x_j||

x_i: honest messages. p, the deviation: -mean / ||mean|| ("unit"), -std ("std"), -sign(mean) ("sign"). Shejwalkar,
Houmansadr, "Manipulating the Byzantine: optimizing model poisoning attacks and defenses for federated learning"
(NDSS 2021), whose defence-agnostic attack it is.

Convention: the authors search gamma by halving steps, which may stop outside the bound. Here the bound of every client
is solved for gamma, on n x n matrices, and the least gamma is taken. It stays below the bound by a share of 1e-9 and by
what rounding to the messages' type can add. Where nothing is left, or p is zero, the attackers send the mean.

Knows: omniscient; with ``known`` own or partial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from flwr_robust.attacks.message.base import InformedAttack, MessageCase, View, message_attacks
from flwr_robust.attacks.message.line import Line, LineAttack, averaging
from flwr_robust.core.fields import Choice, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State

__all__ = ["DEVIATIONS", "MARGIN", "MinMax", "apart"]

DEVIATIONS = ("unit", "std", "sign")

MARGIN = 1e-9


@message_attacks.register("min_max")
@dataclass(frozen=True)
class MinMax(InformedAttack, LineAttack):
    """Deviate within the largest honest distance.

    Attributes
    ----------
    deviation : str
        "unit", "std" or "sign": the direction.
    gamma : float or "auto"
        How far along the deviation; "auto" is as far as the bound allows, a number is used unchanged.
    known : "all", "clients", "own" or int
        As for `InformedAttack`.
    """

    deviation: Annotated[str, Choice(DEVIATIONS)] = "unit"
    gamma: Annotated[float | str, Number(minimum=0, words=("auto",))] = "auto"
    parameter: ClassVar[str] = "gamma"

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from the mean, along the deviation."""
        seen = base = self.seen(view)
        if self.deviation == "unit":
            step = -averaging(seen.n, seen)
            length = float(torch.linalg.vector_norm(seen.mix_exactly(step[0])))
            step = step / length if length > 0 else torch.zeros_like(step)
        else:
            base = seen.with_row(seen.spread() if self.deviation == "std" else _signs(seen))
            step = torch.zeros(1, base.n, dtype=torch.float64)
            step[0, -1] = -1
        start, attackers = averaging(seen.n, base), len(view.attackers)
        return Line(base, start.repeat(attackers, 1), step.repeat(attackers, 1), seen.n)

    def strength(self, view: View, line: Line, rng: torch.Generator) -> float:
        """Return gamma."""
        if self.gamma != "auto":
            return float(self.gamma)
        m, start, step = line.seen, line.start[:1], line.step[:1]
        inner, along, squared = torch.zeros(m, m, dtype=torch.float64), torch.zeros(m, dtype=torch.float64), 0.0
        for _, block in line.base.blocks():
            away, direction = block[:m] - start.to(block) @ block, (step.to(block) @ block)[0]
            inner += (away @ away.T).cpu()
            along += (away @ direction).cpu()
            squared += float(direction @ direction)
        return self.farthest(inner, along, squared, self._moved(view, line)) if squared > 0 else 0.0

    def _moved(self, view: View, line: Line) -> float:
        """Return how far writing a row within the bound may move it; none is longer than three times the longest."""
        if view.written(1.0) == 0:
            return 0.0
        return view.written(3 * float(line.base.squared_norms[: line.seen].max().sqrt()))

    def farthest(self, inner: Tensor, along: Tensor, squared: float, moved: float) -> float:
        """Return the largest gamma within the bound.

        Parameters
        ----------
        inner : Tensor (m, m)
            Inner products of the honest rows less the line's start, their mean.
        along : Tensor (m,)
            Their inner products with the line's step p.
        squared : float
            ||p||^2.
        moved : float
            How far rounding may move a crafted row.
        """
        bound = (1 - MARGIN) * math.sqrt(float(apart(inner).max())) - moved
        room = bound**2 - inner.diagonal()
        if bound <= 0 or bool((room <= 0).any()):
            return 0.0
        # ||x_i - start - gamma p||^2 <= bound^2, solved for gamma without cancellation.
        root = (along.square() + squared * room).sqrt()
        gamma = torch.where(along > 0, (along + root) / squared, room / (root - along))
        return float(gamma.min())


def _signs(rows: Rows) -> Tensor:
    return torch.cat([block.mean(0).sign() for _, block in rows.blocks()])


def apart(inner: Tensor) -> Tensor:
    """Return squared distances (m, m) of rows, given their inner products about their mean."""
    lengths = inner.diagonal()
    return (lengths[:, None] + lengths - 2 * inner).clamp(min=0)


CASES = (
    MessageCase("min_max(gamma=2.0, deviation='sign')", [(1, 0)], source="the formula"),
    MessageCase("min_max(gamma=2.0, deviation='std')", [(-1, -6)], source="the formula"),
    MessageCase(
        "min_max()",
        [(0,)],
        source="0, 1 and 5 lie 5 apart; 0 lies 5 from 5",
        honest=((0,), (1,), (5,)),
        own=((0,),),
        slack=1e-6,
    ),
)
