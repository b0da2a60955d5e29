"""DnC, divide and conquer: leave out the rows that stand out along the direction of greatest variance.

    repeat ``iterations`` times, each with b random coordinates:
        y_i     = x_i in these coordinates, minus the mean over i
        v       = top right singular vector of the matrix of the y_i
        score_i = <y_i, v>^2;   keep all but the floor(c f) rows of highest score
    value = mean of the rows kept in every iteration

Shejwalkar, Houmansadr, "Manipulating the Byzantine: optimizing model poisoning attacks and defenses for federated
learning" (NDSS 2021), Algorithm 2. With the top eigenvector u of the n x n matrix <y_i, y_j> and its eigenvalue lambda,
score_i = lambda u_i^2 exactly, so v is never formed and nothing is iterated.

Convention: coordinates are drawn without repetition. If b is at least d, all are taken, without randomness and in one
iteration. They are drawn from (seed, number of calls so far); the count is the state. An attacker who knows the seed
can be honest in the coordinates looked at and do anything elsewhere, so the guarantee needs a secret one. Equal scores
drop the highest index first; entries of u that agree to 9 digits, or lie below 1e-12, count as equal. If no row is kept
in every iteration, the rows that were kept most often are averaged. The stats then contain ``fallback``.

A single direction sees one size. Two liars that send S and (n - 1) S put the mean on a liar's row, and of two far rows
the farther one hides the other. Clip first where rows may be that long: ``arc(f=2) | dnc(f=2)``.

Condition: n >= 2f + 1, n > floor(c f), and c f >= 1 unless f = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.aggregators.krum import lowest
from flwr_robust.core.fields import Integer, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators, next_draw

__all__ = ["DnC", "draw_coordinates"]


def draw_coordinates(generator: torch.Generator, d: int, b: int) -> Tensor:
    """Draw b of d coordinates without repetition, ascending; the memory used is a multiple of b."""
    if 4 * b >= d:
        return torch.randperm(d, generator=generator)[:b].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < b:
        more = torch.randint(d, (b - len(drawn),), generator=generator)
        drawn = torch.unique(torch.cat([drawn, more]))
    return drawn


@aggregators.register("dnc")
@dataclass(frozen=True)
class DnC(Rule):
    """The mean of the rows that never stand out along the top singular direction.

    Attributes
    ----------
    f : int
        Declared number of faulty rows.
    c : float
        Rows left out per iteration, as a multiple of f; > 0.
    iterations : int
        How many times coordinates are drawn.
    sub_dimension : int
        b, the coordinates drawn each time.
    seed : int, optional
        Seed of the draws. When not given, it is the seed of the round; without one the operating system's entropy.
    """

    f: Annotated[int, Integer(minimum=0)]
    c: Annotated[float, Number(above=0)] = 1.0
    iterations: Annotated[int, Integer(minimum=1)] = 5
    sub_dimension: Annotated[int, Integer(minimum=1)] = 10_000
    seed: Annotated[int | None, Integer(minimum=0)] = None

    @property
    def _dropped(self) -> int:
        return math.floor(self.c * self.f + 1e-9)

    def needs(self, asked: int) -> tuple[int, str]:
        """Require n >= 2f + 1 and n > floor(c f)."""
        smallest = 2 * self.f + 1
        return (self._dropped + 1, "n > c f") if self._dropped >= smallest else (smallest, "n >= 2f + 1")

    def check(self, n: int, *, asked: int | None = None) -> str | None:
        """Say why n rows do not fit, or that c f comes to no row."""
        if self.f > 0 and self._dropped == 0:
            return (
                f"dnc needs c f >= 1 to leave out a row; got n={n}, f={self.f}, c={self.c}: raise c to {1 / self.f:g}"
            )
        return super().check(n, asked=asked)

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return the key of the number of draws."""
        return ("draws",)

    @property
    def isometric(self) -> bool:
        """Return False: the rule draws coordinates."""
        return False

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Score, intersect, average."""
        draws: list[Tensor | None] = [None]
        if self.sub_dimension < rows.d:
            generator, state = next_draw(rows, state, self.seed, "dnc")
            draws = [draw_coordinates(generator, rows.d, self.sub_dimension) for _ in range(self.iterations)]
        times = torch.zeros(rows.n, dtype=torch.int64)
        for gram in _centred_grams(rows, draws):
            times[_least_outstanding(gram, rows.n - self._dropped)] += 1
        kept = (times == times.max()).nonzero().flatten()
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[kept] = 1 / len(kept)
        fallback = int(times.max()) < len(draws)
        return Aggregate(rows.mix(weights), weights, stats={"kept": kept.tolist(), "fallback": fallback}), state


def _centred_grams(rows: Rows, draws: list[Tensor | None]) -> list[Tensor]:
    """Return, for each draw of coordinates, a multiple of the Gram matrix (n, n) of the rows minus their mean."""
    grams = [torch.zeros(rows.n, rows.n, dtype=torch.float64) for _ in draws]
    for start, block in rows.blocks():
        for gram, drawn in zip(grams, draws, strict=True):
            piece = block
            if drawn is not None:
                first, last = torch.searchsorted(drawn, torch.tensor([start, start + block.shape[1]])).tolist()
                piece = block[:, (drawn[first:last] - start).to(block.device)]
            # n times the difference to the mean: no division, so small integers stay exact and ties remain.
            points = rows.n * piece - piece.sum(0)
            gram += (points @ points.T).cpu()
    return grams


def _least_outstanding(gram: Tensor, m: int) -> Tensor:
    """Return the m rows of least score, ties to the lowest index."""
    lengths = torch.linalg.eigh(gram).eigenvectors[:, -1].abs()
    # Sorting u sorts lambda u^2. In logarithms, so that agreeing to so many digits means the same for small entries.
    digits = torch.log(lengths.clamp(min=1e-12)).mul(1e9).round()
    return lowest(digits if bool(gram.any()) else torch.zeros_like(digits), m)


_MULTIPLES = "the mean lies on faulty rows, so that honest ones stand out"
_SCALES = "the longest row hides shorter ones from the one direction that is looked at"

CASES = (
    Case("dnc(f=3)", lacks={"multiples": _MULTIPLES, "scales": _SCALES}),
    Case("dnc(f=2, c=1.5, iterations=1)", lacks={"multiples": _MULTIPLES}),
    Case("dnc(f=3, sub_dimension=16)", lacks={"multiples": _MULTIPLES, "scales": _SCALES}),
    Case("dnc(f=1)", n=3),
)
