"""Flower's private parts: used in one module alone, found elsewhere by reading the package, and doing what they say."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import textwrap
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
from flwr import app as flower_app
from flwr import client as flower_client
from flwr import clientapp, serverapp
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as strategies

from flwr_robust.flower import AdversarialGrid, InProcessGrid, _compat
from tests.flower_helpers import FIRST, record
from tests.house import MODULES, ROOT, module_name

PUBLIC = {
    "flwr",
    "flwr.app",
    "flwr.client",
    "flwr.clientapp",
    "flwr.common",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
    "flwr.simulation",
}
"""Flower's public modules, of which public names may be imported anywhere."""

COMPAT = "flwr_robust.flower._compat"


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def flower_classes():
    """Return the classes of the public modules, and those that they are made of."""
    found = {
        value
        for module in (flower_app, flower_client, clientapp, serverapp, strategies)
        for value in map(module.__dict__.get, dir(module))
        if inspect.isclass(value)
    }
    return found | {base for each in found for base in each.__mro__ if base.__module__.startswith("flwr.")}


def attributes_of(cls):
    """Return the private names that a class has, or sets on itself."""
    names = {name for name in vars(cls) if is_private(name)}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            names |= {node.attr} if is_private(node.attr) else set()
    return names


def attributes_held():
    """Return the private names that messages and records keep, in whatever way they are set."""
    InProcessGrid(ClientApp(), 1)
    message = Message(RecordDict(), FIRST, "train")
    held = (message, message.metadata, RecordDict(), ArrayRecord(), MetricRecord(), ConfigRecord())
    return {name for each in held for name in vars(each) if is_private(name)}


THEIRS = {cls: attributes_of(cls) for cls in flower_classes()}
NAMES = frozenset().union(*THEIRS.values()) | attributes_held()


def inherited(tree, namespace):
    """Yield each class of a module with the private names that it has from a class of Flower's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and inspect.isclass(cls := namespace.get(node.name)):
            theirs = set().union(*(THEIRS.get(base, set()) for base in cls.__mro__))
            own = {
                each.attr
                for each in ast.walk(node)
                if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and is_private(each.attr)
            }
            own |= {each.name for each in ast.walk(node) if isinstance(each, ast.FunctionDef)}
            yield node, theirs - own


def private_uses(source, namespace):
    """Yield what a module uses of Flower that is not public."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_flower(alias.name) and alias.name not in PUBLIC)
        elif isinstance(node, ast.ImportFrom) and is_flower(node.module or ""):
            yield from (
                f"{node.module}.{alias.name}"
                for alias in node.names
                if node.module not in PUBLIC or is_private(alias.name)
            )
        elif isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own and (node.attr == "__dict__" or node.attr in NAMES):
                yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            setting = node.value.startswith("FLWR_") and not node.value.startswith(("FLWR_ROBUST", "FLWR_HOME"))
            if (setting and node.value not in namespace) or node.value in NAMES:
                yield node.value
    for node, theirs in inherited(tree, namespace):
        for each in ast.walk(node):
            if isinstance(each, ast.Attribute) and each.attr in theirs and isinstance(each.ctx, ast.Load):
                yield f"{node.name}: {ast.unparse(each)}"


def is_flower(module):
    return module.partition(".")[0] == "flwr"


@pytest.mark.parametrize("path", [path for path in MODULES if module_name(path) != COMPAT], ids=module_name)
def test_private_parts_of_flower_are_used_in_one_module_alone(path):
    name = module_name(path)
    if name.endswith("__main__") or not name.startswith(("flwr_robust", "clients", "server")):
        return
    assert list(private_uses(path.read_text(), vars(importlib.import_module(name)))) == []


USES = [
    "from flwr.serverapp.strategy.strategy_utils import sample_nodes",
    "import flwr.common.serde",
    "from flwr.app import _private",
    "message._content",
    "message.metadata._message_id",
    "record.__dict__.get('held')",
    "vars(message)['_content']",
    "getattr(record, '_data')",
    "{'FLWR_LOCAL_CONTROL_API_PORT': '1'}",
    "class Own(FedAvg):\n    def ask(self):\n        return self._construct_messages()",
]
FINE = [
    "from flwr.serverapp.strategy import FedAvg",
    "from flwr.common import NDArrays",
    "found._digest",
    "{'FLWR_ROBUST_DATA': 'here', 'FLWR_HOME': 'there'}",
    "class Own(FedAvg):\n    def ask(self):\n        return self._own()\n    def _own(self):\n        return 1",
]


class Own(strategies.FedAvg):
    """What the sources above call by its name."""


@pytest.mark.parametrize("source", USES)
def test_a_use_elsewhere_is_found(source):
    assert list(private_uses(source, globals()))


@pytest.mark.parametrize("source", FINE)
def test_public_parts_are_no_finding(source):
    assert list(private_uses(source, globals())) == []


def test_one_module_needs_the_private_parts():
    path = ROOT / "flwr_robust" / "flower" / "_compat.py"
    found = set(private_uses(path.read_text(), vars(_compat)))
    assert {
        "flwr.common.serde.recorddict_to_proto",
        "message.metadata.__dict__",
        "FLWR_LOCAL_CONTROL_API_PORT",
        "_data",
    } <= found


