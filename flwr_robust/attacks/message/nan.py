"""NaN: all attackers send NaN in every coordinate.

    crafted = (NaN, ..., NaN)

A numerical error on a client looks like this, too. One such message is enough to destroy the mean.

Knows: nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flwr_robust.attacks.message.base import Knowledge, MessageAttack, MessageCase, View, message_attacks
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State

__all__ = ["NotANumber"]


@message_attacks.register("nan")
@dataclass(frozen=True)
class NotANumber(MessageAttack):
    """Send NaN."""

    @property
    def knowledge(self) -> Knowledge:
        """Nothing."""
        return Knowledge.NOTHING

    def craft(self, view: View, state: State, rng: torch.Generator) -> tuple[Rows, State]:
        """Write NaN."""
        value = torch.tensor([[math.nan]], dtype=torch.float64)
        return Rows.from_tensor(value.expand(len(view.attackers), view.d)), state


CASES = (MessageCase("nan()", [(math.nan, math.nan)], source="the formula"),)
