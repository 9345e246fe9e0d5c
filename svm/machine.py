"""The machine as its program sees it."""

import logging
import pathlib
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

import trio

from retinue.pipes import Message, Path, PathSevered, Rejected, SocketTransport
from retinue.svm.errors import ConnectRefused, EdgeNotDeclared, NoSuchDisk

C = TypeVar("C")

Handler = Callable[[Message], Awaitable[Any]]

# Paths that were accepted and not yet taken by the program's listen(); the next offer waits.
BACKLOG: Final = 128
# How long an offered path waits for a program that does not listen yet, in seconds.
LISTEN_PATIENCE: Final = 5.0

_log = logging.getLogger("retinue.svm")


class Machine(Generic[C]):
    """What a program has of the world: its name, its configuration, its disks and its edges. There is nothing else.

    ``name`` is the machine's name in the topology, ``config`` the program's own ``Config`` (None for a program without
    one), ``edges`` the local names it may connect to.
    """

    def __init__(
        self,
        *,
        name: str,
        config: C,
        edges: dict[str, int],
        disks: dict[str, str],
        control: Path,
        nursery: trio.Nursery,
    ) -> None:
        self.name = name
        self.config = config
        self.edges = tuple(edges)
        self._limits = edges
        self._disks = disks
        self._control = control
        self._nursery = nursery
        self._stopping = trio.Event()
        self._ready = False
        self._paths: weakref.WeakSet[Path] = weakref.WeakSet()
        self._listening = trio.Event()
        self._offered, self._accepted = trio.open_memory_channel[Path](BACKLOG)
        self.heeds_stopping = False  # whether the program looks at it; if not, it is cancelled at a stop

    def __repr__(self) -> str:
        return f"<Machine {self.name}>"

    @property
    def stopping(self) -> trio.Event:
        """Set when the control program asks the machine to stop: finish what is begun and return from ``main``.

        A program that uses neither this nor ``listen``/``serve`` is cancelled instead.
        """
        self.heeds_stopping = True
        return self._stopping

    def disk(self, name: str) -> pathlib.Path:
        """The folder of one of the machine's own disks, which persist. :exc:`NoSuchDisk` for any other name."""
        try:
            return pathlib.Path(self._disks[name])
        except KeyError:
            raise NoSuchDisk(self.name, name, tuple(self._disks)) from None

    async def ready(self) -> None:
        """Tell the control program that this machine can be used; machines that use it start then. Once is enough."""
        if not self._ready:
            self._ready = True
            await self._control.call(["ready", {}])

    async def connect(self, edge: str, *, wait: bool = True) -> Path:
        """A new path along an edge, accepted by the machine at its other end.

        Waits while that machine is starting or being restarted, or with ``wait=False`` raises ConnectRefused
        ``not-ready``. Raises :exc:`EdgeNotDeclared` (an AccessDenied) when the topology has no such edge,
        :exc:`ConnectRefused` when no path can come of it.
        """
        if edge not in self._limits:
            raise EdgeNotDeclared(self.name, edge, self.edges)
        try:
            reply = await self._control.call_reply(["connect", {"edge": edge, "wait": wait}])
        except Rejected as exc:
            if exc.code == "denied":
                raise
            raise ConnectRefused(edge, exc.code, exc.text) from None
        (descriptor,) = reply.descriptors
        return await self._open(descriptor, name=edge, peer="", limit=self._limits[edge])

    async def _open(self, descriptor: int, *, name: str, peer: str, limit: int) -> Path:
        path = Path(SocketTransport(socket.socket(fileno=descriptor)), name=name, peer=peer, limit=limit)
        await self._nursery.start(path.run)
        self._paths.add(path)
        return path

    def listen(self) -> AsyncIterator[Path]:
        """The paths that other machines open to this one, each already accepted; ends when the machine is stopping.

        ``path.peer`` is the name of the machine at the other end, stamped by the control program. To turn a caller
        away, sever the path with a reason.
        """
        self.heeds_stopping = True
        self._listening.set()
        return self._accepted

    async def serve(self, handler: Handler) -> None:
        """Accept every path and run ``handler(message)`` for each message; what it returns is the reply.

        Tells :meth:`ready` by itself, runs until the machine is stopping and then finishes what is being handled.
        Raise :exc:`~retinue.pipes.Rejected` to refuse a message. Any other exception in a handler is logged with its
        traceback and refuses that message with the code ``failed``; the machine goes on.
        """
        busy = 0
        idle = trio.Event()

        async def handle(message: Message) -> Any:
            nonlocal busy
            busy += 1
            try:
                return await handler(message)
            finally:
                busy -= 1
                if busy == 0:
                    idle.set()

        def failed(message: Message, exc: Exception) -> None:
            _log.error("the handler failed on a message from %s", message.path.peer or "*CP", exc_info=exc)

        async def serve_path(path: Path) -> None:
            await path.serve(handle, failed=failed)
            report_violation(path)

        async with trio.open_nursery() as nursery:
            incoming = self.listen()
            await self.ready()
            async for path in incoming:
                nursery.start_soon(serve_path, path)
            while busy:
                idle = trio.Event()
                await idle.wait()
            nursery.cancel_scope.cancel()

    # -- what the runtime does with it --------------------------------------------------------------------------------

    async def offer(self, peer: str, limit: int, descriptor: int) -> None:
        """Take a path that another machine asked for. Rejected ``not-listening`` or ``stopping`` when it cannot be."""
        try:
            with trio.move_on_after(LISTEN_PATIENCE) as scope:
                await self._listening.wait()
            if scope.cancelled_caught:
                raise Rejected(
                    "not-listening", f"{self.name} accepts no paths: its program never called listen() or serve()"
                )
            if self._stopping.is_set():
                raise Rejected("stopping", f"{self.name} is stopping")
            descriptor, owned = -1, descriptor
            path = await self._open(owned, name=f"from {peer}", peer=peer, limit=limit)
        finally:
            if descriptor >= 0:
                socket.close(descriptor)
        try:
            await self._offered.send(path)
        except trio.ClosedResourceError:
            path.sever("stopping", f"{self.name} is stopping")
            raise Rejected("stopping", f"{self.name} is stopping") from None
        except trio.Cancelled:
            path.sever()
            raise

    def abandon(self, text: str) -> None:
        """The program failed: its paths end as they would if the process had been killed, not as if it had finished."""
        for path in list(self._paths):
            path.sever("lost", text)

    def stop(self) -> None:
        """Ask the program to stop."""
        self._stopping.set()
        self._offered.close()


def report_violation(path: Path) -> None:
    """Leave a record when the path ended because the peer broke the protocol."""
    why = path.severed
    if isinstance(why, PathSevered) and why.code == "violation":
        _log.warning("the path %s was severed: %s broke the protocol: %s", path.name, path.peer or "its peer", why.text)
