"""Tailored: the honest mean reversed, with a factor chosen against the rule in use.

    crafted = -epsilon mean_i x_i

x_i: honest messages. Ramezani-Kebrya, Tabrizian, Faghri, Popovski, "MixTailor: mixed gradient aggregation for robust
learning against tailored attacks" (TMLR 2022): epsilon = 0.1 breaks Krum, 10 the coordinate-wise median. Several
numbers are drawn from in every round; "search" finds epsilon against the rule in use.

Convention: with ``known`` a number only the first honest messages are seen, and the others are taken to be their mean.
The search maximises the distance of the rule's value from the honest mean, by `strongest`.

Knows: omniscient; with ``known`` own or partial; with "search" the defence, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from flwr_robust.attacks.message.base import InformedAttack, Knowledge, MessageCase, View, message_attacks
from flwr_robust.attacks.message.ipm import against_the_mean
from flwr_robust.attacks.message.line import Damage, Line, LineAttack, strongest
from flwr_robust.core.fields import Either, Integer, ListOf, Number
from flwr_robust.core.rule import State

__all__ = ["Tailored"]


@message_attacks.register("tailored")
@dataclass(frozen=True)
class Tailored(InformedAttack, LineAttack):
    """Send the honest mean times -epsilon.

    Attributes
    ----------
    epsilon : float, sequence of float, or "search"
        A number > 0, several to draw from, or the search.
    budget : int
        How many numbers the search tries.
    known : "all", "clients", "own" or int
        As for `InformedAttack`.
    """

    epsilon: Annotated[
        float | Sequence[float] | str, Either(Number(above=0, words=("search",)), ListOf(Number(above=0)))
    ]
    budget: Annotated[int, Integer(minimum=1)] = 20
    parameter: ClassVar[str] = "epsilon"

    @property
    def knowledge(self) -> Knowledge:
        """Return the least knowledge needed; a search needs the defence."""
        return Knowledge.DEFENCE if self.epsilon == "search" else super().knowledge

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from zero, against the honest mean."""
        return against_the_mean(self, view)

    def strength(self, view: View, line: Line, rng: torch.Generator) -> float:
        """Return epsilon."""
        if isinstance(self.epsilon, tuple):
            return float(self.epsilon[int(torch.randint(len(self.epsilon), (), generator=rng))])
        if isinstance(self.epsilon, int | float):
            return float(self.epsilon)
        damage = Damage(view, line, [(view.rule, view.rule_state)])
        return strongest(damage, damage.unit, self.budget)


CASES = (
    MessageCase("tailored(epsilon=10.0)", [(-30, -20)], source="the formula"),
    MessageCase("tailored(epsilon=(0.5,))", [(-1.5, -1)], source="the formula"),
)
