"""One grid by ByzFL's benchmark and by ours, run by run in turn: wall time, accuracies, and what each says.

The grid is cut out of the example in ByzFL's documentation. That has MNIST, ten honest clients, distributed SGD with
momentum 0.9, batches of 25, learning rate 0.1 and weight decay 1e-4. Clipping and NNM stand before the trimmed mean or
the geometric median. Here are f = 2 and 4, gamma = 0.66 and 0, and four attacks, the example's three among them: 32
runs. Three things are smaller, for both alike. The model is softmax regression instead of a convolutional network, the
steps are 25 instead of 800, and MNIST is its first 6,000 training and 1,000 test images. ByzFL finds models by name in
one of its modules, where the model is entered.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from rich.table import Table
from torch import nn

from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate
from flwr_robust.tasks import Task, load_task

__all__ = ["markdown", "measure", "normalised_mnist", "table"]

_HONEST, _STEPS, _QUICK_STEPS = 10, 25, 2
_IMAGES = {"train": 6_000, "t10k": 1_000}
_FACES = (2, 4)
_GAMMAS = (0.66, 0.0)
# ByzFL's name and fields, and our text for the same definition.
_RULES = {
    "TrMean": ({}, "clip(c=2.0) | nnm(f={f}) | trimmed_mean(f={f})"),
    "GeometricMedian": (
        {"nu": 0.1, "T": 3},
        "clip(c=2.0) | nnm(f={f}) | geometric_median(f={f}, iterations=3, start='zero')",
    ),
}
_ATTACKS = {
    "SignFlipping": ({}, "ipm(epsilon=1.0)"),
    "ALittleIsEnough": ({"tau": 1.5}, "alie(z=1.5)"),
    "Optimal_InnerProductManipulation": ({}, "optimised(base='ipm(epsilon=1.0)', budget=20)"),
    "Optimal_ALittleIsEnough": ({}, "optimised(base='alie()', budget=20)"),
}
_HERE = "benchmarks.byzfl_grid"
_DIFFERENCES = (
    "Times are wall times of one run inside a process that has imported everything, on one thread. ByzFL reads the "
    "data set in every run; we read it once per process.",
    "Seeds draw other initial models, batches and splits. So single accuracies differ; both are one seed.",
    "ByzFL's momentum begins at a tenth of the first gradient, ours at the first gradient.",
    "ByzFL's search for the strength of an attack begins at 0 and goes up in steps of 10; ours is in units of the "
    "honest clients' spread. Both try 20.",
    "ByzFL's ALIE adds z standard deviations to the honest mean, ours subtracts them as the paper does. So they are "
    "two attacks, and their accuracies differ most at gamma = 0.",
    "ByzFL smooths the geometric median by nu = 0.1 in the units of the gradients, we by 1e-6 of their spread.",
)


class _SoftmaxMnist(nn.Module):
    """Softmax regression as ByzFL has its models: log-probabilities, for its NLLLoss."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities (b, 10) of images (b, 1, 28, 28)."""
        return torch.log_softmax(self.linear(x.view(-1, 784)), dim=1)


