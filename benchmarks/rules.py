"""Aggregation rules side by side: ours, byzfl, byzpy, geom_median, and Flower's own, on one machine in one run.

How to read the figures:

- Every figure is a median over rounds. In every round the contestants take turns, so that a slow minute of the machine
  affects all of them. Compare only figures of one run, because the speed of a machine varies.
- Before every call, the same process computes X.mean(0) on the same rows with its torch. "x mean" is the median ratio
  of the two times; the mean reads the input once. "x Gram" is the same with our centred Gram matrix, which every rule
  with distances needs.
- Memory is the peak of extra resident memory during one call, as a multiple of the n d float32 numbers of the input. It
  is not given for inputs under 8 MB, where the allocator's own pages dominate. The call that measures memory comes
  first and is not timed.
- byzfl takes a tensor; byzpy and geom_median take the list of its rows, as their users do. Flower's strategies and ours
  with Flower take reply Messages with serialised arrays. Ours without Flower takes a tensor.
- f = n // 5, for Bulyan at most (n - 3) // 4. The last f rows are shifted. `DIFFERENCES` lists contestants with another
  definition, whose work differs slightly.
- If a contestant's first call takes longer than the limit, it is not called again, and that call is its figure. After
  three times the limit, or without enough memory, it is stopped and has no figure. Contestants that are left out have a
  reason. A contestant's rounds end when the sum of its calls reaches the limit.
"""

from __future__ import annotations

import json
import math
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import psutil
from matplotlib.lines import Line2D
from rich.console import Group
from rich.progress import Progress
from rich.table import Table

__all__ = ["CONTESTANTS", "DIFFERENCES", "RULES", "SIZES", "TARGETS", "markdown", "measure", "plot", "table"]

SIZES = ((10, 7_850), (20, 1_000_000), (100, 1_000_000), (20, 11_700_000), (1000, 10_000))
QUICK_SIZES = ((10, 7_850), (20, 100_000))
RULES = (
    "gram",
    "mean",
    "median",
    "trimmed_mean",
    "meamed",
    "phocas",
    "krum",
    "multi_krum",
    "geometric_median",
    "nnm | krum",
    "bulyan",
    "centered_clipping",
    "faba",
    "minimum_diameter",
    "smea",
    "caf",
)
CONTESTANTS = ("ours", "byzfl", "byzfl, numpy", "byzpy", "geom_median", "ours, Flower", "Flower")
_PROJECT = ("ours", "ours, Flower", "Flower")
_GRAM_RULES = ("krum", "multi_krum", "geometric_median", "nnm | krum")

DIFFERENCES = {
    "median": {
        "byzpy": "torch.median: for even n the lower of the two middle values, ours their mean",
        "byzfl, numpy": "byzfl on numpy arrays: another path than torch.quantile, often faster",
    },
    "meamed": {
        "byzpy": "around torch.median, the lower of two middle values",
        "byzfl, numpy": "byzfl on numpy arrays: another path than torch.quantile, often faster",
    },
    "krum": {"byzfl": "n - f - 1 neighbours, ours n - f - 2", "byzpy": "n - f - 1 neighbours, ours n - f - 2"},
    "multi_krum": {
        "byzfl": "n - f - 1 neighbours, ours n - f - 2",
        "byzpy": "n - f - 1 neighbours, ours n - f - 2",
        "Flower": "weighted by num-examples, all 1 here",
    },
    "nnm | krum": {"byzfl": "Krum with n - f - 1 neighbours", "byzpy": "Krum with n - f - 1 neighbours"},
    "geometric_median": {
        "byzfl": "3 steps from zero, not converged; ours until the gradient is below 1e-6",
        "byzpy": "until a step is shorter than 1e-6, at most 256, from the median",
        "geom_median": "until the objective stays equal, at most 100 steps",
    },
    "bulyan": {
        "Flower": "scores once (Multi-Krum) instead of anew after every selection; collects Python's garbage once per "
        "selected reply, which is most of its time where d is small"
    },
    "smea": {"byzfl": "one power step from a random start instead of the eigenvalue"},
    "caf": {
        "byzfl": "one power step from a random start instead of the eigenvector",
        "byzpy": "three power steps from a fixed start instead of the eigenvector",
    },
    "mean": {"Flower": "weighted by num-examples, all 1 here"},
}


