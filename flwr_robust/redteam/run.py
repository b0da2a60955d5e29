"""A red team for any Flower strategy: it runs the battery of attacks against the strategy on handwritten digits.

The clients are this project's own. Clients that poison their data train with real gradients. Other attacks rewrite the
replies between the clients and the strategy. The strategy sees only what a server sees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import pickle
import statistics
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from rich.console import Console

from flwr_robust.app.client import app as client_app
from flwr_robust.attacks.message.base import Knowledge
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rule import Rule
from flwr_robust.errors import ConfigurationError, FlwrRobustError, check_integer
from flwr_robust.files import write_atomically
from flwr_robust.flower import AdversarialGrid, InProcessGrid, RobustStrategy
from flwr_robust.flower.admission import short
from flwr_robust.flower.wire import decode_record, encode_record
from flwr_robust.printing import html_block, html_table
from flwr_robust.redteam.battery import BATTERY, HONEST_MEAN, NO_ATTACK, Attack
from flwr_robust.round_seeds import FixedSeed, SecretSeed
from flwr_robust.runs.config import KEYS, RunConfig
from flwr_robust.runs.results import evaluator
from flwr_robust.studies.runner import circumstances, progress_bar
from flwr_robust.studies.workers import side_by_side
from flwr_robust.tasks.metrics import VALIDATION

__all__ = [
    "DIED",
    "NOT_FINITE",
    "NOT_TRIED",
    "SOME_DIED",
    "MakeStrategy",
    "RedTeam",
    "Run",
    "Setting",
    "quiet",
    "read_red_team",
    "red_team",
    "run_once",
]

MakeStrategy = Callable[[], Strategy]
"""A function that makes a new strategy."""

DIED, SOME_DIED, NOT_TRIED = "died", "†", "-"
"""What tables show if no run under an attack left a finite model, if those of some seeds did not, or without a run."""

NOT_FINITE = "the model is not finite (NaN), without an error"
"""Why a run died whose strategy raised no error, but whose last model holds NaN or infinity."""


@dataclass(frozen=True)
class Setting:
    """What is attacked, with all settings except the attack, the real f (number of attackers) and the seed.

    Attributes
    ----------
    name : str
        The name of the strategy in tables.
    subject : str
        How the strategy was made.
    declared_f : int
        The declared f: how many attackers the strategy is made for.
    clients : int
        n.
    rounds : int
        Rounds of training, each of them under attack.
    partition : str
        How the samples are divided among clients, as in a run config.
    model : str
        ``softmax``, ``mlp`` or ``cnn``.
    message : str
        What clients send: ``parameters``, or the kind of message of a `RobustStrategy`.
    rule : str
        The rule that attackers assume for a strategy whose rule is unknown; empty: none.
    task, local_steps, local_learning_rate, batch_size
        As in a run config.
    validation : float
        Share of every client's training samples that is held out for validation; 0: none. Those of attackers do not
        count.
    """

    name: str
    subject: str
    declared_f: int
    clients: int = 12
    rounds: int = 30
    partition: str = "dirichlet(beta=1.0)"
    model: str = "mlp"
    message: str = "parameters"
    rule: str = ""
    task: str = "digits"
    local_steps: int = 5
    local_learning_rate: float = 0.3
    batch_size: int = 32
    validation: float = 0.0

    def config(self, seed: int, attack: Attack = NO_ATTACK, attackers: int = 0) -> RunConfig:
        """Return the configuration of the clients and of the trial that measures an attack on data."""
        text = str(attack.on_data(attackers)) if attack.data and attackers else "none"
        own = {"local_steps": self.local_steps, "local_learning_rate": self.local_learning_rate}
        local: dict[str, Any] = own if self.message in KEYS["local-steps"].messages else {}
        return RunConfig(
            task=self.task,
            model=self.model,
            partition=self.partition,
            validation=self.validation,
            clients=self.clients,
            attack=text,
            attackers=0 if text == "none" else attackers,
            message=self.message,
            batch_size=self.batch_size,
            rounds=self.rounds,
            evaluate_every=self.rounds,
            seed=seed,
            **local,
        )


@dataclass(frozen=True)
class Run:
    """The result of one run.

    Attributes
    ----------
    attack : str
        The attack's label.
    real_f, seed : int
        The number of attackers; the source of all draws.
    accuracy : float
        Test accuracy of the last model, in [0, 1]; 0 if there is none or it is not finite.
    success : float or None
        For attacks with a target label: the share of successful trials.
    died : str
        When the strategy raised an error, and which; empty if it did not. If no round changed the model, that is such
        an error.
    finite : bool
        Whether all numbers of the last model are finite.
    validation : float or None
        Accuracy of the last model on the validation samples of the honest clients, in the same way; None if there are
        none.
    """

    attack: str
    real_f: int
    seed: int
    accuracy: float
    success: float | None = None
    died: str = ""
    finite: bool = True
    validation: float | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        """The attack, real f and seed of the run."""
        return self.attack, self.real_f, self.seed

    @property
    def end(self) -> str:
        """Why the run left no model that can be used; empty if it left one."""
        return self.died or ("" if self.finite else NOT_FINITE)


@dataclass(frozen=True, repr=False)
class RedTeam:
    """The results of a red team.

    Attributes
    ----------
    setting : Setting
        The strategy and the settings of the attack.
    families : mapping of str to str
        The family of each attack by its label, in the order of the battery.
    runs : mapping
        The runs by attack, real f and seed.
    left_out : mapping of str to str
        Why an attack was not run, by its label.
    """

    setting: Setting
    families: Mapping[str, str]
    runs: Mapping[tuple[str, int, int], Run]
    left_out: Mapping[str, str]

    @property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return sorted({seed for _, _, seed in self.runs})

    @property
    def real_f(self) -> list[int]:
        """The numbers of attackers that were tried, in ascending order, without 0."""
        return sorted({f for label, f, _ in self.runs if label in self.families} - {0})

    @property
    def alone(self) -> float:
        """Accuracy of the strategy without attackers, mean over seeds."""
        accuracy = self.accuracy(NO_ATTACK.label, 0)
        assert accuracy is not None
        return accuracy

    def of(self, label: str, f: int) -> list[Run]:
        """Return the runs of an attack by f attackers, one per seed."""
        return [self.runs[label, f, seed] for seed in self.seeds if (label, f, seed) in self.runs]

    def accuracy(self, label: str, f: int) -> float | None:
        """Return the accuracy under an attack, mean over seeds; None if it was not tried."""
        found = self.of(label, f)
        return statistics.fmean(run.accuracy for run in found) if found else None

    def validated(self, label: str, f: int) -> float | None:
        """Return the accuracy on validation samples under an attack, mean over seeds; None if it was not measured."""
        found = [run.validation for run in self.of(label, f) if run.validation is not None]
        return statistics.fmean(found) if found else None

    def success(self, label: str, f: int) -> float | None:
        """Return the success of an attack, mean over seeds; None if it has no target or no model was left."""
        found = [run.success for run in self.of(label, f) if run.success is not None]
        return statistics.fmean(found) if found else None

    def honest(self, f: int) -> float | None:
        """Return the accuracy of the mean of the honest clients, with f clients left out."""
        return self.accuracy(HONEST_MEAN.label, f)

    def died(self, label: str, f: int) -> bool:
        """Say whether no run of an attack by f attackers left a finite model."""
        found = self.of(label, f)
        return bool(found) and all(run.end for run in found)

    def worst(self, attackers: Iterable[int]) -> tuple[float, str, int]:
        """Return the lowest accuracy under any attack with one of these f, with its label and its f.

        Of equal accuracies, one whose runs all died is the worst.
        """
        tried = [
            (accuracy, label, f)
            for f in attackers
            for label in self.families
            if (accuracy := self.accuracy(label, f)) is not None
        ]
        return min([*tried, (self.alone, NO_ATTACK.label, 0)], key=lambda at: (at[0], not self.died(*at[1:])))

    def told(self, label: str, f: int) -> str:
        """Return the accuracy under an attack in percent, or that the model died; "-" if it was not tried."""
        accuracy = self.accuracy(label, f)
        if accuracy is None:
            return NOT_TRIED
        if self.died(label, f):
            return DIED
        return f"{100 * accuracy:.1f}{SOME_DIED if any(run.end for run in self.of(label, f)) else ''}"

    @property
    def bottom(self) -> tuple[float, str, int]:
        """The worst case with at most as many attackers as declared."""
        return self.worst(f for f in self.real_f if f <= self.setting.declared_f)

    def holds(self, floor: float) -> bool:
        """Say whether no accuracy with at most the declared number of attackers is below a floor in percent.

        A run that died, also by a model that is not finite, is below every floor. If no attack was tried, the result is
        False.
        """
        within = [f for f in self.real_f if f <= self.setting.declared_f]
        tried = [run for label in self.families for f in within for run in self.of(label, f)]
        return bool(tried) and not any(run.end for run in tried) and 100 * self.bottom[0] >= floor

    def _worst(self) -> str:
        accuracy, label, f = self.bottom
        return f"worst {100 * accuracy:.1f} % under {label} with f = {f}, alone {100 * self.alone:.1f} %"

    def __repr__(self) -> str:
        """Return one line with the strategy and the worst case."""
        return f"RedTeam({self.setting.name}: {len(self.runs)} runs, {self._worst()})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the accuracy under each attack, by real f; the worst case is bold."""
        tried = [label for label in self.families if label not in self.left_out]
        columns = ["attack", "family", *(f"f = {f}" for f in self.real_f)]
        baselines: list[list[object]] = [
            [NO_ATTACK.label, "", *(round(100 * self.alone, 1) for _ in self.real_f)],
            [HONEST_MEAN.label, "", *(self._percent(HONEST_MEAN.label, f) for f in self.real_f)],
        ]
        attacked = [[label, self.families[label], *(self._percent(label, f) for f in self.real_f)] for label in tried]
        worst = [(label, at) for at, f in enumerate(self.real_f) for label in [self.worst([f])[1]] if label in tried]
        table = html_table(
            columns,
            [*baselines, *attacked],
            caption=f"accuracy, %, mean over {len(self.seeds)} seeds; declared f = {self.setting.declared_f}",
            bars=range(2, len(columns)),
            strong={(2 + tried.index(label), 2 + at) for label, at in worst},
        )
        return html_block(f"{self.setting.name}: {self.setting.subject}", table, line=self._worst())

    def _percent(self, label: str, f: int) -> float | str:
        """Return the accuracy under an attack in percent, or the text that says what else happened."""
        told = self.told(label, f)
        return float(told) if told[0].isdigit() and told[-1].isdigit() else told


