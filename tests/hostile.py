"""The hostile battery: what a client can answer, by name, and a grid whose nodes answer so.

A kind turns the message that a node was sent and its honest reply into what arrives instead. There are three sorts:
REFUSED must not be let in; HARMLESS is odd but means what an honest reply means; LIES are well-formed and wrong, which
is the rule's business, not admission's.
"""

from __future__ import annotations

import io
import pickle
from functools import lru_cache

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flwr_robust.flower import InProcessGrid
from tests.flower.test_wire import ESCAPES
from tests.flower.test_wire import REFUSED as MALFORMED_BYTES
from tests.flower_helpers import content, header, npy, record, values

MODEL = {
    "head.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
    "bias": np.float32([0.5, -0.5, 0.25]),
    "half": np.array([[1, -1], [2, 0.5]], np.float16),
    "norm.running_mean": np.float32([1, 2, 3]),
    "norm.num_batches_tracked": np.int64(7),
    "mask": np.array([True, False, True]),
}
LEARNT = ("head.weight", "bias", "half")
CLIENTS = 60  # the most that a test asks; partition i makes UPDATES[i]

# Honest updates: a common direction and a spread of the same length, for rules that clip or look at angles.
_rng = np.random.default_rng(1)
UPDATES = [
    {k: (0.03 + 0.05 * _rng.standard_normal(MODEL[k].shape)).astype(MODEL[k].dtype) for k in LEARNT}
    for _ in range(CLIENTS)
]


def honest_answer(partition, model):
    """What an honest client makes of a model; two steps of the counter on even partitions, one on odd."""
    answer = {k: (model[k] + UPDATES[partition][k]).astype(model[k].dtype) for k in LEARNT}
    answer["norm.running_mean"] = model["norm.running_mean"] + np.float32(0.01 * partition)
    answer["norm.num_batches_tracked"] = np.asarray(model["norm.num_batches_tracked"] + 2 - partition % 2)
    answer["mask"] = model["mask"]
    return {k: answer[k] for k in model}


@lru_cache(maxsize=4)
def _read(named):
    return {name: np.load(io.BytesIO(data)) for name, data in named}


