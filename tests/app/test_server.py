"""What the ServerApp says of its configuration."""

import logging

import pytest
from flwr.app import Context, RecordDict

from flwr_robust.app.client import app as client_app
from flwr_robust.app.server import app
from flwr_robust.audit import RoundConfigured, RunEnded, read_log
from flwr_robust.audit.run import log_file
from flwr_robust.flower import InProcessGrid, run_in_process


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


class Elsewhere(InProcessGrid):
    """Nodes that no simulation runs."""

    simulates = False


@pytest.mark.parametrize(("grid", "secret"), [(InProcessGrid, False), (Elsewhere, True)])
def test_what_defends_is_secret_in_a_deployment_and_comes_from_the_seed_in_a_simulation(grid, secret, tmp_path):
    keys = {"rounds": 3, "clients": 8, "fraction-train": 0.6, "batch-size": 4, "seed": 3, "message": "gradient"}
    found = []
    for name in ("one", "two"):
        config = {**keys, "audit": str(tmp_path / name), "evaluate-every": 3}
        app(grid(client_app, 8, config), Context(1, 1, {}, RecordDict(), config))
        events = [record.event for record in read_log(log_file(tmp_path / name))]
        assert bool(events[0].seed_commitment) == secret
        assert events[0].config["seed"] == ("secret" if secret else 3)
        assert events[0].config.get("learning-seed") == (3 if secret else None)
        assert bool(next(event for event in events if isinstance(event, RunEnded)).seed_revealed) == secret
        first = next(event for event in events if isinstance(event, RoundConfigured))
        found.append((first.model, [event.asked for event in events if isinstance(event, RoundConfigured)]))
    assert found[0][0] == found[1][0]  # the initial model comes from the seed
    assert (found[0][1] != found[1][1]) == secret
