"""Rounds per second of the same runs in process, on Flower's Ray engine, and with the fast engine.

The runs have ten clients, batches of 32, momentum messages and no evaluation. All engines run softmax regression with
7,850 parameters and the mean. The fast engine also runs the settings of studies: images like MNIST's, consecutive
batches, weight decay, two models, five rules, and several runs side by side. All take turns. The figure of a turn is
its median round, so the start does not count.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from rich.table import Table

from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate, simulate_many
from flwr_robust.seeds import numpy_generator
from flwr_robust.studies.flower_run import FlowerRuns
from flwr_robust.studies.runner import run_fast_cell, run_in_process_cell

__all__ = ["measure", "table"]

_TURNS = 5
_ROUNDS = {"fast": 4000, "in process": 400, "ray": 60}
_MODELS = ("softmax", "mlp")
_RULES = ("mean()", "trimmed_mean(f=1)", "faba(f=1)", "centered_clipping(tau=0.3)", "lfighter()")
_STUDY_ROUNDS = 1000
_TOGETHER = 8
_QUICK = 20  # divisor of the number of rounds


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Run the engines in turn, and return their figures; ``quick`` runs few rounds to check that everything works."""
    turns, fewer = (1, _QUICK) if quick else (_TURNS, 1)
    with tempfile.TemporaryDirectory() as folder, FlowerRuns() as flower:
        data = Path(folder) / "random.npz"
        draw = numpy_generator(0, "benchmark")
        np.savez(
            data,
            x_train=draw.standard_normal((6000, 784), dtype=np.float32),
            y_train=draw.permutation(np.arange(6000) % 10),
            x_test=draw.standard_normal((10, 784), dtype=np.float32),
            y_test=np.arange(10),
        )

        images = Path(folder) / "images.npz"
        np.savez(
            images,
            x_train=draw.integers(0, 256, (60_000, 28, 28), dtype=np.uint8),
            y_train=draw.permutation(np.arange(60_000) % 10),
            x_test=draw.integers(0, 256, (10, 28, 28), dtype=np.uint8),
            y_test=np.arange(10),
        )

        def config(engine: str) -> RunConfig:
            rounds = _ROUNDS[engine] // fewer
            return RunConfig(task=str(data), rounds=rounds, evaluate_every=rounds)

        def study(model: str, defence: str, seed: int = 0) -> RunConfig:
            rounds, like = _STUDY_ROUNDS // fewer, {"batching": "consecutive", "weight_decay": 0.01}
            keys = {"task": str(images), "model": model, "defence": defence, "seed": seed, **like}
            return RunConfig.from_mapping({**keys, "rounds": rounds, "evaluate_every": rounds})

        seconds: dict[str, list[float]] = {engine: [] for engine in _ROUNDS}
        alone: dict[str, dict[str, list[float]]] = {model: {rule: [] for rule in _RULES} for model in _MODELS}
        together: dict[str, list[float]] = {model: [] for model in _MODELS}
        for _ in track(range(turns), description="engines, in turn"):
            documents = {
                "fast": run_fast_cell(config("fast").to_mapping()),
                "in process": run_in_process_cell(config("in process").to_mapping()),
                "ray": flower.run(config("ray")),
            }
            for engine, document in documents.items():
                seconds[engine].append(document["median_round_seconds"])
            for model in _MODELS:
                for rule in _RULES:
                    alone[model][rule].append(simulate(study(model, rule))["median_round_seconds"])
                batch = [study(model, _RULES[0], seed) for seed in range(_TOGETHER)]
                _, first = next(simulate_many(batch, _TOGETHER))
                assert isinstance(first, dict)
                together[model].append(first["median_round_seconds"] / _TOGETHER)
    return {
        "what": "seconds per round, 10 clients, 7,850 parameters, mean, one thread per process",
        "turns": turns,
        "seconds_per_round": seconds,
        "median_seconds_per_round": {engine: statistics.median(values) for engine, values in seconds.items()},
        "study_seconds_per_round": alone,
        "runs_together": _TOGETHER,
        "seconds_per_round_of_a_run_together": together,
        "in_process_over_fast": _ratio(seconds["in process"], seconds["fast"]),
        "ray_over_in_process": _ratio(seconds["ray"], seconds["in process"]),
    }


def _ratio(slow: Sequence[float], quick: Sequence[float]) -> dict[str, float]:
    """Return the ratios of two engines turn by turn: median, least and largest."""
    ratios = [a / b for a, b in zip(slow, quick, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def table(document: dict[str, Any]) -> Table:
    """Return the figures as a table."""
    shown = Table(
        title="three engines, 10 clients: the same run with 7,850 parameters, then runs of studies",
        title_justify="left",
    )
    for name in ("engine", "ms per round", "rounds per second"):
        shown.add_column(name, justify="left" if name == "engine" else "right")
    for engine, seconds in document["median_seconds_per_round"].items():
        shown.add_row(engine, f"{1000 * seconds:.2f}", f"{1 / seconds:,.0f}")
    for model, rules in document["study_seconds_per_round"].items():
        rows = {f"fast, {model}, {rule}": values for rule, values in rules.items()}
        rows[f"fast, {model}, {_RULES[0]}, {document['runs_together']} runs together"] = document[
            "seconds_per_round_of_a_run_together"
        ][model]
        for name, values in rows.items():
            middle = statistics.median(values)
            shown.add_row(name, f"{1000 * middle:.2f}", f"{1 / middle:,.0f}")
    captions = []
    for name, slow, quick in (
        ("in_process_over_fast", "in process", "fast"),
        ("ray_over_in_process", "ray", "in process"),
    ):
        ratio = document[name]
        turns = f"turns: {ratio['min']:.0f} to {ratio['max']:.0f}"
        captions.append(f"{quick} is {ratio['median']:.0f} times as fast as {slow} ({turns})")
    shown.caption = "; ".join(captions)
    return shown
