"""Admission: what is let in, what is refused, and for which reason; and metrics that no liar steers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError
from flwr_robust.flower import InProcessGrid, Reason, Refusal
from flwr_robust.flower.admission import Terms, admit, rebuilt, short
from flwr_robust.flower.expected import SentModel
from flwr_robust.flower.metrics import levelled, robust_metrics, trimmed_metrics
from tests.flower_helpers import FIRST, MALFORMED, content, header, npy, record

MODEL = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.array([1.0, -1.0], np.float32),
    "scale": np.float64(2.0),
    "steps": np.int64(5),
    "mask": np.array([True, False]),
}
KEY = "num-examples"
ASKED = [FIRST, FIRST + 1, FIRST + 2]


@pytest.fixture(autouse=True)
def identity():
    """Messages can only be made in a process that is a run's server; a grid makes this one so."""
    InProcessGrid(ClientApp(), 3)


def ask(node=FIRST, kind="train"):
    return Message(RecordDict(), node, kind)


def reply(made, node=FIRST):
    return Message(made, reply_to=ask(node))


def judge(*messages, sent=MODEL, asked=ASKED, key=KEY, **terms):
    model = None if sent is None else SentModel(record(sent))
    return admit(messages, [ask(node) for node in asked], Terms(key, **terms), model)


def reason_of(message, **options):
    admitted, refused = judge(message, **options)
    assert admitted == []
    assert len(refused) == 1
    return refused[0].reason


# -- what is let in ----------------------------------------------------------------------------------


def test_a_right_reply_is_admitted_whole():
    made = content({name: values + values for name, values in MODEL.items()}, 7, partition_id=4, loss=0.5)
    admitted, refused = judge(reply(made))
    assert refused == []
    (found,) = admitted
    assert (found.node, found.num_examples, found.partition) == (FIRST, 7.0, 4)
    assert found.content is made
    assert len(found.arrays) == len(MODEL)
    for values, sent in zip(found.arrays, MODEL.values(), strict=True):
        assert values.dtype == sent.dtype
        assert values.shape == sent.shape
        np.testing.assert_array_equal(values, sent + sent)


def test_what_is_admitted_was_not_copied():
    made = content(MODEL)
    (found,), _ = judge(reply(made))
    data = made["arrays"]["weight"].data
    assert np.shares_memory(found.arrays[0], np.frombuffer(data, np.uint8))


def test_arrays_are_put_into_the_servers_order():
    # Were they taken by position, weight would be refused; the two vectors of one shape would change places.
    model = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32), "c": np.zeros((2, 2), np.float32)}
    right = {"a": np.float32([1, 2]), "b": np.float32([3, 4]), "c": np.ones((2, 2), np.float32)}
    shuffled = {name: right[name] for name in ("c", "b", "a")}
    admitted, refused = judge(reply(content(right)), reply(content(shuffled), FIRST + 1), sent=model)
    assert refused == []
    for first, second in zip(admitted[0].arrays, admitted[1].arrays, strict=True):
        np.testing.assert_array_equal(first, second)
    # The other side: the order does not follow from the message alone.
    assert list(admitted[1].content["arrays"]) == ["c", "b", "a"]


def test_fortran_order_is_no_other_shape():
    made = content({**MODEL, "weight": np.asfortranarray(MODEL["weight"])})
    (found,), refused = judge(reply(made))
    assert refused == []
    np.testing.assert_array_equal(found.arrays[0], MODEL["weight"])


def test_records_may_have_any_name():
    made = RecordDict({"x": MetricRecord({KEY: 1}), "y": record(MODEL), "z": ConfigRecord({"text": "anything"})})
    assert len(judge(reply(made))[0]) == 1


def test_the_largest_finite_numbers_are_admitted():
    # Finite is all that admission asks; outliers are the rule's business.
    made = content({**MODEL, "weight": np.full((2, 3), np.finfo(np.float32).max)}, 1e12)
    assert len(judge(reply(made))[0]) == 1


