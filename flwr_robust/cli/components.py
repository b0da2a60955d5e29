"""The verbs that show the available components: ``list`` and ``describe``."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flwr_robust.cli.shared import Data, Json, Plugins, as_text, console, print_json, told
from flwr_robust.errors import ConfigurationError, check_choice

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["data_sets", "describe_command", "list_command"]

_CLOSE = 4  # suggestions for an unknown name
_MODELS = {
    "char_gru": "a small GRU of 128 units for token numbers",
    "char_lstm": "LEAF's two layers of 256 LSTM units for token numbers",
    "cnn": "two 3x3 convolutions of 16 and 32 channels, then 128 units",
    "dropout_cnn": "small_cnn with dropout before its linear layers",
    "mlp": "two hidden layers of 50 units with ReLU",
    "small_cnn": "cnn with half of all channels and units",
    "softmax": "softmax regression with bias",
}
_TASKS = {
    "cifar10": "CIFAR-10, 60,000 colour images of 10 classes",
    "digits": "1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn",
    "emnist": "EMNIST by class: digits and letters, 62 classes",
    "fashion_mnist": "Fashion-MNIST, 70,000 images of 10 kinds of clothing",
    "heart_disease": "740 patients of four hospitals, with or without heart disease",
    "mnist": "MNIST, 70,000 handwritten digits",
    "shakespeare": "the next character of 1,016 speaking roles in Shakespeare's plays",
}
_PLACES = {  # folders in which torchvision stores the data sets
    "cifar10": ("cifar-10-batches-py",),
    "emnist": ("EMNIST",),
    "fashion_mnist": ("FashionMNIST",),
    "mnist": ("MNIST",),
}


def list_command(
    kind: Annotated[str, typer.Argument()] = "",
    data: Data = "",
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """List the components of a kind, with fields and defaults.

    KIND is rules, preaggregators, attacks, partitions, tasks, models, strategies, studies or papers; without it, the
    number of each kind is shown.

    JSON: one key, the kind, with a list. Components have name, title, condition, signature and fields (name, type,
    required, default, constraint, meaning); tasks have found; studies have cells; papers have studies.
    """
    with told(plugins):
        listings = _listings(data)
        if not kind:
            counts = {name: len(listing()) for name, listing in listings.items() if name != "strategies"}
            if as_json:
                print_json(counts)
                return
            for name, count in counts.items():
                console().print(as_text(f"{name:<16}", "bold") + f"{count:>4}   flwr-robust list {name}")
            console().print(as_text(f"{'strategies':<16}", "bold") + "       flwr-robust list strategies")
            return
        check_choice("list", "kind", kind, listings)
        found = listings[kind]()
        if as_json:
            print_json({kind: found})
        else:
            _print_list(kind, found)


def _listings(data: str) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """Return the functions that list each kind."""
    from flwr_robust.cli.facts import KINDS, registries, summary

    def components(kind: str) -> Callable[[], list[dict[str, Any]]]:
        return lambda: [summary(cls) for cls in registries()[kind].members().values()]

    return {
        **{kind: components(kind) for kind in KINDS},
        "tasks": lambda: _tasks(data),
        "models": _models,
        "strategies": _strategies,
        "studies": _studies,
        "papers": _papers,
    }


def data_sets(data: str = "") -> tuple[Path, dict[str, bool]]:
    """Return the folder of the data sets, and which tasks are found there or need no download.

    Parameters
    ----------
    data : str
        The folder; the default folder when empty.
    """
    from flwr_robust.tasks.data import ARCHIVES, TASKS, data_folder

    folder = data_folder(data or None)
    return folder, {
        name: name == "digits"
        or any(
            (folder / place).exists()
            for place in ([ARCHIVES[name]] if name in ARCHIVES else [f"{name}.npz", *_PLACES.get(name, ())])
        )
        for name in sorted(TASKS)
    }


def _tasks(data: str) -> list[dict[str, Any]]:
    from flwr_robust.tasks.data import TASKS

    folder, found = data_sets(data)
    return [
        {"name": name, "title": _TASKS.get(name, _first_line(TASKS[name])), "found": there, "folder": folder}
        for name, there in found.items()
    ]


def _models() -> list[dict[str, Any]]:
    from flwr_robust.tasks.models import MODELS

    return [{"name": name, "title": _MODELS.get(name, _first_line(make))} for name, make in sorted(MODELS.items())]


def _first_line(value: object) -> str:
    return (value.__doc__ or "").strip().partition("\n")[0]


def _strategies() -> list[dict[str, Any]]:
    from flwr_robust import flower

    classes = {name: getattr(flower, name) for name in flower.__all__}
    return [
        {"name": name, "title": _first_line(value)}
        for name, value in sorted(classes.items())
        if isinstance(value, type) and issubclass(value, flower.RobustStrategy | flower.Guarded)
    ]


def _studies() -> list[dict[str, Any]]:
    from flwr_robust.studies.study import STUDIES, load_study

    studies = [load_study(path.stem) for path in sorted(STUDIES.glob("*.toml"))]
    return [{"name": study.name, "title": study.title, "cells": len(study.cells)} for study in studies]


def _papers() -> list[dict[str, Any]]:
    from flwr_robust.studies.paper import PAPERS

    found = {path.stem: tomllib.loads(path.read_text()) for path in sorted(PAPERS.glob("*.toml"))}
    return [{"name": name, "title": paper["title"], "studies": paper["studies"]} for name, paper in found.items()]


def _print_list(kind: str, found: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table(show_lines=False, pad_edge=False, box=None, padding=(0, 2, 0, 0), expand=True)
    if found and "signature" in found[0]:
        table.add_column(kind, ratio=5, overflow="fold")
        table.add_column("knows" if kind == "attacks" else "needs", ratio=3, overflow="fold")
        table.add_column("what it is", ratio=6, overflow="fold")
        for entry in found:
            short = entry["condition"].partition(". ")[0].partition("; ")[0].removesuffix(".")
            table.add_row(as_text(entry["signature"]), as_text(short), as_text(_what(entry["title"])))
    else:
        extra = next((key for key in ("found", "cells", "studies") if found and key in found[0]), None)
        table.add_column(kind, no_wrap=True)
        table.add_column("what it is", ratio=1, overflow="fold")
        if extra:
            wide = extra == "studies"
            table.add_column(
                extra, overflow="fold", ratio=1 if wide else None, justify="right" if extra == "cells" else "left"
            )
        for entry in found:
            table.add_row(as_text(entry["name"]), as_text(entry["title"]), *([_cell(entry[extra])] if extra else []))
    console().print(table)
    if kind == "tasks" and found:
        where = f"data sets are looked for in {found[0]['folder']}; --data or FLWR_ROBUST_DATA name another"
        console().print(where)
    if found and "signature" in found[0]:
        console().print("all of one: flwr-robust describe NAME", style="dim")


def _what(title: str) -> str:
    """Return a title without the name at its beginning."""
    name, colon, text = title.partition(": ")
    return (text if colon and len(name) < len("Nearest-neighbour mixing (NNM),") else title).removesuffix(".")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)


def describe_command(
    name: Annotated[str, typer.Argument(help="A rule, pre-aggregator, attack, fault or partition (see `list`).")],
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show everything about a component: formula, condition, fields, least n for each f, limits and examples.

    JSON: components, a list of one component, or of several if kinds share a name. Each has name, kind, family, title,
    formula, text, condition, signature and fields. Each also has least_n (by f), lacks (case, property, reason),
    module, and examples (text, python, run_config).
    """
    with told(plugins):
        from flwr_robust.cli.facts import KINDS, describe, registries

        members = {kind: registry.members() for kind, registry in registries().items()}
        wanted = name.partition("(")[0].strip()
        found = [describe(of[wanted], KINDS[kind]) for kind, of in members.items() if wanted in of]
        if not found:
            raise ConfigurationError(_unknown(wanted, sorted({other for of in members.values() for other in of})))
        if as_json:
            print_json({"components": found})
            return
        for document in found:
            _print_description(console(), document)


