"""Search the worst rows for a rule: structured starts, then CMA-ES from the best of them.

A rule that sees rows through inner products alone knows no more than n points span. So the worst n rows live in at most
n - 1 dimensions. The starts lie in one, two, three and h dimensions (h honest rows). CMA-ES (Hansen, arXiv 1604.00772;
the library `cma`) then moves them. First rows that coincide are kept together, which leaves few unknowns, then each row
moves alone. Groups of rows that are all alike are searched, too: each in a plane, its rows apart at right angles to it.
All is in float64. The result is a lower bound with the rows that show it.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flwr_robust.certificates.measures import spread
from flwr_robust.certificates.starts import agreeing, attacked, clustered
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Outcome, Rule
from flwr_robust.errors import extra

with extra("studies"):
    import cma

__all__ = ["Found", "Problem", "search"]

_Array = NDArray[np.float64]

_THIN = 1e-4  # honest rows that spread less than this share of the largest number are not looked at: rounding counts
_OFF = 1e-6  # a value that is this far from equal honest rows, relative to the largest number, has moved
_ALIKE = 1e-12  # draws whose errors differ by a smaller share are equal but for rounding
_PACE = 5  # evaluations whose time is measured
_DRAWS = 8  # of a rule that draws, in the search
_STARTS, _FEWEST = 400, 80  # of a kind, at most and, before any others, at least
_RUN = 200  # evaluations of a short search
_SHAPES = 16  # how many starts are moved
_MOST = 120  # unknowns of a search


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes
    ----------
    ratio : float
        The largest value of the measure.
    rows : array (n, k)
        The rows that show it, the honest ones first.
    evaluations : int
        How many sets of rows were tried.
    """

    ratio: float
    rows: _Array
    evaluations: int


@dataclass(frozen=True)
class Problem:
    """A rule, how many rows of which how many are faulty, and the measure.

    Attributes
    ----------
    rule : Rule
        The rule; a trusted row, if it needs one, is the first honest row.
    n, f : int
        Number of rows, and of faulty ones, which come last.
    measure : str
        ``kappa``, ``rho`` or ``lambda``.
    """

    rule: Rule
    n: int
    f: int
    measure: str

    def value(self, rows: _Array, seed: int = 0) -> _Array | None:
        """Return the rule's value (k,) for rows; None where nothing is aggregated."""
        x = torch.from_numpy(np.ascontiguousarray(rows))
        aggregate, _ = self.rule(Rows.from_tensor(x, seed=seed, trusted=x[0] if self.rule.needs_trust else None))
        if aggregate.outcome is Outcome.INFEASIBLE:
            return None
        return np.asarray(aggregate.value.numpy())

    def ratios(self, rows: _Array, seeds: Sequence[int] = (0,)) -> tuple[float, float]:
        """Return the measure for rows, as the mean over draws, and the standard error of it.

        For kappa and lambda it is the mean of the squared error, for rho the root of it, over what the honest rows
        spread. Rounds in which nothing is aggregated count as no error.
        """
        honest = rows[: self.n - self.f]
        size, mean = float(np.abs(rows).max()), honest.mean(0)
        values = [self.value(rows, seed) for seed in seeds]
        squares = np.array([0.0 if value is None else float(((value - mean) ** 2).sum()) for value in values])
        error = float(squares.mean())
        if (honest == honest[0]).all():
            return (math.inf if error > (_OFF * size) ** 2 else 0.0), 0.0
        wide = spread(self.measure, honest)
        if wide <= (_THIN * size if self.measure == "rho" else (_THIN * size) ** 2):
            return 0.0, 0.0
        uncertain = float(squares.std(ddof=1)) / math.sqrt(len(squares)) if len(squares) > 1 else 0.0
        uncertain = uncertain if uncertain > _ALIKE * error else 0.0
        if self.measure == "rho":
            return math.sqrt(error) / wide, uncertain / (2 * math.sqrt(error) * wide) if error > 0 else 0.0
        return error / wide, uncertain / wide

    def draws(self) -> bool:
        """Say whether the value depends on the seed."""
        if not any(key.rpartition(".")[2] == "draws" for key in self.rule.remembered):
            return False
        rng = np.random.default_rng(0)
        for k in (1, 3):
            rows = rng.standard_normal((self.n, k))
            values = [self.value(rows, seed) for seed in range(4)]
            if len({None if value is None else value.tobytes() for value in values}) > 1:
                return True
        return False


