"""The league: every rule against every attack, under the same terms, in one record.

A row of the league is a rule, alone or behind a pre-aggregator. Its cells are runs of the fast engine: each data set,
each way to divide it, each attack of the battery, three seeds. The registry says which rules there are, so that a new
one enters by itself. `TERMS` states what all runs share.

Rules with a hyper-parameter have candidates. For each data set the candidate is chosen whose worst case over attacks is
best on validation samples. A seed is kept for this choice, which is made on one partition. What is chosen for a rule
alone holds behind a pre-aggregator, too.

The record is one JSON file with a line per rule, data set and partition. It is written anew after each such group, so
that a run continues where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from flwr_robust.aggregators import Mean
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import Rule, aggregators
from flwr_robust.errors import DataUnavailableError, FlwrRobustError, check_choice
from flwr_robust.files import write_atomically
from flwr_robust.redteam.battery import BATTERY, Attack
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate_many
from flwr_robust.seeds import torch_generator
from flwr_robust.studies.places import shipped
from flwr_robust.studies.runner import circumstances
from flwr_robust.tasks import Task, load_task, task_of

__all__ = [
    "ATTACKERS",
    "BEHIND",
    "CANDIDATES",
    "CHOSEN_ON",
    "CLIENTS",
    "DATA_SETS",
    "NONE",
    "PARTITIONS",
    "RECORD",
    "SEARCHES",
    "SEEDS",
    "SIZE",
    "TERMS",
    "Cell",
    "Choice",
    "Entry",
    "League",
    "attacks",
    "choose_for",
    "entries",
    "entry_of",
    "left_out",
    "lowest_class",
    "measure_cost",
    "read_league",
    "run_group",
    "run_league",
    "small_fashion_mnist",
    "waiting",
    "without_entry",
]

RECORD = shipped("recorded") / "red-team" / "league.json"
"""The record that comes with the project."""

CLIENTS, ATTACKERS = 15, 3
"""n, and the number of attackers, which is also the declared f: the most that Bulyan allows, n = 4f + 3."""

SEEDS = (0, 1, 2)
"""The repetitions."""

PARTITIONS = ("iid", "dirichlet(beta=0.5)", "dirichlet(beta=0.1)", "by_label")
"""How samples are divided, from alike to one class per client."""

DATA_SETS: Mapping[str, str] = MappingProxyType(
    {"digits": "digits", "fashion_mnist": "flwr_robust.redteam.league:small_fashion_mnist"}
)
"""The tasks, by the names of the data sets."""

TERMS: Mapping[str, Any] = MappingProxyType(
    {
        "model": "softmax",
        "clients": CLIENTS,
        "message": "momentum",
        "alpha": 0.1,
        "server-learning-rate": 2.0,
        "batch-size": 32,
        "rounds": 25,
        "evaluate-every": 25,
        "validation": 0.1,
        "metrics": "flwr_robust.redteam.league:lowest_class",
        "device": "cpu",
        "threads": 1,
    }
)
"""The keys of the run config that all runs share."""

BEHIND = (f"nnm(f={ATTACKERS})", f"arc(f={ATTACKERS})")
"""The pre-aggregators."""

CANDIDATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "centered_clipping": ("tau=0.1", "tau=1.0", "tau=10.0"),
        "dnc": ("c=1.0", "c=1.5", "c=2.0"),
        "foolsgold": ("confidence=0.3", "confidence=1.0", "confidence=3.0"),
        "generalised_krum": ("p=1", "p=4"),
        "multi_krum": ("m=4", "m=8", "m=12"),
        "norm_bound": ("c=0.1", "c=0.3", "c=1.0"),
        "reweighted_geometric_median": ("scale=0.3", "scale=1.0", "scale=3.0"),
        "sign_majority": ("scale=0.003", "scale=0.01", "scale=0.03"),
    }
)
"""The hyper-parameters among which validation samples decide, besides f, by the name of the rule."""

CHOSEN_ON = ("dirichlet(beta=0.5)", 3)
"""The partition and the seed of the choice; no cell of the league has this seed."""

NONE = "none"
"""The label of the cells without attack."""

SIZE = 100_000
"""The coordinates of the rows on which the cost of a rule is measured."""

SEARCHES = 5
"""The strengths that an optimised attack tries in a round; the battery's 20 would take most of the time."""

