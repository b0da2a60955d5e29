"""Text from elsewhere, made safe to print: the names, reasons and paths that clients, files and logs contain."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: object) -> str:
    r"""Return a value's text with every character escaped that a terminal would not show as one.

    These are control characters and newlines, which could move the cursor or add lines of their own, and characters
    that reorder or hide text. They are the characters for which `str.isprintable` is False.

    Parameters
    ----------
    text : object
        Any value; its ``str`` is taken.

    Examples
    --------
    >>> print(printable("round-\x1b[2J\u202etxt"))
    round-\x1b[2J\u202etxt
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
