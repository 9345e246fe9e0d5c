"""Real systems whose machines try to get out, driven from ordinary tests: one system for each rung, shared by many."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

import trio
from tests.escapes.inside.attempt import World
from tests.escapes.leash import leashed
from tests.escapes.rungs import Rung
from tests.systems import Bench, open_bench, wait_for

from retinue.cp.operator_socket import connect_operator
from retinue.pipes import Path, PathError, PathStream, SocketTransport, State, open_path

INSIDE: Final = pathlib.Path(__file__).with_name("inside")
# Seconds that one order may take.
PATIENCE: Final = 15

# The machine that makes the attempts, by profile, and another one of the same kind; there is no edge between them.
MACHINES: Final = {"program": "PRISONER", "network": "NETWORK", "exec": "NATIVE"}
OTHERS: Final = {"program": "OTHER", "network": "OTHER", "exec": "NATIVE2"}

_TOPOLOGY: Final = """\
[system]
name = "{name}"
seal = "{level}"

[machines.PRISONER]
program = "tests.escapes.inside.prisoner"
storage = "64M"
pause = "0s"
disks.d = {{}}
uses.peer = "PEER"

[machines.OTHER]
program = "tests.escapes.inside.prisoner"
disks.d = {{}}

[machines.PEER]
program = "tests.escapes.inside.prisoner"
disks.d = {{}}

[machines.NETWORK]
program = "tests.escapes.inside.prisoner"
network = true
storage = "64M"
pause = "0s"
disks.d = {{}}

[machines.BOMB]
program = "tests.escapes.inside.prisoner"
storage = "64M"
pause = "0s"
disks.d = {{}}
disks.s = {{ size = "4M" }}
disks.t = {{ temporary = true, size = "4M" }}
"""
_NATIVE: Final = """
[machines.{machine}]
exec = ["{python}", "-S", "{{disks.d}}/tests/escapes/inside/native.py", "{{sockets.orders}}"]
sockets.orders = "listen"
storage = "64M"
pause = "0s"
disks.d = {{}}
disks.s = {{ size = "4M" }}
disks.t = {{ temporary = true, size = "4M" }}
"""
_NATIVES: Final = ("NATIVE", "NATIVE2", "NATBOMB")


def native_entry(machine: str) -> str:
    """The table of an exec machine."""
    return _NATIVE.format(machine=machine, python=os.path.realpath(sys.executable))


class Died(Exception):
    """The machine ended before it answered."""


class Refused(Exception):
    """The system did not start."""


class Outside:
    """What an escaped machine would find: files, sockets and a process that have nothing to do with the system."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        (folder / "secret").write_text("secret")
        (folder / "secret").chmod(0o666)
        (folder / "link").symlink_to("somewhere")
        self._sockets = contextlib.ExitStack()
        self.unix, self.datagram, self.packet = (str(folder / name) for name in ("stream", "datagram", "packet"))
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
        for path, kind in zip((self.unix, self.datagram, self.packet), kinds, strict=True):
            sock = self._sockets.enter_context(socket.socket(socket.AF_UNIX, kind))
            sock.bind(path)
            os.chmod(path, 0o777)
            if kind != socket.SOCK_DGRAM:
                sock.listen(1000)
        self.abstract = f"retinue-gallery-{os.getpid()}-{id(self)}"
        abstract = self._sockets.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind("\0" + self.abstract)
        abstract.listen(1000)
        tcp = self._sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1000))
        self.port = int(tcp.getsockname()[1])
        self.victim = subprocess.Popen(leashed(["sleep", "1000"]), stdin=subprocess.DEVNULL)

    def close(self) -> None:
        """Nothing is left of it."""
        self.victim.kill()
        self.victim.wait()
        self._sockets.close()


@contextlib.contextmanager
def open_outside() -> Iterator[Outside]:
    """In a folder that every user may search, so that it is the seal that keeps a machine away."""
    with tempfile.TemporaryDirectory(prefix="retinue-outside-", dir="/tmp") as folder:
        outside = Outside(pathlib.Path(folder))
        try:
            yield outside
        finally:
            outside.close()


