"""Clipping: no row longer than c, or than a quantile of the norms.

    x'_i = x_i min{1, c / ||x_i||},   c given, or the q-quantile of ||x_1||, ..., ||x_n||

A fixed c has to fit the rows, whose norms differ from task to task and shrink in training. A quantile fits by itself:
if at most f of n rows are faulty and q <= 1 - f / n, then c is at most the largest honest norm. q = 1/2 (``median``)
withstands every f < n / 2. With ``earlier`` the norms of earlier rounds count, too, so that c moves slowly.

Convention: norms are taken from the origin, that is, relative to the model that was sent. Quantiles are interpolated
linearly, as numpy does by default; the median of an even number is the mean of the two middle values. Every client's
norm counts once, whatever its number of examples: a weighted quantile would follow the client that claims most.

Condition: n >= 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from flwr_robust.core.fields import Integer, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Case, PreAggregator, State, preaggregators
from flwr_robust.errors import ConfigurationError

__all__ = ["Clip"]


@preaggregators.register("clip")
@dataclass(frozen=True)
class Clip(PreAggregator):
    """Shorten every row to a norm of at most c.

    Attributes
    ----------
    c : float, "median" or "quantile"
        The largest norm, in the units of the rows, > 0; or what to take of the norms.
    quantile : float
        With ``c="quantile"``: q, in (0, 1).
    earlier : int
        With a median or quantile: the number of earlier rounds whose norms count as those of this one do; >= 0.
    """

    c: Annotated[float | str, Number(above=0, words=("median", "quantile"))]
    quantile: Annotated[float, Number(above=0, below=1)] = 0.5
    earlier: Annotated[int, Integer(minimum=0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.c != "quantile" and self.quantile != 0.5:
            raise ConfigurationError(
                f"clip: quantile needs c='quantile'; got c={self.c!r}, quantile={self.quantile}: change one of the two"
            )
        if self.earlier and not isinstance(self.c, str):
            raise ConfigurationError(
                f"clip: earlier needs c='median' or 'quantile'; got c={self.c!r}, earlier={self.earlier}: leave it out"
            )

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return the keys of the norms of earlier rounds, and of how many each round had."""
        return ("norms", "sizes") if self.earlier else ()

    def matrix(self, rows: Rows, state: State) -> tuple[Tensor, Mapping[str, Any], State]:
        """Scale the rows."""
        norms = rows.squared_norms.sqrt()
        bound, state = self._bound(norms, state)
        factors = (bound / norms).clamp(max=1).nan_to_num(nan=1.0)  # a row of zeros stays as it is
        return torch.diag(factors), {"radius": bound, "clipped": (norms > bound).nonzero().flatten().tolist()}, state

    def _bound(self, norms: Tensor, state: State) -> tuple[float, State]:
        """Return c, and the state that keeps the norms of the last rounds."""
        if not isinstance(self.c, str):
            return self.c, state
        if not self.earlier:
            return float(norms.quantile(self.quantile)), state
        sizes = state.get("sizes", torch.zeros(0, dtype=torch.int64))
        seen = torch.cat([state.get("norms", norms.new_empty(0)), norms])
        sizes = torch.cat([sizes, torch.tensor([len(norms)])])
        kept = sizes[-self.earlier :]
        following = {**state, "norms": seen[len(seen) - int(kept.sum()) :], "sizes": kept}
        return float(seen.quantile(self.quantile)), following


_ORIGIN = "clipping is relative to the origin"
_OF_FIXED = {
    "translation": _ORIGIN,
    "scale": "c is in the units of the rows",
    "unanimity": "rows longer than c are shortened",
}
_NO_MIX = {"mix": "a coordinate rule is no combination of whole rows"}

CASES = (
    Case("clip(c=2.0) | trimmed_mean(f=2)", lacks={**_OF_FIXED, **_NO_MIX}),
    Case("clip(c=2.0) | krum(f=2)", lacks=_OF_FIXED),
    Case("clip(c='median') | trimmed_mean(f=2)", lacks={"translation": _ORIGIN, **_NO_MIX}),
    Case("clip(c='quantile', quantile=0.7) | krum(f=2)", lacks={"translation": _ORIGIN}),
    Case(
        "clip(c='quantile', quantile=0.7, earlier=3) | krum(f=2)",
        lacks={"translation": _ORIGIN, "state": "the same rows have the same norms again"},
    ),
)
