"""Docstrings are plain: at most 25 words a sentence, and none of the phrases that puzzle a reader."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import ROOT

PACKAGE = ROOT / "flwr_robust"
MOST_WORDS = 25
BANNED = (
    "mend it",
    "gone on from",
    "to be gone on",
    "does with fewer",
    "what came of it",
    "whoever",
    "is not its own word",
)
ROOMS = sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")})

FORMULA = re.compile(r"=|<-|\|\||^\s*(>>>|\.\.\.)")
DIRECTIVE = re.compile(r"^\s*(\.\. |:[a-z-]+:)")
UNDERLINE = re.compile(r"^\s*[-=~]{3,}\s*$")
ITEM = re.compile(r"^\s*([-*]|\d+\.|\[\d+\]) ")
FIELD = re.compile(r"^[\w*, ]+ : \S")
SENTENCE_END = re.compile(r"(?<=[.!?:;])[\"')]*\s+")


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of a module and of everything defined in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "module"), text


def paragraphs(text: str) -> Iterator[str]:
    """Yield the prose of a docstring: no formulas, examples, directives, headings or field names."""
    held: list[str] = []
    indentation = 0
    for line in [*text.splitlines(), ""]:
        deep = len(line) - len(line.lstrip())
        no_prose = FORMULA.search(line) or DIRECTIVE.match(line) or UNDERLINE.match(line) or FIELD.match(line)
        if not line.strip() or no_prose or ITEM.match(line) or deep != indentation:
            if UNDERLINE.match(line) and held:
                held.pop()  # the heading that it underlines
            if held:
                yield " ".join(held)
            held = []
        if line.strip() and not no_prose:
            held.append(" ".join(ITEM.sub("", line).split()))
            indentation = deep + (ITEM.match(line).end() - deep if ITEM.match(line) else 0)


def faults(text: str) -> list[str]:
    """Return each sentence that is too long and each banned phrase of a docstring."""
    found = []
    for paragraph in paragraphs(text):
        for sentence in SENTENCE_END.split(paragraph):
            words = len(sentence.split())
            if words > MOST_WORDS:
                found.append(f"{words} words: {sentence}")
            found += [f"{phrase!r}: {sentence}" for phrase in BANNED if phrase in sentence.lower()]
    return found


def files_of(room: str) -> list[Path]:
    """Return the modules of a room; a loose module is a room of its own."""
    place = PACKAGE / room
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_are_plain(room):
    found = [
        f"{path.relative_to(ROOT)}: {name}: {fault}"
        for path in files_of(room)
        for name, text in docstrings(path.read_text(encoding="utf-8"))
        for fault in faults(text)
    ]
    assert not found, "\n".join(found)


def words(count: int) -> str:
    """Return a sentence of so many words."""
    return " ".join(["word"] * count) + "."


def test_a_sentence_of_25_words_passes_and_one_of_26_is_found():
    assert faults(words(25)) == []
    assert faults(f"Short.\n\n{words(26)}") == [f"26 words: {words(26)}"]


@pytest.mark.parametrize(
    "long",
    [
        "Line one\n" + words(25),
        "f : int\n    " + words(26),
        "- " + words(26),
        "- " + words(13)[:-1] + "\n  " + words(13),
        "Notes\n-----\n" + words(26),
        "Value:\n\n    w = 1\n\n" + words(26),
    ],
)
def test_a_long_sentence_is_found_in_paragraphs_fields_and_lists(long):
    assert len(faults(long)) == 1


@pytest.mark.parametrize(
    "formula",
    [
        "    w = " + words(40),
        "    w <- " + words(40),
        "    || " + words(40),
        ">>> " + words(40),
        ".. note " + words(40),
        words(20)[:-1] + "\n\n" + words(20),
        words(20)[:-1] + "\n\n- " + words(20)[:-1] + "\n- " + words(20),
        words(20) + " " + words(20),
    ],
)
def test_formulas_examples_and_separate_sentences_are_not_counted(formula):
    assert faults(formula) == []


@pytest.mark.parametrize("phrase", BANNED)
def test_banned_phrases_are_found(phrase):
    assert len(faults(f"Then {phrase.capitalize()} now.")) >= 1


def test_docstrings_of_modules_classes_functions_and_methods_are_read():
    source = '"M."\nclass A:\n    "C."\n    def f(self):\n        "F."\n    async def g(self):\n        "G."\n'
    assert sorted(docstrings(source)) == [("A", "C."), ("f", "F."), ("g", "G."), ("module", "M.")]
