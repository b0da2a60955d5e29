"""Dynamic label flip: b becomes the class that the current global model finds least likely.

Peng, Li, Vlaski, Ling, JMLR 26 (2025), after Shejwalkar et al., "Back to the drawing board" (IEEE S&P 2022). Ties go to
the lowest class.

Knows: own data, the model it was sent.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flwr_robust.attacks.data.base import ClientView, DataCase, LabelAttack, data_attacks

__all__ = ["DynamicLabelFlip"]


@data_attacks.register("dynamic_label_flip")
@dataclass(frozen=True)
class DynamicLabelFlip(LabelAttack):
    """Replace a label by the least likely class with probability p.

    Examples
    --------
    >>> import torch
    >>> x, scores = torch.zeros(1, 2), torch.tensor([[0.3, -1.0, 0.7]])
    >>> DynamicLabelFlip()(x, torch.tensor([0]), ClientView(3, torch.Generator(), scores=lambda: scores))[1].tolist()
    [1]
    """

    def wrong(self, labels: Tensor, view: ClientView) -> Tensor:
        """Look for each sample's lowest score."""
        return view.scores().argmin(dim=1).to(labels.dtype)


CASES = (
    DataCase(
        "dynamic_label_flip()",
        (0, 2),
        (1, 0),
        source="the least score, of equal ones the lowest class",
        scores=((0.3, -1, 0.7), (0, 0, 1)),
        classes=3,
    ),
)
