"""FLAME: keep the majority whose directions lie densest, clip to the median norm, add noise.

    distance of i and j = 1 - cos(x_i, x_j)
    K     = the first cluster of single linkage that holds floor(n / 2) + 1 rows
    S     = median of ||x_i|| over all rows
    value = mean over K of x_i min{1, S / ||x_i||} + N(0, (noise S)^2) per coordinate

Nguyen et al., "FLAME: taming backdoors in federated learning" (USENIX Security 2022).

Convention: K is the component with more than half of the rows in the graph of the pairs no farther apart than t, for
the least t that has one. The paper uses HDBSCAN with min_cluster_size = floor(n / 2) + 1, min_samples = 1 and a single
cluster allowed. The result is the same, because two such clusters cannot exist. So there are no ties to break. S is
taken over all rows, the mean of the middle two for even n. The default noise is 0 here (lambda in the paper, 0.001
there for image data). Noise masks what is left of a backdoor, and costs accuracy. It is drawn from (seed, number of
calls so far); the count is the state, and there is none without noise.

Condition: n >= 1. There is no f: the rule keeps a majority.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.core.fields import Integer, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators, next_draw

__all__ = ["FLAME", "densest_majority"]


def densest_majority(distances: Tensor) -> Tensor:
    """Return the first cluster of single linkage with more than half of the points: bool (n,)."""
    n = distances.shape[0]
    # Prim's minimum spanning tree; its edges in order of length are the merges of single linkage.
    reach, source = distances[0].clone(), torch.zeros(n, dtype=torch.int64)
    outside = torch.ones(n, dtype=torch.bool)
    outside[0] = False
    edges: list[tuple[float, int, int]] = []
    for _ in range(n - 1):
        nearest = int(reach.masked_fill(~outside, torch.inf).argmin())
        edges.append((float(reach[nearest]), int(source[nearest]), nearest))
        outside[nearest] = False
        closer = distances[nearest] < reach
        reach[closer], source[closer] = distances[nearest][closer], nearest
    labels = torch.arange(n)
    found, level = n == 1, 0.0
    for length, a, b in sorted(edges):
        if found and length > level:
            break
        labels[labels == labels[b]] = int(labels[a])
        found, level = found or 2 * int((labels == labels[a]).sum()) > n, length
    return labels == labels.mode().values


@aggregators.register("flame")
@dataclass(frozen=True)
class FLAME(Rule):
    """Clipped mean of the densest majority of directions, with optional noise.

    Attributes
    ----------
    noise : float
        Standard deviation of the noise as a multiple of the median norm; >= 0.
    seed : int, optional
        Seed of the noise. When not given, it is the seed of the round; without one the operating system's entropy.
    """

    noise: Annotated[float, Number(minimum=0)] = 0.0
    seed: Annotated[int | None, Integer(minimum=0)] = None

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return the key of the number of draws."""
        return ("draws",)

    @property
    def isometric(self) -> bool:
        """Return False with noise, which does not rotate with the rows."""
        return self.noise == 0

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Filter, clip, average, and add noise."""
        norms = rows.squared_norms.sqrt()
        radius = norms.quantile(0.5)
        kept = densest_majority(rows.cosine_distances)
        weights = (radius / norms).clamp(max=1).nan_to_num(nan=1.0) * kept / kept.sum()
        stats = {
            "radius": float(radius),
            "kept": kept.nonzero().flatten().tolist(),
            "clipped": (norms > radius).nonzero().flatten().tolist(),
        }
        value = rows.mix_exactly(weights)
        if self.noise > 0:
            generator, state = next_draw(rows, state, self.seed, "flame")
            drawn = torch.randn(rows.d, dtype=torch.float64, generator=generator)
            value = value + self.noise * float(radius) * drawn.to(value.device)
        return Aggregate(rows.cast(value), weights, stats=stats), state


_ORIGIN = "cosines and norms are taken from the origin"
_SCALES = "a short row in their direction shortens the mean"

CASES = (
    Case("flame()", lacks={"translation": _ORIGIN, "scales": _SCALES}),
    Case(
        "flame(noise=0.001, seed=3)",
        n=9,
        lacks={
            "translation": _ORIGIN,
            "scales": _SCALES,
            "mix": "the noise is no combination of rows",
            "unanimity": "the noise is added to whatever the rows agree on",
        },
    ),
)