def _first_images(data: str, folder: Path) -> None:
    """Write a folder of MNIST that holds the first images of each part, in MNIST's own format."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in _IMAGES.items():
        for kind, head, size in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            whole = (Path(data) / "MNIST" / "raw" / f"{part}-{kind}-ubyte").read_bytes()
            start = whole[:4] + count.to_bytes(4, "big") + whole[8:head]
            (raw / f"{part}-{kind}-ubyte").write_bytes(start + whole[head : head + count * size])


def normalised_mnist(folder: Path) -> Task:
    """Return MNIST with the mean and the standard deviation that ByzFL gives it."""
    plain = load_task("mnist", folder)
    scale = float(plain.x_train.max())
    normal = [((x / scale - 0.1307) / 0.3081).float() for x in (plain.x_train, plain.x_test)]
    return Task("normalised_mnist", normal[0], plain.y_train, normal[1], plain.y_test, plain.classes)


def _cells() -> Iterator[dict[str, Any]]:
    for gamma, f, rule, attack in itertools.product(_GAMMAS, _FACES, _RULES, _ATTACKS):
        yield {"rule": rule, "attack": attack, "f": f, "gamma": gamma}


def _theirs(cell: Mapping[str, Any], steps: int, data: str, results: str) -> dict[str, Any]:
    """Return ByzFL's config.json of a cell."""
    rule, attack = cell["rule"], cell["attack"]
    return {
        "benchmark_config": {
            "training_algorithm": {"name": "DSGD", "parameters": {}},
            "nb_steps": steps,
            "device": "cpu",
            "training_seed": 0,
            "nb_training_seeds": 1,
            "nb_honest_clients": _HONEST,
            "f": cell["f"],
            "size_train_set": 1.0,
            "data_distribution_seed": 0,
            "nb_data_distribution_seeds": 1,
            "data_distribution": [{"name": "gamma_similarity_niid", "distribution_parameter": cell["gamma"]}],
        },
        "model": {
            "name": "softmax_mnist",
            "dataset_name": "mnist",
            "nb_labels": 10,
            "loss": "NLLLoss",
            "learning_rate": 0.1,
            "learning_rate_decay": 1.0,
            "milestones": [],
        },
        "aggregator": [{"name": rule, "parameters": dict(_RULES.get(rule, ({}, ""))[0])}],
        "pre_aggregators": [{"name": "Clipping", "parameters": {}}, {"name": "NNM", "parameters": {}}],
        "honest_clients": {"momentum": 0.9, "weight_decay": 0.0001, "batch_size": 25},
        "attack": [{"name": attack, "parameters": dict(_ATTACKS.get(attack, ({}, ""))[0])}],
        "evaluation_and_results": {
            "evaluation_delta": steps,
            "batch_size_evaluation": 128,
            "evaluate_on_test": True,
            "store_per_client_metrics": False,
            "store_models": False,
            "data_folder": data,
            "results_directory": results,
        },
    }


def _ours(cell: Mapping[str, Any], steps: int, data: str) -> dict[str, Any]:
    """Return our run config of a cell."""
    f = cell["f"]
    return {
        "task": f"{_HERE}:normalised_mnist",
        "data": data,
        "model": "softmax",
        "partition": f"gamma_similarity(gamma={cell['gamma']}, idle={f})",
        "clients": _HONEST + f,
        "attackers": f,
        "attack": _ATTACKS[cell["attack"]][1] if cell["attack"] in _ATTACKS else cell["attack"],
        "knowledge": "defence",
        "message": "momentum",
        "alpha": 0.1,
        "server-learning-rate": 0.1,
        "weight-decay": 0.0001,
        "batch-size": 25,
        "rounds": steps,
        "evaluate-every": steps,
        "defence": (_RULES[cell["rule"]][1] if cell["rule"] in _RULES else cell["rule"]).format(f=f),
    }


def _run_theirs(cell: Mapping[str, Any], steps: int, data: str) -> dict[str, float]:
    """Run a cell by the function that ByzFL's benchmark calls for each of its runs."""
    benchmark: Any = importlib.import_module("byzfl.benchmark.benchmark")
    train: Any = importlib.import_module("byzfl.benchmark.train")
    with tempfile.TemporaryDirectory() as folder:
        settings = benchmark.ensure_optional_config_parameters(_theirs(cell, steps, data, folder))
        settings = benchmark.generate_all_combinations(settings, ["pre_aggregators", "milestones"])
        settings = benchmark.set_tolerated_f_equal_to_real_f(benchmark.ensure_key_parameters(settings))
        settings = benchmark.compute_number_of_workers(benchmark.set_declared_as_aggregation_parameter(settings))
        (only,) = benchmark.delegate_data_distribution_seeds(benchmark.delegate_training_seeds(settings))
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            train.start_training(only)
        seconds = time.perf_counter() - started
        (file,) = Path(folder).rglob("test_accuracy_*.txt")
        return {"seconds": seconds, "accuracy": float(np.atleast_1d(np.loadtxt(file, delimiter=","))[-1])}


