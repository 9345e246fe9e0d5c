"""A system of four machines that start on demand, of which not all have room, and somebody who asks them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import trio
from tests.cp.simulation.paged import MIB

from retinue.pipes import Message
from retinue.svm import Machine
from retinue.testing import SimulatedSystem, open_system

SHELVES: Final = ("A", "B", "C", "D")
TOPOLOGY: Final = """\
[system]
name = "SHELVES"
storage = "100M"

[machines.HALL]
program = "hall"
priority = 50

[machines.READER]
program = "reader"
uses = { a = "A", b = "B", c = "C", d = "D" }
""" + "".join(
    f'[machines.{name}]\nprogram = "shelf"\nstart = "on-demand"\nidle = "1h"\npriority = 200\n' for name in SHELVES
)
# B asks C in turn, and HALL counts for more than all of them.
CHAIN: Final = TOPOLOGY.replace("[machines.B]\n", '[machines.B]\nuses.next = "C"\n').replace(
    "priority = 50", "priority = 500"
)


@attrs.define
class Reading:
    """What READER is to ask, and what it got: each question is a number and the seconds that the answer takes."""

    questions: dict[str, int] = attrs.field(factory=dict)
    answers: dict[str, list[int]] = attrs.field(factory=lambda: {name: [] for name in SHELVES})
    shrunk: list[str] = attrs.field(factory=list)
    waiting: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(SHELVES, 0))
    touched: dict[str, float] = attrs.field(factory=lambda: dict.fromkeys(SHELVES, float("-inf")))
    highest: int = 0
    _asking: Any = None
    _answered: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def reader(self, vm: Machine[None]) -> None:
        await vm.ready()
        async with trio.open_nursery() as nursery:
            self._asking = vm, nursery, {}
            await vm.stopping.wait()
            nursery.cancel_scope.cancel()

    def ask(self, name: str, seconds: float = 0.0) -> None:
        """Does not wait for the answer."""
        _, nursery, _ = self._asking
        self.questions[name] = self.questions.get(name, 0) + 1
        self.waiting[name] += 1
        self.touched[name] = trio.current_time()
        nursery.start_soon(self._ask, name, self.questions[name], seconds)

    async def _ask(self, name: str, number: int, seconds: float) -> None:
        vm, _, paths = self._asking
        if name not in paths:
            paths[name] = await vm.connect(name.lower())
        self.answers[name].append(await paths[name].call([number, seconds]))
        self.waiting[name] -= 1
        self.touched[name] = trio.current_time()
        self._answered.unpark_all()

    async def all_answered(self) -> None:
        with trio.fail_after(600):
            while any(self.waiting.values()):
                await self._answered.park()

    def check(self) -> None:
        """Every question had one answer, its own."""
        for name in SHELVES:
            assert sorted(self.answers[name]) == list(range(1, self.questions.get(name, 0) + 1)), name


@asynccontextmanager
async def shelves(
    size: int = 30, topology: str = TOPOLOGY, chained: Any = None
) -> AsyncIterator[tuple[SimulatedSystem, Reading]]:
    """Each shelf has so many MiB from its birth on, and nothing can be paged out."""
    reading = Reading()

    async def shelf(vm: Machine[None]) -> None:
        vm.on_shrink(lambda _: reading.shrunk.append(vm.name))
        reading.highest = max(reading.highest, system.nucleus.storage.resident)

        async def answer(message: Message) -> int:
            number, seconds = message.body
            await trio.sleep(seconds)
            return int(number)

        await vm.serve(answer)

    async def hall(vm: Machine[None]) -> None:
        vm.on_shrink(lambda _: reading.shrunk.append(vm.name))
        await vm.ready()
        await vm.stopping.wait()

    fakes: dict[str, Any] = {"HALL": hall, "READER": reading.reader} | dict.fromkeys(SHELVES, shelf)
    if chained is not None:
        fakes["B"] = chained
    async with open_system(topology, fakes=fakes, record=False) as system:
        system.nucleus.storage.at_birth = dict.fromkeys(SHELVES, size * MIB)
        await system.jump(2)
        yield system, reading


def said(system: SimulatedSystem, text: str) -> list[str]:
    return [record["message"] for record in system.records("CP") if text in record["message"]]


def generations(system: SimulatedSystem) -> dict[str, int]:
    return {name: system[name].generation for name in SHELVES}


def states(system: SimulatedSystem) -> str:
    """A capital for each shelf that is awake."""
    return "".join(name if system[name].state == "READY" else "-" for name in SHELVES)


async def ask(system: SimulatedSystem, reading: Reading, *names: str, pause: float = 2.0) -> None:
    """One after the other, each when the one before was answered."""
    for name in names:
        reading.ask(name)
        await reading.all_answered()
        await system.jump(pause)
