"""Messages go to the machine behind an edge that has least to do; one that is lost is connected again."""

from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from retinue.pipes import Message, Path, PathSevered, Rejected, SocketTransport, Transport, open_path, socket_pair
from retinue.svm import ConnectRefused, EdgeNotDeclared, Machine
from retinue.svm.edge import Edge
from retinue.svm.fan import LATEST

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


class Servers:
    """The machines behind the edge, and the control program that connects to them."""

    def __init__(self, machine: Machine[Any], nursery: trio.Nursery) -> None:
        self.machine = machine
        self.nursery = nursery
        self.asked: list[Any] = []
        self.paths: dict[int | None, Path] = {}  # the latest of each
        self.away: set[int | None] = set()  # those that are refused
        self.unbound: set[int | None] = set()  # those whose paths get no other descriptor now
        self.handled: Counter[int | None] = Counter()
        self.slow: dict[int | None, trio.Event] = {}
        self.changed = trio.lowlevel.ParkingLot()

    async def answer(self, message: Message) -> None:
        verb, arguments = message.body
        if verb == "rebind":
            await self._rebind(message, arguments["path"])
            return
        assert verb == "connect"
        self.asked.append(arguments)
        instance = arguments.get("instance")
        if instance in self.away:
            raise Rejected("broken", f"STOCK@{instance} is BROKEN")
        ours, theirs = socket_pair()
        self.nursery.start_soon(self._serve, instance, SocketTransport(ours))
        with theirs:
            await message.reply({"path": 1 + (instance or 0)}, descriptors=(theirs.fileno(),))

    async def _rebind(self, message: Message, ident: int) -> None:
        instance = ident - 1 or None
        while instance in self.unbound:
            await self.changed.park()
        ours, theirs = socket_pair()
        self.nursery.start_soon(self._serve, instance, SocketTransport(ours))
        with theirs:
            await message.reply(None, descriptors=(theirs.fileno(),))

    async def _serve(self, instance: int | None, end: Transport) -> None:
        async def handler(message: Message) -> int | None:
            if instance in self.slow:
                await self.slow[instance].wait()
            self.handled[instance] += 1
            return instance

        async with open_path(end) as path:
            self.paths[instance] = path
            self.changed.unpark_all()
            await path.serve(handler)

    async def wait_paths(self, *instances: int | None) -> None:
        while not all(each in self.paths and self.paths[each].severed is None for each in instances):
            await self.changed.park()

    def wake(self) -> None:
        self.changed.unpark_all()


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            ours, theirs = socket_pair()
            async with open_path(SocketTransport(ours)) as control, open_path(SocketTransport(theirs)) as other:
                machine: Machine[Any] = Machine(
                    name="SHOP",
                    config=None,
                    edges={"stock": Edge("stock", 4, instances=3), "single": Edge("single", 4)},
                    disks={},
                    control=control,
                    nursery=nursery,
                )
                made = Servers(machine, nursery)
                nursery.start_soon(partial(other.serve, made.answer))
                yield made
                nursery.cancel_scope.cancel()


async def test_messages_are_spread(servers: Servers) -> None:
    """Evenly where all are as quick; by the instance's number."""
    async with servers.machine.fan("stock") as fan:
        await servers.wait_paths(1, 2, 3)
        while len(fan.paths) < 3:
            await trio.lowlevel.checkpoint()
        for _ in range(30):
            await fan.call("which")
        assert servers.handled == {1: 10, 2: 10, 3: 10}
        assert sorted(arguments["instance"] for arguments in servers.asked) == [1, 2, 3]
        await fan.send("a note")
        assert (await fan.call_reply("which")).body in (1, 2, 3)
    await trio.testing.wait_all_tasks_blocked()
    assert all(path.severed is not None for path in servers.paths.values())


async def test_slow_one_gets_less(servers: Servers) -> None:
    """What it has not answered counts."""
    async with servers.machine.fan("stock") as fan:
        await servers.wait_paths(1, 2, 3)
        while len(fan.paths) < 3:
            await trio.lowlevel.checkpoint()
        go = servers.slow[2] = trio.Event()
        async with trio.open_nursery() as nursery:
            answers: list[int] = []

            async def ask() -> None:
                answers.append(await fan.call("which"))

            for _ in range(3):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(answers) == [1, 3]
            for _ in range(10):
                await ask()
            assert 2 not in answers
            go.set()
        assert servers.handled[2] == 1


