"""A switchboard for tests, between machines that are played by the test and do as they are told."""

import json
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.cp.circuit import Circuit
from retinue.cp.directory import Edge
from retinue.cp.directory.model import OnRestart
from retinue.cp.relay import Listener
from retinue.cp.switchboard import Switchboard
from retinue.cp.targets import Target
from retinue.pipes import Path, Rejected, SocketTransport
from retinue.pipes.message import close_all


class Machine:
    """A Target that does as it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.base = name.partition("@")[0] if "@" in name else ""
        self.generation = 1
        self.ready = trio.Event()
        self.ready.set()
        self.ends: list[socket.socket] = []
        self.offered: list[tuple[str, int]] = []
        self.idents: list[int] = []
        self.broken: str | None = None
        self.rests = False
        self.wakes = False  # as the real one when it is waited for
        self.waited: list[bool] = []
        self.during: Callable[[], Awaitable[None]] | None = None

    async def wait_ready(self, *, wait: bool) -> None:
        self.waited.append(wait)
        if wait and self.wakes:
            self.rests = False
        if self.broken is not None:
            raise Rejected("broken", self.broken)
        if not wait and not self.ready.is_set():
            raise Rejected("not-ready", f"{self.name} is STARTING")
        if not self.ready.is_set():  # as the real one: no checkpoint when there is nothing to wait for
            await self.ready.wait()
        if self.broken is not None:
            raise Rejected("broken", self.broken)

    async def offer(self, circuit: Circuit, descriptor: int) -> None:
        self.offered.append((circuit.origin, circuit.edge.limit))
        self.idents.append(circuit.ident)
        end = socket.socket(fileno=os.dup(descriptor))
        try:
            if self.during is not None:
                await self.during()
        except BaseException:
            end.close()
            raise
        self.ends.append(end)

    def let_go(self, ident: int) -> None:
        """End a path without a word, as a process does that was told to."""
        number = self.idents.index(ident)
        self.idents.pop(number)
        SocketTransport(self.ends.pop(number)).close()

    def die(self) -> None:
        for end in self.ends:
            end.close()
        self.ends.clear()
        self.idents.clear()


class Kept(NamedTuple):
    """What a control program gets of what the one before it has kept."""

    note: Any
    descriptors: Sequence[int]


class Keeping:
    """A Keeper, as the nucleus is one: it holds duplicates, and notes as JSON."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[str, list[int]]] = {}
        self.said: list[str] = []  # what it was told, of each the verb

    def keep(self, key: str, note: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        self.said.append("keep")
        before = self.held.get(key, ("", []))[1]
        self.held[key] = json.dumps(note), [os.dup(each) for each in descriptors]
        close_all(before)

    def drop(self, key: str) -> None:
        self.said.append("drop")
        close_all(self.held.pop(key)[1])

    def hand_out(self) -> dict[str, Kept]:
        return {
            key: Kept(json.loads(note), [os.dup(each) for each in descriptors])
            for key, (note, descriptors) in self.held.items()
        }

    def close(self) -> None:
        for _, held in self.held.values():
            close_all(held)
        self.held.clear()


class Bench:
    """A control program with a switchboard between A, B, other machines and the star services."""

    def __init__(self, nursery: trio.Nursery, *others: str, keeping: Keeping | None = None) -> None:
        self.nursery = nursery
        self.machines = {name: Machine(name) for name in ("A", "B", *others)}
        self.a, self.b = self.machines["A"], self.machines["B"]
        self.targets: dict[str, Target] = dict(self.machines)
        self.keeping = keeping
        self.served: list[tuple[str, Path]] = []
        self.dead: dict[tuple[str, int], str] = {}  # processes, for a control program that begins
        self._scope = trio.CancelScope()
        self.gone = trio.Event()  # set when the present one has ended
        self.there = trio.Event()  # set while there is one

    async def begin(self) -> None:
        """A control program begins."""
        self.gone = trio.Event()
        await self.nursery.start(self._run)
        self.there.set()
        await trio.testing.wait_all_tasks_blocked()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as self.cp:
                self.board = Switchboard(self.targets, {"*CP": self.serve}, self.cp, self.keeping)
                if self.keeping is not None:
                    self.board.adopt(self.keeping.hand_out(), lambda name, number: self.dead.get((name, number)))
                self.cp.start_soon(self.board.watch)
                task_status.started()
        self.gone.set()

    async def end(self) -> None:
        """Nothing of the control program is left but what is kept, as when it was killed."""
        self.there = trio.Event()
        self.board.leave()
        self._scope.cancel()
        await self.gone.wait()

    async def replace(self) -> None:
        """The control program dies, and there is another one."""
        await self.end()
        await self.begin()

    async def serve(self, machine: str, path: Path) -> None:
        self.served.append((machine, path))
        await path.serve(self.answer)

    async def answer(self, message: Any) -> Any:
        return message.body

    async def connect(
        self,
        origin: str = "A",
        to: str = "B",
        *,
        wait: bool = True,
        on_restart: OnRestart = "keep",
        instance: int | None = None,
    ) -> socket.socket:
        edge = Edge(name="x", to=to, limit=7, lazy=False, on_restart=on_restart)
        made = await self.board.connect(origin, 1, edge, wait=wait, instance=instance)
        return socket.socket(fileno=made.descriptor)

    @asynccontextmanager
    async def both_return(self, ident: int, generation: int = 1) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
        """The ends of a path between A and this generation of B, after both have asked for it."""
        left, right = Return(self, "A", ident), Return(self, "B", ident, generation=generation)
        async with left as origin_end, right as target_end:
            yield origin_end, target_end

    def died(self, machine: Machine, text: str = "it died") -> int:
        """A process of the machine has ended, and the next one is about to begin."""
        generation, machine.generation = machine.generation, machine.generation + 1
        machine.die()
        return self.board.died(machine.name, generation, text)


def ended(end: socket.socket) -> bool:
    """Whether an end of a path sees the end of it."""
    poll = select.poll()
    poll.register(end, select.POLLRDHUP)
    return bool(poll.poll(0))


class Return:
    """A machine asks for its end of the newest path again."""

    def __init__(
        self,
        bench: Bench,
        machine: str,
        ident: int,
        *,
        generation: int = 1,
        stream: bool = False,
        wanted: bool = True,
    ) -> None:
        self._asked = bench.board.rebind(machine, generation, ident, stream=stream, wanted=wanted)
        self.end: socket.socket | None = None
        self.refusal: Rejected | None = None
        self.done = trio.Event()
        self._scope = trio.CancelScope()
        bench.cp.start_soon(self._run)

    async def _run(self) -> None:
        with self._scope:
            try:
                self.end = socket.socket(fileno=await self._asked)
            except Rejected as exc:
                self.refusal = exc
        self.done.set()

    async def outcome(self) -> socket.socket | None:
        """Its end; None when it got none while nobody else came."""
        with trio.move_on_after(0.05):
            await self.done.wait()
        self._scope.cancel()
        await self.done.wait()
        return self.end

    async def refused(self) -> tuple[str, str]:
        await self.done.wait()
        assert self.refusal is not None
        return self.refusal.code, self.refusal.text

    async def __aenter__(self) -> socket.socket:
        await self.done.wait()
        if self.refusal is not None:
            raise self.refusal
        assert self.end is not None
        return self.end

    async def __aexit__(self, *exc: object) -> None:
        assert self.end is not None
        self.end.close()


class Onlooker:
    """A Tapper that keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, bytes]] = []
        self.forgotten: list[int] = []

    def listener(self, path: int) -> Listener:
        def listen(direction: str, data: bytes, descriptors: Sequence[int]) -> None:
            self.seen.append((path, direction, data))

        return listen

    def forget(self, path: int) -> None:
        self.forgotten.append(path)


async def receive(end: socket.socket) -> bytes:
    await trio.lowlevel.wait_readable(end)
    return end.recv(100)


@asynccontextmanager
async def open_board(*others: str, keeping: Keeping | None = None, limit: float = 20) -> AsyncIterator[Bench]:
    """A switchboard between A, B and other machines, for so many seconds; afterwards no descriptor is left."""
    before = descriptors()
    with trio.fail_after(limit):
        async with trio.open_nursery() as nursery:
            made = Bench(nursery, *others, keeping=keeping)
            await made.begin()
            yield made
            for machine in made.machines.values():
                machine.die()
            nursery.cancel_scope.cancel()
    if keeping is not None:
        keeping.close()
    assert_none_left(before)
