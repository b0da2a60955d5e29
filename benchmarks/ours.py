"""The worker of `benchmarks.peers` for this project's rules and for Flower's built-in strategies.

With Flower, both sides get reply Messages as users have them. Their ArrayRecords hold the serialised arrays of a model
in ten parts. The timed part is `aggregate_train`, not the creation of Messages. Run it as ``python -m
benchmarks.ours``.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from torch import Tensor

from benchmarks.peers import RADIUS, Call, serve
from flwr_robust import Rows, aggregate
from flwr_robust.flower import InProcessGrid, RobustStrategy

__all__ = ["defence"]

_LAYERS = 10


def defence(rule: str, d: int, f: int) -> str:
    """Return the defence string of a benchmarked rule."""
    without_f = {
        "mean": "mean()",
        "median": "median()",
        "geometric_median": "geometric_median()",
        "centered_clipping": f"centered_clipping(tau={RADIUS * d**0.5})",
        "nnm | krum": f"nnm(f={f}) | krum(f={f})",
    }
    return without_f.get(rule, f"{rule}(f={f})")


def _ours(rule: str, x: Tensor, f: int) -> Call | None:
    if rule == "gram":
        return lambda: _gram(x)
    text = defence(rule, x.shape[1], f)
    return lambda: aggregate(x, text)


def _gram(x: Tensor) -> Tensor:
    return Rows.from_tensor(x).squared_distances


def _built_in(rule: str, n: int, f: int) -> flower.FedAvg | None:
    """Return Flower's strategy for a rule, with the same f and otherwise default options."""
    if rule == "mean":
        return flower.FedAvg()
    if rule == "median":
        return flower.FedMedian()
    if rule == "trimmed_mean":
        return flower.FedTrimmedAvg(beta=(f + 0.5) / n)  # it drops int(beta n) per side, and f / n may round below f
    if rule == "krum":
        return flower.Krum(num_malicious_nodes=f)
    if rule == "multi_krum":
        return flower.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=n - f)
    return flower.Bulyan(num_malicious_nodes=f) if rule == "bulyan" else None


def _record(row: Tensor) -> ArrayRecord:
    parts = np.array_split(row.numpy(), min(_LAYERS, row.numel()))
    return ArrayRecord({f"layer{i}": Array(part) for i, part in enumerate(parts)})


def _round(strategy: flower.FedAvg, x: Tensor) -> Call:
    """Return the aggregation of one round; replies are made anew, because Flower's strategies change them."""
    n, d = x.shape
    model = np.random.default_rng(1).standard_normal(d, dtype=np.float32)
    grid = InProcessGrid(ClientApp(), n)  # only its node ids are used
    asked = list(strategy.configure_train(1, _record(torch.from_numpy(model)), ConfigRecord(), grid))
    replies = [
        Message(
            RecordDict({"arrays": _record(row), "metrics": MetricRecord({"num-examples": 1, "loss": 0.5})}),
            reply_to=message,
        )
        for row, message in zip(x.unbind(0), asked, strict=True)
    ]

    def call() -> Any:
        arrays, metrics = strategy.aggregate_train(1, replies)
        if arrays is None or (isinstance(strategy, RobustStrategy) and strategy.history[-1].sentence):
            raise RuntimeError("nothing was aggregated")
        return arrays, metrics

    return call


def _flower(rule: str, x: Tensor, f: int) -> Call | None:
    strategy = _built_in(rule, x.shape[0], f)
    return None if strategy is None else _round(strategy, x)


def _ours_in_flower(rule: str, x: Tensor, f: int) -> Call | None:
    if rule == "gram":
        return None
    n, d = x.shape
    # The minimum is the number of nodes, because a strategy with too few nodes waits for more.
    return _round(RobustStrategy(defence(rule, d, f), min_train_nodes=n, min_available_nodes=n), x)


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    serve({"ours": _ours, "ours, Flower": _ours_in_flower, "Flower": _flower}, {"gram": _gram})
