"""The command line: ``flwr-robust`` is one command; each file holds a group of its verbs."""

from flwr_robust.cli.main import app

__all__ = ["app"]
