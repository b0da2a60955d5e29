"""Deadlines: a round closes at a quorum once its time is over; whoever comes later is silent."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from flwr_robust.errors import ConfigurationError
from flwr_robust.flower import AdversarialGrid, Guarded, Krum, Median, Observer
from flwr_robust.flower.deadlines import DeadlineGrid, check_deadline, closing, quorum_of
from tests.flower_helpers import FIRST, Deployed, client_app, content, drive, sends
from tests.guard_helpers import ONE, SILENT


class Slow(Deployed):
    """Each node's replies arrive so many seconds after the message; time passes only when somebody sleeps."""

    def __init__(self, app, seconds, error=()):
        super().__init__(app, len(seconds))
        self.seconds = dict(zip(self.contexts, seconds, strict=True))
        self.now, self.pushed, self.error, self.closed = 0.0, {}, {FIRST + place for place in error}, []

    def push_messages(self, messages):
        identifiers = list(super().push_messages(messages))
        self.pushed |= dict.fromkeys(identifiers, self.now)
        return identifiers

    def pull_messages(self, message_ids):
        here = [
            identifier
            for identifier in sorted(message_ids, key=int)
            if identifier in self._waiting
            and self.now >= self.pushed[identifier] + self.seconds[self._waiting[identifier].metadata.dst_node_id]
        ]
        sent = {identifier: self._waiting[identifier] for identifier in here}
        replies = list(super().pull_messages(here))
        return [
            Message(Error(2, "gone"), reply_to=sent[reply.metadata.reply_to_message_id])
            if reply.metadata.src_node_id in self.error
            else reply
            for reply in replies
        ]

    def send_and_receive(self, messages, *, timeout=None):
        assert not list(messages), "a round with a deadline pushes and pulls"
        return []

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def times(monkeypatch):
    """Let time pass for the grids of a test without waiting."""

    def use(grid):
        monkeypatch.setattr("flwr_robust.flower.deadlines.time.monotonic", lambda: grid.now)
        monkeypatch.setattr(
            DeadlineGrid.__init__,
            "__kwdefaults__",
            {"clock": lambda: grid.now, "sleep": grid.sleep},
        )
        return grid

    return use


def honest():
    return client_app(lambda i, model, config, context: content({"w": model["w"] + np.float32(1)}, partition_id=i))


def played(grid, deadline, quorum, rounds=1, **options):
    strategy = Median(f=1, deadline=deadline, quorum=quorum, rest_after=9, min_train_nodes=5, **SILENT, **options)
    drive(strategy, None, ONE, 5, rounds=rounds, grid=grid)
    return strategy


@pytest.mark.parametrize(
    ("seconds", "quorum", "ends", "silent"),
    [
        ((1, 1, 1, 1, 1), None, 1, ()),  # all have answered before the deadline
        ((1, 1, 1, 1, 99), None, 10, (4,)),  # all but f = 1
        ((1, 1, 1, 99, 99), 3, 10, (3, 4)),
        ((1, 1, 12, 99, 99), 0.6, 12, (3, 4)),  # the quorum comes after the deadline
        ((1, 1, 1, 15, 99), None, 15, (4,)),
        ((1, 1, 1, 1, 99), 1.0, 99, ()),
    ],
)
def test_a_round_closes_at_its_deadline_with_a_quorum(seconds, quorum, ends, silent, times):
    grid = times(Slow(honest(), seconds))
    (record,) = played(grid, 10, quorum).history
    assert record.silent == tuple(FIRST + place for place in silent)
    assert ends <= grid.now <= ends + 1.1


def test_an_error_is_no_part_of_a_quorum(times):
    grid = times(Slow(honest(), (1, 1, 1, 20, 30), error=(0,)))
    (record,) = played(grid, 10, 3).history
    assert len(record.admitted) == 3
    assert 20 <= grid.now < 22
    assert record.silent == (FIRST + 4,)


def test_what_comes_late_is_not_read_in_the_next_round(times):
    grid = times(Slow(honest(), (1, 1, 1, 1, 11)))
    strategy = played(grid, 10, 4, rounds=3)
    assert [record.silent for record in strategy.history] == [(FIRST + 4,)] * 3
    assert [len(record.refused) for record in strategy.history] == [0, 0, 0]


