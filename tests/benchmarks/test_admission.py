"""The benchmark of admission and audit runs, on a model that is small."""

import io

import pytest
import torch
from rich.console import Console

from benchmarks import admission


def test_contestants_take_turns_and_are_compared_turn_by_turn():
    threads = torch.get_num_threads()
    document = admission.measure(turns=2, shapes=[(3, 4), (5,)])
    assert torch.get_num_threads() == threads
    assert document["what"].endswith("20 clients, 17 parameters, one thread")
    for name in ("X.mean(0)", "admission", "audit", "both", "checkpoint"):
        seconds = document["seconds"][name]
        assert len(seconds) == 2
        assert min(seconds) > 0
    first, second = (document["seconds"]["both"][turn] / document["seconds"]["X.mean(0)"][turn] for turn in (0, 1))
    ratio = document["over_mean"]["both"]
    assert (ratio["min"], ratio["max"]) == (min(first, second), max(first, second))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(admission.table(document))
    assert "is missed" in " ".join(console.export_text().split())  # a mean of 340 numbers costs next to nothing


def test_what_is_timed_is_a_whole_round_on_record(tmp_path):
    from flwr_robust.audit import Aggregated, ReplyAdmitted, read_log, verify
    from flwr_robust.audit.run import log_file

    exchange = admission._Exchange([(3, 4), (5,)], str(tmp_path))
    for _ in range(2):
        exchange.renew()
        exchange.both()
    exchange.checkpoint()
    exchange.close()
    assert verify(log_file(tmp_path)).intact
    events = [record.event for record in read_log(log_file(tmp_path))]
    rounds = [event for event in events if isinstance(event, Aggregated)]
    assert len(rounds) == 2
    assert sum(isinstance(event, ReplyAdmitted) for event in events) == 40
    assert all(len(event.distances) == len(event.angles) == 20 for event in rounds)
    assert rounds[0].length == pytest.approx(exchange._aggregate.value.double().norm().item())
