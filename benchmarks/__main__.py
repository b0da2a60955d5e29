"""``python -m benchmarks [NAME ...]``: run benchmarks, print their tables, write their figures."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import engines
from flwr_robust.files import write_atomically

BENCHMARKS = {"engines": engines}
RESULTS = Path(__file__).resolve().parent / "results"


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Which: {', '.join(BENCHMARKS)}; all by default.")] = None,
    results: Annotated[Path, typer.Option(help="Folder for the figures, one JSON per benchmark.")] = RESULTS,
) -> None:
    """Run benchmarks, contestants in turn, and write their figures with the machine they ran on."""
    for name in names or BENCHMARKS:
        if name not in BENCHMARKS:
            typer.secho(f"error: unknown benchmark '{name}'; allowed: {', '.join(BENCHMARKS)}", fg="red", err=True)
            raise typer.Exit(2)
        document = {
            **BENCHMARKS[name].measure(),
            "machine": {"cpus": os.cpu_count(), "processor": _processor(), "system": platform.platform()},
            "versions": {p: importlib.metadata.version(p) for p in ("flwr", "numpy", "ray", "torch")},
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        results.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1).encode()
        write_atomically(results / f"{name}.json", lambda file, text=text: file.write(text))  # type: ignore[misc]
        Console().print(BENCHMARKS[name].table(document))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    typer.run(main)
