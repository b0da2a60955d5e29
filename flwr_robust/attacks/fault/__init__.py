"""Faults, one per file."""

from flwr_robust.attacks.fault.crash import Crash
from flwr_robust.attacks.fault.delay import Delay
from flwr_robust.attacks.fault.drop_layers import DropLayers
from flwr_robust.attacks.fault.stale import Stale

__all__ = [
    "Crash",
    "Delay",
    "DropLayers",
    "Stale",
]
