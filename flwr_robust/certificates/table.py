"""Certificates of all rules of the registry, alone and behind pre-aggregators, as one JSON document and one table."""

from __future__ import annotations

import dataclasses
import importlib
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flwr_robust.certificates.certificate import Certificate, certify
from flwr_robust.certificates.search import Problem
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rule import Rule, aggregators
from flwr_robust.errors import ConfigurationError, check_integer

__all__ = ["STAGES", "Row", "certify_all", "document_of", "markdown_of", "rules"]

STAGES = ("", "nnm", "clip(c='median')", "arc", "bucketing(s=2)")
"""What stands before each rule; the empty text is the rule alone."""

VERSION = 1
_ROUNDING = 1e-9
_LONG = 0.02  # seconds for one set of rows


@dataclass(frozen=True)
class Row:
    """A rule of the table, behind a stage or alone.

    Attributes
    ----------
    rule : str
        The rule's name.
    stage : str
        What stands before it; empty for the rule alone.
    certificate : Certificate or None
        None where there is none.
    reason : str
        Why there is none; empty otherwise.
    """

    rule: str
    stage: str
    certificate: Certificate | None
    reason: str = ""


@dataclass(frozen=True)
class _Task:
    rule: str
    stage: str
    text: str
    n: int
    f: int
    measure: str
    evaluations: int
    seconds: float
    seed: int
    first: tuple[Tensor, ...]


def rules() -> Iterator[tuple[str, str]]:
    """Yield the name and a text of every rule of the registry; f is left out of the text.

    A rule with a required field other than f has the text of its first case.
    """
    for name, cls in aggregators.members().items():
        required = {
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        if required - {"f"}:
            yield name, str(importlib.import_module(cls.__module__).CASES[0].rule)
        else:
            yield name, name


def _slow(rule: Rule, task: _Task) -> bool:
    """Say whether a rule draws, or takes long for one set of rows."""
    if rule.check(task.n) or rule.check_layout(()):
        return False
    problem = Problem(rule, task.n, task.f, task.measure)
    rows = np.random.default_rng(0).standard_normal((task.n, 3))
    problem.value(rows)  # the first call imports and compiles
    begin = time.monotonic()
    problem.value(rows)
    return time.monotonic() - begin > _LONG or problem.draws()


def _row(task: _Task) -> Row:
    """Certify one rule."""
    torch.set_num_threads(1)
    text = f"{task.stage} | {task.text}" if task.stage else task.text
    try:
        rule = parse(text, f=task.f)
        found = certify(
            *(rule, task.n, task.f, task.measure),
            evaluations=task.evaluations,
            seconds=task.seconds * (2 if _slow(rule, task) else 1),
            seed=task.seed,
            first=task.first,
        )
    except ConfigurationError as error:
        return Row(task.rule, task.stage, None, str(error).removeprefix("certify: "))
    return Row(task.rule, task.stage, found)


def certify_all(
    n: int,
    f: int,
    measure: str = "kappa",
    *,
    evaluations: int = 6000,
    seconds: float = 7.0,
    seed: int = 0,
    workers: int = 1,
    earlier: Mapping[str, Any] | None = None,
    told: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Certify every rule of the registry, alone and behind each of `STAGES`.

    Parameters
    ----------
    n, f, measure, evaluations, seed
        As for `certify`; f is declared and real.
    seconds : float
        After how many seconds each search stops; twice as many for rules that draw or are slow.
    workers : int
        Number of processes; >= 1.
    earlier : mapping, optional
        An earlier table, as `document_of` returns it; its witnesses are where the searches begin.
    told : callable (Row), optional
        Is called with each row when it is finished, in the order of the table.

    Raises
    ------
    ConfigurationError
        If a parameter is outside its bounds.
    """
    check_integer("certify", "workers", workers, 1)
    certify("median", n, f, measure, evaluations=evaluations, seconds=1e-9, seed=seed)  # raises for a wrong parameter
    known = {} if earlier is None else _witnesses(earlier, n)
    tasks = [
        _Task(name, stage, text, n, f, measure, evaluations, seconds, seed, known.get((name, stage), ()))
        for name, text in rules()
        for stage in STAGES
    ]
    found = []
    with ExitStack() as stack:
        made: Iterator[Row] = map(_row, tasks)
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
            made = stack.enter_context(pool).map(_row, tasks)
        for row in made:
            found.append(row)
            if told is not None:
                told(row)
    return found


def _witnesses(document: Mapping[str, Any], n: int) -> dict[tuple[str, str], tuple[Tensor, ...]]:
    """Return the witnesses of a table for n rows, by rule and stage."""
    try:
        held = {(row["name"], row["stage"]): row["certificate"] for row in document["rows"]}
        found = {key: torch.tensor(each["witness"], dtype=torch.float64) for key, each in held.items() if each}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"certify: an earlier table must be what certify --all wrote; got one that fails with "
            f"{type(error).__name__}: {error}: name another file"
        ) from None
    return {key: (witness,) for key, witness in found.items() if witness.dim() == 2 and len(witness) == n}


def document_of(rows: Sequence[Row], n: int, f: int, measure: str) -> dict[str, Any]:
    """Return the table as plain values."""
    return {
        "version": VERSION,
        "n": n,
        "f": f,
        "measure": measure,
        "rows": [
            {
                "name": row.rule,
                "stage": row.stage,
                "reason": row.reason,
                "certificate": None if row.certificate is None else row.certificate.to_dict(),
            }
            for row in rows
        ],
    }


def markdown_of(document: Mapping[str, Any]) -> str:
    """Return a table in Markdown: one line for each rule, what was found and what is proven before each stage.

    Parameters
    ----------
    document : mapping
        As `document_of` returns it.
    """
    stages = list(dict.fromkeys(row["stage"] for row in document["rows"]))
    lines = [
        f"| rule | {' | '.join(f'`{stage}`' if stage else 'alone' for stage in stages)} | proven, alone |",
        f"|---|{'---:|' * len(stages)}---|",
    ]
    for name in dict.fromkeys(row["name"] for row in document["rows"]):
        own = {row["stage"]: row for row in document["rows"] if row["name"] == name}
        lines.append(f"| `{name}` | {' | '.join(_cell(own[stage]) for stage in stages)} | {_proof(own[''])} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    held = row["certificate"]
    if held is None:
        return "-"
    if held["found"] == "unbounded":
        return "unbounded"
    if held["exact"] is not None:
        return f"= {held['exact']:.3f}"
    drawn = f" +- {held['error']:.2g}" if held["error"] > _ROUNDING else ""
    most = "" if held["proven"] is None else f", <= {held['proven']:.2f}"
    return f">= {held['found']:.3f}{drawn}{most}"


def _proof(row: Mapping[str, Any]) -> str:
    held = row["certificate"]
    if held is None:
        return str(row["reason"]).partition(";")[0].partition(":")[0]
    if held["proven"] is None:
        return "" if held["found"] == "unbounded" else "no theorem"
    return str(held["source"]) if math.isfinite(_number(held["proven"])) else "none can exist"


def _number(value: float | str) -> float:
    return math.inf if isinstance(value, str) else value
