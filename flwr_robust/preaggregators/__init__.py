"""Pre-aggregators, one per file."""

from flwr_robust.preaggregators.arc import ARC
from flwr_robust.preaggregators.bucketing import Bucketing
from flwr_robust.preaggregators.clip import Clip
from flwr_robust.preaggregators.nnm import NNM
from flwr_robust.preaggregators.resampling import Resampling

__all__ = [
    "ARC",
    "NNM",
    "Bucketing",
    "Clip",
    "Resampling",
]
