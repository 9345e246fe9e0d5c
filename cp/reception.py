"""Operators: whoever started the system, at its console, and those who come to the operator's socket."""

import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.cp.operator import ALL, OperatorPath
from retinue.cp.operator_socket import StrangePeer, check_peer
from retinue.cp.syslog import ERROR, NOTICE, WARNING
from retinue.pipes import Path, Rejected, SocketTransport, wire

if TYPE_CHECKING:
    from retinue.cp.system import ControlProgram

# Seconds to wait when an operator cannot be let in for want of descriptors: the table is not emptied by asking again.
PAUSE: Final = 1.0
# Seconds the console of a control program that has died has to come to its successor.
RETURN_LIMIT: Final = 10.0


class Reception:
    """Lets operators in, and serves them.

    One path may be the console: its end is the end of the system, unless it was detached before. ``on_console`` is told
    whenever there is a console from now on, or none.
    """

    def __init__(
        self, cp: "ControlProgram", nursery: trio.Nursery, on_console: Callable[[bool], None] = lambda attended: None
    ) -> None:
        self._cp = cp
        self._nursery = nursery
        self._on_console = on_console
        self._console: Path | None = None
        self._came_back = trio.Event()

    @property
    def attended(self) -> bool:
        """Whether there is a console."""
        return self._console is not None

    async def serve_console(self, console: socket.socket) -> None:
        """The path of whoever started the system."""
        path = Path(SocketTransport(console), name="console", peer="the starter", largest=wire.MAX_PACKET)
        self.attend(path)
        await self._serve(path, "the console")

    def attend(self, path: Path) -> None:
        """This path is the console from now on; the one that was it is an operator's like any other."""
        self._console = path
        self._came_back.set()
        self._on_console(True)

    def detach(self, path: Path) -> None:
        """The system goes on without its console."""
        if path is self._console:
            self._console = None
            self._on_console(False)

    async def expect_console(self, former: socket.socket | None = None) -> None:
        """The control program that died had a console: it has RETURN_LIMIT to come and :meth:`attend` again.

        ``former`` is the path it had, taken over: its end tells whoever holds the other one to come.
        """
        if former is not None:
            with contextlib.suppress(OSError):  # nobody holds it any more
                former.shutdown(socket.SHUT_RDWR)
            former.close()
        with trio.move_on_after(RETURN_LIMIT):
            await self._came_back.wait()
        if not self._came_back.is_set():
            self._cp.stop("console-lost", f"the console has not come back within {RETURN_LIMIT:.0f} s")

    async def accept(self, listener: socket.socket) -> None:
        """Let operators in for ever."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as exc:
                self._cp.syslog.write(ERROR, f"an operator could not be let in: {exc}")
                await trio.sleep(PAUSE)
                continue
            try:
                peer = check_peer(sock)
            except StrangePeer as exc:
                self._cp.syslog.write(WARNING, f"an operator was turned away: {exc}")
                sock.close()
                continue
            path = Path(SocketTransport(sock), name="operator", peer=f"process {peer.pid}", largest=wire.MAX_PACKET)
            self._nursery.start_soon(self._serve, path, f"the operator (process {peer.pid}, user {peer.uid})")

    async def _serve(self, path: Path, who: str) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(path.run)
            await OperatorPath(self._cp, path, ALL, who).serve()
            nursery.cancel_scope.cancel()
        if self._console is path:
            self._console = None
            self._on_console(False)
            self._cp.stop("console-lost", "the console is gone")

    async def carry_out(self, order: Callable[[], Awaitable[Any]]) -> Any:
        """Do what an operator has ordered, to its end: also when nobody waits for it any more.

        Returns what it returns and raises what it raises; Rejected ``stopping`` when the system ends before.
        """
        done = trio.Event()
        results: list[Any] = []
        errors: list[Exception] = []

        async def run() -> None:
            try:
                results.append(await order())
            except Exception as exc:
                if awaited:
                    errors.append(exc)
                else:
                    self._cp.syslog.write(NOTICE, f"what was ordered has failed: {exc}")
            finally:
                done.set()

        awaited = True
        self._nursery.start_soon(run)
        try:
            await done.wait()
        finally:
            awaited = False
        if errors:
            raise errors[0]
        if not results:
            raise Rejected("stopping", "the system has ended before")
        return results[0]

    def star(self, allowed: frozenset[str]) -> Any:
        """What serves a machine's path to a star service, with the verbs that it may use there."""

        async def serve(machine: str, path: Path) -> None:
            await OperatorPath(self._cp, path, allowed, machine).serve()

        return serve
