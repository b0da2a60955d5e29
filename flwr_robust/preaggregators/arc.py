"""Adaptive robust clipping: shorten the longest rows to the norm of the next one.

    k = floor(2 (f / n) (n - f)),   c = the (k + 1)-th largest norm,   x'_i = x_i min{1, c / ||x_i||}

f: declared number of faulty rows. Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, "Adaptive gradient clipping for
robust federated learning" (ICLR 2025): unlike a fixed radius, c keeps the guarantee of the rule that follows.
Its kappa grows by no more than 2 f / (n - 2f).

Convention: norms are taken from the origin, that is, relative to the model that was sent. k is computed in integers.

Condition: n >= 2f + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from flwr_robust.core.fields import Integer
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Case, PreAggregator, State, preaggregators

__all__ = ["ARC"]


@preaggregators.register("arc")
@dataclass(frozen=True)
class ARC(PreAggregator):
    """Shorten the floor(2 f / n (n - f)) longest rows to the next norm.

    Attributes
    ----------
    f : int
        Declared number of faulty rows.
    """

    f: Annotated[int, Integer(minimum=0)]

    def bounds(self, n: int, f: int, following: Sequence[Bound]) -> Sequence[Bound]:
        """Return kappa + 2 f / (n - 2f) for the declared f."""
        if f != self.f or 2 * f >= n:
            return ()
        more, source = 2 * f / (n - 2 * f), "Allouah et al., ICLR 2025, for arc before: "
        return [Bound("kappa", b.value + more, source + b.source) for b in following if b.measure == "kappa"]

    def matrix(self, rows: Rows, state: State) -> tuple[Tensor, Mapping[str, Any], State]:
        """Scale the rows."""
        norms = rows.squared_norms.sqrt()
        longest = 2 * self.f * (rows.n - self.f) // rows.n
        radius = norms.sort(descending=True).values[longest]
        factors = (radius / norms).clamp(max=1).nan_to_num(nan=1.0)
        stats = {"radius": float(radius), "clipped": (norms > radius).nonzero().flatten().tolist()}
        return torch.diag(factors), stats, state


_ORIGIN = "clipping is relative to the origin"

CASES = (
    Case(
        "arc(f=3) | trimmed_mean(f=3)",
        lacks={"translation": _ORIGIN, "mix": "a coordinate rule is no combination of whole rows"},
    ),
    Case("arc(f=2) | krum(f=2)", lacks={"translation": _ORIGIN}),
)