@pytest.mark.parametrize("partition", [None, 1.5, [1]])
def test_a_partition_is_an_integer_or_unknown(partition):
    made = content(MODEL) if partition is None else content(MODEL, partition_id=partition)
    (found,), _ = judge(reply(made))
    assert found.partition is None


def test_another_key_may_count_the_examples():
    made = RecordDict({"m": MetricRecord({"weight": 3}), "a": record(MODEL)})
    (found,), _ = judge(reply(made), key="weight")
    assert found.num_examples == 3
    assert reason_of(reply(made)) is Reason.NUM_EXAMPLES


@pytest.mark.parametrize("came", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("sent", [np.float16, np.float32, np.float64])
def test_floating_point_is_cast_to_the_models_type(came, sent):
    model = {"w": np.array([[1, 0.1]], sent), "norm.running_mean": np.array([2], sent), "steps": np.int64(3)}
    answer = {k: v.astype(came) if v.dtype.kind == "f" else v for k, v in model.items()}
    (found,), refused = judge(reply(content(answer)), sent=model)
    assert refused == []
    for values, held, theirs in zip(found.arrays, model.values(), answer.values(), strict=True):
        np.testing.assert_array_equal(values, theirs.astype(held.dtype), strict=True)
    assert found.remark == ("" if came is sent else f"cast {np.dtype(came)} to {np.dtype(sent)}")
    # Flower's own functions read the cast numbers, too.
    made = rebuilt([found], Terms(), SentModel(record(model)), 2.0)[0]
    np.testing.assert_array_equal(made["arrays"]["w"].numpy(), found.arrays[0], strict=True)


@pytest.mark.parametrize(("came", "sent", "bad"), [("f8", "f4", 1e300), ("f8", "f2", 1e5), ("f4", "f2", -7e4)])
@pytest.mark.parametrize("name", ["w", "norm.running_var"])
def test_what_overflows_in_the_cast_is_not_finite(name, came, sent, bad):
    model = {"w": np.ones(3, sent), "norm.running_var": np.ones(3, sent)}
    answer = {k: v.astype(came) for k, v in model.items()}
    answer[name][1] = bad
    assert np.isfinite(answer[name]).all()
    assert reason_of(reply(content(answer)), sent=model) is Reason.NOT_FINITE
    assert len(judge(reply(content({**answer, name: np.ones(3, came)})), sent=model)[0]) == 1


def test_where_types_agree_nothing_is_cast(monkeypatch):
    monkeypatch.setattr("flwr_robust.flower.admission._is_float", lambda dtype: 1 / 0)
    assert judge(reply(content(MODEL)))[0][0].remark == ""


def test_what_holds_bfloat16_is_no_npy_file_of_numbers():
    made = content({**MODEL, "bias": np.zeros(2, "V2")})  # as numpy writes ml_dtypes' bfloat16
    made["arrays"]["bias"].dtype = "bfloat16"
    assert reason_of(reply(made)) is Reason.PAYLOAD


@pytest.mark.parametrize("number", [0, 0.0, -0.0])
def test_no_examples_are_an_abstention_whatever_the_arrays_hold(number):
    broken = {**MODEL, "weight": np.full((2, 3), np.nan, np.float32)}
    for made in (content(MODEL, number), content(broken, number), content(None, number)):
        (found,), refused = judge(reply(made))
        assert refused == []
        assert (found.abstains, found.arrays, found.num_examples) == (True, (), 0.0)
    (found,), _ = judge(reply(content(None, number)), sent=None)
    assert found.abstains
    assert reason_of(reply(content(MODEL, -5e-324))) is Reason.NUM_EXAMPLES


def test_metrics_that_are_not_finite_are_left_out_of_their_reply():
    made = content(MODEL, 7, loss=math.nan, accuracy=0.5, top=[1.0, math.inf], rank=[1, 2])
    (found,), refused = judge(reply(made))
    assert refused == []
    assert dict(found.metrics) == {KEY: 7, "accuracy": 0.5, "rank": [1, 2]}
    assert found.remark == "not finite: loss, top"
    assert math.isnan(made["metrics"]["loss"])  # the message stays as it came
    (plain,), _ = judge(reply(content(MODEL, loss=1.0)))
    assert plain.metrics is plain.content["metrics"]
    assert plain.remark == ""
    # A stated metric must be there; where it is not finite, the other replies tell it.
    assert len(judge(reply(made), metrics=("loss",))[0]) == 1
    # Of the number of examples, nothing can be left out.
    assert reason_of(reply(content(MODEL, math.nan, loss=1.0))) is Reason.NUM_EXAMPLES


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_reply_is_refused_alone(make, reason):
    # Two good replies around it: the bad one is refused for its reason, and nothing else happens.
    good = [reply(content(MODEL), FIRST), reply(content(MODEL), FIRST + 2)]
    admitted, refused = judge(good[0], reply(make(MODEL), FIRST + 1), good[1])
    assert [found.node for found in admitted] == [FIRST, FIRST + 2]
    assert [(found.node, found.reason) for found in refused] == [(FIRST + 1, reason)]
    assert isinstance(refused[0].detail, str)
    assert len(refused[0].detail) < 400


def test_every_reason_can_be_reached():
    elsewhere = {
        Reason.ERROR,
        Reason.NOT_ASKED,
        Reason.DUPLICATE,
        Reason.KIND,
        Reason.UNREADABLE,
        Reason.BANNED,
    }  # the tests below
    assert {reason for _, reason in MALFORMED.values()} | elsewhere == set(Reason)


def test_what_nobody_thought_of_is_refused_too(monkeypatch):
    def stumble(*_):
        raise RecursionError("too deep")

    monkeypatch.setattr("flwr_robust.flower.admission._finite", stumble)
    admitted, refused = judge(reply(content(MODEL)))
    assert admitted == []
    assert [(r.reason, r.detail) for r in refused] == [(Reason.UNREADABLE, "RecursionError: too deep")]


def test_an_error_reply_is_refused_with_its_reason():
    message = Message(Error(2, "Traceback:\n  boom   happened\n" + "x" * 1000), reply_to=ask())
    admitted, refused = judge(message)
    assert admitted == []
    assert refused[0].reason is Reason.ERROR
    assert refused[0].node == FIRST
    assert refused[0].detail.startswith("Traceback: boom happened")  # on one line, and short
    assert len(refused[0].detail) == 200


def test_an_error_reply_may_give_no_reason():
    assert judge(Message(Error(0), reply_to=ask()))[1] == [Refusal(FIRST, Reason.ERROR, "")]


def test_a_reply_after_an_error_of_the_same_node_is_admitted():
    # Flower may answer in a dead node's name and deliver the node's own reply later.
    admitted, refused = judge(Message(Error(0), reply_to=ask()), reply(content(MODEL)))
    assert [found.node for found in admitted] == [FIRST]
    assert [found.reason for found in refused] == [Reason.ERROR]


def test_a_node_that_was_not_asked_is_refused():
    assert reason_of(reply(content(MODEL), 99)) is Reason.NOT_ASKED
    assert reason_of(reply(content(MODEL)), asked=[]) is Reason.NOT_ASKED
    # A client that starts a message of its own instead of replying speaks in no asked node's name.
    assert reason_of(Message(content(MODEL), 1, "train")) is Reason.NOT_ASKED


def test_the_first_of_two_replies_counts():
    first, second = content(MODEL, 1), content(MODEL, 2)
    admitted, refused = judge(reply(first), reply(second))
    assert [found.num_examples for found in admitted] == [1.0]
    assert [found.reason for found in refused] == [Reason.DUPLICATE]


def test_a_refused_reply_gives_no_second_chance():
    admitted, refused = judge(reply(content(MODEL, -1)), reply(content(MODEL)))
    assert admitted == []
    assert [found.reason for found in refused] == [Reason.NUM_EXAMPLES, Reason.DUPLICATE]


def test_a_reply_of_another_kind_is_refused():
    message = Message(content(MODEL), reply_to=ask(kind="train.more"))
    assert reason_of(message) is Reason.KIND


def numbered(node, identifier):
    """Return a message as a grid sends it, with an id."""
    message = ask(node)
    message.metadata.__dict__["_message_id"] = identifier
    return message


def from_node(made, message, node):
    """Return a reply to a message that names another node as its source."""
    answer = Message(made, reply_to=message)
    answer.metadata.__dict__["_src_node_id"] = node
    return answer


def test_a_reply_belongs_to_the_node_asked_by_the_message_that_it_answers():
    sent = [numbered(node, f"id-{node}") for node in ASKED]
    first, second, _ = sent

    def verdicts(*messages):
        admitted, refused = admit(messages, sent, Terms(), SentModel(record(MODEL)))
        return [found.node for found in admitted], [(found.node, found.reason) for found in refused]

    assert verdicts(Message(content(MODEL), reply_to=first)) == ([FIRST], [])
    # Node 3 in its own name to the message sent to node 2, in node 2's name to its own, and to none of this round.
    assert verdicts(from_node(content(MODEL), first, FIRST + 1)) == ([], [(FIRST + 1, Reason.NOT_ASKED)])
    assert verdicts(from_node(content(MODEL), second, FIRST)) == ([], [(FIRST, Reason.NOT_ASKED)])
    assert verdicts(Message(content(MODEL), reply_to=numbered(FIRST, "old"))) == ([], [(FIRST, Reason.NOT_ASKED)])
    # None of them takes the place of the node's own reply.
    forged = from_node(content(MODEL), second, FIRST)
    assert verdicts(forged, Message(content(MODEL), reply_to=first))[0] == [FIRST]
    # Flower answers in the name of a dead node as node 1; the message tells which node it was.
    dead = from_node(Error(0), second, 1)
    assert verdicts(dead) == ([], [(FIRST + 1, Reason.ERROR)])


def test_only_what_is_certainly_a_nodes_own_doing_is_held_against_it():
    harmless = {Reason.ERROR, Reason.NOT_ASKED, Reason.DUPLICATE, Reason.BANNED}
    assert {reason for reason in Reason if not reason.blames} == harmless


def test_no_replies():
    assert judge() == ([], [])


@pytest.mark.parametrize("name", ["weight", "bias", "scale"])
def test_one_bad_number_anywhere_is_enough(name):
    for bad in (np.nan, np.inf, -np.inf):
        values = np.array(MODEL[name])
        values.flat[-1] = bad
        assert reason_of(reply(content({**MODEL, name: values}))) is Reason.NOT_FINITE


@pytest.mark.parametrize("name", MODEL)
def test_every_array_is_checked_for_shape_and_type(name):
    values = MODEL[name]
    assert reason_of(reply(content({**MODEL, name: np.stack([values, values])}))) is Reason.SHAPE
    other = values.astype(np.int32 if values.dtype.kind == "f" else np.float32)
    assert reason_of(reply(content({**MODEL, name: other}))) is Reason.DTYPE


def test_the_detail_names_what_was_found():
    refused = judge(reply(content({**MODEL, "bias": np.zeros(3, np.float32)})))[1]
    assert refused[0].detail == "bias: got (3,), sent (2,)"
    refused = judge(reply(content({**MODEL, "bias": np.zeros(2, np.int8)})))[1]
    assert refused[0].detail == "bias: got int8, sent float32"
    refused = judge(reply(content({**MODEL, "bias": np.array([0, 1e300])})))[1]
    assert refused[0].detail == "bias, cast from float64 to float32"
    refused = judge(reply(content({"weight": MODEL["weight"], "wait": MODEL["bias"]}, 1)))[1]
    assert "missing ['bias'" in refused[0].detail
    assert "not sent ['wait']" in refused[0].detail
    assert judge(reply(content(MODEL, -3)))[1][0].detail == "got num-examples=-3"


def test_a_long_name_does_not_fill_the_log():
    made = content({**MODEL, "y\n" * 10_000: np.zeros(1)}, loss=0.0)
    assert len(judge(reply(made))[1][0].detail) <= 200
    made = content(MODEL, **{"x\n" * 10_000: math.inf})
    assert len(judge(reply(made))[1][0].detail) < 250
    made = content(MODEL, **{f"{i}\n{'x' * 200}": math.inf for i in range(1000)})
    assert len(judge(reply(made))[0][0].remark) <= 200


def test_integers_beyond_float64_are_not_finite():
    # Protobuf would not carry them, but records inside one process hold any Python integer.
    assert reason_of(reply(content(MODEL, 10**400))) is Reason.NUM_EXAMPLES
    assert judge(reply(content(MODEL, loss=10**400)))[0][0].remark == "not finite: loss"


@pytest.mark.parametrize(
    "shape", [f"(0, {10**30})", f"({'1,' * 65})", f"(0x{'f' * 3800},)"], ids=["zero", "deep", "long"]
)
def test_no_header_of_a_client_raises_on_the_server(shape):
    made = content(MODEL)
    made["arrays"]["weight"].data = npy(header(shape=shape), bytes(4) if "1," in shape else b"")
    assert reason_of(reply(made)) is Reason.PAYLOAD


@pytest.mark.parametrize("examples", [2**53 + 2, 2.0**60, 1e308])
def test_no_number_of_examples_above_the_cap(examples):
    assert reason_of(reply(content(MODEL, examples))) is Reason.NUM_EXAMPLES
    assert reason_of(reply(content(MODEL, 101)), max_examples=100) is Reason.NUM_EXAMPLES
    assert len(judge(reply(content(MODEL, 100)), max_examples=100)[0]) == 1


def test_metrics_can_be_stated():
    stated = {"metrics": ("loss", "accuracy")}
    assert len(judge(reply(content(MODEL, loss=1.0, accuracy=2, more=3.0)), **stated)[0]) == 1
    for metrics in ({"loss": 1.0}, {"loss": [1.0], "accuracy": 2.0}, {}):
        assert reason_of(reply(content(MODEL, **metrics)), **stated) is Reason.METRICS
    assert len(judge(reply(content(MODEL, loss=1.0)))[0]) == 1


def test_the_names_of_records_can_be_stated():
    made = RecordDict({"m": MetricRecord({KEY: 1}), "a": record(MODEL)})
    assert len(judge(reply(made), records=("a", "m"))[0]) == 1
    assert reason_of(reply(made), records=("arrays", "metrics")) is Reason.RECORDS
    assert reason_of(reply(made), records=("m", "a")) is Reason.RECORDS
    # In evaluation only the MetricRecord has a name that matters.
    assert len(judge(reply(made), sent=None, records=("arrays", "m"))[0]) == 1
    assert reason_of(reply(made), sent=None, records=("a", "metrics")) is Reason.RECORDS


@pytest.mark.parametrize(
    "terms",
    [
        {"max_examples": 0},
        {"max_examples": math.inf},
        {"metrics": "loss"},
        {"records": ("a",)},
        {"records": ("a", "a")},
    ],
)
def test_terms_are_checked(terms):
    with pytest.raises(ConfigurationError, match=f"strategy: {next(iter(terms))}"):
        Terms(**terms)


def test_metrics_without_end_are_refused():
    assert reason_of(reply(content(MODEL, losses=[0.5] * 10_001))) is Reason.METRICS
    assert reason_of(reply(content(MODEL, **{f"m{i}": 1 for i in range(10_001)}))) is Reason.METRICS
    assert reason_of(reply(content(MODEL, **{"n" * 257: 1}))) is Reason.METRICS
    assert len(judge(reply(content(MODEL, losses=[0.5] * 9_000, **{"n" * 256: 1})))[0]) == 1


# A client can put anything into its records that Flower's types allow.
numbers = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats())
metrics = st.dictionaries(
    st.sampled_from([KEY, "partition-id", "loss", ""]),
    st.one_of(numbers, st.lists(st.floats(), max_size=3), st.lists(st.integers(-5, 5), max_size=3)),
)
arrays = st.dictionaries(
    st.sampled_from(["weight", "bias", "other"]),
    st.tuples(
        st.sampled_from([(2, 3), (2,), (), (0,), (6,)]),
        st.sampled_from(["float32", "float64", "int64", "bool", "complex64"]),
        st.sampled_from([0.0, 1.0, math.nan, -math.inf]),
    ),
)


