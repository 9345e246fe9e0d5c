"""Calls over paths whose target dies, is replaced and sleeps, which are tapped, and whose control program dies.

Everything but the processes is real: they are tasks, on a virtual clock.
"""

import contextlib
import os
import random
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import pytest
import trio
import trio.testing
from tests.boards import Bench, Keeping, Onlooker, open_board

from retinue.cp.circuit import Circuit
from retinue.cp.directory import Edge
from retinue.cp.switchboard import Switchboard
from retinue.pipes import Path, PathError, PathSevered, Rejected, SocketTransport, Transport

T = TypeVar("T")

PATHS: Final = 4
CALLERS: Final = 5  # on each path
CALLS: Final = 25  # of each caller
# Seconds, on the virtual clock, between two things that happen.
PACE: Final = 0.03


class World:
    """Who asks the control program, whichever there is; and what came of each message."""

    def __init__(self, bench: Bench, chance: random.Random, nursery: trio.Nursery) -> None:
        self.bench = bench
        self.chance = chance
        self.nursery = nursery
        self.taken: defaultdict[int, list[bool]] = defaultdict(list)  # by number: whether it was marked as repeated

    async def ask(self, call: Callable[[Switchboard], Awaitable[T]]) -> T:
        """What it answers; when it dies meanwhile the next one is asked."""
        while True:
            await self.bench.there.wait()
            gone, answers = self.bench.gone, []
            refusals: list[Rejected] = []
            async with trio.open_nursery() as nursery:

                async def wait(gone: trio.Event = gone, nursery: trio.Nursery = nursery) -> None:
                    await gone.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(wait)
                try:
                    answers.append(await call(self.bench.board))
                except Rejected as exc:
                    refusals.append(exc)
                nursery.cancel_scope.cancel()
            if refusals:
                raise refusals[0]
            if answers:
                return answers[0]

    def rebinder(self, name: str, generation: int, ident: int) -> Callable[[Path], Awaitable[Transport]]:
        """How a process asks for its end again, as :mod:`retinue.svm.machine` does."""

        async def rebind(path: Path) -> Transport:
            wanted = path.wanted
            while True:
                ask = partial(
                    Switchboard.rebind,
                    machine=name,
                    generation=generation,
                    ident=ident,
                    stream=False,
                    wanted=wanted,
                )
                try:
                    return SocketTransport(socket.socket(fileno=await self.ask(ask)))
                except Rejected as exc:
                    if exc.code != "asleep" or wanted:
                        raise PathSevered(exc.code, exc.text) from None
                await path.wait_wanted()
                wanted = True

        return rebind


class Process:
    """One generation of the target."""

    def __init__(self, world: World, generation: int) -> None:
        self.generation = generation
        self._world = world
        self._served: dict[Path, trio.CancelScope] = {}
        self._draining = False
        self.dead = False

    async def take(self, ident: int, descriptor: int) -> None:
        if self.dead:
            raise PathSevered("lost")
        if self._draining:
            raise Rejected("stopping", "B is stopping")
        rebind = self._world.rebinder("B", self.generation, ident)
        path = Path(SocketTransport(socket.socket(fileno=os.dup(descriptor))), rebind=rebind)
        self._served[path] = trio.CancelScope()
        self._world.nursery.start_soon(self._serve, path)
        await trio.sleep(self._world.chance.random() * 0.01)
        if self.dead:
            raise PathSevered("lost")

    async def _serve(self, path: Path) -> None:
        with self._served[path]:
            async with trio.open_nursery() as nursery:
                await nursery.start(path.run)
                await path.serve(self._handle)
                nursery.cancel_scope.cancel()

    async def _handle(self, message: Any) -> Any:
        self._world.taken[message.body].append(message.redelivered)
        await trio.sleep(self._world.chance.random() * 0.05)
        return -message.body

    async def drain(self) -> None:
        """Release every path, as far as that is possible in a second."""
        self._draining = True
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                for path in self._served:
                    nursery.start_soon(self._release, path)

    async def _release(self, path: Path) -> None:
        with contextlib.suppress(PathError):
            await path.release()

    def kill(self) -> None:
        """It ends; a word of it would be of no use."""
        self.dead = True
        for path, scope in self._served.items():
            path.let_go()
            scope.cancel()


