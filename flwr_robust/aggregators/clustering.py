"""Clustering: split the rows in two by their directions, keep the larger cluster.

    distance of i and j = 1 - cos(x_i, x_j)
    merge the two closest clusters until two are left;   value = mean of the larger, ties to the cluster of row 0

Sattler, Mueller, Wiegand, Samek, "On the Byzantine robustness of clustered federated learning" (ICASSP 2020).

Convention: the distance of two clusters is the mean over their pairs ("average" linkage, as in Li, Ngai, Voigt, IEEE
Trans. Big Data 2023). ``linkage`` may also be "complete" (the largest distance, as in the code of clustered federated
learning) or "single" (the least). Cosines are taken from the origin, that is, of updates relative to the model that was
sent. A zero row has cosine 0 with every other. If several clusters are equally close, those of the lowest indices merge
first. Rows that are parallel up to rounding have distance 0.

Condition: n >= 3. There is no f: the rule keeps a majority, however small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.core.fields import Choice
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["Clustering", "larger_cluster"]

LINKAGES = ("average", "complete", "single")


def larger_cluster(distances: Tensor, linkage: str = "average") -> Tensor:
    """Merge points (n) down to two clusters and return the larger: bool (n,), ties to the cluster of point 0."""
    n = distances.shape[0]
    apart = distances.clone().fill_diagonal_(torch.inf)
    sizes = torch.ones(n, dtype=torch.float64)
    labels = torch.arange(n)  # the lowest index in the cluster
    for _ in range(n - 2):
        a, b = divmod(int(apart.flatten().argmin()), n)
        if linkage == "average":
            merged = (sizes[a] * apart[a] + sizes[b] * apart[b]) / (sizes[a] + sizes[b])
        elif linkage == "complete":
            merged = torch.maximum(apart[a], apart[b])
        else:
            merged = torch.minimum(apart[a], apart[b])
        apart[a], apart[:, a] = merged, merged
        apart[a, a] = torch.inf
        apart[b], apart[:, b] = torch.inf, torch.inf
        sizes[a] += sizes[b]
        labels[labels == b] = a
    member = labels == labels[0]
    return member if 2 * int(member.sum()) >= n else ~member


@aggregators.register("clustering")
@dataclass(frozen=True)
class Clustering(Rule):
    """Mean of the larger of two clusters of directions.

    Attributes
    ----------
    linkage : str
        Distance of two clusters: "average", "complete" or "single".
    """

    linkage: Annotated[str, Choice(LINKAGES)] = "average"

    def needs(self, asked: int) -> tuple[int, str]:
        """Require n >= 3."""
        return 3, "n >= 3"

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Cluster and average."""
        kept = larger_cluster(rows.cosine_distances, self.linkage)
        weights = kept.double() / kept.sum()
        return Aggregate(rows.mix(weights), weights, stats={"kept": kept.nonzero().flatten().tolist()}), state


_LACKS = {
    "resilience": "faulty rows of many directions leave the larger cluster to one of them",
    "translation": "cosines are taken from the origin",
}

CASES = (
    Case("clustering()", lacks=_LACKS),
    Case("clustering(linkage='complete')", n=7, lacks=_LACKS),
    Case(
        "clustering(linkage='single')",
        n=3,
        lacks={"translation": _LACKS["translation"], "scales": "a row in their direction may have any length"},
    ),
)
