"""A machine's end of *LOG."""

import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from tests.svm.log_reader import Reader

from retinue.pipes import socket_pair, tracing, wire
from retinue.svm import log
from retinue.svm.log import LogHandler, LogStream, LogWriter

# -- the writer --------------------------------------------------------------------------------------------------------


def test_record_is_one_frame_in_one_packet(writer: LogWriter, reader: Reader) -> None:
    """Number, time, severity, logger, message and fields, as the wire reference says."""
    before = time.time()
    writer.write(log.ERROR, "shop", "out of shoes", {"size": 43, "left": [True, None]})
    writer.write(log.DEBUG, "shop", "")
    first, second = reader.frames()
    assert first[:2] == [wire.Kind.SEND, 1]
    when, *rest = first[2]
    assert before <= when <= time.time()
    assert rest == [3, "shop", "out of shoes", {"size": 43, "left": [True, None]}]
    assert second[1] == 2
    assert second[2][1:] == [7, "shop", "", {}]


def test_fields_that_cannot_be_sent_arrive_as_texts(writer: LogWriter, reader: Reader) -> None:
    """Whatever a program passes, the record comes, and every field of it with its own name."""

    class Bad:
        def __repr__(self) -> str:
            raise KeyError("x")

    cyclic: list[Any] = []
    cyclic.append(cyclic)
    fields = {"ok": "as it is", "object": {1, 2}, "huge": 2**70, "raw": "caf\udce9", "bad": Bad(), "cyclic": cyclic}
    writer.write(log.INFO, "x", "a message", fields)
    assert reader.records() == [
        [
            log.INFO,
            "x",
            "a message",
            {
                "ok": "as it is",
                "object": "{1, 2}",
                "huge": str(2**70),
                "raw": "caf\\udce9",
                "bad": "<Bad whose repr raised KeyError>",
                "cyclic": "[[...]]",
            },
        ]
    ]


IDENT = "0af7651916cd43dd8448eb211c80319c"


def test_records_tell_the_trace_they_were_written_in(writer: LogWriter, reader: Reader) -> None:
    """By the field ``trace``, which is reserved: what a program says otherwise is kept beside it."""
    with tracing(IDENT):
        writer.write(log.INFO, "x", "bare")
        writer.write(log.INFO, "x", "with", {"size": 43})
        writer.write(log.INFO, "x", "same", {"trace": IDENT})
        writer.write(log.INFO, "x", "other", {"trace": "mine", "size": 43})
        LogStream(writer, "stdout", log.INFO).write("printed\n")
    writer.write(log.INFO, "x", "none", {"size": 43})
    writer.write(log.INFO, "x", "named", {"trace": IDENT})
    writer.write(log.INFO, "x", "no trace", {"trace": 7})
    assert [(record[2], record[3]) for record in reader.records()] == [
        ("bare", {"trace": IDENT}),
        ("with", {"trace": IDENT, "size": 43}),
        ("same", {"trace": IDENT}),
        ("other", {"trace": IDENT, "size": 43, "trace_": "mine"}),
        ("printed", {"trace": IDENT}),
        ("none", {"size": 43}),
        ("named", {"trace": IDENT}),
        ("no trace", {"trace_": 7}),
    ]


def test_trace_is_kept_when_fields_are_cut(writer: LogWriter, reader: Reader) -> None:
    """Of fields that do not fit it is the first."""
    with tracing(IDENT):
        writer.write(log.INFO, "x", "m" * 100_000, {f"{n}": set() for n in range(1000)})
    assert reader.records()[0][3]["trace"] == IDENT


def test_keys_that_are_no_texts_become_texts(writer: LogWriter, reader: Reader) -> None:
    """And long ones are cut."""
    fields: dict[Any, Any] = {1: "one", (2, 3): "pair", "k" * 100: "long"}
    writer.write(log.INFO, "x", "m", fields)
    assert reader.records()[0][3] == {"1": "one", "(2, 3)": "pair", "k" * 64: "long"}


@pytest.mark.parametrize("text", ["caf\udce9", "\ud800", "\x00\x1b[31m"], ids=ascii)
def test_any_text_arrives(writer: LogWriter, reader: Reader, text: str) -> None:
    """In the message and in the logger's name; what UTF-8 cannot say is escaped."""
    writer.write(log.INFO, text, text)
    ((_, logger, message, _),) = reader.records()
    escaped = text.encode("utf-8", "backslashreplace").decode()
    assert (logger, message) == (escaped, escaped)


