"""Momentum, a running mean of gradients, as pure functions: the clients' message, and the server's.

A client's message:

    m^t = (1 - alpha) m^(t-1) + alpha g^t,   m^0 = g^0

alpha = 1 sends plain gradients. Algorithm 1 of Peng, Li, Vlaski, Ling, JMLR 26 (2025): every worker, poisoned or not,
computes it honestly.

The server's momentum follows the rule. So what passes in one round still acts in the next ones:

    v^t = beta v^(t-1) + A^t,   v^0 = A^0,   x <- x +- eta v^t

A^t: the rule's aggregate; beta = 0 is no momentum. FedAvgM of Hsu, Qi, Brown, arXiv:1909.06335 (2019), with Flower's
convention: under a constant aggregate the step becomes 1 / (1 - beta) times as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from flwr_robust.core.rule import State
from flwr_robust.errors import check_number

__all__ = ["HeavyBall", "check_alpha", "heavy_ball", "momentum_step"]

_VELOCITY = "server.velocity"  # beside what the rule remembers


def check_alpha(alpha: float) -> None:
    """Raise unless 0 < alpha <= 1."""
    check_number("momentum", "alpha", alpha, above=0, maximum=1)


def momentum_step(previous: Sequence[Tensor] | None, gradient: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """Return the next momentum; neither argument is changed.

    Parameters
    ----------
    previous : sequence of Tensor, or None
        The last momentum, layer by layer; None before the first step.
    gradient : sequence of Tensor
        This step's gradient, of the same shapes.
    alpha : float
        Weight of the new gradient, in (0, 1].

    Returns
    -------
    list of Tensor

    Examples
    --------
    >>> import torch
    >>> momentum_step([torch.tensor([1.0])], [torch.tensor([3.0])], 0.25)
    [tensor([1.5000])]
    """
    if previous is None:
        return [g.clone() for g in gradient]
    return [(m * (1 - alpha)).add_(g * alpha) for m, g in zip(previous, gradient, strict=True)]


def heavy_ball(previous: Tensor | None, aggregate: Tensor, beta: float) -> Tensor:
    """Return the server's next velocity; neither argument is changed.

    Parameters
    ----------
    previous : Tensor (d,), or None
        The last velocity; None before the first step.
    aggregate : Tensor (d,)
        The rule's aggregate of the round.
    beta : float
        Weight of the last velocity, in [0, 1).

    Returns
    -------
    Tensor (d,)

    Examples
    --------
    >>> import torch
    >>> heavy_ball(torch.tensor([1.0]), torch.tensor([3.0]), 0.5)
    tensor([3.5000])
    """
    return aggregate.clone() if previous is None else (previous * beta).add_(aggregate)


@dataclass(frozen=True)
class HeavyBall:
    """The server's momentum, its memory of earlier steps; see `heavy_ball`.

    Attributes
    ----------
    beta : float
        Weight of the last velocity, in [0, 1); 0 remembers nothing.
    """

    beta: float = 0.0

    def direction(self, values: Mapping[int | None, Tensor], state: State) -> tuple[Tensor, State]:
        """Return the velocity, and the part of the state that holds it.

        Parameters
        ----------
        values : mapping of None to Tensor (d,)
            The aggregate of the round.
        state : State
            The state before the round.
        """
        (value,) = values.values()
        if not self.beta:  # rows' squared norms are finite, so no velocity comes near to overflowing
            return value, {}
        velocity = heavy_ball(state.get(_VELOCITY), value, self.beta)
        return velocity, {_VELOCITY: velocity}
