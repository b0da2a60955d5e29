"""Static label flip: b becomes K - 1 - b.

Peng, Li, Vlaski, Ling, JMLR 26 (2025). The client trains for real on its own data and keeps its own momentum; ByzFL's
attack of this name sends the honest mean of flipped gradients instead, which is not label poisoning.

Knows: own data.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flwr_robust.attacks.data.base import ClientView, DataCase, LabelAttack, data_attacks

__all__ = ["LabelFlip"]


@data_attacks.register("label_flip")
@dataclass(frozen=True)
class LabelFlip(LabelAttack):
    """Replace label b by K - 1 - b with probability p.

    Examples
    --------
    >>> import torch
    >>> x, labels = torch.zeros(3, 2), torch.tensor([0, 1, 9])
    >>> LabelFlip()(x, labels, ClientView(10, torch.Generator(), scores=lambda: x))[1].tolist()
    [9, 8, 0]
    """

    def wrong(self, labels: Tensor, view: ClientView) -> Tensor:
        """Mirror the labels."""
        return view.classes - 1 - labels


CASES = (
    DataCase("label_flip()", (0, 1, 9), (9, 8, 0), source="the formula"),
    DataCase("label_flip(p=0.0)", (0, 1, 9), (0, 1, 9), source="never"),
)
