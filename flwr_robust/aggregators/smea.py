"""SMEA: the mean of the n - f rows that spread least along any direction.

    S     = argmin over subsets of n - f rows of lambda_max((1 / |S|) sum_(i in S) (x_i - m_S)(x_i - m_S)^T)
    value = m_S, the mean of S

lambda_max: largest eigenvalue. Allouah, Guerraoui, Gupta, Pinot, Rizk, "Robust distributed learning: tight error bounds
and breakdown point under data heterogeneity" (NeurIPS 2023): smallest maximum eigenvalue averaging, with the best error
that is possible under heterogeneity.

Proven here, for f declared and real: kappa <= 4 f / (n - 2f). The mean of h - k out of h points differs from that of
all, along any direction, by at most sqrt(k / (h - k)) standard deviations along it. S and the honest set H share at
least n - 2f of their n - f rows. So along m_S - m_H each mean is near that of the common rows: at most sqrt(f / (n -
2f)) standard deviations of its own set away. Both deviations are at most the root of lambda_max of H, for that of S is
no larger. It is at most the honest rows' mean squared distance from m_H. The paper has 4 f (n - f) / (n - 2f)^2.

Convention: every subset is examined, and the eigenvalue is exact. The covariance of m rows has the non-zero eigenvalues
of their centred m x m Gram matrix (of their inner products), which their distances give. Other libraries take one step
of the power method from a random start. Eigenvalues that agree to 9 digits are tied; a tie goes to the subset whose
indices come first in dictionary order. A pair at distance D alone makes lambda_max >= D^2 / (2 |S|), so most subsets
need no eigenvalue.

Condition: n >= 2f + 1, and at most ``maximum`` subsets, binomial(n, f). `caf` has no such limit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from flwr_robust.core.fields import Integer
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["SMEA", "largest_eigenvalues"]

_TIED = 1e-9  # eigenvalues closer than this share of themselves are equal but for rounding
_CHUNK = 1 << 17  # entries of the matrices that are looked at together


def largest_eigenvalues(squared_distances: Tensor) -> Tensor:
    """Return the largest covariance eigenvalue (b,) of b sets of m points, given their distances (b, m, m)."""
    m = squared_distances.shape[-1]
    of_rows = squared_distances.mean(-1, keepdim=True)
    centred = (of_rows + of_rows.mT - of_rows.mean(-2, keepdim=True) - squared_distances) / 2
    eigenvalues: Tensor = torch.linalg.eigvalsh(centred)
    return eigenvalues[..., -1].clamp(min=0) / m


@aggregators.register("smea")
@dataclass(frozen=True)
class SMEA(Rule):
    """Mean of the n - f rows of least largest covariance eigenvalue.

    Attributes
    ----------
    f : int
        Declared number of faulty rows.
    maximum : int
        Refuse to look at more subsets than this.
    """

    f: Annotated[int, Integer(minimum=0)]
    maximum: Annotated[int, Integer(minimum=1)] = 100_000
    pairwise: ClassVar[bool] = True

    def check(self, n: int, *, asked: int | None = None) -> str | None:
        """Require n >= 2f + 1 and no more subsets than allowed."""
        if sentence := super().check(n, asked=asked):
            return sentence
        subsets = math.comb(n, self.f)
        if subsets <= self.maximum:
            return None
        return (
            f"smea looks at no more than maximum={self.maximum} subsets; got n={n}, f={self.f}, which make {subsets}: "
            f"lower f, raise maximum or take caf(f={self.f})"
        )

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return the bound of kappa for the declared f."""
        if f != self.f or 2 * f >= n:
            return ()
        return (Bound("kappa", 4 * f / (n - 2 * f), "proven in flwr_robust.aggregators.smea"),)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Search the subsets, then average."""
        distances, size = rows.squared_distances, rows.n - self.f
        least, kept = math.inf, torch.arange(size)
        subsets = itertools.combinations(range(rows.n), size)
        while chunk := list(itertools.islice(subsets, max(1, _CHUNK // size**2))):
            members = torch.tensor(chunk)
            among = distances[members[:, :, None], members[:, None, :]]
            hopeful = among.amax((1, 2)) <= 2 * size * least
            if not bool(hopeful.any()):
                continue
            eigenvalues = largest_eigenvalues(among[hopeful])
            smallest = float(eigenvalues.min())
            if smallest < least * (1 - _TIED):
                first = int((eigenvalues <= smallest * (1 + _TIED)).nonzero()[0])
                least, kept = smallest, members[hopeful][first]
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[kept] = 1 / size
        return Aggregate(rows.mix(weights), weights, stats={"kept": kept.tolist(), "eigenvalue": least}), state


CASES = (
    Case("smea(f=3)"),
    Case("smea(f=0)", n=4, lacks={"resilience": "f=0 leaves nothing out"}),
    Case("smea(f=1, maximum=3)", n=3),
)
