"""Guarded: put any strategy of Flower's Message API behind the admission and the records of the robust strategies.

Admission is the check of every reply before it is used (`flwr_robust.flower.admission`). The inner strategy receives
only admitted replies, with arrays in the model's order and the same metrics in all. Numbers of examples are at most
``clamp`` times the median.

The model that the strategy returns is corrected: it gets the names, order and types of the model that was sent. Values
are rounded for integer types, and limited to the range of the type. The strategy fails if it raises, or if its model is
missing, does not fit or is not finite. Then the round is recorded as infeasible, the model stays unchanged, and the
strategy gets its former attributes back. This restores the contents of arrays, tensors, records and containers. Other
objects stay the same objects, and their inner state is not restored.

The guard does not make a rule robust: the strategy receives every finite array of the right shape.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Bulyan, MultiKrum, Result, Strategy
from numpy.typing import NDArray

from flwr_robust.core.rule import Outcome
from flwr_robust.errors import ConfigurationError
from flwr_robust.flower._compat import fill, is_legacy
from flwr_robust.flower.admission import MOST_EXAMPLES, Terms, check_names, short
from flwr_robust.flower.audit import Audit, observing
from flwr_robust.flower.expected import SentModel, check_statistics
from flwr_robust.flower.face import Face
from flwr_robust.flower.failures import failure
from flwr_robust.flower.guard import Guard
from flwr_robust.flower.loop import METHODS, Guarding, scalars
from flwr_robust.flower.memory import storable
from flwr_robust.flower.metrics import MetricsFunction, robust_metrics
from flwr_robust.flower.observer import Observer
from flwr_robust.flower.options import plain
from flwr_robust.flower.replies import admitted_rows
from flwr_robust.flower.round_records import Round, Scalar
from flwr_robust.flower.saved import Fingerprint, Saved
from flwr_robust.flower.waiting import wait_for_nodes
from flwr_robust.flower.wire import decode, encode, is_finite
from flwr_robust.protocol.buffers import STATISTICS
from flwr_robust.round_seeds import round_seeds

__all__ = ["Guarded"]

log = logging.getLogger("flwr")


class Guarded(Face, Strategy):
    """A guard around a strategy.

    Parameters
    ----------
    strategy : Strategy
        Flower's FedAvg, FedAdam, Krum, ..., or your own. It samples and aggregates as before. Replies must hold the
        model's arrays. Strategies whose arrays change their shape (XGBoost's trees) cannot be guarded.
    least : int, optional
        The smallest number of replies that the strategy receives; with fewer the model stays unchanged. When not given,
        it is 2f + 3 for Flower's Krum and MultiKrum, and 4f + 3 for Bulyan. For others it is more than half of the
        nodes asked, so that drop-outs do not leave hostile replies alone.
    by_partition, rest_after, probation, wait, deadline, quorum
        As for `RobustStrategy`; the quorum's default is ``least``.
    clamp : float, optional
        A number of examples above this multiple of the median is lowered to it. None accepts all numbers.
    metrics_aggr_fn : callable, optional
        Aggregates the clients' metrics in place of the strategy; None leaves this to the strategy. Other metrics that
        the strategy reports are kept.
    seed : int or str, optional
        Source of where the audit looks for identical updates, as for `RobustStrategy`. What the strategy draws is its
        own.
    train_metrics, evaluate_metrics, records, max_examples, quarantine_after, on_infeasible, observers, audit
        As for `RobustStrategy`. The guard drops the strategy's messages to nodes in quarantine.

    statistics : tuple of str
        As for `RobustStrategy`. The inner strategy sees these arrays; the distances on record leave them out.

    Attributes
    ----------
    strategy : Strategy
        The inner strategy.
    guard : Guard
        Checks replies and keeps the records.

    Raises
    ------
    ConfigurationError
        If a parameter is outside its bounds.

    Examples
    --------
    >>> from flwr.serverapp.strategy import Krum
    >>> Guarded(Krum(num_malicious_nodes=2)).guard.least
    7
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        least: int | None = None,
        clamp: float | None = 2.0,
        metrics_aggr_fn: MetricsFunction | None = robust_metrics,
        seed: int | str | None = None,
        train_metrics: tuple[str, ...] | None = None,
        evaluate_metrics: tuple[str, ...] | None = None,
        records: tuple[str, str] | None = None,
        statistics: tuple[str, ...] = STATISTICS,
        max_examples: float = MOST_EXAMPLES,
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
    ) -> None:
        # A strategy with its own start() runs the loop itself, so its own guard cannot record the run.
        guarded = isinstance(strategy, Guarding) and not _has_own_start(type(strategy))
        if not isinstance(strategy, Strategy) or guarded:
            what = strategy.__name__ if isinstance(strategy, type) else type(strategy).__name__
            found = f"the class {what}: call it" if isinstance(strategy, type) else what
            found += ", which has a guard: take it as it is" if guarded else ""
            found += " of flwr.server.strategy: take that of flwr.serverapp.strategy" if is_legacy(strategy) else ""
            raise ConfigurationError(
                f"Guarded: strategy must be one of Flower's Message API that has no guard yet; got {found}"
            )
        if metrics_aggr_fn is not None and not callable(metrics_aggr_fn):
            raise ConfigurationError(
                "Guarded: metrics_aggr_fn must be a function (list of RecordDict, str) -> MetricRecord, or None for "
                f"what the strategy makes of clients' metrics; got {metrics_aggr_fn!r:.100}"
            )
        check_statistics("Guarded", statistics)
        self.strategy = strategy
        self._majority = least is None and not isinstance(strategy, Bulyan | MultiKrum)
        self.statistics = statistics
        self.metrics_aggr_fn = metrics_aggr_fn
        self._before: dict[str, Fingerprint] = {}  # attributes that cannot be stored, at the start of a run
        self._named: set[str] = set()  # attributes that a warning has named
        self._own = {name: getattr(strategy, name) for name in METHODS}
        key = getattr(strategy, "weighted_by_key", "num-examples")
        check_names("train_metrics", train_metrics)
        check_names("evaluate_metrics", evaluate_metrics)
        self.guard = Guard(
            Terms(key, plain(max_examples), train_metrics, records),
            Terms(key, plain(max_examples), evaluate_metrics, records),
            seeds=round_seeds(plain(seed)),
            least=_least(strategy) if least is None else plain(least),
            quarantine_after=plain(quarantine_after),
            by_partition=by_partition,
            rest_after=plain(rest_after),
            probation=plain(probation),
            wait=plain(wait),
            deadline=plain(deadline),
            quorum=plain(quorum),
            on_infeasible=on_infeasible,
            clamp=plain(clamp),
            observers=observing(observers, audit),
        )

    def summary(self) -> None:
        """Log the guard's settings, then those of the strategy."""
        least = "more than half of the" if self._majority else f"at least {self.guard.least}"
        log.info("\t├──> Guarded: %s replies", least)
        self.strategy.summary()

    def looped(self) -> tuple[Strategy, Callable[..., Result]]:
        """Return the inner strategy and its own ``start``; a run uses the guarded methods instead of its four."""
        self._named = set()
        self._before = self._fingerprints() if self.guard.observers else {}
        return self.strategy, self.strategy.start

    # -- on record --------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """The name of the strategy in records."""
        return f"Guarded({type(self.strategy).__name__})"

    def settings(self) -> dict[str, Scalar]:
        """Return all scalar options of the inner strategy."""
        return scalars(self.strategy)

    def memory(self) -> Mapping[str, Any]:
        """Return those attributes of the inner strategy that a checkpoint can hold.

        A warning names the others, once in a run, unless they have not changed since its start.
        """
        unlike = Fingerprint(None, None)
        lost = [
            name for name, found in self._fingerprints().items() if not found.matches(self._before.get(name, unlike))
        ]
        if lost:
            self._named.update(lost)
            log.warning(
                "Guarded: %s of %s cannot be put into a checkpoint: a resumed run has what the strategy is made with",
                ", ".join(lost),
                self.label,
            )
        return {name: value for name, value in self._held().items() if storable(value)}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore the attributes that `memory` returned."""
        held = vars(self.strategy)
        for name, value in memory.items():
            own = held.get(name)
            if isinstance(own, dict) and type(own) is not dict and isinstance(value, dict):
                own.clear()  # keep the type, for example defaultdict
                own.update(value)
            else:
                held[name] = value

    def _held(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.strategy).items() if name not in METHODS}

    def _fingerprints(self) -> dict[str, Fingerprint]:
        """Return fingerprints of attributes that cannot be stored and that no warning has named yet."""
        return {
            name: Fingerprint(value, self.strategy)
            for name, value in self._held().items()
            if name not in self._named and not storable(value)
        }

    def usual_quorum(self, kind: str, asked: int) -> int:
        """Return what the strategy needs in training, and more than half of the nodes asked in evaluation."""
        return self._needed(asked) if kind == MessageType.TRAIN else asked // 2 + 1

    # -- asking -----------------------------------------------------------------------------------

    def _ask(
        self, kind: str, server_round: int, messages: Iterable[Message], grid: Grid, model: SentModel | None = None
    ) -> Round | None:
        """Return a round with the strategy's messages, without those to nodes left out; None if it sends none."""
        messages = list(messages)
        if not messages:
            return None
        connected = list(grid.get_node_ids())
        destinations = [message.metadata.dst_node_id for message in messages]
        held = self.guard.nodes.left_out(kind, server_round, destinations, connected)
        away = {*held.blamed, *held.waiting}
        kept = tuple(message for message in messages if message.metadata.dst_node_id not in away)
        if not kept:
            return None
        return Round(server_round, kind, kept, held.blamed, model, waiting=held.waiting, available=len(connected))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy choose the nodes and messages of a round.

        Raises
        ------
        ConfigurationError
            Before the first round: if the model cannot be used, or the strategy asks fewer nodes than ``least``.
        """
        if self._ends_before(server_round):
            return []
        self.guard.nodes.begin(grid)
        self._wait(grid)
        sent = SentModel(arrays, self.statistics)
        messages = self._own["configure_train"](server_round, arrays, config, grid)
        opened = self._ask(MessageType.TRAIN, server_round, messages, grid, sent)
        if opened is None:
            return []
        if not self.history:
            self._check_slack(len(opened.messages))
        return self.guard.open(opened, arrays)

    def _wait(self, grid: Grid) -> None:
        """Wait for as many nodes as the strategy will wait for, which would say neither for whom nor end."""
        counts = [getattr(self.strategy, name, 0) for name in ("min_available_nodes", "min_train_nodes")]
        needed = max(each for each in counts if isinstance(each, int))
        if getattr(self.strategy, "fraction_train", 0.0):
            wait_for_nodes(grid, needed, f"{type(self.strategy).__name__} needs {needed} nodes", self.guard.wait)

    def _needed(self, asked: int) -> int:
        """Return how many replies the strategy must receive in a round that asks so many nodes."""
        return asked // 2 + 1 if self._majority else self.guard.least

    def _check_slack(self, asked: int) -> None:
        """Raise if fewer nodes are asked than must answer; warn if all of them must."""
        needed, name = self._needed(asked), type(self.strategy).__name__
        if asked < needed:
            raise ConfigurationError(
                f"Guarded: {name} needs {needed} replies, but asks {asked} nodes: ask more, lower its number of "
                f"malicious nodes, or set least="
            )
        self.check_quorum(asked, needed)
        if asked == needed:
            log.warning(
                "configure_train: %s needs a reply from each of the %s nodes asked: one that fails to answer makes a "
                "round infeasible; ask more, or set least=",
                name,
                asked,
            )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy choose the nodes and messages of a round of evaluation."""
        if self._stopped_before(server_round):
            return []
        self.guard.nodes.begin(grid)
        messages = self._own["configure_evaluate"](server_round, arrays, config, grid)
        opened = self._ask(MessageType.EVALUATE, server_round, messages, grid)
        return [] if opened is None else self.guard.open(opened, arrays)

    # -- aggregating ------------------------------------------------------------------------------

    def _clean(self, judged: Round) -> list[Message]:
        """Return the admitted replies, rebuilt for the strategy."""
        messages = []
        for reply, content in zip(judged.admitted, self.guard.contents(judged), strict=True):
            message = copy.copy(reply.message)
            message.content = content
            messages.append(message)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate the admitted replies, and correct its model; no reply raises an error."""
        judged = self.guard.judge(MessageType.TRAIN, replies)
        if judged is None or judged.model is None:
            return None, None
        arrays, outcome, sentence, told = judged.model.record, Outcome.INFEASIBLE, judged.unheard, None
        needed = self._needed(len(judged.messages))
        if 0 < len(judged.admitted) < needed:
            sentence = f"{len(judged.admitted)} replies were admitted, but {needed} are needed"
        elif judged.admitted:
            before = Saved(self.strategy)
            try:
                with np.errstate(all="ignore"):
                    found, told = self._answer("aggregate_train", server_round, judged)
                    arrays, outcome, sentence = _mended(found, judged.model), Outcome.OK, ""
            except Exception as error:
                sentence = short(f"{type(self.strategy).__name__}: {str(error) or type(error).__name__}")
                before.restore()
        rows = None
        if judged.admitted and self.guard.observers:
            rows = admitted_rows(judged.admitted, judged.model, relative=True, asked=len(judged.messages))
        metrics = None if outcome is Outcome.INFEASIBLE else self._metrics(judged, told)
        return self.guard.close_training(judged, outcome, sentence, arrays, metrics, rows=rows)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Let the strategy aggregate the admitted replies."""
        judged = self.guard.judge(MessageType.EVALUATE, replies)
        if judged is None:
            return None
        if judged.unjudged:
            return self.guard.close_evaluation(judged, None)
        told, before = None, Saved(self.strategy)
        try:
            with np.errstate(all="ignore"):
                told = self._answer("aggregate_evaluate", server_round, judged)
        except Exception:
            before.restore()
        return self.guard.close_evaluation(judged, self._metrics(judged, told))

    def _answer(self, method: str, server_round: int, judged: Round) -> Any:
        """Return the strategy's result for the admitted replies; if it raises, log the error and its place."""
        try:
            return self._own[method](server_round, self._clean(judged))
        except Exception as error:
            log.warning("%s: %s", method, failure(self._own[method], error))
            raise

    def _metrics(self, judged: Round, told: MetricRecord | None) -> MetricRecord | None:
        """Return the strategy's metrics, with the clients' metrics replaced by robust ones."""
        if self.metrics_aggr_fn is None:
            return told
        ours = self.guard.metrics(judged, self.metrics_aggr_fn)
        return ours if told is None or ours is None else fill(MetricRecord(), {**told, **ours})


