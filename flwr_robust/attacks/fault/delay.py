"""Delay: every answer arrives some rounds late.

The answer to round t is sent in round t + rounds, in place of that round's answer. Until the first one is due the
client sends nothing. If several have become due since the client was last asked, it sends the newest. An asynchronous
client on a slow link looks like this.

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

__all__ = ["Delay"]


@faults.register("delay")
@dataclass(frozen=True)
class Delay(Fault):
    """Answer late.

    Attributes
    ----------
    rounds : int
        By how many rounds; >= 1.
    """

    rounds: Annotated[int, Integer(minimum=1)] = 1

    def answer(
        self,
        layers: Mapping[str, Tensor],
        server_round: int,
        state: State,
        rng: torch.Generator,
    ) -> tuple[Answer, State]:
        """Keep this round's answer, and send what is due."""
        waiting: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            due, _, name = key.partition(".")
            waiting.setdefault(int(due), {})[name] = tensor
        waiting[server_round + self.rounds] = dict(layers)
        ready = max((due for due in waiting if due <= server_round), default=None)
        kept = {due: named for due, named in waiting.items() if due > server_round}
        following = {f"{due}.{name}": tensor for due, named in kept.items() for name, tensor in named.items()}
        return None if ready is None else waiting[ready], following


CASES = (
    FaultCase("delay()", (1, 2, 3), (None, {"a": 1, "b": 1}, {"a": 2, "b": 2}), source="one round late"),
    # In round 5 those of rounds 1 and 2 are due: the newest is sent, and the other never.
    FaultCase(
        "delay(rounds=2)", (1, 2, 5, 6, 7), (None, None, {"a": 2, "b": 2}, None, {"a": 5, "b": 5}), source="the text"
    ),
)