def honest_app():
    """The model is read once a round, not once a client: most of the battery's time went there."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        model = _read(tuple((name, array.data) for name, array in message.content["arrays"].items()))
        partition = context.node_config["partition-id"]
        answer = honest_answer(partition, model)
        return Message(content(answer, 10 + partition, loss=1 + 0.1 * partition, top=[0.1, 0.2]), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        partition = context.node_config["partition-id"]
        found = content(None, 10 + partition, loss=2 + 0.1 * partition, accuracy=0.5 + 0.01 * partition)
        return Message(found, reply_to=message)

    return app


def hostile_app(kinds, liars):
    """Make an app whose liars answer in round r by the r-th of the kinds, on whatever engine runs it."""

    app = ClientApp()

    @app.train()
    def train(message, context):
        partition, at = context.node_config["partition-id"], message.content["config"]["server-round"]
        arrays = honest_answer(partition, values(message.content["arrays"]))
        reply = Message(content(arrays, 10 + partition, loss=1 + 0.1 * partition), reply_to=message)
        if partition not in liars or at > len(kinds):
            return reply
        return ALL[kinds[at - 1]](message, reply)[0]

    return app


class HostileGrid(InProcessGrid):
    """A grid on which, in the rounds and kinds named, partitions answer by a kind of the battery."""

    def __init__(self, plan, clients):
        super().__init__(honest_app(), clients)
        self.plan = plan  # round -> {partition: kind}

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        found = []
        for message, reply in zip(messages, replies, strict=True):
            at = message.content["config"]["server-round"]
            partition = self.contexts[message.metadata.dst_node_id].node_config["partition-id"]
            kind = self.plan.get(at, {}).get(partition)
            found.extend([reply] if kind is None else kind(message, reply))
        return iter(found)


# -- how kinds are made ------------------------------------------------------------------------------


def again(message, made, **metadata):
    """Return another reply to a message."""
    answer = Message(made, reply_to=message)
    answer.metadata.__dict__.update({f"_{key}": value for key, value in metadata.items()})
    return answer


def sends(make):
    """Answer with a RecordDict made of the right arrays."""

    def kind(message, reply):
        arrays = reply.content if "arrays" in reply.content else message.content
        return [again(message, make(values(arrays["arrays"])))]

    return kind


def with_first(change):
    """Answer with the first array changed."""
    return sends(lambda a: content({**a, "head.weight": change(a["head.weight"])}, 10, loss=2.5))


def with_array(name, change):
    return sends(lambda a: content({**a, name: change(a[name])}, 10, loss=2.5))


def with_bytes(change, name="bias"):
    """Answer with the bytes of an array changed."""

    def make(arrays):
        made = content(arrays, 10, loss=2.5)
        made["arrays"][name].data = change(made["arrays"][name].data)
        return made

    return sends(make)


def with_arrays(change):
    """Answer with another dict of arrays."""
    return sends(lambda a: content(change(a), 10, loss=2.5))


def with_examples(number):
    return sends(lambda a: content(a, number, loss=2.5))


def with_metrics(**metrics):
    return sends(lambda a: content(a, 10, **metrics))


def with_records(change):
    """Answer with other records."""

    def make(arrays):
        made = content(arrays, 10, loss=2.5)
        return RecordDict(change(dict(made)))

    return sends(make)


def attributed(**attributes):
    def make(arrays):
        made = content(arrays, 10, loss=2.5)
        made["arrays"]["bias"].__dict__.update(attributes)
        return made

    return sends(make)


def poked(bad, *, at=-1):
    def change(held):
        changed = np.array(held)
        changed.flat[at] = bad
        return changed

    return change


def error(reason, **metadata):
    return lambda message, reply: [again(message, Error(2, reason), **metadata)]


def saved(values_):
    """Bytes of numpy's own writer, pickles and all."""
    buffer = io.BytesIO()
    np.save(buffer, values_, allow_pickle=True)
    return lambda data: buffer.getvalue()


def zipped(data):
    buffer = io.BytesIO()
    np.savez(buffer, bias=np.zeros(3, np.float32))
    return buffer.getvalue()


class Bomb:
    """Unpickled, it would end the process."""

    def __reduce__(self):
        return (exec, ("import os; os._exit(13)",))


def as_objects(held):
    objects = np.empty(3, object)
    objects[:] = [Bomb(), None, "x"]
    return objects


def rolled(arrays):
    """The values, moved by one name."""
    return dict(zip(arrays, [*list(arrays.values())[1:], arrays["head.weight"]], strict=True))


MANY = MetricRecord({"num-examples": 10, **{f"m{i}": 1.0 for i in range(10_000)}})
THOUSAND = [f"r{i}" for i in range(1000)]
STRUCTURE = np.zeros(3, [("a", "<f4"), ("b", "<i2")])