class _Search:
    """The best rows so far, and what is left to spend."""

    def __init__(self, problem: Problem, seeds: Sequence[int], evaluations: int, seconds: float) -> None:
        self.problem, self.seeds = problem, seeds
        self.left, self.used, self.until = evaluations, 0, time.monotonic() + seconds
        self.tried: list[tuple[float, int, _Array]] = []
        self.best, self.rows = -1.0, np.zeros((problem.n, 1))

    @property
    def over(self) -> bool:
        return self.left <= 0 or time.monotonic() > self.until or math.isinf(self.best)

    def afford(self, evaluations: int) -> int:
        """Return how many evaluations the time allows, at the present pace, so that each kind of step has its share."""
        begin = time.monotonic()
        for _ in range(_PACE):
            self.problem.ratios(self.rows, self.seeds)
        pace = (time.monotonic() - begin) / _PACE
        self.left = min(self.left, max(0, round((self.until - time.monotonic()) / pace)))
        return min(evaluations, self.used + self.left)

    def look(self, rows: _Array) -> float:
        """Evaluate rows, and keep them if they are the best."""
        self.left -= 1
        self.used += 1
        ratio = self.problem.ratios(rows, self.seeds)[0]
        if ratio > self.best:
            self.best, self.rows = ratio, rows.copy()
        return ratio

    def start(self, candidates: Iterator[_Array], share: int) -> None:
        """Evaluate up to so many starts, and remember them."""
        for rows in itertools.islice(candidates, share):
            if self.over:
                return
            self.tried.append((self.look(rows), len(self.tried), rows))

    def evolve(self, first: _Array, step: float, make: Callable[[_Array], _Array], evaluations: int, seed: int) -> None:
        """Search numbers from which rows are made, from some first numbers on, by CMA-ES."""
        if self.over or not 2 <= len(first) <= _MOST:
            return
        options = {"seed": seed, "verbose": -9, "maxfevals": min(evaluations, self.left), "tolfun": 1e-12}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the library, about options and ties
            strategy = cma.CMAEvolutionStrategy(first, step, options)
            while not strategy.stop() and not self.over:
                points = strategy.ask()
                strategy.tell(points, [-self.look(make(np.asarray(point))) for point in points])

    def move(self, rows: _Array, groups: NDArray[np.intp], evaluations: int, step: float, seed: int) -> None:
        """Move rows; those of one group stay together."""
        k, count = rows.shape[1], int(groups.max()) + 1
        first = np.array([rows[groups == g][0] for g in range(count)])
        honest = rows[: self.problem.n - self.problem.f]
        scale = math.sqrt(float(((honest - honest.mean(0)) ** 2).sum(1).mean())) or 1.0
        self.evolve(first.ravel(), step * scale, lambda x: x.reshape(count, k)[groups], evaluations, seed)

    def stretch(self, rows: _Array) -> None:
        """Move the faulty rows towards the honest mean or away from it, as long as this helps."""
        h = self.problem.n - self.problem.f
        mean, best, step = rows[:h].mean(0), self.look(rows), 0.5
        while step > 1e-6 and not self.over:
            for factor in (1 + step, 1 / (1 + step)):
                moved = np.concatenate([rows[:h], mean + factor * (rows[h:] - mean)])
                if (ratio := self.look(moved)) > best:
                    best, rows = ratio, moved
                    break
            else:
                step /= 2


def _exchangeable(sizes: Sequence[int]) -> Callable[[_Array], _Array]:
    """Return what makes rows of groups: a place in the plane each, and a distance at which its rows stand apart.

    The rows of a group leave its place at right angles to the plane and to each other, so they are all alike.
    """
    groups = np.repeat(np.arange(len(sizes)), sizes)

    def make(numbers: _Array) -> _Array:
        placed = numbers.reshape(len(sizes), 3)[groups]
        return np.concatenate([placed[:, :2], np.diag(placed[:, 2])], axis=1)

    return make


def _grouped(rows: _Array) -> NDArray[np.intp]:
    """Return the group of each row, numbered by first appearance; equal rows share one."""
    _, groups = np.unique(rows, axis=0, return_inverse=True)
    return np.asarray(groups).reshape(-1)


