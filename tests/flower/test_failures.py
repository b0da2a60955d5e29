"""Failures: what the operator's code raised is shown with its source, and no client writes into the log by it."""

from __future__ import annotations

from flwr_robust.flower.failures import failure


def raised(function):
    try:
        function()
    except Exception as error:
        return failure(function, error)
    raise AssertionError("it did not raise")


def mistaken():
    raise LookupError("a client's \x1b[31mtext\nWARNING forged")


def test_the_function_the_exception_and_the_line_are_named():
    first, *frames = raised(mistaken).splitlines()
    assert first == f"{__name__}.mistaken raised LookupError: a client's \\x1b[31mtext WARNING forged"
    assert "in mistaken" in "\n".join(frames)
    assert "raise LookupError(" in "\n".join(frames)


def test_a_callable_object_is_named_by_its_class():
    class Odd:
        def __call__(self):
            raise OSError("gone")

    assert raised(Odd()).startswith(
        f"{__name__}.test_a_callable_object_is_named_by_its_class.<locals>.Odd raised OSError"
    )


def test_what_is_behind_an_exception_is_shown_unless_it_is_suppressed():
    def chained(cause):
        try:
            mistaken()
        except LookupError as error:
            raise ValueError("after it") from (error if cause else None)

    with_cause, without = raised(lambda: chained(True)), raised(lambda: chained(False))
    assert "because of LookupError" in with_cause
    assert "because of" not in without


def test_an_endless_chain_ends():
    def deep(left):
        try:
            if left:
                deep(left - 1)
            raise ValueError(str(left))
        except ValueError as error:
            raise KeyError(str(left)) from error

    assert len(raised(lambda: deep(100)).splitlines()) < 500
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert failure(mistaken, first).count("because of") < 100