_LEFT_OUT_FAMILIES = {
    "backdoor triggers": "aims at inputs with a trigger, which accuracy does not show; `red-team` measures its success",
    "faults": "is no attack; `red-team` measures faults",
}
_LEFT_OUT = {
    "pool(pool=['krum(f=f)', 'median()'])": "searches among two rules in each round, which takes a quarter of all time",
    **dict.fromkeys(("nan()", "inf()"), "the server refuses such a message before the rule sees it"),
    **dict.fromkeys(
        (
            "scale(c=10.0)",
            "sybil(k=f, base='sign_flip(c=3.0)')",
            "label_flip(p=0.5)",
            "targeted_flip(source=1, target=7)",
            "multiples(c=1e-10)",
            "tailored(epsilon=[0.1, 1.0, 10.0])",
            "min_max(deviation='std')",
            "model_based(size=1.0, movement='past')",
            "gaussian(sigma=0.1)",
            "constant(c=0.1)",
            "constant(c=10.0)",
            "pixel_noise(sigma=0.5)",
            "tailored(epsilon='search')",
        ),
        "another form of an attack that is there, left out to save time",
    ),
}
_NOT_BEHIND = {
    **dict.fromkeys(("clip_mean", "norm_bound"), "shortens rows itself, and is the mean behind clip"),
    **dict.fromkeys(("generalised_krum", "reweighted_geometric_median"), "is a variant of a rule that is there"),
    "mixtailor": "draws among rules that are there",
    "sign_majority": "sees signs alone",
    "smea": "takes too long, for it searches all subsets",
}


def small_fashion_mnist(folder: Path) -> Task:
    """Return the first 6,000 training and 2,000 test images of Fashion-MNIST, 2 x 2 pixels as their mean."""
    whole = load_task("fashion_mnist", folder)

    def small(x: Tensor, count: int) -> Any:
        return torch.nn.functional.avg_pool2d(x[:count].float(), 2).round().to(torch.uint8).numpy()

    train, test = 6_000, 2_000
    targets = whole.y_train[:train].numpy(), whole.y_test[:test].numpy()
    return task_of(
        "small_fashion_mnist", small(whole.x_train, train), targets[0], small(whole.x_test, test), targets[1]
    )


def lowest_class(scores: Tensor, targets: Tensor) -> float:
    """Return the class whose samples are recognised least often, as its number; of equal ones the first."""
    right = (scores.argmax(1) == targets).double()
    return float(min(sorted({*targets.tolist()}), key=lambda k: float(right[targets == k].mean())))


