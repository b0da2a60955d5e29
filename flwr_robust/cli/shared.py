"""Code that all verbs share: options, the end of a command, and output.

Every ``--help`` imports the modules of all verbs. So they import large modules only inside functions.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from flwr_robust.errors import ConfigurationError, FlwrRobustError, TamperedError
from flwr_robust.printing import printable

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console
    from rich.style import StyleType
    from rich.text import Text

__all__ = [
    "Data",
    "Json",
    "Overrides",
    "Plugins",
    "Results",
    "Workers",
    "as_text",
    "console",
    "fail",
    "keys_of",
    "load_plugins",
    "print_json",
    "say",
    "told",
]

_WIDTH = 100

Json = Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="A module, or a Python file, that registers components; may be repeated."),
]
Results = Annotated[Path, typer.Option(help="Folder that holds one folder of results per study.")]
Data = Annotated[str, typer.Option(help="Folder of the data sets; else FLWR_ROBUST_DATA, else ./data.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes that run cells; one per CPU by default.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a common key of the study, for example --set rounds=50.")
]


class _Terminated(KeyboardInterrupt):
    """SIGTERM was received; it stops a command as Ctrl-C does."""


def console(*, stderr: bool = False) -> Console:
    """Return a console of at most a hundred columns, also for a pipe.

    It shows every string as it is: markup and emoji codes have no meaning, and `printable` escapes the rest. So no name
    or reason from a client, a file or a log can change what the terminal shows.

    Parameters
    ----------
    stderr : bool
        Whether it writes to standard error, which is for everything but results.
    """
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Text:  # rich calls it for every string that it shows
            return super().render_str(printable(text), **options)

    wide = (sys.stderr if stderr else sys.stdout).isatty()
    width = min(_WIDTH, Console().width) if wide else _WIDTH
    return Plain(width=width, highlight=False, markup=False, emoji=False, stderr=stderr)


def say(text: object, colour: str | None = None) -> None:
    """Print a line to standard error, with `printable` text."""
    typer.secho(printable(text), fg=colour, err=True)


def print_json(document: object) -> None:
    """Print a document as JSON; numbers that are not finite become null.

    Parameters
    ----------
    document : object
        Mappings, sequences, paths, texts, numbers, booleans and None.
    """
    typer.echo(json.dumps(_plain(document), indent=1))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)


def as_text(text: object, style: StyleType = "") -> Text:
    """Return any value as text for a table: `printable`, and folded if too long."""
    from rich.text import Text

    return Text(printable(text), style=style, overflow="fold")


def fail(error: FlwrRobustError) -> NoReturn:
    """End the command with one sentence: with status 1 for tampering, and 2 for wrong input."""
    say(f"error: {error}", "red")
    raise typer.Exit(1 if isinstance(error, TamperedError) else 2) from None


@contextmanager
def told(plugins: Sequence[str] | None = None, *, resumable: bool = False) -> Iterator[None]:
    """Show errors as one sentence, and exit with status 130 (SIGINT) or 143 (SIGTERM) if the command is stopped.

    Parameters
    ----------
    plugins : sequence of str, optional
        Modules or files that register components; they are loaded first.
    resumable : bool
        Whether the same command continues where it was stopped.
    """
    with _sigterm_interrupts():
        try:
            load_plugins(plugins or ())
            yield
        except FlwrRobustError as error:
            fail(error)
        except KeyboardInterrupt as stop:
            kept = "; what is finished is kept, and the same command continues from there" if resumable else ""
            say(f"stopped{kept}")
            raise typer.Exit(128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)) from None


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM raise an exception as SIGINT does; a second signal does not disturb the cleanup."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def load_plugins(names: Sequence[str]) -> None:
    """Load modules or files that register components.

    Parameters
    ----------
    names : sequence of str
        Names of modules, or paths of Python files.

    Raises
    ------
    FlwrRobustError
        If a module or file cannot be loaded.
    """
    if not names:
        return
    from flwr_robust.core.spec import load_plugin

    for name in names:
        load_plugin(name)


def keys_of(data: str, overrides: Sequence[str] | None) -> dict[str, object]:
    """Return the keys of the run config that the options set.

    Parameters
    ----------
    data : str
        The value of --data; empty: not set.
    overrides : sequence of str, optional
        The values of --set, as ``key=value``.
    """
    keys: dict[str, object] = {"data": data} if data else {}
    for text in overrides or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigurationError(f"--set must be key=value; got '{text}'")
        try:
            keys[key] = json.loads(value)
        except ValueError:
            keys[key] = value
    return keys
