"""The table of message kinds: what it says of each, and that nothing else decides by a kind's name."""

import ast
import re

import pytest

from flwr_robust import ConfigurationError
from flwr_robust.flower import RobustStrategy
from flwr_robust.protocol.messages import CLASS_MOMENTUM, MESSAGE_KINDS, MESSAGES, message_kind
from tests.house import MODULES, module_name


def test_what_the_table_says():
    assert {name: kind.sign for name, kind in MESSAGE_KINDS.items()} == {
        "delta": 1,
        "gradient": -1,
        "momentum": -1,
        "parameters": 1,
        "class_momentum": -1,
    }
    assert [name for name, kind in MESSAGE_KINDS.items() if kind.relative] == ["parameters"]
    assert [name for name, kind in MESSAGE_KINDS.items() if kind.local_steps] == ["delta", "parameters"]
    assert [name for name, kind in MESSAGE_KINDS.items() if kind.momentum] == ["momentum", CLASS_MOMENTUM]
    assert [name for name, kind in MESSAGE_KINDS.items() if kind.class_wise] == [CLASS_MOMENTUM]
    assert {name: kind.buffers for name, kind in MESSAGE_KINDS.items() if kind.buffers != "keep"} == {
        "delta": "change",
        "parameters": "value",
    }
    assert (*MESSAGES, CLASS_MOMENTUM) == tuple(MESSAGE_KINDS)
    assert all(message_kind(name).name == name for name in MESSAGE_KINDS)


def test_an_unknown_kind_names_those_that_exist():
    with pytest.raises(ConfigurationError, match=r"message must be one of class_momentum, delta, gradient, .*'deltas'"):
        message_kind("deltas")
    with pytest.raises(ConfigurationError, match="message must be one of delta, gradient, momentum, parameters; got"):
        RobustStrategy("mean()", message=CLASS_MOMENTUM)


def compared_kinds(source):
    """Return the lines on which something is compared with the name of a kind."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and re.search(r"\bmessage\b|CLASS_MOMENTUM", ast.unparse(node)):
            names = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            if names & MESSAGE_KINDS.keys() or "CLASS_MOMENTUM" in ast.unparse(node):
                found.append(node.lineno)
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("endswith", "startswith")
            and "message" in ast.unparse(node)
        ):
            found.append(node.lineno)
    return found


def test_no_module_decides_by_a_name():
    assert compared_kinds('if config.message in ("gradient", "momentum"):\n    pass') == [1]
    assert compared_kinds('x = 1\ny = config.message.endswith("momentum")') == [2]
    assert compared_kinds("if kind.relative and message in MESSAGES:\n    pass") == []
    assert {module_name(path): lines for path in MODULES if (lines := compared_kinds(path.read_text()))} == {}