REFUSED = {
    # values
    "nan first": with_first(poked(np.nan, at=0)),
    "nan last": with_first(poked(np.nan)),
    "nan everywhere": with_first(lambda v: np.full_like(v, np.nan)),
    "minus nan with a payload": with_first(poked(np.uint32(0xFFC12345).view(np.float32))),
    "inf": with_first(poked(np.inf)),
    "minus inf": with_first(poked(-np.inf)),
    "inf and minus inf": with_first(lambda v: poked(np.inf, at=0)(poked(-np.inf)(v))),
    "nan in float16": with_array("half", poked(np.nan)),
    "inf in float16": with_array("half", poked(np.inf)),
    "nan in a buffer": with_array("norm.running_mean", poked(np.nan)),
    "largest numbers and one nan": with_first(lambda v: poked(np.nan)(np.full_like(v, np.finfo(v.dtype).max))),
    # shapes
    "transposed": with_first(lambda v: v.T),
    "0-d": with_first(lambda v: np.float32(1)),
    "flattened": with_first(np.ravel),
    "a dimension before": with_first(lambda v: v[None]),
    "a dimension behind": with_first(lambda v: v[..., None]),
    "empty": with_first(lambda v: v[:0]),
    "a row more": with_first(lambda v: np.concatenate([v, v[:1]])),
    "a row less": with_first(lambda v: v[:-1]),
    "broadcasts": with_first(lambda v: v[:1]),
    "broadcasts, one number": with_first(lambda v: v[:1, :1]),
    "a column for a vector": with_array("bias", lambda v: v[:, None]),
    "32 dimensions": with_array("bias", lambda v: v.reshape((1,) * 31 + (3,))),
    "a counter with a dimension": with_array("norm.num_batches_tracked", lambda v: v[None]),
    # names
    "an array missing": with_arrays(lambda a: {k: v for k, v in a.items() if k != "bias"}),
    "the counter missing": with_arrays(lambda a: {k: v for k, v in a.items() if v.dtype != np.int64}),
    "no array": with_arrays(lambda a: {}),
    "an array too many": with_arrays(lambda a: {**a, "extra": a["bias"]}),
    "an array of no name too many": with_arrays(lambda a: {**a, "": a["bias"]}),
    "1,000 arrays too many": with_arrays(lambda a: {**a, **{str(i): np.zeros(1, np.float32) for i in range(1000)}}),
    "renamed": with_arrays(lambda a: {f"model.{k}": v for k, v in a.items()}),
    "upper case": with_arrays(lambda a: {k.upper(): v for k, v in a.items()}),
    "a blank behind a name": with_arrays(lambda a: {f"{k} ": v for k, v in a.items()}),
    "a letter of another alphabet": with_arrays(lambda a: {k.replace("a", "\u0430"): v for k, v in a.items()}),
    "a name of a megabyte": with_arrays(lambda a: {("x" if k == "bias" else "") * 10**6 or k: v for k, v in a.items()}),
    "a name that commands terminals": with_arrays(lambda a: {("\x1b[2J" * (k == "bias")) + k: v for k, v in a.items()}),
    "numbers for names": with_arrays(lambda a: {str(i): v for i, v in enumerate(a.values())}),
    "values under each other's names": with_arrays(rolled),
    # types
    **{
        name: with_first(lambda v, dtype=dtype: v.astype(dtype))
        for name, dtype in {
            "longdouble": "g",
            "complex64": "c8",
            "complex128": "c16",
            "big-endian": ">f4",
            "int32": "i4",
            "int8": "i1",
            "uint64": "u8",
            "bool": "?",
            "text": "U8",
            "bytes": "S8",
        }.items()
    },
    "a counter in float64": with_array("norm.num_batches_tracked", lambda v: v.astype(float)),
    "a counter in int32": with_array("norm.num_batches_tracked", lambda v: v.astype(np.int32)),
    "an unsigned counter": with_array("norm.num_batches_tracked", lambda v: v.astype(np.uint64)),
    "a mask in int8": with_array("mask", lambda v: v.astype(np.int8)),
    "dates": with_array("bias", lambda v: np.zeros(3, "M8[s]")),
    "durations": with_array("bias", lambda v: np.zeros(3, "m8[s]")),
    "structure": with_array("bias", lambda v: STRUCTURE),
    "void": with_array("bias", lambda v: np.zeros(3, "V4")),
    # casts
    "float64 that overflows": with_first(lambda v: poked(1e300)(v.astype(float))),
    "float64 that overflows, negative": with_first(lambda v: poked(-3.5e38, at=0)(v.astype(float))),
    "float32 that overflows float16": with_array("half", lambda v: poked(65520)(v.astype("f4"))),
    "a buffer that overflows": with_array("norm.running_mean", lambda v: poked(1e39)(v.astype(float))),
    "nan in float64": with_first(lambda v: poked(np.nan)(v.astype(float))),
    "inf in float64": with_first(lambda v: poked(-np.inf)(v.astype(float))),
    "integers for a buffer": with_array("norm.running_mean", lambda v: v.astype(np.int64)),
    "bfloat16 as numpy writes it": with_first(lambda v: np.zeros(v.shape, "V2")),
    # objects and pickles
    "objects, pickled": with_bytes(lambda data: saved(as_objects(None))(data)),
    "a pickle": with_bytes(lambda data: pickle.dumps(Bomb())),
    "a pickle behind a header": with_bytes(lambda data: npy(header(shape="(3,)"), pickle.dumps(Bomb()))),
    "said to be pickled": attributed(stype="pickle"),
    "said to be a tensor": attributed(stype="torch.Tensor"),
    "said to be nothing": attributed(stype=""),
    "no bytes but a bytearray": with_bytes(bytearray),
    "None for bytes": attributed(data=None),
    "text for bytes": attributed(data="\x93NUMPY"),
    # bytes
    "truncated by one": with_bytes(lambda data: data[:-1]),
    "truncated by half": with_bytes(lambda data: data[: len(data) // 2]),
    "the largest array truncated": with_bytes(lambda data: data[:-4], "head.weight"),
    "a byte too many": with_bytes(lambda data: data + b"\0"),
    "a megabyte too many": with_bytes(lambda data: data + bytes(10**6)),
    "an npz": with_bytes(zipped),
    "another array's bytes": with_bytes(lambda data: Array(np.zeros(4, np.float32)).data),
    **{f"bytes: {name}": with_bytes(lambda data, bad=bad: bad) for name, bad in {**MALFORMED_BYTES, **ESCAPES}.items()},
    # memory bombs
    "128 bytes that declare 2.5 GiB": with_bytes(lambda data: npy(header(shape="(671088640,)"))),
    "declares the right type and 2^40 rows": with_bytes(lambda data: npy(header(shape=f"({2**40}, 3)"), bytes(12))),
    "4 MiB for three numbers": with_bytes(lambda data: npy(header(shape="(1048576,)"), bytes(1 << 22))),
    "10,000 metrics": with_records(lambda r: {**r, "metrics": MANY}),
    "a list of 100,000": with_metrics(loss=[0.5] * 10**5),
    "a metric's name of a megabyte": with_metrics(**{"m" * 10**6: 1.0}),
    # records
    "nothing": with_records(lambda r: {}),
    "no ArrayRecord, no MetricRecord": with_records(lambda r: {"config": ConfigRecord({"num-examples": 10})}),
    "no MetricRecord": with_records(lambda r: {"arrays": r["arrays"]}),
    "two MetricRecords": with_records(lambda r: {**r, "more": MetricRecord({"num-examples": 10})}),
    "a MetricRecord that is empty": with_records(lambda r: {**r, "metrics": MetricRecord()}),
    "a thousand MetricRecords": with_records(lambda r: {**r, **dict.fromkeys(THOUSAND, MetricRecord())}),
    # numbers of examples
    "no num-examples": sends(lambda a: RecordDict({"arrays": record(a), "metrics": MetricRecord({"loss": 1.0})})),
    **{
        f"num-examples {name}": with_examples(number)
        for name, number in {
            "-1": -1,
            "-1e-300": -1e-300,
            "-2^63": -(2**63),
            "nan": float("nan"),
            "inf": float("inf"),
            "minus inf": float("-inf"),
            "2^53 + 2": 2**53 + 2,
            "2^64 - 1": 2**64 - 1,
            "1e300": 1e300,
            "10^400": 10**400,
            "in a list": [10],
            "in an empty list": [],
        }.items()
    },
    # messages
    "an error": error("boom"),
    "an error without a reason": error(None),
    "an error that commands terminals": error("\x1b[2J\n" * 10_000),
    "an error in a dead node's name": error("unavailable", src_node_id=1),
    "another kind": lambda m, r: [again(m, r.content, message_type=f"{m.metadata.message_type}.other")],
    "a query's answer": lambda m, r: [again(m, r.content, message_type="query")],
    "an old message's answer": lambda m, r: [again(m, r.content, reply_to_message_id="old")],
    "no message's answer": lambda m, r: [again(m, r.content, reply_to_message_id="")],
    "in a stranger's name": lambda m, r: [again(m, r.content, src_node_id=999)],
    "in the server's name": lambda m, r: [again(m, r.content, src_node_id=1)],
    "in another client's name": lambda m, r: [again(m, r.content, src_node_id=m.metadata.dst_node_id % 9 + 3)],
    "neither content nor error": lambda m, r: [emptied(again(m, r.content))],
}
"""Kinds of reply none of which may be let in."""

IN_TRAINING = {
    "no ArrayRecord": with_records(lambda r: {"metrics": r["metrics"]}),
    "two ArrayRecords": with_records(lambda r: {**r, "more": r["arrays"]}),
    "a thousand ArrayRecords": with_records(lambda r: {**r, **dict.fromkeys(THOUSAND, ArrayRecord())}),
}
"""Kinds that are refused in training; in evaluation nobody looks at arrays."""


def emptied(message):
    message.__dict__["_content"] = None
    return message


def also(*more):
    """Answer honestly, and then some."""
    return lambda message, reply: [reply, *(answer for make in more for answer in make(message, reply))]


SILENT = {"silence": lambda message, reply: []}
"""No reply at all."""

ABSTAINED = {
    "num-examples 0": with_examples(0),
    "num-examples -0.0": with_examples(-0.0),
    "no examples and nan everywhere": sends(lambda a: content({**a, "bias": np.full(3, np.nan, np.float32)}, 0)),
    "no examples and no arrays": sends(lambda a: content(None, 0, loss=2.5)),
    "no examples and a loss of nan": sends(lambda a: content(a, 0, loss=float("nan"))),
}
"""Kinds that say: I have no examples in this round."""

HARMLESS = {
    # casts within floating point
    "float64": with_arrays(lambda a: {k: v.astype("f8") if v.dtype.kind == "f" else v for k, v in a.items()}),
    "float64 and another half": with_array("half", lambda v: v.astype("f8")),
    "float16 for one array": with_first(lambda v: v.astype("f2")),
    "a buffer in float64": with_array("norm.running_mean", lambda v: v.astype("f8")),
    "float64 in fortran order": with_first(lambda v: np.asfortranarray(v.astype("f8"))),
    "float64 in npy version 2": with_bytes(
        lambda data: npy(header("'<f8'", "(3,)"), np.frombuffer(data[-12:], "<f4").astype("<f8").tobytes(), (2, 0))
    ),
    # metrics that are left out
    **{
        f"loss {name}": with_metrics(loss=value)
        for name, value in {
            "nan": float("nan"),
            "inf": float("inf"),
            "minus inf": float("-inf"),
            "10^400": 10**400,
            "with nan in a list": [0.5, float("nan")],
            "with inf in a long list": [0.5] * 999 + [float("inf")],
        }.items()
    },
    "another metric nan": with_metrics(loss=2.5, mine=float("nan")),
    "a partition of nan": with_metrics(loss=2.5, partition_id=float("nan")),
    "5,000 metrics of nan": with_metrics(loss=2.5, **{f"m{i}\x1b[2J": float("nan") for i in range(5000)}),
    "a list of 9,000": with_metrics(loss=2.5, top=[1e308] * 9_000),
    "lists of the right length that lie": with_metrics(loss=2.5, top=[1e308, -1e308]),
    "the arrays in reverse order": with_arrays(lambda a: dict(reversed(a.items()))),
    "fortran order": with_first(np.asfortranarray),
    "npy version 2": with_bytes(lambda data: npy(header(shape="(3,)"), data[-12:], (2, 0))),
    "npy version 3": with_bytes(lambda data: npy(header(shape="(3,)"), data[-12:], (3, 0))),
    "blanks behind the header": with_bytes(lambda data: npy(header(shape="(3,)") + " " * 99, data[-12:])),
    "said to be of another type": attributed(dtype="object"),
    "said to be of another shape": attributed(shape=(10**12,)),
    "records under other names": with_records(lambda r: {"a": r["arrays"], "m": r["metrics"]}),
    "records under each other's names": with_records(lambda r: {"metrics": r["arrays"], "arrays": r["metrics"]}),
    "a pickle in a ConfigRecord": with_records(lambda r: {**r, "c": ConfigRecord({"code": pickle.dumps(Bomb())})}),
    "a ConfigRecord named arrays": with_records(
        lambda r: {"arrays": ConfigRecord(), "a": r["arrays"], "m": r["metrics"]}
    ),
    "num-examples 1e-300": with_examples(1e-300),
    "num-examples 5e-324": with_examples(5e-324),
    "num-examples 0.5": with_examples(0.5),
    "num-examples 1e12": with_examples(1e12),
    "num-examples 2^53": with_examples(2**53),
    "no loss": with_metrics(),
    "loss in a list": with_metrics(loss=[1.5]),
    "loss in an empty list": with_metrics(loss=[]),
    "a list of another length": with_metrics(loss=2.5, top=[0.1] * 7),
    "a metric nobody else has": with_metrics(loss=2.5, mine=1e9),
    "a metric of no name": with_metrics(loss=2.5, **{"": 1.0}),
    "loss 1e308": with_metrics(loss=1e308),
    "loss -1e308": with_metrics(loss=-1e308),
    "loss 2^64 - 1": with_metrics(loss=2**64 - 1),
    "partition-id -1": with_metrics(loss=2.5, partition_id=-1),
    "partition-id 10^18": with_metrics(loss=2.5, partition_id=10**18),
    "partition-id nowhere": with_metrics(loss=2.5, partition_id=0.5),
    "partition-id of another": with_metrics(loss=2.5, partition_id=5),
    "partition-id in a list": with_metrics(loss=2.5, partition_id=[1, 2]),
    "the reply twice": also(lambda m, r: [again(m, r.content)]),
    "ten more, all different": also(
        *(with_arrays(lambda a, s=s: {k: -s * v for k, v in a.items()}) for s in range(10))
    ),
    "a stranger besides": also(lambda m, r: [again(m, r.content, src_node_id=999)]),
    "malformed ones besides": also(with_bytes(lambda data: b""), error("boom")),
    "an error first": lambda m, r: [*error("boom", src_node_id=1)(m, r), r],
}
"""Kinds that are let in, for they say what an honest client could say."""


ALL = {**REFUSED, **{f"{k} (training)": v for k, v in IN_TRAINING.items()}, **SILENT, **ABSTAINED, **HARMLESS}
"""What does not hurt any rule: it is not let in, or it is as good as honest."""


def lie(change):
    return sends(lambda a: content({k: change(k, v) for k, v in a.items()}, 10, loss=2.5))


def _extreme(name, held):
    limits = (
        np.finfo(held.dtype) if held.dtype.kind == "f" else np.iinfo(held.dtype) if held.dtype.kind == "i" else None
    )
    return held if limits is None else np.full_like(held, limits.max)


def _lowest(name, held):
    limits = (
        np.finfo(held.dtype) if held.dtype.kind == "f" else np.iinfo(held.dtype) if held.dtype.kind == "i" else None
    )
    return held if limits is None else np.full_like(held, limits.min)


def _times(factor):
    return lambda name, held: (held * factor).astype(held.dtype) if held.dtype.kind == "f" else held


LIES = {
    "the largest numbers": lie(_extreme),
    "the smallest numbers": lie(_lowest),
    "one coordinate at 1e30": with_first(poked(1e30)),
    "one coordinate at -1e30": with_first(poked(-1e30)),
    "a buffer at 1e38": with_array("norm.running_mean", lambda v: np.full_like(v, 1e38)),
    "a counter at 2^63 - 1": with_array("norm.num_batches_tracked", lambda v: np.int64(2**63 - 1)),
    "the mask inverted": with_array("mask", np.invert),
    "the sign turned": lie(_times(-1)),
    "100 times": lie(_times(100)),
    "-100 times": lie(_times(-100)),
    "zeros": lie(_times(0)),
    "denormals": with_first(lambda v: np.full_like(v, 1e-45)),
    "a checkerboard of 1e20": with_first(
        lambda v: (1e20 * (-1.0) ** np.arange(v.size)).astype(v.dtype).reshape(v.shape)
    ),
}
"""Kinds that are let in and lie."""