def test_the_timeout_of_start_ends_a_round_without_a_quorum(times):
    grid = times(Slow(honest(), (1, 1, 1, 99, 99)))
    strategy = Median(f=1, deadline=10, quorum=4, min_replies=2, min_train_nodes=5, **SILENT)
    drive(strategy, None, ONE, 5, grid=grid, timeout=50)
    assert 50 <= grid.now < 51
    assert len(strategy.history[0].admitted) == 3


def test_an_attack_sees_the_round_when_it_closes(times):
    grid = times(Slow(honest(), (1, 1, 99, 1, 1, 1, 1)))
    attacked = AdversarialGrid(AdversarialGrid(grid, "constant(c=9.0)", {5}, by="position"), "zero()", {6})
    strategy = Krum(f=1, deadline=10, rest_after=9, min_train_nodes=7, **SILENT)
    drive(strategy, None, ONE, 7, rounds=2, grid=attacked)
    assert [record.silent for record in strategy.history] == [(FIRST + 2,)] * 2
    assert [record.positions for record in attacked.history] == [(6,)] * 2
    assert attacked._grid._grid is grid  # as before the run


def test_other_strategies_close_their_rounds_too(times):
    every = {"min_train_nodes": 5, "min_available_nodes": 5, **SILENT}
    grid = times(Slow(honest(), (1, 1, 1, 99, 99)))
    strategy = Guarded(FedAvg(**every), deadline=10, rest_after=9)
    drive(strategy, None, ONE, 5, grid=grid)
    assert set(strategy.history[0].silent) == {FIRST + 3, FIRST + 4}
    assert grid.now < 12


def test_queries_end_at_the_deadline_too():
    """A node that trains, but does not hand over its state, does not cost the whole timeout at every checkpoint."""
    told = []

    class Watch(Observer):
        def run_started(self, opening):
            told.append(opening.timeout)

    for deadline in (7, None, 99):
        strategy = Median(f=1, deadline=deadline, observers=[Watch()], min_train_nodes=5, **SILENT)
        drive(strategy, honest(), ONE, 5, timeout=50)
    assert told == [7, 50, 50]


def test_a_loop_of_another_strategy_is_refused():
    grid = Deployed(honest(), 5)
    strategy = Median(f=1, deadline=10, **SILENT)
    with pytest.raises(ConfigurationError, match=r"deadline=10 needs this strategy's own start\(\)"):
        FedAvg.start(strategy, grid=grid, initial_arrays=content(ONE)["arrays"], num_rounds=1)


@pytest.mark.parametrize(
    ("deadline", "quorum", "words"),
    [
        (0, None, "deadline must be a finite number and > 0; got deadline=0"),
        (None, 3, r"quorum=3 has no effect without a deadline; set deadline= \(seconds\)"),
        (5, 0, "quorum must be a finite number and > 0; got quorum=0"),
        (
            5,
            2.5,
            r"quorum must be a share of the nodes asked, in \(0, 1\], or a whole number of replies; got quorum=2.5",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(deadline, quorum, words):
    with pytest.raises(ConfigurationError, match=words):
        check_deadline("strategy", deadline, quorum)
    with pytest.raises(ConfigurationError, match=words):
        Median(deadline=deadline, quorum=quorum)


@pytest.mark.parametrize("quorum", [2, 6, 0.3])
def test_a_quorum_is_from_what_is_needed_to_all_that_are_asked(quorum):
    app = sends([{"w": np.ones(2, np.float32)}] * 5)
    with pytest.raises(ConfigurationError, match="quorum must be from the 3 replies that a round needs to the 5 nodes"):
        drive(Median(f=1, deadline=5, quorum=quorum, **SILENT), app, ONE, 5)


def test_other_messages_go_as_ever_and_the_rest_is_the_inner_grids():
    inner = Deployed(honest(), 2)
    with closing(inner, None, quorum_of) as same:
        assert same is inner
    with closing(inner, 5, quorum_of) as grid:
        assert list(grid.get_node_ids()) == [FIRST, FIRST + 1]
        assert grid.contexts is inner.contexts
        (reply,) = grid.send_and_receive([Message(RecordDict(), FIRST, "query.identity")])
        assert reply.has_error()  # this app answers no queries
