"""Text from elsewhere is shown as what it is, whatever it holds."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flwr_robust.printing import MOST_ROWS, Listing, html_block, html_image, html_table, printable

HOSTILE = "</td><script>alert(1)</script><img src=x onerror='alert(2)'>\u202e\n\"$x$&"


class Page(HTMLParser):
    """The elements and the text of a piece of HTML; it fails if an element is not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def widths(text):
    """The lengths of a table's bars in pixels."""
    return [int(width) for width in re.findall(r"width:(\d+)px;height", text)]


def test_every_character_is_printable_afterwards_and_no_two_look_the_same():
    seen = {printable(chr(code)) for code in range(sys.maxunicode + 1)}
    assert len(seen) == sys.maxunicode + 1
    assert all(text.isprintable() and len(text.splitlines()) == 1 for text in seen)


def test_what_can_be_shown_stays_as_it_is():
    text = "α-trimmed [bold] \\n 数 ~/x"
    assert printable(text) is text
    assert printable(Path("a")) == "a"
    assert printable("\x1b]0;title\a\u202e\ud800\n") == "\\x1b]0;title\\x07\\u202e\\ud800\\n"


def test_html_shows_hostile_text_as_text():
    table = html_table([HOSTILE], [[HOSTILE], [Path(HOSTILE)]], caption=HOSTILE)
    page = Page(html_block(HOSTILE, table, html_image("AAAA", HOSTILE), line=HOSTILE))
    assert {tag for tag, _ in page.tags} == {"div", "strong", "table", "caption", "tr", "th", "td", "img"}
    assert {name for _, attributes in page.tags for name in attributes} == {"class", "style", "alt", "src"}
    assert [attributes["src"] for tag, attributes in page.tags if tag == "img"] == ["data:image/png;base64,AAAA"]
    assert page.text.count(printable(HOSTILE)) == 6
    assert page.tags[0] == ("div", {"class": "tex2jax_ignore mathjax_ignore", "style": "overflow-x:auto"})


def test_bars_are_proportional():
    rows = [[0.5, 3], [-0.25, 1], [0.0, "died"], [float("inf"), 2], [float("nan"), None]]
    bars = widths(html_table(["weight", "score"], rows, bars=[0]))
    assert bars == [80, 40, 0, 0, 0]
    assert widths(html_table(["weight", "score"], rows)) == []
    assert widths(html_table(["weight", "score"], rows, bars=[1])) == [80, 27, 0, 53, 0]
    assert widths(html_table(["weight"], [[0.0], [0.0]], bars=[0])) == [0, 0]


def test_no_colour_is_fixed():
    text = html_block("a", html_table(["a"], [[1.0]], caption="b", bars=[0], strong=[(0, 0)]), line="c")
    assert set(re.findall(r"(?:colou?r|background|1px solid)[: ]\s*([a-zA-Z#]+)", text)) == {"inherit", "currentColor"}


@pytest.mark.parametrize(("more", "words"), [(0, None), (1, "and 1 more row"), (950, "and 950 more rows")])
def test_a_long_table_is_cut(more, words):
    rows = [[f"client {number}", number] for number in range(MOST_ROWS + more)]
    text = html_table(["client", "number"], rows, bars=[1])
    assert text.count("client ") == MOST_ROWS
    assert re.findall(r"and \d+ more rows?(?=<)", text) == ([words] if words else [])
    assert max(widths(text)) == round(80 * (MOST_ROWS - 1) / (MOST_ROWS + more - 1))  # of the longest of all
    assert len(Page(text).tags) < 10 * MOST_ROWS


def test_a_long_cell_is_cut():
    assert len(Page(html_table(["a"], [["x" * 10**6]])).text) == len("a") + 300


@dataclass(frozen=True)
class Client:
    name: str
    weight: float | None
    reasons: tuple[tuple[str, int], ...] = ()
    banned: bool = False
    never_said: str = ""


def test_a_listing_is_a_list_that_a_notebook_shows(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)  # importing it raises an error, as if it were not installed
    items = [Client(HOSTILE, 0.5, (("NOT_FINITE", 2), ("SHAPE", 1)), banned=True), Client("b", 0.25)]
    listing = Listing(items)
    assert listing == items
    assert repr(listing) == repr(items)
    text = listing._repr_html_()
    page = Page(text)
    assert printable(HOSTILE) in page.text
    assert "NOT_FINITE 2, SHAPE 1" in page.text
    assert "never said" not in page.text
    assert "banned" in page.text
    assert widths(text) == [80, 40]
    assert "0 items" in Listing([])._repr_html_()