def _run_ours(cell: Mapping[str, Any], steps: int, data: str) -> dict[str, float]:
    """Run a cell by the fast engine."""
    config = RunConfig.from_mapping(_ours(cell, steps, data))
    started = time.perf_counter()
    document = simulate(config)
    return {"seconds": time.perf_counter() - started, "accuracy": document["curve"][-1]["accuracy"]}


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Run the grid by both in turn, and return times, accuracies, and what each prints; ``quick`` takes two steps."""
    models: Any = importlib.import_module("byzfl.fed_framework.models")
    models.softmax_mnist = _SoftmaxMnist
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _first_images(os.environ.get("FLWR_ROBUST_DATA", "data"), Path(folder))
        return _measured(_QUICK_STEPS if quick else _STEPS, folder)


def _measured(steps: int, data: str) -> dict[str, Any]:
    """Run all cells on the data of a folder."""
    cells = list(_cells())
    for warm in (_run_theirs, _run_ours):  # what the first run alone pays: compilation, caches of files
        warm(cells[0], 1, data)
    found = []
    for turn, cell in enumerate(track(cells, description="ByzFL's grid, in turn")):
        runs = {"byzfl": _run_theirs, "flwr-robust": _run_ours}
        names = list(runs) if turn % 2 else list(runs)[::-1]
        figures = {name: runs[name](cell, steps, data) for name in names}
        found.append({**cell, **{name: figures[name] for name in runs}})
    ratios = [cell["byzfl"]["seconds"] / cell["flwr-robust"]["seconds"] for cell in found]
    return {
        "what": f"{len(found)} runs of {steps} steps by ByzFL's benchmark and by the fast engine, in turn, one thread",
        "load": os.getloadavg()[0],
        "steps": steps,
        "byzfl": importlib.metadata.version("byzfl"),
        "cells": found,
        "seconds": {name: sum(cell[name]["seconds"] for cell in found) for name in ("byzfl", "flwr-robust")},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "says": _says(data),
        "differences": list(_DIFFERENCES),
    }


# -- what each says ----------------------------------------------------------------------------------

_CALL = f"""
from byzfl.benchmark import run_benchmark
from byzfl.fed_framework import models

from {_HERE} import _SoftmaxMnist

models.softmax_mnist = _SoftmaxMnist
if __name__ == "__main__":
    run_benchmark(1)
"""


def _says(data: str) -> dict[str, dict[str, Any]]:
    """Return what each prints, and its exit status, for a grid run again and for two mistakes."""
    plain = {"rule": "TrMean", "attack": "SignFlipping", "f": 2, "gamma": 0.66}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tried = {
            "a finished run, started again": (plain, 2),
            "an attack that does not exist": ({**plain, "attack": "SignFliping"}, 1),
            "as many attackers as honest clients": ({**plain, "f": 10}, 1),
        }
        for name, (cell, times) in tried.items():
            place = Path(folder) / str(len(found))
            place.mkdir()
            theirs = json.dumps(_theirs(cell, 1, data, str(place / "results")))
            (place / "config.json").write_text(theirs)
            (place / "run.py").write_text(_CALL)
            (place / "study.toml").write_text(_study(_ours(cell, 1, data)))
            command = ["-m", "experiments", "run", str(place / "study.toml"), "--engine", "fast", "--data", data]
            for _ in range(times):
                found[name] = {
                    "byzfl": _last(["run.py"], place),
                    "flwr-robust": _last([*command, "--results", str(place / "ours")], Path.cwd()),
                }
    return found


def _study(keys: Mapping[str, Any]) -> str:
    """Return a study of one cell with these keys."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items() if key not in ("defence", "data")]
    return "\n".join(
        ['title = "one run"', "[config]", *lines, "[axes]", f"defence = [{json.dumps(keys['defence'])}]", ""]
    )


