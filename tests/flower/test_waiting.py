"""Waiting for nodes: who needs how many is said at a growing interval, and it ends where no more can come."""

from __future__ import annotations

import logging

import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from flwr_robust.errors import ConfigurationError
from flwr_robust.flower import Guarded, InProcessGrid, Krum
from flwr_robust.flower.waiting import wait_for_nodes
from tests.flower_helpers import Deployed, drive
from tests.guard_helpers import ONE, SILENT, misbehaving

SENTENCE = "krum(f=3) needs 9 nodes"


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def connecting(kind, *times):
    """A grid to which a node connects at each of these times."""
    clock = Time()

    class Connecting(kind):
        def get_node_ids(self):
            return [node for node, at in enumerate(times) if clock.now >= 100 + at]

    Connecting.__abstractmethods__ = frozenset()
    return object.__new__(Connecting), clock


def wait(grid, clock, needed=9, **options):
    return wait_for_nodes(grid, needed, SENTENCE, clock=clock, sleep=clock.sleep, **options)


def test_a_deployment_waits_for_as_long_as_it_takes_and_says_for_what(caplog):
    caplog.set_level(logging.INFO, logger="flwr")
    grid, clock = connecting(Grid, *range(8), 1000)
    assert wait(grid, clock) == [*range(9)]
    assert clock.now == 1100
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"{SENTENCE}; 1 are connected. Waiting for more."
    assert lines[-1] == f"{SENTENCE}; 8 are connected. Waiting for more."
    assert 15 < len(lines) < 30  # at a growing interval


def test_a_stated_time_ends_the_wait():
    grid, clock = connecting(Grid, 0, 1, 2)
    with pytest.raises(ConfigurationError, match=r"krum\(f=3\) needs 9 nodes; 3 are connected after wait=30 seconds: "):
        wait(grid, clock, wait=30)
    assert clock.now == 130


def test_a_simulation_ends_once_no_more_nodes_appear():
    flowers = type("InMemoryGrid", (Grid,), {"__module__": "flwr.somewhere"})
    grid, clock = connecting(flowers, *range(0, 50, 10), 200)
    with pytest.raises(ConfigurationError, match=r"needs 9 nodes; 5 are connected, and a simulation gets no more: "):
        wait(grid, clock)
    assert clock.now == 160  # 20 seconds after the last one
    grid, clock = connecting(flowers, *range(0, 90, 10))
    assert len(wait(grid, clock)) == 9


def test_in_process_nobody_waits_in_vain():
    app = misbehaving({})
    with pytest.raises(ConfigurationError, match=r"krum\(f=3\) needs 9 nodes; 5 are connected, and a simulation gets"):
        drive(Krum(f=3, **SILENT), app, ONE, 5)
    with pytest.raises(ConfigurationError, match=r"minimum is 11 nodes \(krum\(f=3\) needs 9\); 10 are connected"):
        drive(Krum(f=3, min_available_nodes=11, **SILENT), app, ONE, 10)
    with pytest.raises(ConfigurationError, match=r"needs 9 nodes; 5 are connected after wait=0 seconds"):
        drive(Krum(f=3, wait=0, **SILENT), app, ONE, 5, grid=Deployed(app, 5))
    with pytest.raises(ConfigurationError, match=r"FedAvg needs 6 nodes; 5 are connected, and a simulation"):
        drive(Guarded(FedAvg(min_available_nodes=6, **SILENT)), app, ONE, 5)
    with pytest.raises(ConfigurationError, match=r"FedAvg needs 6 nodes; 5 are connected after wait=0 seconds"):
        drive(Guarded(FedAvg(min_train_nodes=6, **SILENT), wait=0), app, ONE, 5, grid=Deployed(app, 5))
    with pytest.raises(ConfigurationError, match="wait must be a finite number and >= 0; got wait=-1"):
        Krum(f=3, wait=-1)
    assert wait_for_nodes(InProcessGrid(ClientApp(), 3), 3, SENTENCE) == [2, 3, 4]
