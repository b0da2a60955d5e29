"""Geometric median: the point of least summed distance to the rows.

    value = argmin_z sum_i alpha_i ||x_i - z||

alpha_i: importance of row i, summing to one. The minimum is found to ``tolerance``, a bound on the length of the
objective's least subgradient; `flwr_robust.kernels.summed_distance` says how. The search starts at the medoid, the row
of least summed distance to the others, and every step lowers the sum. Let f of n rows be faulty, and let the sum at a
point z be no greater than that at an honest row x. Then z lies near x, whatever the faulty rows are:

    ||z - x|| <= 2 / (n - 2f) * sum over honest rows j of ||x_j - x||

For x the honest mean in place of a row, the same argument gives kappa <= 4 ((n - f) / (n - 2f))^2 for the minimum, as
in Allouah et al. (AISTATS 2023).

This holds for the medoid itself, and so after any number of steps. ``iterations`` stops after so many.

Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning" (RFA), IEEE TSP 70 (2022), take 3 to 5 smoothed
Weiszfeld steps from the mean:

    beta_i = alpha_i / max{||x_i - z||, nu},   z <- sum_i beta_i x_i / sum_i beta_i

``start="mean"`` is theirs, and ``start="zero"`` begins at the origin, which is the model that was sent. Their one-step
variant is ``iterations=1`` from zero; ByzFL takes 3 from there. From the mean, so few steps bound nothing. Each lowers
the share p of far rows in z from p to p^2 / (p^2 + (1 - p)^2), if these lie at one place. So what they move z by is a
multiple of how far they are. Worse, let one client send (n - 1) S and another S. Up to the honest rows, S is then the
mean of n rows, and a smoothed step stays there. From zero, one step is no longer than n / (n - f) times the longest
honest row. It need not be near the honest rows.

Convention: if several rows are minima, as where all rows lie on a line, the value is their average, weighted by alpha.
nu is a multiple of the radius, the least over rows of the median distance to the others that differ from it. So neither
the scale of the updates nor a few huge rows matter. The paper's 1e-6 is a length.

Condition: n >= 2f + 1. With weights, each of f clients that lie about their counts may weigh clamp times as much as an
honest client: n > (1 + clamp) f. A round in which the f heaviest rows hold half of the weight is infeasible. With
``most`` below 1/2 they never do, and n >= f / most is enough. The bound above then has weights for numbers of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from flwr_robust.core.fields import Choice, Flag, Integer, Number
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import Aggregate, Case, Outcome, State, WeightedRule, aggregators
from flwr_robust.errors import ConfigurationError
from flwr_robust.kernels.summed_distance import least_summed_distance, medoid

__all__ = ["GeometricMedian", "radius"]

_TINY = 1e-150  # keeps 1 / distance finite where all rows coincide


def radius(squared_distances: Tensor) -> float:
    """Return the least over rows of the (lower) median distance to the rows that differ; 0 where none do."""
    others = squared_distances.masked_fill(squared_distances == 0, torch.inf).sort(dim=1).values
    differ = torch.isfinite(others).sum(1)
    middle = others.gather(1, ((differ - 1) // 2).clamp(min=0)[:, None])[:, 0]
    return float(middle[differ > 0].min().sqrt()) if bool((differ > 0).any()) else 0.0


@aggregators.register("geometric_median")
@dataclass(frozen=True)
class GeometricMedian(WeightedRule):
    """Point of least summed distance to the rows.

    Attributes
    ----------
    f : int, optional
        Declared number of faulty rows; it only bounds n.
    tolerance : float
        Stop when the least subgradient, whose length lies in [0, 1], is no longer; >= 1e-8.
    iterations : int, optional
        Do this many steps; with the medoid as start, fewer where the tolerance is met before.
    maximum : int
        Without ``iterations``: give up after this many steps, with the outcome NOT_CONVERGED.
    start : str
        Where z starts: ``medoid``; with ``iterations`` also ``mean``, the mean of the rows weighted by alpha, or
        ``zero``, the origin, for smoothed steps.
    nu : float
        Smoothing of the steps from ``mean`` or ``zero``, as a multiple of the radius; > 0.
    weighted : bool
        alpha proportional to the rows' clamped numbers of examples instead of equal.
    clamp : float
        As for `Mean`.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest rows (one if f is 0) hold; in (0, 1).
    """

    f: Annotated[int | None, Integer(minimum=0)] = None
    tolerance: Annotated[float, Number(minimum=1e-8)] = 1e-6
    nu: Annotated[float, Number(above=0)] = 1e-6
    iterations: Annotated[int | None, Integer(minimum=1)] = None
    maximum: Annotated[int, Integer(minimum=1)] = 1000
    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0
    start: Annotated[str, Choice(("medoid", "mean", "zero"))] = "medoid"
    most: Annotated[float | None, Number(above=0, below=1)] = None
    pairwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start != "medoid" and self.iterations is None:
            raise ConfigurationError(
                f"geometric_median: start must be medoid unless iterations is given, for the minimum is the same from "
                f"any start; got start={self.start!r}: leave it out, or give iterations=3"
            )

    def remark(self, n: int, *, asked: int | None = None, layout: Sequence[Layer] | None = None) -> str | None:
        """Say that a few steps from the mean bound nothing."""
        if self.start != "mean":
            return None
        return (
            f"geometric_median: {self.iterations} smoothed steps from the mean do not bound what a far row moves: "
            f"leave out start='mean', unless published results are to be repeated"
        )

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return the bound of kappa for the minimum and equal weights."""
        if self.weighted or self.iterations is not None or 2 * f >= n:
            return ()
        value = 4 * ((n - f) / (n - 2 * f)) ** 2
        return (Bound("kappa", value, "Allouah et al., AISTATS 2023; flwr_robust.aggregators.geometric_median"),)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Search the point of least summed distance, or take smoothed steps."""
        counts = self.weighing(rows.asked).of(rows)
        alpha = counts / counts.sum()
        if self.start != "medoid":
            return self._smoothed(rows, alpha), state
        importance, squared = alpha.numpy(), rows.squared_distances.numpy()
        found = least_summed_distance(
            lambda row: rows.gram_about(row).numpy(),
            medoid(rows.gram.numpy(), squared, importance),
            importance,
            self.tolerance,
            self.iterations or self.maximum,
        )
        weights = torch.from_numpy(found.weights)
        finished = found.converged or self.iterations is not None
        return Aggregate(
            rows.mix(weights),
            weights,
            Outcome.OK if finished else Outcome.NOT_CONVERGED,
            {"iterations": found.steps, "residual": found.residual, "objective": found.objective},
        ), state

    def _smoothed(self, rows: Rows, alpha: Tensor) -> Aggregate:
        """Take so many smoothed Weiszfeld steps."""
        assert self.iterations is not None
        gram, smoothing = rows.gram, max(self.nu * radius(rows.squared_distances), _TINY)
        distances = rows.squared_norms.sqrt() if self.start == "zero" else _distances(gram, alpha)
        for _ in range(self.iterations):
            beta = alpha / distances.clamp(min=smoothing)
            weights = beta / beta.sum()
            distances = _distances(gram, weights)
        beta = alpha / distances.clamp(min=smoothing)
        pull = beta.sum() * weights - beta
        stats = {
            "iterations": self.iterations,
            "residual": float((pull @ gram @ pull).clamp(min=0).sqrt()),
            "objective": float(alpha @ distances),
        }
        return Aggregate(rows.mix(weights), weights, stats=stats)


def _distances(gram: Tensor, weights: Tensor) -> Tensor:
    """Distances (n,) of the rows from the combination with these weights (summing to one)."""
    towards = gram @ weights
    return (gram.diagonal() - 2 * towards + weights @ towards).clamp(min=0).sqrt()


CASES = (
    Case("geometric_median()"),
    Case("geometric_median(f=3, iterations=8)"),
    Case("geometric_median(weighted=True)"),
    Case("geometric_median(f=2, weighted=True, clamp=100.0, most=0.4)", n=8),
    Case(
        "geometric_median(f=3, iterations=3, start='mean')",
        lacks={"resilience": "three steps from the mean do not get back from 1e8"},
    ),
    Case(
        "geometric_median(f=3, iterations=3, start='zero')",
        lacks={
            "resilience": "three steps from zero do not reach rows far from it",
            "translation": "norms are taken from the origin",
        },
    ),
    Case("geometric_median(f=1)", n=3),
)
