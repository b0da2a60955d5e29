"""The time to admit a round's replies and to record the round, compared with X.mean(0) of the same numbers.

The benchmark uses a clean round of 20 clients and a ResNet-18 (11.7 million parameters in 62 arrays), on one thread.
Admission is the check of every reply against the model. The audit records the round: distances and angles of all
updates, the next model's hash, and log lines that wait for the disk. The contestants take turns: the mean of the
replies as one tensor, admission, audit, both, and a checkpoint. A checkpoint is not written in every round.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table

from flwr_robust.audit.signs import Signs
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import Outcome
from flwr_robust.flower import Audit, Mean
from flwr_robust.flower.admission import Admitted, Terms, admit
from flwr_robust.flower.expected import SentModel
from flwr_robust.flower.grids import InProcessGrid
from flwr_robust.flower.round_records import Aggregation, Opening, Progress, Round, RoundRecord
from flwr_robust.flower.wire import as_tensor, decode_record, encode_record
from flwr_robust.seeds import numpy_generator

__all__ = ["TARGET", "measure", "table"]

TARGET = 3.0
"""The target: admission and audit together take less than this multiple of the mean's time."""

_CLIENTS = 20
_TURNS = 15


def measure(turns: int = _TURNS, shapes: Sequence[tuple[int, ...]] | None = None) -> dict[str, Any]:
    """Measure the contestants in turn, and return their figures.

    Parameters
    ----------
    turns : int
        How many turns.
    shapes : sequence of tuple of int, optional
        The model's arrays; those of a ResNet-18 when not given.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            exchange = _Exchange(_resnet() if shapes is None else shapes, folder)
            works = {
                "X.mean(0)": exchange.mean,
                "admission": exchange.admit,
                "audit": exchange.audit,
                "both": exchange.both,
                "checkpoint": exchange.checkpoint,
            }
            seconds: dict[str, list[float]] = {name: [] for name in works}
            for turn in track(range(turns + 1), description="admission and audit, in turn"):
                for name, work in works.items():
                    exchange.renew()
                    spent = _timed(work)
                    if turn:  # the first turn compiles and warms up
                        seconds[name].append(spent)
            exchange.close()
    finally:
        torch.set_num_threads(threads)
    over = {
        name: [one / mean for one, mean in zip(each, seconds["X.mean(0)"], strict=True)]
        for name, each in seconds.items()
    }
    return {
        "what": f"seconds for a clean round of {_CLIENTS} clients, {exchange.parameters:,} parameters, one thread",
        "turns": turns,
        "seconds": seconds,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "over_mean": {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in over.items()
        },
        "target": TARGET,
    }


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _resnet() -> list[tuple[int, ...]]:
    """Return the shapes of the parameters of a ResNet-18."""
    from torchvision.models import resnet18

    with torch.device("meta"):
        return [tuple(parameter.shape) for parameter in resnet18().parameters()]


class _Exchange:
    """A round's messages and replies, and an audit that observes them."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], folder: str) -> None:
        draw = numpy_generator(0, "benchmark")

        def drawn(scale: float) -> dict[str, NDArray[np.float32]]:
            return {
                f"layer{at}": np.float32(scale) * draw.standard_normal(shape, dtype=np.float32)
                for at, shape in enumerate(shapes)
            }

        self._model = drawn(1.0)
        self.parameters = sum(math.prod(shape) for shape in shapes)
        self._sent = SentModel(encode_record(self._model))
        grid = InProcessGrid(None, _CLIENTS)  # type: ignore[arg-type]  # no node is asked
        self._messages = [
            grid.create_message(RecordDict({"arrays": self._sent.record}), "train", node, "1")
            for node in grid.get_node_ids()
        ]
        self._replies = [self._reply(message, drawn(0.01)) for message in self._messages]
        self._x = torch.from_numpy(
            np.stack([np.concatenate([a.ravel() for a in self._arrays(reply)]) for reply in self._replies])
        )
        admitted, refused = admit(self._replies, self._messages, Terms(), self._sent)
        assert not refused, refused[0]
        self._admitted: list[Admitted] = admitted
        self._rows = Rows.from_layers(
            [[as_tensor(values) for values in reply.arrays] for reply in admitted],
            reference=[as_tensor(values) for values in self._sent.arrays.values()],
            layout=[Layer(name, values.shape) for name, values in self._sent.arrays.items()],
        )
        nodes = tuple(reply.node for reply in admitted)
        strategy = Mean()
        self._aggregate = strategy.rule(self._rows, {})[0]
        weights = tuple(self._aggregate.weights.tolist())
        self._record = RoundRecord(1, nodes, nodes, tuple(range(_CLIENTS)), (), Outcome.OK, "", weights)
        self._audit = Audit(folder)
        guard = strategy.guard
        hooks = (guard.suspect, guard.ban, guard.release, guard.seeds)
        self._audit.run_started(Opening(guard.nodes, "Mean", "mean()", {}, self._sent.record, grid, 60.0, *hooks))
        self._round = Round(1, "train", tuple(self._messages), available=_CLIENTS)
        self._audit.round_configured(self._round, self._sent.record)
        self._last, self._next = self._sent.record, ArrayRecord()

    def _reply(self, message: Message, update: dict[str, NDArray[np.float32]]) -> Message:
        arrays = encode_record({name: values + update[name] for name, values in self._model.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 10})}), reply_to=message)

    def _arrays(self, reply: Message) -> list[NDArray[Any]]:
        return list(decode_record(reply.content["arrays"]).values())  # type: ignore[arg-type]

    def renew(self) -> None:
        """Make a new record of the next model, so that its hash is not known yet."""
        self._next = encode_record(self._model)

    def mean(self) -> torch.Tensor:
        """Average the replies."""
        return self._x.mean(0)

    def admit(self) -> None:
        """Check the replies."""
        admitted, _ = admit(self._replies, self._messages, Terms(), SentModel(self._sent.record))
        assert len(admitted) == _CLIENTS

    def audit(self) -> None:
        """Record a round."""
        self._audit._signs = Signs()  # every turn has the same replies, which would be a sign of replays
        # The round before has recorded the hash of the model that is sent.
        self._audit.round_configured(self._round, self._last)
        for reply in self._admitted:
            self._audit.reply_judged(1, "train", reply)
        self._audit.aggregated(Aggregation(self._record, self._last, self._next, self._rows, self._aggregate))
        self._last = self._next

    def both(self) -> None:
        """Check the replies, and record the round."""
        self.admit()
        self.audit()

    def checkpoint(self) -> None:
        """Write a checkpoint."""
        result = Result()
        result.arrays = self._next
        self._audit.round_finished(Progress(1, result, [self._record], [], {}, {}, {}), last=True)

    def close(self) -> None:
        """End the run."""
        self._audit.run_ended(1, "finished", "")


def table(document: dict[str, Any]) -> Table:
    """Return the figures as a table."""
    shown = Table(title=document["what"], title_justify="left")
    for name in ("contestant", "ms", "times X.mean(0)", "from", "to"):
        shown.add_column(name, justify="left" if name == "contestant" else "right")
    for name, ratio in document["over_mean"].items():
        spread = [f"{ratio[key]:.2f}" for key in ("median", "min", "max")]
        shown.add_row(name, f"{1000 * document['median_seconds'][name]:.1f}", *spread)
    found, target = document["over_mean"]["both"]["median"], document["target"]
    shown.caption = f"both: {found:.2f} times the mean; the target, below {target:g}, is {_met(found < target)}"
    return shown


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"
