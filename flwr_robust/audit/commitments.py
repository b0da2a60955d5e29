"""What a log says about the seeds of its run: the commitments to secrets, and the keys that were revealed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr_robust.audit.events import Resumed, RolledBack, RunEnded, RunStarted
from flwr_robust.audit.log import Record
from flwr_robust.errors import ConfigurationError
from flwr_robust.round_seeds import RevealedSeed

__all__ = ["Commitments", "odd_keys"]


@dataclass
class Commitments:
    """The commitments in a log and what was revealed.

    Attributes
    ----------
    seed : int, str or None
        The run's setting ``seed``; None if it has none.
    chains : list of (int, str)
        The commitments that count, each with the round after which its chain begins.
    exposed : dict of str to int
        The last round that clients know, by the commitment of its chain: its key was revealed, or it was rolled back.
    revealed : RevealedSeed or None
        What the last end of the run revealed of the chains that count.
    """

    seed: int | str | None = None
    chains: list[tuple[int, str]] = field(default_factory=list)
    exposed: dict[str, int] = field(default_factory=dict)
    revealed: RevealedSeed | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> Commitments:
        """Read the events of a log in order."""
        found = cls()
        for record in records:
            found.take(record)
        return found

    def take(self, record: Record) -> None:
        """Read the next event."""
        event = record.event
        if isinstance(event, RunStarted):
            seed = event.config.get("seed")
            self.seed = seed if isinstance(seed, int | str) else None
        if isinstance(event, RunStarted | Resumed) and event.seed_commitment:
            after = event.round if isinstance(event, Resumed) else 0
            self.chains = [(start, each) for start, each in self.chains if start < after]
            self.chains.append((after, event.seed_commitment))
            self.revealed = None
        elif isinstance(event, RunEnded) and self.fits(event):
            self.revealed = RevealedSeed.parse(event.seed_revealed)
            self._expose(event.round)
        elif isinstance(event, RolledBack):
            self._expose(event.from_round)

    def _expose(self, server_round: int) -> None:
        for start, commitment in self.chains:
            if start < server_round:
                self.exposed[commitment] = max(server_round, self.exposed.get(commitment, 0))

    def fits(self, event: RunEnded) -> bool:
        """Say whether the keys that an event reveals fit the commitments, up to the event's round."""
        try:
            parts = RevealedSeed.parse(event.seed_revealed).parts
        except ConfigurationError:
            return False
        expected = [commitment for start, commitment in self.chains if start < event.round]
        return [chain.commitment for _, chain in parts] == expected and parts[-1][1].last == event.round

    def exposes(self, server_round: int) -> bool:
        """Say whether clients know a round."""
        commitment = next((each for start, each in reversed(self.chains) if start < server_round), "")
        return self.exposed.get(commitment, 0) >= server_round


def odd_keys(records: Iterable[Record]) -> Iterator[int]:
    """Yield the lines that reveal keys which do not fit their commitments."""
    commitments = Commitments()
    for record in records:
        event = record.event
        if isinstance(event, RunEnded) and event.seed_revealed and not commitments.fits(event):
            yield record.line
        commitments.take(record)
