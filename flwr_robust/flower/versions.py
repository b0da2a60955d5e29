"""The releases of Flower with which this package is tested; `.ci/flwr-versions` tests the lowest and the newest."""

from __future__ import annotations

import logging
from importlib import metadata

from flwr_robust import TESTED_FLWR
from flwr_robust.audit.software import minor

__all__ = ["untested"]

log = logging.getLogger("flwr")


def untested(version: str) -> str | None:
    """Return a warning if a version of Flower is not tested, otherwise None.

    Parameters
    ----------
    version : str
        The version of Flower, such as ``1.42.0``.
    """
    lowest, highest = map(minor, TESTED_FLWR)
    if lowest <= minor(version) <= highest:
        return None
    return (
        f"flwr {version} is not tested with this release of flwr-robust, which knows {TESTED_FLWR[0]} to "
        f"{TESTED_FLWR[1]}: if something fails, install one of these, or a newer flwr-robust"
    )


if (_sentence := untested(metadata.version("flwr"))) is not None:
    log.warning(_sentence)
