"""Observer: an object that is informed of every step of a run, such as an audit log."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord, MetricRecord

from flwr_robust.errors import ConfigurationError
from flwr_robust.flower.admission import Admitted, Refusal
from flwr_robust.flower.rests import Rest
from flwr_robust.flower.round_records import Aggregation, Opening, Progress, Round, RoundRecord

__all__ = ["Observer", "check_observers"]


class Observer:
    """An object that a guard informs of every step. Each method does nothing unless a subclass overrides it.

    The guard calls the methods in the order in which they are defined here. An exception in one of them ends the run,
    because the run must not continue without a record.
    """

    def run_started(self, opening: Opening) -> Progress | None:
        """Called when ``start`` begins; an observer may return the progress from which the run resumes."""
        return None

    def attended(self) -> None:
        """Called before nodes are asked and before replies are judged, for observers that ban or release nodes."""

    def round_configured(self, opened: Round, model: ArrayRecord) -> None:
        """Called before a model is sent to the nodes of a round."""

    def reply_judged(self, server_round: int, kind: str, verdict: Admitted | Refusal) -> None:
        """Called when a reply was admitted or refused."""

    def reply_abstained(self, server_round: int, kind: str, node: int) -> None:
        """Called when a node abstained (answered without arrays for the round), after the calls of `reply_judged`."""

    def node_quarantined(self, server_round: int, kind: str, node: int, refusals: int) -> None:
        """Called when a node is put into quarantine: it is not asked for replies of this kind any more."""

    def node_rested(self, server_round: int, kind: str, rest: Rest) -> None:
        """Called when a node that keeps failing to answer is left out for some rounds, without blame."""

    def node_banned(self, node: int, reason: str) -> None:
        """Called when an operator bans a node: it is not asked, and its replies are refused."""

    def node_released(self, node: int, reason: str) -> None:
        """Called when a node is released from quarantine or its ban is lifted: it may be asked again."""

    def aggregated(self, aggregation: Aggregation) -> None:
        """Called when a round of training is over."""

    def suspected(self, server_round: int, node: int, sign: str, detail: str) -> None:
        """Called when a node shows a sign of an attack (`flwr_robust.audit.signs`) although it was not refused.

        The signs are found by an audit, at the end of a round of training, or given to `Guard.suspect`. They have no
        effect on the run: a function of yours may release or ban nodes.
        """

    def measured(self, server_round: int, quantity: str, value: float | None, method: str) -> None:
        """Called when a quantity of the run was measured, such as the risk of its sampling."""

    def evaluated(self, record: RoundRecord, metrics: MetricRecord | None) -> None:
        """Called when a round of evaluation by clients is over."""

    def server_evaluated(self, server_round: int, metrics: MetricRecord) -> None:
        """Called when the server has evaluated the model; round 0 is before the first."""

    def round_finished(self, progress: Progress, *, last: bool) -> None:
        """Called when a round and all its evaluations are over; round 0 is the beginning of a run."""

    def run_ended(self, server_round: int, outcome: str, sentence: str) -> None:
        """Called when ``start`` ends: ``finished``, ``stopped`` by an infeasible round, or ``failed``, and why."""


def check_observers(observers: object) -> None:
    """Raise unless all given objects are observers."""
    if not isinstance(observers, Sequence) or not all(isinstance(each, Observer) for each in observers):
        raise ConfigurationError(f"strategy: observers must be a list of Observer objects; got {observers!r:.100}")
