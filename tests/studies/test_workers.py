"""Calls in other processes: what they give, and that closing ends them."""

import os
import signal
import sys
import time

import psutil
import pytest

from flwr_robust.errors import ConfigurationError, FlwrRobustError
from flwr_robust.studies.workers import side_by_side

ENDLESS = 1000.0


def test_results_and_errors_come_as_they_end():
    calls = [("a", (4.0,)), ("b", (-1.0,)), ("c", (9.0,))]
    found = dict(side_by_side(root, calls, workers=2))
    assert (found["a"], found["c"]) == (2.0, 3.0)
    assert isinstance(found["b"], ConfigurationError)
    assert list(side_by_side(root, [], workers=2)) == []


def test_closing_ends_the_calls_that_are_going_on():
    before = set(psutil.Process().children(recursive=True))
    runs = side_by_side(pause, [("soon", (0.0,)), ("never", (ENDLESS,))], workers=2)
    assert next(runs)[0] == "soon"
    started = time.monotonic()
    runs.close()
    assert time.monotonic() - started < ENDLESS / 2
    names = [child.cmdline() for child in set(psutil.Process().children(recursive=True)) - before]
    assert not [words for words in names if "spawn_main" in " ".join(words)]


def test_an_error_of_whoever_reads_ends_them_too():
    runs = side_by_side(pause, [("soon", (0.0,)), ("never", (ENDLESS,))], workers=2)
    assert next(runs)[0] == "soon"
    with pytest.raises(ZeroDivisionError):
        runs.throw(ZeroDivisionError())


def test_a_call_that_ends_its_process_fails_alone():
    calls = [("a", (4.0,)), ("dies", (0.0,)), ("b", (9.0,)), ("c", (16.0,)), ("d", (25.0,))]
    found = dict(side_by_side(die_at_zero, calls, workers=2))
    assert isinstance(found["dies"], FlwrRobustError)
    assert "when memory runs out; take fewer --workers" in str(found["dies"])
    assert {key: found[key] for key in "abcd"} == {"a": 2.0, "b": 3.0, "c": 4.0, "d": 5.0}


def test_processes_that_cannot_even_start_are_given_up():
    calls = [(number, (0.0,)) for number in range(50)]
    found = list(side_by_side(die_at_zero, calls, workers=1))
    assert sorted(key for key, _ in found) == list(range(50))
    assert all(isinstance(error, FlwrRobustError) for _, error in found)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_a_signal_to_a_worker_is_left_to_the_parent():
    assert list(side_by_side(signal_oneself, [("it", ())], workers=1)) == [("it", "alive")]


def signal_oneself() -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    return "alive"


def die_at_zero(x: float) -> float:
    if x == 0:
        os._exit(9)
    return x**0.5


def root(x: float) -> float:
    if x < 0:
        raise ConfigurationError("x must be >= 0")
    return x**0.5


def pause(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()
