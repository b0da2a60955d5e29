"""Clipped clustering: shorten rows to the median of all norms seen so far, then cluster their directions.

    tau   = median of ||x_i|| over the rows of this call and of all calls before
    value = mean of x_i min{1, tau / ||x_i||} over the larger of two clusters, as in `clustering`

Li, Ngai, Voigt, "An experimental study of Byzantine-robust aggregation schemes in federated learning" (IEEE Trans. Big
Data 2023). Clipping does not turn a row, so the clusters are those of the rows as they came.

Convention: average linkage. tau includes this call's norms; for an even number it is the mean of the two middle ones.
The state holds the norms and grows by n numbers with every call.

Condition: n >= 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from flwr_robust.aggregators.clustering import LINKAGES, larger_cluster
from flwr_robust.core.fields import Choice
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["ClippedClustering"]


@aggregators.register("clipped_clustering")
@dataclass(frozen=True)
class ClippedClustering(Rule):
    """Clipped mean of the larger of two clusters of directions.

    Attributes
    ----------
    linkage : str
        Distance of two clusters: "average", "complete" or "single".
    """

    linkage: Annotated[str, Choice(LINKAGES)] = "average"

    def needs(self, asked: int) -> tuple[int, str]:
        """Require n >= 3."""
        return 3, "n >= 3"

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return the key of the norms of all earlier rows."""
        return ("norms",)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Clip, cluster and average; the norms join the state."""
        norms = rows.squared_norms.sqrt()
        history = torch.cat([state.get("norms", norms[:0]), norms])
        ordered, size = history.sort().values, len(history)
        radius = (ordered[(size - 1) // 2] + ordered[size // 2]) / 2
        kept = larger_cluster(rows.cosine_distances, self.linkage)
        weights = (radius / norms).clamp(max=1).nan_to_num(nan=1.0) * kept / kept.sum()
        stats = {
            "radius": float(radius),
            "kept": kept.nonzero().flatten().tolist(),
            "clipped": (norms > radius).nonzero().flatten().tolist(),
        }
        return Aggregate(rows.mix(weights), weights, stats=stats), {"norms": history}


CASES = (
    Case(
        "clipped_clustering()",
        lacks={
            "resilience": "faulty rows of many directions join the larger cluster, at median length",
            "translation": "cosines and norms are taken from the origin",
            "state": "seeing the same norms twice leaves their median where it is",
        },
    ),
)