@settings(deadline=None, database=None, max_examples=150)
@given(st.lists(metrics, max_size=2), st.lists(arrays, max_size=2))
@example([{KEY: 2**53}], [{"bias": ((2,), "float32", 0.0), "weight": ((2, 3), "float32", 1.0)}])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_admission_never_raises_and_never_admits_what_does_not_match(all_metrics, all_arrays):
    made = RecordDict({f"m{i}": MetricRecord(found) for i, found in enumerate(all_metrics)})
    for i, found in enumerate(all_arrays):
        made[f"a{i}"] = record({k: np.full(s, v).astype(d) for k, (s, d, v) in found.items()})
    model = {name: MODEL[name] for name in ("weight", "bias")}
    InProcessGrid(ClientApp(), 1)
    admitted, refused = judge(reply(made), sent=model)
    assert len(admitted) + len(refused) == 1
    counted = (
        len(all_metrics) == 1
        and not isinstance(all_metrics[0].get(KEY, []), list)
        and 0 <= all_metrics[0][KEY] <= 2**53
    )
    fits = (
        len(all_arrays) == 1
        and {k: s for k, (s, _, _) in all_arrays[0].items()} == {"weight": (2, 3), "bias": (2,)}
        and all(d in ("float32", "float64") and math.isfinite(v) for _, d, v in all_arrays[0].values())
    )
    abstains = counted and all_metrics[0][KEY] == 0 and len(all_arrays) <= 1
    assert bool(admitted) == bool(abstains or (counted and fits))
    for found in admitted:
        assert found.abstains == abstains
        assert all(math.isfinite(x) for v in found.metrics.values() for x in (v if isinstance(v, list) else [v]))
        assert {str(values.dtype) for values in found.arrays} <= {"float32"}


