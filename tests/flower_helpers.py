"""What the tests of the Flower layer share: small apps, hand-made messages, replies that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flwr_robust import UntrainedError
from flwr_robust.flower import InProcessGrid, Reason

FIRST = 2  # InProcessGrid's first node id; node FIRST + i holds partition i


# -- records and messages, written by Flower's own code, not by the package's ------------------------


# The battery writes and reads the same few arrays half a million times, which was most of its time: each is written and
# read by Flower's code once. What is handed out is a copy, for some tests change it.


@lru_cache(maxsize=4096)
def _written(dtype, shape, fortran, data):
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return Array(values)


@lru_cache(maxsize=4096)
def _read(data):
    return Array(dtype="", shape=(), stype="numpy.ndarray", data=data).numpy()


def array(values):
    values = np.asarray(values)
    if values.dtype.hasobject or not values.size or values.size > 4096:
        return Array(values)
    fortran = values.flags.f_contiguous and not values.flags.c_contiguous
    found = object.__new__(Array)
    vars(found).update(vars(_written(values.dtype, values.shape, fortran, values.tobytes("F" if fortran else "C"))))
    return found


def record(arrays):
    return ArrayRecord({name: array(values) for name, values in arrays.items()})


def values(arrays):
    """Read a record back with Flower's own reader."""
    return {name: _read(held.data).copy(order="K") for name, held in arrays.items()}


def content(arrays=None, num_examples=1, **metrics):
    metrics = {name.replace("_", "-") if name == "partition_id" else name: v for name, v in metrics.items()}
    made = {"metrics": MetricRecord({"num-examples": num_examples, **metrics})}
    return RecordDict(made if arrays is None else {**made, "arrays": record(arrays)})


def same_bits(first, second):
    """Say whether two models have the same names, types, shapes and bytes."""
    return [(k, v.dtype, v.shape, v.tobytes()) for k, v in first.items()] == [
        (k, v.dtype, v.shape, v.tobytes()) for k, v in second.items()
    ]


# -- raw .npy bytes ----------------------------------------------------------------------------------


def npy(header, data=b"", version=(1, 0)):
    """Build an .npy file from the text of its header, whatever it says."""
    text = header.encode("latin1")
    width = 2 if version == (1, 0) else 4
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(width, "little") + text + data


def header(descr="'<f4'", shape="(2,)", fortran_order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran_order}, 'shape': {shape}, }}"


def array_of(data, stype="numpy.ndarray"):
    """Wrap bytes as an Array that claims to be two float32 numbers."""
    return Array(dtype="float32", shape=(2,), stype=stype, data=data)


# -- grids ---------------------------------------------------------------------------------------------


class Deployed(InProcessGrid):
    """A grid that stands for a deployment: partitions are what nodes claim, and nodes may be away or be other ones."""

    simulates = False

    def __init__(self, app, nodes, shift=0, claims=()):
        super().__init__(app, nodes)
        self.contexts = {node + shift: context for node, context in self.contexts.items()}
        self.away = set()
        for node, context in self.contexts.items():
            context.node_id = node
        for node, partition in dict(claims).items():
            self.contexts[node].node_config["partition-id"] = partition

    def get_node_ids(self):
        return [node for node in self.contexts if node not in self.away]


# -- apps --------------------------------------------------------------------------------------------


def client_app(train=None, evaluate=None):
    """Make a ClientApp of functions (partition, model, config, context) -> arrays by name, or a RecordDict."""
    app = ClientApp()

    def answer(function, message, context):
        arrays = values(message.content["arrays"])
        config = dict(message.content["config"])
        found = function(context.node_config["partition-id"], arrays, config, context)
        if not isinstance(found, RecordDict):
            found = content(found, partition_id=context.node_config["partition-id"])
        return Message(found, reply_to=message)

    if train is not None:

        @app.train()
        def _(message, context):
            return answer(train, message, context)

    if evaluate is not None:

        @app.evaluate()
        def _(message, context):
            return answer(evaluate, message, context)

    return app


def sends(messages):
    """Make a ClientApp whose client i answers with messages[i]: arrays by name, or a RecordDict."""
    return client_app(lambda partition, model, config, context: messages[partition])


def drive(strategy, app, model, nodes, rounds=1, grid=None, **options):
    """Run a strategy and return (the final model, its Result)."""
    grid = InProcessGrid(app, nodes) if grid is None else grid
    result = strategy.start(grid=grid, initial_arrays=record(model), num_rounds=rounds, **options)
    return values(result.arrays), result


def in_vain(strategy, app, model, nodes, rounds=1, **options):
    """Run a strategy of which no round changes the model, and return the model after the last round."""
    seen = []
    with pytest.raises(UntrainedError, match=f"^run: 0 of [1-{rounds}] rounds changed the model; the last one: "):
        drive(
            strategy, app, model, nodes, rounds, evaluate_fn=lambda at, arrays: seen.append(values(arrays)), **options
        )
    return seen[-1]


