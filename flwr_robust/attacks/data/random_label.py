"""Random label: b becomes one of the other K - 1 classes, all equally likely.

Symmetric label noise (van Rooyen, Menon, Williamson, NeurIPS 2015; Zhang et al., "Understanding deep learning requires
rethinking generalization", ICLR 2017), from a client that trains for real. The true class is never drawn, so p is the
share of labels that are wrong; where all K classes are drawn from, as in much code, that share is p (K - 1) / K.
Every step draws anew: a sample's wrong label is not the same in two rounds.

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
        """Ask for a class to go to."""
        return None if classes > 1 else f"{self.name}: the task must have at least 2 classes; it has {classes}"

    def wrong(self, labels: Tensor, view: ClientView) -> Tensor:
        """Draw how many classes further each label lands."""
        steps = torch.randint(1, view.classes, labels.shape, generator=view.generator)
        return (labels + steps.to(labels.device)) % view.classes


CASES = (DataCase("random_label()", (0, 1, 1), (1, 0, 0), source="of two classes the other one", classes=2),)
