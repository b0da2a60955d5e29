"""Pixel invert: every input becomes its negative, its label stays.

    x becomes s + t - x

s, t: the smallest and the largest input of the task, as a model sees them: black becomes white and white black.
Corrupted clients do this in the code of Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning" (IEEE
TSP 70, 2022).

Knows: own data, the span of the task's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_robust.attacks.data.base import ClientView, DataAttack, DataCase, data_attacks

__all__ = ["PixelInvert"]


@data_attacks.register("pixel_invert")
@dataclass(frozen=True)
class PixelInvert(DataAttack):
    """Replace an input by its negative with probability p.

    Examples
    --------
    >>> import torch
    >>> x, labels = torch.tensor([[0.0, 0.25, 1.0]]), torch.tensor([5])
    >>> inputs, labels = PixelInvert()(x, labels, ClientView(10, torch.Generator(), scores=lambda: x))
    >>> inputs.tolist(), labels.tolist()
    ([[1.0, 0.75, 0.0]], [5])
    """

    changes_labels: ClassVar[bool] = False

    def poisoned(self, x: Tensor, labels: Tensor, view: ClientView) -> tuple[Tensor, Tensor]:
        """Mirror the inputs in their span."""
        smallest, largest = view.span
        return (smallest + largest) - x, labels


CASES = (
    DataCase("pixel_invert()", (5,), (5,), source="the formula", x=((0, 0.25, 1),), shows=((1, 0.75, 0),)),
    DataCase("pixel_invert()", (5,), (5,), source="the formula", x=((-1, 0.5),), shows=((1, -0.5),), span=(-1, 1)),
)
