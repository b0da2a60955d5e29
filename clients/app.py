"""The ClientApp that ``flwr run .`` starts; the clients are in `flwr_robust.app`."""

from flwr_robust.app.client import app

__all__ = ["app"]