@pytest.mark.parametrize("text", ["x" * 200_000, "ä" * 100_000, "\U0001f600" * 50_000], ids=["one", "two", "four"])
def test_message_that_is_too_long_is_cut_and_says_so(writer: LogWriter, reader: Reader, text: str) -> None:
    """The field ``cut`` counts the bytes that are missing."""
    writer.write(log.INFO, "x", text, {"kept": 1})
    ((_, _, message, fields),) = reader.records()
    assert text.startswith(message)
    size = len(text.encode())
    assert fields == {"kept": "1", "cut": str(size - log.MAX_MESSAGE)}
    assert log.MAX_MESSAGE - 4 < len(message.encode()) <= log.MAX_MESSAGE


def test_any_fields_fit_a_packet(writer: LogWriter, reader: Reader) -> None:
    """However many and however long."""
    writer.write(log.INFO, "x" * 1000, "m" * 100_000, {f"{n:0100}": "\ud800" * 10_000 for n in range(1000)})
    (packet,) = reader.packets()
    assert len(packet) <= wire.MAX_PACKET


def test_full_descriptor_drops_records_and_counts_them(writer: LogWriter, reader: Reader) -> None:
    """The numbers that are missing say exactly how many; waiting is done once, not for each record."""
    started = time.monotonic()
    total = 2000
    for _ in range(total):
        writer.write(log.INFO, "x", "y" * 1000)
    assert time.monotonic() - started < 5  # 2000 times the patience would be 100 s
    kept = reader.frames()
    assert [frame[1] for frame in kept] == list(range(1, len(kept) + 1))
    assert len(kept) < total
    writer.write(log.INFO, "x", "after")
    ((_, number, body),) = reader.frames()
    assert body[3] == "after"
    assert number - len(kept) - 1 == total - len(kept)


def test_reader_that_is_gone_is_no_error(ends: tuple[LogWriter, Reader]) -> None:
    """The machine is about to be ended; it must not die of its log first."""
    ours, theirs = socket_pair()
    ours.close()
    with theirs:
        LogWriter(theirs).write(log.INFO, "x", "y")


def test_threads_write_whole_records_with_their_own_numbers(writer: LogWriter, reader: Reader) -> None:
    """No number twice, no record torn."""

    def write(name: int) -> None:
        for number in range(20):
            writer.write(log.INFO, str(name), str(number))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    frames = reader.frames()
    assert [frame[1] for frame in frames] == list(range(1, 161))
    for name in range(8):
        assert [f[2][3] for f in frames if f[2][2] == str(name)] == [str(number) for number in range(20)]


# -- print -------------------------------------------------------------------------------------------------------------


def test_each_printed_line_is_a_record(writer: LogWriter, reader: Reader) -> None:
    """However the text is cut up when it is written."""
    stream = LogStream(writer, "stdout", log.INFO)
    print("one", "two", file=stream)
    stream.write("th")
    stream.write("ree\nfour\n\nfi")
    assert [record[1:3] for record in reader.records()] == [
        ["stdout", "one two"],
        ["stdout", "three"],
        ["stdout", "four"],
        ["stdout", ""],
    ]
    stream.finish()
    stream.finish()
    assert [record[2] for record in reader.records()] == ["fi"]


def test_line_without_an_end_does_not_grow_for_ever(writer: LogWriter, reader: Reader) -> None:
    """It is written as soon as it is longer than a message may be."""
    stream = LogStream(writer, "stdout", log.INFO)
    for _ in range(3):
        stream.write("x" * 20_000)
    assert [len(record[2]) for record in reader.records()] == [40_000]
    stream.finish()
    assert [len(record[2]) for record in reader.records()] == [20_000]


def test_stream_is_what_libraries_expect(writer: LogWriter) -> None:
    """Writable text in UTF-8 that is no terminal."""
    stream = LogStream(writer, "stdout", log.INFO)
    assert stream.writable()
    assert not stream.isatty()
    assert stream.encoding == "utf-8"
    stream.flush()