# -- what there is --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A row of the league before its hyper-parameter is chosen.

    Attributes
    ----------
    candidates : tuple of str
        The texts of the rule; more than one if validation samples decide.
    before : str
        The pre-aggregator; empty: none.
    name : str
        What several candidates are called together.
    """

    candidates: tuple[str, ...]
    before: str = ""
    name: str = ""

    @property
    def key(self) -> str:
        """What names the choice among its candidates."""
        return self.candidates[0] if len(self.candidates) == 1 else self.name or " or ".join(self.candidates)

    def text(self, chosen: str) -> str:
        """Return the defence string with a chosen candidate."""
        return f"{self.before} | {chosen}" if self.before else chosen


def entries() -> list[Entry]:
    """Return the rows: all registered rules that can run alone, then the mean and those with an f behind others."""
    alone = [Entry(texts, name=name) for name in aggregators.members() if isinstance(texts := _texts(name), tuple)]
    return alone + [
        Entry(entry.candidates, before, entry.name)
        for entry in alone
        for before in BEHIND
        if _not_behind(entry) is None
    ]


def without_entry() -> dict[str, str]:
    """Return the rules, alone or behind others, that are not in the league, each with the reason."""
    found = {name: texts for name in aggregators.members() if isinstance(texts := _texts(name), str)}
    for entry in entries():
        if not entry.before and (reason := _not_behind(entry)):
            found[f"{entry.key} behind nnm or arc"] = reason
    return found


def _not_behind(entry: Entry) -> str | None:
    """Return why a rule has no row behind a pre-aggregator, or None."""
    rule = parse(entry.candidates[0])
    if rule.declared(CLIENTS) is None and not isinstance(rule, Mean):
        return "declares no f, so that it gives no promise that the step before it could strengthen"
    return _NOT_BEHIND.get(entry.candidates[0].partition("(")[0])


def _texts(name: str) -> tuple[str, ...] | str:
    """Return the candidates of a registered rule, or the reason why it cannot run."""
    cls = aggregators.members()[name]
    f = [f"f={ATTACKERS}"] if any(each.name == "f" for each in fields(cls)) else []
    own = CANDIDATES.get(name, ("",))
    try:
        texts = tuple(str(parse(f"{name}({', '.join([*f, *filter(None, [each])])})")) for each in own)
        for text in texts:
            _config("digits", text, PARTITIONS[0], NONE, SEEDS[0])
    except FlwrRobustError as error:
        return str(error).removeprefix("configuration: ").partition(";")[0]
    return texts


def entry_of(texts: Sequence[str]) -> Entry:
    """Return the row of a rule of the user's own.

    Parameters
    ----------
    texts : sequence of str
        Its defence string, and further ones among which validation samples decide.

    Raises
    ------
    FlwrRobustError
        If a text is no rule, or does not fit the league's n.
    """
    written = tuple(dict.fromkeys(str(parse(text)) for text in texts))
    for text in written:
        _config("digits", text, PARTITIONS[0], NONE, SEEDS[0])
    return Entry(written)


@cache
def attacks() -> Mapping[str, str]:
    """Return the attacks as texts of the run config, by label; without attack is the first.

    Examples
    --------
    >>> list(attacks())[:2], attacks()["sybil(k=f, divide=True, base='sign_flip(c=10.0)')"]
    (['none', 'scale(c=1000.0)'], "sybil(k=3, divide=True, base='sign_flip(c=10.0)')")
    """
    found = {NONE: NONE}
    for attack in BATTERY:
        if _reason(attack) is None:
            text = (attack.data or attack.message).replace("{f}", str(ATTACKERS))
            if attack.knows_defence:
                text = text.removesuffix(")") + f", budget={SEARCHES})"
            found[attack.label] = text
    return MappingProxyType(found)


def left_out() -> dict[str, str]:
    """Return the attacks of the battery that the league leaves out, each with the reason."""
    return {attack.label: reason for attack in BATTERY if (reason := _reason(attack)) is not None}


def _reason(attack: Attack) -> str | None:
    """Return why the league leaves an attack out, or None."""
    if reason := _LEFT_OUT_FAMILIES.get(attack.family):
        return reason
    if attack.data and attack.message:
        return "is two attacks at once, and a run config holds one; `red-team` runs it"
    return _LEFT_OUT.get(attack.label)


# -- the record -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What a rule reaches under one attack.

    Attributes
    ----------
    accuracy : tuple of float
        The test accuracy of each seed.
    worst : tuple of float
        The accuracy on the class that is recognised least often.
    classes : tuple of int
        Which class that is.
    digest : str
        The beginning of the SHA-256 of all final models.
    failed : str
        Why there is no model; its accuracies are then 0.
    """

    accuracy: tuple[float, ...]
    worst: tuple[float, ...]
    classes: tuple[int, ...]
    digest: str
    failed: str = ""

    @property
    def mean(self) -> float:
        """The mean accuracy over seeds."""
        return statistics.fmean(self.accuracy)

    @property
    def spread(self) -> float:
        """The standard deviation over seeds."""
        return statistics.stdev(self.accuracy)

    def packed(self) -> list[Any]:
        """Return the cell as it is recorded."""
        held = [list(self.accuracy), list(self.worst), list(self.classes), self.digest]
        return [*held, self.failed] if self.failed else held

    @classmethod
    def unpacked(cls, held: Sequence[Any]) -> Cell:
        """Return a recorded cell."""
        return cls(tuple(held[0]), tuple(held[1]), tuple(held[2]), *held[3:])


