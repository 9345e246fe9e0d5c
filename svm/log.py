"""A machine's end of ``*LOG``: everything it says becomes a record in a descriptor that the control program holds.

Records are written synchronously, one packet each, into the kernel's buffer: what was written before a kill -9 is kept,
and no task has to run for it. A packet is a ``SEND`` frame (see ``docs/reference/wire.md``) whose id is the record's
sequence number; a packet that is no frame is raw text of the console (descriptors 1 and 2). A record that finds no room
for 250 ms is dropped and its number left out, so that the reader counts exactly what is missing; the ones after it wait
for 1 ms each, until there is room. When there is room again that is told, also if the machine says nothing more
(:mod:`retinue.svm.drops`). Where the topology says that records block the machine, it waits as long as it takes.
"""

import contextlib
import io
import logging
import select
import socket
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgpack

from retinue.pipes import LimitExceeded, wire
from retinue.pipes.traces import current, is_trace

# RFC 5424, section 6.2.1.
EMERGENCY, ALERT, CRITICAL, ERROR, WARNING, NOTICE, INFO, DEBUG = range(8)

# Bytes of text kept of a record that does not fit a packet.
MAX_MESSAGE: Final = 32 * 1024
# Characters of a text that fits a packet for sure, whatever they are, and of a field; how many of these do as well.
SHORT: Final = 8 * 1024
MAX_FIELD: Final = 256
MAX_FIELDS: Final = 16
_NUMBERS: Final = frozenset({int, float, bool, type(None)})
# How long a writer waits for room before it drops: longer than the control program ever looks away, short enough that
# a machine whose log is stuck still runs.
PATIENCE_MS: Final = 250
# The same when the one before it was dropped: a machine that floods must not drop whatever it says in the meantime.
STUCK_MS: Final = 1
# The same for the last record of all.
FAREWELL_MS: Final = 1000
# Records that may be written while one is being made, and that are not lost.
MOST_WITHIN: Final = 16
# The field with the trace in which a record was written.
TRACE: Final = "trace"


_NOW: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_SEND: Final = int(wire.Kind.SEND)
# Used by one thread at a time: it never gives up the interpreter's lock.
_packer: Final = msgpack.Packer(buf_size=4096)
_NO_FIELDS: Final[dict[str, Any]] = {}


# What :func:`install` was given.
_writers: "list[LogWriter]" = []


class LogWriter:
    """Writes records into the log descriptor; safe from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.RLock()
        self._number = 0
        self._stuck = False
        self._when_dropped: Callable[[], None] = _do_nothing
        # What the same thread writes while it makes a record: a repr, a finalizer or a signal handler may.
        self._busy = False
        self._within: deque[tuple[float, int, str, str, Mapping[str, Any] | None]] = deque()
        self.patient = False
        """It waits for room as long as it takes: nothing is dropped, and the program stands still meanwhile."""

    def write(self, severity: int, logger: str, message: str, fields: Mapping[str, Any] | None = None) -> None:
        """One record. ``severity`` is 0 (emergency) to 7 (debug); ``fields`` must be msgpack values. Never raises."""
        now = time.time()
        trace = current.get()
        if trace is not None or (fields and TRACE in fields):
            fields = _traced(fields or {}, trace)
        with self._lock:
            if self._busy:
                self._within.append((now, severity, logger, message, dict(fields) if fields else None))
                return
            self._busy = True
            try:
                self._put(now, severity, logger, message, fields)
                if self._within:
                    self._put_within()
            finally:
                self._busy = False

    def _put(self, now: float, severity: int, logger: str, message: str, fields: Mapping[str, Any] | None) -> None:
        self._number = number = self._number + 1
        if len(logger) > 256:
            logger = logger[:256]
        packet = None
        ours = dict(fields) if fields else _NO_FIELDS
        if type(message) is str and len(message) <= SHORT and (not ours or _is_flat(ours)):
            # Nothing is in it that a message may not carry: it need not be looked at again, which costs more than the
            # rest. But there may be a lone surrogate, or an integer over 64 bits.
            try:
                packet = _packer.pack([_SEND, number, [now, severity, logger, message, ours]])
            except (ValueError, OverflowError):
                packet = None
        if packet is None:
            packet = _encode(number, now, severity, logger, message, ours)
        try:
            self._socket.send(packet, _NOW)
            self._stuck = False
        except OSError as exc:
            self._send_later(packet, exc)

    def _put_within(self) -> None:
        for _ in range(MOST_WITHIN):
            if self._within:
                self._put(*self._within.popleft())
        # A repr that writes a record of itself would do so for ever: the reader counts these as lost.
        self._number += len(self._within)
        self._within.clear()

    def finish(self) -> None:
        """Say so if the last records were dropped: without one more nobody would know that they are missing."""
        with self._alone() as alone:
            if alone and self._stuck:
                self._number += 1
                text = "-- the end; there was no room for what was written last --"
                self._wait_and_send(self._told(text), FAREWELL_MS)

    def watch(self, when_dropped: Callable[[], None] | None) -> None:
        """Have this called, by any thread, when a record is dropped and the one before it was not; None: no more."""
        self._when_dropped = when_dropped or _do_nothing

    @property
    def stuck(self) -> bool:
        """Whether the last record was dropped, so that nobody knows yet."""
        return self._stuck

    def tell_dropped(self) -> None:
        """Say so. OSError when that cannot be said now, and BlockingIOError when it may be later."""
        with self._alone() as alone:
            if alone and self._stuck:
                self._number += 1
                text = "-- what was written before this was dropped, for want of room --"
                try:
                    self._socket.send(self._told(text), _NOW)
                except OSError:
                    self._number -= 1
                    raise
                self._stuck = False

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """As :meth:`write` does it; false if this thread is writing a record, and is called from within that."""
        with self._lock:
            if self._busy:
                yield False
                return
            self._busy = True
            try:
                yield True
            finally:
                try:
                    self._put_within()
                finally:
                    self._busy = False

    def _told(self, text: str) -> bytes:
        return _encode(self._number, time.time(), NOTICE, "retinue.svm", text, {})

    def _send_later(self, packet: bytes, why: OSError) -> None:
        # Any other error: nobody holds the other end any more, the machine is about to be ended.
        if isinstance(why, BlockingIOError):
            self._wait_and_send(packet, STUCK_MS if self._stuck else PATIENCE_MS)

    def _wait_and_send(self, packet: bytes, most: int) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        while poll.poll(None if self.patient else most):
            try:
                self._socket.send(packet, _NOW)
                self._stuck = False
                return
            except BlockingIOError:
                if not self.patient:  # somebody else was faster, and may be again
                    break
            except OSError:
                break
        if not self._stuck:
            self._stuck = True
            self._when_dropped()


def _do_nothing() -> None:
    """Nobody wants to know."""


def _traced(fields: Mapping[str, Any], trace: bytes | None) -> dict[str, Any]:
    """The fields with the trace first. A value of the program's own that is no trace, or another one, is ``trace_``."""
    others = dict(fields)
    own = others.pop(TRACE, None)
    if trace is None and isinstance(own, str) and is_trace(own):
        return {TRACE: own, **others}
    ours = {} if trace is None else {TRACE: trace.hex()}
    if own is not None and own != ours.get(TRACE):
        others[f"{TRACE}_"] = own
    return {**ours, **others}


