"""Run the project's apps in this process and look at the final model."""

import json
import logging

import numpy as np

from flwr_robust.app.client import app as client_app
from flwr_robust.app.server import app as server_app
from flwr_robust.flower import run_in_process
from flwr_robust.runs.config import RunConfig


def run(folder, **keys):
    """Return (result document, final arrays by name) of one run in process."""
    logger = logging.getLogger("flwr")
    level = logger.level
    output, model = folder / "result.json", folder / "model.npz"
    config = RunConfig.from_mapping({**keys, "output": str(output), "save-model": str(model)})
    logger.setLevel(logging.ERROR)
    try:
        run_in_process(server_app, client_app, config.clients, config.to_mapping())
    finally:
        logger.setLevel(level)  # other tests read the log
    with np.load(model) as file:
        return json.loads(output.read_text()), dict(file)