# -- evaluation --------------------------------------------------------------------------------------


def test_in_evaluation_no_arrays_are_needed_nor_looked_at():
    for made in (content(None, loss=1.0), content({"anything": np.array([np.nan])}, loss=1.0)):
        (found,), refused = judge(reply(made), sent=None)
        assert refused == []
        assert found.arrays == ()
    assert reason_of(reply(content(None, loss=1.0))) is Reason.RECORDS  # in training


@pytest.mark.parametrize("name", [n for n, (_, r) in MALFORMED.items() if r in (Reason.NUM_EXAMPLES, Reason.METRICS)])
def test_in_evaluation_the_metrics_are_judged_the_same(name):
    make, reason = MALFORMED[name]
    made = RecordDict({k: v for k, v in make(MODEL).items() if not isinstance(v, ArrayRecord)})
    assert reason_of(reply(made), sent=None) is reason


def test_in_evaluation_one_metric_record_is_needed():
    assert reason_of(reply(RecordDict()), sent=None) is Reason.RECORDS
    made = content(None)
    made["more"] = MetricRecord({KEY: 1})
    assert reason_of(reply(made), sent=None) is Reason.RECORDS


@pytest.mark.parametrize(("claim", "place"), [(1, 1), (True, None), (1.0, None)])
def test_a_partition_is_an_integer_and_nothing_like_one(claim, place):
    made = content(MODEL)
    dict.__setitem__(made["metrics"]._data, "partition-id", claim)  # Flower itself refuses to put True there
    admitted, refused = judge(reply(made))
    assert refused == []
    assert admitted[0].partition == place


