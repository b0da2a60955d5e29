"""Coordinate-wise trimmed mean.

    value_j = mean of the n - 2f values of x_1j, ..., x_nj left after dropping the f smallest and the f largest

Convention: exactly f per side. The values left are summed. "Sum of all minus the extremes" is equal in exact
arithmetic, but one row at 1e8 destroys all its digits. With ``fraction`` f = floor(fraction * clients asked), so that
silent clients do not reduce f. A fraction above 0 that comes to nobody does not fit. Flower's FedTrimmedAvg takes the
fraction of the replies. With ``weighted`` the values left are averaged by the weights of `mean(weighted=True)`. The
weights do not decide which values are dropped, and so cannot bring back what lies outside the honest values. ``most``
bounds the share of the f heaviest rows before values are dropped. Of equal values at the edge those of the lowest rows
count as the smaller. Yin, Chen, Kannan, Bartlett (ICML 2018). Under label poisoning rho = 3 delta / (1 - 2 delta)
min{sqrt(D), sqrt(R)}: Peng et al., JMLR 26 (2025).

Worst case: let t values be dropped per side, and f <= t of n rows be faulty, h = n - f. Then kappa
(`flwr_robust.core.guarantees`) is exactly

    kappa = t / (n - f - t),   for t = f: f / (n - 2f)

No rule has a smaller kappa than f / (n - 2f): Allouah et al. (AISTATS 2023). So with t = f the rule is optimal; the
bound published there is 6 f / (n - 2f) (1 + f / (n - 2f)). Proof. Both sides of the inequality are sums over
coordinates, so let d = 1. The value rises with every x_i. So it is largest if the faulty values are largest, and then
it is the mean of the honest values of ranks t, ..., n - t - 1. The honest values of ranks t, ..., h - 1 have no smaller
a mean. These are a set of h - t honest values. A mean of h - t out of h values is at most sqrt(t / (h - t)) standard
deviations from the mean of all. Values below the mean are treated alike. It is reached: t honest values are 0, all
others 1. Chen, Zhang, Huang (arXiv 2510.04432) prove that no rule that declares t does better in order.

Condition: n >= 2f + 1; with a fraction, fraction * n >= 1; with ``most``, n >= f / most.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from flwr_robust.core.fields import Flag, Integer, Number
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, State, WeightedRule, aggregators
from flwr_robust.errors import ConfigurationError

__all__ = ["TrimmedMean", "trim", "trimmed_kappa", "weighted_trim"]


def trimmed_kappa(n: int, f: int, t: int) -> float:
    """Return t / (n - f - t), the kappa of a trimmed mean that drops t per side; infinity where f > t.

    Examples
    --------
    >>> trimmed_kappa(20, 4, 4), trimmed_kappa(20, 5, 4)
    (0.3333333333333333, inf)
    """
    return t / (n - f - t) if f <= t else math.inf


def trim(rows: Rows, f: int) -> Aggregate:
    """Average, per column, the values of ranks f .. n - f - 1."""
    value, shares = rows.window_mean(f, rows.n - f)
    return Aggregate(rows.cast(value), shares)


def weighted_trim(rows: Rows, f: int, shares: Tensor) -> Aggregate:
    """Average, per column, the values of ranks f .. n - f - 1 in proportion to their rows' shares (n,)."""
    parts, credit = [], torch.zeros(rows.n, dtype=torch.float64)
    for _, block in rows.blocks():
        values, order = torch.sort(block, dim=0, stable=True)
        values, order = values[f : rows.n - f], order[f : rows.n - f]
        weights = shares.to(block.device)[order]
        weights = weights / weights.sum(0)
        parts.append((weights * values).sum(0))
        credit += torch.zeros_like(block).scatter_(0, order, weights).sum(1).cpu()
    return Aggregate(rows.cast(torch.cat(parts)), credit / rows.d)


@aggregators.register("trimmed_mean")
@dataclass(frozen=True)
class TrimmedMean(WeightedRule):
    """Coordinate-wise trimmed mean; give ``f`` or ``fraction``.

    Attributes
    ----------
    f : int, optional
        Values dropped at each side of every column, the declared number of faulty rows.
    fraction : float, optional
        Fixes f as floor(fraction * clients asked); in [0, 0.5).
    weighted : bool
        Average the values left by the rows' clamped numbers of examples instead of equally.
    clamp : float
        As for `Mean`.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest rows (one if f is 0) hold; in (0, 1).
    """

    f: Annotated[int | None, Integer(minimum=0)] = None
    fraction: Annotated[float | None, Number(minimum=0, below=0.5)] = None
    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0
    most: Annotated[float | None, Number(above=0, below=1)] = None
    halved: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.f is None) == (self.fraction is None):
            raise ConfigurationError(
                f"trimmed_mean: give either f or fraction; got f={self.f}, fraction={self.fraction}"
            )

    def declared(self, asked: int) -> int:
        """Return f, or floor(fraction * clients asked)."""
        if self.f is not None:
            return self.f
        assert self.fraction is not None
        return math.floor(self.fraction * asked + 1e-9)

    def check(self, n: int, *, asked: int | None = None) -> str | None:
        """Say why n rows do not fit, or that the fraction of so few clients is nobody."""
        if self.fraction and self.declared(n if asked is None else asked) == 0:
            return (
                f"trimmed_mean needs fraction * n >= 1 to drop anybody; got n={n if asked is None else asked}, "
                f"fraction={self.fraction}: ask at least {math.ceil(1 / self.fraction - 1e-9)} clients, or give f"
            )
        return super().check(n, asked=asked)

    def lever(self) -> str:
        """Return the field that sets the smallest n."""
        return super().lever() if self.fraction is None else "fraction"

    def reduced(self, k: int, asked: int) -> TrimmedMean:
        """Return the rule with k fewer per side."""
        return dataclasses.replace(self, f=max(self.declared(asked) - k, 0), fraction=None)

    @property
    def isometric(self) -> bool:
        """Return False: the rule looks at single coordinates."""
        return False

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return the exact kappa for equal weights."""
        if self.weighted:
            return ()
        value = trimmed_kappa(n, f, self.declared(n))
        return (Bound("kappa", value, "closed form, proven in flwr_robust.aggregators.trimmed_mean", exact=True),)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Trim every column."""
        f = self.declared(rows.asked)
        if not self.weighted:
            return trim(rows, f), state
        counts = self.weighing(rows.asked).of(rows)
        return weighted_trim(rows, f, counts / counts.sum()), state


CASES = (
    Case("trimmed_mean(f=3)", lacks={"mix": "a coordinate rule is no combination of whole rows"}),
    Case(
        "trimmed_mean(fraction=0.2)",
        lacks={"mix": "a coordinate rule is no combination of whole rows"},
    ),
    Case(
        "trimmed_mean(f=3, weighted=True)",
        lacks={"mix": "a coordinate rule is no combination of whole rows"},
    ),
    Case(
        "trimmed_mean(fraction=0.25, weighted=True, clamp=1.5, most=0.3)",
        n=9,
        lacks={"mix": "a coordinate rule is no combination of whole rows"},
    ),
)
