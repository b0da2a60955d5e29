"""The hostile battery against every strategy: no reply ends a run, moves the model, or costs memory."""

from __future__ import annotations

import logging
import subprocess
import sys
import tracemalloc
import warnings
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp import strategy as flowers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flwr_robust import Outcome, flower
from flwr_robust.audit import ReplyRefused, read_log, verify
from flwr_robust.flower import Audit, Guarded, Observer
from flwr_robust.flower.admission import Terms, admit
from flwr_robust.flower.expected import SentModel
from tests.flower.test_wire import judge as judge_bytes
from tests.flower_helpers import FIRST, content, header, npy, record, values
from tests.hostile import (
    ALL,
    HARMLESS,
    LEARNT,
    LIES,
    MODEL,
    REFUSED,
    SILENT,
    UPDATES,
    HostileGrid,
    honest_answer,
)

logging.getLogger("flwr").setLevel(logging.ERROR)


def trusted(server_round, sent):
    """The server's own answer: what honest clients send on average."""
    return [v + v.dtype.type(0.03) if name in LEARNT else v for name, v in values(sent).items()]


NAMED = {
    "Bulyan": {"f": 2},
    "CAF": {"f": 2},
    "CGE": {"f": 2},
    "CenteredClipping": {"tau": 0.5, "f": 2},
    "ClipMean": {},
    "ClippedClustering": {},
    "Clustering": {},
    "DnC": {"f": 2},
    "FABA": {"f": 2},
    "FLAME": {},
    "FLTrust": {"trusted_fn": trusted},
    "FoolsGold": {},
    "GeneralisedKrum": {"f": 2, "p": 3},
    "GeometricMedian": {"f": 2},
    "Krum": {"f": 2},
    "LFighter": {"head": "head.weight"},
    "Meamed": {"f": 2},
    "Mean": {},
    "Median": {"f": 2},
    "MinimumDiameter": {"f": 2},
    "MixTailor": {"f": 2, "pool": ["median", "krum", "trimmed_mean"], "seed": 1},
    "Monna": {"f": 2, "trusted_fn": trusted},
    "MultiKrum": {"f": 2},
    "NormBound": {"c": 1.0},
    "Phocas": {"f": 2},
    "ReweightedGeometricMedian": {"f": 2},
    "SMEA": {"f": 2},
    "SignGuard": {},
    "SignMajority": {"scale": 0.03},
    "TrimmedMean": {"f": 2},
}

# Rules that bound what two of thirteen can do in one round; the conformance suite says of the others why they do not.
RESILIENT = sorted(
    set(NAMED)
    - {"CenteredClipping", "ClipMean", "ClippedClustering", "Clustering", "FLTrust", "FoolsGold", "LFighter"}
    - {"Mean", "NormBound", "SignMajority"}
)

