"""The ClientApp: reads the run config and acts as an honest or a poisoned client."""

from __future__ import annotations

from functools import lru_cache

import torch
from flwr.app import Context
from flwr.client import NumPyClient

from flwr_robust.app.numpy_clients import HonestClient, Poisoner
from flwr_robust.errors import ConfigurationError
from flwr_robust.flower import serve
from flwr_robust.runs.config import RunConfig

__all__ = ["app", "client_fn"]


@lru_cache(maxsize=4)
def _config(items: tuple[tuple[str, bool | float | int | str], ...]) -> RunConfig:
    return RunConfig.from_mapping(dict(items), warn=False)  # the server logs it


def client_fn(context: Context) -> NumPyClient:
    """Build the client for this node's partition: honest, or one that may poison its data.

    Clients do not perform attacks on messages and faults: the server's grid applies these to honest replies.
    """
    config = _config(tuple(context.run_config.items()))
    client = int(context.node_config["partition-id"])
    if client >= config.clients:
        raise ConfigurationError(
            f"partition-id must be below clients={config.clients}; got {client}: set clients and "
            f"num-supernodes to the same"
        )
    if torch.get_num_threads() != config.threads:
        torch.set_num_threads(config.threads)
    kind = Poisoner if config.data_attack and config.attacks(client) else HonestClient
    return kind(config, client, context.state)


app = serve(client_fn, hand_over_state=True)
