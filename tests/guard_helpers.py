"""What the tests of guarded strategies share: clients that misbehave, and strategies to look at."""

from __future__ import annotations

import numpy as np
from flwr.serverapp.strategy import FedAvg

from flwr_robust.flower import (
    Guarded,
    Mean,
)
from tests.flower_helpers import FIRST, client_app, content

SILENT = {"fraction_evaluate": 0.0}
ONE = {"w": np.zeros(2, np.float32)}


def nodes(*partitions):
    return tuple(FIRST + partition for partition in partitions)


def misbehaving(liars, until=10**9, broken=lambda model: content({})):
    """Clients that add one; the liars send nothing of use, in rounds before ``until``."""

    def train(partition, model, config, context):
        if partition in liars and config["server-round"] < until:
            return broken(model)
        return content({k: v + v.dtype.type(1) for k, v in model.items()}, 10, partition_id=partition, loss=1.0)

    def evaluate(partition, model, config, context):
        if partition in liars and config["server-round"] < until:
            return content(None, -1)
        return content(None, 10, loss=float(partition))

    return client_app(train, evaluate)


def asked(strategy):
    return [seen.asked for seen in strategy.history]


def failing_from(at):
    """Clients that move the model by one; from a round on nobody does."""

    def train(partition, model, config, context):
        if config["server-round"] >= at:
            raise RuntimeError("gone")
        return content({"w": model["w"] + 1}, loss=0.5)

    return client_app(train, lambda i, model, config, context: content(None, loss=float(model["w"][0])))


def both(**options):
    return [Mean(**options), Guarded(FedAvg(), **options)]
