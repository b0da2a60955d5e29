"""Everything that this package uses of Flower beyond its public modules.

Flower's public modules are ``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp``, ``flwr.serverapp.strategy``,
``flwr.client`` and the names that ``flwr.common`` lists. A release may change everything else without notice. Such
names are used in this module only; a test checks the whole package. "All versions" below means flwr 1.32 to 1.42, the
versions that this package allows.
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
    "create_run",
    "fill",
    "is_legacy",
    "packed",
    "private_environment",
    "registered_nodes",
    "set_message_id",
    "simulated",
    "twin",
    "unpacked",
    "unwrapped",
    "with_content",
    "wrapped",
]

_NOBODY = "<id:none>"  # Flower's account id where there are no accounts

T = TypeVar("T", ArrayRecord, MetricRecord, ConfigRecord, RecordDict)


# -- the process, and the run -------------------------------------------------------------------------


def create_run(run_id: int) -> Run:
    """Return Flower's record of a run, with nothing but its id filled in.

    The class is in ``flwr.supercore.run``; releases without that module have it in ``flwr.common.typing``.
    """
    return Run.create_empty(run_id)


def become_server(run_id: int, node_id: int) -> None:
    """Tell Flower that this process is the server of a run; only a server can create messages.

    Releases with ``flwr.supercore.task_identity`` require it. In earlier releases this function does nothing.
    """
    if TaskIdentity is not None:
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = run_id
        TaskIdentity.node_id = node_id


def private_environment(home: Path, ports: tuple[int, int]) -> dict[str, str]:
    """Return the environment variables of a ``flwr run`` that shares nothing with other runs on this machine.

    All releases ignore variables that they do not know. The ports matter where ``flwr run`` starts a local SuperLink.

    Parameters
    ----------
    home : Path
        Folder of Flower's own files.
    ports : (int, int)
        Ports of the SuperLink's HTTP API and of its Control API.
    """
    return {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(ports[0]),
        "FLWR_LOCAL_CONTROL_API_PORT": str(ports[1]),
    }


def wrapped(grid: Grid) -> list[Grid]:
    """Return a grid and all grids inside it, in all versions: wrappers keep the inner grid as an attribute."""
    found: list[Grid] = []
    pending = [grid]
    while pending:
        each = pending.pop()
        found.append(each)
        held = getattr(each, "__dict__", {}).values()
        pending += [inner for inner in held if isinstance(inner, Grid) and not any(inner is one for one in found)]
    return found


def is_legacy(strategy: object) -> bool:
    """Say whether an object is a strategy for ``ServerApp(server_fn=...)``; in all versions from ``flwr.server``."""
    return any(cls.__module__.startswith("flwr.server.strategy.") for cls in type(strategy).__mro__)


def simulated(grid: Grid) -> bool:
    """Say whether a grid, or a grid that it wraps, is that of a simulation, whose runtime assigns the partitions.

    In all versions the grid of Flower's simulation is an ``InMemoryGrid``. Only the module that holds this class has
    moved, so the class is found by its name. Grids of this package that simulate say so themselves, in ``simulates``.
    """
    grids = wrapped(grid)
    classes = [cls for each in grids for cls in type(each).__mro__]
    flowers = any(cls.__name__ == "InMemoryGrid" and cls.__module__.startswith("flwr.") for cls in classes)
    return flowers or any(getattr(type(each), "simulates", False) for each in grids)


def registered_nodes(grid: Grid) -> bool | None:
    """Say whether all connected nodes were registered beforehand by accounts, so that each id belongs to one key.

    With node authentication a SuperLink lets in registered nodes only. Its grid names the account that registered a
    node, as ``owner_aid``. A node that registers itself has the owner ``<id:none>``. So do all nodes of a SuperLink
    without accounts, whether it authenticates nodes or not; then only the operator knows, and the answer is None. It is
    also None in releases and grids that name no owner.
    """
    try:
        owners = {getattr(node, "owner_aid", "") for node in grid.get_nodes()}
    except Exception:  # grids of other packages may not have it
        return None
    if not owners or owners & {"", _NOBODY}:
        return None
    return True


# -- messages -----------------------------------------------------------------------------------------


def set_message_id(message: Message, identifier: str) -> None:
    """Give a message its id; in all versions only Flower's own grids set it."""
    message.metadata.__dict__["_message_id"] = identifier


def with_content(message: Message, content: RecordDict) -> Message:
    """Return a copy of a message with another content; this bypasses the checks that all versions make."""
    received = copy.copy(message)
    received.__dict__["_content"] = content
    return received


def unwrapped(client: Any) -> NumPyClient:
    """Return the NumPyClient inside the result of ``to_client()``, or the client itself; the same in all versions."""
    inner: NumPyClient = getattr(client, "numpy_client", client)
    return inner


# -- records ------------------------------------------------------------------------------------------


def fill(record: T, items: Mapping[str, Any]) -> T:
    """Put items into a record without checking them, and return the record; the caller knows that they are valid.

    Flower's check of an item takes several microseconds. In one process these checks take most of the time of a small
    round. In all versions a record keeps a plain dict, and the items are written into it directly.
    """
    held = record.__dict__.get("_data")
    if type(held) is dict:
        held.update(items)
    else:
        for key, value in items.items():
            record[key] = value
    return record


def twin(array: Array) -> Array:
    """Return an array with the same attributes, in all versions; both share the bytes, which are immutable."""
    made = object.__new__(type(array))
    made.__dict__.update(array.__dict__)
    return made


def packed(content: RecordDict) -> bytes:
    """Return records as the bytes that Flower sends, in a fixed order; the same in all versions."""
    data: bytes = recorddict_to_proto(content).SerializeToString(deterministic=True)
    return data


def unpacked(data: bytes) -> RecordDict:
    """Return the records from which `packed` made the bytes, in all versions; Flower refuses other bytes."""
    content: RecordDict = recorddict_from_proto(ProtoRecordDict.FromString(data))
    return content
