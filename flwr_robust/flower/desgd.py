"""DeSGD: Byz-DeSGD as a strategy. Every round asks for the momenta of one or several classes.

`flwr_robust.protocol.classes` explains the method and its conventions. `serve` explains what a client answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from flwr_robust.core.pipeline import as_rule
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Rule, State
from flwr_robust.errors import ConfigurationError, UnknownNameError, check_integer, check_number
from flwr_robust.flower.expected import SentModel
from flwr_robust.flower.expected_classes import ClassesAsked
from flwr_robust.flower.options import GuardOptions, plain
from flwr_robust.flower.round_records import Round
from flwr_robust.flower.strategy import RobustStrategy
from flwr_robust.protocol.classes import ClassBuffer, check_desgd, classes_of_round
from flwr_robust.protocol.messages import CLASS_MOMENTUM, message_kind
from flwr_robust.protocol.momentum import check_alpha
from flwr_robust.protocol.rounds import ServerStep, state_of_class

__all__ = ["DeSGD"]


class DeSGD(RobustStrategy):
    """Class-wise momenta, each aggregated robustly over the clients that hold the class (Byz-DeSGD).

    Every round's config names its ``classes``. A client answers with its momenta of those classes that it holds. If it
    holds none of them, it abstains. The record lists it under `RoundRecord.abstained`; it counts neither as refused nor
    as silent.

    Parameters
    ----------
    rule : Rule or str
        The defence. It receives the rows of the nodes that sent a class. So n changes from round to round and may be
        smaller than the number of nodes asked. Its declared f stays the same, because attackers may claim every class.
        If a class has too few rows for the rule, nothing is aggregated for this class.
    classes : int
        K, the number of classes.
    gamma : float
        Weight of the buffer's mean in the step, in [0, 1]; 0 steps with what was sent alone.
    alpha : float
        Weight of a new gradient in the clients' momenta, in (0, 1]; the paper's beta.
    buffer_fade : float, optional
        Factor by which the buffer's other classes fade in each round, in (0, 1]. When not given, it is alpha, as in the
        paper's formulas.
    schedule : str
        ``cyclic`` or ``random``: the order in which classes are asked for.
    classes_per_round : int
        How many classes a round asks for, 1 .. K. Each is aggregated separately.
    server_learning_rate : float
        eta, > 0.
    seed : int or str, optional
        As for `RobustStrategy`; also the source of the random schedule.
    **options
        As for `RobustStrategy`.

    Raises
    ------
    ConfigurationError, UnknownNameError
        If a parameter is outside its bounds, an option is unknown, or the rule needs the server's own update.

    Notes
    -----
    A round in which no class can be aggregated is infeasible: model and buffer stay unchanged. If only some of its
    classes can be aggregated, the round continues with these. The others fade in the buffer, and the record's stats
    list them under ``infeasible``. A rule that remembers a point among the rows (the centre of centered clipping) keeps
    one for each class. With several classes in a round, a reply's weight is the mean of its weights, which are 0 for
    classes not sent. Distances from the aggregate are then unknown.

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
        buffer_fade: float | None = None,
        schedule: str = "cyclic",
        classes_per_round: int = 1,
        server_learning_rate: float = 0.1,
        seed: int | str | None = None,
        **options: Unpack[GuardOptions],
    ) -> None:
        owner = type(self).__name__
        if unknown := next((name for name in options if name not in GuardOptions.__annotations__), None):
            raise UnknownNameError(f"option of {owner}", unknown, self._options)
        check_integer(owner, "classes", classes, 1)
        check_desgd(owner, gamma, schedule, classes_per_round, classes)
        check_alpha(alpha)
        buffer_fade = alpha if buffer_fade is None else buffer_fade
        check_number(owner, "buffer_fade", buffer_fade, above=0, maximum=1)
        if (rule := as_rule(rule)).needs_trust:
            raise ConfigurationError(
                f"{owner}: {rule} compares replies with an update of the server's own, which knows no classes; choose "
                f"another rule"
            )
        self.classes = plain(classes)
        self.gamma = plain(gamma)
        self.alpha = plain(alpha)
        self.buffer_fade = plain(buffer_fade)
        self.schedule = schedule
        self.classes_per_round = plain(classes_per_round)
        super().__init__(rule, message="momentum", server_learning_rate=server_learning_rate, seed=seed, **options)
        self.state = {}

    def classes_of(self, server_round: int) -> tuple[int, ...]:
        """Return the classes that a round asks for, in ascending order."""
        seed = self._seed_of(server_round)
        return classes_of_round(self.schedule, server_round, self.classes, self.classes_per_round, seed)

    def state_of(self, kind: int | None = None) -> State:
        """Return the rule's state for the rows of a class."""
        return state_of_class(self.rule, self.state, kind)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and ask them for the classes of the round.

        Raises
        ------
        ConfigurationError
            As for `RobustStrategy.configure_train`.
        """
        config["classes"] = list(self.classes_of(server_round))
        return super().configure_train(server_round, arrays, config, grid)

    def expected(self, server_round: int, arrays: ArrayRecord) -> SentModel:
        """Return what the replies to a round must hold: the model's arrays for some of its classes."""
        return ClassesAsked(arrays, self.classes_of(server_round), self.statistics)

    @property
    def _server_step(self) -> ServerStep:
        buffer = ClassBuffer(self.classes, self.gamma, self.buffer_fade)
        return ServerStep(message_kind(CLASS_MOMENTUM), self.server_learning_rate, buffer)

    def _heard(self, judged: Round) -> int:
        return len(judged.admitted) + len(judged.abstained)

    def _members(self, judged: Round) -> Mapping[int | None, Sequence[int]]:
        sent = judged.model
        if not isinstance(sent, ClassesAsked):
            return {}
        answered = [sent.answered(reply.names) for reply in judged.admitted]
        return {k: [place for place, classes in enumerate(answered) if k in classes] for k in sent.classes}

    def _rows(self, judged: Round, sent: SentModel, k: int | None, places: Sequence[int]) -> Rows:
        if k is None or not isinstance(sent, ClassesAsked):
            return super()._rows(judged, sent, k, places)
        width, own = len(sent.arrays), list(judged.admitted)
        for place in places:
            reply = own[place]
            start = sent.answered(reply.names).index(k) * width
            own[place] = dataclasses.replace(reply, arrays=reply.arrays[start : start + width])
        return super()._rows(dataclasses.replace(judged, admitted=tuple(own)), sent, k, places)
