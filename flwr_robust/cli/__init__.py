"""The command line."""

from flwr_robust.cli.audit import app

__all__ = ["app"]
