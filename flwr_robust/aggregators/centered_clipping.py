"""Centered clipping: the last value, moved by the clipped differences of the rows to it.

    repeat L times: v <- v + (1 / n) sum_i (x_i - v) min{1, tau / ||x_i - v||}

v starts at the rule's last value, at 0 in the first round: it is the state, held by the caller. Karimireddy, He, Jaggi,
"Learning from history for Byzantine robust optimization" (ICML 2021). Use it with momentum messages (running means of a
client's gradients): v then tracks them from round to round. Under label poisoning rho = sqrt(24 delta): Peng et al.,
JMLR 26 (2025), whose code takes tau 0.1 for iid data and 0.3 otherwise. Other libraries take 1, 5, 10 or 100, so there
is no common default and tau has to be given. "median" takes the median of the distances ||x_i - v|| at every step.

    weighted: v <- v + sum_i b_i (x_i - v) min{1, tau / ||x_i - v||} / sum_i b_i

Weighted sums of clipped differences are those of ClippedGossip: He, Karimireddy, Jaggi, "Byzantine-robust
decentralized learning via ClippedGossip" (2022). There the weights are a mixing matrix's, and the centre is a worker's
own model. Here they are bounded numbers of examples (`flwr_robust.core.weighing`). The median of distances stays one of
clients, so that no claim moves tau.

Condition: n >= 2f + 1. Weighted, n > (1 + clamp) f, or n >= f / most, and the f heaviest rows must hold less than half
of the weight, else they decide where v moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.core.fields import Flag, Integer, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, State, WeightedRule, aggregators
from flwr_robust.errors import ConfigurationError

__all__ = ["CenteredClipping"]


@aggregators.register("centered_clipping")
@dataclass(frozen=True)
class CenteredClipping(WeightedRule):
    """Clipped mean of differences to the last value.

    Attributes
    ----------
    tau : float or "median"
        Radius beyond which a difference is shortened; > 0, in the units of the rows.
    steps : int
        L, the number of steps per call.
    f : int, optional
        Declared number of faulty rows; it only bounds n, and weights.
    weighted : bool
        Average differences by the rows' clamped numbers of examples instead of equally.
    clamp : float
        As for `Mean`.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest rows (one if f is 0) hold; in (0, 1).
    """

    tau: Annotated[float | str, Number(above=0, words=("median",))]
    steps: Annotated[int, Integer(minimum=1)] = 1
    f: Annotated[int | None, Integer(minimum=0)] = None
    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0
    most: Annotated[float | None, Number(above=0, below=1)] = None

    @property
    def located(self) -> tuple[str, ...]:
        """Return the key of the centre v."""
        return ("centre",)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Move the centre; its new position is the value and the next state."""
        n, counts = rows.n, self.weighing(rows.asked).of(rows)
        counts = counts / counts.max()  # equal ones are exactly 1
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
            shrink = (radius / distances).clamp(max=1).nan_to_num(nan=1.0) * counts
            stay = 1 - shrink.sum() / counts.sum()
            weights = torch.cat([weights[:n] * stay + shrink / counts.sum(), weights[n:] * stay])
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
    Case(
        "centered_clipping(tau='median', steps=2, f=2, weighted=True, clamp=100.0, most=0.4)",
        n=6,
        lacks={
            "translation": "the first centre is the origin, wherever the rows are",
            "mix": "the last value is a summand, too",
            "resilience": "two steps from the origin; closeness comes over rounds",
        },
    ),
)
