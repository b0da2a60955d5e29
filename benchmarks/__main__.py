"""``python -m benchmarks [NAME ...]``: run benchmarks, print their tables, write their figures."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import admission, byzfl_grid, engines, rules
from flwr_robust.files import write_atomically

BENCHMARKS: dict[str, ModuleType] = {"engines": engines, "rules": rules, "admission": admission, "byzfl": byzfl_grid}
ON_REQUEST = ("byzfl",)  # needs ByzFL and MNIST, and takes a quarter of an hour
RESULTS = Path(__file__).resolve().parent / "results"


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Which: {', '.join(BENCHMARKS)}; all but byzfl by default.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder for the figures, one JSON per benchmark.")] = RESULTS,
    peers: Annotated[Path | None, typer.Option(help="rules: Python that has byzfl, byzpy and geom_median.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="rules: numbers of threads; 1 and 2 by default.")] = None,
    sizes: Annotated[list[str] | None, typer.Option(help="rules: sizes such as 20x1000000.")] = None,
    only: Annotated[list[str] | None, typer.Option("--rules", help="rules: which rules; all by default.")] = None,
    repeats: Annotated[int, typer.Option(help="rules: rounds.", min=1)] = 5,
    limit: Annotated[float, typer.Option(help="rules: seconds after which a slow call is not repeated.")] = 20.0,
    quick: Annotated[bool, typer.Option(help="Small sizes, few rounds, one thread: into NAME-quick.json.")] = False,
) -> None:
    """Run benchmarks with contestants in turn, and write their figures with the machine.

    Options that take several values are repeated: --threads 1 --threads 2.
    """
    for name in names or BENCHMARKS:
        if name not in BENCHMARKS:
            _refuse("benchmark", name, list(BENCHMARKS))
    for rule in only or []:
        if rule not in rules.RULES:
            _refuse("rule", rule, list(rules.RULES))
    chosen = [_size(text) for text in sizes or []] or list(rules.QUICK_SIZES if quick else rules.SIZES)
    options: dict[str, Any] = {
        "peers": peers,
        "threads": threads or ([1] if quick else [1, 2]),
        "sizes": chosen,
        "rules": only or list(rules.RULES),
        "repeats": repeats,
        "limit": limit,
    }
    for name in names or [name for name in BENCHMARKS if name not in ON_REQUEST]:
        module = BENCHMARKS[name]
        document = {
            **module.measure(
                **(options if module is rules else {"quick": quick} if module in (engines, byzfl_grid) else {})
            ),
            "machine": {"cpus": os.cpu_count(), "processor": _processor(), "system": platform.platform()},
            "versions": {p: importlib.metadata.version(p) for p in ("flwr", "numpy", "ray", "torch")},
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        results.mkdir(parents=True, exist_ok=True)
        stem = f"{name}-quick" if quick and module in (rules, engines, byzfl_grid) else name
        _write(results / f"{stem}.json", json.dumps(document, indent=1).encode())
        if module is rules:
            _write(results / f"{stem}.md", rules.markdown(document).encode())
            write_atomically(results / f"{stem}.png", rules.plot(document))
        if module is byzfl_grid:
            _write(results / f"{stem}.md", byzfl_grid.markdown(document).encode())
        # A file has no width; the tables are wider than its default of 80 columns.
        Console(width=None if sys.stdout.isatty() else 160).print(module.table(document))


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def _refuse(what: str, found: str, allowed: list[str]) -> None:
    typer.secho(f"error: unknown {what} '{found}'; allowed: {', '.join(allowed)}", fg="red", err=True)
    raise typer.Exit(2)


def _size(text: str) -> tuple[int, int]:
    n, _, d = text.replace("_", "").partition("x")
    if not (n.isdecimal() and d.isdecimal() and int(n) >= 5 and int(d) >= 1):
        typer.secho(f"error: a size is n x d with n >= 5, such as 20x1000000; got '{text}'", fg="red", err=True)
        raise typer.Exit(2)
    return int(n), int(d)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    typer.run(main)
