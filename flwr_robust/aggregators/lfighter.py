"""LFighter: look at the classification head, split the clients in two, keep the better half.

    W_i (K, h): client i's message for the weight matrix of the last layer; row k belongs to class k
    a, b: the two classes with the largest sum_i ||W_i[k]||
    2-means on the concatenations (W_i[a], W_i[b]) gives clusters C_1, C_2
    d_c = (n_c / n) (1 - mean over i in C_c of min_j (cos(i, j) - [i = j]))
    value = mean of the messages of the cluster with the larger d_c, ties to the first

Jebreel, Domingo-Ferrer, Sanchez, Blanco-Justicia, "LFighter: defending against the label-flipping attack in federated
learning", Neural Networks 170 (2024): messages poisoned alike are more alike than honest ones. The score's form, and
the bias left out, are those of the code behind Peng et al., JMLR 26 (2025).

Convention: 2-means starts from the two rows farthest apart and is iterated to its fixed point, so the rule has no
randomness. The published code draws the start from a fixed seed. "The first" is the cluster that holds row 0.

Condition: n >= 2; the layout of the rows must be known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.core.fields import Text
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators
from flwr_robust.errors import ConfigurationError

__all__ = ["LFighter", "two_means"]


def two_means(points: Tensor) -> Tensor:
    """Split points (n, h) in two by Lloyd's iteration from the two farthest apart; bool (n,), row 0 is True."""
    n = points.shape[0]
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    if not bool((apart > 0).any()):
        return torch.ones(n, dtype=torch.bool)
    first, second = divmod(int(apart.flatten().argmax()), n)
    centres = points[[first, second]]
    member = torch.zeros(n, dtype=torch.bool)
    for _ in range(100):
        distances = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
        following = distances[:, 0] <= distances[:, 1]
        if bool((following == member).all()) or bool(following.all()) or not bool(following.any()):
            break
        member = following
        centres = torch.stack([points[member].mean(0), points[~member].mean(0)])
    return member if bool(member[0]) else ~member


def _cosines(points: Tensor) -> Tensor:
    """Return cos(i, j) (n, n) of points (n, h) of any lengths; 0 for zeros."""
    # Scaled by powers of two: products of whole numbers stay exact, and none leaves float64.
    exponents = torch.frexp(points.abs().amax(1)).exponent.clamp(min=-1000)
    scaled = torch.ldexp(points, -exponents[:, None])
    lengths = scaled.norm(dim=1)
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
    return inverse[:, None] * (scaled @ scaled.T) * inverse


def _dissimilarity(cosines: Tensor, n: int) -> float:
    """Return d_c of the cluster whose cosines (n_c, n_c) are given."""
    size = cosines.shape[0]
    similarity = cosines.clone().fill_diagonal_(0)  # cos(i, i) - 1, without its rounding
    return size / n * (1 - float(similarity.min(1).values.mean()))


@aggregators.register("lfighter")
@dataclass(frozen=True)
class LFighter(Rule):
    """Mean of the better of two clusters of classification heads.

    Attributes
    ----------
    head : str, optional
        Name of the last layer's weight matrix (classes, features) in the layout; the last matrix when not given.
    """

    head: Annotated[str | None, Text("the name of an array", example="head.weight")] = None

    def needs(self, asked: int) -> tuple[int, str]:
        """Require n >= 2."""
        return 2, "n >= 2"

    @property
    def isometric(self) -> bool:
        """Return False: the rule looks at one layer."""
        return False

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Cluster the heads and average the kept cluster's messages."""
        start, (classes, features) = self._find(rows)
        heads = rows.slice(start, start + classes * features).cpu().reshape(rows.n, classes, features)
        # torch.sort is stable here so that equal norms fall to the lower class.
        norms = heads.norm(dim=2).sum(0)
        top = torch.sort(norms, descending=True, stable=True).indices[:2]
        points = heads[:, top].reshape(rows.n, -1)
        cluster = two_means(points)
        cosines = _cosines(points)
        scores = [
            _dissimilarity(cosines[member][:, member], rows.n) if bool(member.any()) else 0.0
            for member in (cluster, ~cluster)
        ]
        kept = cluster if scores[0] >= scores[1] else ~cluster
        weights = kept.double() / kept.sum()
        stats = {"classes": top.tolist(), "scores": scores, "kept": kept.nonzero().flatten().tolist()}
        return Aggregate(rows.mix(weights), weights, stats=stats), state

    def check_layout(self, layout: Sequence[Layer]) -> str | None:
        """Say why no head is found among the arrays, or return None."""
        matrices = [layer.name for layer in layout if len(layer.shape) == 2]
        if not layout:
            return "lfighter needs to know the classification head; pass layout=[(name, shape), ...] with the rows"
        if not matrices or self.head not in (None, *matrices):
            held = ", ".join(matrices) or "it has none"
            return f"lfighter: head must name a matrix of the model ({held}); got head={self.head!r}"
        return None

    def _find(self, rows: Rows) -> tuple[int, tuple[int, int]]:
        """Return the head's first column and its shape."""
        if sentence := self.check_layout(rows.layout):
            raise ConfigurationError(sentence)
        start, found = 0, (0, (0, 0))
        for layer in rows.layout:
            if len(layer.shape) == 2 and self.head in (None, layer.name):
                found = start, (layer.shape[0], layer.shape[1])
            start += layer.size
        return found


_LAYOUT = (("hidden", (5, 2)), ("head", (3, 6)), ("bias", (3,)))
_BOUND = "keeps a whole cluster, whatever its size: no bound in f is known"

CASES = (
    Case(
        "lfighter()",
        layout=_LAYOUT,
        lacks={"resilience": _BOUND, "translation": "cosines are taken from the origin"},
    ),
    Case(
        "lfighter(head='hidden')",
        layout=_LAYOUT,
        lacks={"resilience": _BOUND, "translation": "cosines are taken from the origin"},
    ),
)
