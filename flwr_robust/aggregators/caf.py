"""CAF: weigh rows down by how far they lie along the direction of largest variance.

    c_i = 1 for all i;   while sum_i c_i > n - 2f:
        mu = sum_i c_i x_i / sum_i c_i
        lambda, v = largest eigenvalue and unit eigenvector of sum_i c_i (x_i - mu)(x_i - mu)^T / sum_i c_i
        tau_i = <v, x_i - mu>^2,   c_i <- c_i (1 - tau_i / max of tau over the rows with c_i > 0)
    value = the mu of the smallest lambda seen, ties to the first

Allouah, Guerraoui, Stephan, "Towards trustworthy federated learning with untrusted participants" (ICML 2025), algorithm
2: the covariance-bound agnostic filter. While faulty rows matter, a step takes at least as much weight from them as
from honest rows. So of a removed weight of 2f at least f comes from faulty rows, which is all that they have.

Convention: eigenpairs are exact and deterministic: v is a combination of the x_i - mu, found by the n x n Gram matrix
of the rows about mu, weighted; others take a few steps of the power method from a random start. Rows within 9 digits of
the largest tau lose all their weight, and lambdas that agree to 9 digits are tied, so rounding decides nothing. The
filter stops when the rows left coincide. With f = 0 the value is the mean.

Condition: n >= 2f + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from flwr_robust.core.fields import Integer
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["CAF", "top_projections"]

_TIED = 1e-9


def top_projections(squared_distances: Tensor, weights: Tensor) -> tuple[float, Tensor]:
    """Return the largest eigenvalue of a weighted covariance, and every point's projection on its eigenvector.

    Parameters
    ----------
    squared_distances : Tensor (m, m), float64
        Between the points.
    weights : Tensor (m,), float64
        Positive, summing to one.

    Returns
    -------
    float
        lambda.
    Tensor (m,)
        <v, x_i - mu>, up to one sign for all.
    """
    towards = squared_distances @ weights
    about_mean = (towards[:, None] + towards[None, :] - weights @ towards - squared_distances) / 2
    root = weights.sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * about_mean * root[None, :])
    largest = max(float(values[-1]), 0.0)
    if largest == 0.0:
        return 0.0, torch.zeros_like(weights)
    # v = sum_j root_j q_j (x_j - mu) / sqrt(lambda) for the unit eigenvector q.
    return largest, about_mean @ (root * vectors[:, -1]) / math.sqrt(largest)


@aggregators.register("caf")
@dataclass(frozen=True)
class CAF(Rule):
    """The weighted mean of least variance among the steps of the filter.

    Attributes
    ----------
    f : int
        Declared number of faulty rows; the filter may remove a weight of 2f.
    """

    f: Annotated[int, Integer(minimum=0)]
    pairwise: ClassVar[bool] = True

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Filter, and keep the best weights."""
        distances = rows.squared_distances
        importance = torch.ones(rows.n, dtype=torch.float64)
        weights, least, steps = importance / rows.n, math.inf, 0
        while float(importance.sum()) > rows.n - 2 * self.f:
            # Only rows that have weight left: a huge row's entries would drown the others after it has gone.
            left = importance.nonzero().flatten()
            shares = importance[left] / importance.sum()
            eigenvalue, projections = top_projections(distances[left][:, left], shares)
            steps += 1
            if eigenvalue < least * (1 - _TIED):
                least = eigenvalue
                weights = torch.zeros_like(importance)
                weights[left] = shares
            if eigenvalue == 0.0:
                break
            excess = projections.square() / projections.square().max()
            importance[left] *= torch.where(excess >= 1 - _TIED, 0.0, 1 - excess)
        stats = {"steps": steps, "eigenvalue": None if steps == 0 else least}
        return Aggregate(rows.mix(weights), weights, stats=stats), state


CASES = (
    Case("caf(f=3)"),
    Case("caf(f=0)", n=4, lacks={"resilience": "f=0 filters nothing"}),
    Case("caf(f=1)", n=3),
)
