"""The one-call form: what it takes, that it gives back the same kind, and what it refuses."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from flwr_robust import Aggregate, ConfigurationError, Layer, Rows, aggregate, parse

X = np.random.default_rng(5).standard_normal((9, 12))
RULES = ["mean", "krum(f=2)", "trimmed_mean(f=2)", "geometric_median()", "nnm(f=2) | median"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_in_numpy_out_with_the_same_numbers(rule, dtype):
    x = X.astype(dtype)
    kept = x.copy()
    result, whole = aggregate(x, rule), aggregate(torch.from_numpy(x), rule)
    assert isinstance(result, Aggregate)
    assert isinstance(result.value, np.ndarray)
    assert isinstance(result.weights, np.ndarray)
    assert result.value.dtype == dtype
    assert result.weights.dtype == np.float64
    assert np.array_equal(result.value, whole.value.numpy())
    assert np.array_equal(result.weights, whole.weights.numpy())
    assert np.array_equal(x, kept)
    assert isinstance(whole.value, torch.Tensor)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("outer", [list, tuple])
def test_lists_of_rows_give_what_a_matrix_gives(rule, outer):
    whole = aggregate(torch.from_numpy(X), rule)
    for kind, rows in ((np.ndarray, outer(X)), (torch.Tensor, outer(torch.from_numpy(X)))):
        result = aggregate(rows, rule)
        assert isinstance(result.value, kind)
        assert isinstance(result.weights, kind)
        np.testing.assert_allclose(result.value, whole.value, rtol=1e-12)
        np.testing.assert_allclose(result.weights, whole.weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_layers_in_layers_out(rule):
    whole = aggregate(X, rule)
    for kind, read in ((np.ndarray, np.array), (torch.Tensor, torch.tensor)):
        clients = [[read(row[:6]).reshape(2, 3), read(row[6:11]), read(row[11])] for row in X]
        result = aggregate(clients, rule)
        assert [tuple(layer.shape) for layer in result.value] == [(2, 3), (5,), ()]
        assert all(isinstance(layer, kind) for layer in result.value)
        joined = np.concatenate([np.asarray(layer).ravel() for layer in result.value])
        np.testing.assert_allclose(joined, whole.value, rtol=1e-12)
        assert isinstance(result.weights, kind)


def test_layers_have_a_layout_and_a_trusted_row_in_layers():
    clients = [[np.full((2, 2), float(i)), np.full(3, float(i))] for i in (1, 2, 3, 50)]
    own = [np.full((2, 2), 2.0), np.full(3, 2.0)]
    result, _ = aggregate(clients, "monna(f=1)", trusted=own, state=None)
    assert result.value[0].tolist() == [[2, 2], [2, 2]]
    flat = [np.concatenate([layer.ravel() for layer in client]) for client in clients]
    assert aggregate(flat, "monna(f=1)", trusted=np.full(7, 2.0)).value.tolist() == [2] * 7
    assert aggregate(clients, "median", layout=[("w", (4,)), ("b", (3,))]).value[1].tolist() == [2.5] * 3
    with pytest.raises(ConfigurationError, match="layout holds 8 coordinates, but a row has 7"):
        aggregate(clients, "median", layout=[("w", (8,))])


def test_a_state_comes_back_beside_the_result():
    first, state = aggregate(X, "centered_clipping(tau=1.0)", state=None)
    second, _ = aggregate(X, "centered_clipping(tau=1.0)", state=state)
    assert isinstance(second.value, np.ndarray)
    assert not np.array_equal(first.value, second.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x[:, ::-1],
        lambda x: np.asfortranarray(x),
        lambda x: x.astype(">f8"),
        lambda x: np.lib.stride_tricks.as_strided(x, x.shape, x.strides, writeable=False),
        lambda x: np.rec.fromarrays([x.ravel(), x.ravel().astype("f4")], names="a,b")["a"].reshape(x.shape),
        lambda x: x.view(np.matrix),
    ],
    ids=["reversed", "by columns", "big-endian", "read-only", "strides between", "matrix"],
)
def test_arrays_of_any_memory(spoil):
    x = spoil(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = aggregate(x, "trimmed_mean(f=2)")
    plain = np.ascontiguousarray(np.asarray(x, dtype="=f8"))
    np.testing.assert_allclose(result.value, aggregate(plain, "trimmed_mean(f=2)").value, rtol=1e-12)
    assert type(result.value) is np.ndarray


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.ones(3, 2).to_sparse(), "got a tensor of layout sparse_coo: pass x.to_dense()"),
        (lambda: torch.ones(3, 2).to_sparse_csr(), "got a tensor of layout sparse_csr: pass x.to_dense()"),
        (torch.ones(3, 2).to(torch.float8_e4m3fn), "got float8_e4m3fn numbers: pass x.float()"),
        (torch.ones(3, 2, device="meta"), "got a tensor on device meta"),
        (
            lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "got a nested tensor: pass",
        ),
        (
            lambda: torch.quantize_per_tensor(torch.ones(3, 2), 1, 0, torch.quint8),
            "got a quantised tensor",
        ),
        (torch.ones(3, 2, dtype=torch.complex64), "got complex64 numbers: pass its real part"),
        (torch.ones(3, 2, dtype=torch.bool), "got bool numbers: pass x.float()"),
        (torch.ones(3, 2, dtype=torch.int32), "got int32 numbers: pass x.float()"),
        (np.ones((3, 2), dtype=int), "got int64 numbers: pass for example x.astype"),
        (np.ones((3, 2), dtype=bool), "got bool numbers"),
        (np.ones((3, 2), dtype=complex), "got complex128 numbers"),
        (np.ones((3, 2), dtype=object), "got object numbers"),
        (np.ones((3, 2), dtype=np.longdouble), "got float128 numbers"),
        (np.array([["a", "b"]]), "got <U1 numbers"),
        (np.ma.masked_array(np.ones((3, 2)), mask=np.eye(3, 2)), "got a masked one: pass x.filled"),
        (np.ones(3), r"got shape \(3,\): pass one row per client"),
        (np.ones((3, 2, 2)), r"got shape \(3, 2, 2\): pass one row per client"),
        (np.ones((0, 2)), r"got shape \(0, 2\)"),
        (np.array(1.0), r"got shape \(\)"),
        ([], "got an empty list: pass an array"),
        (None, "got NoneType: pass an array"),
        ("text", "got str: pass an array"),
        ({"a": 1}, "got dict"),
        ([[1.0, 2.0]], "got lists of plain numbers, first 1.0"),
        ([1.0], "got lists of plain numbers, first 1.0"),
        ([[]], "got no layer in row 0"),
        ([np.ones(2), torch.ones(2)], "all of them torch's tensors; got Tensor in row 1"),
        ([np.ones(2), [np.ones(2)]], "got list in row 1"),
        ([np.ones(2), None], "got NoneType in row 1"),
        ([np.ones(2), np.ones(3)], r"got \[\(2,\)\] in row 0 and \[\(3,\)\] in row 1"),
        ([[np.ones(2)], [np.ones(2), np.ones(1)]], "same shapes"),
        ([[np.ones((2, 3))], [np.ones((3, 2))]], "same shapes"),
        ([np.ones((2, 2))] * 3, r"one dimension; got shape \(2, 2\) in row 0: flatten it"),
        ([np.ones(2), np.ones(2, dtype=int)], "row 1 must be a floating-point array; got int64"),
        ([torch.ones(2), torch.ones(2).to_sparse()], "row 1 must be .* got a tensor of layout sparse_coo"),
        ([torch.ones(2), torch.ones(2, device="meta")], "device meta"),
        ([np.ones(0)] * 3, r"at least one row and one coordinate; got \(3, 0\)"),
    ],
)
def test_what_holds_no_rows_is_refused_in_one_sentence(x, words):
    given = x() if callable(x) else x  # made here, where torch's warnings about it are no errors
    with pytest.raises(ConfigurationError, match=words) as caught:
        aggregate(given, "mean")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 260


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"counts": ["a"] * 9}, "counts must be numbers"),
        ({"counts": "123456789"}, "counts must be numbers"),
        ({"trusted": "text"}, "trusted must be an array or a tensor"),
        ({"trusted": []}, "trusted must be"),
        ({"trusted": np.ones(12, dtype=int)}, "trusted must be a floating-point array; got int64"),
        ({"trusted": np.ones(3)}, r"shape \(12,\); got \(3,\)"),
        ({"layout": [("w",)]}, "layout must hold pairs of a name and a shape"),
        ({"layout": 5}, "layout must hold pairs"),
        ({"layout": [("w", (2.5,))]}, "layout must hold pairs"),
        ({"layout": [(3, (12,))]}, "layout must hold pairs"),
        ({"asked": "ten"}, "asked must be an integer"),
        ({"state": 5}, "mean: state must be None or what the last call returned; got int"),
    ],
)
def test_what_goes_with_rows_is_refused_in_one_sentence(given, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        aggregate(X, "mean", **given)
    assert "\n" not in str(caught.value)


def test_counts_and_rows_of_any_kind():
    for counts in (range(1, 10), np.arange(1, 10), torch.arange(1, 10)):
        weights = aggregate(X, "mean(weighted=True, clamp=100)", counts=counts).weights
        np.testing.assert_allclose(weights, np.arange(1, 10) / 45)
    rows = Rows.from_tensor(torch.from_numpy(X), layout=[Layer("w", (12,))])
    assert isinstance(aggregate(rows, "mean").value, torch.Tensor)


def test_what_clients_send_is_judged_and_not_refused():
    x = X.copy()
    x[3, 2], x[4, 0] = math.nan, math.inf
    assert aggregate(list(x), "krum(f=3)").stats["not_finite"] == [3, 4]


TYPED = """
import numpy as np
import torch
from numpy.typing import NDArray

