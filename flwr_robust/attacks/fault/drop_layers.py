"""Drop layers: some of the arrays are missing from the answer.

A client of another version, or a message cut short, looks like this. Flower's built-in strategies raise when the arrays
of two answers differ.

Knows: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.attacks.fault.base import Answer, Fault, FaultCase, faults
from flwr_robust.core.fields import Either, Integer, ListOf, Text
from flwr_robust.core.rule import State

__all__ = ["DropLayers"]


@faults.register("drop_layers")
@dataclass(frozen=True)
class DropLayers(Fault):
    """Leave arrays out.

    Attributes
    ----------
    layers : int or sequence of str
        The number of arrays, drawn anew in every round, or their names. Names that the answer does not have are
        ignored.
    """

    layers: Annotated[
        int | Sequence[str], Either(Integer(minimum=1), ListOf(Text("the name of an array", example="bias")))
    ] = 1

    def answer(
        self,
        layers: Mapping[str, Tensor],
        server_round: int,
        state: State,
        rng: torch.Generator,
    ) -> tuple[Answer, State]:
        """Leave them out."""
        names = list(layers)
        if isinstance(self.layers, int):
            drawn = torch.randperm(len(names), generator=rng)[: self.layers]
            dropped = {names[int(i)] for i in drawn}
        else:
            dropped = set(self.layers)
        return {name: tensor for name, tensor in layers.items() if name not in dropped}, state


CASES = (
    FaultCase("drop_layers(layers=('a', 'z'))", (1, 2), ({"b": 1}, {"b": 2}), source="the names"),
    FaultCase("drop_layers(layers=2)", (1,), ({},), source="both of two"),
)
