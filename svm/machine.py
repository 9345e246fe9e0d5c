"""The machine as its program sees it."""

import contextlib
import gc
import logging
import pathlib
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import trio

from retinue.pipes import (
    LimitExceeded,
    Message,
    Path,
    PathError,
    PathSevered,
    Rejected,
    SocketTransport,
    Transport,
    tracing,
    wire,
)
from retinue.svm.drain import SETTLE, Drain
from retinue.svm.edge import Edge
from retinue.svm.errors import ConnectRefused, EdgeNotDeclared, NoSuchDisk, NoSuchSecret
from retinue.svm.fan import Fan
from retinue.svm.host_socket import host_datagrams, host_stream
from retinue.svm.last import last_messages
from retinue.svm.paging import give_back
from retinue.svm.segment import Segment, map_segment, size_in_bytes

C = TypeVar("C")

Handler = Callable[[Message], Awaitable[Any]]

# Paths that were accepted and not yet taken by the program's listen(); the next offer waits.
BACKLOG: Final = 128
# How long an offered path waits for a program that does not listen yet, in seconds.
LISTEN_PATIENCE: Final = 5.0

_log = logging.getLogger("retinue.svm")


class Machine(Generic[C]):
    """What a program has of the world: its name, its configuration, its disks, secrets and edges. There is no more.

    ``name`` is the machine's name in the topology, ``config`` the program's own ``Config`` (None for a program without
    one), ``edges`` the local names it may connect to.
    """

    def __init__(
        self,
        *,
        name: str,
        config: C,
        edges: Mapping[str, Edge],
        disks: dict[str, str],
        control: Path,
        nursery: trio.Nursery,
        secrets: Mapping[str, bytes] | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.edges = tuple(edges)
        self._uses = dict(edges)
        self._serves: dict[str, Edge] = {}
        self._disks = disks
        self._secrets = dict(secrets or {})
        self._segments: dict[str, Segment] = {}
        self._control = control
        self._nursery = nursery
        self._stopping = trio.Event()
        self._drain = Drain(nursery)
        self._reloading = trio.Lock()
        self._on_reload: Callable[[C], Awaitable[None]] | None = None
        self._on_shrink: Callable[[int], None] | None = None
        self._ready = False
        self._sockets: weakref.WeakKeyDictionary[Path, socket.socket] = weakref.WeakKeyDictionary()
        self._abandoned: str | None = None
        self._most = wire.MAX_LIMIT  # messages that a caller may have outstanding, whatever its edge says
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

    @property
    def draining(self) -> trio.Event:
        """Set when a successor takes this machine's place: no more messages come, and those that have are answered.

        The paths that this machine serves go to the successor one by one. Shortly after that ``stopping`` is set.
        Nothing need be done; whoever keeps a call waiting on purpose may answer it.
        """
        return self._drain.begun

    async def drained(self) -> None:
        """Until every path that this machine serves is with its successor, but for byte streams.

        At once when it is not :attr:`draining`. A program that has its own loop for messages waits for this between
        the end of :meth:`listen` and its return.
        """
        await self._drain.wait_released()

    def on_reload(self, handler: Callable[[C], Awaitable[None]]) -> None:
        """Take other configurations while running: ``await handler(config)`` puts one into effect.

        It raises :exc:`~retinue.svm.errors.ConfigError` for one that it cannot take; then the old one must still be in
        effect, and the machine is replaced. When it returns, ``vm.config`` is the new one.
        """
        self._on_reload = handler

    def on_shrink(self, handler: Callable[[int], None]) -> None:
        """Give storage back when all machines together need more real storage than there is.

        ``handler(wanted)`` drops what can be had again, such as caches: ``wanted`` bytes would be enough. It is called
        in the machine's loop and must not take long. Nobody need have one: a machine that gives nothing back is asked
        all the same, and one of low ``priority`` may be ended then.
        """
        self._on_shrink = handler

    def disk(self, name: str) -> pathlib.Path:
        """The folder of one of the machine's disks or links. :exc:`NoSuchDisk` for any other name."""
        try:
            return pathlib.Path(self._disks[name])
        except KeyError:
            raise NoSuchDisk(self.name, name, tuple(self._disks)) from None

    def secret(self, name: str) -> str:
        """One of the machine's secrets as a text; :exc:`NoSuchSecret` for any other name.

        UnicodeDecodeError for one that is not UTF-8, which :meth:`secret_bytes` tells.
        """
        return self.secret_bytes(name).decode()

    def secret_bytes(self, name: str) -> bytes:
        """One of the machine's secrets as it is; :exc:`NoSuchSecret` for any other name."""
        try:
            return self._secrets[name]
        except KeyError:
            raise NoSuchSecret(self.name, name, tuple(self._secrets)) from None

    async def segment(self, name: str, size: int | str, *, keep: bool = False) -> Segment:
        """Writable memory of ``size`` bytes (or ``"512M"``) that lies in a file and need not be resident.

        The same one for the same name. With ``keep`` what is in it is there again when the machine is started again.
        AccessDenied over the machine's ``segments``; Rejected with the reason, such as ``disk-full`` or ``wrong-size``.
        """
        bytes_ = size_in_bytes(size)
        found = self._segments.get(name)
        if found is None or found.closed or (len(found), found.keep) != (bytes_, keep):
            reply = await self._control.call_reply(["segment", {"name": name, "size": bytes_, "keep": keep}])
            (descriptor,) = reply.descriptors
            found = self._segments.get(name)
            if found is not None and not found.closed:  # asked for twice at once
                socket.close(descriptor)
                return found
            found = self._segments[name] = map_segment(descriptor, name, bytes_, keep=keep)
        return found

    async def host_stream(self, address: str) -> trio.SocketStream:
        """A connection to a UNIX socket of the host, by its path, or as ``@name`` if it is abstract.

        For the machine with the network, and those addresses that its ``host_sockets`` names: else AccessDenied.
        :exc:`~retinue.svm.OutsideFailed` when the host does not connect it, Rejected ``exhausted`` or ``stopping``.
        """
        return await host_stream(self._control, address)

    async def host_datagrams(self, address: str) -> Path:
        """A path that leads to a UNIX socket of the host that takes datagrams: each message of bytes is one.

        They wait while there is no room there. ``await path.call(None)`` returns when it has all that was sent before.
        The path is severed ``unreachable`` when nobody reads the socket any more. Raises as :meth:`host_stream`.
        """
        return await host_datagrams(self._control, self._nursery, address)

    async def ready(self) -> None:
        """Tell the control program that this machine can be used; machines that use it start then. Once is enough."""
        if not self._ready:
            self._ready = True
            with tracing(None):
                await self._control.call(["ready", {}])

    async def connect(self, edge: str, *, wait: bool = True) -> Path:
        """A new path along an edge, accepted by the machine at its other end.

        Waits while that machine is starting or being restarted, or with ``wait=False`` raises ConnectRefused
        ``not-ready``. Raises :exc:`EdgeNotDeclared` (an AccessDenied) when the topology has no such edge,
        :exc:`ConnectRefused` when no path can come of it.
        """
        return await self.connect_instance(edge, None, wait=wait)

    def fan(self, edge: str) -> Fan:
        """One path to each machine behind an edge, for the length of ``async with vm.fan(edge) as fan``.

        Its verbs are those of a path; each message goes to the machine that has least to do. :exc:`EdgeNotDeclared`.
        """
        return Fan(self, self._edge(edge))

    def _edge(self, name: str) -> Edge:
        try:
            return self._uses[name]
        except KeyError:
            raise EdgeNotDeclared(self.name, name, self.edges) from None

    async def connect_instance(self, edge: str, instance: int | None, *, wait: bool = True) -> Path:
        """:meth:`connect` to the machine of that number behind the edge; None: whichever has the fewest paths."""
        used = self._edge(edge)
        which = {} if instance is None else {"instance": instance}
        try:
            with tracing(None):
                reply = await self._control.call_reply(["connect", {"edge": edge, "wait": wait, **which}])
        except Rejected as exc:
            if exc.code == "denied":
                raise
            raise ConnectRefused(edge, exc.code, exc.text) from None
        (descriptor,) = reply.descriptors
        path = await self._open(descriptor, reply.body["path"], used, name=edge, limit=used.limit)
        with contextlib.suppress(PathError):  # turned away at once: the first verb tells why
            await path.wait_open()  # its other end has greeted before we came, so that stream() may follow
        return path

    async def _open(self, descriptor: int, ident: int, edge: Edge, *, name: str, limit: int, peer: str = "") -> Path:
        """A path over a descriptor. ``ident`` is its number, by which it can be bound again; 0 if it cannot."""

        async def rebind(path: Path) -> Transport:
            return await self._rebind(path, ident)

        def dropped(_: Path) -> None:
            with tracing(None):  # its task goes on to tell of others
                edge.drop(self._nursery)

        sock = socket.socket(fileno=descriptor)
        path = Path(
            SocketTransport(sock),
            name=name,
            peer=peer,
            limit=limit,
            overflow=edge.overflow,
            rebind=rebind if ident else None,
            on_drop=dropped,
        )
        self._sockets[path] = sock
        with tracing(None):  # the path is there for others, too
            await self._nursery.start(edge.run, path, self._nursery)
        return path

    async def _rebind(self, path: Path, ident: int) -> Transport:
        """The descriptor of a path has ended without a word: ask for another one."""
        if self._abandoned is not None:
            raise PathSevered("lost", self._abandoned, path.name)
        while True:
            wanted = path.wanted
            about = {"path": ident, "stream": path.streams, "wanted": wanted}
            try:
                reply = await self._control.call_reply(["rebind", about])
                break
            except Rejected as exc:
                if exc.code != "asleep" or wanted:
                    raise PathSevered(exc.code, exc.text, path.name) from None
            except PathError as exc:
                raise PathSevered("lost", "the control program is gone", path.name) from exc
            # The other machine sleeps, and is woken by whoever has something to say to it.
            await path.wait_wanted()
        (descriptor,) = reply.descriptors
        sock = self._sockets[path] = socket.socket(fileno=descriptor)
        return SocketTransport(sock)

    def listen(self, limit: int | None = None) -> AsyncIterator[Path]:
        """The paths that other machines open to this one, each already accepted; ends when the machine is stopping.

        ``path.peer`` is the name of the machine at the other end, stamped by the control program. To turn a caller
        away, sever the path with a reason. ``limit`` is how many messages a caller may have outstanding; its edge may
        say less. :exc:`~retinue.pipes.LimitExceeded` when it is not from 1 to 65535.
        """
        if limit is not None:
            if not 0 < limit <= wire.MAX_LIMIT:
                raise LimitExceeded("limit of outstanding messages", limit, wire.MAX_LIMIT)
            self._most = limit
        self.heeds_stopping = True
        self._listening.set()
        return self._accepted

    async def serve(self, handler: Handler, limit: int | None = None) -> None:
        """Accept every path and run ``handler(message)`` for each message; what it returns is the reply.

        ``limit`` is how many messages each path may have outstanding, as for :meth:`listen`.

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

        async with trio.open_nursery() as nursery:
            incoming = self.listen(limit)
            await self.ready()
            async for path in incoming:
                nursery.start_soon(serve_path, path)
            await self.drained()
            while busy:
                idle = trio.Event()
                await idle.wait()
            nursery.cancel_scope.cancel()

    # -- what the runtime does with it --------------------------------------------------------------------------------

    async def offer(self, peer: str, limit: int, descriptor: int, *, ident: int = 0, edge: str = "") -> None:
        """Take a path that another machine asked for, along an ``edge`` such as ``WEB.app``; ``ident`` is its number.

        Rejected ``not-listening`` or ``stopping`` when it cannot be taken.
        """
        try:
            with trio.move_on_after(LISTEN_PATIENCE) as scope:
                await self._listening.wait()
            if scope.cancelled_caught:
                raise Rejected(
                    "not-listening", f"{self.name} accepts no paths: its program never called listen() or serve()"
                )
            self._check_open()
            descriptor, owned = -1, descriptor
            served = self._serves.setdefault(edge or peer, Edge(edge or peer, limit))
            limit = min(limit, self._most)
            path = await self._open(owned, ident, served, name=f"from {peer}", peer=peer, limit=limit)
        finally:
            if descriptor >= 0:
                socket.close(descriptor)
        try:
            self._check_open()  # it was given to the drain before it was there
            await self._offered.send(path)
        except (trio.ClosedResourceError, Rejected):
            if self.draining.is_set():
                path.let_go()
            else:
                path.sever("stopping", f"{self.name} is stopping")
            raise Rejected("stopping", f"{self.name} is stopping") from None
        except trio.Cancelled:
            path.sever()
            raise

    def _check_open(self) -> None:
        if self._stopping.is_set() or self.draining.is_set():
            raise Rejected("stopping", f"{self.name} is stopping")

    def abandon(self, text: str) -> None:
        """The program failed: its paths end as they would if the process had been killed, not as if it had finished.

        Without a word, that is: who is at their other ends learns of the control program what comes of them.
        """
        self._abandoned = text
        for sock in list(self._sockets.values()):
            with contextlib.suppress(OSError):  # it has ended already
                sock.shutdown(socket.SHUT_RDWR)

    def meters(self) -> dict[str, dict[str, Any]]:
        """What passed along every edge in this process: of its own by local name, of others' by ``WEB.app``."""
        return {
            "uses": {edge.name: edge.meter().as_dict() for edge in self._uses.values()},
            "serves": {edge.name: edge.meter().as_dict() for edge in self._serves.values()},
        }

    def engagements(self) -> dict[str, int]:
        """How many paths have messages of either end that have not ended, and how many are byte streams."""
        paths = [path for edge in (*self._uses.values(), *self._serves.values()) for path in edge.paths]
        return {
            "engaged": sum(path.engaged for path in paths if not path.streams),
            "streams": sum(path.streams for path in paths),
        }

    def last(self, name: str | None) -> dict[str, dict[str, Any]]:
        """The newest messages of this end that nobody has answered, along every edge or that of one name."""
        return {
            kind: {edge.name: last_messages(edge) for edge in edges.values() if name in (None, edge.name)}
            for kind, edges in (("uses", self._uses), ("serves", self._serves))
        }

    def shrink(self, wanted: int) -> bool:
        """Real storage does not suffice. Returns whether the program does anything about it."""
        if self._on_shrink is None:
            return False
        try:
            self._on_shrink(wanted)
        except Exception:
            _log.exception("the program could not give storage back")
        gc.collect()  # caches are often circles
        give_back()
        return True

    def resize(self, name: str, instances: int) -> None:
        """There are so many machines behind an edge from now on. Rejected ``no-such-edge``."""
        if name not in self._uses:
            raise Rejected("no-such-edge", f"{self.name} has no edge {name!r}")
        self._uses[name].resize(instances)

    def unmap(self, name: str, offset: int, length: int) -> None:
        """A part of a segment is to go out of real storage. No error when there is no such segment."""
        if (segment := self._segments.get(name)) is not None:
            segment.unmap(offset, length)

    @property
    def reloadable(self) -> bool:
        """Whether the program takes another configuration while it runs."""
        return self._on_reload is not None

    async def reload(self, config: C) -> None:
        """Have the program put another configuration into effect; raises what its handler raises."""
        assert self._on_reload is not None
        async with self._reloading:
            await self._on_reload(config)
            self.config = config

    def keep(self, path: Path) -> None:
        """The path is going to be a byte stream: a drain leaves it to the program."""
        self._drain.keep(path)

    async def drain(self) -> None:
        """Leave the served paths to a successor; returns when the program is asked to stop.

        That is when no message is left to answer, or after SETTLE seconds: some wait for the stop to be answered.
        """
        if not self.draining.is_set():
            self._drain.begin(path for edge in self._serves.values() for path in edge.paths)
        with trio.move_on_after(SETTLE):
            await self.drained()
        self.stop()

    def leave(self) -> None:
        """The program has returned: in a drain the paths that are still served end without a word."""
        if self.draining.is_set():
            for edge in self._serves.values():
                for path in edge.paths:
                    path.let_go()

    def stop(self) -> None:
        """Ask the program to stop."""
        self._stopping.set()
        self._offered.close()
