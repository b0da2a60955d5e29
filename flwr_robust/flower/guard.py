"""Guard: check the replies of every round, and record the result.

A round of training or evaluation has three steps on the guard. The strategy opens the round with the messages that it
sends. The guard checks each reply and admits or refuses it (`flwr_robust.flower.admission`). The strategy closes the
round with its result, which becomes a `RoundRecord`. At each step the guard informs its observers, such as an audit
log. Its `Nodes` decide which nodes to ask, and which are in quarantine, that is, not asked any more. The guard does not
depend on the rule.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict

from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Outcome, State
from flwr_robust.errors import ConfigurationError, check_choice, check_number
from flwr_robust.flower.admission import Admitted, Reason, Refusal, Terms, admit, rebuilt
from flwr_robust.flower.app_faults import app_fault
from flwr_robust.flower.deadlines import check_deadline
from flwr_robust.flower.failures import failure
from flwr_robust.flower.metrics import MetricsFunction, robust_metrics
from flwr_robust.flower.observer import Observer, check_observers
from flwr_robust.flower.quarantine import Nodes
from flwr_robust.flower.round_records import Aggregation, Round, RoundRecord, Scalar
from flwr_robust.round_seeds import RoundSeeds, SecretSeed

__all__ = ["Guard"]

log = logging.getLogger("flwr")

_MOST_REMARKS = 5  # that are logged in a round; all are on record


class Guard:
    """Checks replies and keeps the records of rounds.

    Parameters
    ----------
    terms : Terms
        What replies to training must hold in addition to the model's arrays.
    evaluation_terms : Terms
        The same in evaluation.
    seeds : RoundSeeds, optional
        The seeds of what is drawn in the rounds; secret when not given.
    least, quarantine_after, by_partition, rest_after, probation
        As for `Nodes`.
    wait : float, optional
        How many seconds to wait for nodes at most; see `wait_for_nodes`.
    deadline, quorum : float, optional
        When a round closes; see `flwr_robust.flower.deadlines`.
    on_infeasible : str
        ``keep`` or ``stop``: whether the run continues after an infeasible round, that is, one without an aggregate.
    clamp : float, optional
        Largest number of examples passed to functions of Flower and of the user, as a multiple of the median; >= 1.
        Larger numbers are lowered to it.
    observers : sequence of Observer
        The objects that are informed of every step.

    Attributes
    ----------
    nodes : Nodes
        The nodes of the run: their partitions, and which of them to ask.
    seeds : RoundSeeds
        The seeds of the run's rounds.
    history, evaluations : list of RoundRecord
        One record per round of training, and of evaluation.
    stopped : str
        Why the run ends; empty while it continues.
    rounds : int
        How many rounds the run has, as ``start`` was told; 1 where another strategy runs the loop.

    Raises
    ------
    ConfigurationError
        If a parameter is outside its bounds.
    """

    def __init__(
        self,
        terms: Terms,
        evaluation_terms: Terms,
        *,
        seeds: RoundSeeds | None = None,
        least: int = 1,
        quarantine_after: int | None = None,
        by_partition: bool | None = None,
        rest_after: int | None = None,
        probation: int = 0,
        wait: float | None = None,
        deadline: float | None = None,
        quorum: float | None = None,
        on_infeasible: str = "keep",
        clamp: float | None = 2.0,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.nodes = Nodes(
            least=least,
            quarantine_after=quarantine_after,
            by_partition=by_partition,
            rest_after=rest_after,
            probation=probation,
        )
        if wait is not None:
            check_number("strategy", "wait", wait, minimum=0)
        self.wait = wait
        check_deadline("strategy", deadline, quorum)
        self.deadline, self.quorum = deadline, quorum
        self._looping = False
        check_choice("strategy", "on_infeasible", on_infeasible, ("keep", "stop"))
        if clamp is not None:
            check_number("strategy", "clamp", clamp, minimum=1)
        check_observers(observers)
        self.seeds = SecretSeed() if seeds is None else seeds
        self.terms = {MessageType.TRAIN: terms, MessageType.EVALUATE: evaluation_terms}
        self.on_infeasible = on_infeasible
        self.clamp = clamp
        self.observers = tuple(observers)
        self.history: list[RoundRecord] = []
        self.evaluations: list[RoundRecord] = []
        self.stopped = ""
        self.rounds = 1
        self._open: Round | None = None
        self._faulty: set[str] = set()  # the kinds of messages that showed a fault of the app in all rounds

    @property
    def partitions(self) -> dict[int, int]:
        """The known partitions, by node."""
        return self.nodes.partitions

    @property
    def refusals(self) -> dict[int, int]:
        """How many replies of each node to training were refused for a fault that is certainly its own."""
        return self.nodes.refusals

    @property
    def replaced(self) -> dict[int, int]:
        """The partitions of nodes that had another id before the run was resumed."""
        return self.nodes.replaced

    @property
    def quarantined(self) -> tuple[int, ...]:
        """The nodes that are not asked to train, those with the fewest refusals first."""
        return self.nodes.quarantined

    @property
    def least(self) -> int:
        """The smallest number of nodes that quarantine leaves to ask."""
        return self.nodes.least

    def settings(self) -> dict[str, Scalar]:
        """Return the guard's scalar parameters, named as in a run config."""
        return {
            "seed": self.seeds.told,
            "least": self.nodes.least,
            "quarantine-after": self.nodes.quarantine_after,
            "by-partition": self.nodes.by_partition,
            "rest-after": self.nodes.rest_after,
            "probation": self.nodes.probation,
            "deadline": self.deadline,
            "quorum": self.quorum,
            "on-infeasible": self.on_infeasible,
            "clamp": self.clamp,
        }

    @contextmanager
    def looping(self) -> Iterator[None]:
        """Mark that the strategy's own loop runs the rounds, and closes them at the deadline."""
        self._looping = True
        try:
            yield
        finally:
            self._looping = False

    def release(self, node: int, reason: str = "") -> bool:
        """Take a node out of quarantine, forget its refusals and lift its ban; say whether there were any."""
        known = self.nodes.release(node)
        if known:
            for observer in self.observers:
                observer.node_released(node, reason)
        return known

    def ban(self, node: int, reason: str = "") -> None:
        """Ban a node: it is not asked, and its replies are refused, until it is released."""
        log.warning("Node %s is banned: %s", node, reason or "no reason given")
        self.nodes.banned.add(node)
        for observer in self.observers:
            observer.node_banned(node, reason)

    def attend(self) -> None:
        """Let observers ban and release nodes."""
        for observer in self.observers:
            observer.attended()

    def suspect(self, server_round: int, node: int, sign: str, detail: str) -> None:
        """Inform observers of a sign that a node may attack; it is not refused, and nothing else changes.

        Parameters
        ----------
        server_round, node : int
            The round after which the sign was found, and the node.
        sign : str
            The name of the sign, such as those in `flwr_robust.audit.signs`.
        detail : str
            What was found.
        """
        log.warning("\t> Node %s is suspected (%s): %s", node, sign, detail)
        for observer in self.observers:
            observer.suspected(server_round, node, sign, detail)

    def measured(self, server_round: int, quantity: str, value: float | None, method: str) -> None:
        """Inform observers of a quantity of the run; see `flwr_robust.audit.events.Measured`."""
        for observer in self.observers:
            observer.measured(server_round, quantity, value, method)

    # -- one round --------------------------------------------------------------------------------

    def open(self, opened: Round, arrays: ArrayRecord) -> list[Message]:
        """Open a round, and return its messages.

        Parameters
        ----------
        opened : Round
            The round.
        arrays : ArrayRecord
            The model to send.

        Raises
        ------
        ConfigurationError
            If there is a deadline, but another strategy or an own ``start`` runs the loop over the rounds.
        """
        if self.deadline is not None and not self._looping:
            raise ConfigurationError(
                f"strategy: deadline={self.deadline:g} needs this strategy's own start(), which closes the rounds; "
                f"another strategy around it runs them: remove deadline= here, and wrap the outermost one in "
                f"Guarded(..., deadline=...)"
            )
        self._open = opened
        if opened.quarantined:
            log.info("configure_%s: %s nodes are banned or in quarantine", opened.kind, len(opened.quarantined))
        if opened.waiting:
            log.info("configure_%s: %s nodes rest or are on probation", opened.kind, len(opened.waiting))
        for observer in self.observers:
            observer.round_configured(opened, arrays)
        return list(opened.messages)

    def judge(self, kind: str, replies: Iterable[Message]) -> Round | None:
        """Check the replies to the open round.

        Parameters
        ----------
        kind : str
            ``train`` or ``evaluate``.
        replies : iterable of Message
            The replies in the order of arrival.

        Returns
        -------
        Round or None
            The round with the admitted and refused replies; None if no round of this kind is open.
        """
        opened, self._open = self._open, None
        if opened is None or opened.kind != kind:
            if unasked := sum(1 for _ in replies):
                log.warning(
                    "aggregate_%s: %s replies are dropped, because this strategy sent nothing: a configure_%s of your "
                    "own must return what super().configure_%s returns",
                    *(kind, unasked, kind, kind),
                )
            return None
        replies = list(replies)  # all that will arrive
        self.attend()
        admitted, refused = admit(replies, opened.messages, self.terms[kind], opened.model)
        barred = [reply.node for reply in admitted if reply.node in self.nodes.banned]
        admitted = [reply for reply in admitted if reply.node not in self.nodes.banned]
        refused += [Refusal(node, Reason.BANNED) for node in barred]
        for reply in admitted:
            if reply.partition is not None:
                self.nodes.partitions.setdefault(reply.node, reply.partition)
        abstained = sorted((reply.node for reply in admitted if reply.abstains), key=self.nodes.order)
        admitted = sorted((r for r in admitted if not r.abstains), key=lambda reply: self.nodes.order(reply.node))
        besides = f", {len(abstained)} abstained" if abstained else ""
        turned_down = sum(refusal.count for refusal in refused)
        log.info("aggregate_%s: Admitted %s replies, refused %s%s", kind, len(admitted), turned_down, besides)
        remarks = Counter(reply.remark for reply in admitted if reply.remark)
        for remark, count in remarks.most_common(_MOST_REMARKS):
            log.info("\t> %s replies were mended: %s", count, remark)
        refused.sort(key=lambda refusal: self.nodes.order(refusal.node))
        verdicts: list[Admitted | Refusal] = [*admitted, *refused]
        for verdict in verdicts:
            for observer in self.observers:
                observer.reply_judged(opened.number, kind, verdict)
        for node in abstained:
            for observer in self.observers:
                observer.reply_abstained(opened.number, kind, node)
        fault = self._app_fault(opened, refused) if not admitted and not abstained else ""
        for refusal in refused:
            often = f", {refusal.count} times" if refusal.count > 1 else ""
            log.warning("\t> Refused node %s%s: %s (%s)", refusal.node, often, refusal.reason.value, refusal.detail)
            if refusal.reason.blames and not fault:
                self._count(opened.number, kind, refusal.node)
        self._settle(opened, [*(each.node for each in admitted), *abstained], refused)
        if fault and kind not in self._faulty:
            log.error("aggregate_%s: %s", kind, fault)
        (self._faulty.add if fault else self._faulty.discard)(kind)
        return dataclasses.replace(
            opened, admitted=tuple(admitted), refused=tuple(refused), abstained=tuple(abstained), fault=fault
        )

    def _app_fault(self, opened: Round, refused: Sequence[Refusal]) -> str:
        """Return what is wrong with the app, if this was so from the first round on; otherwise an empty text."""
        records = self.history if opened.kind == MessageType.TRAIN else self.evaluations
        return app_fault(opened.asked, refused) if opened.kind in self._faulty or not records else ""

    def _settle(self, opened: Round, answered: Sequence[int], refused: Sequence[Refusal]) -> None:
        """Count which nodes failed to answer, and let those rest that keep failing."""
        wrong = [refusal.node for refusal in refused if refusal.reason.blames]
        failed = set(opened.asked).difference(answered, wrong)
        for rest in self.nodes.settle(opened.kind, opened.number, opened.asked, failed):
            log.warning("\t> Node %s rests until round %s after %s failures", rest.node, rest.until, rest.failures)
            for observer in self.observers:
                observer.node_rested(opened.number, opened.kind, rest)

    def _count(self, server_round: int, kind: str, node: int) -> None:
        if self.nodes.refused(kind, node):
            count = self.nodes.ledger(kind)[node]
            log.warning("\t> Node %s is put into quarantine from %s after %s refusals", node, kind, count)
            for observer in self.observers:
                observer.node_quarantined(server_round, kind, node, count)

    def contents(self, judged: Round) -> list[RecordDict]:
        """Return the replies admitted to a round, rebuilt by `rebuilt`."""
        return rebuilt(judged.admitted, self.terms[judged.kind], judged.model, self.clamp)

    def metrics(self, judged: Round, aggregate: MetricsFunction) -> MetricRecord | None:
        """Aggregate the metrics of a round; if the function fails, return medians instead.

        Parameters
        ----------
        judged : Round
            The round.
        aggregate : callable (list of RecordDict, str) -> MetricRecord
            The function of Flower or of the user.

        Returns
        -------
        MetricRecord or None
            The aggregated metrics; None if no reply was admitted.
        """
        if not judged.admitted:
            return None
        contents, key = self.contents(judged), self.terms[judged.kind].weighted_by_key
        try:
            found = aggregate(contents, key)
            if not isinstance(found, MetricRecord | None):
                raise TypeError(f"it returned a {type(found).__name__}; return a MetricRecord")
            return found
        except Exception as error:
            failed = failure(aggregate, error)
            log.warning("metrics: medians are shown instead in round %s, for %s", judged.number, failed)
            return robust_metrics(self.contents(judged), key)

    def _record(self, judged: Round, outcome: Outcome, sentence: str = "", **fields: Any) -> RoundRecord:
        return RoundRecord(
            judged.number,
            judged.asked,
            tuple(reply.node for reply in judged.admitted),
            tuple(self.nodes.partitions.get(reply.node) for reply in judged.admitted),
            judged.refused,
            outcome,
            sentence,
            kind=judged.kind,
            quarantined=judged.quarantined,
            waiting=judged.waiting,
            abstained=judged.abstained,
            **fields,
        )

    def close_training(
        self,
        judged: Round,
        outcome: Outcome,
        sentence: str,
        arrays: ArrayRecord,
        metrics: MetricRecord | None,
        *,
        rows: Rows | None = None,
        aggregate: Aggregate | None = None,
        state: State | None = None,
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """Record a round of training.

        Parameters
        ----------
        judged : Round
            The round.
        outcome : Outcome
            How the aggregation ended.
        sentence : str
            The reason, if the round was infeasible.
        arrays : ArrayRecord
            The next model.
        metrics : MetricRecord or None
            The metrics.
        rows, aggregate, state
            As in `Aggregation`.

        Returns
        -------
        ArrayRecord
            The next model.
        MetricRecord or None
            The metrics.
        """
        assert judged.model is not None
        known: dict[str, Any] = {}
        if aggregate is not None:
            known = {"weights": tuple(aggregate.weights.tolist()), "stats": aggregate.stats}
        record = self._record(judged, outcome, sentence, **known)
        self.history.append(record)
        for observer in self.observers:
            observer.aggregated(Aggregation(record, judged.model.record, arrays, rows, aggregate, state or {}))
        if outcome is Outcome.INFEASIBLE:
            log.warning("aggregate_train: round %s leaves the model as it is: %s", judged.number, sentence)
            if self.on_infeasible == "stop":
                self.stopped = sentence
        return arrays, metrics

    def close_evaluation(self, judged: Round, metrics: MetricRecord | None) -> MetricRecord | None:
        """Record a round of evaluation, and return its metrics; it is infeasible if `Round.unjudged` says so."""
        sentence = judged.unjudged
        record = self._record(judged, Outcome.INFEASIBLE if sentence else Outcome.OK, sentence)
        self.evaluations.append(record)
        for observer in self.observers:
            observer.evaluated(record, metrics)
        return metrics