class Prison:
    """A running system, and an operator who passes orders to its machines."""

    def __init__(self, rung: Rung, bench: Bench, outside: Outside) -> None:
        self.rung = rung
        self.bench = bench
        self.outside = outside
        self.natives = _NATIVES if rung.has_exec else ()
        self.state = bench.folder / "state" / "retinue" / bench.name
        self.operator_folder = bench.runtime / bench.name
        self._paths: dict[str, Path] = {}
        self._streams: weakref.WeakKeyDictionary[Path, PathStream] = weakref.WeakKeyDictionary()
        self._worlds: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._layers: dict[str, frozenset[str]] = {}
        self._started = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._cancel: trio.CancelScope | None = None
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self._attendant: subprocess.Popen[str] | None = None
        self._answers: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Write it down and start it."""
        folder = self.bench.folder
        copy_inside(folder)
        for secret in (folder / "secret.key", folder / "data" / "secret", folder / "data" / "long"):
            secret.parent.mkdir(exist_ok=True)
            secret.write_text("secret")
            secret.chmod(0o666)
        (folder / "empty").mkdir()
        text = _TOPOLOGY.format(name=self.bench.name, level=self.rung.level)
        for machine in self.natives:
            disk = self.state / "disks" / machine / "d"
            disk.mkdir(parents=True)
            copy_inside(disk)
            text += native_entry(machine)
        self.bench.file.write_text(text)
        for machine in ("PRISONER", "OTHER", "NETWORK", *self.natives):
            disk = self.state / "disks" / machine / "d"
            disk.mkdir(parents=True, exist_ok=True)
            (disk / "laid").symlink_to(self.outside.folder)
        self._attendant = begin(self.bench, *self.rung.without)

    def attend(self) -> None:
        """Open a path to the control program, as soon as the system is up."""
        if self._thread.ident is not None:
            return
        if self._attendant is not None:
            wait_until_ready(self.bench, self._attendant)
        self._thread.start()
        self._started.wait()

    def log_text(self) -> str:
        """What nucleus, CP and saved systems printed."""
        path = self.state / "nucleus.log"
        return path.read_text() if path.exists() else ""

    @property
    def lives(self) -> bool:
        """Whether its control program answers, or is still to be asked for the first time."""
        return self._thread.ident is None or self._thread.is_alive()

    def close(self) -> None:
        """End the operator's part; the bench ends the system."""
        if self._token is not None and self._cancel is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._cancel.cancel)
        if self._thread.ident is not None:
            self._thread.join()

    async def _run(self) -> None:
        try:
            async with (
                open_path(SocketTransport(connect_operator(self.operator_folder))) as operator,
                trio.open_nursery() as nursery,
            ):
                self._operator, self._nursery, self._cancel = operator, nursery, nursery.cancel_scope
                self._token = trio.lowlevel.current_trio_token()
                self._started.set()
                await operator.wait_severed()
                nursery.cancel_scope.cancel()
        finally:
            self._started.set()

    def _do(self, what: Callable[..., Any], *arguments: Any) -> Any:
        return trio.from_thread.run(what, *arguments, trio_token=self._token)

    def answer(self, profile: str, name: str, names: list[str]) -> dict[str, Any]:
        """What came of an attempt: the first time all ``names`` are made, unless one of them is the machine's end."""
        machine, world = MACHINES[profile], self.world(profile)
        if profile not in self._answers:
            try:
                self._answers[profile] = self.ask(machine, ["perform-all", names, world])
            except (Died, trio.TooSlowError):
                self._answers[profile] = {}  # one by one, so that it shows which it was
        found = self._answers[profile].get(name)
        return found or dict(self.ask(machine, ["perform", name, world]))

    def ask(self, machine: str, order: Any, patience: float = PATIENCE) -> Any:
        """Have a machine do something. :raises Died: it did not survive it."""
        return self._do(self._ask, machine, order, patience)

    async def _ask(self, machine: str, order: Any, patience: float) -> Any:
        with trio.fail_after(patience):
            native = machine in _NATIVES
            if machine not in self._paths:
                self._paths[machine] = await self._connect(machine)
            path = self._paths[machine]
            try:
                return await (self._ask_native(path, order) if native else path.call(order))
            except (PathError, trio.BrokenResourceError) as exc:
                raise Died(str(exc)) from exc
            except BaseException:
                path.sever()
                raise
            finally:
                if path.severed is not None:
                    self._paths.pop(machine, None)

    async def _ask_native(self, path: Path, order: Any) -> Any:
        while path.session.state is State.OPENING:  # before it can be a stream, the other end has to greet
            await trio.lowlevel.checkpoint()
        stream = self._streams.get(path)
        if stream is None:
            stream = self._streams[path] = path.stream()
        await stream.send_all(json.dumps(order).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            try:
                received = await stream.receive_some()
            except trio.BrokenResourceError:
                received = b""
            if not received:
                path.sever()
                raise Died(f"it ended after {answer!r}")
            answer += received
        return json.loads(answer)

    async def _connect(self, machine: str) -> Path:
        while True:
            try:
                reply = await self._operator.call_reply(["connect", {"machine": machine}])
            except PathError:
                # It is being started again: look when its state changes, which nobody tells us but by asking.
                await trio.sleep(0.01)
                continue
            (descriptor,) = reply.descriptors
            path = Path(SocketTransport(socket.socket(fileno=descriptor)), name=machine, peer=machine)
            await self._nursery.start(path.run)
            return path

    def restart(self, machine: str) -> None:
        """Kill a machine and wait until its next generation is there."""
        before = self.machines()[machine]
        os.kill(before["pid"], signal.SIGKILL)
        self.forget(machine)
        wait_for(lambda: self.machines()[machine]["generation"] > before["generation"])
        self.ask(machine, ["echo", "again"])

    def forget(self, machine: str) -> None:
        """Give up the path to a machine: the next order takes a new one."""

        async def sever() -> None:
            if (path := self._paths.pop(machine, None)) is not None:
                path.sever()
            await trio.lowlevel.checkpoint()

        self._do(sever)

    def operate(self, verb: str, **arguments: Any) -> Any:
        """Ask the control program."""

        async def ask() -> Any:
            with trio.fail_after(PATIENCE):
                return await self._operator.call([verb, arguments])

        return self._do(ask)

    def machine(self, profile: str) -> str:
        """The machine that makes the attempts."""
        return MACHINES[profile]

    @functools.cached_property
    def storage_counted(self) -> bool:
        """Whether the host keeps the storage of machines in the kernel: it has a memory cgroup for them."""
        return any(each["limit"] == "storage" and each["enforced"] for each in self.operate("status")["limits"])

    def layers(self, machine: str) -> frozenset[str]:
        """The layers of its seal."""
        if machine not in self._layers:
            self._layers[machine] = frozenset(self.machines()[machine]["seal"])
        return self._layers[machine]

    def machines(self) -> dict[str, dict[str, Any]]:
        """What ``retinue ps`` says, by machine."""
        return {each["name"]: each for each in self.operate("ps")["machines"]}

    def world(self, profile: str, machine: str = "", other: str = "") -> dict[str, Any]:
        """What the machine may know."""
        other = other or OTHERS[profile]
        key = (profile, machine, other)
        if key not in self._worlds:
            self._worlds[key] = self._world(profile, machine, other)
        return self._worlds[key]

    def _world(self, profile: str, machine: str, other: str) -> dict[str, Any]:
        machines = self.machines()
        disks = self.state / "disks"
        return World(
            profile=profile,
            disk=str(disks / (machine or MACHINES[profile]) / "d"),
            other_disk=str(disks / other / "d"),
            outside=str(self.outside.folder),
            topology=str(self.bench.folder),
            state=str(self.state),
            runtime=str(self.operator_folder),
            home=str(pathlib.Path.home()),
            operator=str(self.operator_folder / "operator.sock"),
            unix=self.outside.unix,
            datagram=self.outside.datagram,
            abstract=self.outside.abstract,
            port=self.outside.port,
            cp=self.bench.cp_pid(),
            nucleus=self.bench.nucleus_pid(),
            other=machines[other]["pid"],
            victim=self.outside.victim.pid,
        )._asdict()


def copy_inside(folder: pathlib.Path) -> None:
    """The modules of the attempts, as the package they are here."""
    inside = folder / "tests" / "escapes" / "inside"
    shutil.copytree(INSIDE, inside, ignore=shutil.ignore_patterns("__pycache__"))
    for package in (folder / "tests", folder / "tests" / "escapes"):
        (package / "__init__.py").touch()


def begin(bench: Bench, *without: str) -> "subprocess.Popen[str]":
    """Start the system of a bench under ``retinue up``, which dies with this process; the system ends with that.

    The control program stops when its console is gone, however the process at its other end has ended.
    """
    code = "import sys; from retinue.cp.cli import main; sys.exit(main())"
    command = leashed([sys.executable, "-c", code, "up", str(bench.file)], without)
    null = subprocess.DEVNULL
    with (bench.folder / "up.log").open("w") as told:
        up = subprocess.Popen(command, stdin=null, stdout=null, stderr=told, text=True, env=bench.environ)
    bench.started.append(up)
    return up


def wait_until_ready(bench: Bench, up: "subprocess.Popen[str]") -> None:
    """Until all machines are READY. :raises Refused: the system has ended instead."""
    told = bench.folder / "up.log"
    wait_for(lambda: " is READY: " in told.read_text() or up.poll() is not None)
    if up.poll() is not None:
        log = bench.folder / "state" / "retinue" / bench.name / "nucleus.log"
        raise Refused(told.read_text() + (log.read_text() if log.exists() else ""))


@contextlib.contextmanager
def open_prison(rung: Rung, folder: pathlib.Path) -> Iterator[Prison]:
    """A system at a rung, for the length of the block."""
    with open_outside() as outside, open_bench(folder) as bench:
        prison = Prison(rung, bench, outside)
        try:
            prison.begin()
            yield prison
        finally:
            prison.close()
