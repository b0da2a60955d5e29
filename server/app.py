"""The ServerApp that ``flwr run .`` starts; it is in `flwr_robust.app`."""

from flwr_robust.app.server import app

__all__ = ["app"]
