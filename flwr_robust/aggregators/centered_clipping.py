"""Centered clipping: the last value, moved by the clipped differences of the rows to it.

    repeat L times: v <- v + (1 / n) sum_i (x_i - v) min{1, tau / ||x_i - v||}

v starts at the rule's last value, at 0 in the first round: it is the state, held by the caller. Karimireddy, He, Jaggi,
"Learning from history for Byzantine robust optimization" (ICML 2021). Use it with momentum messages (running means of a
client's gradients): v then tracks them from round to round. Under label poisoning rho = sqrt(24 delta): Peng et al.,
JMLR 26 (2025), whose code takes tau 0.1 for iid data and 0.3 otherwise. Other libraries take 1, 5, 10 or 100, so there
is no common default and tau has to be given. "median" takes the median of the distances ||x_i - v|| at every step.

Condition: n >= 2f + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.core.fields import Integer, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators
from flwr_robust.errors import ConfigurationError

__all__ = ["CenteredClipping"]


@aggregators.register("centered_clipping")
@dataclass(frozen=True)
class CenteredClipping(Rule):
    """Clipped mean of differences to the last value.

    Attributes
    ----------
    tau : float or "median"
        Radius beyond which a difference is shortened; > 0, in the units of the rows.
    steps : int
        L, the number of steps per call.
    f : int, optional
        Declared number of faulty rows; it only bounds n.
    """

    tau: Annotated[float | str, Number(above=0, words=("median",))]
    steps: Annotated[int, Integer(minimum=1)] = 1
    f: Annotated[int | None, Integer(minimum=0)] = None

    @property
    def located(self) -> tuple[str, ...]:
        """Return the key of the centre v."""
        return ("centre",)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Move the centre; its new position is the value and the next state."""
        n = rows.n
        # v is one more point, the last, so every step after the first is n x n work on weights of (x_1, ..., x_n, v).
        if "centre" in state:
            centre = state["centre"]
            if isinstance(centre, Tensor) and not bool(torch.isfinite(centre).all()):
                raise ConfigurationError(
                    "centered_clipping: the centre in state must be finite; it holds NaN or Inf: start without state"
                )
            points = rows.with_row(centre)
            # A single step over rows as they lie does without their inner products, which mixing them takes anyway.
            alone = self.steps == 1 and not rows.is_mixed
            distances = (rows.against(centre)[:, 0] if alone else points.squared_distances[n, :n]).sqrt()
        else:
            points, distances = rows, rows.squared_norms.sqrt()
        weights = torch.zeros(n + 1, dtype=torch.float64)
        weights[n] = 1
        radius = 0.0
        for step in range(self.steps):
            if step > 0:
                gram = points.gram_and_origin[: n + 1, : n + 1]
                towards = gram @ weights
                squared = gram.diagonal() - 2 * towards + weights @ towards
                distances = squared[:n].clamp(min=0).sqrt()
            radius = float(distances.quantile(0.5)) if self.tau == "median" else float(self.tau)
            shrink = (radius / distances).clamp(max=1).nan_to_num(nan=1.0)
            weights = torch.cat([weights[:n] * (1 - shrink.mean()) + shrink / n, weights[n:] * (1 - shrink.mean())])
        moved = points.mix_exactly(weights[: points.n])
        stats = {"radius": radius, "distances": distances.tolist(), "kept_of_centre": float(weights[n])}
        return Aggregate(rows.cast(moved), weights[:n], stats=stats), {"centre": moved}


CASES = (
    Case(
        "centered_clipping(tau=1.0)",
        lacks={
            "translation": "the first centre is the origin, wherever the rows are",
            "scale": "tau is in the units of the rows",
            "unanimity": "a step is at most tau long",
            "mix": "the last value is a summand, too",
            "resilience": "one step of length tau from the origin; closeness comes over rounds",
        },
    ),
    Case(
        "centered_clipping(tau='median', steps=3)",
        lacks={
            "translation": "the first centre is the origin, wherever the rows are",
            "mix": "the last value is a summand, too",
            "resilience": "three steps from the origin; closeness comes over rounds",
        },
    ),
)
