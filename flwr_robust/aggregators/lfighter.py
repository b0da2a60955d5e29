"""LFighter: look at the classification head, split the clients in two, keep the better half.

    W_i (K, h): client i's message for the weight matrix of the last layer; row k belongs to class k
    a, b: the two classes with the largest sum_i ||W_i[k]||
    2-means on the concatenations (W_i[a], W_i[b]) gives clusters C_1, C_2
    d_c = (n_c / n) (1 - mean over i in C_c of min_j (cos(i, j) - [i = j]))
    value = mean of the messages of the cluster with the larger d_c, ties to the first

Jebreel, Domingo-Ferrer, Sanchez, Blanco-Justicia, "LFighter: defending against the label-flipping attack in federated
learning", Neural Networks 170 (2024): messages poisoned alike are more alike than honest ones. The score's form, and
the bias left out, are those of the code behind Peng et al., JMLR 26 (2025).

Convention: as in the published code, 2-means is scikit-learn's KMeans. Its starts are drawn by k-means++ (Arthur and
Vassilvitskii, SODA 2007; two candidates for the second centre), and of ``starts`` of them the one with the smallest sum
of squared distances counts. "The first" is then the cluster of the first centre. With ``start="farthest"`` 2-means
starts from the two rows farthest apart, without randomness, and "the first" is the cluster that holds row 0. The two
differ: with one class per client a drawn start may keep the poisoned client and drop an honest one.

Condition: n >= 2; the layout of the rows must be known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.core.fields import Choice, Integer, Text
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators, next_draw
from flwr_robust.errors import ConfigurationError

__all__ = ["LFighter", "k_means", "two_means"]

_Array = NDArray[np.float64]
_SEEDS = 1 << 32  # of numpy's legacy generator


def k_means(points: Tensor, seed: int, starts: int) -> Tensor:
    """Split points (n, h) in two as scikit-learn's KMeans does.

    Parameters
    ----------
    points : Tensor (n, h), float64
        The points.
    seed : int
        ``random_state``, in [0, 2^32).
    starts : int
        ``n_init``: how many starts are drawn.

    Returns
    -------
    Tensor (n,) of bool
        True for the cluster of the first centre; True for all if the points coincide.

    Examples
    --------
    >>> k_means(torch.tensor([[0.0], [0.1], [9.0]], dtype=torch.float64), 0, 1).tolist()
    [True, True, False]
    """
    draw = np.random.RandomState(seed)
    x = points.numpy() - points.numpy().mean(0)
    tolerance = 1e-4 * float(x.var(0).mean())
    best, least = np.ones(len(x), dtype=bool), math.inf
    for _ in range(starts):
        member, inertia = _lloyd(x, _plus_plus(x, draw), tolerance)
        same = (member == best).all() or (member != best).all()
        if least == math.inf or (inertia < least and not same):
            best, least = member, inertia
    return torch.from_numpy(best)


def _plus_plus(x: _Array, draw: np.random.RandomState) -> _Array:
    """Draw two centres (2, h) by k-means++, the second from two candidates."""
    first = draw.choice(len(x), p=np.full(len(x), 1 / len(x)))
    nearest = _squared(x, x[first])
    sums = np.cumsum(nearest)
    wanted = draw.uniform(size=2) * sums[-1]
    candidates = np.searchsorted(sums, wanted).clip(max=len(x) - 1)
    left = [np.minimum(nearest, _squared(x, x[each])).sum() for each in candidates]
    return x[[first, candidates[int(np.argmin(left))]]]


def _lloyd(x: _Array, centres: _Array, tolerance: float) -> tuple[NDArray[np.bool_], float]:
    """Iterate 2-means until nothing changes, or the centres hardly move; return the first cluster and the inertia."""
    member = np.zeros(len(x), dtype=bool)
    for iteration in range(300):
        following = _squared(x, centres[0]) <= _squared(x, centres[1])
        if following.all() or not following.any() or (iteration and (following == member).all()):
            member = following
            break
        member = following
        moved = np.stack([x[member].mean(0), x[~member].mean(0)])
        shift, centres = float(((moved - centres) ** 2).sum()), moved
        if shift <= tolerance:
            member = _squared(x, centres[0]) <= _squared(x, centres[1])
            break
    return member, float(np.where(member, _squared(x, centres[0]), _squared(x, centres[1])).sum())


def _squared(x: _Array, centre: _Array) -> _Array:
    return np.asarray(((x - centre) ** 2).sum(1))


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
    start : str
        ``kmeans++``, as published, or ``farthest``.
    starts : int
        With ``kmeans++``: how many starts are drawn; >= 1. With 1 the rule does as the paper says where each client
        has one class: it drops an honest client. With 10 it mostly finds the split of ``farthest``.
    seed : int, optional
        With ``kmeans++``: seed of the draws, in [0, 2^32); the authors' is 0. When not given, it is the seed of the
        round; without one the operating system's entropy.
    """

    head: Annotated[str | None, Text("the name of an array", example="head.weight")] = None
    start: Annotated[str, Choice(("kmeans++", "farthest"))] = "kmeans++"
    starts: Annotated[int, Integer(minimum=1)] = 1
    seed: Annotated[int | None, Integer(minimum=0)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is not None and self.seed >= _SEEDS:
            raise ConfigurationError(
                f"lfighter: seed must be below 2^32, as scikit-learn's is; got seed={self.seed}: take a smaller one"
            )

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return the key of the number of draws, which a seed of its own does not need."""
        return ("draws",) if self.start == "kmeans++" and self.seed is None else ()

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
        cluster, state = self._split(points, rows, state)
        cosines = _cosines(points)
        scores = [
            _dissimilarity(cosines[member][:, member], rows.n) if bool(member.any()) else 0.0
            for member in (cluster, ~cluster)
        ]
        kept = cluster if scores[0] >= scores[1] else ~cluster
        weights = kept.double() / kept.sum()
        stats = {"classes": top.tolist(), "scores": scores, "kept": kept.nonzero().flatten().tolist()}
        return Aggregate(rows.mix(weights), weights, stats=stats), state

    def _split(self, points: Tensor, rows: Rows, state: State) -> tuple[Tensor, State]:
        """Return the first of two clusters, and the next state."""
        if self.start == "farthest":
            return two_means(points), state
        seed = self.seed
        if seed is None:  # a fixed seed draws the same in every round, as the published code does
            generator, state = next_draw(rows, state, None, "lfighter")
            seed = int(torch.randint(_SEEDS, (), generator=generator))
        return k_means(points.double(), seed, self.starts), state

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

_LACKS = {"resilience": _BOUND, "translation": "cosines are taken from the origin"}

CASES = (
    Case("lfighter(start='farthest')", layout=_LAYOUT, lacks=_LACKS),
    Case("lfighter(head='hidden', start='farthest')", layout=_LAYOUT, lacks=_LACKS),
    Case(
        "lfighter(seed=0)",
        layout=_LAYOUT,
        lacks={**_LACKS, "permutation": "which rows the start is drawn from depends on their order"},
    ),
)