@dataclass(frozen=True)
class Target:
    """A bound on one of our figures: an upper bound, or a lower bound for "faster"."""

    what: str
    rules: tuple[str, ...]
    bound: float
    kind: str  # "mean", "gram", "faster" or "memory"
    contestant: str = "ours"
    than: tuple[str, ...] = ()
    largest_n: int = 10**9


_BYZFL = ("byzfl", "byzfl, numpy")
_SORTING, _KRUM = ("median", "trimmed_mean"), ("krum", "multi_krum")
_FLOWERS = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan")

TARGETS = (
    *(Target(f"{r}: x X.mean(0)", (r,), 4, "mean", largest_n=100) for r in _SORTING),
    *(
        Target(f"{r}: faster than all peers", (r,), 15, "faster", than=(*_BYZFL, "byzpy", "Flower"), largest_n=100)
        for r in _SORTING
    ),
    *(Target(f"{r}: x X.mean(0)", (r,), 10, "mean") for r in ("meamed", "phocas")),
    *(Target(f"{r}: x Gram", (r,), 1.3, "gram") for r in _KRUM),
    *(
        Target(f"{r}: faster than {who[0]}", (r,), bound, "faster", than=who)
        for r in _KRUM
        for who, bound in ((_BYZFL, 4), (("byzpy",), 2), (("Flower",), 4))
    ),
    Target("geometric_median: x Gram", ("geometric_median",), 1.5, "gram"),
    Target("nnm | krum: x Gram", ("nnm | krum",), 1.6, "gram"),
    Target("bulyan: faster than Flower", ("bulyan",), 50, "faster", than=("Flower",)),
    *(
        Target(f"{r} through Flower: faster than built-in", (r,), 5, "faster", "ours, Flower", ("Flower",))
        for r in _FLOWERS
    ),
    Target("memory: x input, worst rule", RULES, 0.2, "memory"),
    Target("memory through Flower: x input, worst rule", RULES, 0.35, "memory", "ours, Flower"),
)


# -- measuring -------------------------------------------------------------------------------------


class _GoneError(Exception):
    """The worker was stopped, or has ended."""


class _Worker:
    """A process that answers the commands of `benchmarks.peers`."""

    def __init__(self, command: Sequence[str], threads: int, memory: int) -> None:
        self._command, self._memory = command, memory
        count = str(threads)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        self._environment = {**os.environ, **dict.fromkeys(names, count), "PYTHONSAFEPATH": ""}
        self._process: subprocess.Popen[bytes] | None = None
        self._size: Mapping[str, Any] = {}

    def _start(self) -> subprocess.Popen[bytes]:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {**self._environment, "BENCHMARK_MEMORY": str(self._memory)}
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            bufsize=0,
        )

    def ask(self, command: Mapping[str, Any], limit: float = 600) -> dict[str, Any]:
        """Send a command, and wait at most ``seconds`` for its answer.

        Raises
        ------
        _GoneError
            If there is no answer; the next command goes to a new process with the same rows.
        """
        if self._process is None:
            self._process = self._start()
            if self._size and command["do"] == "run":
                self.ask(self._size)
        if command["do"] == "make":
            self._size = command
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(command).encode() + b"\n")
            ready, _, _ = select.select([process.stdout], [], [], limit)
            line = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            ready, line = [process.stdout], b""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.stop()
        if ready:
            self._errors.seek(0)
            last = (self._errors.read().decode(errors="replace").strip().splitlines() or ["without a word"])[-1]
            raise _GoneError(f"its process ended: {last[:200]}")
        raise _GoneError(f"ended after {limit:.0f} s")

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None