def test_every_function_says_which_versions_it_covers():
    for name in _compat.__all__:
        value = getattr(_compat, name)
        if inspect.isfunction(value):
            assert any(word in inspect.getdoc(value) for word in ("all versions", "eleases")), name


# -- what they do ------------------------------------------------------------------------------------


def test_a_message_gets_an_id_and_another_content():
    InProcessGrid(ClientApp(), 1)
    message = Message(RecordDict({"old": MetricRecord({"a": 1})}), FIRST, "train")
    _compat.set_message_id(message, "seven")
    assert message.metadata.message_id == "seven"
    other = _compat.with_content(message, RecordDict())
    assert (list(other.content), list(message.content)) == ([], ["old"])
    assert other.metadata.message_id == "seven"


def test_a_twin_has_the_same_attributes():
    made = Array(np.array([1.0, 2.0]))
    other = _compat.twin(made)
    assert isinstance(other, Array)
    assert (other.dtype, other.shape, other.stype) == (made.dtype, made.shape, made.stype)
    assert other is not made
    assert other.data is made.data


def test_a_filled_record_is_one_that_was_set_item_by_item():
    numbers, arrays = {"a": 1, "b": [1.0, 2.0]}, {"x": Array(np.ones(2)), "y": Array(np.zeros(3))}
    for kind, items in ((MetricRecord, numbers), (ConfigRecord, numbers), (ArrayRecord, arrays)):
        expected = kind()
        for key, value in items.items():
            expected[key] = value
        made = kind()
        assert _compat.fill(made, items) is made
        assert made == expected
        assert list(made) == list(items)
        assert made.object_id == expected.object_id  # what Flower would send is the same
    both = _compat.fill(RecordDict({"old": MetricRecord()}), {"new": ConfigRecord()})
    assert list(both) == ["old", "new"]


def test_fill_checks_the_items_where_flower_keeps_them_otherwise():
    made = MetricRecord()
    made.__dict__["_data"] = OrderedDict()
    assert _compat.fill(made, {"a": 1}) == {"a": 1}
    with pytest.raises(TypeError):
        _compat.fill(made, {"b": "text"})


def test_records_become_bytes_and_come_back():
    content = RecordDict({"arrays": record({"w": [1.0]}), "config": ConfigRecord({"b": "text", "a": [1, 2]})})
    back = _compat.unpacked(_compat.packed(content))
    assert list(back) == ["arrays", "config"]
    assert dict(back["config"]) == {"b": "text", "a": [1, 2]}
    assert _compat.packed(back) == _compat.packed(content)
    with pytest.raises(Exception, match=r"."):
        _compat.unpacked(b"\xff" * 9)


def test_a_client_is_found_inside_what_wraps_it():
    client = NumPyClient()
    assert _compat.unwrapped(client) is client
    assert _compat.unwrapped(client.to_client()) is client


def test_a_private_environment_shares_no_file_and_no_port(tmp_path):
    found = _compat.private_environment(tmp_path, (5, 6))
    assert found["FLWR_HOME"] == str(tmp_path)
    assert {"5", "6"} <= set(found.values())
    assert all(name.startswith("FLWR_") for name in found)


def flowers_own(name):
    """Find a class of Flower's wherever this release keeps it."""
    found = [f"flwr.{place}" for place in ("superlink.grid.inmemory_grid", "server.grid.inmemory_grid")]
    for module in found:
        with contextlib.suppress(ImportError):
            return getattr(importlib.import_module(module), name)
    return pytest.skip(f"this release has its {name} elsewhere")


class Wrapping(InProcessGrid):
    """A grid of somebody's own, around another one."""

    simulates = False

    def __init__(self, inner=None):
        super().__init__(ClientApp(), 1)
        self.inner, self.itself = inner, self


def test_a_simulation_is_known_by_its_grid_and_through_wrappers():
    flowers = flowers_own("InMemoryGrid")
    for grid in (object.__new__(flowers), InProcessGrid(ClientApp(), 1)):
        assert _compat.simulated(grid)
        assert _compat.simulated(AdversarialGrid(grid, "ipm(epsilon=0.1)", 1))
        assert _compat.simulated(Wrapping(Wrapping(grid)))
    assert not _compat.simulated(Wrapping())
    assert not _compat.simulated(AdversarialGrid(Wrapping(), "ipm(epsilon=0.1)", 1))


def test_nodes_are_registered_if_every_one_has_an_account_as_its_owner():
    class Nodes(Wrapping):
        def get_nodes(self):
            return [SimpleNamespace(node_id=i, owner_aid=owner) for i, owner in enumerate(self.inner)]

    assert _compat.registered_nodes(Nodes(["hospital", "bank"])) is True
    for unknown in (["hospital", "<id:none>"], ["<id:none>"], ["hospital", ""], []):
        assert _compat.registered_nodes(Nodes(unknown)) is None
    assert _compat.registered_nodes(Nodes(None)) is None  # get_nodes raises
    assert _compat.registered_nodes(InProcessGrid(ClientApp(), 2)) is None


def test_legacy_strategies_are_known_by_their_place():
    from flwr.server.strategy import FedAvg as LegacyFedAvg
    from flwr.serverapp.strategy import FedAvg

    class Own(LegacyFedAvg):
        pass

    assert [_compat.is_legacy(each) for each in (LegacyFedAvg(), Own(), FedAvg(), object())] == [
        True,
        True,
        False,
        False,
    ]
