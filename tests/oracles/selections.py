"""Slow oracles, more of them: values near a centre, other norms, selections, subsets, clipped means, votes, directions.

As in `basic`: float64 numpy with loops, written from the definitions. What is random in a rule (the coordinates that
DnC draws) is part of its definition and is drawn here from the same seed.
"""

from __future__ import annotations

import inspect
import itertools
import math

import numpy as np
import torch

from flwr_robust.core.spec import parse_chain
from flwr_robust.seeds import torch_generator
from tests.oracles.basic import RULES as BASE
from tests.oracles.basic import average_of, best, clip, clipped, distance, middle, weighted_sum, weights_of

# -- values near a centre ----------------------------------------------------------------------------


def around(values, centre, m):
    """Mean of the m values nearest to the centre, the smaller of two equally far."""
    return math.fsum(sorted(values, key=lambda v: (abs(v - centre), v))[:m]) / m


def trimmed(values, f):
    kept = sorted(values)[f : len(values) - f]
    return math.fsum(kept) / len(kept)


def meamed(x, f):
    return np.array([around(column, middle(column), len(x) - f) for column in x.T]), None


def phocas(x, f):
    return np.array([around(column, trimmed(column, f), len(x) - f) for column in x.T]), None


# -- selections --------------------------------------------------------------------------------------


def lp(z, p):
    return max(abs(z)) if p == "inf" else math.fsum(abs(v) ** p for v in z) ** (1 / p)


def lp_scores(x, f, p):
    n = len(x)
    rows = [sorted(lp(x[i] - x[j], p) ** 2 for j in range(n) if j != i) for i in range(n)]
    return [math.fsum(row[: n - f - 2]) for row in rows]


def generalised_krum(x, f, p=2):
    if p == 2:
        return BASE["krum"](x, f)
    scores = lp_scores(x, f, p)
    # Roots round: scores that agree to twelve digits are ties.
    return average_of(x, [next(i for i, s in enumerate(scores) if s <= min(scores) * (1 + 1e-12))])