def red_team(
    make_strategy: MakeStrategy,
    *,
    name: str,
    subject: str = "",
    f: int | None = None,
    real_f: Sequence[int] = (),
    clients: int = 12,
    rounds: int = 30,
    partition: str = "dirichlet(beta=1.0)",
    model: str = "mlp",
    rule: str = "",
    validation: float = 0.0,
    seeds: Sequence[int] = (0,),
    attacks: Sequence[Attack] = BATTERY,
    path: Path | None = None,
    workers: int = 1,
    console: Console | None = None,
) -> RedTeam:
    """Run the battery against a strategy.

    Parameters
    ----------
    make_strategy : callable returning Strategy
        Makes a new strategy for every run.
    name : str
        The name of the strategy in tables.
    subject : str
        How the strategy is made; the name when not given.
    f : int, optional
        The declared f: how many attackers the strategy is made for. When not given, that of its rule.
    real_f : sequence of int
        The numbers of attackers; 1 to f + 1 when not given. 0 is always run.
    clients, rounds, partition, model, rule, validation
        As for `Setting`.
    seeds : sequence of int
        Every run is repeated with each seed.
    attacks : sequence of Attack
        The attacks to run; see `flwr_robust.redteam.battery.choose`.
    path : Path, optional
        A JSON file for the results. Every run is written when it has ended; runs in the file are not repeated.
    workers : int
        Number of processes. With more than one, ``make_strategy`` must be a function of a module, or
        `functools.partial` of one.
    console : Console, optional
        The console that shows progress; standard error when not given.

    Returns
    -------
    RedTeam

    Raises
    ------
    FlwrRobustError
        If the settings do not fit, or the strategy fails even without an attacker.

    Notes
    -----
    If a strategy raises an error, or no round changes the model, the run is recorded as died, with an accuracy of 0.

    Flower's own strategies ask nodes in a random order, without a seed. Here replies are sorted by node, so runs of
    strategies that ask all nodes repeat to the bit.
    """
    with quiet():
        probe = make_strategy()
    if rule and isinstance(probe, RobustStrategy):
        raise ConfigurationError(
            f"red team: rule is what attackers assume of a strategy whose rule is not known; this one's is "
            f"{probe.rule}; got rule={rule!r}"
        )
    setting = Setting(
        name=name,
        subject=subject or name,
        declared_f=_declared(probe, f, clients),
        clients=clients,
        rounds=rounds,
        partition=partition,
        model=model,
        message=probe.message if isinstance(probe, RobustStrategy) else "parameters",
        rule=rule,
        validation=validation,
    )
    tried = sorted(set(real_f) - {0}) if real_f else list(range(1, setting.declared_f + 2))
    _check(setting, probe, tried, seeds)
    left_out = _left_out(setting, probe, attacks)
    chosen = [attack for attack in attacks if attack.label not in left_out]
    planned = [
        *((NO_ATTACK, 0, seed) for seed in seeds),
        *((HONEST_MEAN, count, seed) for count in (0, *tried) for seed in seeds),
        *(
            (attack, count, seed)
            for attack in chosen
            for count in ([0, *tried] if attack.targeted else tried)
            for seed in seeds
        ),
    ]
    if workers > 1:
        _check_travels(make_strategy, workers)
    found = None if path is None or not path.exists() else _continued(path, setting)
    finished = dict(found.runs) if found else {}
    families = {attack.label: attack.family for attack in attacks}
    held = found or RedTeam(setting, {}, {}, {})
    kept = RedTeam(setting, {**held.families, **families}, finished, {**held.left_out, **left_out})
    waiting = [plan for plan in planned if (plan[0].label, *plan[1:]) not in finished]
    with closing(_runs(make_strategy, setting, waiting, workers)) as runs, progress_bar(console) as progress:
        bar = progress.add_task(f"red team: {name}", total=len(planned), completed=len(planned) - len(waiting))
        for run in runs:
            finished[run.key] = run
            if path is not None:
                _write(path, kept)
            progress.advance(bar)
    keys = [(attack.label, count, seed) for attack, count, seed in planned]
    return RedTeam(setting, families, {key: finished[key] for key in keys}, left_out)


