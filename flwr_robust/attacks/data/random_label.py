"""Random label: b becomes one of the other K - 1 classes, all equally likely.

Symmetric label noise (van Rooyen, Menon, Williamson, NeurIPS 2015; Zhang et al., "Understanding deep learning requires
rethinking generalization", ICLR 2017), from a client that trains for real. The true class is never drawn, so p is the
share of wrong labels. Much other code draws from all K classes; then that share is p (K - 1) / K. Every step draws
anew, so a sample's wrong label may differ from round to round.

Knows: own data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_robust.attacks.data.base import ClientView, DataCase, LabelAttack, data_attacks

__all__ = ["RandomLabel"]


@data_attacks.register("random_label")
@dataclass(frozen=True)
class RandomLabel(LabelAttack):
    """Replace a label by another, drawn uniformly, with probability p.

    Examples
    --------
    >>> import torch
    >>> x, labels = torch.zeros(3, 2), torch.tensor([0, 1, 1])
    >>> RandomLabel()(x, labels, ClientView(2, torch.Generator(), scores=lambda: x))[1].tolist()
    [1, 0, 0]
    """

    def check(self, classes: int, shape: tuple[int, ...]) -> str | None:
        """Refuse a task with a single class."""
        return None if classes > 1 else f"{self.name}: the task must have at least 2 classes; it has {classes}"

    def wrong(self, labels: Tensor, view: ClientView) -> Tensor:
        """Draw the number of classes by which each label moves."""
        steps = torch.randint(1, view.classes, labels.shape, generator=view.generator)
        return (labels + steps.to(labels.device)) % view.classes


CASES = (DataCase("random_label()", (0, 1, 1), (1, 0, 0), source="of two classes the other one", classes=2),)
