"""Operators: whoever started the system, at its console, and those who come to the operator's socket."""

import socket
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.cp.operator import ALL, OperatorPath
from retinue.cp.operator_socket import StrangePeer, check_peer
from retinue.cp.syslog import ERROR, WARNING
from retinue.pipes import Path, SocketTransport, wire

if TYPE_CHECKING:
    from retinue.cp.system import ControlProgram

# Seconds to wait when an operator cannot be let in for want of descriptors: the table is not emptied by asking again.
PAUSE: Final = 1.0


class Reception:
    """Lets operators in, and serves them."""

    def __init__(self, cp: "ControlProgram", nursery: trio.Nursery) -> None:
        self._cp = cp
        self._nursery = nursery
        self._console: Path | None = None

    async def serve_console(self, console: socket.socket) -> None:
        """The path of whoever started the system; until it is detached, its end is the end of the system."""
        path = self._console = Path(
            SocketTransport(console), name="console", peer="the starter", largest=wire.MAX_PACKET
        )
        await self._serve(path, "the console")
        if self._console is path:
            self._cp.stop("console-lost", "the console is gone")

    def detach(self, path: Path) -> None:
        """The system goes on without its console."""
        if path is self._console:
            self._console = None

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

    def star(self, allowed: frozenset[str]) -> Any:
        """What serves a machine's path to a star service, with the verbs that it may use there."""

        async def serve(machine: str, path: Path) -> None:
            await OperatorPath(self._cp, path, allowed, machine).serve()

        return serve
