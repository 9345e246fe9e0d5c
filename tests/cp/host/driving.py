"""Real systems for tests: a nucleus and saved systems as users have them, with a CP and machines that obey the test."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from retinue.cp.host.launch import launch
from retinue.cp.host.link import Link, close_all, link_pair

PROGRAMS = str(Path(__file__).parent / "programs")
PATIENCE = 20
"""Seconds after which a test has failed; nothing here takes a tenth of it."""


class Refused(Exception):
    """The host, or the kernel, refused what was asked."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer.get("text", ""))
        self.kind: str | None = answer.get("error")
        self.errno: int | None = answer.get("errno")


class Machine:
    """A machine whose inside calls what it is told to."""

    def __init__(self, name: str, generation: int, control: trio.socket.SocketType, log: socket.socket) -> None:
        self.name = name
        self.generation = generation
        self.control = control
        self.log = log
        self.pid = 0
        self.seal: list[str] = []

    async def send(self, function: str, *arguments: object) -> None:
        """Order a call of ``module:function`` without waiting for it."""
        await self.control.send(json.dumps([function, arguments]).encode())

    async def call(self, function: str, *arguments: object) -> Any:
        """Call ``module:function`` in there. :raises Refused: it raised OSError."""
        await self.send(function, *arguments)
        return await self.answer()

    async def answer(self) -> Any:
        """What came of the order that was sent first. :raises Refused: it raised OSError."""
        answer = json.loads(await self.control.recv(65536))
        if "raised" in answer:
            raise RuntimeError(answer["raised"])
        if "value" not in answer:
            raise Refused(answer)
        return answer["value"]


