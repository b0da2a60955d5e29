"""InProcessGrid: run the same ServerApp and ClientApp without Ray, in one process and one thread.

A Grid carries the messages between a strategy and its nodes, which are the clients. This one serialises nothing, so a
round takes little longer than the clients' computations. Otherwise it behaves like Flower's simulation. Each node keeps
its own Context, and sender and receiver share no content. A client that raises an exception answers with an error
reply. Replies arrive in the order of the messages.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import ClassVar

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from flwr_robust.errors import ConfigurationError, check_integer
from flwr_robust.flower._compat import Run, become_server, create_run, set_message_id, with_content
from flwr_robust.flower.admission import short
from flwr_robust.flower.wire import copy_content

__all__ = ["InProcessGrid", "run_in_process"]

log = logging.getLogger("flwr")

_SERVER_NODE = 1  # the node id of Flower's SuperLink
_FIRST_NODE = 2
_RUN = 1
_RAISED = 2  # Flower's error code for a ClientApp that raised

Config = Mapping[str, bool | float | int | str]


class InProcessGrid(Grid):
    """A Grid that calls the ClientApp directly.

    Parameters
    ----------
    client_app : ClientApp
        The app that every node runs.
    num_supernodes : int
        Number of nodes, >= 1. Node i holds partition i of num_supernodes.
    run_config : mapping, optional
        The run config of every node.

    Attributes
    ----------
    contexts : dict of int to Context
        The Context of every node, by node id; its state lasts as long as the grid.
    simulates : bool
        Of the class: True, because the grid itself assigns the partitions, as in Flower's simulation.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> list(InProcessGrid(ClientApp(), 3).get_node_ids())
    [2, 3, 4]
    """

    simulates: ClassVar[bool] = True

    def __init__(self, client_app: ClientApp, num_supernodes: int, run_config: Config | None = None) -> None:
        check_integer("InProcessGrid", "num_supernodes", num_supernodes, 1)
        self._client_app = client_app
        self._run = create_run(_RUN)
        self._ids = itertools.count(1)
        self._waiting: dict[str, Message] = {}
        self.contexts = {
            _FIRST_NODE + i: Context(
                run_id=_RUN,
                node_id=_FIRST_NODE + i,
                node_config={"partition-id": i, "num-partitions": num_supernodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for i in range(num_supernodes)
        }
        become_server(_RUN, _SERVER_NODE)

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids in the order of partitions."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; they are delivered when their replies are pulled."""
        identifiers = []
        for message in messages:
            identifier = str(next(self._ids))
            set_message_id(message, identifier)
            self._waiting[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the ClientApp on the messages with these ids, and return its replies."""
        return [
            self._deliver(self._waiting.pop(identifier)) for identifier in message_ids if identifier in self._waiting
        ]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and pull their replies; the timeout has no effect."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> Message:
        context = self.contexts.get(message.metadata.dst_node_id)
        if context is None:
            error = Error(code=5, reason=f"node {message.metadata.dst_node_id} does not exist")
            return self._finish(Message(error, reply_to=message))
        received = with_content(message, copy_content(message.content))
        before = copy_content(context.state)
        try:
            reply = self._client_app(received, context)
            if not isinstance(reply, Message):
                raise TypeError(f"a ClientApp must return a Message; got {type(reply).__name__}")
        except Exception as error:  # as in Flower: a reply says so, and the state stays unchanged
            context.state = before
            log.error("ClientApp of node %s raised %s", context.node_id, short(f"{type(error).__name__}: {error}"))
            reply = Message(Error(_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
        if reply.has_content():
            reply.content = copy_content(reply.content)
        return self._finish(reply)

    def _finish(self, reply: Message) -> Message:
        set_message_id(reply, str(next(self._ids)))
        return reply


def run_in_process(
    server_app: ServerApp, client_app: ClientApp, num_supernodes: int, run_config: Config | None = None
) -> Context:
    """Run a ServerApp and ClientApps to the end in this process.

    Parameters
    ----------
    server_app, client_app
        The two apps, as for ``flwr run``.
    num_supernodes : int
        Number of nodes.
    run_config : mapping, optional
        The run config of both apps. Unlike ``flwr run``, this function does not read a pyproject.toml.

    Returns
    -------
    Context
        The server's context.
    """
    if any(not isinstance(value, bool | float | int | str) for value in (run_config or {}).values()):
        raise ConfigurationError("run_config: values must be text, numbers or booleans, as in flwr run")
    grid = InProcessGrid(client_app, num_supernodes, run_config)
    context = Context(
        run_id=_RUN,
        node_id=_SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config or {}),
    )
    server_app(grid, context)
    return context
