"""How different the clients are, how far poison pulls, and what theory makes of the two.

Peng, Li, Vlaski, Ling, "Mean Aggregator is More Robust than Robust Aggregators under Label Poisoning Attacks on
Distributed Heterogeneous Data", JMLR 26 (2025), bound the error that label poisoning leaves in a model by a few
numbers that can be measured: see `measures` for the numbers, `theory` for the bounds and what follows from them.
"""

from flwr_robust.diagnostics.measures import (
    Moments,
    disturbance,
    feature_bound,
    heterogeneity,
    rho,
    variance,
)
from flwr_robust.diagnostics.theory import (
    Advice,
    advise,
    centered_clipping_bound,
    faba_bound,
    known_bounds,
    least_rho,
    trimmed_mean_bound,
)

__all__ = [
    "Advice",
    "Moments",
    "advise",
    "centered_clipping_bound",
    "disturbance",
    "faba_bound",
    "feature_bound",
    "heterogeneity",
    "known_bounds",
    "least_rho",
    "rho",
    "trimmed_mean_bound",
    "variance",
]
