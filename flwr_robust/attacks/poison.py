"""What a client that poisons its data does in a round, whichever engine runs it: to its batches, and to its message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.attacks.data.base import ClientView, DataAttack
from flwr_robust.protocol.messages import MessageKind

__all__ = ["Poison"]

A = TypeVar("A", Tensor, NDArray[Any])


@dataclass(frozen=True)
class Poison:
    """What an attack on data does with a client in one round.

    Attributes
    ----------
    attack : DataAttack
        The attack.
    classes : int
        K, the number of classes.
    span : (float, float)
        The smallest and the largest input, as a model sees them.
    kind : MessageKind
        What clients send.
    rank : int
        The client's place among the attackers of the round.
    generator : torch.Generator
        The attack's draws in the round; batches are drawn as an honest client draws them.
    scores : callable (Tensor) -> Tensor
        The scores that the model sent gives to inputs.
    """

    attack: DataAttack
    classes: int
    span: tuple[float, float]
    kind: MessageKind
    rank: int
    generator: torch.Generator
    scores: Callable[[Tensor], Tensor]

    def batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs and labels to train on instead of a batch, which is not changed."""
        view = ClientView(self.classes, self.generator, partial(self.scores, x), self.span, self.rank)
        return self.attack(x, y, view)

    def scaled(self, arrays: Sequence[A], sent: Sequence[A]) -> list[A]:
        """Return the message to send instead of an unscaled one, array by array.

        Counters and other integers are not scaled, because the server refuses them as fractions.

        Parameters
        ----------
        arrays : sequence of array or Tensor
            The unscaled message.
        sent : sequence of array or Tensor
            The model that was sent; only messages that are relative to it look at it.
        """
        scale = self.attack.scale
        if scale == 1:
            return list(arrays)
        if self.kind.relative:
            pairs = zip(arrays, sent, strict=True)
            return [old + scale * (new - old) if _is_float(new) else new for new, old in pairs]
        return [scale * array if _is_float(array) else array for array in arrays]


def _is_float(array: Tensor | NDArray[Any]) -> bool:
    return array.is_floating_point() if isinstance(array, Tensor) else array.dtype.kind == "f"
