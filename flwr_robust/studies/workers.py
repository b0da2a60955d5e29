"""Worker processes that never outlive the process that started them.

Every worker holds one end of a pipe, the lifeline. When the other end closes, the worker ends at once. The parent
closes its end when it is stopped. The operating system closes it when the parent dies in any way.
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
from types import FrameType
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

    The workers end at once if the generator is closed or raises, or if this process ends.

    Parameters
    ----------
    function : callable
        A function of a module.
    calls : iterable of (key, arguments)
        The arguments of the calls, each with a key.
    workers : int
        Number of processes.

    Yields
    ------
    (key, result or what was raised)
        The results in the order in which the calls end.
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
        lifeline.close()  # otherwise the pool would wait for running calls
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        lifeline.close()
        end.close()


def _begin(end: Connection) -> None:
    """Connect this process to its parent's end of the lifeline."""
    # Ctrl-C and schedulers signal every process of a job; the parent decides. Subprocesses would inherit SIG_IGN.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _left_to_parent)
    threading.Thread(target=_end_with_parent, args=(end,), daemon=True).start()


def _left_to_parent(number: int, frame: FrameType | None) -> None:
    """Do nothing at a signal."""


def _end_with_parent(end: Connection) -> None:
    """Wait until the parent closes the lifeline or dies; then end this process at once."""
    with contextlib.suppress(EOFError, OSError):
        end.recv_bytes()
    os._exit(1)
