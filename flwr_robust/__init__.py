"""flwr-robust: federated learning with Flower that holds up when some clients lie.

The one-call form:

>>> import torch, flwr_robust
>>> x = torch.tensor([[1.0, 2.0], [1.1, 2.1], [0.9, 1.9], [1e8, -1e8]])
>>> flwr_robust.aggregate(x, "trimmed_mean(f=1)").value
tensor([1.0500, 1.9500])

Arrays of numpy, and lists of rows or of clients' layers, come back as what they are.

The Flower strategies are in `flwr_robust.flower`, the only part that needs Flower.
"""

from __future__ import annotations

from flwr_robust.core.call import aggregate
from flwr_robust.core.pipeline import Pipeline, parse
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import Aggregate, Outcome, PreAggregator, Rule, State
from flwr_robust.core.sharded import Shard, aggregate_sharded
from flwr_robust.errors import (
    ConfigurationError,
    DataUnavailableError,
    FlwrRobustError,
    InfeasibleError,
    KnowledgeError,
    UnknownNameError,
)

__version__ = "0.1.0"

__all__ = [
    "Aggregate",
    "ConfigurationError",
    "DataUnavailableError",
    "FlwrRobustError",
    "InfeasibleError",
    "KnowledgeError",
    "Layer",
    "Outcome",
    "Pipeline",
    "PreAggregator",
    "Rows",
    "Rule",
    "Shard",
    "State",
    "UnknownNameError",
    "__version__",
    "aggregate",
    "aggregate_sharded",
    "parse",
]