def faulty(rule: str, n: int) -> int:
    """Return the f for a rule."""
    return min(n // 5, (n - 3) // 4) if rule == "bulyan" else n // 5


def _hopeless(contestant: str, rule: str, n: int, f: int) -> str | None:
    """Return why a call is not tried, or None."""
    subsets = math.comb(n, f)
    if rule in ("minimum_diameter", "smea") and contestant in ("byzfl", "byzpy") and subsets > 10**6:
        return f"it would look at all {subsets:.1e} subsets"
    return None


def measure(
    *,
    peers: Path | None = None,
    threads: Sequence[int] = (1, 2),
    sizes: Sequence[tuple[int, int]] = SIZES,
    rules: Sequence[str] = RULES,
    repeats: int = 5,
    limit: float = 20.0,
) -> dict[str, Any]:
    """Run all contestants in turn, and return their figures.

    Parameters
    ----------
    peers : Path, optional
        The interpreter of the environment with byzfl, byzpy and geom_median, which are otherwise left out.
    threads : sequence of int
        The numbers of threads.
    sizes : sequence of (n, d)
        Rows and coordinates.
    rules : sequence of str
        The rules, from `RULES`.
    repeats : int
        Rounds.
    limit : float
        Seconds after which a contestant is not called again for the rule and size.
    """
    missing = ""
    if peers is None or not peers.exists():
        missing = "byzfl, byzpy and geom_median are left out: " + (
            "no --peers interpreter was given" if peers is None else f"no interpreter at {peers.name}"
        )
        peers = None
    entries: list[dict[str, Any]] = []
    versions: dict[str, Any] = {}
    steps = len(threads) * len(sizes) * len(rules)
    memory = int(0.8 * psutil.virtual_memory().available)
    with Progress(transient=True) as progress:
        task = progress.add_task("rules, in turn", total=steps)
        for count in threads:
            project = _Worker([sys.executable, "-m", "benchmarks.ours"], count, memory)
            workers = dict.fromkeys(_PROJECT, project)
            if peers is not None:
                script = str(Path(__file__).with_name("peers.py"))
                other = _Worker([str(peers), script], count, memory)
                workers.update({c: other for c in CONTESTANTS if c not in _PROJECT})
                packages = ["byzfl", "byzpy", "geom_median", "torch", "numpy"]
                versions = other.ask({"do": "hello", "packages": packages})["versions"]
            try:
                for n, d in sizes:
                    for worker in set(workers.values()):
                        made = worker.ask({"do": "make", "n": n, "d": d, "f": n // 5, "seed": 0})
                        if "error" in made:
                            raise RuntimeError(f"the rows of {_title(count, n, d)} could not be made: {made['error']}")
                    for rule in rules:
                        progress.update(task, advance=1, description=f"{rule}, {_title(count, n, d)}")
                        if not progress.console.is_terminal:  # without a progress bar, a line shows the progress
                            print(f"{rule}, {_title(count, n, d)}", file=sys.stderr, flush=True)
                        entries += _compare(workers, rule, n, d, count, repeats, limit)
            finally:
                for worker in set(workers.values()):
                    worker.stop()
    return {
        "what": "seconds per call of aggregation rules; float32 rows, standard normal, the last f shifted by 1",
        "repeats": repeats,
        "limit_seconds": limit,
        "missing": missing,
        "peers": versions,
        "differences": DIFFERENCES,
        "figures": entries,
        "targets": _judged(entries),
    }


def _compare(
    workers: Mapping[str, _Worker], rule: str, n: int, d: int, threads: int, repeats: int, limit: float
) -> list[dict[str, Any]]:
    """Measure one rule at one size, contestants in turn."""
    f = faulty(rule, n)
    entries, running = [], {}
    for contestant in (c for c in CONTESTANTS if c in workers):
        entry = {"threads": threads, "n": n, "d": d, "f": f, "rule": rule, "contestant": contestant}
        command = {"do": "run", "contestant": contestant, "rule": rule, "f": f}
        if contestant == "ours" and rule in _GRAM_RULES:
            command["reference"] = "gram"
        reason = _hopeless(contestant, rule, n, f)
        answer: dict[str, Any] = {"error": reason}
        if reason is None:
            try:
                answer = workers[contestant].ask({**command, "trace": True}, 3 * limit)
            except _GoneError as gone:
                answer = {"error": str(gone)}
        if answer.get("absent"):
            continue
        entries.append(entry)
        if "error" in answer:
            entry["left_out"] = answer["error"]
            continue
        if answer["extra_bytes"] is not None and 4 * n * d >= 8e6:
            entry["extra_memory"] = answer["extra_bytes"] / (4 * n * d)
        if answer["seconds"] > limit:
            entry["note"] = f"one call, longer than {limit:.0f} s"
            _settle(entry, [answer])
        else:
            running[contestant] = (entry, command, list[dict[str, Any]]())
    for turn in range(repeats):
        order = list(running)
        for contestant in order if turn % 2 == 0 else reversed(order):
            entry, command, answers = running[contestant]
            if sum(a["seconds"] for a in answers) > limit:
                continue  # slow calls have fewer rounds; "all_seconds" says how many
            try:
                answer = workers[contestant].ask(command, 3 * limit)
            except _GoneError as gone:
                answer = {"error": str(gone)}
            if "error" in answer:
                entry["note"] = answer["error"]
            else:
                answers.append(answer)
    for entry, _, answers in running.values():
        if answers:
            _settle(entry, answers)
        else:
            entry["left_out"] = entry.get("note", "no call came to an end")
    return entries


def _settle(entry: dict[str, Any], answers: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures of the calls into an entry."""
    entry["all_seconds"] = [answer["seconds"] for answer in answers]
    entry["seconds"] = statistics.median(entry["all_seconds"])
    entry["mean_seconds"] = statistics.median(answer["mean_seconds"] for answer in answers)
    entry["over_mean"] = statistics.median(a["seconds"] / a["mean_seconds"] for a in answers)
    if answers[0].get("reference_seconds"):
        entry["gram_seconds"] = statistics.median(a["reference_seconds"] for a in answers)
        entry["over_gram"] = statistics.median(a["seconds"] / a["reference_seconds"] for a in answers)


# -- targets ---------------------------------------------------------------------------------------


def _judged(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare every one of our figures with its target."""
    settings = list(dict.fromkeys((e["threads"], e["n"], e["d"]) for e in entries))
    judged = []
    for threads, n, d in settings:
        here = [e for e in entries if (e["threads"], e["n"], e["d"]) == (threads, n, d)]
        for target in TARGETS:
            if n > target.largest_n:
                continue
            found = _found(target, here)
            if found is None:
                continue
            value, detail = found
            met = value >= target.bound if target.kind == "faster" else value <= target.bound
            judged.append(
                {
                    "what": target.what,
                    "threads": threads,
                    "n": n,
                    "d": d,
                    "bound": target.bound,
                    "at_least": target.kind == "faster",
                    "measured": value,
                    "detail": detail,
                    "met": met,
                }
            )
    return judged


def _found(target: Target, entries: Sequence[Mapping[str, Any]]) -> tuple[float, str] | None:
    """Return the measurement for a target and its contestant, if there is one."""
    own = [e for e in entries if e["contestant"] == target.contestant and e["rule"] in target.rules]
    if target.kind == "memory":
        taken = [(e["extra_memory"], e["rule"]) for e in own if "extra_memory" in e]
        return max(taken, default=None)
    if not own or "seconds" not in own[0]:
        return None
    if target.kind == "faster":
        others = [
            (e["seconds"], e["contestant"])
            for e in entries
            if e["contestant"] in target.than and e["rule"] in target.rules and "seconds" in e
        ]
        if not others:
            return None
        seconds, who = min(others)
        return seconds / own[0]["seconds"], who
    key = f"over_{target.kind}"
    return (own[0][key], "") if key in own[0] else None


# -- showing ---------------------------------------------------------------------------------------


def _settings(document: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    return list(dict.fromkeys((e["threads"], e["n"], e["d"]) for e in document["figures"]))


def _title(threads: int, n: int, d: int) -> str:
    return f"n = {n}, d = {d:,}, {threads} thread{'s' if threads > 1 else ''}"


def _grid(document: Mapping[str, Any], setting: tuple[int, int, int]) -> tuple[list[str], list[list[str]]]:
    """Return the contestants and the rows of cells of one setting: ms, ratio, memory."""
    here = [e for e in document["figures"] if (e["threads"], e["n"], e["d"]) == setting]
    who = [c for c in CONTESTANTS if any(e["contestant"] == c for e in here)]
    rows = []
    for rule in dict.fromkeys(e["rule"] for e in here):
        cells = {e["contestant"]: _cell(e) for e in here if e["rule"] == rule}
        rows.append([rule, *(cells.get(c, "") for c in who)])
    return who, rows


def _cell(entry: Mapping[str, Any]) -> str:
    if "seconds" not in entry:
        return "left out"
    ms, ratio, memory = 1000 * entry["seconds"], entry["over_mean"], entry.get("extra_memory")
    shown = f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"
    times = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return f"{shown} ({times}{'' if memory is None else f'; {memory:.2f}'})"


_CELLS = "ms per call (multiple of X.mean(0); peak extra memory as a multiple of the input)"


def _verdict(found: Mapping[str, Any]) -> str:
    value = found["measured"]
    shown = f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"
    return f"{shown}{'' if found['met'] else ' missed'}"


def _verdicts(document: Mapping[str, Any]) -> list[list[str]]:
    """Return a row per target: name, bound, and the verdict of every setting."""
    settings, found = _settings(document), document["targets"]
    rows = []
    for what in dict.fromkeys(t["what"] for t in found):
        of = {(t["threads"], t["n"], t["d"]): t for t in found if t["what"] == what}
        first = next(iter(of.values()))
        bound = f"{'>=' if first['at_least'] else '<='} {first['bound']:g}"
        rows.append([what, bound, *(_verdict(of[s]) if s in of else "" for s in settings)])
    return rows


def table(document: dict[str, Any]) -> Group:
    """Return the figures as tables: one per size and number of threads, the targets, and contestants left out."""
    parts: list[Table | str] = []
    for setting in _settings(document):
        who, rows = _grid(document, setting)
        shown = Table(title=f"{_title(*setting)}: {_CELLS}", title_justify="left")
        for name in ("rule", *who):
            shown.add_column(name, justify="left" if name == "rule" else "right")
        for row in rows:
            shown.add_row(*row)
        parts.append(shown)
    targets = Table(title="targets: measured, met unless it says missed", title_justify="left")
    for name in ("target", "bound", *(_title(*s) for s in _settings(document))):
        targets.add_column(name, justify="left" if name == "target" else "right")
    for row in _verdicts(document):
        targets.add_row(*(f"[red]{cell}[/red]" if cell.endswith("missed") else cell for cell in row))
    parts.append(targets)
    met = sum(t["met"] for t in document["targets"])
    parts.append(f"{met} of {len(document['targets'])} met")
    if document["missing"]:
        parts.append(document["missing"])
    parts += [f"left out: {_who(e)}: {e['left_out']}" for e in document["figures"] if "left_out" in e]
    return Group(*parts)


def _who(entry: Mapping[str, Any]) -> str:
    return f"{entry['contestant']}, {entry['rule']}, {_title(entry['threads'], entry['n'], entry['d'])}"


def markdown(document: dict[str, Any]) -> str:
    """Return the figures as Markdown, for the README."""

    def rows(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
        rule = ["---", *["---:"] * (len(header) - 1)]
        # A vertical bar would end the cell.
        return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (header, rule, *body)]

    lines = [f"Cells: {_CELLS}.", ""]
    for setting in _settings(document):
        who, body = _grid(document, setting)
        lines += [_title(*setting), "", *rows(["rule", *who], body), ""]
    header = ["target", "bound", *(_title(*s) for s in _settings(document))]
    lines += ["Targets", "", *rows(header, _verdicts(document)), ""]
    lines += [f"- left out: {_who(e)}: {e['left_out']}" for e in document["figures"] if "left_out" in e]
    lines += [f"- {document['missing']}"] if document["missing"] else []
    return "\n".join(lines).rstrip() + "\n"


def plot(document: dict[str, Any]) -> Callable[[Any], None]:
    """Return a function that draws the figures: ms per rule on a log scale, one panel per setting."""
    settings = _settings(document)
    columns = min(2, len(settings))
    height = -(-len(settings) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(7.5 * columns, 3.6 * height), squeeze=False, dpi=110)
    colours = dict(zip(CONTESTANTS, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    for axis in axes.flat[len(settings) :]:
        axis.set_visible(False)
    for axis, setting in zip(axes.flat, settings, strict=False):
        here = [e for e in document["figures"] if (e["threads"], e["n"], e["d"]) == setting and "seconds" in e]
        rules = list(dict.fromkeys(e["rule"] for e in here))
        for contestant in CONTESTANTS:
            points = [(rules.index(e["rule"]), 1000 * e["seconds"]) for e in here if e["contestant"] == contestant]
            marker = "D" if contestant == "ours" else "o"
            axis.plot(*zip(*points, strict=True) if points else ([], []), marker, color=colours[contestant], ms=5)
        if here:
            axis.axhline(1000 * statistics.median(e["mean_seconds"] for e in here), color="grey", lw=0.8, ls=":")
        axis.set_yscale("log")
        axis.set_ylabel("ms per call")
        axis.set_title(_title(*setting), fontsize=10)
        axis.set_xticks(range(len(rules)), rules, rotation=40, ha="right", fontsize=8)
        axis.grid(axis="y", alpha=0.3)
    handles = [Line2D([], [], marker="o", ls="", color=colours[c], label=c) for c in CONTESTANTS]
    handles.append(Line2D([], [], color="grey", lw=0.8, ls=":", label="X.mean(0)"))
    figure.legend(handles=handles, loc="upper center", ncols=len(handles), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.25 / (3.6 * height)))

    def save(file: Any) -> None:
        figure.savefig(file, format="png")
        plt.close(figure)

    return save
