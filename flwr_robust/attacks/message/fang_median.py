"""Fang's attack on the coordinate-wise median: the same rows as against the trimmed mean.

Fang, Cao, Jia, Gong, "Local model poisoning attacks to Byzantine-robust federated learning" (USENIX Security 2020); the
formula is that of `fang_trimmed_mean`.

Knows: omniscient; with ``known`` own or partial.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr_robust.attacks.message.base import MessageCase, message_attacks
from flwr_robust.attacks.message.fang_trimmed_mean import FangTrimmedMean

__all__ = ["FangMedian"]


@message_attacks.register("fang_median")
@dataclass(frozen=True)
class FangMedian(FangTrimmedMean):
    """Draw just beyond the honest values.

    Attributes
    ----------
    b, known
        As for `FangTrimmedMean`.
    """


CASES = (
    MessageCase("fang_median(b=1.000001)", [(1, -2)], source="just beyond the least", slack=1e-5),
    MessageCase(
        "fang_median(b=1.000001)",
        [(-1, 2)],
        source="just beyond the largest",
        honest=((-1, 2), (-3, -2), (-5, -6)),
        slack=1e-5,
    ),
    MessageCase("fang_median(known=1)", [(1, 2)], source="one row has no spread"),
)
