"""What is on record of one client: its rounds, its weight, the bound of what it moved, and where to go back to."""

from __future__ import annotations

import numpy as np
import pytest

from flwr_robust.audit import read_log, rollback
from flwr_robust.audit.history import find_client
from flwr_robust.audit.incident import incident
from flwr_robust.audit.run import log_file
from tests.audit_runs import LIAR, NODES, SILENT, make


def ask(folder, node):
    records = read_log(log_file(folder))
    return incident(folder, records, find_client(records, node))


def test_a_client_with_a_part_in_the_model(tmp_path):
    found = ask(make(tmp_path), NODES[1])
    assert (found.rounds, found.weight) == ((1, 2, 3), 0.75)
    assert found.bound == pytest.approx(3 * 0.25 * (2.0 + 3.0))
    assert [number for number, _ in found.models] == [1, 2, 3]
    assert (found.rollback, found.checkpoint) == (0, None)
    assert len(found.visits) == 6


def test_rounds_before_the_suspicion_do_not_count(tmp_path):
    records = read_log(log_file(make(tmp_path)))
    found = incident(tmp_path, records, NODES[1], since=3)
    assert (found.rounds, found.weight, found.rollback, found.checkpoint) == ((3,), 0.25, 2, 2)
    assert incident(tmp_path, records, NODES[1], since=4).rounds == ()


def test_a_client_that_was_refused_or_silent_has_no_part(tmp_path):
    make(tmp_path)
    for node in (LIAR, SILENT):
        found = ask(tmp_path, node)
        assert (found.rounds, found.weight, found.bound, found.models, found.rollback) == ((), 0, 0, (), None)
    assert ask(tmp_path, LIAR).summary.refused == 3


def test_rounds_that_were_undone_do_not_count(tmp_path):
    make(tmp_path)
    rollback(tmp_path, 1)
    found = ask(tmp_path, NODES[0])
    assert (found.rounds, found.weight, len(found.models)) == ((1,), 0.25, 1)
    assert sum(each.undone for each in found.visits) == 4


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_is_never_below_the_norm(seed):
    """By the triangle inequality, a naive float64 oracle."""
    draws = np.random.default_rng(seed)
    rows = draws.standard_normal((4, 6)) * 10.0 ** draws.integers(-3, 4, (4, 1))
    value = draws.standard_normal(6)
    bound = np.linalg.norm(rows - value, axis=1) + np.linalg.norm(value)
    assert (bound >= np.linalg.norm(rows, axis=1) * (1 - 1e-12)).all()