# -- replies that must be refused --------------------------------------------------------------------


def _but(arrays, **changes):
    name = next(iter(arrays))
    return {**arrays, name: changes["first"](arrays[name])}


def _raw(arrays, change):
    """Answer with the right arrays, the first one's bytes changed."""
    made = content(arrays)
    name = next(iter(arrays))
    made["arrays"][name].data = change(made["arrays"][name].data)
    return made


def _with_record(arrays, key, extra):
    made = content(arrays)
    made[key] = extra
    return made


def _without(arrays, key):
    made = content(arrays)
    del made[key]
    return made


def _nan(a, bad=np.nan):
    changed = a.copy()
    changed.flat[-1] = bad
    return changed


def _unnamed(arrays):
    return RecordDict({"arrays": record(arrays), "metrics": MetricRecord({"loss": 1.0})})


Make = Callable[[dict], RecordDict]

# Every maker takes the right arrays (at least two of them, the first float32 with at least two rows).
MALFORMED: dict[str, tuple[Make, Reason]] = {
    "array missing": (lambda a: content(dict(list(a.items())[1:])), Reason.NAMES),
    "array too many": (lambda a: content({**a, "extra": np.zeros(1, np.float32)}), Reason.NAMES),
    "array renamed": (lambda a: content({f"{k}.": v for k, v in a.items()}), Reason.NAMES),
    "no arrays": (lambda a: content({}), Reason.NAMES),
    "transposed": (lambda a: content(_but(a, first=lambda v: v.T.reshape(v.shape[::-1]))), Reason.SHAPE),
    "0-d": (lambda a: content(_but(a, first=lambda v: np.float32(1.0))), Reason.SHAPE),
    "flattened": (lambda a: content(_but(a, first=np.ravel)), Reason.SHAPE),
    "longdouble": (lambda a: content(_but(a, first=lambda v: v.astype(np.longdouble))), Reason.DTYPE),
    "complex": (lambda a: content(_but(a, first=lambda v: v.astype(np.complex64))), Reason.DTYPE),
    "big-endian": (lambda a: content(_but(a, first=lambda v: v.astype(">f4"))), Reason.DTYPE),
    "integers": (lambda a: content(_but(a, first=lambda v: v.astype(np.int32))), Reason.DTYPE),
    "nan": (lambda a: content(_but(a, first=_nan)), Reason.NOT_FINITE),
    "inf": (lambda a: content(_but(a, first=lambda v: _nan(v, np.inf))), Reason.NOT_FINITE),
    "float64 beyond float32": (
        lambda a: content(_but(a, first=lambda v: _nan(v.astype(np.float64), 1e300))),
        Reason.NOT_FINITE,
    ),
    "minus inf": (lambda a: content(_but(a, first=lambda v: _nan(v, -np.inf))), Reason.NOT_FINITE),
    "truncated": (lambda a: _raw(a, lambda data: data[:-1]), Reason.PAYLOAD),
    "trailing bytes": (lambda a: _raw(a, lambda data: data + b"\0"), Reason.PAYLOAD),
    "garbage": (lambda a: _raw(a, lambda data: b"\x80\x04garbage"), Reason.PAYLOAD),
    "text array": (lambda a: content(_but(a, first=lambda v: np.full(v.shape, "x"))), Reason.PAYLOAD),
    "no ArrayRecord": (lambda a: content(None), Reason.RECORDS),
    "two ArrayRecords": (lambda a: _with_record(a, "more", record(a)), Reason.RECORDS),
    "no MetricRecord": (lambda a: _without(a, "metrics"), Reason.RECORDS),
    "two MetricRecords": (lambda a: _with_record(a, "more", MetricRecord({"num-examples": 1})), Reason.RECORDS),
    "empty": (lambda a: RecordDict(), Reason.RECORDS),
    "config only": (lambda a: RecordDict({"config": ConfigRecord({"num-examples": 1})}), Reason.RECORDS),
    "no num-examples": (_unnamed, Reason.NUM_EXAMPLES),
    "num-examples -1": (lambda a: content(a, -1), Reason.NUM_EXAMPLES),
    "num-examples nan": (lambda a: content(a, float("nan")), Reason.NUM_EXAMPLES),
    "num-examples inf": (lambda a: content(a, float("inf")), Reason.NUM_EXAMPLES),
    "num-examples list": (lambda a: content(a, [1, 2]), Reason.NUM_EXAMPLES),
    "metrics without end": (lambda a: content(a, losses=[0.0] * 10_001), Reason.METRICS),
}
"""By name: how to make a reply that is wrong in one way, and the reason it is refused for."""
