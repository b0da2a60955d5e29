"""Flower strategies with robust rules, and the guard and records around them. Only this room imports flwr."""

from flwr_robust.flower import versions as _versions  # noqa: F401 -- it warns of a flwr that is not tested
from flwr_robust.flower.admission import Admitted, Reason, Refusal
from flwr_robust.flower.adversarial import AdversarialGrid, AttackRecord, parse_attack
from flwr_robust.flower.audit import Audit
from flwr_robust.flower.desgd import DeSGD
from flwr_robust.flower.grids import InProcessGrid, run_in_process
from flwr_robust.flower.guard import Guard
from flwr_robust.flower.guarded import Guarded
from flwr_robust.flower.metrics import robust_metrics, trimmed_metrics
from flwr_robust.flower.numpy_client import discover, serve
from flwr_robust.flower.observer import Observer
from flwr_robust.flower.quarantine import Identity, Nodes
from flwr_robust.flower.round_records import Aggregation, Opening, Progress, Round, RoundRecord
from flwr_robust.flower.strategies import (
    CAF,
    CGE,
    FABA,
    FLAME,
    SMEA,
    Bulyan,
    CenteredClipping,
    ClipMean,
    ClippedClustering,
    Clustering,
    DnC,
    FLTrust,
    FoolsGold,
    GeneralisedKrum,
    GeometricMedian,
    Krum,
    LFighter,
    Meamed,
    Mean,
    Median,
    MinimumDiameter,
    MixTailor,
    Monna,
    MultiKrum,
    NormBound,
    Phocas,
    ReweightedGeometricMedian,
    SignGuard,
    SignMajority,
    TrimmedMean,
)
from flwr_robust.flower.strategy import RobustStrategy

__all__ = [
    "CAF",
    "CGE",
    "FABA",
    "FLAME",
    "SMEA",
    "Admitted",
    "AdversarialGrid",
    "Aggregation",
    "AttackRecord",
    "Audit",
    "Bulyan",
    "CenteredClipping",
    "ClipMean",
    "ClippedClustering",
    "Clustering",
    "DeSGD",
    "DnC",
    "FLTrust",
    "FoolsGold",
    "GeneralisedKrum",
    "GeometricMedian",
    "Guard",
    "Guarded",
    "Identity",
    "InProcessGrid",
    "Krum",
    "LFighter",
    "Meamed",
    "Mean",
    "Median",
    "MinimumDiameter",
    "MixTailor",
    "Monna",
    "MultiKrum",
    "Nodes",
    "NormBound",
    "Observer",
    "Opening",
    "Phocas",
    "Progress",
    "Reason",
    "Refusal",
    "ReweightedGeometricMedian",
    "RobustStrategy",
    "Round",
    "RoundRecord",
    "SignGuard",
    "SignMajority",
    "TrimmedMean",
    "discover",
    "parse_attack",
    "robust_metrics",
    "run_in_process",
    "serve",
    "trimmed_metrics",
]
