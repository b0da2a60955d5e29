"""RobustStrategy: a strategy that replaces FedAvg in a Flower app and aggregates with a robust rule.

In every round, the strategy sends the model to the sampled clients (nodes). The admission check
(`flwr_robust.flower.admission`) refuses unusable replies. The rule A aggregates the others as updates relative to the
model that was sent, and the model takes a step:

    x <- x + server_learning_rate * A({x_i - x})      message "parameters"
    x <- x + server_learning_rate * A({delta_i})      message "delta"
    x <- x - server_learning_rate * A({g_i})          messages "gradient" and "momentum"

With a ``server_momentum`` the step follows a velocity instead, v <- server_momentum * v + A (`heavy_ball`).

Arrays that are not learnt are treated differently. These are integers and booleans (BatchNorm's num_batches_tracked)
and statistics such as BatchNorm's running_mean and running_var, which ``statistics`` names. With "parameters" they take
the coordinate-wise median of the admitted replies. For integers this is the lower median, without averaging, so that
the type stays. With "delta" they take the sent value plus the median change. With "gradient" and "momentum" they stay
unchanged. With ``buffers="keep"`` they always stay unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from numpy.typing import NDArray

from flwr_robust.audit.events import SAMPLING_RISK
from flwr_robust.core.pipeline import as_rule
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Rule, State
from flwr_robust.diagnostics.planning import plan
from flwr_robust.errors import ConfigurationError, UnknownNameError, check_choice, check_integer, check_number
from flwr_robust.flower.admission import MOST_EXAMPLES, Admitted, Terms, check_names
from flwr_robust.flower.audit import Audit, observing
from flwr_robust.flower.expected import SentModel, check_statistics, idle_patterns
from flwr_robust.flower.face import Face
from flwr_robust.flower.guard import Guard
from flwr_robust.flower.metrics import robust_metrics
from flwr_robust.flower.observer import Observer
from flwr_robust.flower.options import FedAvgOptions, Options, TrustedFunction, check_fedavg_options, plain
from flwr_robust.flower.replies import admitted_rows, layout_of, learnt_of
from flwr_robust.flower.round_records import Round, Scalar
from flwr_robust.flower.wire import encode_record
from flwr_robust.protocol.buffers import STATISTICS, following
from flwr_robust.protocol.messages import MESSAGES, MessageKind, message_kind
from flwr_robust.protocol.momentum import HeavyBall
from flwr_robust.protocol.rounds import ServerStep, least_replies, moved, settle_round, too_few
from flwr_robust.round_seeds import round_seeds

__all__ = ["RobustStrategy"]

log = logging.getLogger("flwr")


class RobustStrategy(Face, FedAvg):
    """Flower's FedAvg with a robust rule in place of the weighted mean.

    Parameters
    ----------
    rule : Rule or str
        The defence, as an object or a defence string such as ``"clip(c=2.0) | trimmed_mean(f=2)"``.
    message : str
        What clients send: ``parameters`` (ordinary Flower clients; the default), ``delta``, ``gradient`` or
        ``momentum``.
    server_learning_rate : float
        Factor of the server's step, > 0; 1 applies the aggregate unchanged.
    server_momentum : float
        Weight of the server's last step in the next one, in [0, 1), as in Flower's FedAvgM. With a constant aggregate,
        steps become 1 / (1 - server_momentum) times as long. An attack that passes in one round also affects later
        rounds.
    buffers : str
        ``median`` or ``keep``: how arrays that are not learnt change.
    seed : int or str, optional
        Source of the client samples and of what the rule draws. When not given, it is secret: every run draws its own,
        and clients cannot predict it. An integer makes runs repeat; clients that know it can predict all draws. The
        text that an audit log reveals at the end repeats that run.
    trusted_fn : callable (round, ArrayRecord) -> sequence of arrays, optional
        Returns the server's own message, for rules that compare replies with one (monna, fltrust). It is the answer
        that an honest client would give to the model that was sent, one array per array of the model.
    compromised : int, optional
        How many of all clients the operator fears to be compromised, >= 0. Before the first round the strategy then
        says how likely a round asks more of them than the rule declares, or how many to ask instead. The audit log
        records it, and the robustness card states it. See `flwr_robust.plan`. Nothing else changes.
    train_metrics, evaluate_metrics : tuple of str, optional
        Metrics that every reply must hold; other metrics are not shown. When not given, the strategy shows the metrics
        that more than half of the replies hold.
    records : (str, str), optional
        The names under which replies must hold their ArrayRecord and MetricRecord. When not given, clients may choose
        any names.
    statistics : tuple of str
        Patterns of the names of arrays that hold statistics, such as BatchNorm's. ``*`` stands for any characters, as
        in ``"*/moving_mean"``. Torch's names are the default. These arrays follow ``buffers``, and the rule does not
        see them.
    max_examples : float
        The largest number of examples that is accepted.
    min_replies : int, optional
        The smallest number of replies with which a round is aggregated, >= 1; with fewer it is infeasible. When not
        given, this is what the rule needs. If the rule declares no f, it is more than half of the nodes asked.
    spares : int, optional
        How many nodes to ask beyond ``min_train_nodes`` where so many are there, >= 0. So as many may fail to answer.
        When not given: the declared f (1 if the rule declares none), and 0 if ``min_train_nodes`` is given.
    quarantine_after : int, optional
        Number of refused replies after which a node is no longer sampled (quarantine). If too few nodes for the rule
        are left, it is sampled all the same. `release` ends the quarantine.
    by_partition : bool, optional
        Whether partitions identify nodes; see `partitions`. When not given, they do so in a simulation only. In a
        deployment the node id is the only identity: ``partition-id`` is what a node says about itself.
    rest_after : int, optional
        Number of failures in a row (errors, or no answer) after which a node is not asked for some rounds. These are 2
        rounds, then twice as many each time, up to 64. This is no blame, and enough nodes for the rule are always left.
        When not given, it is 3 in a deployment; in a simulation no node rests.
    probation : int
        For how many rounds a node that joins after the first round is not asked, >= 0. If too few nodes for the rule
        are left, it is asked all the same.
    wait : float, optional
        How many seconds to wait for nodes at most, >= 0; then an error ends the run. When not given, the strategy waits
        without limit in a deployment. In a simulation it waits only while nodes still appear.
    deadline : float, optional
        Seconds after which a round closes if a quorum of nodes has answered without an error, > 0. Later replies are
        not read. When not given, a round closes when all have answered, or at the timeout of ``start``. With a deadline
        the result depends on which replies are in time; in an `InProcessGrid` all are.
    quorum : float, optional
        With a deadline: a share of the nodes asked, in (0, 1], or a whole number of replies above 1. When not given,
        these are all replies but the declared f, or more than half if the rule declares none.
    on_infeasible : str
        What follows an infeasible round, that is, one without an aggregate. ``keep`` continues with the unchanged
        model; ``stop`` ends the run after that round.
    observers : sequence of Observer
        Objects that are informed of every step of the run.
    audit : Audit or Path, optional
        The audit log that records the run, and from which it can be resumed. A folder means ``Audit(folder)``.
    **options
        FedAvg's options. The default of the minimum numbers of nodes is the smallest number that fits the rule. A
        refused reply lowers n but not the declared f, so use f clients more than that. Metrics are aggregated by their
        medians unless a function is given (`trimmed_metrics` makes one). The function receives replies that all hold
        the same metrics, none with more examples than twice the median.

    Attributes
    ----------
    guard : Guard
        Checks replies and keeps the records.
    state : State
        The rule's state, and the server's velocity.

    Raises
    ------
    ConfigurationError, UnknownNameError
        If a parameter is outside its bounds, or an option is unknown.

    Notes
    -----
    A subclass may define its own constructor, override the four methods of a round and call those of ``super()``, and
    wrap ``super().start``. The loop over the rounds may be run by another strategy, or by a subclass's own `start`.
    Then ``on_infeasible="stop"`` stops asking nodes, and ``audit`` raises an error before the first round.

    Examples
    --------
    >>> strategy = RobustStrategy("krum(f=2)", fraction_evaluate=0.5)
    >>> strategy
    RobustStrategy('krum(f=2)', fraction_evaluate=0.5)
    >>> str(strategy.rule), strategy.min_train_nodes
    ('krum(f=2)', 7)
    """

    _options: ClassVar[Collection[str]] = Options.__annotations__

    def __init__(
        self,
        rule: Rule | str,
        *,
        message: str = "parameters",
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        buffers: str = "median",
        seed: int | str | None = None,
        trusted_fn: TrustedFunction | None = None,
        compromised: int | None = None,
        train_metrics: tuple[str, ...] | None = None,
        evaluate_metrics: tuple[str, ...] | None = None,
        records: tuple[str, str] | None = None,
        statistics: tuple[str, ...] = STATISTICS,
        max_examples: float = MOST_EXAMPLES,
        min_replies: int | None = None,
        spares: int | None = None,
        quarantine_after: int | None = None,
        by_partition: bool | None = None,
        rest_after: int | None = None,
        probation: int = 0,
        wait: float | None = None,
        deadline: float | None = None,
        quorum: float | None = None,
        on_infeasible: str = "keep",
        observers: Sequence[Observer] = (),
        audit: Audit | Path | str | None = None,
        **options: Unpack[FedAvgOptions],
    ) -> None:
        owner = "strategy"
        if unknown := next((name for name in options if name not in FedAvgOptions.__annotations__), None):
            raise UnknownNameError(f"option of {type(self).__name__}", unknown, self._options)
        check_fedavg_options(owner, options)
        check_choice(owner, "message", message, MESSAGES)
        check_number(owner, "server_learning_rate", server_learning_rate, above=0)
        check_number(owner, "server_momentum", server_momentum, minimum=0, below=1)
        check_choice(owner, "buffers", buffers, ("median", "keep"))
        if trusted_fn is not None and not callable(trusted_fn):
            raise ConfigurationError(
                f"{owner}: trusted_fn must be a function (round, ArrayRecord) -> list of arrays; "
                f"got trusted_fn={trusted_fn!r:.100}"
            )
        check_statistics(owner, statistics)
        for name, number in (("min_replies", min_replies), ("spares", spares), ("compromised", compromised)):
            if number is not None:
                check_integer(owner, name, number, 1 if name == "min_replies" else 0)
        self.rule = as_rule(rule)
        least = max(2, _least(self.rule), min_replies or 0)
        if spares is None:
            declared = self.rule.declared(least)
            spares = 0 if "min_train_nodes" in options else 1 if declared is None else declared
        options.setdefault("min_train_nodes", least)
        options.setdefault("min_available_nodes", least)
        if options.get("train_metrics_aggr_fn") is None:
            options["train_metrics_aggr_fn"] = robust_metrics
        if options.get("evaluate_metrics_aggr_fn") is None:
            options["evaluate_metrics_aggr_fn"] = robust_metrics
        super().__init__(**plain(options))
        self.message = message
        self.server_learning_rate = plain(server_learning_rate)
        self.server_momentum = plain(server_momentum)
        self.buffers = buffers
        self.trusted_fn = trusted_fn
        self.compromised = plain(compromised)
        self.min_replies = plain(min_replies)
        self.spares = plain(spares)
        self.statistics = statistics
        if self.rule.needs_trust and trusted_fn is None:
            raise ConfigurationError(
                f"{self.rule}: it compares replies with an update of the server's own; pass trusted_fn"
            )
        self.state: State = self.rule.init()
        key = self.weighted_by_key
        check_names("train_metrics", train_metrics)
        check_names("evaluate_metrics", evaluate_metrics)
        self.guard = Guard(
            Terms(key, plain(max_examples), train_metrics, records),
            Terms(key, plain(max_examples), evaluate_metrics, records),
            seeds=round_seeds(plain(seed)),
            least=least,
            quarantine_after=plain(quarantine_after),
            by_partition=by_partition,
            rest_after=plain(rest_after),
            probation=plain(probation),
            wait=plain(wait),
            deadline=plain(deadline),
            quorum=plain(quorum),
            on_infeasible=on_infeasible,
            observers=observing(observers, audit),
        )

    def summary(self) -> None:
        """Log the defence and FedAvg's settings."""
        log.info("\t├──> Defence: %s", self.rule)
        log.info("\t│\t├── Messages: %s", self.message)
        log.info("\t│\t├── Server learning rate: %g", self.server_learning_rate)
        log.info("\t│\t└── Server momentum: %g", self.server_momentum)
        super().summary()

    def looped(self) -> tuple[Strategy, Callable[..., Result]]:
        """Return this strategy, and Flower's ``start``."""
        return self, partial(FedAvg.start, self)

    def settings(self) -> dict[str, Scalar]:
        """Return the rule and all scalar options."""
        return {**super().settings(), "defence": str(self.rule), "statistics": ", ".join(self.statistics)}

    def memory(self) -> Mapping[str, Any]:
        """Return the rule's state, and the server's velocity."""
        return self.state

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore the rule's state, and the server's velocity."""
        self.state = dict(memory)

    def state_of(self, kind: int | None = None) -> State:
        """Return the rule's state for the rows of a class; None stands for rounds that ask for no classes."""
        return self.state

    def _seed_of(self, server_round: int) -> int:
        """Return the seed of what is drawn in a round."""
        return self.guard.seeds.of(server_round)

    def usual_quorum(self, kind: str, asked: int) -> int:
        """Return all replies but the declared f, more than half where none is declared, and at least what is needed."""
        f, majority = self.rule.declared(asked), asked // 2 + 1
        needed = least_replies(self.rule, asked, self.min_replies) if kind == MessageType.TRAIN else majority
        return max(majority if f is None else asked - f, needed)

    # -- asking -----------------------------------------------------------------------------------

    def _ask(
        self,
        kind: str,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        model: SentModel | None = None,
    ) -> Round:
        """Return a round with sampled nodes."""
        train = kind == MessageType.TRAIN
        fraction = self.fraction_train if train else self.fraction_evaluate
        minimum = self.min_train_nodes if train else self.min_evaluate_nodes
        guard = self.guard
        guard.nodes.begin(grid)
        spares = self.spares if train else 0
        nodes, held, available = guard.nodes.sample(
            *(kind, server_round, grid, fraction, minimum, self.min_available_nodes, spares),
            seed=self._seed_of(server_round),
            who=str(self.rule),
            wait=guard.wait,
        )
        config["server-round"] = server_round
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        messages = tuple(Message(record, node, kind) for node in nodes)
        return Round(server_round, kind, messages, held.blamed, model, waiting=held.waiting, available=available)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and send them the model.

        Raises
        ------
        ConfigurationError
            Before the first round: if the model cannot be used, or the number of sampled nodes does not fit the rule.
        """
        if self.fraction_train == 0.0 or self._ends_before(server_round):
            return []
        sent = self.expected(server_round, arrays)
        if not sent.learnt:
            raise ConfigurationError(
                "model: it must hold at least one floating-point array beside statistics; got none"
            )
        if not self.history and (idle := idle_patterns(sent.arrays, self.statistics)):
            log.warning(
                "configure_train: no array of the model has a name like %s; its arrays are %s",
                " or ".join(idle),
                ", ".join(list(sent.arrays)[:10]),
            )
        opened = self._ask(MessageType.TRAIN, server_round, arrays, config, grid, sent)
        asked = len(opened.messages)
        if not self.history:
            layout = layout_of(learnt_of(sent))
            if sentence := self.rule.check(asked, asked=asked) or self.rule.check_layout(layout):
                raise ConfigurationError(sentence)
            self._check_slack(asked)
            if remark := self.rule.remark(asked, asked=asked, layout=layout):
                log.warning("configure_train: %s", remark)
        messages = self.guard.open(opened, arrays)
        if not self.history and self.compromised is not None:
            self._tell_plan(server_round, asked, opened.available or asked, self.compromised)
        return messages

    def _tell_plan(self, server_round: int, asked: int, clients: int, compromised: int) -> None:
        """Say how likely rounds ask more compromised clients than the rule declares, and inform observers."""
        if compromised > clients:
            raise ConfigurationError(
                f"strategy: compromised must be at most the {clients} nodes there are; got compromised={compromised}: "
                f"lower it"
            )
        found = plan(clients, compromised, asked, rounds=self.guard.rounds, rule=self.rule)
        log.log(logging.INFO if found.feasible else logging.WARNING, "configure_train: %s", found.sentence)
        self.guard.measured(server_round, SAMPLING_RISK, found.over_rounds, found.chance)

    def _check_slack(self, asked: int) -> None:
        """Raise if fewer nodes are asked than must answer; warn if all of them must."""
        needed = least_replies(self.rule, asked, self.min_replies)
        if needed > asked:
            raise ConfigurationError(
                f"strategy: min_replies must be at most the {asked} nodes asked; got min_replies={self.min_replies}"
            )
        self.check_quorum(asked, needed)
        if needed == asked:
            log.warning(
                "configure_train: %s needs a reply from each of the %s nodes asked: one that fails to answer makes a "
                "round infeasible; ask more",
                self.rule,
                asked,
            )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and send them the model to evaluate."""
        if self.fraction_evaluate == 0.0 or self._stopped_before(server_round):
            return []
        return self.guard.open(self._ask(MessageType.EVALUATE, server_round, arrays, config, grid), arrays)

    # -- aggregating ------------------------------------------------------------------------------

    @property
    def _kind(self) -> MessageKind:
        return message_kind(self.message)

    @property
    def _server_step(self) -> ServerStep:
        return ServerStep(self._kind, self.server_learning_rate, HeavyBall(self.server_momentum))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Admit replies, aggregate them, and step the model; no reply raises an error."""
        judged = self.guard.judge(MessageType.TRAIN, replies)
        if judged is None or judged.model is None:
            return None, None
        sent, members = judged.model, self._members(judged)
        rows = {k: self._rows(judged, sent, k, places) if places else None for k, places in members.items()}
        settled = settle_round(
            *(self.rule, rows, self.state, self._server_step),
            members=members,
            replies=len(judged.admitted),
            lacking=too_few(self.rule, self._heard(judged), len(judged.messages), self.min_replies),
        )
        self.state, arrays = settled.state, sent.record
        if settled.change is not None:
            arrays = encode_record(self._moved(sent, judged.admitted, settled.change))
        return self.guard.close_training(
            judged,
            settled.outcome,
            settled.sentence if judged.admitted else judged.unheard,
            arrays,
            None if settled.change is None else self.guard.metrics(judged, self.train_metrics_aggr_fn),
            rows=next(iter(rows.values())) if len(rows) == 1 else None,
            aggregate=settled.aggregate,
            state=self.state,
        )

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Admit replies and aggregate their metrics."""
        judged = self.guard.judge(MessageType.EVALUATE, replies)
        if judged is None:
            return None
        metrics = None if judged.unjudged else self.guard.metrics(judged, self.evaluate_metrics_aggr_fn)
        return self.guard.close_evaluation(judged, metrics)

    def expected(self, server_round: int, arrays: ArrayRecord) -> SentModel:
        """Return the model of a round together with what its replies must hold."""
        return SentModel(arrays, self.statistics)

    def _heard(self, judged: Round) -> int:
        """Return how many replies count towards the smallest number of replies."""
        return len(judged.admitted)

    def _members(self, judged: Round) -> Mapping[int | None, Sequence[int]]:
        """Return the admitted replies for each class of the round; an ordinary round has the one class None."""
        return {None: range(len(judged.admitted))}

    def _rows(self, judged: Round, sent: SentModel, k: int | None, places: Sequence[int]) -> Rows:
        """Return the rows that replies hold for a class."""
        trusted = None if self.trusted_fn is None else self._trusted(judged.number, sent)
        replies = [judged.admitted[place] for place in places]
        asked, seed = len(judged.messages), self._seed_of(judged.number)
        return admitted_rows(replies, sent, relative=self._kind.relative, asked=asked, trusted=trusted, seed=seed)

    def _trusted(self, server_round: int, sent: SentModel) -> torch.Tensor:
        """Return the server's own update as one row."""
        assert self.trusted_fn is not None
        given, models = self.trusted_fn(server_round, sent.record), list(sent.arrays.values())
        try:
            arrays = [a.detach().cpu().numpy() if isinstance(a, torch.Tensor) else np.asarray(a) for a in given]
        except (TypeError, ValueError):
            arrays = []
        if [a.shape for a in arrays] != [m.shape for m in models] or any(a.dtype.kind not in "fiub" for a in arrays):
            raise ConfigurationError(
                f"strategy: trusted_fn must return a sequence of arrays, one per array of the model and of its "
                f"shape; got {type(given).__name__} with shapes {[a.shape for a in arrays]!s:.80}"
            )
        start = 1.0 if self._kind.relative else 0.0
        parts = [arrays[i].astype(np.float64) - start * models[i].astype(np.float64) for i in sent.learnt]
        return torch.from_numpy(np.concatenate([part.ravel() for part in parts]))

    def _moved(
        self, sent: SentModel, admitted: Sequence[Admitted], change: NDArray[np.float64]
    ) -> dict[str, NDArray[Any]]:
        """Return the model after its step; arrays that are not learnt follow their own policy."""
        learnt, offset = set(sent.learnt), 0
        arrays: dict[str, NDArray[Any]] = {}
        for index, (name, model) in enumerate(sent.arrays.items()):
            if index in learnt:
                arrays[name] = moved(model, change[offset : offset + model.size].reshape(model.shape))
                offset += model.size
            elif self.buffers == "keep":
                arrays[name] = model
            else:
                arrays[name] = following(self._kind, model, [reply.arrays[index] for reply in admitted])
        return arrays


def _least(rule: Rule) -> int:
    """Return the smallest number of rows that fits a rule."""
    return next((n for n in range(1, 10_000) if rule.check(n) is None), 1)
