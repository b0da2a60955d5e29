"""Fang's attack on Krum: go against the honest direction as far as Krum still chooses a crafted row.

    crafted = -lambda s,   s_j = 1 where mean_i x_ij > 0, else -1
    lambda: halved from its upper bound until Krum, with these rows among the honest ones, chooses a crafted one
    bound = min_i (sum of ||x_i - x_j|| over the m - f - 2 honest j nearest to i) / ((m - 2f - 1) sqrt(d))
            + max_i ||x_i|| / sqrt(d)

x_i: honest messages relative to the model that was sent; m clients, f attackers, d coordinates. Fang, Cao, Jia, Gong,
"Local model poisoning attacks to Byzantine-robust federated learning" (USENIX Security 2020).

Convention: all attackers send the same row (the paper's lie within a small distance of one another). Krum's f is the
number of attackers, or lower where that does not fit the rows. With ``known`` "own" or a number, Krum is tried on the
rows that are seen. This is the paper's partial knowledge, where the attackers' own clients stand for honest ones.
Halving ends at the first lambda below ``least``. In the bound, the number of neighbours and m - 2f - 1 are at least
one.

Knows: omniscient; with ``known`` own or partial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from flwr_robust.attacks.message.base import InformedAttack, MessageCase, View, message_attacks
from flwr_robust.attacks.message.line import Line, LineAttack, averaging
from flwr_robust.core.fields import Number
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rule import State

__all__ = ["FangKrum"]


@message_attacks.register("fang_krum")
@dataclass(frozen=True)
class FangKrum(InformedAttack, LineAttack):
    """Go against the honest signs as far as Krum chooses it.

    Attributes
    ----------
    size : float or "auto"
        lambda.
    least : float
        Where halving ends; > 0.
    known : "all", "clients", "own" or int
        As for `InformedAttack`.
    """

    size: Annotated[float | str, Number(above=0, words=("auto",))] = "auto"
    least: Annotated[float, Number(above=0)] = 1e-5
    parameter: ClassVar[str] = "size"

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from zero, against the signs of the mean."""
        seen = self.seen(view)
        mean = seen.mix_exactly(averaging(seen.n, seen)[0])
        base = seen.with_row(torch.where(mean > 0, 1.0, -1.0).to(mean))
        step = torch.zeros(len(view.attackers), base.n, dtype=torch.float64)
        step[:, -1] = -1
        return Line(base, torch.zeros_like(step), step, seen.n)

    def strength(self, view: View, line: Line, rng: torch.Generator) -> float:
        """Return lambda."""
        if self.size != "auto":
            return float(self.size)
        seen, attackers = line.seen, len(view.attackers)
        copy = line.base.embedded()
        honest = copy.subset(torch.arange(copy.n) < seen)
        rows = seen + attackers
        nearest = honest.squared_distances.sqrt().sort(dim=1).values[:, 1 : 1 + max(rows - attackers - 2, 1)]
        reach = float(nearest.sum(1).min()) / max(rows - 2 * attackers - 1, 1)
        size = (reach + float(honest.squared_norms.max().sqrt())) / math.sqrt(view.d)
        krum = parse(f"krum(f={max(min(attackers, (rows - 3) // 2), 0)})")
        places = torch.eye(seen, copy.n, dtype=torch.float64)
        while size >= self.least and krum.check(rows) is None:
            mixed = copy.mixed(torch.cat([places, line.start + size * line.step]))
            if float(krum(mixed)[0].weights[seen:].sum()) > 0:
                break
            size /= 2
        return size


CASES = (
    MessageCase("fang_krum(size=0.5)", [(-0.5, -0.5)], source="the formula"),
    MessageCase(
        "fang_krum(size=0.5, known='own')", [(-0.5, 0.5)], source="the own mean is (1, -2) / 2", own=((1, 0), (0, -2))
    ),
)
