"""Gaussian: every attacker sends noise.

    crafted_ij ~ N(mu, sigma^2), independent over attackers i and coordinates j

Xu, Yan, Zheng, Huang (Byz-DeSGD) take mu = 0, sigma = 2. Blanchard et al. (NeurIPS 2017) use sigma = 200.

Convention: each attacker draws its own noise; in ByzFL all send the same draw. sigma is required.

Knows: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from flwr_robust.attacks.message.base import Knowledge, MessageAttack, MessageCase, View, message_attacks
from flwr_robust.core.fields import Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State

__all__ = ["Gaussian"]


@message_attacks.register("gaussian")
@dataclass(frozen=True)
class Gaussian(MessageAttack):
    """Send noise.

    Attributes
    ----------
    sigma : float
        Standard deviation of a coordinate; > 0.
    mu : float
        Mean of a coordinate.
    """

    sigma: Annotated[float, Number(above=0)]
    mu: Annotated[float, Number()] = 0.0

    @property
    def knowledge(self) -> Knowledge:
        """Nothing."""
        return Knowledge.NOTHING

    def craft(self, view: View, state: State, rng: torch.Generator) -> tuple[Rows, State]:
        """Draw the rows."""
        noise = torch.randn(len(view.attackers), view.d, generator=rng)
        return Rows.from_tensor(noise.mul_(self.sigma).add_(self.mu)), state


CASES = (MessageCase("gaussian(sigma=1e-9, mu=3.0)", [(3, 3)], source="noise too small to see", slack=1e-7),)
