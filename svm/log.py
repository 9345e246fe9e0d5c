"""A machine's end of ``*LOG``: everything it says becomes a record in a descriptor that the control program holds.

Records are written synchronously, one packet each, into the kernel's buffer: what was written before a kill -9 is kept,
and no task has to run for it. A packet is a ``SEND`` frame (see ``docs/reference/wire.md``) whose id is the record's
sequence number; a packet that is no frame is raw text of the console (descriptors 1 and 2). A record that finds no room
for 50 ms is dropped and its number left out, so that the reader counts exactly what is missing.
"""

import io
import logging
import select
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from typing import Any, Final

from retinue.pipes import LimitExceeded, wire

# RFC 5424, section 6.2.1.
EMERGENCY, ALERT, CRITICAL, ERROR, WARNING, NOTICE, INFO, DEBUG = range(8)

# Bytes of text kept of a record that does not fit a packet.
MAX_MESSAGE: Final = 32 * 1024
# How long a writer waits for room before it drops: longer than the control program ever looks away, short enough that
# a machine whose log is stuck still runs.
PATIENCE_MS: Final = 50


_NOW: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class LogWriter:
    """Writes records into the log descriptor; safe from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._number = 0
        self._stuck = False

    def write(self, severity: int, logger: str, message: str, fields: Mapping[str, Any] | None = None) -> None:
        """One record. ``severity`` is 0 (emergency) to 7 (debug); ``fields`` must be msgpack values. Never raises."""
        now = time.time()
        with self._lock:
            self._number += 1
            self._send(_encode(self._number, now, severity, logger[:256], message, dict(fields) if fields else {}))

    def _send(self, packet: bytes) -> None:
        try:
            self._socket.send(packet, _NOW)
            self._stuck = False
        except BlockingIOError:
            if self._stuck:
                return
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            if poll.poll(PATIENCE_MS):
                self._send_last(packet)
            else:
                self._stuck = True
        except OSError:
            pass  # nobody holds the other end any more: the machine is about to be ended

    def _send_last(self, packet: bytes) -> None:
        try:
            self._socket.send(packet, _NOW)
        except OSError:
            self._stuck = True


def _encode(number: int, when: float, severity: int, logger: str, message: str, fields: dict[str, Any]) -> bytes:
    """The packet of a record; what does not fit one is cut, with the number of bytes that are missing as a field."""
    try:
        packet = wire.encode([wire.Kind.SEND, number, [when, severity, logger, message, fields]])
        if len(packet) <= wire.MAX_PACKET:
            return packet
    except (TypeError, LimitExceeded):
        pass  # a field that a message cannot carry, a lone surrogate in a text, or far too much of either
    logger = _plain(logger)
    whole = message.encode("utf-8", "backslashreplace")
    text = whole[:MAX_MESSAGE].decode("utf-8", "ignore")
    plain = {_plain(key)[:64]: _plain(value)[:256] for key, value in list(fields.items())[:32]}
    if len(whole) > MAX_MESSAGE:
        plain["cut"] = str(len(whole) - MAX_MESSAGE)
    return wire.encode([wire.Kind.SEND, number, [when, severity, logger, text, plain]])


def _plain(value: Any) -> str:
    """Any object as a text that can be sent: a text as it is, of anything else what repr says."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as exc:
        text = f"<{type(value).__name__} whose repr raised {type(exc).__name__}>"
    return text.encode("ascii", "backslashreplace").decode("ascii")


class LogStream(io.TextIOBase):
    """``print`` and whatever else writes text: one record a line."""

    def __init__(self, writer: LogWriter, logger: str, severity: int) -> None:
        self._writer, self._logger, self._severity = writer, logger, severity
        self._lock = threading.Lock()
        self._line = ""

    encoding = "utf-8"  # libraries ask

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._line = (self._line + text).split("\n")
            if len(self._line) > MAX_MESSAGE:
                lines.append(self._line)
                self._line = ""
        for line in lines:
            self._writer.write(self._severity, self._logger, line)
        return len(text)

    def finish(self) -> None:
        """Write a last line that had no end."""
        with self._lock:
            rest, self._line = self._line, ""
        if rest:
            self._writer.write(self._severity, self._logger, rest)


_PLAIN_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def severity_of(level: int) -> int:
    """The RFC 5424 severity of a :mod:`logging` level."""
    if level >= logging.CRITICAL:
        return CRITICAL
    if level >= logging.ERROR:
        return ERROR
    if level >= logging.WARNING:
        return WARNING
    return INFO if level >= logging.INFO else DEBUG


class LogHandler(logging.Handler):
    """Sends the standard library's log records; what ``extra`` added becomes fields, a traceback joins the message."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                message += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
            if record.stack_info:
                message += "\n" + record.stack_info
            names = record.__dict__.keys() - _PLAIN_RECORD
            fields = {name: record.__dict__[name] for name in names}
            self._writer.write(severity_of(record.levelno), record.name, message, fields)
        except Exception as exc:
            # A record that cannot be formatted is the program's mistake; it is told as a record of its own.
            self._writer.write(ERROR, record.name, f"a log call failed: {exc!r}: {record.msg!r:.500}")


def install(writer: LogWriter) -> None:
    """Send logging (from INFO up), warnings, ``print`` and tracebacks of this process to the writer."""
    sys.stdout = LogStream(writer, "stdout", INFO)
    sys.stderr = LogStream(writer, "stderr", NOTICE)
    root = logging.getLogger()
    root.handlers[:] = [LogHandler(writer)]
    root.setLevel(logging.INFO)
    # What no record of ours carries need not be found out for each: thread, task, process, line of the call.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.captureWarnings(True)
    warnings.simplefilter("default")


def finish() -> None:
    """Write what the standard streams still hold."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LogStream):
            stream.finish()
