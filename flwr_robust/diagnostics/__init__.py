"""Measure how different the clients are and how far poison pulls, and say what theory concludes from both.

The theory bounds the error that label poisoning leaves in a model by a few numbers that can be measured. `measures`
holds the numbers, `theory` the bounds and what follows from them. Source: Peng, Li, Vlaski, Ling, JMLR 26 (2025), "Mean
Aggregator is More Robust than Robust Aggregators under Label Poisoning Attacks on Distributed Heterogeneous Data".
"""

from flwr_robust.diagnostics.measures import (
    Moments,
    disturbance,
    feature_bound,
    heterogeneity,
    rho,
    variance,
)
from flwr_robust.diagnostics.mixture import Mixture, mixture
from flwr_robust.diagnostics.theory import (
    Advice,
    advise,
    centered_clipping_bound,
    faba_bound,
    floors,
    known_bounds,
    least_rho,
    trimmed_mean_bound,
)

__all__ = [
    "Advice",
    "Mixture",
    "Moments",
    "advise",
    "centered_clipping_bound",
    "disturbance",
    "faba_bound",
    "feature_bound",
    "floors",
    "heterogeneity",
    "known_bounds",
    "least_rho",
    "mixture",
    "rho",
    "trimmed_mean_bound",
    "variance",
]
