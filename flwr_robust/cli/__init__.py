"""The command line: ``flwr-robust``, one command; a file a group of verbs."""

from flwr_robust.cli.main import app

__all__ = ["app"]
