"""Crash: no answer, or an error in its place.

Knows: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.attacks.fault.base import Answer, Fault, FaultCase, faults
from flwr_robust.core.fields import Flag, Number
from flwr_robust.core.rule import State

__all__ = ["Crash"]


@faults.register("crash")
@dataclass(frozen=True)
class Crash(Fault):
    """Fall silent with a probability.

    Attributes
    ----------
    p : float
        Probability of a crash in a round; in [0, 1].
    error : bool
        Answer with an error instead of not at all.
    """

    p: Annotated[float, Number(minimum=0, maximum=1)] = 1.0
    error: Annotated[bool, Flag()] = False

    def answer(
        self,
        layers: Mapping[str, Tensor],
        server_round: int,
        state: State,
        rng: torch.Generator,
    ) -> tuple[Answer, State]:
        """Draw whether the client crashes."""
        if float(torch.rand((), generator=rng)) >= self.p:
            return layers, state
        return "the client crashed" if self.error else None, state


CASES = (
    FaultCase("crash()", (1, 2), (None, None), source="always"),
    FaultCase("crash(error=True)", (1,), ("the client crashed",), source="always"),
    FaultCase("crash(p=0.0)", (1, 2), ({"a": 1, "b": 1}, {"a": 2, "b": 2}), source="never"),
)