def _last(command: list[str], place: Path) -> dict[str, Any]:
    """Run Python, and return its exit status, how many lines it printed, and the last of them."""
    places = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    ended = subprocess.run(
        [sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    lines = [line.strip("│ ") for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
    told = [line for line in lines if not set(line) & set("─━")]  # neither borders nor bars
    return {"status": ended.returncode, "lines": len(lines), "last": told[-1] if told else ""}


# -- tables --------------------------------------------------------------------------------------------


def _worst(document: Mapping[str, Any]) -> Iterator[tuple[str, int, float, dict[str, float]]]:
    """Yield rule, f, gamma, and each one's least accuracy over the attacks, in percent."""
    for rule, f, gamma in itertools.product(_RULES, _FACES, _GAMMAS):
        here = [c for c in document["cells"] if (c["rule"], c["f"], c["gamma"]) == (rule, f, gamma)]
        yield rule, f, gamma, {n: 100 * min(c[n]["accuracy"] for c in here) for n in ("byzfl", "flwr-robust")}


def table(document: dict[str, Any]) -> Table:
    """Return the least accuracies over the attacks, and the times, as a table."""
    seconds, ratio = document["seconds"], document["ratio"]
    shown = Table(title=f"least test accuracy over four attacks, {document['steps']} steps, %", title_justify="left")
    for name in ("rule", "f", "gamma", "byzfl", "flwr-robust"):
        shown.add_column(name, justify="left" if name == "rule" else "right")
    for rule, f, gamma, least in _worst(document):
        shown.add_row(rule, str(f), f"{gamma:g}", *(f"{least[name]:.1f}" for name in ("byzfl", "flwr-robust")))
    shown.caption = (
        f"{len(document['cells'])} runs: ByzFL {seconds['byzfl']:.0f} s, flwr-robust {seconds['flwr-robust']:.0f} s; "
        f"run by run a factor of {ratio['median']:.1f} (from {ratio['min']:.1f} to {ratio['max']:.1f})"
    )
    return shown


def markdown(document: dict[str, Any]) -> str:
    """Return the page of the results."""
    seconds, ratio = document["seconds"], document["ratio"]
    names = ("byzfl", "flwr-robust")
    lines = [
        "# ByzFL's benchmark and ours on one grid",
        "",
        f"{document['what']}. ByzFL {document['byzfl']}. `python -m benchmarks byzfl` writes this page; it needs byzfl "
        "and MNIST.",
        "",
        f"ByzFL took {seconds['byzfl']:.0f} s in all, flwr-robust {seconds['flwr-robust']:.0f} s. Run by run the "
        f"factor is {ratio['median']:.1f} in the median, from {ratio['min']:.1f} to {ratio['max']:.1f}. The machine "
        f"was shared with other work (load {document['load']:.0f} on {document['machine']['cpus']} CPUs). So the "
        "seconds are too large; both took turns, so the factor is fair.",
        "",
        "## Least accuracy over the four attacks, %",
        "",
        "| rule | f | gamma | ByzFL | flwr-robust |",
        "|---|---:|---:|---:|---:|",
        *(f"| {r} | {f} | {g:g} | {a['byzfl']:.1f} | {a['flwr-robust']:.1f} |" for r, f, g, a in _worst(document)),
        "",
        "## All runs: accuracy in %, and seconds",
        "",
        "| rule | attack | f | gamma | ByzFL | flwr-robust | ByzFL, s | flwr-robust, s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {c['rule']} | {c['attack']} | {c['f']} | {c['gamma']:g} | "
            + " | ".join(f"{100 * c[name]['accuracy']:.1f}" for name in names)
            + " | "
            + " | ".join(f"{c[name]['seconds']:.2f}" for name in names)
            + " |"
            for c in document["cells"]
        ),
        "",
        "## What each says",
        "",
        "| tried | | exit status | lines | the last line |",
        "|---|---|---:|---:|---|",
    ]
    for tried, said in document["says"].items():
        for name in names:
            last = said[name]["last"].replace("|", "\\|")
            lines.append(f"| {tried} | {name} | {said[name]['status']} | {said[name]['lines']} | `{last}` |")
    lines += ["", "## What differs", "", *(f"- {sentence}" for sentence in document["differences"]), ""]
    return "\n".join(lines)
