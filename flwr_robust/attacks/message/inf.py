"""Inf: all attackers send infinity in every coordinate.

    crafted = (infinity, ..., infinity)

A numerical overflow on a client looks like this, too. One such message is enough to destroy the mean.

Knows: nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flwr_robust.attacks.message.base import Knowledge, MessageAttack, MessageCase, View, message_attacks
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State

__all__ = ["Infinite"]


@message_attacks.register("inf")
@dataclass(frozen=True)
class Infinite(MessageAttack):
    """Send infinity."""

    @property
    def knowledge(self) -> Knowledge:
        """Nothing."""
        return Knowledge.NOTHING

    def craft(self, view: View, state: State, rng: torch.Generator) -> tuple[Rows, State]:
        """Write infinity."""
        value = torch.tensor([[math.inf]], dtype=torch.float64)
        return Rows.from_tensor(value.expand(len(view.attackers), view.d)), state


CASES = (MessageCase("inf()", [(math.inf, math.inf)], source="the formula"),)