@dataclass(frozen=True)
class Choice:
    """A choice among candidates.

    Attributes
    ----------
    values : mapping of str to (float, str)
        For each candidate its worst accuracy on validation samples, and the attack there.
    """

    values: Mapping[str, tuple[float, str]]

    @property
    def chosen(self) -> str:
        """The candidate with the best worst case; of equal ones the first."""
        return max(self.values, key=lambda text: self.values[text][0])


Group = tuple[str, str, str]
"""A data set, a rule and a partition."""


@dataclass
class League:
    """All that has been run.

    Attributes
    ----------
    groups : dict
        The cells by label of the attack, for each data set, rule and partition.
    choices : dict
        The choices, by data set and key of the entry.
    costs : dict
        Milliseconds of CPU time per aggregation, by rule.
    where : dict
        When and where the last group was run.
    """

    groups: dict[Group, dict[str, Cell]] = field(default_factory=dict)
    choices: dict[tuple[str, str], Choice] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    where: dict[str, Any] = field(default_factory=dict)

    def chosen(self, data: str, entry: Entry) -> str | None:
        """Return the defence string of an entry on a data set; None if the choice is not yet made."""
        if len(entry.candidates) == 1:
            return entry.text(entry.candidates[0])
        made = self.choices.get((data, entry.key))
        return None if made is None else entry.text(made.chosen)

    def add(self, other: League) -> None:
        """Take over from another record what this one lacks."""
        for group, cells in other.groups.items():
            own = self.groups.setdefault(group, {})
            own.update({label: cell for label, cell in cells.items() if label not in own})
        self.choices = {**other.choices, **self.choices}
        self.costs = {**other.costs, **self.costs}
        self.where = self.where or other.where

    def missing(self, data: str, rule: str, partition: str) -> list[str]:
        """Return the labels of the attacks that a group lacks."""
        held = self.groups.get((data, rule, partition), {})
        return [label for label in attacks() if label not in held]

    def text(self) -> str:
        """Return the record as it is written."""
        head = {"schema": 1, "terms": _terms(), "circumstances": self.where, "costs": self.costs}
        choices = [
            json.dumps({"data": data, "rule": key, "values": made.values}) for (data, key), made in self.choices.items()
        ]
        groups = [
            json.dumps(
                {"data": data, "rule": rule, "partition": partition}
                | {"attacks": {label: cell.packed() for label, cell in cells.items()}}
            )
            for (data, rule, partition), cells in self.groups.items()
        ]
        lists = [
            f'"{name}": [\n' + ",\n".join(lines) + "\n]" for name, lines in (("choices", choices), ("groups", groups))
        ]
        return ",\n".join([json.dumps(head)[:-1], *lists]) + "}\n"

    def write(self, path: Path) -> None:
        """Write the record."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: file.write(self.text().encode()))
        except OSError as error:
            raise FlwrRobustError(f"league: {path} cannot be written ({error.strerror}); name another file") from None


def read_league(path: Path = RECORD) -> League:
    """Read a record; if there is no file, it is empty.

    Raises
    ------
    FlwrRobustError
        If the file is no record, or its runs were under other terms.
    """
    if not path.exists():
        return League()
    try:
        held = json.loads(path.read_text())
        terms = held["terms"]
        league = League(costs=held["costs"], where=held["circumstances"])
        for line in held["choices"]:
            values = {text: (float(value), str(label)) for text, (value, label) in line["values"].items()}
            league.choices[line["data"], line["rule"]] = Choice(values)
        for line in held["groups"]:
            cells = {label: Cell.unpacked(cell) for label, cell in line["attacks"].items()}
            league.groups[line["data"], line["rule"], line["partition"]] = cells
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError) as error:
        raise FlwrRobustError(f"league: {path} cannot be read ({error!r}); name another file, or delete it") from None
    if odd := next((key for key, value in _terms().items() if terms.get(key) != value), None):
        raise FlwrRobustError(
            f"league: {path} was run under other terms, {odd}={terms.get(odd)!r}; now {odd}={_terms()[odd]!r}: name "
            f"another file"
        )
    return league


def _terms() -> dict[str, Any]:
    """Return all that every run shares, as it is recorded."""
    return {**TERMS, "attackers": ATTACKERS, "seeds": [*SEEDS], "searches": SEARCHES, "chosen-on": [*CHOSEN_ON]}


# -- runs -----------------------------------------------------------------------------------------


def _config(data: str, rule: str, partition: str, label: str, seed: int, folder: str = "") -> RunConfig:
    """Return the configuration of a run."""
    text = attacks()[label]
    of_attack = {} if text == NONE else {"attackers": ATTACKERS, "knowledge": "defence"}
    own = {"task": DATA_SETS[data], "defence": rule, "partition": partition, "attack": text, "seed": seed}
    return RunConfig.from_mapping({**TERMS, **own, **of_attack, "data": folder}, warn=False)


def _results(configs: Sequence[RunConfig]) -> list[dict[str, Any] | FlwrRobustError]:
    """Return the result of every run, or why there is no model."""
    found = dict(simulate_many(configs, len(configs)))
    return [found[place] for place in range(len(configs))]


def run_group(
    data: str, rule: str, partition: str, labels: Sequence[str] | None = None, folder: str = ""
) -> dict[str, Cell]:
    """Run a rule on one partition of a data set, under several attacks.

    Parameters
    ----------
    data, rule, partition : str
        One of `DATA_SETS`, a defence string, one of `PARTITIONS`.
    labels : sequence of str, optional
        The labels of the attacks; all when not given.
    folder : str
        The folder of the data; where they lie by default when empty.

    Returns
    -------
    dict
        The cells by label.

    Raises
    ------
    FlwrRobustError
        If the data are missing, or a run is not possible.
    """
    wanted = [*attacks()] if labels is None else [*labels]
    outcomes = iter(
        _results([_config(data, rule, partition, label, seed, folder) for label in wanted for seed in SEEDS])
    )
    return {label: _cell([next(outcomes) for _ in SEEDS]) for label in wanted}


def _cell(outcomes: Sequence[dict[str, Any] | FlwrRobustError]) -> Cell:
    """Return the cell of the runs of all seeds."""
    rows, models, failed = [], hashlib.sha256(), ""
    for outcome in outcomes:
        if isinstance(outcome, FlwrRobustError):
            failed = str(outcome)
            rows.append((0.0, 0.0, -1))
            continue
        final = outcome["curve"][-1]
        models.update(outcome["model_sha256"].encode())
        rows.append((round(final["accuracy"], 4), round(final["worst_class"], 4), int(final["lowest_class"])))
    accuracy, worst, classes = zip(*rows, strict=True)
    return Cell(accuracy, worst, classes, models.hexdigest()[:12], failed)


def choose_for(data: str, candidates: Sequence[str], folder: str = "") -> Choice:
    """Choose a hyper-parameter by the worst accuracy on validation samples, over attacks that do not search.

    Parameters
    ----------
    data : str
        One of `DATA_SETS`.
    candidates : sequence of str
        The defence strings.
    folder : str
        As for `run_group`.
    """
    partition, seed = CHOSEN_ON
    labels = [attack.label for attack in BATTERY if attack.label in attacks() and not attack.knows_defence]
    values = {}
    for text in candidates:
        outcomes = _results([_config(data, text, partition, label, seed, folder) for label in (NONE, *labels)])
        reached = [
            (0.0 if isinstance(found, FlwrRobustError) else round(found["curve"][-1]["validation_accuracy"], 4), label)
            for label, found in zip((NONE, *labels), outcomes, strict=True)
        ]
        values[text] = min(reached, key=lambda each: each[0])
    return Choice(values)


def measure_cost(rule: str) -> float:
    """Return the milliseconds of CPU time of an aggregation of `CLIENTS` rows of `SIZE` numbers: the least of 7."""
    values = torch.randn(CLIENTS, SIZE, generator=torch_generator(0, "cost"))
    values[-ATTACKERS:] *= 3
    parsed, threads = parse(rule), torch.get_num_threads()
    layout = [("0.weight", (10, SIZE // 10 - 1)), ("0.bias", (10,))]
    torch.set_num_threads(1)
    try:
        return round(1e3 * min(_seconds(parsed, values, layout) for _ in range(7)), 2)
    finally:
        torch.set_num_threads(threads)


def _seconds(rule: Rule, values: Tensor, layout: Sequence[tuple[str, tuple[int, ...]]]) -> float:
    """Return how long one aggregation takes; its rows are new each time, for rows remember their products."""
    stacks = [part.reshape(CLIENTS, *shape) for part, (_, shape) in zip(_split(values, layout), layout, strict=True)]
    rows = Rows.from_stacks(
        [stack.flatten(1) for stack in stacks],
        layout=[Layer(name, torch.Size(shape)) for name, shape in layout],
        seed=0,
    )
    begun = time.process_time()  # not the wall clock, for other programs may run beside it
    rule(rows)
    return time.process_time() - begun


def _split(values: Tensor, layout: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[Tensor, ...]:
    return values.split_with_sizes([torch.Size(shape).numel() for _, shape in layout], 1)


def waiting(league: League, rows: Sequence[Entry], on: Sequence[str]) -> int:
    """Return how many groups `run_league` would run."""
    texts = [(data, league.chosen(data, entry)) for data in on for entry in rows]
    return sum(text is None or bool(league.missing(data, text, p)) for data, text in texts for p in PARTITIONS)


def run_league(
    league: League, rows: Sequence[Entry], on: Sequence[str] = tuple(DATA_SETS), folder: str = ""
) -> Iterator[tuple[str, str, str, float]]:
    """Run what a record lacks, group by group; first every rule alone on all data sets.

    Parameters
    ----------
    league : League
        The record; it is filled.
    rows : sequence of Entry
        The rows to fill.
    on : sequence of str
        The data sets.
    folder : str
        As for `run_group`.

    Yields
    ------
    (str, str, str, float)
        Data set, rule and partition of a finished group, and the seconds that it took.

    Raises
    ------
    FlwrRobustError
        Before the first run, if the data are missing.
    """
    for data in on:
        check_choice("league", "--on", data, tuple(DATA_SETS))
        try:
            load_task(DATA_SETS[data], folder or None)
        except DataUnavailableError as error:
            raise DataUnavailableError(f"league: {error}; or leave these data out, with --on") from None
    for behind in (False, True):
        for data in on:
            for entry in rows:
                if bool(entry.before) == behind:
                    yield from _run_entry(league, data, entry, folder)


def _run_entry(league: League, data: str, entry: Entry, folder: str) -> Iterator[tuple[str, str, str, float]]:
    """Run what an entry lacks on a data set."""
    if league.chosen(data, entry) is None:
        league.choices[data, entry.key] = choose_for(data, entry.candidates, folder)
    rule = league.chosen(data, entry)
    assert rule is not None
    if rule not in league.costs:
        league.costs[rule] = measure_cost(rule)
    for partition in PARTITIONS:
        if lacking := league.missing(data, rule, partition):
            begun = time.perf_counter()
            cells = run_group(data, rule, partition, lacking, folder)
            league.groups.setdefault((data, rule, partition), {}).update(cells)
            league.where = circumstances()
            yield data, rule, partition, time.perf_counter() - begun
