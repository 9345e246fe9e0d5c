"""Where ``print`` and :mod:`logging` go: to the log of the machine whose task speaks; else where they went before."""

import io
import logging
import socket
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, TextIO

import trio

from retinue.cp.simulation.process import present

__all__ = ["LogEnd", "routed"]

_NOW: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class _Stream(io.TextIOBase):
    """Standard output or error of this process, which the machines in it believe to be theirs."""

    encoding = "utf-8"

    def __init__(self, before: TextIO, *, error: bool) -> None:
        self._before = before
        self._error = error

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        process = present()
        if process is None or process.output is None:
            return self._before.write(text)
        process.output.print(text, error=self._error)
        return len(text)

    def flush(self) -> None:
        self._before.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._before.fileno()


class _Handler(logging.Handler):
    """Hands the records of machines to them."""

    def emit(self, record: logging.LogRecord) -> None:
        process = present()
        if process is not None and process.output is not None:
            process.output.log(record)


def _of_nobody(record: logging.LogRecord) -> bool:
    process = present()
    return process is None or process.output is None


@contextmanager
def routed(root: logging.Logger) -> Iterator[None]:
    """Within the block machines have a log of their own; everybody else's handlers do not see what they say."""
    streams = sys.stdout, sys.stderr
    handler, others, level = _Handler(), list(root.handlers), root.level
    sys.stdout, sys.stderr = _Stream(sys.stdout, error=False), _Stream(sys.stderr, error=True)
    mine = sys.stdout, sys.stderr
    for other in others:
        other.addFilter(_of_nobody)
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        for other in others:
            other.removeFilter(_of_nobody)
        if (sys.stdout, sys.stderr) == mine:
            sys.stdout, sys.stderr = streams


class LogEnd:
    """The log socket of one machine as its writer sees it. What finds no room waits here, and :meth:`pour` brings it.

    A real machine waits for the reader; here both are the same thread.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._waiting: deque[bytes] = deque()
        self._changed = trio.Event()
        self._over = False

    def send(self, packet: bytes, _: int = 0) -> int:
        """Say something, now or as soon as there is room."""
        if self._over:
            raise BrokenPipeError("the machine has ended")
        if not self._waiting:
            try:
                return self._socket.send(packet, _NOW)
            except BlockingIOError:
                pass
        self._waiting.append(bytes(packet))
        self._changed.set()
        return len(packet)

    def beat(self, packet: bytes) -> None:
        """A heartbeat, which is left out when there is no room."""
        if not self._over and not self._waiting:
            with suppress(OSError):
                self._socket.send(packet, _NOW)

    def finish(self) -> None:
        """Nothing is said any more. What was is brought to its reader, also after the machine's death."""
        self._over = True
        self._changed.set()

    async def pour(self) -> None:
        """Task: bring what had no room; closes the socket when everything was brought and nothing more comes."""
        with self._socket, suppress(OSError):
            while self._waiting or not self._over:
                if not self._waiting:
                    self._changed = trio.Event()
                    await self._changed.wait()
                    continue
                try:
                    self._socket.send(self._waiting[0], _NOW)
                    self._waiting.popleft()
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._socket)

    def __repr__(self) -> str:
        return f"<LogEnd {self._socket!r}>"