def _encode(number: int, when: float, severity: int, logger: str, message: str, fields: dict[str, Any]) -> bytes:
    """The packet of a record; what does not fit one is cut, with the number of bytes that are missing as a field."""
    try:
        packet = wire.encode([wire.Kind.SEND, number, [when, severity, logger, message, fields]])
        if len(packet) <= wire.MAX_PACKET:
            return packet
    except (TypeError, LimitExceeded):
        pass  # a field that a message cannot carry, a lone surrogate in a text, or far too much of either
    logger = plain(logger)
    whole = message.encode("utf-8", "backslashreplace")
    text = whole[:MAX_MESSAGE].decode("utf-8", "ignore")
    texts = {plain(key)[:64]: plain(value)[:256] for key, value in list(fields.items())[:32]}
    if len(whole) > MAX_MESSAGE:
        texts["cut"] = str(len(whole) - MAX_MESSAGE)
    return wire.encode([wire.Kind.SEND, number, [when, severity, logger, text, texts]])


def _is_flat(fields: dict[str, Any]) -> bool:
    """Whether fields are few, short and simple, as they mostly are."""
    for name, value in fields.items():
        kind = type(value)
        if type(name) is not str or len(name) > MAX_FIELD:
            return False
        if kind not in _NUMBERS and not (kind is str and len(value) <= MAX_FIELD):
            return False
    return len(fields) <= MAX_FIELDS


def plain(value: Any) -> str:
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
        self._lock = threading.RLock()  # a finalizer that prints may run while a line is being written
        self._line = ""

    encoding = "utf-8"  # libraries ask

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            if "\n" not in text and len(self._line) + len(text) <= MAX_MESSAGE:
                self._line += text
                return len(text)
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