class Server:
    """The target: one process, or none while it is restarted, or while it sleeps."""

    name, base = "B", ""

    def __init__(self, world: World) -> None:
        self._world = world
        self.generation = 1
        self.process = Process(world, 1)
        self.ready = trio.Event()
        self.ready.set()
        self.asleep = False
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def rests(self) -> bool:
        return self.asleep

    async def wait_ready(self, *, wait: bool) -> None:
        if not self.ready.is_set() and not wait:
            raise Rejected("not-ready", "B is not ready")
        if self.asleep:
            self.begin()
        await self.ready.wait()

    def begin(self) -> None:
        """Another process takes over."""
        self.generation += 1
        self.asleep = False
        self.process = Process(self._world, self.generation)
        self.ready.set()

    async def offer(self, circuit: Circuit, descriptor: int) -> None:
        await self.process.take(circuit.ident, descriptor)

    def bury(self, process: Process, text: str) -> None:
        process.kill()
        self._world.bench.dead["B", process.generation] = text
        if self._world.bench.there.is_set():
            self._world.bench.board.died("B", process.generation, text)

    async def die(self) -> None:
        self.ready = trio.Event()
        process = self.process
        process.kill()
        await trio.sleep(self._world.chance.random() * 0.02)
        self.bury(process, "B died: of chance")
        await trio.sleep(self._world.chance.random() * 0.1)
        self.begin()

    async def replace(self) -> None:
        await self._world.bench.there.wait()
        before = self.process
        self.begin()
        self._world.bench.board.release("B", before.generation, "B was replaced")
        self._world.nursery.start_soon(self._finish, before)

    async def _finish(self, process: Process) -> None:
        await process.drain()
        self.bury(process, "B died: exit status 0")

    async def sleep(self) -> None:
        await self._world.bench.there.wait()
        self.ready = trio.Event()
        self._world.bench.board.sleep("B", self.generation, "B sleeps")
        await self._finish(self.process)
        self.asleep = True
        # Nobody may want anything of it in a while; who has asked already wakes it.
        await trio.sleep(0.05)
        if self.asleep:
            self.begin()


@pytest.mark.parametrize("seed", range(5))
async def test_every_call_is_answered_and_none_is_repeated_unmarked(seed: int, autojump_clock: object) -> None:
    """Whatever happens meanwhile, on every path."""
    chance = random.Random(seed)
    async with open_board(keeping=Keeping(), limit=3600) as bench, trio.open_nursery() as nursery:
        world = World(bench, chance, nursery)
        server = Server(world)
        bench.targets["B"] = server
        await bench.replace()
        paths: list[Path] = []
        numbers = iter(range(1, 1_000_000))
        done: list[int] = []

        async def connect() -> None:
            edge = Edge("x", "B")
            made = await world.ask(partial(Switchboard.connect, origin="A", generation=1, edge=edge, wait=True))
            rebind = world.rebinder("A", 1, made.ident)
            path = Path(SocketTransport(socket.socket(fileno=made.descriptor)), rebind=rebind)
            await nursery.start(path.run)
            paths.append(path)

        async def call(path: Path) -> None:
            for _ in range(CALLS):
                number = next(numbers)
                assert await path.call(number) == -number
                done.append(number)
                await trio.sleep(chance.random() * 0.05 if chance.random() < 0.95 else 0.4)

        async def tap() -> None:
            async with bench.board.tap("A.x", Onlooker()):
                await trio.sleep(chance.random() * 0.2)

        async def happen() -> None:
            while True:
                await trio.sleep(chance.random() * PACE)
                match chance.choice(["die", "replace", "sleep", "tap", "program"]):
                    case "die":
                        await server.die()
                    case "replace":
                        await server.replace()
                    case "sleep":
                        await server.sleep()
                    case "tap":
                        if bench.there.is_set():
                            bench.cp.start_soon(tap)
                    case "program":
                        await bench.end()
                        await trio.sleep(chance.random() * 0.1)
                        await bench.begin()

        async with trio.open_nursery() as events:
            events.start_soon(happen)
            for _ in range(PATHS):
                await connect()
            async with trio.open_nursery() as callers:
                for path in paths:
                    for _ in range(CALLERS):
                        callers.start_soon(call, path)
            events.cancel_scope.cancel()
        assert len(done) == PATHS * CALLERS * CALLS
        for number in done:
            assert all(world.taken[number][1:]), world.taken[number]
        assert len(bench.dead) > 5
        server.process.kill()
        for path in paths:
            path.sever()
        nursery.cancel_scope.cancel()
