"""All that attackers may do, under one set of names."""

from __future__ import annotations

from flwr_robust.attacks.data.base import DataAttack, data_attacks
from flwr_robust.attacks.fault.base import Fault, faults
from flwr_robust.attacks.message.base import MessageAttack, message_attacks
from flwr_robust.core.spec import JoinedRegistry, Registry

__all__ = ["all_attacks"]

all_attacks: Registry[DataAttack | MessageAttack | Fault] = JoinedRegistry(
    "attack", data_attacks, message_attacks, faults
)
"""Attacks by name: they poison clients' data, rewrite their messages, or have them just fail."""