# -- before anything runs --------------------------------------------------------------------------


def _declared(strategy: Strategy, f: int | None, clients: int) -> int:
    """Return the declared f: the given one or that of the rule; raise if the two differ."""
    own = strategy.rule.declared(clients) if isinstance(strategy, RobustStrategy) else None
    if f is not None:
        check_integer("red team", "f", f, 0)
        if own is not None and own != f:
            raise ConfigurationError(f"red team: f must be the one that the rule declares, {own}; got f={f}")
        return f
    if own is None:
        raise ConfigurationError(
            "red team: f must be given, as the strategy does not say how many attackers it is meant to bear"
        )
    return own


def _check(setting: Setting, strategy: Strategy, tried: Sequence[int], seeds: Sequence[int]) -> None:
    """Raise for settings that cannot work, or with which the run would wait for ever."""
    check_integer("red team", "clients", setting.clients, 2)
    for count in tried:
        check_integer("red team", "real f", count, 0)
    for seed in seeds:
        check_integer("red team", "seeds", seed, 0)
        _ = setting.config(seed).samples  # loads and splits the data, to raise its errors
    if not seeds:
        raise ConfigurationError("red team: seeds must hold at least one; got none")
    if (most := max(tried, default=0)) >= setting.clients:
        raise ConfigurationError(
            f"red team: there must be an honest client beside real f={most} attackers; got clients={setting.clients}"
        )
    rule = _assumed(setting, strategy)
    if rule is not None and (sentence := rule.check(setting.clients)):
        raise ConfigurationError(f"red team: {sentence}")
    for field in ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes"):
        asked = getattr(strategy, field, 0)
        if field == "min_evaluate_nodes" and getattr(strategy, "fraction_evaluate", 1.0) == 0:
            continue
        if isinstance(asked, int) and asked > setting.clients:
            raise ConfigurationError(
                f"red team: the strategy waits for {field}={asked} nodes, but there are clients={setting.clients}"
            )


