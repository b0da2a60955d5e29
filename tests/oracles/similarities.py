"""Slow oracles, second part: spectral rules, clusterings, trust and similarity, mixers, weighted order statistics.

As in `basic`: float64 numpy with loops, written from the definitions. What is random in a rule (a permutation, a
choice of coordinates, noise) is part of its definition and is drawn here from the same seed.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from flwr_robust.seeds import torch_generator
from tests.oracles.basic import average_of, distance, middle, shares, two_means, weighted_sum, weights_of
from tests.oracles.basic import median as equal_median
from tests.oracles.basic import trimmed_mean as equal_trimmed_mean

# -- mixers ------------------------------------------------------------------------------------------


def nnm(x, f, weighted=False, clamp=2.0, most=None, counts=None):
    """Means of the nearest rows that hold all of the weight but that of the f heaviest; the last one in part."""
    n = len(x)
    held = weights_of(x, weighted, clamp, most, f, counts)
    budget = math.fsum(sorted(held)[: n - f])
    matrix = np.zeros((n, n))
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: (math.fsum((x[i] - x[j]) ** 2), j))
        room = budget
        for j in [i, *others]:
            matrix[i, j] = min(held[j], room) / budget
            room = max(room - held[j], 0.0)
    return matrix


def arc(x, f):
    norms = [distance(row, 0 * row) for row in x]
    n = len(x)
    radius = sorted(norms, reverse=True)[2 * f * (n - f) // n]
    return np.diag([1.0 if norm <= radius else radius / norm for norm in norms])


def bucketing(x, s, seed=0, draw=0):
    n = len(x)
    order = torch.randperm(n, generator=torch_generator(seed, "bucketing", draw)).tolist()
    # Listed by their lowest row.
    buckets = sorted((order[start : start + s] for start in range(0, n, s)), key=min)
    return np.array([[1 / len(bucket) if i in bucket else 0.0 for i in range(n)] for bucket in buckets])


def resampling(x, s, seed=0, draw=0):
    n, generator = len(x), torch_generator(seed, "resampling", draw)
    orders = [torch.randperm(n, generator=generator).tolist() for _ in range(s)]
    return np.array([[sum(order[j] == i for order in orders) / s for i in range(n)] for j in range(n)])


# -- weighted order statistics -----------------------------------------------------------------------


def median(x, f=None, weighted=False, clamp=2.0, most=None, counts=None):
    """Per column the value at which half of the weight lies on either side; the mean of two where a gap does."""
    if not weighted:
        return equal_median(x, f)
    bounded = shares(counts, clamp, most, f)
    value = []
    for column in x.T:
        order = sorted(range(len(x)), key=lambda i: (column[i], i))
        below = [math.fsum(bounded[order[: k + 1]]) for k in range(len(x))]
        low = next(k for k, weight in enumerate(below) if weight >= 0.5 - 1e-12)
        high = low + 1 if below[low] <= 0.5 + 1e-12 and low + 1 < len(x) else low
        value.append((column[order[low]] + column[order[high]]) / 2)
    return np.array(value), None


def trimmed_mean(x, f=None, fraction=None, asked=None, weighted=False, clamp=2.0, most=None, counts=None):
    """Drop f values per side as without weights; average the others by their weights."""
    if not weighted:
        return equal_trimmed_mean(x, f, fraction, asked)
    n = len(x)
    if f is None:
        f = int(fraction * (n if asked is None else asked) + 1e-9)
    bounded = shares(counts, clamp, most, f)
    value = []
    for column in x.T:
        kept = sorted(range(n), key=lambda i: (column[i], i))[f : n - f]
        value.append(math.fsum(bounded[i] * column[i] for i in kept) / math.fsum(bounded[i] for i in kept))
    return np.array(value), None


# -- spectral ----------------------------------------------------------------------------------------


def largest_eigenvalue(x):
    return float(np.linalg.svd(x - x.mean(0), compute_uv=False)[0] ** 2 / len(x))


def smea(x, f, maximum=None):
    subsets = list(itertools.combinations(range(len(x)), len(x) - f))
    values = [largest_eigenvalue(x[list(subset)]) for subset in subsets]
    return average_of(x, list(next(s for s, v in zip(subsets, values, strict=True) if v <= min(values) * (1 + 1e-9))))


def caf(x, f):
    n = len(x)
    c = np.ones(n)
    best, least = c / n, math.inf
    while c.sum() > n - 2 * f:
        left = np.flatnonzero(c)
        w = c[left] / c.sum()
        about = x[left] - weighted_sum(x[left], w)
        _, sizes, directions = np.linalg.svd(np.sqrt(w)[:, None] * about, full_matrices=False)
        if sizes[0] ** 2 < least * (1 - 1e-9):
            least, best = sizes[0] ** 2, np.zeros(n)
            best[left] = w
        if not (x[left] != x[left[0]]).any():
            break
        tau = (about @ directions[0]) ** 2
        tau /= tau.max()
        c[left] *= np.where(tau >= 1 - 1e-9, 0.0, 1 - tau)
    return weighted_sum(x, best), best


# -- directions --------------------------------------------------------------------------------------


def cosine_distances(x):
    """1 - cos, as half the squared distance of unit vectors; 1 for a zero row; 0 for parallel rows."""
    n = len(x)
    apart = np.zeros((n, n))
    for i, j in itertools.combinations(range(n), 2):
        a, b = np.linalg.norm(x[i]), np.linalg.norm(x[j])
        chord = math.fsum((x[i] / a - x[j] / b) ** 2) / 2 if a and b else 1.0
        apart[i, j] = apart[j, i] = 0.0 if chord < 1e-28 else chord
    return apart


LINKS = {"average": lambda values: math.fsum(values) / len(values), "complete": max, "single": min}


def larger_cluster(apart, linkage="average"):
    clusters = [[i] for i in range(len(apart))]
    while len(clusters) > 2:
        pairs = itertools.combinations(range(len(clusters)), 2)
        links = {(a, b): LINKS[linkage]([apart[i, j] for i in clusters[a] for j in clusters[b]]) for a, b in pairs}
        # Equal but for rounding of the mean is equal.
        least = min(links.values())
        a, b = min(pair for pair, link in links.items() if link <= least * (1 + 1e-12))
        clusters[a] += clusters.pop(b)
        clusters.sort(key=min)
    return sorted(max(clusters, key=len))


def clustering(x, linkage="average"):
    return average_of(x, larger_cluster(cosine_distances(x), linkage))


def shortened(x, kept, radius):
    norms = [distance(row, 0 * row) for row in x]
    weights = np.array([min(1.0, radius / norm) if norm else 1.0 for norm in norms])
    weights = np.array([w / len(kept) if i in kept else 0.0 for i, w in enumerate(weights)])
    return weighted_sum(x, weights), weights


def clipped_clustering(x, linkage="average", seen=()):
    radius = middle([*seen, *(distance(row, 0 * row) for row in x)])
    return shortened(x, larger_cluster(cosine_distances(x), linkage), radius)


def signguard(x, lower=0.1, upper=3.0, share=0.1, seed=0, draw=0):
    n, d = x.shape
    norms = [distance(row, 0 * row) for row in x]
    radius = middle(norms)
    chosen = torch.randperm(d, generator=torch_generator(seed, "signguard", draw)).numpy()[: max(1, int(share * d))]
    signs = np.sign(x[:, chosen])
    points = np.array([[float((row == sign).sum()) for sign in (1, 0, -1)] for row in signs])
    labels = two_means(points) if n > 1 else np.zeros(1, int)
    alike = 0 if 2 * (labels == 0).sum() >= n else 1
    kept = [i for i in range(n) if labels[i] == alike and lower * radius <= norms[i] <= upper * radius]
    return shortened(x, kept, radius) if kept else (np.zeros(d), np.zeros(n))


def fltrust(x, trusted=None):
    trusted = np.median(x, axis=0) if trusted is None else trusted
    length = distance(trusted, 0 * trusted)
    norms = [distance(row, 0 * row) for row in x]
    cosines = [
        math.fsum(row * trusted) / norm / length if norm and length else 0.0 for row, norm in zip(x, norms, strict=True)
    ]
    scores = [cosine if cosine >= 1e-12 else 0.0 for cosine in cosines]
    if not any(scores):
        return np.zeros(x.shape[1]), np.zeros(len(x))
    weights = np.array(
        [s / sum(scores) * length / norm if norm else 0.0 for s, norm in zip(scores, norms, strict=True)]
    )
    return weighted_sum(x, weights), weights


def foolsgold_scores(apart, confidence=1.0):
    n = len(apart)
    cosines = 1 - np.asarray(apart, np.longdouble)  # cosines near 1 keep some digits of what they lack
    most = [max(0.0 if i == j else cosines[i, j] for j in range(n)) for i in range(n)]
    scores = []
    for i in range(n):
        alike = [0.0]
        for j in range(n):
            if i != j:
                alike.append(cosines[i, j] * (most[i] / most[j] if most[j] > most[i] else 1.0))
        scores.append(min(max(1 - max(alike), 0.0), 1.0))
    if not any(scores):
        return np.zeros(n)
    final = []
    for score in scores:
        share = score / max(scores)
        logit = math.inf if share == 1 else -math.inf if share == 0 else math.log(share / (1 - share))
        final.append(min(max(confidence * (logit + 0.5), 0.0), 1.0))
    return np.array(final, float)


def foolsgold(x, confidence=1.0):
    scores = foolsgold_scores(cosine_distances(x), confidence)
    weights = scores / scores.sum() if scores.any() else scores
    return weighted_sum(x, weights), weights


def densest_majority(apart):
    """The component of more than half of the points at the least distance that has one."""
    n = len(apart)
    for t in sorted({0.0, *apart.flatten()}):
        for start in range(n):
            found, front = {start}, [start]
            while front:
                i = front.pop()
                near = [j for j in range(n) if j not in found and apart[i, j] <= t]
                found.update(near)
                front += near
            if 2 * len(found) > n:
                return sorted(found)
    raise AssertionError("all points are one component at the largest distance")


def flame(x, noise=0.0, seed=0, draw=0):
    radius = middle([distance(row, 0 * row) for row in x])
    value, weights = shortened(x, densest_majority(cosine_distances(x)), radius)
    if noise:
        generator = torch_generator(seed, "flame", draw)
        value = value + noise * radius * torch.randn(x.shape[1], dtype=torch.float64, generator=generator).numpy()
        return value, None
    return value, weights


# -- by name, for the conformance suite --------------------------------------------------------------

RULES = {
    "caf": caf,
    "clipped_clustering": clipped_clustering,
    "clustering": clustering,
    "flame": flame,
    "fltrust": fltrust,
    "foolsgold": foolsgold,
    "median": median,
    "signguard": signguard,
    "smea": smea,
    "trimmed_mean": trimmed_mean,
}
MIXERS = {"arc": arc, "bucketing": bucketing, "nnm": nnm, "resampling": resampling}
NEEDS_COUNTS = {"median", "nnm", "trimmed_mean"}
