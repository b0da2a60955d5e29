"""Arrays: the same bytes as Flower writes, and nothing believed of the bytes that clients send."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flwr_robust.flower.wire import (
    PayloadError,
    as_tensor,
    copy_content,
    decode,
    decode_record,
    encode,
    encode_record,
    records_of,
)
from tests.flower_helpers import array_of, header, npy

DTYPES = ["float16", "float32", "float64", "int8", "int64", "uint8", "uint16", "bool", "complex64", ">f4", "longdouble"]
SHAPES = [(), (0,), (1,), (7,), (2, 3), (0, 4), (3, 0, 2), (2, 1, 3, 1), (1,) * 20]

relaxed = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def sample(shape, dtype):
    return np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)


# -- writing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_encode_gives_the_bytes_flower_gives(dtype, shape):
    values = sample(shape, dtype)
    ours, theirs = encode(values), Array(values)
    assert ours.data == theirs.data
    assert (ours.dtype, ours.shape, ours.stype) == (theirs.dtype, theirs.shape, theirs.stype)


def test_encode_takes_arrays_that_do_not_lie_in_one_piece():
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    for values in (whole[:, ::2], whole[::-1], whole.T, np.asfortranarray(whole), np.broadcast_to(whole[0], (3, 6))):
        assert not values.flags.c_contiguous
        np.testing.assert_array_equal(decode(encode(values)), values)
        np.testing.assert_array_equal(encode(values).numpy(), values)


def test_encode_keeps_no_tie_to_the_array():
    values = np.ones(3)
    array = encode(values)
    values[:] = 5
    np.testing.assert_array_equal(decode(array), [1, 1, 1])


def test_encode_record_keeps_names_and_order():
    arrays = {"b": np.ones(2), "a": np.zeros((1, 2), np.int64), "": np.float16(3).reshape(())}
    record = encode_record(arrays)
    assert isinstance(record, ArrayRecord)
    assert list(record) == ["b", "a", ""]
    found = decode_record(record)
    assert list(found) == ["b", "a", ""]
    for name, values in arrays.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


def test_records_of_finds_one_kind_in_order():
    first, second, metrics = ArrayRecord(), ArrayRecord(), MetricRecord({"a": 1})
    content = RecordDict({"z": first, "m": metrics, "a": second})
    found = records_of(content, ArrayRecord)
    assert len(found) == 2
    assert found[0] is first
    assert found[1] is second
    assert records_of(content, MetricRecord) == [metrics]
    assert records_of(content, ConfigRecord) == []


def test_copied_content_is_equal_and_apart():
    values = np.ones(2)
    content = RecordDict(
        {
            "a": ArrayRecord({"w": Array(values)}),
            "m": MetricRecord({"x": 1}),
            "c": ConfigRecord({"y": "z"}),
        }
    )
    before = content["a"]["w"].object_id  # Flower caches this in the array
    twin = copy_content(content)
    assert twin == content
    assert list(twin) == ["a", "m", "c"]
    assert [type(record) for record in twin.values()] == [ArrayRecord, MetricRecord, ConfigRecord]
    assert twin["a"]["w"].data is content["a"]["w"].data
    twin["a"]["w"].data = Array(2 * values).data
    twin["m"]["x"] = 2
    twin["c"]["new"] = True
    del twin["c"]["y"]
    twin["more"] = MetricRecord()
    assert twin["a"]["w"].object_id != before
    assert list(content) == ["a", "m", "c"]
    np.testing.assert_array_equal(content["a"]["w"].numpy(), values)
    assert content["a"]["w"].object_id == before
    assert dict(content["m"]) == {"x": 1}
    assert dict(content["c"]) == {"y": "z"}


# -- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_returns_what_flower_wrote(dtype, shape):
    values = sample(shape, dtype)
    found = decode(Array(values))
    assert found.dtype == values.dtype
    assert found.shape == values.shape
    np.testing.assert_array_equal(found, values)


def test_decode_reads_fortran_order():
    values = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    array = Array(values)
    assert b"'fortran_order': True" in array.data
    np.testing.assert_array_equal(decode(array), values)
    # torch must see the same numbers in the same places, and in the same order when flattened.
    assert as_tensor(decode(array)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert as_tensor(decode(array)).reshape(-1).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_decode_reads_every_npy_version(version):
    values = np.array([1.5, -2.0], np.float32)
    array = array_of(npy(header(), values.tobytes(), version))
    np.testing.assert_array_equal(decode(array), values)
    np.testing.assert_array_equal(array.numpy(), values)


def test_decode_does_not_believe_the_attributes():
    values = np.arange(6.0).reshape(2, 3)
    array = Array(dtype="int8", shape=(99,), stype="numpy.ndarray", data=Array(values).data)
    found = decode(array)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("order", ["C", "F"])
def test_decode_copies_nothing_and_lets_nobody_write(order):
    array = Array(np.asarray(np.arange(1000.0).reshape(10, 100), order=order))
    held = np.frombuffer(array.data, np.uint8)
    found = decode(array)
    assert np.shares_memory(found, held)
    assert not found.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1
    assert as_tensor(found).data_ptr() == found.ctypes.data
    assert as_tensor(found).dtype == torch.float64


@pytest.mark.parametrize("pad", range(4))
def test_decode_reads_numbers_that_lie_across_words(pad):
    # A client chooses the length of its header, and with it where its numbers begin.
    values = np.array([1.5, -2.0, 3.25], np.float32)
    found = decode(array_of(npy(header(shape="(3,)") + " " * pad, values.tobytes())))
    np.testing.assert_array_equal(found, values)
    assert as_tensor(found).double().tolist() == [1.5, -2.0, 3.25]


# -- refusing ----------------------------------------------------------------------------------------

GOOD = Array(np.array([1.0, 2.0], np.float32)).data
EIGHT = bytes(8)

REFUSED = {
    "nothing": b"",
    "magic only": b"\x93NUMPY",
    "no header": GOOD[:10],
    "half a header": GOOD[:60],
    "no data": GOOD[:-8],
    "one byte too few": GOOD[:-1],
    "one byte too many": GOOD + b"\0",
    "twice": GOOD + GOOD,
    "garbage": bytes(range(256)),
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "a zip": b"PK\x03\x04" + bytes(60),
    "version 0": GOOD[:6] + b"\0\0" + GOOD[8:],
    "version 4": GOOD[:6] + b"\4\0" + GOOD[8:],
    "version 1.1": GOOD[:6] + b"\1\1" + GOOD[8:],
    "header longer than the data": b"\x93NUMPY\x01\x00\xff\xff" + GOOD[10:],
    "header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + GOOD[10:],
    "header too long": npy(header() + " " * 5000, EIGHT),
    "objects": npy(header(descr="'|O'"), EIGHT),
    "structure": npy(header(descr="[('a', '<f4'), ('b', '<f4')]", shape="(1,)"), EIGHT),
    "structure in short": npy(header(descr="'f4,f4'", shape="(1,)"), EIGHT),
    "subarray": npy(header(descr="'2f4'", shape="(1,)"), EIGHT),
    "text": npy(header(descr="'<U1'"), EIGHT),
    "bytes": npy(header(descr="'|S4'"), EIGHT),
    "void": npy(header(descr="'|V4'"), EIGHT),
    "dates": npy(header(descr="'<M8[s]'", shape="(1,)"), EIGHT),
    "durations": npy(header(descr="'<m8[s]'", shape="(1,)"), EIGHT),
    "empty text": npy(header(descr="'<U0'"), b""),
    "unknown type": npy(header(descr="'<f5'"), EIGHT),
    "descr is a number": npy(header(descr="4"), EIGHT),
    "descr is bytes": npy(header(descr="b'<f4'"), EIGHT),
    "descr is None": npy(header(descr="None"), EIGHT),
    "shape negative": npy(header(shape="(-2,)"), EIGHT),
    "shape twice negative": npy(header(shape="(-1, -2)"), EIGHT),
    "shape huge": npy(header(shape="(2, 1000000000000)"), EIGHT),
    "shape beyond 64 bits": npy(header(shape=f"({2**63}, {2**63})"), EIGHT),
    "shape wraps at 64 bits": npy(header(shape=f"({2**63 + 1}, 2)"), EIGHT),  # 2 modulo 2^64
    "shape is a list": npy(header(shape="[2]"), EIGHT),
    "shape is a number": npy(header(shape="2"), EIGHT),
    "shape of floats": npy(header(shape="(2.0,)"), EIGHT),
    "shape of booleans": npy(header(shape="(True, 2)"), EIGHT),
    "shape of text": npy(header(shape="('2',)"), EIGHT),
    "fortran_order is a number": npy(header(fortran_order="0"), EIGHT),
    "key missing": npy("{'descr': '<f4', 'shape': (2,)}", EIGHT),
    "key too many": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", EIGHT),
    "header is a set": npy("{'descr', 'fortran_order', 'shape'}", EIGHT),
    "header is a list": npy("['descr', 'fortran_order', 'shape']", EIGHT),
    "header is a call": npy("dict(descr='<f4', fortran_order=False, shape=(2,))", EIGHT),
    "header runs code": npy(header(shape="(__import__('os').getpid(),)"), EIGHT),
    "header with a list as key": npy("{[]: 1}", EIGHT),
    "header is deep": npy("(" * 3000, EIGHT),
    "header is a long sum": npy("1" + "+1j" * 1000, EIGHT),
    "header of minus signs": npy("-" * 4000 + "1", EIGHT),
    "header with a zero byte": npy(header() + "\0", EIGHT),
    "header not ASCII": npy(header(descr="'\xe9'"), EIGHT),
    "header empty": npy("", EIGHT),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_decode_refuses(data):
    with pytest.raises(PayloadError):
        decode(array_of(data))


def test_the_refused_differ_from_one_that_is_read():
    # The control: with the same helpers and nothing wrong, the array is read.
    np.testing.assert_array_equal(decode(array_of(npy(header(), GOOD[-8:]))), [1.0, 2.0])


LONG = "0x" + "f" * 3800  # more decimal digits than Python writes out

ESCAPES = {
    "no element, extent huge": npy(header(shape=f"(0, {10**30})")),
    "no element, size huge": npy(header(shape=f"(0, {2**62}, {2**62})")),
    "65 dimensions": npy(header(shape=f"({'1,' * 65})"), bytes(4)),
    "extent too long to print": npy(header(shape=f"({LONG},)")),
    "negative extent too long to print": npy(header(shape=f"(-{LONG},)")),
    "descr too long to print": npy(header(descr=f"[{LONG}]")),
    "descr with a broken tuple": npy(header(descr="'(,)f4'"), EIGHT),
    "descr with a leading zero": npy(header(descr="'01f4'"), EIGHT),
}


@pytest.mark.parametrize("data", ESCAPES.values(), ids=ESCAPES)
def test_decode_refuses_what_numpy_stumbles_over(data):
    with pytest.raises(PayloadError):
        decode(array_of(data))


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_decode_refuses_a_name_out_of_use_without_a_warning():
    with pytest.raises(PayloadError):
        decode(array_of(npy(header(descr="'a4'"), EIGHT)))


@pytest.mark.parametrize("stype", ["", "torch", "pickle", "numpy", "numpy.ndarray "])
def test_decode_refuses_another_serialisation(stype):
    with pytest.raises(PayloadError, match="serialised as"):
        decode(array_of(GOOD, stype))


def test_decode_refuses_what_is_not_bytes():
    array = array_of(GOOD)
    array.data = bytearray(GOOD)  # it could change while it is being read
    with pytest.raises(PayloadError):
        decode(array)


def peak(function):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_small_payload_that_declares_gigabytes_costs_nothing():
    text = header(shape="(671088640,)")  # 2.5 GiB of float32
    data = npy(text.ljust(128 - 10))
    assert len(data) == 128
    with pytest.raises(PayloadError, match="2684354560"):
        decode(array_of(data))
    assert peak(lambda: decode(array_of(data))) < 1 << 20


def test_flowers_own_reader_would_have_allocated():
    # The control for the test above, with 64 MiB so as not to take gigabytes from the machine.
    data = npy(header(shape="(16777216,)"))
    assert peak(lambda: array_of(data).numpy()) >= 64 << 20
    assert peak(lambda: decode(array_of(data))) < 1 << 20


def test_payload_errors_are_value_errors_with_a_sentence():
    with pytest.raises(ValueError, match="it holds 4 bytes where its header declares 8"):
        decode(array_of(npy(header(), bytes(4))))


# -- fuzzing -----------------------------------------------------------------------------------------


def judge(data):
    """Decode bytes: the outcome is a PayloadError, or an array that is exactly the file's own numbers."""
    array = array_of(data)
    try:
        found = decode(array)
    except PayloadError:
        return False
    assert found.dtype.kind in "biufc"
    assert not found.flags.writeable
    assert data.endswith(found.tobytes(order="A"))
    try:
        theirs = array.numpy()
    except ValueError:  # numpy is stricter about blanks around the header
        return True
    assert (theirs.dtype, theirs.shape) == (found.dtype, found.shape)
    assert theirs.tobytes() == found.tobytes()
    return True


