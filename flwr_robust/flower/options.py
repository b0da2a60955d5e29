"""The options that all strategies share: names, types, and the check of FedAvg's options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, cast

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from flwr_robust.errors import ConfigurationError, check_integer, check_number
from flwr_robust.flower.audit import Audit
from flwr_robust.flower.metrics import MetricsFunction
from flwr_robust.flower.observer import Observer

__all__ = [
    "FedAvgOptions",
    "GuardOptions",
    "Options",
    "TrustedFunction",
    "check_fedavg_options",
    "plain",
]

V = TypeVar("V")

TrustedFunction = Callable[[int, ArrayRecord], Sequence[NDArray[Any]]]
"""Takes a round and the model that was sent; returns the answer that an honest client would give."""


class FedAvgOptions(TypedDict, total=False):
    """The options of Flower's FedAvg, with the same meaning."""

    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    train_metrics_aggr_fn: MetricsFunction | None
    evaluate_metrics_aggr_fn: MetricsFunction | None


class GuardOptions(FedAvgOptions, total=False):
    """The options of the guard and of FedAvg."""

    train_metrics: tuple[str, ...] | None
    evaluate_metrics: tuple[str, ...] | None
    records: tuple[str, str] | None
    statistics: tuple[str, ...]
    max_examples: float
    min_replies: int | None
    spares: int | None
    quarantine_after: int | None
    by_partition: bool | None
    rest_after: int | None
    probation: int
    wait: float | None
    deadline: float | None
    quorum: float | None
    on_infeasible: Literal["keep", "stop"]
    observers: Sequence[Observer]
    audit: Audit | Path | str | None


class Options(GuardOptions, total=False):
    """The options of every robust strategy."""

    message: Literal["parameters", "delta", "gradient", "momentum"]
    server_learning_rate: float
    server_momentum: float
    buffers: Literal["median", "keep"]
    trusted_fn: TrustedFunction | None
    compromised: int | None
    seed: int | str | None


# A round of training needs at least one node, so only the minimum of evaluation may be 0.
_MINIMA = {"min_train_nodes": 1, "min_evaluate_nodes": 0, "min_available_nodes": 1}


def check_fedavg_options(owner: str, options: FedAvgOptions) -> None:
    """Check that FedAvg's options are inside their bounds.

    Parameters
    ----------
    owner : str
        The owner of the options; the error message begins with it.
    options : FedAvgOptions
        The given options.

    Raises
    ------
    ConfigurationError
        If an option is outside its bounds.
    """
    given: dict[str, object] = {**options}
    for name, value in given.items():
        if name.startswith("fraction_"):
            check_number(owner, name, value, minimum=0, maximum=1)
        elif name in _MINIMA:
            check_integer(owner, name, value, _MINIMA[name])
        elif name.endswith("_key") and not (isinstance(value, str) and value):
            raise ConfigurationError(f"{owner}: {name} must be a name, text that is not empty; got {name}={value!r}")
        elif name.endswith("_aggr_fn") and value is not None and not callable(value):
            raise ConfigurationError(
                f"{owner}: {name} must be a function (list of RecordDict, str) -> MetricRecord, or None for the "
                f"medians; got {name}={value!r:.100}"
            )


def plain(value: V) -> V:
    """Convert numpy's numbers, which records cannot hold, to Python's; also inside a dict of options."""
    if isinstance(value, dict):
        return cast(V, {name: plain(each) for name, each in value.items()})
    return cast(V, value.item()) if isinstance(value, np.generic) else value