# -- metrics -----------------------------------------------------------------------------------------


def test_metrics_are_medians():
    found = robust_metrics([content(None, 10, loss=v, epochs=e) for v, e in [(1.0, 3), (5.0, 1), (2.0, 2)]], KEY)
    assert isinstance(found, MetricRecord)
    assert dict(found) == {"epochs": 2.0, "loss": 2.0}
    found = robust_metrics([content(None, loss=v) for v in (1.0, 4.0, 2.0, 100.0)], KEY)
    assert dict(found) == {"loss": 3.0}  # the mean of the middle two


@pytest.mark.parametrize(("lie", "examples"), [(1e12, 1), (-1e12, 1), (0.0, 10**12)])
def test_a_liar_does_not_steer_the_metrics(lie, examples):
    honest = [content(None, 50, accuracy=v) for v in (0.70, 0.72, 0.74, 0.76)]
    liar = content(None, examples, accuracy=lie)
    ours = robust_metrics([*honest, liar], KEY)["accuracy"]
    theirs = aggregate_metricrecords([*honest, liar], KEY)["accuracy"]
    assert 0.70 <= ours <= 0.76
    assert abs(theirs - 0.73) > 0.5  # the weighted mean goes where the liar wants it
    # Without the liar the two agree.
    assert robust_metrics(honest, KEY)["accuracy"] == pytest.approx(aggregate_metricrecords(honest, KEY)["accuracy"])


