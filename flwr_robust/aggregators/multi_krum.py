"""Multi-Krum: the mean of the m rows with the lowest Krum scores.

    value = mean of the m rows of lowest score,   score_i as in `krum`,   m = n - f

Blanchard, El Mhamdi, Guerraoui, Stainer (NeurIPS 2017). Scores are computed once. m differs between libraries: n - f
here, n - f - 2 in ByzantineMomentum, the user's choice in Flower. Give ``m`` to reproduce theirs.

    weighted: value = sum over the m rows of b_i x_i / sum over the m rows of b_i

Weights are Flower's: its MultiKrum scores clients equally, and averages those chosen by their numbers of examples. The
numbers b_i are bounded here: `flwr_robust.core.weighing`. ``clamp=1e9`` lifts the bound. Since claims do not enter
scores, they cannot make a row near others. No publication weighs scores. `krum` has no weights at all, for it averages
nothing. In a weighted score a client that claims much would be a crowd of its own.

Proven here for the paper's scores, equal weights and m = n - f, with h and q as in `krum`:

    kappa <= (sqrt(f / h) + sqrt(2 f (h - 2) / (q (h - 1))) + (f / h) sqrt((f + 1) / q))^2

Let K be the rows chosen, s and m_H as in `krum`. Then h (value - m_H) is a difference of two sums: of x_k - m_H over
the faulty rows in K, and of x_j - m_H over the honest rows that are not in K. Both have at most f terms. The second sum
is at most sqrt(f h) s long. As in `krum`, a faulty row's distance from m_H is at most sqrt(score / q) + sqrt((f + 1) /
q) s. The h lowest scores sum to no more than the h honest ones, 2 h^2 s^2 (h - 2) / (h - 1). So the square roots of f
of them sum to at most sqrt(f) times the root of that. Bareilles, Bouaziz, Fageot, El Mhamdi (arXiv 2602.03899) bound
the rule in another way.

Condition: n >= 2f + 3, and 1 <= m <= n; with ``strict=False`` n >= f + 3, as for `krum`; with ``most``, n >= f / most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from flwr_robust.aggregators.krum import VARIANTS, krum_needs, krum_scores, lowest
from flwr_robust.core.fields import Choice, Flag, Integer, Number
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, State, WeightedRule, aggregators

__all__ = ["MultiKrum"]


@aggregators.register("multi_krum")
@dataclass(frozen=True)
class MultiKrum(WeightedRule):
    """Mean of the m rows closest to their nearest others.

    Attributes
    ----------
    f : int
        Declared number of faulty rows.
    m : int, optional
        How many rows are averaged; n - f when not given.
    variant : str
        Which library's scores, as for `Krum`.
    strict : bool
        As for `Krum`.
    weighted : bool
        Average the rows chosen by their clamped numbers of examples instead of equally.
    clamp : float
        As for `Mean`.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest rows (one if f is 0) hold; in (0, 1).
    """

    f: Annotated[int, Integer(minimum=0)]
    m: Annotated[int | None, Integer(minimum=1)] = None
    variant: Annotated[str, Choice(VARIANTS)] = "paper"
    strict: Annotated[bool, Flag()] = True
    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0
    most: Annotated[float | None, Number(above=0, below=1)] = None
    pairwise: ClassVar[bool] = True
    halved: ClassVar[bool] = False

    def needs_unweighted(self, asked: int) -> tuple[int, str]:
        """Require n >= 2f + 3, or n >= f + 3 if not strict, and n >= m."""
        smallest, condition = krum_needs(self.f, self.strict)
        if self.m is not None and self.m > smallest:
            return self.m, f"n >= m = {self.m}"
        return smallest, condition

    def lever(self) -> str:
        """Return the field that sets the smallest n."""
        return "m" if self.m is not None and self.m == self.needs(0)[0] else super().lever()

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return the bound of kappa for the declared f, the paper's scores, equal weights and m = n - f."""
        h, q = n - f, n - 2 * f - 1
        if f != self.f or self.variant != "paper" or self.weighted or self.m not in (None, h) or q < 1 or h < 3:
            return ()
        drawn_in = math.sqrt(2 * f * (h - 2) / (q * (h - 1))) + f / h * math.sqrt((f + 1) / q)
        return (Bound("kappa", (math.sqrt(f / h) + drawn_in) ** 2, "proven in flwr_robust.aggregators.multi_krum"),)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Average the rows of the m lowest scores."""
        scores = krum_scores(rows.squared_distances, self.f, self.variant)
        chosen = lowest(scores, rows.n - self.f if self.m is None else min(self.m, rows.n))
        weights = torch.zeros(rows.n, dtype=torch.float64)
        counts = self.weighing(rows.asked).of(rows)[chosen]
        weights[chosen] = counts / counts.sum()
        return Aggregate(rows.mix(weights), weights, stats={"scores": scores.tolist()}), state


CASES = (
    Case("multi_krum(f=3)"),
    Case("multi_krum(f=2, m=4)"),
    Case("multi_krum(f=3, weighted=True)"),
    Case("multi_krum(f=2, m=5, weighted=True, clamp=100.0, most=0.4)", n=8),
    Case("multi_krum(f=3, strict=False)", n=7, lacks={"resilience": "two neighbours, and two colluders besides"}),
    Case("multi_krum(f=0)", n=3, lacks={"resilience": "f=0 leaves nothing out"}),
)
