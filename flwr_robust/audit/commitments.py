"""What a log says about the seeds of its run: the commitments to secrets, and the keys that were revealed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr_robust.audit.events import Resumed, RolledBack, RunEnded, RunStarted
from flwr_robust.audit.log import Record
from flwr_robust.errors import ConfigurationError
from flwr_robust.round_seeds import RevealedSeed

__all__ = ["Commitments", "odd_keys"]

_MOST_HASHES = 2**24  # what a log may ask for; 256 times the longest run


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
    _left: int = field(default_factory=lambda: _MOST_HASHES, repr=False)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Commitments:
        """Read the events of a log in order."""
        found = cls()
        for record in records:
            found.take(record)
        return found

    def take(self, record: Record) -> bool:
        """Read the next event; say whether the keys that it reveals, if any, fit the commitments."""
        event = record.event
        if isinstance(event, RunStarted):
            seed = event.config.get("seed")
            self.seed = seed if isinstance(seed, int | str) else None
        if isinstance(event, RunStarted | Resumed) and event.seed_commitment:
            after = event.round if isinstance(event, Resumed) else 0
            self.chains = [(start, each) for start, each in self.chains if start < after]
            self.chains.append((after, event.seed_commitment))
            self.revealed = None
        elif isinstance(event, RunEnded) and event.seed_revealed:
            found = self._fitting(event)
            self.revealed = found or self.revealed
            self._expose(event.round if found else 0)
            return found is not None
        elif isinstance(event, RolledBack):
            self._expose(event.from_round)
        return True

    def _expose(self, server_round: int) -> None:
        for start, commitment in self.chains:
            if start < server_round:
                self.exposed[commitment] = max(server_round, self.exposed.get(commitment, 0))

    def _fitting(self, event: RunEnded) -> RevealedSeed | None:
        """Return the keys that an event reveals, if they are up to its round and fit the commitments."""
        try:
            found = RevealedSeed.parse(event.seed_revealed)
        except ConfigurationError:
            return None
        expected = [commitment for start, commitment in self.chains if start < event.round]
        self._left -= sum(chain.last for _, chain in found.parts)
        if len(found.parts) != len(expected) or found.last != event.round or self._left < 0:
            return None
        return found if [chain.commitment for _, chain in found.parts] == expected else None

    def exposes(self, server_round: int) -> bool:
        """Say whether clients know a round."""
        commitment = next((each for start, each in reversed(self.chains) if start < server_round), "")
        return self.exposed.get(commitment, 0) >= server_round


def odd_keys(records: Iterable[Record]) -> Iterator[int]:
    """Yield the lines that reveal keys which do not fit their commitments.

    So do all lines after more than 2^24 hashes, which take some seconds and come of no run that has happened.
    """
    commitments = Commitments()
    yield from (record.line for record in records if not commitments.take(record))