def search(
    problem: Problem, *, drawn: bool, evaluations: int, seconds: float, seed: int, first: Sequence[_Array] = ()
) -> Found:
    """Search the rows for which a rule's error is largest.

    Parameters
    ----------
    problem : Problem
        What to search.
    drawn : bool
        Whether the rule draws; then each set of rows is evaluated with several seeds.
    evaluations : int
        How many sets of rows are tried at most.
    seconds : float
        After how many seconds the search stops with what it has.
    seed : int
        Of the search's own draws.
    first : sequence of array (n, k)
        Rows to begin with, whatever the time.
    """
    n, f = problem.n, problem.f
    rng = np.random.default_rng(seed)
    run = _Search(problem, range(_DRAWS) if drawn else (0,), evaluations, seconds)
    run.tried += [(run.look(rows), -1, rows) for rows in first]
    quarter = time.monotonic() + seconds / 4
    run.seeds = run.seeds[:2]  # one draw that moves is enough
    for rows in itertools.chain(agreeing(n, f, 1), agreeing(n, f, 2)):
        if run.over or time.monotonic() > quarter:
            break
        run.look(rows)
    run.seeds = range(_DRAWS) if drawn else (0,)
    evaluations = run.afford(evaluations)
    dimensions = (1, 2, 3, n - f)
    for k in dimensions:
        run.start(_shuffled(clustered(n, f, k, rng), rng, k), min(max(evaluations // 12, _FEWEST), _STARTS))
    for k in dimensions[1:3]:
        run.start(attacked(problem.rule, n, f, k, rng), min(evaluations // 20, _STARTS))
    shapes: dict[tuple[int, ...], _Array] = {}
    for _, _, rows in sorted(run.tried, key=lambda each: (-each[0], each[1])):
        shapes.setdefault((rows.shape[1], *sorted(np.bincount(_grouped(rows)))), rows)
        if len(shapes) == _SHAPES:
            break
    for rows in list(shapes.values())[:4]:
        run.stretch(rows)
    _alternate(run, list(shapes.values()), _splits(n, f), rng, seed + 1)
    rows = run.rows
    if rows.any() and not drawn:  # draws may be of coordinates
        rows = rows[:, rows.any(0)]
    return Found(run.best, rows, run.used)


def _alternate(
    run: _Search, shapes: Sequence[_Array], splits: Sequence[tuple[int, ...]], rng: np.random.Generator, seed: int
) -> None:
    """Spend what is left on many short searches, in turns: from a start, from groups of like rows, from the best."""
    places, sizes = itertools.cycle(shapes), itertools.cycle(splits)
    idle = 0
    for turn in itertools.count():
        if run.over or idle > 3 * len(shapes):
            return
        before = run.used
        if turn % 3 == 0:
            rows = next(places)
            if rows.shape[1] == 1 and rng.random() < 0.5:  # with room beside the line
                rows = np.concatenate([rows, np.zeros_like(rows)], axis=1)
            run.move(rows, _grouped(rows), _RUN, float(rng.choice([0.1, 0.3, 1.0])), seed + turn)
        elif turn % 3 == 1:
            split = next(sizes)
            first = np.concatenate([rng.standard_normal((len(split), 2)), np.full((len(split), 1), 0.3)], axis=1)
            run.evolve(first.ravel(), 0.5, _exchangeable(split), _RUN, seed + turn)
        else:
            groups = np.arange(run.problem.n) if turn % 6 == 5 else _grouped(run.rows)
            run.move(run.rows, groups, _RUN, 0.05, seed + turn)
        idle = idle + 1 if run.used == before else 0


def _splits(n: int, f: int) -> list[tuple[int, ...]]:
    """Return sizes of groups, the faulty ones last: one, two and three groups of honest rows."""
    h = n - f
    cut = [a for a in dict.fromkeys((f, n - 2 * f - 1, n - 2 * f, h // 2, 1)) if 0 < a < h]
    found: list[tuple[int, ...]] = [(h,), *((a, h - a) for a in cut)]
    found += [(f, h - 2 * f, f)] if h > 2 * f > 0 else []
    return [(*sizes, f) if f else sizes for sizes in found]


def _shuffled(starts: Iterator[_Array], rng: np.random.Generator, k: int) -> Iterator[_Array]:
    """Yield starts in a drawn order, so that a part of them is of all kinds; on a line as they come."""
    found = list(starts)
    order = range(len(found)) if k == 1 else rng.permutation(len(found))
    for at in order:
        yield found[at]