# What a record of the library has of its own. What ``extra`` adds must be none of it, and becomes fields.
_PLAIN_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PLAIN_COUNT: Final = len(vars(logging.makeLogRecord({})))
_PLAIN_LOGGER: Final = len(vars(logging.getLogger("retinue.svm")))
_SEVERITIES: Final = {10: DEBUG, 20: INFO, 30: WARNING, 40: ERROR, 50: CRITICAL}
# Of those, as the only argument of a message, none is a mapping: to ask is dear.
_NO_MAPPINGS: Final = frozenset({int, str, float})


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

    def createLock(self) -> None:
        """None: the writer has one, and nothing else here is shared."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """What the library's does, without a lock: since Python 3.13 that one takes it for granted."""
        found: Any = self.filter(record)
        if isinstance(found, logging.LogRecord):  # since Python 3.12 a filter may put another one in its place
            record = found
        if found:
            self.emit(record)
        return bool(found)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                message += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
            if record.stack_info:
                message += "\n" + record.stack_info
            extra = len(record.__dict__) > _PLAIN_COUNT
            names = record.__dict__.keys() - _PLAIN_RECORD if extra else ()
            fields = {name: record.__dict__[name] for name in names}
            self._writer.write(severity_of(record.levelno), record.name, message, fields)
        except Exception as exc:
            self._write_failed(record.name, record.msg, exc)

    def say(self, name: str, level: int, msg: object, args: Any, fields: Mapping[str, Any] | None) -> None:
        """What :meth:`emit` says of a record that is made of these."""
        try:
            message = msg if type(msg) is str else str(msg)
            if args:
                if len(args) == 1 and type(args[0]) not in _NO_MAPPINGS and isinstance(args[0], Mapping) and args[0]:
                    args = args[0]
                message = message % args
            self._writer.write(_SEVERITIES.get(level) or severity_of(level), name, message, fields)
        except Exception as exc:
            self._write_failed(name, msg, exc)

    def _write_failed(self, name: str, msg: object, exc: Exception) -> None:
        """A record that cannot be formatted is the program's mistake; it is told as a record of its own."""
        self._writer.write(ERROR, name, f"a log call failed: {plain(exc)}: {plain(msg)[:500]}")


_Logger: Final = logging.Logger
_Record: Final = logging.LogRecord
# The library's own; somebody else's may stand in their place.
_find_caller_before: Final = _Logger.findCaller
_log_before: Final = _Logger._log
_steps_before: Final = _Logger.makeRecord, _Logger.handle, _Logger.callHandlers, _Record.getMessage


def _find_caller(
    self: logging.Logger, stack_info: bool = False, stacklevel: int = 1
) -> tuple[str, int, str, str | None]:
    """In the place of Logger.findCaller, which costs a fifth of a record: looks only where a stack is wanted."""
    if stack_info:
        return _find_caller_before(self, stack_info, stacklevel + 1)
    return "(unknown file)", 0, "(unknown function)", None


def _only_handler(logger: logging.Logger) -> LogHandler | None:
    """Ours, if nobody else sees what the logger says, and each step to it is the library's own."""
    if type(logger) is not _Logger or len(logger.__dict__) > _PLAIN_LOGGER or logger.disabled or logger.filters:
        return None
    steps = _Logger.makeRecord, _Logger.handle, _Logger.callHandlers, _Record.getMessage
    if steps != _steps_before or logging.getLogRecordFactory() is not _Record:
        return None
    above: logging.Logger | None = logger
    while above is not None and not above.handlers:
        above = above.parent if above.propagate else None
    if above is None or len(above.handlers) != 1 or (above.propagate and above.parent is not None):
        return None
    handler = above.handlers[0]
    return handler if type(handler) is LogHandler and not handler.filters else None


def _log(
    self: logging.Logger,
    level: int,
    msg: object,
    args: Any,
    exc_info: Any = None,
    extra: Mapping[str, Any] | None = None,
    stack_info: bool = False,
    stacklevel: int = 1,
) -> None:
    """In the place of Logger._log: where no other handler wants a LogRecord none is made, which is most of the cost."""
    if not exc_info and not stack_info and (not extra or (type(extra) is dict and _PLAIN_RECORD.isdisjoint(extra))):
        handler = _only_handler(self)
        if handler is not None and level >= handler.level:
            handler.say(self.name, level, msg, args, extra)
            return
    _log_before(self, level, msg, args, exc_info, extra, stack_info, stacklevel + 1)


def install(writer: LogWriter) -> None:
    """Send logging (from INFO up), warnings, ``print`` and tracebacks of this process to the writer."""
    _writers[:] = [writer]
    sys.stdout = LogStream(writer, "stdout", INFO)
    sys.stderr = LogStream(writer, "stderr", NOTICE)
    root = logging.getLogger()
    root.handlers[:] = [LogHandler(writer)]
    root.setLevel(logging.INFO)
    # What no record of ours carries need not be found out for each: thread, task, process, line of the call.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    setattr(_Logger, "findCaller", _find_caller)  # noqa: B010  (a method, for the type checker)
    setattr(_Logger, "_log", _log)  # noqa: B010
    logging.captureWarnings(True)
    warnings.simplefilter("default")


def writers() -> Sequence[LogWriter]:
    """Those that :func:`install` was given."""
    return tuple(_writers)


def set_policy(policy: str) -> None:
    """Wait for room without end if the machine's records block it."""
    for writer in _writers:
        writer.patient = policy == "block"


def finish() -> None:
    """Write what the standard streams still hold."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LogStream):
            stream.finish()
    for writer in _writers:
        writer.finish()
