"""Multiples: all attackers send multiples of one row, so that the mean of all rows lies on one of theirs.

    S = -c x_1;   crafted_1, ..., crafted_(a-1) = S,   crafted_a = (n - a + 1) S

x_1: what the first attacker would have sent; a: the number of attackers; n: that of all clients asked. The crafted rows
add up to n S. So for large c the mean is S, up to the honest rows. A rule that iterates from the mean and divides by
distances then starts on a row. For c near zero the rows are too short to have a direction where digits are lost, though
they point the other way.

Convention: a single attacker sends n S. The source is the review of this project's own rules.

Knows: own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from flwr_robust.attacks.message.base import Knowledge, MessageCase, View, message_attacks
from flwr_robust.attacks.message.line import Line, LineAttack
from flwr_robust.core.fields import Number
from flwr_robust.core.rule import State

__all__ = ["Multiples"]


@message_attacks.register("multiples")
@dataclass(frozen=True)
class Multiples(LineAttack):
    """Send multiples of one row that is turned around.

    Attributes
    ----------
    c : float
        Factor of the row; > 0.
    """

    c: Annotated[float, Number(above=0)] = 1e8
    parameter: ClassVar[str] = "c"

    @property
    def knowledge(self) -> Knowledge:
        """Own."""
        return Knowledge.OWN

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from zero, against the first attacker's own row."""
        attackers = view.own.n
        step = torch.zeros(attackers, attackers, dtype=torch.float64)
        step[:, 0] = -1
        step[-1, 0] = -(view.n - attackers + 1)
        return Line(view.own, torch.zeros_like(step), step, 0)


CASES = (
    MessageCase("multiples(c=2.0)", [(-2, 0), (-8, 0)], source="the formula: n = 5, so that the rows add up to 5 S"),
    MessageCase("multiples(c=0.5)", [(-2.5, 0)], own=[(1, 0)], honest=[(1, 2)] * 4, source="the formula: n = 5"),
)
