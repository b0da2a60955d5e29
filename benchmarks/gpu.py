"""Rules on a GPU, compared with the device's own time to copy the rows and to multiply them.

It needs only torch, numpy and this project's package: ``python -m benchmarks.gpu`` in a checkout. For every size it
prints the milliseconds of a copy of the rows, X.mean(0), and X X^T in the rows' own type. It also prints those of our
centred float64 Gram matrix with exact distances, and of each rule. Coordinate rules are shown as a multiple of the copy
(the aim is 3). Gram rules are shown as a multiple of copy and X X^T together (the aim is 1.5). Contestants take turns,
and medians are shown. The figures go to benchmarks/results/gpu.json, with the device's name. ``--device cpu`` tests the
script without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flwr_robust import Rows, aggregate
from flwr_robust.files import write_atomically

__all__ = ["COORDINATE_RULES", "GRAM_RULES", "main", "measure"]

SIZES = ((20, 1_000_000), (100, 1_000_000), (20, 11_700_000), (1000, 10_000))
COORDINATE_RULES = ("median()", "trimmed_mean(f={f})", "meamed(f={f})", "phocas(f={f})")
GRAM_RULES = (
    "krum(f={f})",
    "multi_krum(f={f})",
    "geometric_median()",
    "nnm(f={f}) | krum(f={f})",
    "faba(f={f})",
    "caf(f={f})",
)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(n: int, d: int, device: torch.device, rounds: int) -> dict[str, float]:
    """Return the median seconds of every contestant at one size.

    Parameters
    ----------
    n, d : int
        Rows and coordinates; float32, standard normal, the last n // 5 shifted by 1.
    device : torch.device
        The device of the rows.
    rounds : int
        How often each contestant is called, after one warm-up call.
    """
    x = torch.randn(n, d, generator=torch.Generator(device).manual_seed(0), device=device)
    f = n // 5
    x[n - f :] += 1

    def rule(text: str) -> Callable[[], Tensor]:
        return lambda: aggregate(x, text).value

    contestants: dict[str, Callable[[], object]] = {
        "copy": x.clone,
        "X.mean(0)": lambda: x.mean(0),
        "X X^T": lambda: x @ x.T,
        "our Gram": lambda: Rows.from_tensor(x).squared_distances,
        **{text: rule(text.format(f=f)) for text in (*COORDINATE_RULES, *GRAM_RULES)},
    }
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, call in contestants.items():
            seconds = _seconds(call, device)
            if turn:
                found[name].append(seconds)
    return {name: statistics.median(all_seconds) for name, all_seconds in found.items()}


def _ratio(name: str, seconds: dict[str, float]) -> str:
    if name in COORDINATE_RULES:
        return f"{seconds[name] / seconds['copy']:8.1f} x copy"
    if name in GRAM_RULES or name == "our Gram":
        return f"{seconds[name] / (seconds['copy'] + seconds['X X^T']):8.1f} x (copy + X X^T)"
    return ""


def main(arguments: list[str] | None = None) -> None:
    """Measure all sizes, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description="Time the rules on a GPU beside its own copy and matrix product.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each contestant per size")
    parser.add_argument("--sizes", nargs="+", default=[f"{n}x{d}" for n, d in SIZES], help="such as 20x1000000")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "error: there is no GPU that torch can use; try --device cpu to see the script at work\n")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    figures = []
    for text in given.sizes:
        n, d = (int(part) for part in text.split("x"))
        seconds = measure(n, d, device, given.rounds)
        figures.append({"n": n, "d": d, "f": n // 5, "seconds": seconds})
        sys.stdout.write(f"\n{n} x {d}, f = {n // 5}, float32, {name}\n")
        for contestant, value in seconds.items():
            sys.stdout.write(f"  {contestant:28} {1e3 * value:10.3f} ms {_ratio(contestant, seconds)}\n")
    document = {"device": name, "torch": torch.__version__, "rounds": given.rounds, "figures": figures}
    write_atomically(given.results, lambda file: file.write(json.dumps(document, indent=1).encode()))


if __name__ == "__main__":
    main()
