"""A worker that times aggregation rules: one process, one line of JSON in, one line of JSON out.

As a script it needs torch, byzfl, byzpy and geom_median, and no part of this project. These packages have a separate
environment, because byzpy requires an old torch. `benchmarks.ours` serves the same commands with this project's
interpreter, so the same code measures both sides.

    {"do": "make", "n": 20, "d": 1000000, "f": 4, "seed": 0}       make the rows, the same numbers in every worker
    {"do": "run", "contestant": "byzfl", "rule": "krum", "f": 4,   time one rule
     "trace": true, "reference": "gram"}

The answer to a run holds its seconds, and those of X.mean(0) and of the reference just before it in the same process.
With "trace" it also holds the peak of extra resident memory, which is the maximum during the call minus the value
before it. On systems without /proc it is null.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["CONTESTANTS", "RADIUS", "serve"]

Call = Callable[[], Any]
Prepare = Callable[[str, Tensor, int], Call | None]
"""(rule, rows, f) -> the function to time, or None if there is no such rule; preparation is not timed."""

RADIUS = 0.5  # of centered clipping, times sqrt(d): half the length of an honest row, so that every row is clipped
_SHORT = 0.02  # the least seconds of a measurement


def _byzfl(rule: str, x: Tensor, f: int) -> Call | None:
    byzfl: Any = importlib.import_module("byzfl")
    rules: dict[str, Callable[[], Callable[[Any], Any]]] = {
        "mean": lambda: byzfl.Average(),
        "median": lambda: byzfl.Median(),
        "trimmed_mean": lambda: byzfl.TrMean(f),
        "meamed": lambda: byzfl.Meamed(f),
        "krum": lambda: byzfl.Krum(f),
        "multi_krum": lambda: byzfl.MultiKrum(f),
        "geometric_median": lambda: byzfl.GeometricMedian(),
        "nnm | krum": lambda: lambda rows: byzfl.Krum(f)(byzfl.NNM(f)(rows)),
        "centered_clipping": lambda: byzfl.CenteredClipping(L=1, tau=RADIUS * x.shape[1] ** 0.5),
        "minimum_diameter": lambda: byzfl.MDA(f),
        "smea": lambda: byzfl.SMEA(f),
        "caf": lambda: byzfl.CAF(f),
    }
    return None if rule not in rules else lambda: rules[rule]()(x)


def _byzfl_numpy(rule: str, x: Tensor, f: int) -> Call | None:
    """Run byzfl on numpy arrays, for which its medians do not use torch.quantile and are often faster."""
    call = _byzfl(rule, x, f)
    if rule not in ("median", "meamed") or call is None:
        return None
    byzfl: Any = importlib.import_module("byzfl")
    rows = x.numpy()
    return lambda: (byzfl.Median() if rule == "median" else byzfl.Meamed(f))(rows)


def _byzpy(rule: str, x: Tensor, f: int) -> Call | None:
    one: Any = importlib.import_module("byzpy.aggregators.coordinate_wise")
    two: Any = importlib.import_module("byzpy.aggregators.geometric_wise")
    three: Any = importlib.import_module("byzpy.aggregators.norm_wise")
    before: Any = importlib.import_module("byzpy.pre_aggregators")
    rows = list(x.unbind(0))
    rules: dict[str, Callable[[], Any]] = {
        "median": lambda: one.CoordinateWiseMedian(),
        "trimmed_mean": lambda: one.CoordinateWiseTrimmedMean(f=f),
        "meamed": lambda: one.MeanOfMedians(f=f),
        "krum": lambda: two.Krum(f=f),
        "multi_krum": lambda: two.MultiKrum(f=f, q=len(rows) - f),
        "geometric_median": lambda: two.GeometricMedian(),
        "centered_clipping": lambda: three.CenteredClipping(c_tau=RADIUS * x.shape[1] ** 0.5, M=1, init="zero"),
        "minimum_diameter": lambda: two.MinimumDiameterAveraging(f=f),
        "smea": lambda: two.SMEA(f=f),
        "caf": lambda: three.CAF(f=f),
    }
    if rule == "nnm | krum":
        return lambda: two.Krum(f=f).aggregate(before.NearestNeighborMixing(f=f).pre_aggregate(rows))
    return None if rule not in rules else lambda: rules[rule]().aggregate(rows)


def _geom_median(rule: str, x: Tensor, f: int) -> Call | None:
    library: Any = importlib.import_module("geom_median.torch")
    rows = list(x.unbind(0))
    return None if rule != "geometric_median" else lambda: library.compute_geometric_median(rows)


CONTESTANTS: dict[str, Prepare] = {
    "byzfl": _byzfl,
    "byzfl, numpy": _byzfl_numpy,
    "byzpy": _byzpy,
    "geom_median": _geom_median,
}


def _rows(n: int, d: int, f: int, seed: int) -> Tensor:
    """Return standard normal rows, the last f of them shifted by 1 in every coordinate."""
    rows = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    rows[n - f :] += 1
    return torch.from_numpy(rows)


def _resident(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), None)


def _traced(call: Call) -> tuple[float, int | None]:
    """Time one call and find its peak of extra resident memory."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory freed earlier must not hide the memory of this call
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS:")
    except (AttributeError, OSError):
        before = None
    seconds = _timed(call)
    peak = _resident("VmHWM:")
    return seconds, None if before is None or peak is None else max(0, peak - before)


