"""Stale: the same answer again for some rounds, before a fresh one.

A client that caches, or trains on a model it fetched long ago, looks like this.

Knows: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.attacks.fault.base import Answer, Fault, FaultCase, faults
from flwr_robust.core.fields import Integer
from flwr_robust.core.rule import State

__all__ = ["Stale"]


@faults.register("stale")
@dataclass(frozen=True)
class Stale(Fault):
    """Repeat an answer.

    Attributes
    ----------
    rounds : int
        For how many rounds an answer is repeated; >= 1.
    """

    rounds: Annotated[int, Integer(minimum=1)] = 1

    def answer(
        self,
        layers: Mapping[str, Tensor],
        server_round: int,
        state: State,
        rng: torch.Generator,
    ) -> tuple[Answer, State]:
        """Send what is kept, or keep what is sent."""
        made = {int(key.partition(".")[0]) for key in state}
        if made and server_round <= min(made) + self.rounds:
            return {key.partition(".")[2]: tensor for key, tensor in state.items()}, state
        return layers, {f"{server_round}.{name}": tensor for name, tensor in layers.items()}


CASES = (
    FaultCase(
        "stale(rounds=2)",
        (1, 2, 3, 4, 5),
        ({"a": 1, "b": 1},) * 3 + ({"a": 4, "b": 4},) * 2,
        source="each answer three times",
    ),
)
