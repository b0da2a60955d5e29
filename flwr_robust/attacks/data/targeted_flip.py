"""Targeted flip: a becomes b, all other labels stay.

Tolpegin, Truex, Gursoy, Liu, "Data Poisoning Attacks Against Federated Learning Systems" (ESORICS 2020); Fung, Yoon,
Beschastnikh, RAID 2020 (FoolsGold). p is the probability for a label a; the papers flip all of them, p = 1. Success is
Fung et al.'s attack rate: the share of the test samples of class a that the model takes for b.

Knows: own data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.attacks.data.base import ClientView, DataCase, LabelAttack, data_attacks
from flwr_robust.core.fields import Integer
from flwr_robust.errors import ConfigurationError

__all__ = ["TargetedFlip"]


@data_attacks.register("targeted_flip")
@dataclass(frozen=True)
class TargetedFlip(LabelAttack):
    """Replace label ``source`` by ``target`` with probability p.

    Attributes
    ----------
    source, target : int
        a and b, two classes.

    Examples
    --------
    >>> import torch
    >>> x, labels = torch.zeros(3, 2), torch.tensor([1, 7, 5])
    >>> TargetedFlip(source=1, target=7)(x, labels, ClientView(10, torch.Generator(), scores=lambda: x))[1].tolist()
    [7, 7, 5]
    """

    source: Annotated[int, Integer(minimum=0)] = field(kw_only=True)
    target: Annotated[int, Integer(minimum=0)] = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == self.target:
            raise ConfigurationError(f"{self.name}: source and target must differ; got {self.target} for both")

    def check(self, classes: int, shape: tuple[int, ...]) -> str | None:
        """Refuse a task without both classes."""
        for name in ("source", "target"):
            if getattr(self, name) >= classes:
                return f"{self.name}: {name} must be below the task's {classes} classes; got {getattr(self, name)}"
        return None

    def wrong(self, labels: Tensor, view: ClientView) -> Tensor:
        """Replace the source's labels."""
        return labels.masked_fill(labels == self.source, self.target)

    def trial(self, x: Tensor, labels: Tensor, span: tuple[float, float]) -> tuple[Tensor, Tensor] | None:
        """Return the samples of the source class; the attacker wants the target class for each."""
        inputs = x[labels == self.source]
        return inputs, torch.full((len(inputs),), self.target, device=labels.device)


CASES = (DataCase("targeted_flip(source=1, target=7)", (1, 7, 5), (7, 7, 5), source="the formula"),)
