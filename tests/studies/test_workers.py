"""Calls in other processes: what they give, and that closing ends them."""

import os
import time

import psutil
import pytest

from flwr_robust.errors import ConfigurationError
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


def root(x: float) -> float:
    if x < 0:
        raise ConfigurationError("x must be >= 0")
    return x**0.5


def pause(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()
