"""Constant: all attackers send the same number in every coordinate.

    crafted = c (1, ..., 1)

Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-robust stochastic aggregation methods" (AAAI 2019) name it the
same-value attack; Xu, Yan, Zheng, Huang (Byz-DeSGD) take c = 5.

Convention: c is in the units of the rows: of updates relative to the model where clients send parameters.

Knows: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from flwr_robust.attacks.message.base import Knowledge, MessageCase, View, message_attacks
from flwr_robust.attacks.message.line import Line, LineAttack
from flwr_robust.core.fields import Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State

__all__ = ["Constant", "same"]


def same(view: View, value: float) -> Rows:
    """Return a row (1, d) that repeats one number, in the memory of one number."""
    return Rows.from_tensor(torch.tensor([[value]], dtype=torch.float64).expand(1, view.d))


@message_attacks.register("constant")
@dataclass(frozen=True)
class Constant(LineAttack):
    """Send c in every coordinate.

    Attributes
    ----------
    c : float
        The number.
    """

    c: Annotated[float, Number()]
    parameter: ClassVar[str] = "c"

    @property
    def knowledge(self) -> Knowledge:
        """Nothing."""
        return Knowledge.NOTHING

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from zero along the diagonal."""
        step = torch.ones(len(view.attackers), 1, dtype=torch.float64)
        return Line(same(view, 1.0), torch.zeros_like(step), step, 0)


CASES = (
    MessageCase("constant(c=5.0)", [(5, 5)], source="the formula"),
    MessageCase("constant(c=-0.5)", [(-0.5, -0.5)], source="the formula"),
)
