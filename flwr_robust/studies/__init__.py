"""What ``flwr-robust run``, ``report`` and ``reproduce`` do; `load` returns results as a data frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["load"]


def load(folder: Path | str, *, failed: bool = False) -> DataFrame:
    """Return the results in a folder as a data frame, one line per finished run; see `flwr_robust.studies.export.load`.

    Parameters
    ----------
    folder : Path
        The folder of a study's results, as ``flwr-robust run`` writes it, or one with several such folders.
    failed : bool
        Whether cells that failed have lines, too.
    """
    from flwr_robust.studies.export import load as read  # imported here, because it needs the extra of studies

    return read(folder, failed=failed)
