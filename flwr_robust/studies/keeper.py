"""Clean up a private Flower home: stop its SuperLink and the processes that it started, and remove its files.

`FlowerRuns` starts this file as a separate process. It waits for the end of its standard input, and then cleans up. The
input ends when the process that started it closes it or dies in any way. It imports few modules, so it starts fast.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil

__all__ = ["main", "remove_home"]

_GRACE = 5.0  # seconds between asking a process to end and killing it
_LOOKS = 3  # a process may have started another just before its end


def remove_home(home: Path, spared: Collection[int] = ()) -> None:
    """Stop every process with a Flower home in its command line, and its children; then remove the home's files.

    Parameters
    ----------
    home : Path
        The home; it need not exist.
    spared : collection of int
        Processes that are not stopped, in addition to this one.
    """
    spared = {os.getpid(), *spared}
    for _ in range(_LOOKS):
        mine = [process for process in psutil.process_iter() if process.pid not in spared and _names(process, home)]
        if not mine:
            break
        _stop([p for parent in mine for p in [parent, *_children(parent)] if p.pid not in spared])
    shutil.rmtree(home, ignore_errors=True)


def _stop(processes: Sequence[psutil.Process]) -> None:
    family = {process.pid: process for process in processes}
    for process in family.values():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.terminate()
    _, alive = psutil.wait_procs(list(family.values()), timeout=_GRACE)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.kill()


def _names(process: psutil.Process, home: Path) -> bool:
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False
    return any(str(home) in word for word in words)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    """Wait for the end of standard input, then remove the home named by the command line."""
    sys.stdin.buffer.read()
    remove_home(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