def _left_out(setting: Setting, strategy: Strategy, attacks: Sequence[Attack]) -> dict[str, str]:
    """Return the attacks that need the rule of a strategy if it is unknown, with the reason."""
    rule = _assumed(setting, strategy)
    if rule is None:
        reason = "the rule of this strategy is not known; give the one that attackers are to assume"
    elif rule.needs_trust:
        reason = f"{rule.name} compares with an update of the server's own, which attackers cannot know"
    else:
        return {}
    return {attack.label: reason for attack in attacks if attack.knows_defence}


def _assumed(setting: Setting, strategy: Strategy) -> Rule | None:
    """Return the rule for attackers that know the defence."""
    if isinstance(strategy, RobustStrategy):
        return strategy.rule
    return parse(setting.rule) if setting.rule else None


def _check_travels(make_strategy: MakeStrategy, workers: int) -> None:
    try:
        pickle.dumps(make_strategy)
    except Exception:  # the type of error depends on its parts
        raise ConfigurationError(
            f"red team: with workers={workers} the strategy is made in other processes, so make_strategy must be a "
            f"function of a module, or functools.partial of one; set workers=1 for any other"
        ) from None


# -- the runs --------------------------------------------------------------------------------------

Plan = tuple[Attack, int, int]


def _runs(make_strategy: MakeStrategy, setting: Setting, waiting: Sequence[Plan], workers: int) -> Generator[Run]:
    """Run the plan; the run that must not fail comes first and alone."""
    left = list(waiting)
    if left and left[0][0] == NO_ATTACK:
        run = run_once(make_strategy, setting, *left.pop(0))
        if run.died:
            raise FlwrRobustError(f"red team: {setting.name} cannot train even without an attacker: {run.died}")
        yield run
    calls = [(plan, (make_strategy, setting, *plan)) for plan in left]
    if workers == 1:
        yield from (run_once(*arguments) for _, arguments in calls)
        return
    with closing(side_by_side(run_once, calls, workers)) as outcomes:
        for _, outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome


