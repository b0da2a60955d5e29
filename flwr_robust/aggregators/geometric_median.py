"""Geometric median by the smoothed Weiszfeld iteration.

    value = argmin_z sum_i alpha_i ||x_i - z||
    beta_i = alpha_i / max{||x_i - z||, nu},   z <- sum_i beta_i x_i / sum_i beta_i

alpha_i: importance of row i, summing to one. nu: smoothing, which keeps a step defined where z meets a row. z starts at
the (weighted) mean, or with ``start="zero"`` at the origin, which is the model that was sent. Pillutla, Kakade,
Harchaoui, "Robust aggregation for federated learning", IEEE TSP 70 (2022), stop after 3 to 5 steps; their one-step
variant is ``iterations=1`` from zero, and ByzFL takes 3 from there. Here the iteration runs until the gradient of the
smoothed objective, sum_i beta_i (z - x_i), is shorter than ``tolerance`` (the length of a step is no criterion: it is
tiny near every row); ``iterations`` fixes the count instead.

Convention: nu is a multiple of the radius, the least over rows of the median distance to the others. So neither the
scale of the updates nor a few huge rows matter. The paper's 1e-6 is a length. z is a combination of rows from the first
step on, so a step costs n x n work.

Condition: n >= 2f + 1. With weights, each of f clients that lie about their counts may weigh clamp times as much as an
honest client: n > (1 + clamp) f.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from flwr_robust.aggregators.mean import clamped_shares, weighted_needs
from flwr_robust.core.fields import Choice, Flag, Integer, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Outcome, Rule, State, aggregators

__all__ = ["GeometricMedian", "radius"]

_TINY = 1e-150  # keeps 1 / distance finite when most rows coincide


def radius(squared_distances: Tensor) -> float:
    """Return the least over rows of the (lower) median distance to the other rows."""
    n = squared_distances.shape[0]
    if n == 1:
        return 0.0
    others = squared_distances.clone().fill_diagonal_(torch.inf).sort(dim=1).values
    return float(others[:, (n - 2) // 2].min().sqrt())


@aggregators.register("geometric_median")
@dataclass(frozen=True)
class GeometricMedian(Rule):
    """Point of least summed distance to the rows.

    Attributes
    ----------
    f : int, optional
        Declared number of faulty rows; it only bounds n.
    tolerance : float
        Stop when the gradient, whose length lies in [0, 1], is shorter; > 0.
    nu : float
        Smoothing, as a multiple of the radius; > 0.
    iterations : int, optional
        Do exactly this many steps; ``tolerance`` and ``maximum`` then have no effect.
    maximum : int
        Give up after this many steps, with the outcome NOT_CONVERGED.
    weighted : bool
        alpha proportional to the rows' clamped numbers of examples instead of equal.
    clamp : float
        As for `Mean`.
    start : str
        Where z starts: ``mean``, the mean of the rows weighted by alpha, or ``zero``, the origin.
    """

    f: Annotated[int | None, Integer(minimum=0)] = None
    tolerance: Annotated[float, Number(above=0)] = 1e-6
    nu: Annotated[float, Number(above=0)] = 1e-6
    iterations: Annotated[int | None, Integer(minimum=1)] = None
    maximum: Annotated[int, Integer(minimum=1)] = 1000
    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0
    start: Annotated[str, Choice(("mean", "zero"))] = "mean"
    pairwise: ClassVar[bool] = True

    def needs(self, asked: int) -> tuple[int, str]:
        """Require n >= 2f + 1; weighted, n > (1 + clamp) f."""
        if self.weighted and self.f:
            return weighted_needs(self.f, self.clamp)
        return super().needs(asked)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Iterate on the weights of z in the rows."""
        if self.weighted:
            alpha = clamped_shares(rows, self.clamp)
        else:
            alpha = torch.full((rows.n,), 1 / rows.n, dtype=torch.float64)
        gram = rows.gram
        scale = radius(rows.squared_distances)
        smoothing = max(self.nu * scale, _TINY)
        weights, residual, converged = alpha, torch.inf, False
        steps = 0
        if self.start == "zero":
            weights, residual, steps = *_step_from_zero(rows, alpha, smoothing), 1
            converged = self.iterations is None and residual <= self.tolerance
        while steps < (self.iterations or self.maximum) and not converged:
            beta = alpha / _distances(gram, weights).clamp(min=smoothing)
            following = beta / beta.sum()
            change = following - weights
            residual = float((change @ gram @ change).clamp(min=0).sqrt() * beta.sum())
            weights, steps = following, steps + 1
            converged = self.iterations is None and residual <= self.tolerance
        objective = float(alpha @ _distances(gram, weights))
        finished = converged or self.iterations is not None
        return Aggregate(
            rows.mix(weights),
            weights,
            Outcome.OK if finished else Outcome.NOT_CONVERGED,
            {"iterations": steps, "residual": residual, "objective": objective},
        ), state


def _step_from_zero(rows: Rows, alpha: Tensor, smoothing: float) -> tuple[Tensor, float]:
    """Return the weights of z after a step from the origin, and the length of the gradient there.

    The origin is no combination of the rows, and `Rows.gram` may be about another point.
    """
    norms = rows.squared_norms
    beta = alpha / norms.sqrt().clamp(min=smoothing)
    weights, total = beta / beta.sum(), float(beta.sum())
    reach = weights @ norms - weights @ rows.squared_distances @ weights / 2  # squared length of their combination
    return weights, float(reach.clamp(min=0).sqrt()) * total


def _distances(gram: Tensor, weights: Tensor) -> Tensor:
    """Distances (n,) of the rows from the combination with these weights (summing to one)."""
    towards = gram @ weights
    return (gram.diagonal() - 2 * towards + weights @ towards).clamp(min=0).sqrt()


CASES = (
    Case("geometric_median()"),
    Case(
        "geometric_median(f=3, iterations=3)",
        lacks={"resilience": "three steps from the mean do not get back from 1e8"},
    ),
    Case("geometric_median(weighted=True)"),
    Case(
        "geometric_median(f=3, iterations=3, start='zero')",
        lacks={
            "resilience": "far rows pull the first step as much as near ones, and two more do not undo it",
            "translation": "norms are taken from the origin",
        },
    ),
    Case("geometric_median(f=1)", n=3),
)
