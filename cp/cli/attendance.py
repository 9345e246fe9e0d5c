"""Attending to a system from the start of its nucleus to its end, or to the moment when everything is READY."""

import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio

from retinue.cp import runtime
from retinue.cp.cli.board import Board
from retinue.cp.cli.errors import FAILED, OK, CommandError, Interrupted, SystemFailed
from retinue.cp.cli.following import AGAIN
from retinue.cp.cli.live import REFRESH, Display, display
from retinue.cp.cli.output import Paint, colour_wanted, neutralise, say, tell
from retinue.cp.cli.records import RecordFormat, lost_line, tells_event
from retinue.cp.cli.session import (
    BURY_WAIT,
    FORCE_WAIT,
    STOP_PATIENCE,
    NucleusProcess,
    Patience,
    message_of,
    operator,
    tail,
)
from retinue.cp.directory import Directory
from retinue.cp.losses import untold_in
from retinue.cp.places import Folders
from retinue.pipes import Path, PathClosed, PathSevered, SocketTransport, open_path

# Log lines kept while the live display stands; they are printed when everything is ready.
HELD_MAX: Final = 1000


class Attendance:
    """One run of `up`: from the start of the nucleus to its end, or to the moment when everything is READY."""

    def __init__(
        self,
        directory: Directory,
        folders: Folders,
        window: runtime.Window,
        process: "subprocess.Popen[bytes]",
        nucleus: NucleusProcess,
        *,
        detach: bool,
    ) -> None:
        names = [machine.name for machine in directory.expanded().machines]
        self.detached = False
        self._system = directory.system.name
        self._folders, self._window, self._process, self._nucleus = folders, window, process, nucleus
        self._detach = detach
        self._board = Board(self._system, names, time.monotonic)
        self._format = RecordFormat(names, paint=Paint(colour_wanted(sys.stdout)))
        self._plain = RecordFormat(names)
        self._make_display = partial(display, self._board)
        self._display: Display | None = None
        self._held: deque[str] = deque(maxlen=HELD_MAX)
        self._unheld = 0
        self._ready = False
        self._stops_asked = 0
        self._forced = self._killed = self._mute = False
        self._settled = trio.Event()  # READY, or it is clear that it never will be
        self._ending = trio.Event()
        self._severed = trio.Event()  # the last path has ended
        self._gone = trio.Event()
        self._path: Path | None = None  # the present one, when it has been greeted
        self._path_changed = trio.Event()
        self._last = 0  # number of the newest record that was shown
        self._patience = Patience(STOP_PATIENCE)

    # -- the run ----------------------------------------------------------------------------------------------------

    async def run(self, sock: socket.socket) -> int:
        """Attend; returns the exit code. Raises SystemFailed or Interrupted if it does not end well."""

        try:
            self._show()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_signals, nursery)
                nursery.start_soon(self._converse, sock)
                nursery.start_soon(self._draw)
                nursery.start_soon(self._watch_nucleus)
                nursery.start_soon(self._end_in_bounds)
                await self._settled.wait()
                if self._ready and self._detach and not self._ending.is_set():
                    self.detached = await self._ask_once("detach", {})
                if not self.detached:
                    if self._ready and not self._ending.is_set():
                        self._attend()
                    await self._gone.wait()
                    self._board.end()
                    with trio.move_on_after(1):  # what was written before the end is still being read
                        await self._severed.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._hide()
        return self._detached_well() if self.detached else self._verdict()

    # -- the paths --------------------------------------------------------------------------------------------------

    async def _converse(self, sock: socket.socket) -> None:
        """The path of the console, and when its control program has died, one after another to the successor."""
        try:
            async with open_path(SocketTransport(sock), name="*CP", peer="*CP") as path:
                whole = await self._hear(path, again=False)
            running = runtime.Running(self._system, self._folders.runtime, self._process.pid)
            while not whole:
                await trio.sleep(AGAIN)
                async with operator(running) as path:
                    whole = await self._hear(path, again=True)
        except CommandError:
            pass  # nobody is there any more; what has become of it the nucleus tells
        self._severed.set()
        self._ending.set()
        self._settled.set()
        self._turn_to(None)

    async def _hear(self, path: Path, *, again: bool) -> bool:
        """Take what comes by a path to its end; returns whether that is the end of the system."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._greet, path, again)
            whole = await self._receive(path)
            nursery.cancel_scope.cancel()
        self._turn_to(None)
        return whole

    async def _greet(self, path: Path, again: bool) -> None:
        with suppress(PathSevered, PathClosed):
            if again:
                await path.call(["attend", {}])
            reply = await path.call(["follow", {"events": True, "records": True, "after": self._last}])
            if again and reply["seq"] < self._last:  # the numbers have begun anew
                self._last = 0
            # Who answers is the control program, and its nucleus took the lock before it started it.
            self._window.close()
            self._board.doubt()
            self._prime(await path.call(["ps", {}]))
            self._turn_to(path)
            if again:
                self._hide()
                tell(f"the control program of {self._system} has been restarted; its machines went on")
                if not self._ready or self._ending.is_set():
                    self._show()

    def _turn_to(self, path: Path | None) -> None:
        self._path = path
        self._path_changed.set()
        self._path_changed = trio.Event()

    async def _ask_once(self, verb: str, arguments: dict[str, Any]) -> bool:
        """Ask until somebody has taken it: a successor, if a control program dies; False when nobody ever will."""
        while not self._severed.is_set() and not self._gone.is_set():
            path, changed = self._path, self._path_changed
            if path is not None:
                with suppress(PathSevered, PathClosed):
                    await path.call([verb, arguments])
                    return True
            await changed.wait()
        return False

    def _prime(self, listing: Any) -> None:
        if isinstance(listing, Mapping):
            self._board.prime(listing)
        if self._board.state == "READY":
            self._became_ready()
        elif self._board.state in ("STOPPING", "STOPPED", "FAILED"):
            self._ending.set()
            self._settled.set()

    async def _receive(self, path: Path) -> bool:
        async for message in path:
            kind, content = message_of(message.body)
            if kind == "event":
                self._on_event(content)
            elif kind == "record":
                self._on_record(content)
            elif kind == "lost":
                self._print(lost_line(content.get("count")))
            elif kind == "end":
                return True
        return False

    def _on_record(self, record: Mapping[str, Any]) -> None:
        if isinstance(number := record.get("seq"), int):
            self._last = number
        machine = str(record.get("machine"))
        if not self._ready:
            self._board.keep_line(machine, self._plain.lines(record))
        if self._display is not None and tells_event(record):
            return  # the display shows it
        for line in self._format.lines(record):
            self._print(line)

    def _on_event(self, event: Mapping[str, Any]) -> None:
        self._patience.progress()
        line = self._board.apply(event)
        if event.get("machine") is None:
            if self._board.failure is not None:
                self._ending.set()
                self._settled.set()
            elif self._board.state == "READY":
                self._became_ready()
            elif self._board.state == "STOPPING":
                self._ending.set()
                self._settled.set()
                self._show()
        if line is not None and self._display is not None:
            self._display.event(line)

    def _became_ready(self) -> None:
        self._ready = True
        self._settled.set()

    def _attend(self) -> None:
        """Everything is READY: from now on the log is what is shown."""

        self._hide()
        count = len(self._board.machines)
        tell(f"{self._system} is READY: {count} machine{'' if count == 1 else 's'}. Ctrl-C stops it.")
        if self._unheld:
            tell(f"-- {self._unheld} earlier lines: retinue logs --")
        while self._held:
            self._print(self._held.popleft())

    def _print(self, line: str) -> None:
        if self._detach or self._mute:
            return
        try:
            if self._display is None:
                say(line)
            elif self._display.holds_records and not self._ready:
                self._unheld += len(self._held) == HELD_MAX
                self._held.append(line)
            else:
                self._display.record(line)
        except BrokenPipeError:
            raise  # `| head`: the end of the reader is the end of the run
        except OSError:
            self._mute = True  # the terminal is gone (SIGHUP); the system still has to be stopped in order

    # -- the display ------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        if self._display is None:
            self._display = self._make_display().__enter__()

    def _hide(self) -> None:
        if self._display is not None:
            self._display.__exit__(None, None, None)
            self._display = None

    async def _draw(self) -> None:
        while True:
            await trio.sleep(REFRESH)
            if self._display is not None:
                self._display.draw()

    # -- the end ----------------------------------------------------------------------------------------------------

    async def _watch_nucleus(self) -> None:
        await self._nucleus.wait()
        self._gone.set()
        self._ending.set()
        self._settled.set()

    async def _watch_signals(self, nursery: trio.Nursery) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for _ in signals:
                self._stops_asked += 1
                self._on_stop_asked(nursery)

    def _on_stop_asked(self, nursery: trio.Nursery) -> None:
        if self._stops_asked == 1:
            self._hide()
            tell(f"{self._system} is being stopped in order. Ctrl-C again stops it by force.")
            self._show()
            self._ending.set()
            nursery.start_soon(self._order_down, False)
        elif self._stops_asked == 2:
            self._forced = True
            self._hide()
            tell(f"{self._system} is being stopped by force.")
            self._show()
            self._patience.limit(FORCE_WAIT)
            nursery.start_soon(self._order_down, True)
        else:
            self._kill()

    async def _order_down(self, force: bool) -> None:
        await self._ask_once("down", {"force": force})  # if nobody hears, it is ending already: the nucleus is watched
        if force:
            self._patience.limit(BURY_WAIT)

    async def _end_in_bounds(self) -> None:
        await self._ending.wait()
        if await self._patience.wait(self._gone):
            return
        if not self._forced:
            self._forced = True
            with trio.move_on_after(FORCE_WAIT) as hanging:
                await self._order_down(True)
            if not hanging.cancelled_caught:
                with trio.move_on_after(BURY_WAIT):
                    await self._gone.wait()
        if not self._gone.is_set():
            self._kill()

    def _kill(self) -> None:
        self._killed = True
        self._nucleus.kill()

    # -- the verdict ------------------------------------------------------------------------------------------------

    def _detached_well(self) -> int:
        count = len(self._board.machines)
        say(f"{self._system} is READY: {count} machine{'' if count == 1 else 's'}")
        return OK

    def _verdict(self) -> int:
        status = self._process.wait()
        end = runtime.read_end(self._folders)
        if self._stops_asked and self._board.failure is None:
            if self._forced:
                how = "its nucleus was killed" if self._killed else "machines may have lost work"
                raise Interrupted(f"{self._system} was stopped by force ({how})")
            if not self._ready:
                raise Interrupted(f"{self._system} was stopped before it was ready")
            if end is not None and end.how == "down":
                tell(f"{self._system} has stopped")
                _tell_untold(end)
                return OK
        if self._ready and self._board.failure is None and end is not None and end.how == "down":
            tell(f"{self._system} has stopped: an operator asked for it")
            _tell_untold(end)
            return OK
        what = "ended" if self._ready else "did not start"
        # The nucleus ends with the same code that the event tells, which may not have arrived any more.
        code = self._board.exit_code or (status if status > 0 else FAILED)
        raise SystemFailed(self._system, what, "\n".join(self._reasons(end, status)), code, self._cure())

    def _reasons(self, end: runtime.End | None, status: int) -> list[str]:
        """Why it ended, as lines: the reason in one, then every machine in trouble with its last lines."""
        if self._board.failure is not None:
            # Mistakes in several machines are several lines: each on its own below the first.
            reasons = [("\n" if "\n" in self._board.failure else "") + self._board.failure]
        elif self._killed:
            reasons = [f"it did not end in {STOP_PATIENCE:g} s, and its nucleus was killed"]
        elif end is not None:
            reasons = [end.text or end.how]
        elif status < 0:
            reasons = [f"its nucleus was killed by {_signal_name(-status)}"]
        else:
            reasons = [f"its nucleus ended with status {status}"]
        if not self._ready or self._board.failure is not None:
            for machine in self._board.troubled():
                lines = self._board.last_lines(machine.name)
                trouble = machine.trouble or ""
                if trouble not in reasons[0]:
                    reasons.append(f"{machine.name} failed: {trouble}")
                if lines:
                    reasons += [f"the last lines of {machine.name}:", *(f"  {line}" for line in lines)]
        return reasons

    def _cure(self) -> str | None:
        log = self._folders.state / runtime.NUCLEUS_LOG
        lines = tail(log)
        return "\n".join([f"{log} ends with:", *(f"  {line}" for line in lines)]) if lines else None


def _tell_untold(end: runtime.End) -> None:
    if untold := untold_in(end.text):
        tell(neutralise(untold))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