def test_a_metric_counts_when_more_than_half_hold_it():
    both, one = {"loss": 1.0, "f1": 0.5}, {"loss": 3.0}
    assert dict(robust_metrics([content(None, **both), content(None, **one)], KEY)) == {"loss": 2.0}
    found = robust_metrics([content(None, **both), content(None, **both), content(None, **one)], KEY)
    assert dict(found) == {"f1": 0.5, "loss": 1.0}


def test_counts_and_partitions_are_no_metrics():
    made = content(None, 9, partition_id=3, loss=1.0)
    assert dict(robust_metrics([made, made], KEY)) == {"loss": 1.0}
    made = RecordDict({"m": MetricRecord({"weight": 1, KEY: 8})})
    assert dict(robust_metrics([made], "weight")) == {KEY: 8.0}


def test_metrics_can_be_trimmed_means():
    made = [content(None, loss=v) for v in (1.0, 2.0, 4.0, 8.0, -1e308)]
    assert dict(trimmed_metrics(f=1)(made, KEY)) == {"loss": pytest.approx(7 / 3)}
    assert dict(trimmed_metrics(f=0)(made, KEY))["loss"] < -1e307  # untrimmed it is the mean
    assert dict(trimmed_metrics(f=3)(made, KEY)) == {}  # too few to trim
    with pytest.raises(ConfigurationError, match="f must be an integer >= 0"):
        trimmed_metrics(f=-1)