# -- logging -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def logger(writer: LogWriter) -> Iterator[logging.Logger]:
    made = logging.Logger("shop.till")
    handler = LogHandler(writer)
    made.addHandler(handler)
    yield made
    made.removeHandler(handler)


@pytest.mark.parametrize(
    ("level", "severity"),
    [(1, 7), (logging.DEBUG, 7), (logging.INFO, 6), (25, 6), (30, 4), (40, 3), (50, 2), (1000, 2)],
)
def test_levels_become_severities(level: int, severity: int) -> None:
    """As RFC 5424 numbers them."""
    assert log.severity_of(level) == severity


def test_log_record_with_extra_and_arguments(logger: logging.Logger, reader: Reader) -> None:
    """``extra`` becomes fields, nothing of logging's own does."""
    logger.warning("%d left of %s", 3, "shoes", extra={"size": 43})
    assert reader.records() == [[log.WARNING, "shop.till", "3 left of shoes", {"size": 43}]]


def test_traceback_joins_the_message(logger: logging.Logger, reader: Reader) -> None:
    """Also one of a stack."""
    try:
        raise ValueError("too big")
    except ValueError:
        logger.exception("it failed", stack_info=True)
    ((severity, _, message, fields),) = reader.records()
    assert severity == log.ERROR
    assert message.startswith("it failed\nTraceback (most recent call last):")
    assert "ValueError: too big" in message
    assert "Stack (most recent call last)" in message
    assert fields == {}


def test_log_call_that_cannot_be_formatted_is_told(logger: logging.Logger, reader: Reader) -> None:
    """The program's mistake is a record, not an exception."""
    logger.info("%d shoes", "many")
    ((severity, name, message, _),) = reader.records()
    assert (severity, name) == (log.ERROR, "shop.till")
    assert "a log call failed: TypeError" in message
    assert "%d shoes" in message


def test_install_takes_everything_that_python_says(
    writer: LogWriter, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """print, stderr, logging, warnings; and finish writes what had no end of line."""
    root = logging.getLogger()
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    monkeypatch.setattr(root, "level", root.level)
    with warnings.catch_warnings():
        try:
            log.install(writer)
            print("to stdout")
            print("to stderr", file=sys.stderr, end="")
            logging.getLogger("a.b").info("to logging")
            logging.getLogger("a.b").debug("not this")
            warnings.warn("to warnings", UserWarning, stacklevel=1)
            log.finish()
        finally:
            logging.captureWarnings(False)
            logging.getLogger("py.warnings").handlers.clear()
    records = reader.records()
    assert records[0][:3] == [log.INFO, "stdout", "to stdout"]
    assert records[1][:3] == [log.INFO, "a.b", "to logging"]
    assert records[2][:2] == [log.WARNING, "py.warnings"]
    assert "UserWarning: to warnings" in records[2][2]
    assert records[3][:3] == [log.NOTICE, "stderr", "to stderr"]
    assert len(records) == 4


def test_records_that_are_written_while_one_is_being_made_follow_it(writer: LogWriter, reader: Reader) -> None:
    """A repr may log, as a finalizer may that runs in between: that stops nothing, and no number is missing."""

    class Chatty:
        def __repr__(self) -> str:
            writer.write(5, "inner", "within")
            return "chatty"

    thread = threading.Thread(target=writer.write, args=(6, "x", "outer", {"value": Chatty()}), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    writer.write(6, "x", "after")
    frames = reader.frames()
    assert [(frame[1], frame[2][3]) for frame in frames] == [(1, "outer"), (2, "within"), (3, "after")]
    assert frames[0][2][4] == {"value": "chatty"}


def test_repr_that_logs_itself_comes_to_an_end(writer: LogWriter, reader: Reader) -> None:
    """What it goes on to write is lost, and its numbers with it, so that it is counted."""

    class Endless:
        def __repr__(self) -> str:
            writer.write(5, "inner", "again", {"value": self})
            return "endless"

    thread = threading.Thread(target=writer.write, args=(6, "x", "outer", {"value": Endless()}), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    writer.write(6, "x", "after")
    numbers = [(frame[1], frame[2][3]) for frame in reader.frames()]
    assert numbers[0] == (1, "outer")
    assert numbers[-1] == (log.MOST_WITHIN + 3, "after")
    assert len(numbers) == log.MOST_WITHIN + 2
