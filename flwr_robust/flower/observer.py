"""Observer: what watches a run, such as an audit log or a checkpointer."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord, MetricRecord

from flwr_robust.errors import ConfigurationError
from flwr_robust.flower.admission import Admitted, Refusal
from flwr_robust.flower.round_records import Aggregation, Opening, Progress, RoundRecord

__all__ = ["Observer", "check_observers"]


class Observer:
    """What watches a guard: an audit log, a checkpointer. Every method does nothing until it is overridden.

    The methods are called in the order in which they stand here. One that raises ends the run: evidence that cannot
    be kept is the operator's to mend.
    """

    def run_started(self, opening: Opening) -> Progress | None:
        """``start`` was called; an observer may return what is to be gone on from."""
        return None

    def round_configured(
        self, server_round: int, kind: str, asked: Sequence[int], quarantined: Sequence[int], model: ArrayRecord
    ) -> None:
        """Nodes are about to be sent a model."""

    def reply_judged(self, server_round: int, kind: str, verdict: Admitted | Refusal) -> None:
        """A reply was admitted, or refused."""

    def reply_abstained(self, server_round: int, kind: str, node: int) -> None:
        """A node had nothing to say to what the round asks for; called after the verdicts."""

    def node_quarantined(self, server_round: int, node: int, refusals: int) -> None:
        """A node is not to be asked any more."""

    def node_released(self, node: int) -> None:
        """A node may be asked again."""

    def aggregated(self, aggregation: Aggregation) -> None:
        """A round of training is over."""

    def evaluated(self, record: RoundRecord, metrics: MetricRecord | None) -> None:
        """A round of evaluation by clients is over."""

    def server_evaluated(self, server_round: int, metrics: MetricRecord) -> None:
        """The server has evaluated the model; 0 is the round before the first."""

    def round_finished(self, progress: Progress, *, last: bool) -> None:
        """A round is over with all its evaluations; round 0 is where a run begins."""

    def run_ended(self, server_round: int, outcome: str, sentence: str) -> None:
        """``start`` is over: ``finished``, ``stopped`` by an infeasible round, or ``failed``, and why."""


def check_observers(observers: object) -> None:
    """Raise unless these are observers."""
    if not isinstance(observers, Sequence) or not all(isinstance(each, Observer) for each in observers):
        raise ConfigurationError(f"strategy: observers must be a list of Observer objects; got {observers!r:.100}")
