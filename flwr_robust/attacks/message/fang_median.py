"""Fang's attack on the coordinate-wise median: the same rows as against the trimmed mean.

Fang, Cao, Jia, Gong, "Local model poisoning attacks to Byzantine-robust federated learning" (USENIX Security 2020); the
formula is that of `fang_trimmed_mean`.

Knows: omniscient; with ``known`` own or partial.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr_robust.attacks.message.base import message_attacks
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
