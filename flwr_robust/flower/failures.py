"""Errors raised by the operator's own code, as text for the log.

An exception's message may hold text from a client, so it is shortened to one line of printable text. The stack frames
show the operator's own source.
"""

from __future__ import annotations

import traceback

from flwr_robust.flower.admission import short

__all__ = ["failure"]

_MOST = 60  # approximate number of lines; a chain of exceptions may be long


def failure(source: object, error: BaseException) -> str:
    """Return a text that shows an exception, what raised it, and where.

    Parameters
    ----------
    source : object
        The function that raised it.
    error : BaseException
        The exception that it raised.

    Returns
    -------
    str
        A first line, then the stack frames, then the same for the exceptions that caused this one.
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
