"""Worker processes that never outlive the process that started them.

Every worker holds one end of a pipe, the lifeline. When the other end closes, the worker ends at once. The parent
closes it when it is stopped, and the operating system closes it when the parent dies, however that happens.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

__all__ = ["side_by_side"]

K = TypeVar("K")
R = TypeVar("R")


def side_by_side(
    function: Callable[..., R],
    calls: Iterable[tuple[K, Sequence[Any]]],
    workers: int,
) -> Generator[tuple[K, R | BaseException]]:
    """Call a function in several processes.

    Closing the generator, or an exception in it, ends the workers at once; so does the end of this process.

    Parameters
    ----------
    function : callable
        A function of a module.
    calls : iterable of (key, arguments)
        What it is called with.
    workers : int
        Number of processes.

    Yields
    ------
    (key, result or what was raised)
        In the order in which they end.
    """
    waiting = list(calls)
    if not waiting:
        return
    context = get_context("spawn")
    end, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context, initializer=_begin, initargs=(end,))
    try:
        futures = {pool.submit(function, *arguments): key for key, arguments in waiting}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], future.result() if error is None else error
    except BaseException:
        lifeline.close()  # or the pool would wait for the calls that are going on
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        lifeline.close()
        end.close()


def _begin(end: Connection) -> None:
    """Tie this process to its parent's end of the lifeline."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, args=(end,), daemon=True).start()


def _end_with_parent(end: Connection) -> None:
    """Wait until the parent closes the lifeline, or is gone; then end, whatever else is going on."""
    with contextlib.suppress(EOFError, OSError):
        end.recv_bytes()
    os._exit(1)
