"""One strategy per rule: its parameters are the rule's hyperparameters, then those of RobustStrategy and of FedAvg."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, ClassVar

from flwr_robust import aggregators as rules
from flwr_robust.core.rule import Rule
from flwr_robust.flower.strategy import Options, RobustStrategy

__all__ = [
    "CAF",
    "CGE",
    "FABA",
    "FLAME",
    "SMEA",
    "Bulyan",
    "CenteredClipping",
    "ClipMean",
    "ClippedClustering",
    "Clustering",
    "DnC",
    "FLTrust",
    "FoolsGold",
    "GeneralisedKrum",
    "GeometricMedian",
    "Krum",
    "LFighter",
    "Meamed",
    "Mean",
    "Median",
    "MinimumDiameter",
    "MixTailor",
    "Monna",
    "MultiKrum",
    "NormBound",
    "Phocas",
    "SignGuard",
    "SignMajority",
    "TrimmedMean",
]


class _Named(RobustStrategy):
    """A strategy for one rule; a subclass names it."""

    _rule: ClassVar[type[Rule]]

    def __init_subclass__(cls, *, rule: type[Rule], **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._rule = rule
        kind, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
        own = [
            inspect.Parameter(f.name, kind, default=empty if f.default is dataclasses.MISSING else f.default)
            for f in dataclasses.fields(rule)
        ]
        shared = [inspect.Parameter(name, kind, default=None) for name in _shared(rule)]
        cls.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]

    def __init__(self, **options: Any) -> None:
        fields = {f.name for f in dataclasses.fields(self._rule)} & set(options)
        rule = self._rule(**{name: options.pop(name) for name in fields})
        super().__init__(rule, **options)


def _shared(rule: type[Rule]) -> list[str]:
    """Return the names of the options that are not the rule's own; a rule's own field wins (dnc's seed, say)."""
    return [name for name in Options.__annotations__ if name not in {f.name for f in dataclasses.fields(rule)}]


class Mean(_Named, rule=rules.Mean):
    """The plain mean; see `flwr_robust.aggregators.mean`."""


class Median(_Named, rule=rules.Median):
    """Coordinate-wise median; see `flwr_robust.aggregators.median`."""


class TrimmedMean(_Named, rule=rules.TrimmedMean):
    """Coordinate-wise trimmed mean; see `flwr_robust.aggregators.trimmed_mean`."""


class Meamed(_Named, rule=rules.Meamed):
    """Mean around the median; see `flwr_robust.aggregators.meamed`."""


class Phocas(_Named, rule=rules.Phocas):
    """Mean around the trimmed mean; see `flwr_robust.aggregators.phocas`."""


class Krum(_Named, rule=rules.Krum):
    """Krum; see `flwr_robust.aggregators.krum`."""


class MultiKrum(_Named, rule=rules.MultiKrum):
    """Multi-Krum; see `flwr_robust.aggregators.multi_krum`."""


class GeneralisedKrum(_Named, rule=rules.GeneralisedKrum):
    """Krum with l_p distances; see `flwr_robust.aggregators.generalised_krum`."""


class Bulyan(_Named, rule=rules.Bulyan):
    """Bulyan over any selection rule; see `flwr_robust.aggregators.bulyan`."""


class GeometricMedian(_Named, rule=rules.GeometricMedian):
    """Geometric median (RFA); see `flwr_robust.aggregators.geometric_median`."""


class MinimumDiameter(_Named, rule=rules.MinimumDiameter):
    """Minimum-diameter averaging (MDA); see `flwr_robust.aggregators.minimum_diameter`."""


class MixTailor(_Named, rule=rules.MixTailor):
    """A rule drawn from a pool, anew in every round; see `flwr_robust.aggregators.mixtailor`."""


class Monna(_Named, rule=rules.Monna):
    """Mean of the rows nearest to the server's own; give ``trusted_fn``; see `flwr_robust.aggregators.monna`."""


class FABA(_Named, rule=rules.FABA):
    """FABA; see `flwr_robust.aggregators.faba`."""


class CenteredClipping(_Named, rule=rules.CenteredClipping):
    """Centered clipping, its centre kept from round to round; see `flwr_robust.aggregators.centered_clipping`."""


class ClipMean(_Named, rule=rules.ClipMean):
    """Mean of rows clipped to the median norm; see `flwr_robust.aggregators.clip_mean`."""


class NormBound(_Named, rule=rules.NormBound):
    """Mean of rows clipped to a fixed norm; see `flwr_robust.aggregators.norm_bound`."""


class DnC(_Named, rule=rules.DnC):
    """Divide and conquer; see `flwr_robust.aggregators.dnc`."""


class Clustering(_Named, rule=rules.Clustering):
    """The larger of two clusters; see `flwr_robust.aggregators.clustering`."""


class ClippedClustering(_Named, rule=rules.ClippedClustering):
    """Clustering of clipped rows; see `flwr_robust.aggregators.clipped_clustering`."""


class SignGuard(_Named, rule=rules.SignGuard):
    """SignGuard; see `flwr_robust.aggregators.signguard`."""


class LFighter(_Named, rule=rules.LFighter):
    """LFighter; see `flwr_robust.aggregators.lfighter`."""


class SMEA(_Named, rule=rules.SMEA):
    """Smallest maximum eigenvalue averaging; see `flwr_robust.aggregators.smea`."""


class CAF(_Named, rule=rules.CAF):
    """Covariance-bound agnostic filter; see `flwr_robust.aggregators.caf`."""


class CGE(_Named, rule=rules.CGE):
    """Comparative gradient elimination; see `flwr_robust.aggregators.cge`."""


class SignMajority(_Named, rule=rules.SignMajority):
    """signSGD with majority vote; see `flwr_robust.aggregators.sign_majority`."""


class FLTrust(_Named, rule=rules.FLTrust):
    """FLTrust; give ``trusted_fn``; see `flwr_robust.aggregators.fltrust`."""


class FoolsGold(_Named, rule=rules.FoolsGold):
    """FoolsGold; see `flwr_robust.aggregators.foolsgold`."""


class FLAME(_Named, rule=rules.FLAME):
    """FLAME; see `flwr_robust.aggregators.flame`."""