from flwr_robust import aggregate

array: NDArray[np.float32] = np.ones((3, 2), dtype=np.float32)
tensor = torch.ones(3, 2)
reveal_type(aggregate(tensor, "mean").value)
reveal_type(aggregate([tensor], "mean").weights)
reveal_type(aggregate(array, "mean").value)
reveal_type(aggregate([array], "mean").weights)
reveal_type(aggregate([[array]], "mean").value)
reveal_type(aggregate([[tensor]], "mean").value)
reveal_type(aggregate(array, "mean", state=None)[0].value)
aggregate(5, "mean")
"""


def test_mypy_knows_what_comes_back(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "typed.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(tmp_path / "typed.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    kinds = [line.split('"')[1] for line in done.stdout.splitlines() if "Revealed type" in line]
    short = [kind.replace("numpy.", "").replace("torch._tensor.", "") for kind in kinds]
    array = "ndarray[tuple[Any, ...], dtype[Any]]"
    weights = array.replace("[Any]]", "[float64]]")
    assert short == ["Tensor", "Tensor", array, weights, f"list[{array}]", "list[Tensor]", array], done.stdout
    assert 'No overload variant of "aggregate"' in done.stdout


@pytest.mark.parametrize(
    "x", [[1.0, 2.0], [[1.0, 2.0], [3.0, 4.0]], [[1, 2]], [[[1.0]], [[2.0]]], (0, 1), [True, False]]
)
def test_lists_of_plain_numbers_are_told_the_way(x):
    with pytest.raises(
        ConfigurationError, match=r"lists of plain numbers, first .*: pass numpy\.array\(x, 'float32'\)"
    ):
        aggregate(x, "mean")


@pytest.mark.parametrize(
    ("rule", "state", "known"),
    [
        ("median", {"centre": torch.zeros(2)}, "nothing"),
        ("centered_clipping(tau=1.0)", {"center": torch.zeros(2)}, "centre"),
        ("centered_clipping(tau=1.0)", {"x": 1}, "centre"),
        ("signguard", {"draws": torch.tensor(1), "seed": torch.tensor(1)}, "draws"),
        ("bucketing(s=2) | centered_clipping(tau=1.0)", {"centre": torch.zeros(2)}, "0.draws, 1.centre"),
        ("mixtailor(f=1, pool=['median', 'krum'])", {"0.centre": torch.zeros(2)}, "draws"),
    ],
)
def test_a_state_of_another_rule_is_refused(rule, state, known):
    words = re.escape(f"{parse(rule)} remembers {known}; got {list(state)[-1]!r}")
    with pytest.raises(ConfigurationError, match=rf"^aggregate: state must be None or .*; {words}: pass"):
        aggregate(torch.arange(18.0).view(9, 2), rule, state=state)