FILES = [Array(sample(shape, dtype)).data for shape in [(), (2,), (0, 3), (2, 3)] for dtype in ("<f4", "bool", "<i8")]
edits = st.lists(st.tuples(st.sampled_from("rid"), st.floats(0, 1), st.integers(0, 255)), max_size=5)


def edited(data, changes):
    """Replace, insert or delete single bytes."""
    out = bytearray(data)
    for kind, where, byte in changes:
        at = min(int(where * len(out)), len(out) - 1)
        if kind == "i":
            out.insert(at, byte)
        elif kind == "r":
            out[at] = byte
        elif len(out) > 1:
            del out[at]
    return bytes(out)


# Python's parser and numpy's reader warn about some headers before they refuse them.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::UserWarning")
@settings(relaxed, max_examples=300)
@given(st.sampled_from(FILES), edits)
def test_edited_files_are_refused_or_read_right(data, changes):
    judge(edited(data, changes))


def test_unedited_files_are_read():
    assert all(judge(data) for data in FILES)


@settings(relaxed, max_examples=200)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused_or_read_right(data, magic):
    judge(b"\x93NUMPY\x01\x00" + data if magic else data)


DESCR = [f"'{d}'" for d in ("<f4", "|b1", "<i8", ">f8", "|O", "01f4", "(,)f4", "f4,f4", "<U1", "e", "?")]
EXTENT = ["0", "1", "2", "3", "-1", "1e3", "True", str(2**31), str(2**63), str(10**30), LONG]


@settings(relaxed, max_examples=200)
@given(st.sampled_from(DESCR), st.lists(st.sampled_from(EXTENT), max_size=4), st.booleans(), st.integers(0, 24))
@example("'<f4'", ["0", str(10**30)], False, 0)
@example("'<f4'", [LONG], False, 0)
@example("'01f4'", ["1"], False, 4)
@example("'<f4'", ["1"] * 65, False, 4)
def test_odd_headers_are_refused_or_read_right(descr, extents, fortran_order, size):
    shape = "(" + "".join(f"{extent}, " for extent in extents) + ")"
    judge(npy(header(descr, shape, str(fortran_order)), bytes(range(size))))


def test_python_prints_only_so_many_digits():
    # Without this limit the cases with LONG would show nothing.
    assert 0 < sys.get_int_max_str_digits() < len(LONG) * 1.2