async def test_single_machine_is_one_path(servers: Servers) -> None:
    """Without a number: it has none."""
    async with servers.machine.fan("single") as fan:
        for _ in range(3):
            await fan.call("which")
        assert servers.asked == [{"edge": "single", "wait": True}]
        assert len(fan.paths) == 1


async def test_path_that_ends_is_connected_again(servers: Servers) -> None:
    """Meanwhile the others are used."""
    async with servers.machine.fan("stock") as fan:
        await servers.wait_paths(1, 2, 3)
        while len(fan.paths) < 3:
            await trio.lowlevel.checkpoint()
        servers.paths[1].sever("reset")
        while len(fan.paths) == 3:
            await trio.lowlevel.checkpoint()
        assert await fan.call("which") in (2, 3)
        await servers.wait_paths(1)
        while len(fan.paths) < 3:
            await trio.lowlevel.checkpoint()
        assert {await fan.call("which") for _ in range(9)} == {1, 2, 3}


async def test_machine_that_is_replaced_comes_last(servers: Servers) -> None:
    """Its path has no descriptor; nothing new waits there while others can answer."""
    async with servers.machine.fan("stock") as fan:
        await servers.wait_paths(1, 2, 3)
        while len(fan.paths) < 3:
            await trio.lowlevel.checkpoint()
        servers.unbound.add(3)
        servers.paths[3].let_go()
        while sum(path.joined for path in fan.paths) == 3:
            await trio.lowlevel.checkpoint()
        assert len(fan.paths) == 3
        assert {await fan.call("which") for _ in range(9)} == {1, 2}
        servers.unbound.clear()
        servers.wake()
        while sum(path.joined for path in fan.paths) < 3:
            await trio.lowlevel.checkpoint()
        assert {await fan.call("which") for _ in range(9)} == {1, 2, 3}


async def test_machines_that_are_refused(servers: Servers, autojump_clock: trio.testing.MockClock) -> None:
    """One is asked for again later; when none is there, the caller learns why."""
    servers.away = {1}
    async with servers.machine.fan("stock") as fan:
        assert {await fan.call("which") for _ in range(4)} <= {2, 3}
        servers.away = {1, 2, 3}
        for each in (2, 3):
            servers.paths[each].sever("gone")
        while fan.paths:
            await trio.lowlevel.checkpoint()
        with pytest.raises(ConnectRefused, match="STOCK@1 is BROKEN") as caught:
            await fan.call("which")
        assert caught.value.code == "broken"
        servers.away = set()
        await trio.sleep(2 * LATEST)
        assert {await fan.call("which") for _ in range(9)} == {1, 2, 3}


async def test_number_of_machines_changes(servers: Servers) -> None:
    """New ones are used; one that is no more gets nothing new, and its last message is answered."""
    async with servers.machine.fan("stock") as fan, trio.open_nursery() as nursery:
        await servers.wait_paths(1, 2, 3)
        while len(fan.paths) < 3:
            await trio.lowlevel.checkpoint()
        go = servers.slow[3] = trio.Event()
        answers: list[int] = []

        async def ask() -> None:
            answers.append(await fan.call("which"))

        for _ in range(3):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        servers.machine.resize("stock", 2)
        await trio.testing.wait_all_tasks_blocked()
        assert len(fan.paths) == 2
        assert servers.paths[3].severed is None
        go.set()
        await servers.paths[3].wait_severed()
        assert sorted(answers) == [1, 2, 3]
        servers.machine.resize("stock", 4)
        await servers.wait_paths(3, 4)
        while len(fan.paths) < 4:
            await trio.lowlevel.checkpoint()
        assert {await fan.call("which") for _ in range(16)} == {1, 2, 3, 4}


async def test_call_on_a_path_that_ends(servers: Servers) -> None:
    """Raises, as on any path: the other machine may have handled it."""
    servers.slow[None] = trio.Event()
    async with servers.machine.fan("single") as fan, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(PathSevered, match="gone"):
                await fan.call("which")

        nursery.start_soon(ask)
        await servers.wait_paths(None)
        await trio.testing.wait_all_tasks_blocked()
        servers.paths[None].sever("gone")


async def test_edge_that_is_not_there(servers: Servers) -> None:
    """As for a path."""
    with pytest.raises(EdgeNotDeclared):
        servers.machine.fan("stick")


async def test_error_of_the_block(servers: Servers) -> None:
    """Leaves it as it was."""
    with pytest.raises(ValueError, match="mine"):
        async with servers.machine.fan("stock"):
            raise ValueError("mine")
