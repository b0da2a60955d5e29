"""Reweighted geometric median: a geometric median whose weights then fade, twice, with the distance from it.

    z_0 = argmin_z sum_i ||x_i - z||
    alpha_i <- alpha_i exp(-||x_i - z_(t-1)|| / scale),   z_t = argmin_z sum_i alpha_i ||x_i - z||,   t = 1 .. times
    value = z_times

x_i: the rows; alpha_i: their importance, equal at first; ``scale``: a length. The public code of Xu, Huang, Song, Lan
(SignGuard, ICDCS 2022) calls this rule GeoMed, with two repetitions and a scale of 1. It stands here to repeat
published results.

Where rows lie further apart than ``scale``, the weights choose among the rows: the row nearest to z_0 soon holds more
than half of the importance, and then is the value. So it falls where Krum falls, and is no geometric median there.

Convention: alpha is divided by its largest member at every repetition, which does not change the minimum; far rows then
cannot let all of it vanish. Rows whose share of the largest is below 1e-200 are left out.

Condition: n >= 2f + 1. The bound of the geometric median holds for z_0 alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from flwr_robust.core.fields import Integer, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Outcome, Rule, State, aggregators
from flwr_robust.kernels.summed_distance import Minimum, least_summed_distance, medoid

__all__ = ["ReweightedGeometricMedian"]

_LEAST = 1e-200


@aggregators.register("reweighted_geometric_median")
@dataclass(frozen=True)
class ReweightedGeometricMedian(Rule):
    """Geometric median, repeated with weights that fade with the distance from the last one.

    Attributes
    ----------
    f : int, optional
        Declared number of faulty rows; it only bounds n.
    times : int
        How often the weights fade; with 0 it is the geometric median.
    scale : float
        The distance at which a weight fades by 1 / e; > 0, in the units of the rows.
    tolerance : float
        As for `GeometricMedian`.
    maximum : int
        Give up after this many steps of one search, with the outcome NOT_CONVERGED.
    """

    f: Annotated[int | None, Integer(minimum=0)] = None
    times: Annotated[int, Integer(minimum=0)] = 2
    scale: Annotated[float, Number(above=0)] = 1.0
    tolerance: Annotated[float, Number(minimum=1e-8)] = 1e-6
    maximum: Annotated[int, Integer(minimum=1)] = 1000
    pairwise: ClassVar[bool] = True

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Search the point of least summed distance, and again with faded weights."""
        importance = np.ones(rows.n)
        squared = rows.squared_distances.numpy()
        found = self._least(rows, squared, importance)
        steps, converged = found.steps, found.converged
        for _ in range(self.times):
            distances = _from_point(squared, found.weights)
            with np.errstate(divide="ignore"):
                faded = np.log(importance) - distances / self.scale
            importance = np.exp(faded - faded.max())
            importance[importance < _LEAST] = 0
            found = self._least(rows, squared, importance)
            steps, converged = steps + found.steps, converged and found.converged
        weights = torch.from_numpy(found.weights)
        outcome = Outcome.OK if converged else Outcome.NOT_CONVERGED
        stats = {"iterations": steps, "residual": found.residual, "objective": found.objective}
        return Aggregate(rows.mix(weights), weights, outcome, stats), state

    def _least(self, rows: Rows, squared: NDArray[np.float64], importance: NDArray[np.float64]) -> Minimum:
        """Return the minimum over the rows of positive importance, with a weight for every row."""
        own = np.flatnonzero(importance)
        alpha = importance[own] / importance[own].sum()
        among = np.ix_(own, own)
        start = medoid(rows.gram.numpy()[among], squared[among], alpha)
        found = least_summed_distance(
            lambda row: rows.gram_about(int(own[row])).numpy()[among], start, alpha, self.tolerance, self.maximum
        )
        weights = np.zeros(rows.n)
        weights[own] = found.weights
        return dataclasses.replace(found, weights=weights)


def _from_point(squared: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distances (n,) of the rows from the combination with these weights, which sum to one."""
    towards = squared @ weights
    distances: NDArray[np.float64] = np.sqrt(np.clip(towards - weights @ towards / 2, 0, None))
    return distances


CASES = (
    Case(
        "reweighted_geometric_median(f=3)",
        lacks={"scale": "its length is that of the rows' units"},
    ),
    Case(
        "reweighted_geometric_median(times=1, scale=2.0)",
        lacks={"scale": "its length is that of the rows' units"},
    ),
)
