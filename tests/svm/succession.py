"""A machine whose control programs come and go; the tests play them."""

import contextlib
import pathlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from retinue.pipes import Message, Path, SocketTransport, open_path, socket_pair
from retinue.pipes.parcel import CONTROL, send_descriptor
from retinue.svm import runtime
from retinue.svm.heartbeat import Heart


class Program:
    """A module with a ``main`` for one test."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._count = 0

    def make(self, text: str) -> str:
        """Its name."""
        self._count += 1
        name = f"program_{self._folder.name.replace('-', '_')}_{self._count}"
        (self._folder / f"{name}.py").write_text(text)
        return name


class Life:
    """One machine's process, played in this one."""

    def __init__(self, nursery: trio.Nursery, heart: Heart | None = None) -> None:
        self._nursery = nursery
        self._heart = heart
        self.log, self._machine_log = socket_pair()
        self.ended = trio.Event()
        self.exit_code: int | None = None
        self.kept: socket.socket | None = None  # by a nucleus, across control programs

    async def begin(self) -> None:
        """Its birth."""
        self.kept, theirs = socket_pair()

        async def live() -> None:
            self.exit_code = await runtime.run(theirs, self._machine_log, heart=self._heart)
            self._machine_log.close()
            self.ended.set()

        self._nursery.start_soon(live)

    def bring_another(self) -> None:
        """What a new control program does: the old descriptor is cut, and the machine is sent another."""
        assert self.kept is not None
        with contextlib.suppress(OSError):
            self.kept.shutdown(socket.SHUT_RDWR)
        self.kept.close()
        self.kept, theirs = socket_pair()
        with theirs:
            send_descriptor(self.log, CONTROL, theirs.fileno())

    def close(self) -> None:
        assert self.kept is not None
        self.kept.close()
        self.log.close()


class Cp:
    """One control program: ``told`` is what the machine has asked it."""

    def __init__(self, control: Path) -> None:
        self.control = control
        self.told: list[Any] = []
        self.redelivered: list[bool] = []
        self.ready = trio.Event()
        self.connect: Callable[[Message], Awaitable[Any]] | None = None
        self.came = trio.lowlevel.ParkingLot()

    async def answer(self, message: Message) -> Any:
        self.told.append(message.body)
        self.redelivered.append(message.redelivered)
        self.came.unpark_all()
        if message.body == ["ready", {}]:
            self.ready.set()
            return None
        if self.connect is not None:
            return await self.connect(message)
        await trio.sleep_forever()

    async def wait_told(self, count: int) -> None:
        """Until the machine has asked for so much."""
        while len(self.told) < count:
            await self.came.park()

    async def load(self, program: str, **more: Any) -> None:
        about = {
            "name": "SHOP",
            "kind": "program",
            "program": program,
            "config": {},
            "edges": {"stock": {"limit": 4, "overflow": "block"}},
            "disks": {},
            "secrets": {},
        }
        await self.control.call(["load", about | more])

    async def start(self, program: str, **more: Any) -> None:
        """Load, start, and wait until it is ready."""
        await self.load(program, **more)
        await self.control.call(["start", {}])
        await self.ready.wait()

    async def call(self, verb: str, **arguments: Any) -> Any:
        return await self.control.call([verb, arguments])

    async def offer(self, ident: int = 7) -> socket.socket:
        """The other end of a path that the machine has accepted."""
        ours, theirs = socket_pair()
        with theirs:
            try:
                about = {"path": ident, "edge": "CALLER.shop", "peer": "CALLER", "limit": 32}
                await self.control.call(["offer", about], descriptors=(theirs.fileno(),))
            except BaseException:
                ours.close()
                raise
        return ours


@asynccontextmanager
async def living(heart: Heart | None = None) -> AsyncIterator[Life]:
    """A machine from its birth; it must have ended at the end of the block, by whatever was done in it."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            life = Life(nursery, heart)
            try:
                await life.begin()
                yield life
                await life.ended.wait()
            finally:
                life.close()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def control_program(life: Life) -> AsyncIterator[Cp]:
    """A control program for the length of the block. Then it is killed: its end closes without a word."""
    assert life.kept is not None
    path = Path(SocketTransport(life.kept.dup()))
    async with trio.open_nursery() as nursery:
        await nursery.start(path.run)
        cp = Cp(path)
        nursery.start_soon(path.serve, cp.answer)
        try:
            yield cp
        finally:
            path.let_go()
            nursery.cancel_scope.cancel()


__all__ = ["Cp", "Life", "Program", "control_program", "living", "open_path"]
