"""A paper is a TOML file with its citation, the studies that reproduce it, and notes on their results.

title = "..."
citation = "..."
summary = "..."                        # what it claims, in a sentence or two
studies = ["peng2025_softmax"]         # in the order in which they are shown

[[notes]]                              # deviations and findings
about = "peng2025_softmax"             # a study; left out: the whole
text = "..."
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_robust.errors import ConfigurationError, UnknownNameError, check_choice
from flwr_robust.studies.places import shipped
from flwr_robust.studies.study import Study, load_study

__all__ = ["PAPERS", "Paper", "load_paper"]

PAPERS = shipped("papers")
"""The folder of the papers."""


@dataclass(frozen=True)
class Paper:
    """A paper and its studies.

    Attributes
    ----------
    name, title, citation, summary : str
        The name, the title, the citation and the claim of the paper.
    studies : tuple of Study
        The studies that reproduce it.
    notes : mapping of str to tuple of str
        The notes by the name of the study; the empty name stands for the whole paper.
    """

    name: str
    title: str
    citation: str
    summary: str
    studies: tuple[Study, ...]
    notes: Mapping[str, tuple[str, ...]]


def load_paper(name: str, overrides: Mapping[str, object] | None = None, only: Sequence[str] | None = None) -> Paper:
    """Read a paper and its studies.

    Parameters
    ----------
    name : str
        The name of the paper.
    overrides : mapping, optional
        Keys of the run config that replace the common ones of the studies. Notes on recorded results are then left out.
    only : sequence of str, optional
        The studies to read; all when not given.

    Raises
    ------
    FlwrRobustError
        If there is no such paper, or one of its studies is invalid.
    """
    path = PAPERS / f"{name}.toml"
    if not path.is_file():
        raise UnknownNameError("paper", name, sorted(found.stem for found in PAPERS.glob("*.toml")))
    document = _read(path)
    for chosen in only or ():
        check_choice(f"paper {name}", "study", chosen, document["studies"])
    studies = tuple(load_study(study, overrides) for study in document["studies"] if not only or study in only)
    notes: dict[str, list[str]] = {}
    for note in document["notes"]:
        about = note.get("about", "")
        if about not in ("", *document["studies"]):
            raise UnknownNameError(f"study of a note in paper {name}", about, document["studies"])
        if not about or not overrides:
            notes.setdefault(about, []).append(note["text"])
    if not studies:
        raise ConfigurationError(f"paper {name}: it names no study")
    return Paper(
        name,
        document["title"],
        document["citation"],
        document["summary"],
        studies,
        {about: tuple(texts) for about, texts in notes.items()},
    )


_TEXTS = ("title", "citation", "summary")


def _read(path: Path) -> dict[str, Any]:
    """Read and check a paper's file."""
    owner = f"paper {path.stem}"
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{owner}: it is no TOML file: {error}") from None
    known = (*_TEXTS, "studies", "notes")
    if unknown := set(document) - set(known):
        raise UnknownNameError(f"key of {owner}", min(unknown), known)
    for key in _TEXTS:
        if not isinstance(document.get(key), str):
            raise ConfigurationError(f"{owner}: {key} must be a text; got {document.get(key)!r}")
    studies = document.get("studies")
    if not isinstance(studies, list) or not all(isinstance(study, str) for study in studies):
        raise ConfigurationError(f"{owner}: studies must be a list of names; got {studies!r}")
    notes = document.setdefault("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, dict) for note in notes):
        raise ConfigurationError(f"{owner}: notes must be tables, each under [[notes]]; got {notes!r:.100}")
    for note in notes:
        if unknown := set(note) - {"about", "text"}:
            raise UnknownNameError(f"key of [[notes]] in {owner}", min(unknown), ("about", "text"))
        if not all(isinstance(value, str) for value in note.values()) or "text" not in note:
            raise ConfigurationError(f"{owner}: each of [[notes]] must hold a text, and may name about; got {note}")
    return document
