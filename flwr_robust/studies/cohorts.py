"""How many attackers a round asks where it asks a part of the clients, beside the number that theory wants asked.

A rule bears less than half of a cohort, the clients that a round asks. `flwr_robust.diagnostics.planning` has the
number that theorem 4 of Pillutla et al. (IEEE TSP 2022) asks for, and the exact chances. Beside them stand the cohorts
of the study's own runs, drawn again from their seeds. Clients count alike. Where the corrupted hold less data than
others, a rule that weights by samples gives them a smaller share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flwr_robust.diagnostics.planning import chances, hoeffding_sample, in_some_round
from flwr_robust.protocol.rounds import sample_clients
from flwr_robust.runs.config import RunConfig
from flwr_robust.studies.study import Study

__all__ = ["Cohorts", "cohorts"]

_THETA = 0.5


@dataclass(frozen=True)
class Cohorts:
    """A table of texts.

    Attributes
    ----------
    caption : str
        What it shows.
    columns : tuple of str
        The headings.
    rows : tuple of tuple of str
        The cells.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def cohorts(study: Study, labels: Mapping[str, str]) -> Cohorts | None:
    """Return the table of cohorts, a row for each of the study's columns; None if no cell samples and has attackers.

    Parameters
    ----------
    study : Study
        A study whose [report] has ``cohorts``, the chance delta.
    labels : mapping of str to str
        The labels of the cells in question.
    """
    found: dict[tuple[str, tuple[int, ...]], dict[int, RunConfig]] = {}
    for cell in study.cells:
        config, own = cell.config, labels.items() <= cell.labels.items()
        if own and config.attackers and config.sampled < config.clients:
            setting = (config.clients, config.attackers, config.sampled, config.rounds)
            found.setdefault((cell.labels[study.columns], setting), {})[config.seed] = config
    if not found:
        return None
    failure = study.report.cohorts
    rows = tuple(_row(column, setting, failure, list(runs.values())) for (column, setting), runs in found.items())
    caption = (
        f"Cohorts: how many clients a round must ask, such that with a chance of {1 - failure:g} in no round half of "
        "the asked are corrupted; and what the draws of the study's seeds give"
    )
    columns = (
        study.columns,
        "corrupted, rho",
        "m by theorem 4",
        "least m, exactly",
        "m asked here",
        "chance of half or more in a run",
        "most corrupted in a round",
        "rounds with half or more",
    )
    return Cohorts(caption, columns, rows)


def _row(column: str, setting: tuple[int, ...], failure: float, runs: list[RunConfig]) -> tuple[str, ...]:
    clients, attackers, cohort, rounds = setting
    share, exact = attackers / clients, _least(clients, attackers, rounds, failure)
    bound = hoeffding_sample(share, _THETA, rounds, failure)
    counts = [
        len({*sample_clients(config.seed, "train", at, clients, cohort)} & {*config.attackers_in(at)})
        for config in runs
        for at in range(1, rounds + 1)
    ]
    many = sum(count >= _THETA * cohort for count in counts)
    return (
        column,
        f"{share:.3g}",
        "none" if bound is None else f"{bound}" if bound <= clients else f"{bound}, more than there are",
        "none" if exact is None else str(exact),
        str(cohort),
        f"{_chance(clients, attackers, cohort, rounds):.2g}",
        f"{max(counts)} of {cohort}",
        f"{many} of {len(counts)}",
    )


def _chance(clients: int, attackers: int, cohort: int, rounds: int) -> float:
    """Return the chance that in some round half of the cohort or more is corrupted."""
    most = math.ceil(_THETA * cohort) - 1  # fewer than half
    return in_some_round(chances(clients, attackers, cohort)[most], rounds)


def _least(clients: int, attackers: int, rounds: int, failure: float) -> int | None:
    """Return the least cohort from which on the chance is at most so much; None if no cohort is enough."""
    found = None
    for cohort in range(clients, 0, -1):
        if _chance(clients, attackers, cohort, rounds) > failure:
            break
        found = cohort
    return found
