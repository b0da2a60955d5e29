"""Flower strategies with robust rules, and what a federated run needs around them. The only part that imports flwr."""

from flwr_robust.flower.admission import Admitted, Reason, Refusal
from flwr_robust.flower.grids import InProcessGrid, run_in_process
from flwr_robust.flower.numpy_client import discover, serve
from flwr_robust.flower.strategies import (
    FABA,
    CenteredClipping,
    GeometricMedian,
    Krum,
    LFighter,
    Mean,
    Median,
    MultiKrum,
    TrimmedMean,
)
from flwr_robust.flower.strategy import RobustStrategy, RoundRecord

__all__ = [
    "FABA",
    "Admitted",
    "CenteredClipping",
    "GeometricMedian",
    "InProcessGrid",
    "Krum",
    "LFighter",
    "Mean",
    "Median",
    "MultiKrum",
    "Reason",
    "Refusal",
    "RobustStrategy",
    "RoundRecord",
    "TrimmedMean",
    "discover",
    "run_in_process",
    "serve",
]