def _unknown(name: str, names: Sequence[str]) -> str:
    plain = name.lower().replace("-", "_").replace(" ", "_")
    within = [other for other in names if len(plain) > 2 and (plain in other or other.replace("_", "") == plain)]
    close = list(dict.fromkeys([*difflib.get_close_matches(plain, names, n=_CLOSE), *within]))[:_CLOSE]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"describe: there is no component '{name}'; {hint}`flwr-robust list` shows which there are"


def _print_description(out: Console, document: Mapping[str, Any]) -> None:
    from rich.padding import Padding
    from rich.table import Table

    def heading(text: str) -> None:
        out.print()
        out.print(text, style="bold")

    family = f" ({document['family']})" if document["family"] else ""
    out.print(f"{document['name']}, {document['kind']}{family}", style="bold")
    out.print(as_text(document["title"]))
    if document["formula"]:
        out.print()
        for line in document["formula"].splitlines():
            out.print(Padding(as_text(line), (0, 0, 0, 4), expand=False))
    for text in document["text"]:
        out.print()
        for line in text.splitlines():
            out.print(as_text(line))
    if document["fields"]:
        heading("fields")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), show_header=False)
        for _ in range(2):
            table.add_column(no_wrap=True)
        table.add_column(overflow="fold", ratio=1)
        for field in document["fields"]:
            default = "required" if field["required"] else f"= {field['default']!r}"
            allowed = field["constraint"] or field["type"]
            table.add_row(as_text(field["name"]), as_text(default), as_text(f"{allowed}. {field['meaning']}".strip()))
        out.print(table)
    if document["least_n"]:
        heading("least number of clients")
        pairs = [f"n = {n}" if f == "" else f"f = {f}: n = {n}" for f, n in document["least_n"].items()]
        out.print(f"  {';  '.join(pairs)}")
    if document["lacks"]:
        heading("known not to hold, of what the tests ask of every rule")
        for lack in document["lacks"]:
            out.print(
                Padding(as_text(f"{lack['case']}: {lack['property']}: {lack['reason']}"), (0, 0, 0, 2), expand=False)
            )
    examples = document["examples"]
    for title, key in (("in Python", "python"), ("in a run config", "run_config")):
        if not examples[key]:
            continue
        heading(title)
        for line in examples[key].splitlines():
            out.print(Padding(as_text(line), (0, 0, 0, 4), expand=False))
    out.print()
    out.print(f"file: {document['module']}", style="dim")
