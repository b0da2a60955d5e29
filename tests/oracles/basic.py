"""Slow oracles: the definitions of the rules spelt out in float64 numpy, with loops.

They are written from the papers' definitions and share nothing with the package: direct differences instead of Gram
matrices, sorting instead of networks. Each returns the value and, for rules that combine whole rows, the weights.
"""

from __future__ import annotations

import math

import numpy as np

# -- averages ----------------------------------------------------------------------------------------


def share_of_heaviest(counts, f):
    return math.fsum(sorted(counts)[len(counts) - max(f or 0, 1) :]) / math.fsum(counts)


def bounded(counts, clamp=2.0, most=None, f=None):
    """Counts below clamp times their median, truncated so far that the f heaviest hold no more than most."""
    counts = np.asarray(counts, float)
    counts = np.minimum(counts, clamp * np.median(counts))
    if most is None or share_of_heaviest(counts, f) <= most * (1 + 1e-12):
        return counts
    low, high = counts.min(), counts.max()
    for _ in range(200):
        middle = (low + high) / 2
        fits = share_of_heaviest(np.minimum(counts, middle), f) <= most * (1 + 1e-15)
        low, high = (middle, high) if fits else (low, middle)
    return np.minimum(counts, low)


def shares(counts, clamp=2.0, most=None, f=None):
    found = bounded(counts, clamp, most, f)
    return found / found.sum()


def weights_of(x, weighted, clamp, most, f, counts):
    """The weights of the rows, the largest of which is 1."""
    found = bounded(counts, clamp, most, f) if weighted else np.ones(len(x))
    return found / found.max()


def weighted_sum(x, weights):
    # math.fsum rounds once, however far apart the summands are.
    return np.array([math.fsum(w * v for w, v in zip(weights, column, strict=True)) for column in x.T])


def mean(x, weighted=False, clamp=2.0, most=None, counts=None):
    weights = shares(counts, clamp, most) if weighted else np.full(len(x), 1 / len(x))
    return weighted_sum(x, weights), weights


# -- coordinate by coordinate ------------------------------------------------------------------------


def middle(values):
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def median(x, f=None):
    return np.array([middle(column) for column in x.T]), None


def trimmed_mean(x, f=None, fraction=None, asked=None):
    if f is None:
        f = int(fraction * (len(x) if asked is None else asked) + 1e-9)
    kept = [sorted(column)[f : len(x) - f] for column in x.T]
    return np.array([math.fsum(values) / len(values) for values in kept]), None


# -- distances ---------------------------------------------------------------------------------------


def distance(a, b):
    return math.sqrt(math.fsum((a - b) ** 2))


def krum_scores(x, f, variant="paper"):
    n = len(x)
    rules = {"paper": (n - f - 2, 2), "byzfl": (n - f - 1, 2), "byzantine_momentum": (n - f - 1, 1)}
    neighbours, power = rules[variant]
    scores = []
    for i in range(n):
        squares = [math.fsum((x[i] - x[j]) ** 2) for j in range(n) if j != i]
        distances = squares if power == 2 else [math.sqrt(s) for s in squares]
        scores.append(math.fsum(sorted(distances)[:neighbours]))
    return scores


def best(scores, m):
    return sorted(sorted(range(len(scores)), key=lambda i: (scores[i], i))[:m])


def average_of(x, chosen, counts=None):
    weights = np.zeros(len(x))
    weights[chosen] = 1 / len(chosen) if counts is None else counts[chosen] / counts[chosen].sum()
    return weighted_sum(x[chosen], weights[chosen]), weights


def krum(x, f, variant="paper", strict=True):
    return average_of(x, best(krum_scores(x, f, variant), 1))


def multi_krum(x, f, m=None, variant="paper", strict=True, weighted=False, clamp=2.0, most=None, counts=None):
    held = weights_of(x, weighted, clamp, most, f, counts)
    return average_of(x, best(krum_scores(x, f, variant), len(x) - f if m is None else m), held)


def faba_removals(x, f, held=None):
    """Rows in the order of their removal, and the least gap by which one was the farthest."""
    left, removed, gap = list(range(len(x))), [], math.inf
    held = np.ones(len(x)) if held is None else held
    for _ in range(f):
        # The differences to the mean times the weight left: no division, so small integers stay exact.
        total = (held[left, None] * x[left]).sum(0)
        far = [math.fsum((held[left].sum() * x[i] - total) ** 2) for i in left]
        worst = far.index(max(far))
        others = [d for i, d in enumerate(far) if i != worst]
        gap = min(gap, 1 - max(others) / far[worst] if far[worst] else 0.0)
        removed.append(left.pop(worst))
    return removed, gap


def faba(x, f, weighted=False, clamp=2.0, most=None, counts=None):
    held = weights_of(x, weighted, clamp, most, f, counts)
    removed, _ = faba_removals(x, f, held)
    return average_of(x, [i for i in range(len(x)) if i not in removed], held)


def summed_distance(x, z, weights):
    return math.fsum(w * distance(row, z) for w, row in zip(weights, x, strict=True))