def phase(text, x, f):
    """What the rule of one of Bulyan's phases makes of x; Krum's f is lowered until it fits."""
    ((name, fields),) = parse_chain(text, "oracle")
    rule = {**BASE, **RULES}[name]
    if "krum" in name:
        f = min(f, (len(x) - 3) // 2)
    given = {"f": f} if "f" in inspect.signature(rule).parameters else {}
    return rule(x, **{**given, **fields})


def bulyan_selection(x, f, selection="krum"):
    """The rows selected, in order: n - 2f times the one nearest to the selection rule's value."""
    left, selected = list(range(len(x))), []
    if f == 0:
        return left
    while len(left) > 2 * f:
        value, _ = phase(selection, x[left], f)
        # The mean of two rows is equally far from both, up to rounding.
        away = [math.fsum((x[i] - value) ** 2) for i in left]
        selected.append(left.pop(next(k for k, a in enumerate(away) if a <= min(away) * (1 + 1e-9))))
    return selected


def bulyan(x, f, selection="krum", aggregation=None):
    chosen = sorted(bulyan_selection(x, f, selection))
    if aggregation is None:
        return np.array([around(column, middle(column), len(x) - 4 * f) for column in x[chosen].T]), None
    value, inner = phase(aggregation, x[chosen], f)
    if inner is None:
        return value, None
    weights = np.zeros(len(x))
    weights[chosen] = inner
    return value, weights


def diameter(x, subset):
    return max((math.fsum((x[i] - x[j]) ** 2) for i, j in itertools.combinations(subset, 2)), default=0.0)


def minimum_diameter(x, f):
    apart = {pair: diameter(x, pair) for pair in itertools.combinations(range(len(x)), 2)}
    subsets = list(itertools.combinations(range(len(x)), len(x) - f))  # in lexicographic order
    return average_of(
        x, list(min(subsets, key=lambda s: max((apart[p] for p in itertools.combinations(s, 2)), default=0.0)))
    )


def monna(x, f, trusted=None):
    """Without a trusted row the conformance suite's: the median of the rows."""
    trusted = [middle(column) for column in x.T] if trusted is None else trusted
    return average_of(x, best([math.fsum((row - trusted) ** 2) for row in x], len(x) - f))


def cge(x, f):
    return average_of(x, best([math.fsum(row**2) for row in x], len(x) - f))


# -- clipped means -----------------------------------------------------------------------------------


def norm_bound(x, c, f=None):
    short = clipped(x, c)
    weights = [1.0 if (norm := distance(row, 0 * row)) <= c else c / norm for row in x]
    return weighted_sum(short, np.full(len(x), 1 / len(x))), np.array(weights) / len(x)


def clip_mean(x, f=None, weighted=False, clamp=2.0, most=None, counts=None):
    held = weights_of(x, weighted, clamp, most, f, counts)
    radius = middle([distance(row, 0 * row) for row in x])
    factors = held / held.sum() * np.diag(clip(x, radius))
    return weighted_sum(x, factors), factors


# -- votes -------------------------------------------------------------------------------------------


def sign_majority(x, scale=1.0, f=None):
    votes = [sum((v > 0) - (v < 0) for v in column.tolist()) for column in x.T]
    return np.array([scale * ((v > 0) - (v < 0)) for v in votes]), None


# -- directions --------------------------------------------------------------------------------------


def drawn_coordinates(d, b, iterations, seed, draw):
    generator = torch_generator(seed, "dnc", draw)
    for _ in range(iterations):
        if 4 * b >= d:
            yield sorted(torch.randperm(d, generator=generator)[:b].tolist())
            continue
        found = set()
        while len(found) < b:
            found |= set(torch.randint(d, (b - len(found),), generator=generator).tolist())
        yield sorted(found)


def outstanding(y, m):
    """The m rows of least |<y_i, v>|, entries that agree to nine digits being equal."""
    y = len(y) * y - y.sum(0)  # n times the centred rows
    if not y.any():
        return set(range(m))
    _, singular, directions = np.linalg.svd(y, full_matrices=False)
    lengths = np.maximum(np.abs(y @ directions[0]) / singular[0], 1e-12)
    return set(best([round(math.log(v) * 1e9) for v in lengths], m))


def dnc(x, f, c=1.0, iterations=5, sub_dimension=10_000, seed=0, draw=0):
    m = len(x) - int(c * f + 1e-9)
    d = x.shape[1]
    sets = [range(d)]
    if sub_dimension < d:
        sets = list(drawn_coordinates(d, sub_dimension, iterations, seed, draw))
    kept = [outstanding(x[:, list(columns)], m) for columns in sets]
    times = [sum(i in good for good in kept) for i in range(len(x))]
    return average_of(x, [i for i in range(len(x)) if times[i] == max(times)])


# -- a rule drawn from a pool ------------------------------------------------------------------------


SMALLEST = {"krum": (2, 3), "multi_krum": (2, 3), "generalised_krum": (2, 3), "bulyan": (4, 3)}  # a f + b; else 2f + 1


def mixtailor_pool(f):
    """The paper's pool as [(name, fields)] in our reading."""
    pool = [("median", {"f": f})] * 16
    pool += [("generalised_krum", {"f": f, "p": p}) for p in range(1, 17)]
    pool += [("geometric_median", {"f": f})] * 16
    for s in range(4):
        for a in range(4):
            phases = [f"generalised_krum(p={4 * s + a + 1})", "mean", "geometric_median", "median"]
            aggregation = None if phases[a] == "mean" else phases[a]
            pool.append(("bulyan", {"f": f, "selection": phases[s], "aggregation": aggregation}))
    return [[member] for member in pool]


def mixtailor(x, f, pool="paper", seed=None, draw=0):
    chains = mixtailor_pool(f) if pool == "paper" else [list(parse_chain(text, "oracle")) for text in pool]
    for chain in chains:
        name, fields = chain[-1]
        chain[-1] = (name, {"f": f, **fields})
    fitting = [c for c in chains if len(x) >= np.dot(SMALLEST.get(c[-1][0], (2, 1)), (c[-1][1]["f"], 1))]
    index = 0
    if seed is not None:
        index = int(torch.randint(len(fitting), (), generator=torch_generator(seed, "mixtailor", draw)))
    from tests import oracles  # here, for the table of all rules holds this one

    return oracles.aggregate(fitting[index], x)


# -- by name, for the conformance suite --------------------------------------------------------------

RULES = {
    "bulyan": bulyan,
    "cge": cge,
    "clip_mean": clip_mean,
    "dnc": dnc,
    "generalised_krum": generalised_krum,
    "meamed": meamed,
    "minimum_diameter": minimum_diameter,
    "mixtailor": mixtailor,
    "monna": monna,
    "norm_bound": norm_bound,
    "phocas": phocas,
    "sign_majority": sign_majority,
}
NEEDS_COUNTS = {"clip_mean"}
