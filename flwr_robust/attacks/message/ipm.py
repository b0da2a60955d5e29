"""IPM, inner product manipulation: all attackers send the honest mean turned around.

    crafted = -epsilon mean_i x_i

x_i: honest messages. Xie, Koyejo, Gupta, "Fall of empires: breaking Byzantine-tolerant SGD by inner product
manipulation" (UAI 2020). A small epsilon hides the crafted rows among the honest ones if their mean is short compared
with their spread. A large one is meant to outweigh them.

Convention: libraries default to epsilon 2 (ByzFL), 0.1, 0.2 or 1, which are different attacks; so epsilon is required.
`tailored` is the same attack with more ways to choose epsilon. The inner product of the honest mean with the mean of
all n rows is negative from epsilon > (n - f) / f on.

Knows: omniscient; with ``known`` own or partial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from flwr_robust.attacks.message.base import InformedAttack, MessageCase, View, message_attacks
from flwr_robust.attacks.message.line import Line, LineAttack, averaging
from flwr_robust.core.fields import Number
from flwr_robust.core.rule import State

__all__ = ["IPM", "against_the_mean"]


def against_the_mean(attack: InformedAttack, view: View) -> Line:
    """Return the line from zero against the mean of the rows that an attack sees."""
    seen = attack.seen(view)
    step = -averaging(seen.n, seen).repeat(len(view.attackers), 1)
    return Line(seen, torch.zeros_like(step), step, seen.n)


@message_attacks.register("ipm")
@dataclass(frozen=True)
class IPM(InformedAttack, LineAttack):
    """Send the honest mean times -epsilon.

    Attributes
    ----------
    epsilon : float
        Factor of the mean; > 0.
    known : "all", "clients", "own" or int
        As for `InformedAttack`.
    """

    epsilon: Annotated[float, Number(above=0)]
    parameter: ClassVar[str] = "epsilon"

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from zero, against the honest mean."""
        return against_the_mean(self, view)


CASES = (
    MessageCase("ipm(epsilon=0.1)", [(-0.3, -0.2)], source="the formula"),
    MessageCase("ipm(epsilon=1.0, known=2)", [(-2, 0)], source="the mean of the first two"),
    MessageCase("ipm(epsilon=1.0, known='own')", [(-0.5, -1)], source="the mean of the own"),
)
