"""One short strategy per rule: the rule's hyperparameters first, then those of RobustStrategy and of FedAvg."""

from __future__ import annotations

from typing_extensions import Unpack

from flwr_robust import aggregators as rules
from flwr_robust.flower.strategy import Options, RobustStrategy

__all__ = [
    "FABA",
    "CenteredClipping",
    "GeometricMedian",
    "Krum",
    "LFighter",
    "Mean",
    "Median",
    "MultiKrum",
    "TrimmedMean",
]


class Mean(RobustStrategy):
    """The plain mean; see `flwr_robust.aggregators.mean`."""

    def __init__(self, *, weighted: bool = False, clamp: float = 2.0, **options: Unpack[Options]) -> None:
        super().__init__(rules.Mean(weighted=weighted, clamp=clamp), **options)


class Median(RobustStrategy):
    """Coordinate-wise median; see `flwr_robust.aggregators.median`."""

    def __init__(self, *, f: int | None = None, **options: Unpack[Options]) -> None:
        super().__init__(rules.Median(f=f), **options)


class TrimmedMean(RobustStrategy):
    """Coordinate-wise trimmed mean; see `flwr_robust.aggregators.trimmed_mean`."""

    def __init__(self, *, f: int | None = None, fraction: float | None = None, **options: Unpack[Options]) -> None:
        super().__init__(rules.TrimmedMean(f=f, fraction=fraction), **options)


class Krum(RobustStrategy):
    """Krum; see `flwr_robust.aggregators.krum`."""

    def __init__(self, *, f: int, variant: str = "paper", **options: Unpack[Options]) -> None:
        super().__init__(rules.Krum(f=f, variant=variant), **options)


class MultiKrum(RobustStrategy):
    """Multi-Krum; see `flwr_robust.aggregators.multi_krum`."""

    def __init__(self, *, f: int, m: int | None = None, variant: str = "paper", **options: Unpack[Options]) -> None:
        super().__init__(rules.MultiKrum(f=f, m=m, variant=variant), **options)


class GeometricMedian(RobustStrategy):
    """Geometric median (RFA); see `flwr_robust.aggregators.geometric_median`."""

    def __init__(
        self,
        *,
        f: int | None = None,
        tolerance: float = 1e-6,
        nu: float = 1e-6,
        iterations: int | None = None,
        maximum: int = 1000,
        weighted: bool = False,
        clamp: float = 2.0,
        **options: Unpack[Options],
    ) -> None:
        rule = rules.GeometricMedian(
            f=f,
            tolerance=tolerance,
            nu=nu,
            iterations=iterations,
            maximum=maximum,
            weighted=weighted,
            clamp=clamp,
        )
        super().__init__(rule, **options)


class FABA(RobustStrategy):
    """FABA; see `flwr_robust.aggregators.faba`."""

    def __init__(self, *, f: int, **options: Unpack[Options]) -> None:
        super().__init__(rules.FABA(f=f), **options)


class CenteredClipping(RobustStrategy):
    """Centered clipping, its centre kept from round to round; see `flwr_robust.aggregators.centered_clipping`."""

    def __init__(self, *, tau: float | str, steps: int = 1, f: int | None = None, **options: Unpack[Options]) -> None:
        super().__init__(rules.CenteredClipping(tau=tau, steps=steps, f=f), **options)


class LFighter(RobustStrategy):
    """LFighter; see `flwr_robust.aggregators.lfighter`."""

    def __init__(self, *, head: str | None = None, **options: Unpack[Options]) -> None:
        super().__init__(rules.LFighter(head=head), **options)
