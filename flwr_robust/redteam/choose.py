"""The choice among candidates that were attacked alike: hyper-parameters of a rule, or arguments of a strategy.

A candidate has one value for each attack and each number of attackers up to the declared f, and one without attack: its
accuracy on the validation samples of the honest clients, as the mean over seeds. It is judged by the worst or by the
mean of these values. The best is chosen; of equal ones it is the first. Accuracies on test samples are not read.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from flwr_robust.errors import ConfigurationError, check_choice
from flwr_robust.redteam.battery import NO_ATTACK
from flwr_robust.redteam.run import RedTeam
from flwr_robust.studies.select import BY

__all__ = ["Judged", "Pick", "choose_candidate"]


@dataclass(frozen=True)
class Judged:
    """A candidate with what it is judged by.

    Attributes
    ----------
    result : RedTeam
        Its red team.
    value : float
        The worst or the mean accuracy on validation samples, in [0, 1].
    attack : str
        The attack under which it is worst; empty for a mean.
    real_f : int
        The number of attackers there.
    """

    result: RedTeam
    value: float
    attack: str = ""
    real_f: int = 0


@dataclass(frozen=True)
class Pick:
    """The candidates, the best first.

    Attributes
    ----------
    by : str
        ``worst case`` or ``mean``.
    ranking : tuple of Judged
        All candidates; the first is chosen.
    """

    by: str
    ranking: tuple[Judged, ...]

    @property
    def chosen(self) -> RedTeam:
        """The red team of the chosen candidate."""
        return self.ranking[0].result

    @property
    def sentence(self) -> str:
        """How the choice was made."""
        setting = self.chosen.setting
        return (
            f"Chosen among {len(self.ranking)} candidates: {setting.subject}, by its {self.by} over attacks on the "
            f"{100 * setting.validation:g} % of samples that honest clients held out; no test value was read."
        )

    def table(self) -> Table:
        """Return the table of all candidates for a terminal."""
        table = Table(title=f"accuracy on validation samples, {self.by} over attacks, %", title_justify="left")
        table.add_column("candidate", overflow="fold")
        table.add_column("validation", justify="right")
        table.add_column("under", overflow="fold")
        for place, each in enumerate(self.ranking):
            under = f"{each.attack}, f = {each.real_f}" if each.attack else "-"
            style = "bold" if place == 0 else ""
            table.add_row(Text(each.result.setting.subject, style), Text(f"{100 * each.value:.1f}", style), Text(under))
        return table


def choose_candidate(results: Sequence[RedTeam], by: str = "worst case") -> Pick:
    """Choose among candidates.

    Parameters
    ----------
    results : sequence of RedTeam
        The red teams of the candidates, with the same settings and validation samples. Only attacks that all of them
        met count.
    by : str
        ``worst case`` or ``mean``.

    Raises
    ------
    ConfigurationError
        If there is no candidate, they have no validation samples, or they declare different numbers of attackers.
    """
    check_choice("red-team", "--by", by, BY)
    if not results or not all(result.setting.validation for result in results):
        raise ConfigurationError(
            "red-team: candidates are chosen on validation samples, and there are none: set --validation, for example "
            "to 0.1"
        )
    declared = sorted({result.setting.declared_f for result in results})
    if len(declared) > 1:
        raise ConfigurationError(
            f"red-team: candidates must declare the same f, so that the same attackers come; got "
            f"{', '.join(map(str, declared))}: attack them one by one, and compare them"
        )
    places = [
        (label, f)
        for label in results[0].families
        for f in results[0].real_f
        if f <= declared[0] and all(result.of(label, f) for result in results)
    ]
    judged = [_judged(result, [*places, (NO_ATTACK.label, 0)], by) for result in results]
    return Pick(by, tuple(sorted(judged, key=lambda each: -each.value)))


def _judged(result: RedTeam, places: Sequence[tuple[str, int]], by: str) -> Judged:
    values = {place: value for place in places if (value := result.validated(*place)) is not None}
    if by == "mean":
        return Judged(result, statistics.fmean(values.values()))
    label, f = min(values, key=lambda place: values[place])
    return Judged(result, values[label, f], label, f)
