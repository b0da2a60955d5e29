"""``python -m experiments``: the same as ``flwr-robust``."""

from flwr_robust.cli import app

if __name__ == "__main__":
    app(prog_name="python -m experiments")