def test_lists_are_aggregated_by_coordinate():
    honest = [content(None, recall=[0.5 + i / 100, 0.9 - i / 100], loss=1.0) for i in range(4)]
    liar = content(None, recall=[1e300, -1e300], loss=1.0)
    found = robust_metrics([*honest, liar], KEY)
    assert found["recall"] == pytest.approx([0.52, 0.88])
    assert trimmed_metrics(1)([*honest, liar], KEY)["recall"] == pytest.approx([0.52, 0.88])
    # Flower's weighted mean goes where the liar wants it.
    assert abs(aggregate_metricrecords([*honest, liar], KEY)["recall"][0]) > 1e290
    # Three of five lists must be of one length; the others are left out, and so is a metric without a majority.
    longer = content(None, recall=[1.0] * 3, loss=1.0)
    assert robust_metrics([*honest[:3], longer, longer], KEY)["recall"] == pytest.approx([0.51, 0.89])
    assert dict(robust_metrics([*honest[:2], longer, longer], KEY)) == {"loss": 1.0}
    assert dict(trimmed_metrics(1)([*honest[:2], content(None, loss=1.0)], KEY)) == {"loss": 1.0}


@pytest.mark.parametrize("length", [0, 10_001])
def test_lists_without_values_or_without_end_are_left_out(length):
    made = [content(None, top=[1.0] * length, hits=[1, 2], loss=1.0)] * 3
    assert dict(robust_metrics(made, KEY)) == {"hits": [1.0, 2.0], "loss": 1.0}


