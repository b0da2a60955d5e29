"""Zero: all attackers send nothing but zeros.

    crafted = 0

Such clients are free riders: if clients send parameters, they return the model as it was sent.

Knows: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flwr_robust.attacks.message.base import Knowledge, MessageAttack, MessageCase, View, message_attacks
from flwr_robust.attacks.message.constant import same
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State

__all__ = ["Zero"]


@message_attacks.register("zero")
@dataclass(frozen=True)
class Zero(MessageAttack):
    """Send zeros."""

    @property
    def knowledge(self) -> Knowledge:
        """Nothing."""
        return Knowledge.NOTHING

    def craft(self, view: View, state: State, rng: torch.Generator) -> tuple[Rows, State]:
        """Write zeros."""
        return same(view, 0.0).mixed(torch.ones(len(view.attackers), 1, dtype=torch.float64)), state


CASES = (MessageCase("zero()", [(0, 0)], source="the formula"),)