class Running:
    """A system that runs."""

    def __init__(self, name: str, nucleus: "subprocess.Popen[bytes]", console: Link, folder: Path) -> None:
        self.name = name
        self.nucleus = nucleus
        self.console = console
        self.runtime = folder / "runtime"
        self.state = folder / "state"
        self.cp_pid = 0
        self._generations: dict[str, int] = {}
        self._born: set[tuple[str, int]] = set()
        self._ended: set[tuple[str, int]] = set()
        self._kept: dict[str, dict[str, Any]] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._news: list[dict[str, Any]] = []
        self._orders = 0
        self._sockets: list[Any] = []

    async def _next(self) -> dict[str, Any]:
        while True:
            try:
                received = self.console.receive()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.console.fileno())
                continue
            if received is None:
                raise EOFError("the CP has closed the console")
            close_all(received[1])
            return received[0]

    async def started(self) -> dict[str, Any]:
        """Until a CP says that the host is ready; what it has found."""
        while "ready" not in (first := await self._next()):
            if "error" in first and "id" not in first:
                raise Refused(first)
            self._take(first)
        self.cp_pid = first["ready"]
        return first

    async def succeeded(self) -> dict[str, Any]:
        """Kill the CP, and wait until there is another; what that has found."""
        os.kill(self.cp_pid, signal.SIGKILL)
        return await self.started()

    async def order(self, do: str, descriptors: tuple[int, ...] = (), **arguments: Any) -> Any:
        """Have the CP do something, and return what came of it."""
        number = self.post(do, descriptors, **arguments)
        while number not in self._answers:
            await self._hear()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise Refused(answer)
        return answer.get("value")

    def post(self, do: str, descriptors: tuple[int, ...] = (), **arguments: Any) -> int:
        """Have the CP do something, without waiting for it."""
        self._orders += 1
        if do == "keep":
            self._kept[arguments["key"]] = {"count": arguments["count"]} if "count" in arguments else {}
        self.console.post({"id": self._orders, "do": do, **arguments}, [os.dup(one) for one in descriptors])
        return self._orders

    async def _hear(self) -> None:
        self._take(await self._next())

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
        else:
            self._news.append(message)
            if "exit" in message:
                self._ended.add((message["exit"]["machine"], message["exit"]["generation"]))

    async def news(self, kind: str) -> Any:
        """The next ``"exit"`` (of a machine) or ``"event"`` (of the host)."""
        while True:
            for message in self._news:
                if kind in message:
                    self._news.remove(message)
                    return message[kind] if kind == "exit" else message
            await self._hear()

    async def spawn(self, machine: str = "ONE", *, generation: int = 0, ping: bool = True, **birth: Any) -> Machine:
        """A machine that waits for calls, sealed unless ``ping`` is false: then its boot may not have begun.

        It is the next generation of its name unless one is given.
        """
        generation = generation or self._generations.get(machine, 0) + 1
        ours, control = link_pair()
        our_log, log = link_pair()
        made = Machine(machine, generation, trio.socket.from_stdlib_socket(ours), our_log)
        self._sockets += [ours, our_log]
        ours.setblocking(False)
        defaults = {"network": False, "storage": 256 << 20, "disks": [], "code": []}
        with control, log:
            answer = await self.order(
                "spawn",
                (control.fileno(), log.fileno()),
                birth={"machine": machine, "generation": generation, **defaults, **birth},
            )
        made.pid, made.seal = answer["pid"], answer["seal"]
        self._born.add((machine, generation))
        self._generations[machine] = generation
        if ping:
            await made.call("os:getpid")
        return made

    async def clear(self) -> None:
        """End the machines of a test, drop what it kept: the next one finds the system as if it were its own."""
        for name, generation in self._born - self._ended:
            await self.order("signal", machine=name, generation=generation, number=signal.SIGKILL)
        while self._born - self._ended:
            await self._hear()
        for name, generation in self._born | self._ended:
            await self.order("buried", machine=name, generation=generation)
        for key, count in self._kept.items():
            await self.order("drop", key=key, **count)
        for gone in (self._born, self._ended, self._kept, self._news):
            gone.clear()
        for one in self._sockets:
            one.close()
        self._sockets.clear()

    def end_text(self) -> dict[str, Any]:
        """What the nucleus wrote when the system ended."""
        text: dict[str, Any] = json.loads((self.state / "end.json").read_text())
        return text

    def log_text(self) -> str:
        """What nucleus, CP and saved systems printed."""
        return (self.state / "nucleus.log").read_text()

    def pids(self) -> list[int]:
        """Every process of this system that lives: its name is in all their arguments."""
        found = []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if self.name.encode() in Path("/proc", pid, "cmdline").read_bytes():
                    found.append(int(pid))
        return found

    async def wait(self) -> int:
        """Until the nucleus has ended; its exit status."""
        if (status := self.nucleus.poll()) is not None:
            return status
        pidfd = os.pidfd_open(self.nucleus.pid)
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        return self.nucleus.wait()

    async def all_gone(self) -> None:
        """Until no process of it is left."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    pidfd = os.pidfd_open(pid)
                    try:
                        await trio.lowlevel.wait_readable(pidfd)
                    finally:
                        os.close(pidfd)

    async def end(self, exit_code: int = 0) -> int:
        """End it as a CP does."""
        self.post("end", how="down", text="the test is over", exit_code=exit_code)
        return await self.wait()

    async def close(self) -> None:
        """Leave nothing behind, whatever state the test left it in."""
        if self.nucleus.poll() is None:
            self.nucleus.kill()
            self.nucleus.wait()
        with trio.CancelScope(shield=True), trio.fail_after(PATIENCE):
            await self.all_gone()
        self.console.close()
        for one in self._sockets:
            one.close()


Start = Callable[..., Awaitable[Running]]


async def begin(folder: Path, *, wait: bool = True, **keywords: Any) -> Running:
    """Start a system in a folder; keywords as for launch()."""
    name = f"T-{uuid.uuid4().hex[:12]}"
    for needed in (folder / "runtime", folder / "state"):
        needed.mkdir(exist_ok=True)
    ours, console = link_pair()
    wanted = {"cp_entry": "tiny_cp:main", "boot_entry": "tiny_boot:boot", "network": False, **keywords}
    with (
        console,
        (folder / "state" / "nucleus.log").open("ab") as log,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.syspath_prepend(PROGRAMS)
        nucleus = launch(
            system=name,
            topology=str(folder / "no.toml"),
            runtime=str(folder / "runtime"),
            state=str(folder / "state"),
            console=console,
            stderr_file=log,
            **wanted,
        )
    system = Running(name, nucleus, Link(ours), folder)
    if wait:
        try:
            with trio.fail_after(PATIENCE):
                await system.started()
        except BaseException:
            await leave(system)
            raise
    return system


async def leave(system: Running) -> None:
    """Nothing is left of it but what it said."""
    await system.close()
    if system.log_text():
        print(system.log_text(), file=sys.stderr)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """``await start(...)`` starts a system of this test; keywords as for launch()."""
    running: list[Running] = []

    async def started(*, folder: Path = tmp_path, **keywords: Any) -> Running:
        running.append(await begin(folder, **keywords))
        return running[-1]

    yield started
    for system in running:
        await leave(system)


class Shared:
    """Systems that the tests of a module use one after the other. A test that ends one has its own."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self.folder = folders.mktemp("shared")
        self._running: dict[str, Running] = {}

    async def find(self, name: str = "", **keywords: Any) -> Running:
        """The one of this name, which is started for who asks first; keywords as for launch()."""
        if name in self._running and self._running[name].nucleus.poll() is not None:
            await leave(self._running.pop(name))
        if name not in self._running:
            folder = self.folder / (name or "any")
            folder.mkdir(exist_ok=True)
            self._running[name] = await begin(folder, **keywords)
        return self._running[name]

    async def clear(self) -> None:
        """Nothing of a test is left in them."""
        for system in self._running.values():
            if system.nucleus.poll() is None:
                await system.clear()

    async def close(self) -> None:
        """None of them is left, nor what only a system that ends in order takes along: its control groups."""
        for system in self._running.values():
            if system.nucleus.poll() is None:
                with trio.move_on_after(PATIENCE), contextlib.suppress(OSError):
                    await system.end()
            await leave(system)


@pytest.fixture(scope="module")
def shared_systems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Those of a module."""
    made = Shared(tmp_path_factory)
    yield made
    trio.run(made.close)


@pytest.fixture
async def shared(shared_systems: Shared) -> AsyncIterator[Shared]:
    """Systems that the tests of a module have in common. Machines are of one test only."""
    yield shared_systems
    with trio.fail_after(PATIENCE):
        await shared_systems.clear()


def killed(status: int) -> bool:
    """Whether a wait status says SIGKILL."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
