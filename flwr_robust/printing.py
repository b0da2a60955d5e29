"""Text from elsewhere, made safe to show: the names, reasons and paths that clients, files and logs contain.

`printable` is for terminals. What begins with `html` is for notebooks: it escapes all text, and names no colours,
so that it is legible on light and dark pages. It needs no package.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Collection, Sequence
from numbers import Real
from typing import Any, TypeVar

__all__ = ["MOST_ROWS", "Listing", "html_block", "html_image", "html_table", "printable"]

MOST_ROWS = 50
"""The most rows of a table that a notebook shows."""

_BAR = 80  # pixels of the longest bar
_LONGEST = 300  # characters of a cell

Item = TypeVar("Item")


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


def html_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    caption: str = "",
    bars: Collection[int] = (),
    strong: Collection[tuple[int, int]] = (),
) -> str:
    """Return an HTML table of at most `MOST_ROWS` rows, then a line that says how many more there are.

    Parameters
    ----------
    columns : sequence of str
        The headings.
    rows : sequence of sequence of object
        The cells. Floats have four digits, None is an empty cell, and other values are text. Columns with a number
        are aligned to the right.
    caption : str
        The content of the table.
    bars : collection of int
        Columns whose numbers have bars. A bar's length is the share of the number in the largest of its column, signs
        aside; texts and numbers that are not finite have none.
    strong : collection of (row, column)
        Positions of bold cells.

    Examples
    --------
    >>> "&lt;b&gt;" in html_table(["client"], [["<b>"]])
    True
    """
    largest = {at: max((_length(row[at]) for row in rows), default=0.0) for at in bars}
    right = [any(_is_number(row[at]) for row in rows) for at in range(len(columns))]
    lines = [f"<tr>{''.join(_cell('th', name, at) for name, at in zip(columns, right, strict=True))}</tr>"]
    for number, row in enumerate(rows[:MOST_ROWS]):
        cells = []
        for at, value in enumerate(row):
            bar = _bar(_length(value) / (largest[at] or 1.0)) if at in largest else ""
            cells.append(_cell("td", value, right[at], bar, (number, at) in strong))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    if (left := len(rows) - MOST_ROWS) > 0:
        text = f"and {left} more row{'' if left == 1 else 's'}"
        lines.append(f'<tr><td colspan="{len(columns)}" style="text-align:left">{text}</td></tr>')
    title = f'<caption style="text-align:left;color:inherit">{_escaped(caption)}</caption>' if caption else ""
    return f'<table style="border-collapse:collapse;color:inherit">{title}{"".join(lines)}</table>'


def html_block(title: str, *parts: str, line: str = "") -> str:
    """Return an HTML element that a notebook shows: a title, a line of text, and tables.

    Parameters
    ----------
    title, line : str
        Texts; they are escaped.
    *parts : str
        HTML, as `html_table` returns it.
    """
    # A name such as $x$ stays text: notebooks pass formulas in what they show to MathJax, except in these classes.
    text = f"<div>{_escaped(line)}</div>" if line else ""
    return (
        f'<div class="tex2jax_ignore mathjax_ignore" style="overflow-x:auto"><div><strong>{_escaped(title)}</strong>'
        f"</div>{text}{''.join(parts)}</div>"
    )


def html_image(data: str, alt: str) -> str:
    """Return an HTML image that holds its own bytes.

    Parameters
    ----------
    data : str
        The PNG file in base64.
    alt : str
        The content of the image in words; it is escaped.
    """
    return f'<div><img style="max-width:100%" alt="{_escaped(alt)}" src="data:image/png;base64,{data}"></div>'


class Listing(list[Item]):
    """A list of dataclasses of one kind, which a notebook shows as a table of their fields.

    It is a list in every other respect. Fields that are empty in all items have no column. The field ``weight`` has
    bars.
    """

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        if not self:
            return html_block("0 items")
        items: list[Any] = [*self]
        names = [field.name for field in dataclasses.fields(items[0])]
        rows = [[_plain(getattr(item, name)) for name in names] for item in items]
        shown = [at for at in range(len(names)) if any(row[at] not in ("", None) for row in rows)]
        bars = [place for place, at in enumerate(shown) if names[at] == "weight"]
        table = html_table(
            [names[at].replace("_", " ") for at in shown], [[row[at] for at in shown] for row in rows], bars=bars
        )
        return html_block(f"{type(items[0]).__name__}, {len(self)} of them", table)


def _plain(value: object) -> object:
    """Return a field's value as a cell: counted texts as "text 3", and truths as yes or nothing."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, tuple):
        return ", ".join(" ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value)
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _length(value: object) -> float:
    """Return a cell's number without its sign; 0 if it has none that is finite."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return 0.0
    number = abs(float(value))
    return number if math.isfinite(number) else 0.0


def _bar(share: float) -> str:
    width = round(_BAR * share)
    bar = f"display:inline-block;width:{width}px;height:.7em;background:currentColor;opacity:.45"
    return (
        f'<span style="display:inline-block;width:{_BAR}px;margin-left:.5em;text-align:left"><span style="{bar}">'
        f"</span></span>"
    )


def _cell(tag: str, value: object, right: bool, bar: str = "", strong: bool = False) -> str:
    if value is None:
        text = ""
    elif _is_number(value) and not isinstance(value, int):
        text = f"{value:.4g}"
    else:
        text = printable(value)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 3]}..."
    style = f"text-align:{'right' if right else 'left'};border-bottom:1px solid currentColor;padding:.1em .6em"
    inner = f"<strong>{_escaped(text)}</strong>" if strong else _escaped(text)
    return f'<{tag} style="{style}">{inner}{bar}</{tag}>'


def _escaped(text: str) -> str:
    """Return a text in which no character has a meaning in HTML."""
    return html.escape(printable(text))
