"""Where paths are made: authorised once, at connect, by the topology's edges.

For each path the control program makes a socket pair, offers one end to the target and, when that accepts, hands the
other to the originator. It stays off the data path and keeps a duplicate of the target's end, so that it can cut the
path at any time: at once when the target dies, whose end would otherwise seem alive as long as the duplicate is.
"""

import contextlib
import os
import select
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

import attrs
import trio

from retinue.cp.directory import Edge
from retinue.pipes import Path, PathError, Rejected, SocketTransport, open_path, socket_pair, wire

# Paths one machine may have opened: each costs the control program one descriptor.
MAX_PATHS: Final = 4096


class Target(Protocol):
    """What the switchboard needs of a machine."""

    @property
    def name(self) -> str: ...

    async def wait_ready(self, *, wait: bool) -> None:
        """Until it is READY. Rejected ``not-ready`` (without waiting) or ``broken`` when it will not be."""

    async def offer(self, peer: str, limit: int, descriptor: int) -> None:
        """Hand it an end of a new path; returns when it has accepted. Rejected as it says; PathError when it died."""


# Serves one path to a service of the control program itself (``*CP``, ``*LOG``) for the machine named.
StarService = Callable[[str, Path], Awaitable[None]]


@attrs.define(eq=False)
class _Held:
    origin: str
    target: str
    end: socket.socket


class Switchboard:
    """Connects, and cuts."""

    def __init__(self, targets: dict[str, Target], stars: dict[str, StarService], nursery: trio.Nursery) -> None:
        self._targets = targets
        self._stars = stars
        self._nursery = nursery
        self._held: dict[int, _Held] = {}
        self._opened: Counter[str] = Counter()
        self._epoll = select.epoll()

    # -- connecting --------------------------------------------------------------------------------------------------

    async def connect(self, origin: str, edge: Edge, *, wait: bool) -> int:
        """Make a path along an edge of the machine ``origin``; returns the descriptor of its end, to be handed over.

        Raises Rejected with the target's reason or ``not-ready``, ``broken``, ``exhausted``.
        """
        if self._opened[origin] >= MAX_PATHS:
            raise Rejected("exhausted", f"{origin} has {MAX_PATHS} paths open, which is the most a machine may have")
        if edge.to in self._stars:
            return self._connect_star(origin, edge)
        return await self._connect_machine(origin, self._targets[edge.to], edge.limit, wait=wait)

    def _connect_star(self, origin: str, edge: Edge) -> int:
        try:
            ours, theirs = socket_pair()
        except OSError as exc:
            raise _exhausted(exc) from exc
        # Requests are short; what a machine sends must not cost the control program more than that.
        path = Path(
            SocketTransport(ours),
            name=f"{origin} to {edge.to}",
            peer=origin,
            limit=edge.limit,
            largest=wire.MAX_PACKET,
        )

        async def serve() -> None:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(path.run)
                    await self._stars[edge.to](origin, path)
                    nursery.cancel_scope.cancel()
            finally:
                self._opened[origin] -= 1

        self._opened[origin] += 1
        self._nursery.start_soon(serve)
        return theirs.detach()

    async def _connect_machine(self, origin: str, target: Target, limit: int, *, wait: bool) -> int:
        while True:
            await target.wait_ready(wait=wait)
            try:
                return await self._offer(origin, target, limit)
            except Rejected:
                raise
            except PathError:
                if not wait:
                    raise Rejected("not-ready", f"{target.name} died while it was asked") from None
                # Wait for its successor. Neither of the two above is bound to let other tasks run meanwhile.
                await trio.lowlevel.checkpoint()
            except OSError as exc:
                raise _exhausted(exc) from exc

    async def _offer(self, origin: str, target: Target, limit: int) -> int:
        origin_end, target_end = socket_pair()
        with contextlib.ExitStack() as undo:
            undo.callback(origin_end.close)
            undo.callback(target_end.close)
            # Held before it is offered: a target that dies in between must not leave a path to nobody.
            held = self._hold(origin, target.name, target_end)
            undo.callback(self._release, held)
            await target.offer(origin, limit, target_end.fileno())
            undo.pop_all()
        return origin_end.detach()

    @asynccontextmanager
    async def open_to(self, origin: str, target: Target) -> AsyncIterator[Path]:
        """A path of the control program's own (``origin`` is a star name) to a machine, for the length of the block."""
        descriptor = await self._connect_machine(origin, target, wire.DEFAULT_LIMIT, wait=True)
        async with open_path(
            SocketTransport(socket.socket(fileno=descriptor)), name=target.name, peer=target.name
        ) as path:
            yield path

    # -- cutting -----------------------------------------------------------------------------------------------------

    def _hold(self, origin: str, target: str, end: socket.socket) -> _Held:
        # Only the hang-up is wanted: the end is readable all the time while messages pass.
        self._epoll.register(end.fileno(), select.EPOLLRDHUP)
        held = self._held[end.fileno()] = _Held(origin, target, end)
        self._opened[origin] += 1
        return held

    def _release(self, held: _Held) -> None:
        number = held.end.fileno()
        if number < 0:
            return  # the other reason to let go came first
        del self._held[number]
        self._epoll.unregister(number)
        self._opened[held.origin] -= 1
        with contextlib.suppress(OSError):  # the other end was first
            held.end.shutdown(socket.SHUT_RDWR)
        held.end.close()

    def sever(self, machine: str) -> int:
        """Cut every path that the machine has or is the target of; returns how many."""
        theirs = [held for held in self._held.values() if machine in (held.origin, held.target)]
        for held in theirs:
            self._release(held)
        return len(theirs)

    @property
    def open_paths(self) -> int:
        """How many paths between machines are open."""
        return len(self._held)

    async def watch(self) -> None:
        """Let go of paths that have ended; runs until it is cancelled."""
        with self._epoll:
            try:
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    for number, _ in self._epoll.poll(0, 256):
                        self._release(self._held[number])
                    await trio.lowlevel.checkpoint()
            finally:
                for held in list(self._held.values()):
                    self._release(held)


def _exhausted(error: OSError) -> Rejected:
    return Rejected("exhausted", f"the control program cannot make a path: {error.strerror}")


def raise_descriptor_limit() -> int:
    """Let this process hold as many descriptors as it may; returns the number."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return os.sysconf("SC_OPEN_MAX") if hard == resource.RLIM_INFINITY else hard