def _has_own_start(kind: type) -> bool:
    """Say whether a strategy with a guard runs the loop over the rounds itself, or wraps one that does."""
    own: object = getattr(kind, "start", None)
    return own is not Guarding.start


def _least(strategy: Strategy) -> int:
    """Return how many replies the theory of Flower's own strategies requires."""
    if isinstance(strategy, Bulyan):
        return 4 * strategy.num_malicious_nodes + 3
    if isinstance(strategy, MultiKrum):
        return 2 * strategy.num_malicious_nodes + 3
    return 1


def _mended(found: ArrayRecord | None, sent: SentModel) -> ArrayRecord:
    """Return a model corrected to the names, order and types of the model that was sent.

    Raises
    ------
    ValueError
        If the model lacks an array, or an array has another shape or is not finite.
    """
    if found is None:
        raise ValueError("it returned no model")
    arrays = {}
    for name, model in sent.arrays.items():
        if name not in found:
            raise ValueError(f"its model lacks '{name}'")
        values = decode(found[name])
        if values.shape != model.shape:
            raise ValueError(f"its '{name}' has shape {values.shape}, not {model.shape}")
        if values.dtype.kind not in "fiub" or not is_finite(values):
            raise ValueError(f"its '{name}' is not finite")
        arrays[name] = found[name] if values.dtype == model.dtype else encode(_cast(values, model.dtype))
    return fill(ArrayRecord(), arrays)


def _cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return finite numbers in another type: rounded for integer types, and limited to the range of the type."""
    if dtype.kind == "b":
        return np.asarray(values >= 0.5)
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        return values.clip(limits.min, limits.max).astype(dtype)
    bounds = np.iinfo(dtype)
    if values.dtype.kind == "f":
        # Some limits of integer types are not exact floats: the nearest float above would wrap around.
        above = np.float64(bounds.max)
        values = np.rint(values).clip(bounds.min, above if int(above) == bounds.max else np.nextafter(above, 0))
        return values.astype(dtype)
    values = values.astype(np.uint8) if values.dtype.kind == "b" else values
    own = np.iinfo(values.dtype)
    return values.clip(max(bounds.min, own.min), min(bounds.max, own.max)).astype(dtype)
