"""The heartbeat: a second thread that tells the control program whether the first one, which runs the program, goes on.

A thread of its own, because the first one may be stuck, and without any lock that it may hold then. Each beat asks
trio's loop for an answer and tells how long it has not given one, and how much processor time the process has used:
together they tell a program that hangs from one that computes (see :mod:`retinue.pipes.beat`).

While there is a heartbeat, the stacks that :mod:`faulthandler` writes at SIGUSR1 go through a pipe of this thread and
become lines of the log: character by character, as it may write them, they would not fit there. What the thread cannot
take out, since some code keeps the interpreter to itself, whoever has the pipe's other end can.
"""

import _thread
import contextlib
import faulthandler
import os
import select
import signal
import socket
import time
from typing import Final, Protocol

import msgpack
import trio

from retinue.pipes.beat import Beat, packet_of

# Bytes of its stack, of which it touches a few pages.
STACK: Final = 128 * 1024
# Bytes of one packet of stacks, cut at the end of a line.
PIECE: Final = 16 * 1024
# How long it waits for room in the log for such a packet, in milliseconds.
PATIENCE_MS: Final = 50

_NOW: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Heart(Protocol):
    """Something that tells at intervals that a machine lives."""

    def watch(self, every: float) -> int | None:
        """Tell it every so many seconds from now on; 0: no more.

        Returns the descriptor with the stacks that were not told yet, which stays this object's. RuntimeError or
        OSError when the host has no room for it.
        """

    def close(self) -> None:
        """Tell it no more."""


class Heartbeat:
    """The heartbeat of the process, for a trio loop that this thread runs; ``log`` is the descriptor of ``*LOG``."""

    def __init__(self, log: socket.socket) -> None:
        self._log = log
        self._token = trio.lowlevel.current_trio_token()
        self._running: _thread.LockType | None = None  # held by the thread to its end
        self._every = 0.0
        self._bell = self._stacks = self._stacks_end = -1
        self._turns = 0
        self._asked: float | None = None  # when the loop was asked, while it has not answered
        self._text = b""  # a line of stacks without its end

    def watch(self, every: float) -> int | None:
        """See :meth:`Heart.watch`."""
        if every <= 0:
            self.close()
            return None
        self._every = every
        if self._running is not None:
            os.eventfd_write(self._bell, 1)
            return self._stacks
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._stacks, self._stacks_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._start()
        except BaseException:
            self._every = 0.0
            self._close_descriptors()
            raise
        faulthandler.register(signal.SIGUSR1, file=self._stacks_end, all_threads=True)
        return self._stacks

    def _start(self) -> None:
        # Not by the module threading, whose threads cost 200 KiB of pages for what this one does not use.
        running = _thread.allocate_lock()
        running.acquire()
        before = _thread.stack_size(STACK)
        try:
            _thread.start_new_thread(self._run, (running,))
        finally:
            _thread.stack_size(before)
        self._running = running

    def close(self) -> None:
        """End the thread; stacks go to standard error again."""
        running, self._running = self._running, None
        if running is None:
            return
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
        self._every = 0.0
        os.eventfd_write(self._bell, 1)
        running.acquire()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for each in (self._bell, self._stacks, self._stacks_end):
            if each >= 0:
                os.close(each)
        self._bell = self._stacks = self._stacks_end = -1

    # -- what the thread does -----------------------------------------------------------------------------------------

    def _run(self, running: _thread.LockType) -> None:
        try:
            self._beat_on()
        finally:
            running.release()

    def _beat_on(self) -> None:
        packer = msgpack.Packer(buf_size=256)
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.register(self._stacks, select.POLLIN)
        due = time.monotonic()
        while (every := self._every) > 0:
            now = time.monotonic()
            if now >= due:
                due = now + every
                if not self._beat(now, packer):
                    return
            for descriptor, _ in poll.poll(max(0.0, due - now) * 1000):
                if descriptor == self._bell:
                    os.eventfd_read(self._bell)
                    due = time.monotonic()  # there is another interval, which begins with a beat
                else:
                    self._carry_stacks()

    def _beat(self, now: float, packer: msgpack.Packer) -> bool:
        """Tell how it is, and ask the loop. False when there is none any more."""
        asked = self._asked
        packet = packet_of(Beat(self._turns, time.process_time(), 0.0 if asked is None else now - asked), packer)
        with contextlib.suppress(OSError):  # no room, or nobody there: the next one will do
            self._log.send(packet, _NOW)
        if asked is None:
            self._asked = now
            try:
                self._token.run_sync_soon(self._answer)
            except trio.RunFinishedError:
                return False
        return True

    def _answer(self) -> None:
        """Called by the loop."""
        self._turns += 1
        self._asked = None

    def _carry_stacks(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._text += os.read(self._stacks, PIECE)
        end = self._text.rfind(b"\n") + 1
        if not end and len(self._text) < PIECE:
            return
        piece, self._text = self._text[: end or PIECE], self._text[end or PIECE :]
        poll = select.poll()
        poll.register(self._log, select.POLLOUT)
        with contextlib.suppress(OSError):
            if poll.poll(PATIENCE_MS):
                self._log.send(piece, _NOW)