def _timed(call: Call) -> float:
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result
    return seconds


def _settled(call: Call) -> float:
    """Return the time of a call; a short one is repeated, and the median returned."""
    times = [_timed(call)]
    while sum(times) < _SHORT and len(times) < 200:
        times.append(_timed(call))
    return statistics.median(times)


def serve(contestants: Mapping[str, Prepare], references: Mapping[str, Callable[[Tensor], Any]] = {}) -> None:
    """Answer commands until the input ends.

    Parameters
    ----------
    contestants : mapping of str to callable
        The contestants by name: ``(rule, rows, f)`` returns the call to time. It also prepares the input of the call,
        which may be called only once.
    references : mapping of str to callable (rows)
        Functions with which a rule can be compared in the same process, in addition to X.mean(0).
    """
    # Libraries print to standard output, so the answers have a separate descriptor.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if limit := int(os.environ.get("BENCHMARK_MEMORY", "0")):
        # A call that needs more memory fails before the machine has none left.
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    x = torch.zeros(1, 1)
    warm: set[tuple[str, str, tuple[int, ...]]] = set()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command["do"] == "hello":
                answer: dict[str, Any] = {"versions": {name: _version(name) for name in command["packages"]}}
            elif command["do"] == "make":
                x = torch.zeros(1, 1)  # free the old rows before the new ones are made
                x = _rows(command["n"], command["d"], command["f"], command["seed"])
                answer = {}
            else:
                answer = _run(command, contestants, references, x, warm)
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {text[:200]}"}
        answers.write(json.dumps(answer) + "\n")


def _run(
    command: Mapping[str, Any],
    contestants: Mapping[str, Prepare],
    references: Mapping[str, Callable[[Tensor], Any]],
    x: Tensor,
    warm: set[tuple[str, str, tuple[int, ...]]],
) -> dict[str, Any]:
    rule, f, prepare = command["rule"], command["f"], contestants[command["contestant"]]
    key = (command["contestant"], rule, tuple(x.shape))
    if key not in warm:
        # Imports, compilation and sorting networks take time once per process, not once per round.
        if (call := prepare(rule, x[:, :512].contiguous(), f)) is None:
            return {"absent": True}
        call()
        warm.add(key)
    mean = statistics.median(_settled(lambda: x.mean(0)) for _ in range(3))
    reference = references[command["reference"]] if command.get("reference") else None
    against = None if reference is None else _settled(lambda: reference(x))
    call = prepare(rule, x, f)
    assert call is not None
    extra = None
    if command.get("trace"):
        seconds, extra = _traced(call)
    else:
        times = [_timed(call)]
        while sum(times) < _SHORT and len(times) < 20:
            if (again := prepare(rule, x, f)) is not None:
                times.append(_timed(again))
        seconds = statistics.median(times)
    return {"seconds": seconds, "mean_seconds": mean, "reference_seconds": against, "extra_bytes": extra}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    serve(CONTESTANTS, {})
