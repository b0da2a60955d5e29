"""Worker processes that never outlive the process that started them.

Every worker holds one end of a pipe, the lifeline. When the other end closes, the worker ends at once. The parent
closes its end when it is stopped. The operating system closes it when the parent dies in any way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, TypeVar

from flwr_robust.errors import FlwrRobustError

__all__ = ["side_by_side"]

K = TypeVar("K")
R = TypeVar("R")

_GIVE_UP = 3  # calls whose processes died, before any call ended


def side_by_side(
    function: Callable[..., R],
    calls: Iterable[tuple[K, Sequence[Any]]],
    workers: int,
) -> Generator[tuple[K, R | BaseException]]:
    """Call a function in several processes.

    The workers end at once if the generator is closed or raises, or if this process ends. If a worker dies, the calls
    that were going on are repeated one by one. So only the call that ends its process fails; the others have results.

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
    waiting = deque(calls)
    total, died = len(waiting), 0
    while waiting:
        suspects = yield from _in_pool(function, waiting, workers)
        for place, call in enumerate(suspects):  # one of them ended its process; alone, it shows
            if (yield from _in_pool(function, deque([call]), 1)):
                died += 1
                yield call[0], _died()
            if died >= _GIVE_UP and died == total - len(waiting) - len(suspects) + place + 1:
                # Nothing has ever ended: processes cannot even start here.
                yield from ((key, _died()) for key, _ in [*suspects[place + 1 :], *waiting])
                return


def _died() -> FlwrRobustError:
    return FlwrRobustError(
        "the process of this run ended without an error, as it does when memory runs out; take fewer --workers"
    )


def _in_pool(
    function: Callable[..., R], waiting: deque[tuple[K, Sequence[Any]]], workers: int
) -> Generator[tuple[K, R | BaseException], None, list[tuple[K, Sequence[Any]]]]:
    """Take calls from the left until none is left or a process dies; return those that were going on then."""
    context = get_context("spawn")
    end, lifeline = context.Pipe(duplex=False)
    most = min(workers, len(waiting))
    pool = ProcessPoolExecutor(most, mp_context=context, initializer=_begin, initargs=(end,))
    going: dict[Future[R], tuple[K, Sequence[Any]]] = {}
    broken = False
    try:
        while (waiting and not broken) or going:
            while waiting and len(going) < most and not broken:
                try:
                    going[pool.submit(function, *waiting[0][1])] = waiting[0]
                    waiting.popleft()
                except BrokenProcessPool:
                    broken = True
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    broken = True
                    continue
                key, _ = going.pop(future)
                yield key, future.result() if error is None else error
            if broken:
                break
        if broken:
            lifeline.close()  # the pool waits for its processes, which leave signals to their parent
        return list(going.values())
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
