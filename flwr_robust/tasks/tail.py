"""Tail averaging: a client's local result is the mean of its last iterates instead of the very last one.

    w = 1 / k sum_{t = T - k + 1}^{T} w^t,   k = ceil(T / 2)

w^t: the model after local step t of T; the model that was sent is not included. Pillutla, Kakade, Harchaoui, "Robust
aggregation for federated learning", IEEE TSP 70 (2022), allow it; it removes a part of the steps' noise.

The sum is formed in float64, step after step, and rounded once. So it is the same for one client as for many clients at
once. With one or two steps the tail is the last iterate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Tail"]


class Tail:
    """Sums up the last half of a number of steps.

    Parameters
    ----------
    steps : int
        T, >= 1.

    Examples
    --------
    >>> tail, model = Tail(3), torch.zeros(1)
    >>> for value in (9.0, 1.0, 2.0):
    ...     tail.see([model.fill_(value)])
    >>> tail.write([model])
    >>> model
    tensor([1.5000])
    """

    def __init__(self, steps: int) -> None:
        self._waiting = steps // 2  # steps that are not part of it
        self._count = 0
        self._sums: list[Tensor] = []

    def see(self, iterate: Sequence[Tensor]) -> None:
        """Add the model after the next step, if it is part of the tail; it is copied."""
        if self._waiting:
            self._waiting -= 1
            return
        if not self._sums:
            self._sums = [part.detach().to(torch.float64, copy=True) for part in iterate]
        else:
            for total, part in zip(self._sums, iterate, strict=True):
                total += part.detach()
        self._count += 1

    def write(self, model: Sequence[Tensor]) -> None:
        """Write the mean into a model of the same shapes, rounded to its type."""
        with torch.no_grad():
            for part, total in zip(model, self._sums, strict=True):
                part.copy_(total / self._count)
