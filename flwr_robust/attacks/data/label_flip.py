"""Static label flip: b becomes K - 1 - b.

Peng, Li, Vlaski, Ling, JMLR 26 (2025). The client trains for real on its own data and keeps its own momentum; ByzFL's
attack of this name sends the honest mean of flipped gradients instead, which is not label poisoning.

Knows: own data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from flwr_robust.attack import LabelAttack, data_attacks

__all__ = ["LabelFlip"]


@data_attacks.register("label_flip")
@dataclass(frozen=True)
class LabelFlip(LabelAttack):
    """Replace label b by K - 1 - b with probability p.

    Examples
    --------
    >>> import torch
    >>> labels = torch.tensor([0, 1, 9])
    >>> LabelFlip()(labels, classes=10, generator=torch.Generator(), scores=lambda: labels).tolist()
    [9, 8, 0]
    """

    def wrong(self, labels: Tensor, classes: int, scores: Callable[[], Tensor]) -> Tensor:
        """Mirror the labels."""
        return classes - 1 - labels