class _OrderedGrid(InProcessGrid):
    """A Grid that returns replies in the order of nodes, also if a strategy asks them in another order."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages in the order of nodes, and pull their replies."""
        return super().send_and_receive(sorted(messages, key=lambda message: message.metadata.dst_node_id))


def run_once(make_strategy: MakeStrategy, setting: Setting, attack: Attack, real_f: int, seed: int) -> Run:
    """Train once, with ``real_f`` attackers.

    Parameters
    ----------
    make_strategy : callable returning Strategy
        Makes the strategy.
    setting : Setting
        The settings of the run.
    attack : Attack
        The attack of the last clients. With `HONEST_MEAN` they do not take part, and the strategy is the mean.
    real_f : int
        The number of attackers.
    seed : int
        Source of all draws.
    """
    with quiet():
        strategy = make_strategy() if attack != HONEST_MEAN else _mean_like(make_strategy())
    if isinstance(strategy, RobustStrategy) and isinstance(strategy.guard.seeds, SecretSeed):
        strategy.guard.seeds = FixedSeed(seed)
    config = setting.config(seed, attack, real_f)
    learner = config.learner()
    arrays = encode_record(dict(zip(learner.names, learner.arrays(), strict=True)))
    grid = _grid(strategy, setting, config, attack, real_f)
    reached = 0

    def after_round(server_round: int, model: ArrayRecord) -> None:
        nonlocal reached, arrays
        reached, arrays = server_round, model

    died, accuracy, success, finite = "", 0.0, None, True
    validation = 0.0 if setting.validation else None
    with quiet(), _frozen():
        try:
            strategy.start(grid=grid, initial_arrays=arrays, num_rounds=setting.rounds, evaluate_fn=after_round)
            model = decode_record(arrays)
            finite = all(bool(np.isfinite(values).all()) for values in model.values())
            if finite:
                trial = setting.config(seed, attack, max(real_f, 1)) if attack.targeted else config
                evaluate = evaluator(trial, honest=range(setting.clients - real_f))
                metrics = evaluate(setting.rounds, lambda: model) or {}
                accuracy, success = metrics["accuracy"], metrics.get("attack_success")
                validation = metrics.get(f"{VALIDATION}accuracy")
        except Exception as error:  # a strategy may raise any error for a client's message
            at = min(reached + 1, setting.rounds)
            died = f"in round {at}: {short(f'{type(error).__name__}: {error}')}"
    return Run(attack.label, real_f, seed, accuracy, success, died, finite, validation)


