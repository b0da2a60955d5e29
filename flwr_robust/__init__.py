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

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flwr_robust.errors import (
    ConfigurationError,
    DataUnavailableError,
    FlwrRobustError,
    InfeasibleError,
    KnowledgeError,
    UnknownNameError,
    UntrainedError,
)

if TYPE_CHECKING:
    from flwr_robust.certificates.certificate import Certificate, certify
    from flwr_robust.core.call import aggregate
    from flwr_robust.core.pipeline import Pipeline, parse
    from flwr_robust.core.rows import Layer, Rows
    from flwr_robust.core.rule import Aggregate, Outcome, PreAggregator, Rule, State
    from flwr_robust.core.sharded import Shard, aggregate_sharded
    from flwr_robust.diagnostics.planning import Plan, plan

__version__ = "0.1.0"

TESTED_FLWR = ("1.32", "1.42")
"""The lowest and the highest minor release of flwr that are tested, by ``.ci/flwr-versions``."""

__all__ = [
    "TESTED_FLWR",
    "Aggregate",
    "Certificate",
    "ConfigurationError",
    "DataUnavailableError",
    "FlwrRobustError",
    "InfeasibleError",
    "KnowledgeError",
    "Layer",
    "Outcome",
    "Pipeline",
    "Plan",
    "PreAggregator",
    "Rows",
    "Rule",
    "Shard",
    "State",
    "UnknownNameError",
    "UntrainedError",
    "__version__",
    "aggregate",
    "aggregate_sharded",
    "certify",
    "parse",
    "plan",
]

# What needs torch is imported when it is first asked for: `flwr-robust --help` does without it.
_MODULES = {
    "flwr_robust.certificates.certificate": ("Certificate", "certify"),
    "flwr_robust.core.call": ("aggregate",),
    "flwr_robust.core.pipeline": ("Pipeline", "parse"),
    "flwr_robust.core.rows": ("Layer", "Rows"),
    "flwr_robust.core.rule": ("Aggregate", "Outcome", "PreAggregator", "Rule", "State"),
    "flwr_robust.core.sharded": ("Shard", "aggregate_sharded"),
    "flwr_robust.diagnostics.planning": ("Plan", "plan"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = value = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
