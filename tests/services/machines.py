"""Machines in one process for the tests of services: real machine objects and real socket pairs.

Only the control program is missing: :class:`System` answers the machines' control paths.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from retinue.cp.directory import MachineEntry
from retinue.cp.host_sockets import HostSockets
from retinue.cp.offences import Offences
from retinue.cp.syslog import Syslog
from retinue.pipes import Message, Path, Rejected, memory_pair, socket_pair
from retinue.svm.edge import Edge
from retinue.svm.machine import Machine

Main = Callable[[Any], Awaitable[None]]


class Running:
    """A machine of the system: its task, and a duplicate of every descriptor under its paths (the CP keeps these)."""

    def __init__(self, machine: Machine[Any]) -> None:
        self.machine = machine
        self.scope = trio.CancelScope()
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.held: list[socket.socket] = []


@attrs.frozen
class Process:
    """What the control program knows of one."""

    name: str
    entry: MachineEntry
    generation: int = 1
    leaving: None = None


class System:
    """Machines in one process, connected by real socket pairs.

    With ``keeps`` a path whose target is killed, or drained, goes on with the next machine of that name. Each may be
    connected to the ``host_sockets``, as the control program does it.
    """

    def __init__(self, nursery: trio.Nursery, *, keeps: bool = False, host_sockets: tuple[str, ...] = ()) -> None:
        self.nursery = nursery
        self._machines: dict[str, Running] = {}
        self._all: list[Running] = []
        self._keeps = keeps
        self._circuits: dict[int, tuple[Running, str]] = {}
        self._changed = trio.lowlevel.ParkingLot()
        self.host_sockets = host_sockets
        syslog = Syslog()
        self._sockets = HostSockets(Offences(syslog, nursery), syslog, nursery)

    async def start(
        self, name: str, main: Main, config: Any = None, *, disks: dict[str, str] | None = None, **edges: str
    ) -> Running:
        """Run ``main`` as the machine ``name``; returns when it is ready. ``edges``: local name -> target."""
        ours, theirs = (Path(transport) for transport in memory_pair())
        await self.nursery.start(ours.run)
        await self.nursery.start(theirs.run)
        machine: Machine[Any] = Machine(
            name=name,
            config=config,
            edges={edge: Edge(edge, 64) for edge in edges},
            disks=disks or {},
            control=ours,
            nursery=self.nursery,
        )
        running = self._machines[name] = Running(machine)
        self._all.append(running)

        async def obey(message: Message) -> None:
            verb, arguments = message.body
            if verb == "ready":
                running.ready.set()
            elif verb == "socket":
                process = Process(name, MachineEntry(name, "program", name, host_sockets=self.host_sockets))
                descriptor = await self._sockets.connect(process, **arguments)
                try:
                    await message.reply(None, descriptors=(descriptor,))
                finally:
                    os.close(descriptor)
            elif verb == "rebind":
                await self._rebind(running, arguments, message)
            else:
                await self._connect(running, edges[arguments["edge"]], message)

        async def run() -> None:
            with running.scope:
                await main(machine)
            running.ended.set()

        self.nursery.start_soon(theirs.serve, obey)
        self.nursery.start_soon(run)
        await running.ready.wait()
        self._changed.unpark_all()
        return running

    async def _connect(self, caller: Running, target: str, message: Message) -> None:
        ident = 0
        if self._keeps:
            ident = len(self._circuits) + 1
            self._circuits[ident] = caller, target
        await self._join(caller, target, ident, message)

    async def _rebind(self, caller: Running, arguments: dict[str, Any], message: Message) -> None:
        origin, target = self._circuits[arguments["path"]]
        if caller is not origin or arguments["stream"]:
            raise Rejected("lost", "killed")
        await self._join(caller, target, arguments["path"], message)

    async def _join(self, caller: Running, target: str, ident: int, message: Message) -> None:
        while (called := self._machines.get(target)) is None or called.machine.draining.is_set():
            await self._changed.park()
        left, right = socket_pair()
        with left:
            for running in (caller, called):
                running.held.append(left.dup())
            await called.machine.offer(caller.machine.name, 64, right.detach(), ident=ident)
            await message.reply({"path": ident}, descriptors=(left.fileno(),))

    def kill(self, name: str) -> None:
        """What a SIGKILL does: the descriptors are gone without a word."""
        running = self._machines.pop(name)
        for each in running.held:
            with contextlib.suppress(OSError):  # that path had ended already
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        running.scope.cancel()

    def close(self) -> None:
        for running in self._all:
            for each in running.held:
                each.close()


class Far:
    """A machine that lets the test work with what TCPIP connects to it."""

    def __init__(self) -> None:
        self.came, self.paths = trio.open_memory_channel[Path](10)

    async def main(self, vm: Machine[Any]) -> None:
        incoming = vm.listen()
        await vm.ready()
        async for path in incoming:
            await self.came.send(path)

    async def accept(self) -> tuple[Any, Any]:
        """(stream, opening message) of the next connection."""
        path = await self.paths.receive()
        message = await path.receive()
        return path.stream(), message.body


async def everything(stream: Any) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


def reset(client: trio.SocketStream) -> None:
    """Close with RST, as a crashed client's kernel or an impatient one does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()
