"""DeSGD: Byz-DeSGD as a strategy: every round asks for the momenta of one class, or of some, and steps with a buffer.

See `flwr_robust.protocol.classes` for the method and its conventions, and `serve` for what a client answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid

from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Rule, State, as_rule
from flwr_robust.errors import ConfigurationError, UnknownNameError, check_integer
from flwr_robust.flower.admission import SentModel
from flwr_robust.flower.guard import NOBODY, Round
from flwr_robust.flower.options import GuardOptions, plain
from flwr_robust.flower.strategy import RobustStrategy
from flwr_robust.flower.wire import encode_record
from flwr_robust.protocol.classes import check_desgd, classes_of_round
from flwr_robust.protocol.momentum import check_alpha
from flwr_robust.runs.class_rounds import settle_classes, state_of_class

__all__ = ["DeSGD"]


class DeSGD(RobustStrategy):
    """Class-wise momenta, robustly aggregated among those who hold the class (Byz-DeSGD).

    Every round's config names its ``classes``. A client answers with its momenta of those that it holds, or abstains,
    which is on record as such (`RoundRecord.abstained`) and neither a refusal nor a silence.

    Parameters
    ----------
    rule : Rule or str
        The defence. It is given the rows of those who sent a class, so n changes from round to round and is smaller
        than the number of nodes asked. Its declared f stays: whoever lies may claim every class. Where the rows of
        a class are too few for the rule, nothing is aggregated for it.
    classes : int
        K, the number of classes.
    gamma : float
        Weight of the buffer's mean in the step, in [0, 1]; 0 steps with what was sent alone.
    alpha : float
        What the buffer's other classes fade by each round, in (0, 1]; the paper's beta. Clients weigh a new gradient
        by the same number.
    schedule : str
        ``cyclic`` or ``random``: how the classes of a round are chosen.
    classes_per_round : int
        How many classes a round asks for, 1 .. K. Each is aggregated on its own.
    server_learning_rate : float
        eta, > 0.
    seed : int
        Source of the client samples and of the random schedule.
    **options
        As for `RobustStrategy`.

    Raises
    ------
    ConfigurationError, UnknownNameError
        If a parameter is outside its bounds, an option is unknown, or the rule compares with an update of the
        server's own.

    Notes
    -----
    A round in which no class could be aggregated is infeasible: model and buffer stay as they were. Where that is so
    of some of several classes, the round goes on with the others, and these fade in the buffer; the record's stats say
    so under ``infeasible``. What a rule remembers of points among the rows (the centre of centered clipping) it
    remembers class by class. With several classes a round, a reply's weight is the mean of its weights, 0 for a class
    that it did not send, and distances from the aggregate are not known.

    Examples
    --------
    >>> strategy = DeSGD("krum(f=2)", classes=10)
    >>> [strategy.classes_of(t) for t in (1, 2, 11)]
    [(0,), (1,), (0,)]
    """

    _options: ClassVar[Collection[str]] = GuardOptions.__annotations__

    def __init__(
        self,
        rule: Rule | str,
        *,
        classes: int,
        gamma: float = 0.5,
        alpha: float = 0.9,
        schedule: str = "cyclic",
        classes_per_round: int = 1,
        server_learning_rate: float = 0.1,
        seed: int = 0,
        **options: Unpack[GuardOptions],
    ) -> None:
        owner = type(self).__name__
        if unknown := next((name for name in options if name not in GuardOptions.__annotations__), None):
            raise UnknownNameError(f"option of {owner}", unknown, self._options)
        check_integer(owner, "classes", classes, 1)
        check_desgd(owner, gamma, schedule, classes_per_round, classes)
        check_alpha(alpha)
        if (rule := as_rule(rule)).needs_trust:
            raise ConfigurationError(
                f"{owner}: {rule} compares replies with an update of the server's own, which knows no classes; choose "
                f"another rule"
            )
        self.classes = plain(classes)
        self.gamma = plain(gamma)
        self.alpha = plain(alpha)
        self.schedule = schedule
        self.classes_per_round = plain(classes_per_round)
        super().__init__(rule, message="momentum", server_learning_rate=server_learning_rate, seed=seed, **options)
        self.state = {}

    def classes_of(self, server_round: int) -> tuple[int, ...]:
        """Return the classes that a round asks for, ascending."""
        return classes_of_round(self.schedule, server_round, self.classes, self.classes_per_round, self.guard.seed)

    def state_of(self, kind: int | None = None) -> State:
        """Return the rule's state for the rows of a class."""
        return self.state if kind is None else state_of_class(self.rule, self.state, kind)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes from the seed and ask them for the classes of the round.

        Raises
        ------
        ConfigurationError
            As for `RobustStrategy.configure_train`.
        """
        config["classes"] = list(self.classes_of(server_round))
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Admit, aggregate class by class, and step the model; never raises for what a client sent."""
        judged = self.guard.judge(MessageType.TRAIN, replies)
        if judged is None or judged.model is None:
            return None, None
        sent = judged.model
        members = {
            k: [place for place, reply in enumerate(judged.admitted) if k in (reply.classes or ())]
            for k in sent.classes
        }
        rows = {k: self._rows_of(judged, sent, k, places) for k, places in members.items()}
        settled = settle_classes(
            self.rule,
            rows,
            members,
            self.state,
            replies=len(judged.admitted),
            classes=self.classes,
            gamma=self.gamma,
            alpha=self.alpha,
        )
        self.state, arrays = settled.state, sent.record
        if settled.direction is not None:
            arrays = encode_record(self._step(sent, judged.admitted, settled.direction))
        only = rows[sent.classes[0]] if len(rows) == 1 else None
        return self.guard.close_training(
            judged,
            settled.outcome,
            settled.sentence if judged.admitted else NOBODY,
            arrays,
            self.guard.metrics(judged, self.train_metrics_aggr_fn),
            rows=only,
            aggregate=settled.aggregate,
            state=self.state,
        )

    def _sent(self, server_round: int, arrays: ArrayRecord) -> SentModel:
        return SentModel(arrays, self.classes_of(server_round))

    def _rows_of(self, judged: Round, sent: SentModel, k: int, places: Sequence[int]) -> Rows | None:
        """Return what was sent for a class."""
        if not places:
            return None
        width, own = len(sent.arrays), []
        for reply in (judged.admitted[place] for place in places):
            start = (reply.classes or ()).index(k) * width
            own.append(dataclasses.replace(reply, arrays=reply.arrays[start : start + width]))
        return self._rows(dataclasses.replace(judged, admitted=tuple(own)), sent)