THEIRS = {
    "FedAvg": lambda **o: flowers.FedAvg(**o),
    "FedAvgM": lambda **o: flowers.FedAvgM(server_momentum=0.1, **o),
    "FedMedian": lambda **o: flowers.FedMedian(**o),
    "FedTrimmedAvg": lambda **o: flowers.FedTrimmedAvg(beta=0.2, **o),
    "FedProx": lambda **o: flowers.FedProx(proximal_mu=0.1, **o),
    "Krum": lambda **o: flowers.Krum(num_malicious_nodes=2, **o),
    "MultiKrum": lambda **o: flowers.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=3, **o),
    "Bulyan": lambda **o: flowers.Bulyan(num_malicious_nodes=2, **o),
}


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """Flower's Bulyan collects garbage once per reply, which in a process full of tests takes most of their time."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


def made(name, clients, observers=(), least=None):
    """Make a strategy that asks all clients, for training and for evaluation."""
    options = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), clients)
    if name.startswith("Guarded"):
        return Guarded(THEIRS[name[8:-1]](**options), observers=observers, least=least)
    return getattr(flower, name)(**NAMED[name], observers=observers, min_replies=least, **options)


class Watch(Observer):
    """Keeps what an observer is told."""

    def __init__(self):
        self.rounds, self.evaluations = [], []

    def aggregated(self, aggregation):
        self.rounds.append(aggregation)

    def evaluated(self, record, metrics):
        self.evaluations.append((record, metrics))


def run(name, plan, rounds, clients, *observers, least=None):
    """Run a strategy against a plan; return what was seen, and the Result."""
    watch = Watch()
    strategy = made(name, clients, [watch, *observers], least)
    with np.errstate(all="ignore"):
        result = strategy.start(HostileGrid(plan, clients), record(MODEL), rounds)
    assert [seen.round for seen in strategy.history] == list(range(1, rounds + 1))
    return watch, result


def flat(update):
    return np.concatenate([np.asarray(update[k], float).ravel() for k in LEARNT])


def spread_of(partitions):
    honest = np.stack([flat(UPDATES[i]) for i in partitions])
    return honest.mean(0), max(np.linalg.norm(row - honest.mean(0)) for row in honest)


def moved(aggregation):
    before, after = values(aggregation.before), values(aggregation.after)
    return flat({k: after[k].astype(float) - before[k] for k in LEARNT})


def assert_as_the_model(arrays):
    found = values(arrays)
    assert [(k, v.dtype, v.shape) for k, v in found.items()] == [(k, v.dtype, v.shape) for k, v in MODEL.items()]
    assert all(np.isfinite(v).all() for v in found.values())


def assert_near_the_honest(aggregation, honest, factor=1.25):
    """The model, its form, and the metrics are those that honest clients make."""
    assert aggregation.record.outcome in (Outcome.OK, Outcome.NOT_CONVERGED), aggregation.record.sentence
    assert_as_the_model(aggregation.after)
    mean, spread = spread_of(honest)
    assert np.linalg.norm(moved(aggregation) - mean) <= factor * spread
    before, after = values(aggregation.before), values(aggregation.after)
    assert after["norm.num_batches_tracked"] - before["norm.num_batches_tracked"] in (1, 2)
    change = after["norm.running_mean"] - before["norm.running_mean"]
    assert (change >= -1e-4).all()
    assert (change <= 0.01 * max(honest) + 1e-4).all()
    assert (after["mask"] == before["mask"]).all()


def assert_metrics_are_honest(watch, result):
    for seen in watch.rounds:
        assert 1 <= result.train_metrics_clientapp[seen.record.round]["loss"] <= 1 + 0.1 * len(UPDATES)
    for record_, metrics in watch.evaluations:
        if 2 * len(record_.admitted) <= len(record_.asked) - len(record_.abstained):  # most of them lie
            assert record_.outcome is Outcome.INFEASIBLE
            assert metrics is None
            assert record_.round not in result.evaluate_metrics_clientapp
            continue
        assert record_.outcome is Outcome.OK
        assert 2 <= metrics["loss"] <= 2 + 0.1 * len(UPDATES)
        # A metric that fewer than half report is not shown.
        assert 0.5 <= metrics.get("accuracy", 0.5) <= 0.5 + 0.01 * len(UPDATES)
        assert result.evaluate_metrics_clientapp[record_.round] == metrics


# -- every kind, first, last and both ----------------------------------------------------------------

POSITIONS = {1: (0, 1), 2: (5, 6), 3: (0, 6)}  # by round, of seven; the fourth round is clean


def test_there_are_kinds_enough():
    assert len(ALL) + len(LIES) >= 200
    assert not set(ALL) & set(LIES)


@pytest.mark.parametrize("kind", ALL)
def test_no_kind_of_reply_does_harm(kind):
    name = ("TrimmedMean", "Guarded(FedAvg)")[list(ALL).index(kind) % 2]  # every kind meets all of them below
    plan = {at: dict.fromkeys(places, ALL[kind]) for at, places in POSITIONS.items()}
    watch, result = run(name, plan, 4, 7)
    for seen, (record_, _) in zip(watch.rounds, watch.evaluations, strict=True):
        places = POSITIONS.get(seen.record.round, ())
        honest = [i for i in range(7) if i not in places]
        hostile = {FIRST + i for i in places}
        let_in = kind in HARMLESS or not places
        assert_near_the_honest(seen, range(7) if let_in else honest)
        assert set(seen.record.admitted) == ({FIRST + i for i in range(7)} if let_in else {FIRST + i for i in honest})
        # Who answers in another's name has not answered.
        assert set(seen.record.silent) in ((hostile,) if kind in SILENT else (set(), hostile))
        assert set(record_.admitted) >= {FIRST + i for i in honest}
        if not places:  # the next round is as if nothing had been
            assert seen.record.refused == record_.refused == ()
            assert set(record_.admitted) == {FIRST + i for i in range(7)}
    assert_metrics_are_honest(watch, result)


# -- every strategy ----------------------------------------------------------------------------------

EVERY = [*NAMED, *(f"Guarded({name})" for name in THEIRS)]


@pytest.mark.parametrize("name", EVERY)
def test_no_strategy_is_harmed_by_any_kind(name):
    # Eleven honest clients, as Bulyan needs for f = 2, and 48 others that send something else in every round. Where a
    # rule declares no f, one must say that so few are enough.
    kinds, places = list(ALL.values()), [*range(24), *range(35, 59)]
    packs = [kinds[start : start + 48] for start in range(0, len(kinds), 48)]
    plan = {at: dict(zip(places, pack, strict=False)) for at, pack in enumerate(packs, 1)}
    watch, result = run(name, plan, len(packs) + 1, 59, least=11)
    for seen in watch.rounds:
        assert {FIRST + i for i in range(24, 35)} <= set(seen.record.admitted)
        assert_near_the_honest(seen, [node - FIRST for node in seen.record.admitted])
    assert watch.rounds[-1].record.refused == ()
    assert len(watch.rounds[-1].record.admitted) == 59
    assert_metrics_are_honest(watch, result)


@pytest.mark.parametrize("name", ["CenteredClipping", "TrimmedMean", "Guarded(FedAvgM)", "Guarded(Krum)"])
def test_the_battery_leaves_a_log_and_checkpoints_intact(name, tmp_path):
    kinds = [*ALL.values(), *LIES.values()]
    packs = [kinds[start : start + 40] for start in range(0, len(kinds), 40)]
    plan = {at: dict(enumerate(pack, 11)) for at, pack in enumerate(packs, 1)}
    watch, result = run(name, plan, len(packs), 51, Audit(tmp_path, sync=False))
    assert verify(tmp_path / "audit.jsonl").intact
    on_record = [event for event in read_log(tmp_path / "audit.jsonl") if isinstance(event.event, ReplyRefused)]
    for seen in watch.rounds:
        told = {(r.event.node, r.event.reason) for r in on_record if r.event.round == seen.record.round}
        assert told >= {(refusal.node, refusal.reason.name) for refusal in seen.record.refused}
    again, same = run(name, plan, len(packs), 51, Audit(tmp_path, sync=False, resume=len(packs) - 1))
    assert [seen.record.admitted for seen in again.rounds] == [watch.rounds[-1].record.admitted]
    assert values(same.arrays)["bias"].tobytes() == values(result.arrays)["bias"].tobytes()


@pytest.mark.parametrize("name", EVERY)
def test_all_hostile_but_two_honest(name):
    refused = cycle(REFUSED.values())
    plan = {at: {i: next(refused) for i in range(2, 13)} for at in range(1, 4)}
    watch, _ = run(name, plan, 4, 13)
    for seen in watch.rounds[:3]:
        assert seen.record.admitted == (FIRST, FIRST + 1)
        if seen.record.outcome is Outcome.INFEASIBLE:
            assert moved(seen).any() == False  # noqa: E712
            assert seen.after is seen.before
        else:
            assert_as_the_model(seen.after)
            mean, spread = spread_of(range(2))
            assert np.linalg.norm(moved(seen) - mean) <= 1.25 * spread
    assert watch.rounds[3].record.outcome in (Outcome.OK, Outcome.NOT_CONVERGED)
    assert len(watch.rounds[3].record.admitted) == 13


@pytest.mark.parametrize("name", ["Median", "Guarded(FedAvg)", "Guarded(Krum)"])
def test_everybody_hostile(name):
    refused = cycle([*REFUSED.values(), *SILENT.values()])
    plan = {at: {i: next(refused) for i in range(13)} for at in range(1, 8)}
    watch, result = run(name, plan, 8, 13)
    for seen in watch.rounds[:7]:
        assert (seen.record.outcome, seen.record.sentence) == (Outcome.INFEASIBLE, "no reply was admitted")
        assert seen.after is seen.before
    assert watch.rounds[7].record.outcome is Outcome.OK
    assert sorted(result.train_metrics_clientapp) == [8]
    assert_as_the_model(result.arrays)


@pytest.mark.parametrize("name", [*RESILIENT, "Guarded(Krum)"])
def test_lies_that_are_well_formed_do_not_carry_the_model_away(name):
    turn = RESILIENT.index(name) if name in RESILIENT else 0
    positions = [(0, 1), (11, 12), (0, 12)]
    cases = [(kind, positions[(at + turn) % 3]) for at, kind in enumerate(LIES.values())]
    plan = {at: dict.fromkeys(places, kind) for at, (kind, places) in enumerate(cases, 1)}
    watch, result = run(name, plan, len(cases) + 1, 13)
    for seen, (_, places) in zip(watch.rounds, cases, strict=False):
        assert len(seen.record.admitted) == 13
        assert_near_the_honest(seen, [i for i in range(13) if i not in places])
    assert_near_the_honest(watch.rounds[-1], range(13))
    assert_metrics_are_honest(watch, result)


# -- the other side: what the same replies do to strategies without a guard ---------------------------


def fate(strategy, kind, clients=7):
    """Say what becomes of one round in which one client of seven answers by a kind."""
    grid = HostileGrid({1: {0: kind}}, clients)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            result = strategy.start(grid, record(MODEL), 1)
        except Exception:
            return "the run is dead"
    found = values(result.arrays)
    if not all(np.isfinite(v).all() for v in found.values()):
        return "the model is lost"
    if [(k, v.shape) for k, v in found.items()] != [(k, v.shape) for k, v in MODEL.items()]:
        return "the model has another form"
    if any(found[k].dtype != MODEL[k].dtype for k in LEARNT):
        return "the model has another type"
    mean, spread = spread_of(range(1, clients))
    away = np.linalg.norm(flat(found) - flat(MODEL) - mean)
    return "nothing" if away <= 1.25 * spread else "the model is elsewhere"


@pytest.mark.parametrize(("name", "least"), [("FedAvg", 100), ("Krum", 100)])
def test_without_a_guard_most_of_them_end_the_run(name, least):
    options = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 7)
    fates = {kind: fate(THEIRS[name](**options), make) for kind, make in ALL.items()}
    assert sum(found == "the run is dead" for found in fates.values()) >= least
    assert fate(THEIRS[name](**options), lambda message, reply: [reply]) == "nothing"


@pytest.mark.parametrize("lie", LIES)
def test_without_a_rule_lies_carry_the_model_away(lie):
    watch, _ = run("Mean", {1: {0: LIES[lie], 12: LIES[lie]}}, 1, 13)
    mean, spread = spread_of(range(1, 12))
    away = np.linalg.norm(moved(watch.rounds[0]) - mean) / spread
    # Some lies are too small for this measure, or touch what is not learnt.
    small = {"a buffer at 1e38", "a counter at 2^63 - 1", "the mask inverted"}
    assert away > 1.25 or lie in small | {"zeros", "denormals", "the sign turned"}


# -- memory ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exchange():
    """A message as a grid sends it, and the honest reply to it."""
    grid = HostileGrid({}, 3)
    strategy = flower.Median(fraction_evaluate=0.0)
    messages = list(strategy.configure_train(1, record(MODEL), ConfigRecord(), grid))
    return messages, list(grid.send_and_receive(messages))


@pytest.mark.parametrize("kind", [*ALL, *LIES])
def test_judging_takes_no_memory_to_speak_of(kind, exchange):
    messages, replies = exchange
    hostile = {**ALL, **LIES}[kind](messages[0], replies[0])
    model = SentModel(record(MODEL))
    tracemalloc.start()
    try:
        admit(hostile, messages, Terms(), model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_judging_a_large_reply_takes_no_second_one(exchange):
    big = {"w": np.ones((1 << 18, 4), np.float32)}  # 4 MiB
    messages, _ = exchange
    sent = SentModel(record(big))
    bad = {"w": big["w"].copy()}
    bad["w"][-1, -1] = np.nan
    for arrays, admitted in ((big, 1), (bad, 0), ({"w": np.asfortranarray(big["w"])}, 1), ({"w": big["w"][:, :2]}, 0)):
        reply = type(messages[0])(content(arrays), reply_to=messages[0])
        tracemalloc.start()
        found, _ = admit([reply], messages, Terms(), sent)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(found) == admitted
        assert peak < 1 << 19


# -- fuzzing -----------------------------------------------------------------------------------------

relaxed = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
SMALL = {"w": np.float32([1, 2, 3]), "n": np.int64(4)}


def serialised():
    """The bytes of an honest reply, as they travel."""
    from flwr.common.serde import recorddict_to_proto

    return recorddict_to_proto(content(SMALL, 10, loss=0.5)).SerializeToString(deterministic=True)


edits = st.lists(st.tuples(st.sampled_from("ridt"), st.floats(0, 1), st.integers(0, 255)), max_size=6)


def edited(data, changes):
    """Replace, insert, delete single bytes, or truncate."""
    out = bytearray(data)
    for kind, where, byte in changes:
        at = min(int(where * len(out)), len(out) - 1) if out else 0
        if kind == "i" or not out:
            out.insert(at, byte)
        elif kind == "r":
            out[at] = byte
        elif kind == "d":
            del out[at]
        else:
            del out[max(at, len(out) - byte) :]
    return bytes(out)


def verdict_on(made, exchange, sent=SMALL):
    messages, _ = exchange
    reply = type(messages[0])(made, reply_to=messages[0])
    return admit([reply], messages, Terms(), SentModel(record(sent)))


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::UserWarning")
@settings(relaxed, max_examples=250)
@given(changes=edits)
def test_fuzzed_replies_are_refused_or_fit_the_model(exchange, changes):
    from flwr.common.serde import recorddict_from_proto
    from flwr.proto.recorddict_pb2 import RecordDict as Proto
    from google.protobuf.message import DecodeError

    try:
        made = recorddict_from_proto(Proto.FromString(edited(serialised(), changes)))
    except (DecodeError, TypeError, ValueError, AttributeError):
        return  # Flower itself could not read it: no reply arrives
    admitted, refused = verdict_on(made, exchange)
    assert len(admitted) + len(refused) == 1
    for found in admitted:
        assert [(v.dtype, v.shape) for v in found.arrays] == [(v.dtype, v.shape) for v in SMALL.values()]
        assert all(np.isfinite(v).all() for v in found.arrays)
        assert found.abstains or 0 < found.num_examples <= 2**53


def test_the_reply_that_is_fuzzed_would_be_admitted(exchange):
    from flwr.common.serde import recorddict_from_proto
    from flwr.proto.recorddict_pb2 import RecordDict as Proto

    assert len(verdict_on(recorddict_from_proto(Proto.FromString(serialised())), exchange)[0]) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::UserWarning")
@settings(relaxed, max_examples=250)
@given(changes=edits)
def test_fuzzed_arrays_are_refused_or_fit_the_model(exchange, changes):
    made = content(SMALL, 10)
    made["arrays"]["w"].data = edited(made["arrays"]["w"].data, changes)
    admitted, refused = verdict_on(made, exchange)
    assert len(admitted) + len(refused) == 1
    assert all(found.arrays[0].shape == (3,) and np.isfinite(found.arrays[0]).all() for found in admitted)


TOKENS = ["'descr'", "'fortran_order'", "'shape'", "'<f4'", "'|O'", "True", "False", "None", "lambda:0", "2**9", "1e9"]
TOKENS += [*"{}()[],:'-#*3 ", "0x", "\\", "\n", "\0", "b''", "f''", "()"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::UserWarning")
@settings(relaxed, max_examples=250)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(TOKENS), st.integers(0, 12)), max_size=5),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    st.integers(0, 16),
)
def test_fuzzed_headers_are_refused_or_read_right(changes, version, size):
    text = header(shape="(3,)")
    for where, token, gone in changes:
        at = int(where * len(text))
        text = text[:at] + token + text[at + gone :]
    judge_bytes(npy(text, bytes(range(size)), version))


def test_the_header_that_is_fuzzed_is_read():
    assert judge_bytes(npy(header(shape="(3,)"), bytes(range(12))))
    assert not judge_bytes(npy(header(shape="(3,)"), bytes(range(13))))


def test_honest_answers_are_what_the_battery_takes_them_for():
    answer = honest_answer(3, MODEL)
    assert [(k, v.dtype, v.shape) for k, v in answer.items()] == [(k, v.dtype, v.shape) for k, v in MODEL.items()]


# -- on Ray ------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_sample_of_the_battery_on_ray():
    code = (
        "import logging, sys; logging.getLogger('flwr').setLevel(logging.CRITICAL)\n"
        "from flwr.simulation import run_simulation\n"
        "from flwr.serverapp import ServerApp\n"
        "from flwr.serverapp.strategy import FedAvg\n"
        "from flwr_robust.flower import Guarded, TrimmedMean, run_in_process\n"
        "from tests.hostile import MODEL, hostile_app\n"
        "from tests.flower_helpers import record, values\n"
        "kinds = ['nan last', 'transposed', 'renamed', 'complex64', 'a pickle behind a header', 'nothing']\n"
        "kinds += ['128 bytes that declare 2.5 GiB', 'num-examples nan', 'loss inf', 'an error', 'npy version 3']\n"
        "server = ServerApp()\n"
        "@server.main()\n"
        "def main(grid, context):\n"
        "    options = dict(min_train_nodes=7, min_available_nodes=7, fraction_evaluate=0.0)\n"
        "    for strategy in (TrimmedMean(f=2, **options), Guarded(FedAvg(**options))):\n"
        "        result = strategy.start(grid, record(MODEL), len(kinds) + 1)\n"
        "        reasons = [sorted(r.reason.name for r in seen.refused) for seen in strategy.history]\n"
        "        counts = [len(seen.admitted) for seen in strategy.history]\n"
        "        bits = [round(float(v), 3) for v in values(result.arrays)['head.weight'].ravel()]\n"
        "        print('FOUND', reasons, counts, bits)\n"
        "app = hostile_app(kinds, (0, 6))\n"
        "if sys.argv[1] == 'ray':\n"
        "    run_simulation(server, app, 7, backend_config={'client_resources': {'num_cpus': 1, 'num_gpus': 0}})\n"
        "else:\n"
        "    run_in_process(server, app, 7)\n"
    )
    found = []
    for engine in ("ray", "process"):
        call = [sys.executable, "-c", code, engine]
        done = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr[-2000:]
        found.append([line for line in done.stdout.splitlines() if line.startswith("FOUND")])
    assert found[0] == found[1]
    assert len(found[0]) == 2
    for line in found[0]:
        assert "['NOT_FINITE', 'NOT_FINITE'], ['SHAPE', 'SHAPE'], ['NAMES', 'NAMES'], ['DTYPE', 'DTYPE']" in line
        assert "[5, 5, 5, 5, 5, 5, 5, 5, 7, 5, 7, 7]" in line  # a loss of inf is left out of its reply
