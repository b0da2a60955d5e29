"""Fuzz the parser of npy files, which is what reads every byte that a client sends.

    python -m tests.fuzz.npy_header CORPUS -max_total_time=60

CORPUS is a folder for what it finds worth keeping; without files, it begins with honest ones. An input is a file as it
came, or, told by its first byte, a recipe for one: fields of the header put together from a grammar and from bytes of
the input, and data of a length near the right one. Whatever the input, the parser refuses it by PayloadError, or
returns exactly the numbers that numpy reads in it, without having copied them. libFuzzer ends it when more than 64 MB
are allocated at once.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from flwr.app import Array

try:
    import atheris
except ImportError:  # the seeds and the check are of use without it
    atheris = None

if atheris is not None:
    with atheris.instrument_imports(include=["flwr_robust.flower.wire"]):
        from flwr_robust.flower import wire
else:
    from flwr_robust.flower import wire

DESCR = [
    "'<f4'",
    "'|b1'",
    "'<i8'",
    "'>f8'",
    "'<f2'",
    "'|O'",
    "'<c8'",
    "'=u2'",
    "'<V4'",
    "[('a', '<f4')]",
    "'<f99'",
    "b'<f4'",
]
ORDER = ["False", "True", "0", "None", "not True", "1 < 0"]
SHAPE = [
    "()",
    "(2,)",
    "(1, 2)",
    "(2)",
    "[2]",
    "(2.0,)",
    "(-1,)",
    "(True,)",
    "(0, 9)",
    "(2**40,)",
    "(9223372036854775808,)",
]
FRAMES = [
    "{{{}}}",
    "{{{}, }}",
    " {{{}}}\n",
    "dict({})",
    "({{{}}},)",
    "{{{}, 'more': 1}}",
    "{{**{{{}}}}}",
    "# {{{}}}",
    "{}",
]
VERSIONS = [(1, 0), (2, 0), (3, 0), (1, 1), (0, 0), (255, 255)]


def seeds():
    """Honest files, as inputs."""
    arrays = [np.zeros(shape, dtype) for shape in [(), (2,), (0, 3), (2, 3)] for dtype in ("<f4", "?", "<i8", ">f8")]
    return [b"\0" + Array(array).data for array in arrays]


def check(data):
    """Say whether a file is accepted, having made sure that it is then read right."""
    array = Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=data)
    try:
        found = wire.decode(array)
    except wire.PayloadError:
        return False
    assert found.dtype.kind in "biufc", found.dtype
    assert not found.flags.writeable
    assert found.nbytes <= len(data)
    try:
        theirs = array.numpy()
    except ValueError:  # numpy is stricter about blanks around the header
        return True
    assert (theirs.dtype, theirs.shape) == (found.dtype, found.shape)
    assert theirs.tobytes() == found.tobytes()
    return True


def file_of(provider):
    """Make a file by the grammar."""

    def one_of(texts):
        at = provider.ConsumeIntInRange(0, len(texts))
        return texts[at] if at < len(texts) else provider.ConsumeUnicodeNoSurrogates(provider.ConsumeIntInRange(0, 40))

    fields = [("'descr'", DESCR), ("'fortran_order'", ORDER), ("'shape'", SHAPE)]
    if provider.ConsumeBool():
        fields.reverse()
    if provider.ConsumeIntInRange(0, 7) == 0:
        fields.pop()
    frame = FRAMES[provider.ConsumeIntInRange(0, len(FRAMES) - 1)]
    text = frame.format(", ".join(f"{key}: {one_of(values)}" for key, values in fields))
    header = text.encode("utf8" if provider.ConsumeBool() else "latin1", "replace")
    header += b" " * provider.ConsumeIntInRange(0, 1100)
    version = VERSIONS[provider.ConsumeIntInRange(0, len(VERSIONS) - 1)]
    length = max(len(header) + provider.ConsumeIntInRange(-2, 2), 0)
    width = 2 if version == (1, 0) else 4
    start = b"\x93NUMPY" + bytes(version) + length.to_bytes(4, "little")[:width]
    return start + header + provider.ConsumeBytes(provider.ConsumeIntInRange(0, 64))


def one_input(data):
    """Judge one input of the fuzzer."""
    if data[:1] and data[0] % 2:
        check(file_of(atheris.FuzzedDataProvider(data[1:])))
    else:
        check(data[1:])


def main():
    """Fuzz, as the command line says."""
    if atheris is None:
        sys.exit("error: atheris is not installed; pip install 'flwr-robust[fuzz]'")
    for folder in (Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")):
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            for at, seed in enumerate(seeds()):
                (folder / f"seed-{at}").write_bytes(seed)
    warnings.simplefilter("ignore")  # Python's parser warns about some headers before it refuses them
    atheris.Setup([*sys.argv, "-malloc_limit_mb=64", "-max_len=4096", "-timeout=5"], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
