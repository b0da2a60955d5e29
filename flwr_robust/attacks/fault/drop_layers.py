"""Drop layers: some of the arrays are missing from the answer.

A client of another version, or a message cut short, looks like this. Flower's built-in strategies raise when the arrays
of two answers differ.

Knows: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_robust.attacks.fault.base import Answer, Fault, faults
from flwr_robust.core.rule import State
from flwr_robust.errors import ConfigurationError, check_integer

__all__ = ["DropLayers"]


@faults.register("drop_layers")
@dataclass(frozen=True)
class DropLayers(Fault):
    """Leave arrays out.

    Attributes
    ----------
    layers : int or sequence of str
        How many, drawn anew in every round, or their names; names that the answer does not have are ignored.
    """

    layers: int | Sequence[str] = 1

    def __post_init__(self) -> None:
        if isinstance(self.layers, list | tuple):
            object.__setattr__(self, "layers", tuple(self.layers))
            if not self.layers or not all(isinstance(name, str) for name in self.layers):
                raise ConfigurationError(f"drop_layers: layers must list names of arrays; got layers={self.layers!r}")
        else:
            check_integer("drop_layers", "layers (or names)", self.layers, 1)

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