def geometric_median(
    x,
    f=None,
    iterations=None,
    weighted=False,
    clamp=2.0,
    most=None,
    counts=None,
    steps=20_000,
    start="medoid",
    alpha=None,
    **_,
):
    """Weiszfeld's iteration on the point itself: so many steps, or until it stands still, unless a row is better."""
    if alpha is None:
        alpha = shares(counts, clamp, most, f) if weighted else np.full(len(x), 1 / len(x))
    around = np.abs(x - np.median(x, axis=0))
    tiny = max(1e-13 * (float(np.median(around)) or float(around.max())), 1e-150)
    z, weights = np.zeros(x.shape[1]) if start == "zero" else alpha @ x, alpha
    searched = start == "medoid"
    for _ in range(steps if searched else iterations):
        beta = alpha / np.maximum(np.sqrt(((x - z) ** 2).sum(1)), tiny)
        weights = beta / beta.sum()
        following = weights @ x
        still = np.abs(following - z).max() <= 1e-15 * np.abs(z).max()
        z = following
        if still and searched:
            break
    if searched:
        sums = [summed_distance(x, row, alpha) for row in x]
        if min(sums) <= summed_distance(x, z, alpha) * (1 + 1e-13):
            weights = alpha * (np.array(sums) <= min(sums) * (1 + 1e-13))
            weights = weights / weights.sum()
            z = weights @ x
    return z, weights


def reweighted_geometric_median(x, f=None, times=2, scale=1.0, **_):
    z, weights = geometric_median(x)
    logarithms = np.zeros(len(x))
    for _ in range(times):
        logarithms -= np.sqrt(((x - z) ** 2).sum(1)) / scale
        alpha = np.exp(logarithms - logarithms.max())
        z, weights = geometric_median(x, alpha=alpha / alpha.sum())
    return z, weights


# -- clipping ----------------------------------------------------------------------------------------


def clipped(x, c):
    return np.array([row * min(1.0, c / np.linalg.norm(row)) if row.any() else row for row in x])


def clip(x, c, quantile=0.5, earlier=0):
    norms = np.array([distance(row, 0 * row) for row in x])
    if isinstance(c, str):
        c = np.quantile(norms, quantile)
    return np.diag([1.0 if norm <= c else c / norm for norm in norms])


def centered_clipping(x, tau, steps=1, f=None, weighted=False, clamp=2.0, most=None, counts=None, centre=None):
    held = weights_of(x, weighted, clamp, most, f, counts)
    v = np.zeros(x.shape[1]) if centre is None else np.asarray(centre, float)
    for _ in range(steps):
        radius = middle([distance(row, v) for row in x]) if tau == "median" else tau
        v = v + held @ clipped(x - v, radius) / held.sum()
    return v, None


# -- LFighter ----------------------------------------------------------------------------------------


def two_means(points):
    """Lloyd's iteration from the two points farthest apart; labels, 0 for the cluster of point 0."""
    n = len(points)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    far = max(pairs, key=lambda pair: distance(points[pair[0]], points[pair[1]]))
    if distance(points[far[0]], points[far[1]]) == 0:
        return np.zeros(n, int)
    centres, labels = [points[far[0]], points[far[1]]], None
    while True:
        following = np.array([int(distance(p, centres[1]) < distance(p, centres[0])) for p in points])
        if labels is not None and (np.array_equal(following, labels) or len(set(following)) == 1):
            break
        labels = following
        centres = [points[labels == c].mean(0) for c in (0, 1)]
    return labels if labels[0] == 0 else 1 - labels


def cosine(a, b):
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else 0.0


def dissimilarity(points, members, n):
    """d_c = (n_c / n) (1 - mean over i of min over j of (cos(i, j) - [i = j])); 0 for no members."""
    if not members:
        return 0.0
    # cos(i, i) - 1 is 0 and not what rounding makes of it.
    least = [min(0.0 if i == j else cosine(points[i], points[j]) for j in members) for i in members]
    return len(members) / n * (1 - sum(least) / len(least))


def published_two_means(points, seed, starts):
    """Labels by the library that the published code calls."""
    import warnings

    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer points than clusters
        return KMeans(2, random_state=seed, n_init=starts).fit(np.asarray(points, dtype=np.float64)).labels_


def lfighter(x, layout, head=None, start="kmeans++", starts=1, seed=None):
    column, place = 0, None
    for name, shape in layout:
        if len(shape) == 2 and head in (None, name):
            place = column, shape
        column += math.prod(shape)
    first, (classes, features) = place
    n = len(x)
    matrices = x[:, first : first + classes * features].reshape(n, classes, features)
    norms = [sum(np.linalg.norm(matrices[i, k]) for i in range(n)) for k in range(classes)]
    top = sorted(range(classes), key=lambda k: (-norms[k], k))[:2]
    points = np.array([np.concatenate([matrices[i, k] for k in top]) for i in range(n)])
    labels = two_means(points) if start == "farthest" else published_two_means(points, seed, starts)
    members = [[i for i in range(n) if labels[i] == c] for c in (0, 1)]
    scores = [dissimilarity(points, m, n) for m in members]
    return average_of(x, members[0] if scores[0] >= scores[1] else members[1])


# -- by name, for the conformance suite --------------------------------------------------------------

RULES = {
    "centered_clipping": centered_clipping,
    "faba": faba,
    "geometric_median": geometric_median,
    "krum": krum,
    "lfighter": lfighter,
    "mean": mean,
    "median": median,
    "multi_krum": multi_krum,
    "reweighted_geometric_median": reweighted_geometric_median,
    "trimmed_mean": trimmed_mean,
}
NEEDS_COUNTS = {"centered_clipping", "faba", "geometric_median", "mean", "multi_krum"}
NEEDS_LAYOUT = {"lfighter"}

MIXERS = {"clip": clip}
