"""``python -m flwr_robust.cli``: the same as ``flwr-robust``."""

from flwr_robust.cli.main import app

if __name__ == "__main__":
    app(prog_name="flwr-robust")
