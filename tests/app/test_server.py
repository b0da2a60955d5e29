"""What the ServerApp says of its configuration."""

import logging

from flwr_robust.app.client import app as client_app
from flwr_robust.app.server import app
from flwr_robust.flower import run_in_process


def lines(monkeypatch, **keys):
    """Return what a run writes to Flower's log as warnings."""
    said = []
    monkeypatch.setattr(logging.getLogger("flwr"), "warning", lambda text, *values: said.append(text % values))
    run_in_process(app, client_app, 2, {"rounds": 1, "clients": 2, "batch-size": 4, **keys})
    return said


def test_a_key_that_is_not_read_is_said_once_in_the_log(monkeypatch):
    sentence, slack = lines(monkeypatch, message="gradient", alpha=0.5)
    assert "needs a reply from each of the 2 nodes asked" in slack
    assert "alpha=0.5 changes nothing with message='gradient'" in sentence
    assert lines(monkeypatch, message="momentum", alpha=0.5) == [slack]
