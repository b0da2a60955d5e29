"""The verb ``doctor``."""

from __future__ import annotations

__all__ = ["doctor_command"]


def doctor_command() -> None:
    """Check the installation."""
