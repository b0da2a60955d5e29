"""The sheet on which plots are drawn: a paper's column or page in width, in type that stays legible at that size.

A figure is made at the width at which it is printed, so that no text shrinks when it is placed. No text is below 7
points. The legend and the setting of the runs stand below the panels, and the figure grows by what they need.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from numpy.typing import NDArray

from flwr_robust.errors import extra

with extra("studies"):
    import matplotlib
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

__all__ = [
    "COLUMN",
    "PAGE",
    "SMALL",
    "TALLEST",
    "WIDTHS",
    "chunks",
    "finish",
    "fold",
    "hatched",
    "inches",
    "ink",
    "longest_part",
    "make_panels",
    "name_rows",
    "room",
    "styled",
    "tall",
    "wide",
]

COLUMN, PAGE = 3.3, 6.9
"""The widths of one column and of a page of two columns, in inches."""

TALLEST = 9.2
"""The height of a page, in inches."""

WIDTHS = {"column": COLUMN, "page": PAGE}
"""The widths by name."""

SMALL = 7.0
"""The smallest size of type, in points."""

_STYLE: Any = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
    "figure.titlesize": 8.0,
    "axes.linewidth": 0.6,
    "hatch.linewidth": 0.5,
}
_WIDTH = 0.54  # of a character on average, in units of the size of the type
_BREAK = re.compile(r"(?<=[,(_|])")  # where a label may be broken
_HATCH = "xxxx"  # of runs that failed
_GAP = 0.06  # inches between panels, legend and setting


def styled() -> AbstractContextManager[None]:
    """Return the context in which figures are made: its sizes of type are those of print."""
    return matplotlib.rc_context(_STYLE)


def make_panels(
    down: int, across: int, size: tuple[float, float], *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, NDArray[Any]]:
    """Return a figure with a grid of panels (down, across).

    The figure belongs to no window and no notebook. What a user draws with pyplot, and its backend, stay as they are.

    Parameters
    ----------
    down, across : int
        The numbers of panels.
    size : (float, float)
        Width and height in inches.
    sharex, sharey : bool
        Whether panels share an axis.
    """
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(down, across, sharex=sharex, sharey=sharey, squeeze=False)


def room(wide: float, size: float = SMALL) -> int:
    """Return how many characters of a size in points fit a width in inches, at least 6."""
    return max(6, int(72 * wide / (_WIDTH * size)))


def fold(text: str, characters: int) -> str:
    """Return a text in lines of at most so many characters, broken at spaces, else behind marks.

    Examples
    --------
    >>> print(fold("min_max(deviation='std')", 16))
    min_max(
    deviation='std')
    """
    lines = [""]
    for word in text.split(" "):
        for number, piece in enumerate([word] if len(word) <= characters else _pieces(word, characters)):
            joint = " " if number == 0 and lines[-1] else ""
            if lines[-1] and len(lines[-1]) + len(joint) + len(piece) > characters:
                lines.append(piece)
            else:
                lines[-1] += joint + piece
    return "\n".join(lines)


def _pieces(word: str, characters: int) -> list[str]:
    """Return a word in pieces of at most so many characters."""
    parts = _BREAK.split(word)
    return [part[at : at + characters] for part in parts for at in range(0, len(part), characters)]


def longest_part(labels: Iterable[str]) -> int:
    """Return the length of the longest part of some labels that `fold` does not break where it has the room."""
    return max((len(part) for label in labels for word in label.split() for part in _BREAK.split(word)), default=0)


def inches(characters: int, size: float = SMALL) -> float:
    """Return the width of so many characters of a size in points; the inverse of `room`."""
    return characters * _WIDTH * size / 72


def chunks(labels: Sequence[str], most: int) -> list[list[str]]:
    """Return labels in consecutive parts of nearly equal length, each of at most so many."""
    parts = math.ceil(len(labels) / max(1, most))
    each = math.ceil(len(labels) / parts)
    return [list(labels[at : at + each]) for at in range(0, len(labels), each)]


def tall(texts: Iterable[str]) -> int:
    """Return the most lines of any of some texts."""
    return max((text.count("\n") + 1 for text in texts), default=1)


def wide(texts: Iterable[str]) -> float:
    """Return the width of the longest line of some texts in the smallest type, in inches."""
    return inches(max((len(line) for text in texts for line in text.split("\n")), default=0))


def name_rows(rows: Iterable[str], width: float) -> dict[str, str]:
    """Return the labels of a heatmap's rows in lines for its left side, in two lines at most where they can.

    Parameters
    ----------
    rows : iterable of str
        The labels.
    width : float
        The width of the figure, in inches; the labels take 42 % of it at most.
    """
    rows, most = list(rows), room(0.42 * width)
    letters = next((n for n in range(room(0.25 * width), most) if tall(fold(row, n) for row in rows) <= 2), most)
    return {row: fold(row, letters) for row in rows}


def hatched(axis: Axes, x: int, y: int, dense: bool = False) -> Artist:
    """Hatch the cell of a heatmap whose runs failed, densely if it is small, and return its sign for the legend."""
    style: Any = {"fc": "white", "ec": "0.4", "hatch": _HATCH * (2 if dense else 1), "lw": 0.0}
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **style))
    return Patch(**style)


def ink(colour: Sequence[float]) -> str:
    """Return the colour of text, white or black, that is easier to read on a colour."""
    return "white" if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.52 else "black"


def finish(figure: Figure, said: str = "", legend: Mapping[str, Artist] | None = None, title: str = "") -> None:
    """Put the legend and the setting below the panels of a figure, and make it higher by as much.

    Parameters
    ----------
    figure : Figure
        A figure with the layout ``constrained`` that has no legend of its own.
    said : str
        The setting of the runs; it is broken into lines.
    legend : mapping of str to Artist, optional
        The entries of the legend by label.
    title : str
        The title of the legend.
    """
    wide, high = figure.get_size_inches()
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]

    def height(artist: Artist) -> float:
        return float(artist.get_window_extent(renderer).height) / figure.dpi

    lines = fold(said, room(wide - 0.1)) if said else ""
    note = figure.text(0.05 / wide, 0.0, lines, fontsize=SMALL, color="0.3", va="bottom", ha="left")
    below = _GAP + height(note) if said else 0.0
    box = None
    if legend:
        labels = [fold(label, room(wide - 0.5)) for label in legend]
        for columns in range(len(labels), 0, -1):
            box = figure.legend(
                [*legend.values()], labels, loc="lower center", ncols=columns, frameon=False, title=title or None,
                columnspacing=1.2, handlelength=1.8, borderaxespad=0.0,
            )  # fmt: skip
            if columns == 1 or box.get_window_extent(renderer).width / figure.dpi <= wide - 0.1:
                break
            box.remove()
    above = below + (_GAP + height(box) if box else 0.0)
    total = high + above
    figure.set_size_inches(wide, total)
    note.set_y(_GAP / 2 / total)
    if box:
        box.set_bbox_to_anchor((0.5, (below + _GAP / 2) / total))
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, above / total, 1, 1 - above / total))  # type: ignore[call-arg]
