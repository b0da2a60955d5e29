"""All that this package uses of Flower beyond its public modules, each under a name of its own.

Public are ``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp``, ``flwr.serverapp.strategy``, ``flwr.client`` and the
names that ``flwr.common`` lists. What a release may change without notice stands here alone; a test reads the whole
package for the rest. The versions meant below are those that this package allows, 1.32 to 1.42.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy.strategy_utils import sample_nodes

try:  # where Flower keeps its own records has moved between releases
    from flwr.supercore.run import Run
except ImportError:  # pragma: no cover
    from flwr.common.typing import Run  # type: ignore[no-redef,attr-defined]
try:
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:  # pragma: no cover
    TaskIdentity = None  # type: ignore[assignment,misc]

__all__ = [
    "Run",
    "become_server",
    "connected_nodes",
    "create_run",
    "fill",
    "packed",
    "private_environment",
    "set_message_id",
    "twin",
    "unpacked",
    "unwrapped",
    "with_content",
]

T = TypeVar("T", ArrayRecord, MetricRecord, ConfigRecord, RecordDict)


# -- the process, and the run -------------------------------------------------------------------------


def create_run(run_id: int) -> Run:
    """Return Flower's record of a run of which nothing but its id is known.

    The class stands in ``flwr.supercore.run`` in the releases that have that module, else in ``flwr.common.typing``.
    """
    return Run.create_empty(run_id)


def become_server(run_id: int, node_id: int) -> None:
    """Tell Flower that this process is the server of a run; without it no message can be made.

    Releases with ``flwr.supercore.task_identity`` ask for it; earlier ones do not, and there nothing happens.
    """
    if TaskIdentity is not None:
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = run_id
        TaskIdentity.node_id = node_id


def private_environment(home: Path, ports: tuple[int, int]) -> dict[str, str]:
    """Return the environment variables of a ``flwr run`` that shares nothing with other runs on this machine.

    Releases ignore variables that they do not know: ports can be chosen where ``flwr run`` starts a local SuperLink.

    Parameters
    ----------
    home : Path
        Where Flower keeps its files.
    ports : (int, int)
        Of the SuperLink's HTTP API, and of its Control API.
    """
    return {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(ports[0]),
        "FLWR_LOCAL_CONTROL_API_PORT": str(ports[1]),
    }


def connected_nodes(grid: Grid, available: int, size: int) -> list[int]:
    """Wait until a grid has enough nodes, and return all of them, in all versions by what Flower's FedAvg calls.

    Parameters
    ----------
    grid : Grid
        Where the nodes are.
    available : int
        How many nodes to wait for.
    size : int
        How many are to be asked; at least as many are waited for.
    """
    return list(sample_nodes(grid, available, size)[1])


# -- messages -----------------------------------------------------------------------------------------


def set_message_id(message: Message, identifier: str) -> None:
    """Give a message its id, which in all versions only Flower's own grids set."""
    message.metadata.__dict__["_message_id"] = identifier


def with_content(message: Message, content: RecordDict) -> Message:
    """Return a message that differs in its content alone, set past the checks that all versions make of it."""
    received = copy.copy(message)
    received.__dict__["_content"] = content
    return received


def unwrapped(client: Any) -> NumPyClient:
    """Return the NumPyClient inside what ``to_client()`` returns in all versions, or the client itself."""
    inner: NumPyClient = getattr(client, "numpy_client", client)
    return inner


# -- records ------------------------------------------------------------------------------------------


def fill(record: T, items: Mapping[str, Any]) -> T:
    """Put items that are known to be valid into a record, and return it.

    Flower checks every item at a cost of several microseconds, which in process is most of a small round. Where its
    records keep a plain dict, as they do in all versions, the items go straight into it.
    """
    held = record.__dict__.get("_data")
    if type(held) is dict:
        held.update(items)
    else:
        for key, value in items.items():
            record[key] = value
    return record


def twin(array: Array) -> Array:
    """Return an array with the same attributes, in all versions plain ones; its bytes are immutable, and shared."""
    made = object.__new__(type(array))
    made.__dict__.update(array.__dict__)
    return made


def packed(content: RecordDict) -> bytes:
    """Return records as the bytes that Flower sends, of one order, in the protocol buffers of all versions."""
    data: bytes = recorddict_to_proto(content).SerializeToString(deterministic=True)
    return data


def unpacked(data: bytes) -> RecordDict:
    """Return the records that `packed` made bytes of, in all versions; raises what Flower does for other bytes."""
    content: RecordDict = recorddict_from_proto(ProtoRecordDict.FromString(data))
    return content
