"""What a data attack is: it replaces the labels that a client trains on, batch by batch.

The stored data are never touched: an attack is a pure function of the labels it is given, so what it did in one step
does not persist into the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_robust.errors import check_choice, check_number
from flwr_robust.registry import Component, Registry

__all__ = ["LabelAttack", "data_attacks"]

data_attacks: Registry[LabelAttack] = Registry("attack", "flwr_robust.attacks.data")


@dataclass(frozen=True)
class LabelAttack(Component, ABC):
    """Poison labels with a probability.

    Attributes
    ----------
    p : float
        Probability that a label is poisoned; in [0, 1].
    per : str
        "label": every label draws for itself. "batch": one draw decides for the whole batch, as in the code behind
        Peng et al. (JMLR 2025).
    """

    p: float = 1.0
    per: str = "label"

    def __post_init__(self) -> None:
        check_number(self.name, "p", self.p, minimum=0, maximum=1)
        check_choice(self.name, "per", self.per, ("label", "batch"))

    @abstractmethod
    def wrong(self, labels: Tensor, classes: int, scores: Callable[[], Tensor]) -> Tensor:
        """Return the label that each one would be replaced by."""

    def __call__(
        self,
        labels: Tensor,
        *,
        classes: int,
        generator: torch.Generator,
        scores: Callable[[], Tensor],
    ) -> Tensor:
        """Return poisoned copies of labels.

        Parameters
        ----------
        labels : Tensor (b,) of int64
            True labels, 0 .. classes - 1; not changed.
        classes : int
            K, the number of classes.
        generator : torch.Generator
            Source of the draws; a CPU generator.
        scores : callable returning Tensor (b, classes)
            The current global model's scores of the batch; called only by attacks that look.

        Returns
        -------
        Tensor (b,) of int64
        """
        count = len(labels) if self.per == "label" else 1
        flipped = (torch.rand(count, generator=generator) < self.p).to(labels.device)
        if not bool(flipped.any()):
            return labels.clone()
        return torch.where(flipped, self.wrong(labels, classes, scores), labels)
