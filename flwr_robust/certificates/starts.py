"""Where a search for the worst rows begins: honest families, and faulty rows placed against each of them.

The honest families are two and three clusters on a line, one outlier, a simplex, clusters on axes, evenly spaced values
and normal draws. The faulty rows lie on an honest cluster, far away, or where a cluster is mirrored in another. Or an
attack of the registry puts them, at several distances from the honest mean.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from flwr_robust.attacks.message.base import Knowledge, MessageAttack, View, message_attacks
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Rule
from flwr_robust.errors import FlwrRobustError

__all__ = ["agreeing", "attacked", "clustered"]

_Array = NDArray[np.float64]

_TIED = 1e-9  # by how much a mirrored row is nearer than what it mirrors, so that rounding decides no tie
_FAR = (3.0, 100.0)


def _row(values: list[float], k: int) -> _Array:
    return np.array([*values, *[0.0] * (k - len(values))])


def _stacked(parts: list[tuple[int, _Array]]) -> _Array:
    return np.concatenate([np.tile(row, (count, 1)) for count, row in parts if count])


def agreeing(n: int, f: int, k: int) -> Iterator[_Array]:
    """Yield rows (n, k) whose honest ones are all equal: a rule that moves then has no bound."""
    h = n - f
    for centre in ([0.0] * k, [1.0] * k, [1.0, *[0.0] * (k - 1)]):
        at = np.array(centre)
        for move in (1.0, -1.0, 100.0, -100.0, -0.5, 1e-3):
            yield _stacked([(h, at), (f, at + move)])
            if at.any() and move != 1:
                yield _stacked([(h, at), (f, move * at)])
            if f > 1:  # two sizes, of which the larger hides the smaller
                yield _stacked([(h, at), (1, at + (n - 1) * move), (f - 1, at + move)])
        if k > 1:
            yield _stacked([(h, at), (f, at + np.eye(k)[1])])
            yield np.concatenate([np.tile(at, (h, 1)), at + np.eye(k)[np.arange(f) % k]])


def _honest(h: int, n: int, f: int, k: int, rng: np.random.Generator) -> Iterator[list[tuple[int, _Array]]]:
    """Yield honest families as clusters (size, place), those of the known worst cases first."""
    sizes = sorted({f, n - 2 * f, n // 2 + 1 - f, (n - 1) // 2, max(1, f // 2), 1} & {*range(1, h)})
    for low in sizes:
        yield [(low, _row([0.0], k)), (h - low, _row([1.0], k))]
    # Three clusters in which low values lie at -1 and high ones balance them.
    pairs = [(low, high) for low in sizes for high in sizes if low + high <= h]
    for low, high in sorted(pairs, key=lambda pair: (pair[0] != f, -pair[1])):
        yield [(low, _row([-1.0], k)), (h - low - high, _row([0.0], k)), (high, _row([low / high], k))]
    for low in sorted({*range(1, h)} - {*sizes}):
        yield [(low, _row([0.0], k)), (h - low, _row([1.0], k))]
    yield [(1, _row([float(i)], k)) for i in range(h)]
    for _ in range(3):
        yield [(1, row) for row in rng.standard_normal((h, k))]
    if k > 1:
        groups = np.arange(h) % k
        yield [(int((groups == g).sum()), np.eye(k)[g]) for g in range(min(k, h))]
        apart = [1.0, *[0.0] * (k - 1)]
        yield [(h - 1, _row([0.0], k)), (1, np.array(apart))]
        for low in sorted(sizes):  # a cluster, and rows of their own at one distance from it
            places = np.eye(k)[np.arange(h - low) % k]
            yield [(low, np.zeros(k)), *[(1, place) for place in places]]


def clustered(n: int, f: int, k: int, rng: np.random.Generator) -> Iterator[_Array]:
    """Yield rows (n, k), the honest ones first, with the faulty ones at places that the honest ones suggest."""
    # No rule can be right both here and where the rows at 1 are the faulty ones: `measures`.
    yield np.concatenate([np.zeros((n - 2 * f, k)), np.tile(_row([1.0], k), (f, 1)), np.zeros((f, k))])
    families = []
    for parts in _honest(n - f, n, f, k, rng):
        places = np.unique(np.array([row for count, row in parts if count]), axis=0)[:6]
        families.append((_stacked(parts), places))
    for honest, places in families:
        for place in places:
            yield np.concatenate([honest, np.tile(place, (f, 1))])
            for other in places:
                if (other != place).any():
                    mirrored = 2 * other - place + _TIED * (place - other)
                    yield np.concatenate([honest, np.tile(mirrored, (f, 1))])
    for honest, places in families:
        mean = honest.mean(0)
        for place in places:
            for step in (*_FAR, 1.5, -1.0):
                yield np.concatenate([honest, np.tile(mean + step * (place - mean), (f, 1))])
            for other in places:
                if (other != place).any():
                    yield np.concatenate([honest, np.tile((place + other) / 2, (f, 1))])


def attacked(rule: Rule, n: int, f: int, k: int, rng: np.random.Generator) -> Iterator[_Array]:
    """Yield rows (n, k) whose faulty ones an attack of the registry wrote, at several distances."""
    attacks = list(_attacks()) if f else []
    for parts in list(_honest(n - f, n, f, k, rng))[-6:]:
        honest = _stacked(parts)
        mean = honest.mean(0)
        rows = Rows.from_tensor(torch.from_numpy(honest))
        for attack in attacks:
            view = View(
                Knowledge.DEFENCE, own=rows.subset(torch.arange(n - f) < f), honest=rows, attackers=range(n - f, n),
                n=n, rule=rule, model=lambda: torch.zeros(k, dtype=torch.float64),
            )  # fmt: skip
            try:
                crafted, _ = attack.craft(view, attack.init(), torch.Generator().manual_seed(0))
                faulty = torch.cat([block for _, block in crafted.blocks()], 1).double().numpy()
            except FlwrRobustError:
                continue  # it does not fit so few rows, or needs what a single round lacks
            if faulty.shape != (f, k) or not np.isfinite(faulty).all():
                continue
            for factor in (0.3, 1.0, 3.0):
                yield np.concatenate([honest, mean + factor * (faulty - mean)])


def _attacks() -> Iterator[MessageAttack]:
    """Yield every message attack of the registry, with the parameters of its cases."""
    for cls in message_attacks.members().values():
        cases = getattr(importlib.import_module(cls.__module__), "CASES", ())
        for text in dict.fromkeys(str(case.attack) for case in cases):
            yield message_attacks.parse(text)