def _grid(strategy: Strategy, setting: Setting, config: RunConfig, attack: Attack, real_f: int) -> Grid:
    """Return the grid with the clients and the attackers among them."""
    grid = _OrderedGrid(client_app, setting.clients, config.to_mapping())
    crafted = attack.on_messages(real_f)
    if crafted is None or real_f == 0:
        return grid
    knows = attack.knows_defence
    rule = strategy if isinstance(strategy, RobustStrategy) else _assumed(setting, strategy)
    return AdversarialGrid(
        grid,
        crafted,
        real_f,
        knowledge=Knowledge.DEFENCE if knows else Knowledge.OMNISCIENT,
        rule=rule if knows else None,
        message=setting.message,
        seed=config.seed,
    )


def _mean_like(strategy: Strategy) -> RobustStrategy:
    """Return the mean as a strategy, with the kind of message and the step of another strategy."""
    if not isinstance(strategy, RobustStrategy):
        return RobustStrategy("mean()", fraction_evaluate=0.0)
    return RobustStrategy(
        "mean()",
        message=strategy.message,
        server_learning_rate=strategy.server_learning_rate,
        buffers=strategy.buffers,
        fraction_evaluate=0.0,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide Flower's log, and numpy's warnings about models that are not finite."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    """Exclude existing objects from garbage collection: Flower's Bulyan collects at every reply, for 0.1 seconds."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# -- files -----------------------------------------------------------------------------------------


def _write(path: Path, result: RedTeam) -> None:
    """Write a result with one run per line, in the order of the battery."""
    known = {attack.label: attack.family for attack in BATTERY if attack.label in result.families}
    families = {**known, **result.families}
    order = [NO_ATTACK.label, HONEST_MEAN.label, *families]
    runs = sorted(result.runs.values(), key=lambda run: (order.index(run.attack), run.real_f, run.seed))
    document = {
        "schema": 1,
        "setting": dataclasses.asdict(result.setting),
        "families": families,
        "left_out": dict(result.left_out),
        **circumstances(),
    }
    lines = ",\n".join(f"  {json.dumps(dataclasses.asdict(run))}" for run in runs)
    text = json.dumps(document, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n ]\n}}\n'
    write_atomically(path, lambda file: file.write(text.encode()))


def read_red_team(path: Path) -> RedTeam:
    """Read the results of a red team.

    Parameters
    ----------
    path : Path
        A file that `red_team` has written.

    Raises
    ------
    FlwrRobustError
        If it cannot be read.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        if document["schema"] != 1:
            raise ValueError
        runs = [Run(**values) for values in document["runs"]]
        setting = Setting(**document["setting"])
        return RedTeam(setting, document["families"], {run.key: run for run in runs}, document["left_out"])
    except FileNotFoundError:
        raise FlwrRobustError(
            f"red team: there is no file {path}; name one of those that `flwr-robust red-team` writes into its folder "
            f"of results"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise FlwrRobustError(
            f"{path} holds no result of a red team that can be read; name another, or delete it"
        ) from None


def _continued(path: Path, setting: Setting) -> RedTeam:
    """Return the results in a file, if they are of this setting."""
    found = read_red_team(path)
    for key, value in dataclasses.asdict(setting).items():
        if (there := getattr(found.setting, key)) != value:
            raise ConfigurationError(
                f"red team: {path} holds results with {key}={there!r}, not {value!r}; name another file, or delete it"
            )
    return found
