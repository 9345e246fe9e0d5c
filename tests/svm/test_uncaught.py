"""Exceptions that nobody has caught: each becomes one record, with its traceback."""

import sys
import threading
from collections.abc import Iterator

import pytest
from tests.svm.log_reader import Reader

from retinue.pipes import socket_pair
from retinue.svm import log
from retinue.svm.log import LogWriter
from retinue.svm.uncaught import LOGGER, Uncaught


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """The hooks are taken for the length of the test."""
    for module, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, getattr(module, name))
    ours, theirs = socket_pair()
    with ours, theirs:
        Uncaught(LogWriter(theirs)).install()
        yield Reader(ours)


def in_thread(function: object) -> None:
    thread = threading.Thread(target=function, name="clerk")  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_thread_that_fails_is_one_record(reader: Reader) -> None:
    """With its name, and what it was doing."""

    def fail() -> None:
        raise ValueError("out of shoes")

    in_thread(fail)
    ((severity, logger, message, fields),) = reader.records()
    assert (severity, logger, fields) == (log.ERROR, LOGGER, {"thread": "clerk"})
    assert message.startswith("the thread clerk failed\nTraceback (most recent call last):\n")
    assert "in fail\n" in message
    assert message.endswith("ValueError: out of shoes")


def test_thread_that_leaves_is_none(reader: Reader) -> None:
    """SystemExit ends a thread in order."""
    in_thread(sys.exit)
    assert reader.records() == []


def test_exception_without_a_caller_is_one_record(reader: Reader) -> None:
    """Of a ``__del__``, whose object may be anything."""

    class Bad:
        def __del__(self) -> None:
            raise KeyError("while dying")

    Bad()
    ((severity, logger, message, fields),) = reader.records()
    assert (severity, logger, fields) == (log.ERROR, LOGGER, {})
    assert "Exception ignored in: <function" in message
    assert message.endswith("KeyError: 'while dying'")


def test_exception_that_ends_the_interpreter_is_one_record(reader: Reader) -> None:
    """Where the runtime does not see it."""
    try:
        raise OSError(28, "No space left on device")
    except OSError as exc:
        sys.excepthook(type(exc), exc, exc.__traceback__)
    ((severity, logger, message, _),) = reader.records()
    assert (severity, logger) == (log.CRITICAL, LOGGER)
    assert message.endswith("OSError: [Errno 28] No space left on device")


def test_exception_that_cannot_be_written_down_is_told(reader: Reader) -> None:
    """The traceback is the program's code, too."""

    class Bad(Exception):
        def __getattribute__(self, name: str) -> object:
            raise RuntimeError("no")

    def fail() -> None:
        raise Bad

    in_thread(fail)
    ((_, _, message, _),) = reader.records()
    assert message.startswith("the thread clerk failed\n")
    assert "Bad" in message
