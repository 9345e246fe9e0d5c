"""A machine with a native program in a process of its own, unsealed; the test is its control program."""

import pathlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import trio
from tests.svm import native_programs

from retinue.pipes import Message, Path, Rejected, SocketTransport, State, open_path, socket_pair, wire
from retinue.pipes.beat import Beat, read_beat
from retinue.pipes.parcel import CONTROL, send_descriptor

Process = subprocess.Popen[bytes]

PROGRAM = native_programs.__file__

# What boot does for every machine, but for the seal; and, as process 1 of a PID namespace does, it adopts orphans.
BOOT = """\
import ctypes, os, socket, sys
from retinue.svm import log, runtime
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
os.umask(0o077)
control, console = (socket.socket(fileno=int(each)) for each in sys.argv[1:])
log.install(log.LogWriter(console))
code = runtime.run_to_exit_code(control, console)
log.finish()
os._exit(code)
"""


class Record(NamedTuple):
    """What the machine said."""

    severity: int
    logger: str
    message: str


class Native:
    """The machine as its control program has it."""

    def __init__(self, folder: pathlib.Path, control: Path, console: socket.socket, process: Process) -> None:
        self.folder = folder
        self.process = process
        self.control = control
        self.ready = trio.Event()
        self.records: list[Record] = []
        self.beats: list[Beat] = []
        self.targets: dict[str, Callable[[Path], Any]] = {}
        self._console = console
        self._decoder = wire.Decoder()
        self._nursery: trio.Nursery

    async def run(self, *words: str, wait: bool = True, **arguments: Any) -> None:
        """Load and start the program; returns when the machine is ready."""
        await self.load(*words, **arguments)
        await self.control.call(["start", {}])
        if wait:
            await self.ready.wait()

    async def load(self, *words: str, command: list[str] | None = None, **arguments: Any) -> None:
        """Load, not start."""
        given = {
            "name": "NATIVE",
            "kind": "exec",
            "program": sys.executable,
            "command": command or [sys.executable, PROGRAM, *words],
            "config": {},
            "edges": {},
            "disks": {},
            "secrets": {},
            "sockets": {},
            "run": str(self.folder),
        }
        await self.control.call(["load", given | arguments])

    async def stop(self) -> None:
        """Ask it to stop."""
        await self.control.call(["stop", {}])

    async def path(self) -> Path:
        """A path to the machine, as another one opens it."""
        ours, theirs = socket_pair()
        with theirs:
            about = {"path": 0, "edge": "CALLER.native", "peer": "CALLER", "limit": 4}
            await self.control.call(["offer", about], descriptors=(theirs.fileno(),))
        path = Path(SocketTransport(ours))
        await self._nursery.start(path.run)
        await opened(path)
        return path

    async def answer(self, message: Message) -> Any:
        """The control program's part."""
        verb, arguments = message.body
        if verb == "ready":
            self.ready.set()
            return
        if verb != "connect" or arguments["edge"] not in self.targets:
            raise Rejected("broken", "it will not come back")
        ours, theirs = socket_pair()
        path = Path(SocketTransport(ours))
        await self._nursery.start(path.run)
        self._nursery.start_soon(self._serve, path, self.targets[arguments["edge"]])
        with theirs:
            await message.reply({"path": 0}, descriptors=(theirs.fileno(),))

    async def _serve(self, path: Path, target: Callable[[Path], Any]) -> None:
        await opened(path)
        await target(path)

    async def listen_to_log(self) -> None:
        """Collect records for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._console)
            while self._read_log():  # as fast as the control program, or records would be dropped
                pass

    def _read_log(self) -> bool:
        try:
            packet = self._console.recv(wire.MAX_PACKET, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionResetError):
            return False
        if (beat := read_beat(packet)) is not None:
            self.beats.append(beat)
            return True
        for frame in self._decoder.decode(memoryview(packet)):
            self.records.append(Record(*frame[2][1:4]))
        return bool(packet)

    @asynccontextmanager
    async def next_control_program(self) -> AsyncIterator[Path]:
        """Another one after the death of the present one; it is brought its path by the log."""
        ours, theirs = socket_pair()
        with theirs:
            self.control.let_go()
            send_descriptor(self._console, CONTROL, theirs.fileno())
        async with open_path(SocketTransport(ours)) as self.control:
            self._nursery.start_soon(self.control.serve, self.answer)
            yield self.control
            self.control.let_go()

    async def said(self, start: str) -> str:
        """The first line that begins so, when it is there."""
        while True:
            for record in self.records:
                if record.message.startswith(start):
                    return record.message
            await trio.sleep(0.002)

    def lines(self, logger: str = "stdout") -> list[str]:
        """All that it wrote to one of its streams; everything once it has ended."""
        while self._read_log():
            pass
        return [record.message for record in self.records if record.logger == logger]

    async def ended(self) -> int:
        """The machine's exit status, when it has ended."""
        return await trio.to_thread.run_sync(self.process.wait)


async def opened(path: Path) -> None:
    """Until the other end of a path has greeted: before that it can be no stream."""
    while path.session.state is State.OPENING:
        await trio.lowlevel.checkpoint()


def boot(numbers: tuple[int, int]) -> Process:
    """The machine's process, with its control path and its log as the descriptors ``numbers``."""
    return subprocess.Popen([sys.executable, "-c", BOOT, *map(str, numbers)], pass_fds=numbers)


@asynccontextmanager
async def native(folder: pathlib.Path) -> AsyncIterator[Native]:
    """A machine that has nothing loaded. It is gone after the block, and its program with it."""
    ours, theirs = socket_pair()
    log_ours, log_theirs = socket_pair()
    with theirs, log_theirs:
        numbers = (theirs.fileno(), log_theirs.fileno())
        process = boot(numbers)
    try:
        with log_ours, trio.fail_after(30):
            async with open_path(SocketTransport(ours)) as control, trio.open_nursery() as nursery:
                machine = Native(folder, control, log_ours, process)
                machine._nursery = nursery
                nursery.start_soon(control.serve, machine.answer)
                nursery.start_soon(machine.listen_to_log)
                yield machine
                nursery.cancel_scope.cancel()
    finally:
        process.kill()
        process.wait()
