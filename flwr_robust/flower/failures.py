"""What the operator's own code raised, as text for the log.

An exception's message may hold what a client sent, so it is one short line of printable text. The frames are the
operator's own source.
"""

from __future__ import annotations

import traceback

from flwr_robust.flower.admission import short

__all__ = ["failure"]

_MOST = 60  # lines, about: exceptions behind one another may be many


def failure(source: object, error: BaseException) -> str:
    """Return what raised an exception, the exception, and where it was raised.

    Parameters
    ----------
    source : object
        The function that raised it.
    error : BaseException
        What it raised.

    Returns
    -------
    str
        A first line, then the frames, those of the exceptions behind it below.
    """
    name = f"{getattr(source, '__module__', '')}.{getattr(source, '__qualname__', type(source).__qualname__)}"
    lines, each = [f"{name.removeprefix('.')} raised {_said(error)}"], error
    while True:
        lines += [line.rstrip() for line in traceback.format_tb(each.__traceback__)]
        behind = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
        if behind is None or len(lines) > _MOST:
            return "\n".join(lines)
        lines.append(f"  because of {_said(behind)}")
        each = behind


def _said(error: BaseException) -> str:
    return short(f"{type(error).__name__}: {error}")
