"""Paths on one side of a machine's own process, connections of its native program on the other."""

import contextlib
import math
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import trio

from retinue.pipes import Path, PathError
from retinue.pipes.message import close_all
from retinue.svm import unix
from retinue.svm.child import Child
from retinue.svm.command import Command
from retinue.svm.machine import Machine
from retinue.svm.relay import Relay
from retinue.svm.unix import log

# Connections that the program may have open at each of its "connect" sockets; more wait in its backlog. Each costs two
# descriptors of the 4,096 that a machine has.
MAX_CONNECTIONS: Final = 1024
# How long a connection waits for the machine at the other end of its edge, in seconds; a client of TCPIP does, too.
PATIENCE: Final = 5.0
# How long a connection that the program has closed waits to learn whether the program has died of it: a process closes
# its descriptors a moment before its parent is told of its death.
DEATH_TIME: Final = 0.005


class Connector:
    """Makes a connection of each path, and a path of each connection.

    What has to happen until then runs in the nursery ``opening``, the relays themselves in ``relaying``.
    """

    def __init__(
        self, vm: Machine[Any], command: Command, child: Child, opening: trio.Nursery, relaying: trio.Nursery
    ) -> None:
        self._vm = vm
        self._command = command
        self._child = child
        self._opening = opening
        self._relaying = relaying

    async def take_paths(self, incoming: AsyncIterator[Path]) -> None:
        """Make a connection to the program's socket for each path that another machine opens."""
        name = self._command.listening
        async for path in incoming:
            if name is None:
                path.sever("refused", f'{self._vm.name} takes no paths: it has no  sockets.NAME = "listen"')
            else:
                self._opening.start_soon(self._take_path, path, name)

    async def _take_path(self, path: Path, name: str) -> None:
        try:
            await until_stream(path, self._vm.keep)
            connection = await unix.dial(self._command.socket(name))
        except PathError as exc:
            log.debug("a path from %s ended before it began: %s", path.peer, exc)
            return
        except OSError as exc:
            log.warning("nobody takes connections at sockets.%s: %s; %s is refused", name, exc.strerror, path.peer)
            path.sever("refused", f"the program of {self._vm.name} does not accept connections")
            return
        try:
            self._relay(connection, path)
        except PathError as exc:
            log.debug("a path from %s ended before it began: %s", path.peer, exc)
            connection.socket.close()

    async def take_connections(self, name: str, listener: trio.socket.SocketType) -> None:
        """Make a path along the edge ``name`` for each connection of the program to its socket."""
        room = trio.Semaphore(MAX_CONNECTIONS)
        with listener:
            while True:
                await room.acquire()
                connection = await unix.accept(listener)
                self._opening.start_soon(self._connect, name, connection, room.release)

    async def carry(self, edge: str, connection: trio.SocketStream) -> None:
        """Make a path along an edge for the connection that the program has inherited."""
        try:
            used = edge not in self._command.lazy or await unix.wait_used(connection)
        except BaseException:
            connection.socket.close()
            raise
        if used:
            await self._connect(edge, connection, lambda: None, patience=math.inf)
        else:
            connection.socket.close()

    async def _connect(
        self, edge: str, connection: trio.SocketStream, ended: Callable[[], None], *, patience: float = PATIENCE
    ) -> None:
        text = f"no answer within {patience:g} s"
        path: Path | None = None
        try:
            with trio.move_on_after(patience):
                path = await self._vm.connect(edge)
                self._relay(connection, path, ended)
                return
        except PathError as exc:
            text = str(exc)
        except BaseException:
            connection.socket.close()
            raise
        log.warning("a connection of the program is closed, the edge %s is not available: %s", edge, text)
        connection.socket.close()
        if path is not None:
            path.sever("lost", "not opened in time")
        ended()

    def _relay(self, connection: trio.SocketStream, path: Path, ended: Callable[[], None] = lambda: None) -> None:
        """Relay from now on; ``ended`` is called at the end. PathError when the path has ended before."""

        async def hung_up() -> bool:
            if not unix.hung_up(connection):
                return False
            with trio.move_on_after(DEATH_TIME):
                await self._child.exited.wait()
            if self._child.status:
                raise trio.BrokenResourceError("the program died")
            return True

        async def run() -> None:
            try:
                await relay.run()
            finally:
                ended()

        relay = Relay(connection, path, what="connection of the program", hung_up=hung_up)
        self._relaying.start_soon(run)


async def until_stream(path: Path, begun: Callable[[Path], None]) -> None:
    """Take messages until the other end makes a byte stream of the path. PathError when it ends before.

    ``begun`` is called with the path when one has come: who sends it is about to make a byte stream of the path.
    Messages say nothing to a native program: one-way ones (the ``tcp.open`` of TCPIP) are received, calls refused.
    """

    async def take_messages() -> None:
        async for message in path:
            begun(path)
            close_all(message.descriptors)
            if message.wants_reply:
                path.reject(message, "unknown-message", "this machine takes a byte stream: call path.stream()")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_messages)
        with contextlib.suppress(PathError):  # raised below, and not out of a nursery
            await path.wait_stream()
        nursery.cancel_scope.cancel()
    path.check()