@settings(deadline=None, database=None, max_examples=60)
@given(st.data(), st.integers(1, 9), st.integers(1, 5), st.integers(0, 4))
def test_lists_are_aggregated_like_the_numbers_at_each_position(data, replies, length, f):
    number = st.floats(-1e300, 1e300)
    lists = [data.draw(st.lists(number, min_size=length, max_size=length)) for _ in range(replies)]
    made = [content(None, top=values) for values in lists]
    for aggregate in (robust_metrics, trimmed_metrics(f)):
        single = [aggregate([content(None, top=v[at]) for v in lists], KEY).get("top") for at in range(length)]
        assert aggregate(made, KEY).get("top", [None] * length) == single


def test_metrics_near_the_largest_number_do_not_overflow():
    largest = np.finfo(np.float64).max
    for n in range(1, 9):
        made = [content(None, loss=float(largest))] * n
        assert robust_metrics(made, KEY)["loss"] == largest
        assert trimmed_metrics(0)(made, KEY)["loss"] == pytest.approx(largest)


def test_levelled_metrics_are_the_same_in_all():
    records = [
        MetricRecord({KEY: 10, "loss": 1.0, "top": [1.0, 2.0], "partition-id": 0}),
        MetricRecord({KEY: 30, "top": [3.0, 4.0], "loss": 3.0, "mine": 9.0}),
        MetricRecord({KEY: 10**9, "loss": [7.0], "top": [5.0, 6.0]}),
    ]
    assert [dict(found) for found in levelled(records, KEY, 2.0)] == [
        {KEY: 10, "loss": 1.0, "top": [1.0, 2.0]},
        {KEY: 30, "loss": 3.0, "top": [3.0, 4.0]},
        {KEY: 60, "loss": 2.0, "top": [5.0, 6.0]},  # the median of those that hold it
    ]
    assert levelled(records, KEY, None)[2][KEY] == 10**9
    assert [list(found) for found in levelled(records[:2], KEY, None, ["loss"])] == [[KEY, "loss"]] * 2
    assert levelled([], KEY, 2.0) == []
    # Half of them is no majority.
    assert list(levelled([records[0], MetricRecord({KEY: 1})], KEY, None)[0]) == [KEY]


def test_rebuilt_replies_are_what_flowers_own_reader_reads():
    sent = SentModel(record(MODEL))
    odd = content({**MODEL, "weight": np.asfortranarray(MODEL["weight"])}, loss=1.0)
    text = header(shape="(2,)").ljust(200)  # our reader takes blanks behind the header, numpy's does not
    odd["arrays"]["bias"].data = npy(text, MODEL["bias"].tobytes())
    odd["arrays"]["scale"].dtype = "object"
    odd["more"] = ConfigRecord({"code": b"\x80"})
    swapped = RecordDict({"arrays": MetricRecord({KEY: 1, "loss": 2.0}), "metrics": record(MODEL)})
    messages = [reply(made, node) for made, node in zip((odd, content(MODEL, loss=3.0), swapped), ASKED, strict=True)]
    admitted, refused = judge(*messages)
    assert refused == []
    for found in rebuilt(admitted, Terms(), sent, 2.0):
        assert list(found) == ["arrays", "metrics"]  # as most call them
        assert list(found["arrays"]) == list(MODEL)
        assert list(found["metrics"]) == [KEY, "loss"]
        for name, expected in MODEL.items():
            array = found["arrays"][name]
            assert (array.dtype, array.shape) == (str(expected.dtype), expected.shape)
            np.testing.assert_array_equal(array.numpy(), expected)
    # What was right already is not copied.
    second = rebuilt(admitted, Terms(), sent, 2.0)[1]
    assert second["arrays"]["weight"].data is messages[1].content["arrays"]["weight"].data


def test_what_a_client_writes_does_not_command_a_terminal():
    text = "\x1b[2J\x1b[31mALL CLIENTS OK\u202e " + "x" * 5000
    assert short(text).startswith("\\x1b[2J\\x1b[31mALL CLIENTS OK\\u202e xxx")
    assert len(short(text)) == 200
