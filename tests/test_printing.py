"""Text from elsewhere is shown as what it is, whatever it holds."""

from __future__ import annotations

import sys
from pathlib import Path

from flwr_robust.printing import printable


def test_every_character_is_printable_afterwards_and_no_two_look_the_same():
    seen = {printable(chr(code)) for code in range(sys.maxunicode + 1)}
    assert len(seen) == sys.maxunicode + 1
    assert all(text.isprintable() and len(text.splitlines()) == 1 for text in seen)


def test_what_can_be_shown_stays_as_it_is():
    text = "α-trimmed [bold] \\n 数 ~/x"
    assert printable(text) is text
    assert printable(Path("a")) == "a"
    assert printable("\x1b]0;title\a\u202e\ud800\n") == "\\x1b]0;title\\x07\\u202e\\ud800\\n"
