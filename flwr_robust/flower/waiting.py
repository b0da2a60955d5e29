"""Waiting: wait until enough nodes are connected, say what is missing, and end where no more can come.

In a simulation the set of nodes is fixed. There the server waits only as long as nodes still appear, which is the start
of Flower's simulation. In a deployment nodes may come at any time, so the server waits as long as the operator says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from flwr.serverapp import Grid

from flwr_robust.errors import ConfigurationError
from flwr_robust.flower._compat import simulated, wrapped

__all__ = ["wait_for_nodes"]

log = logging.getLogger("flwr")

_STARTING = 20.0  # seconds without a new node after which Flower's simulation has started all of them
_POLL = 1.0
_LONGEST = 60.0  # seconds between two lines of the log


def wait_for_nodes(
    grid: Grid,
    needed: int,
    sentence: str,
    wait: float | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Wait until enough nodes are connected, and return all of them.

    Parameters
    ----------
    grid : Grid
        The grid with the nodes.
    needed : int
        How many nodes to wait for.
    sentence : str
        Who needs how many, such as "krum(f=3) needs 9 nodes"; the log and the error repeat it. The log does so at a
        growing interval, from one second to one minute.
    wait : float, optional
        Seconds to wait at most. When not given: without limit in a deployment; in a simulation until no node has
        appeared for 20 seconds; and not at all in an `InProcessGrid`, whose nodes are there from the beginning.
    clock, sleep : callable
        The time in seconds, and how to let it pass.

    Raises
    ------
    ConfigurationError
        If the time is over, or no more nodes can come.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from flwr_robust.flower import InProcessGrid
    >>> wait_for_nodes(InProcessGrid(ClientApp(), 3), 2, "median(f=0) needs 2 nodes")
    [2, 3, 4]
    """
    started = newest = line = clock()
    pause, most = 1.0, -1
    fixed = any(getattr(type(each), "simulates", False) for each in wrapped(grid))
    patience = (0.0 if fixed else _STARTING) if wait is None and simulated(grid) else None
    while len(nodes := list(grid.get_node_ids())) < needed:
        now = clock()
        if len(nodes) > most:
            most, newest = len(nodes), now
        missing = f"{sentence}; {len(nodes)} are connected"
        if wait is not None and now - started >= wait:
            raise ConfigurationError(
                f"strategy: {missing} after wait={wait:g} seconds: start more nodes, set a longer wait, or lower what "
                f"the strategy needs"
            )
        if patience is not None and now - newest >= patience:
            raise ConfigurationError(
                f"strategy: {missing}, and a simulation gets no more: start more (num-supernodes), or lower what the "
                f"strategy needs"
            )
        if now >= line:
            log.info("%s. Waiting for more.", missing)
            line, pause = now + pause, min(2 * pause, _LONGEST)
        sleep(_POLL)
    return nodes
