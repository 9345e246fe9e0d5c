"""A simulated system: the real control program over simulated machines, in the trio run of whoever opens it."""

import contextlib
import os
import pathlib
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

import trio
import trio.testing

from retinue.cp import directory
from retinue.cp.declaration import KEY as DECLARATION
from retinue.cp.declaration import Declaration
from retinue.cp.directory.secrets import read_values
from retinue.cp.kept import kept_journal, kept_operators
from retinue.cp.life import Life
from retinue.cp.simulation.host import SimulatedHost
from retinue.cp.simulation.nucleus import End, Nucleus, open_nucleus
from retinue.cp.simulation.scheduler import scheduler
from retinue.cp.system import ControlProgram
from retinue.pipes import Path, PathSevered, SocketTransport, open_path
from retinue.testing import fakes as of_fakes
from retinue.testing.calls import Call, Recorder
from retinue.testing.fakes import Fake
from retinue.testing.machine import SimulatedMachine

__all__ = ["SimulatedSystem", "SystemFailed", "open_system"]

T = TypeVar("T")

# What is written to a disk there need not be waited for.
MEMORY: Final = "/dev/shm"

# Records that are looked at together; more than a control program has of all its machines are never there.
MOST_RECORDS: Final = 1_000_000


class SystemFailed(AssertionError):
    """The system has ended, and a test waits for something else.

    :ivar end: how it has ended: ``how``, ``text`` and ``exit_code``.
    """

    def __init__(self, name: str, end: End) -> None:
        super().__init__(f"the system {name} has ended ({end.how}, exit status {end.exit_code}): {end.text}")
        self.end = end


class SimulatedSystem:
    """A running system. Made by :func:`open_system`."""

    def __init__(
        self,
        topology: directory.Directory,
        nucleus: Nucleus,
        folder: pathlib.Path,
        variables: Mapping[str, bytes],
        fakes: Mapping[str, Fake],
        *,
        record: bool,
    ) -> None:
        self.topology = topology
        self.name = topology.system.name
        self.nucleus = nucleus
        self.end: End | None = None
        """How it has ended; None while it has not."""
        self._folder = folder
        self._variables = variables
        self._fakes = fakes
        self._values = read_values(topology, variables, str(topology.path))
        self._cp: ControlProgram | None = None
        self._asking: set[trio.CancelScope] = set()  # of those who wait for an answer of it
        self._changed = trio.lowlevel.ParkingLot()
        edges = {f"{entry.name}.{edge.name}": edge for entry in topology.machines for edge in entry.uses}
        self._recorders = {label: Recorder(label) for label, edge in edges.items() if not edge.star}
        self._edges = set(edges)
        self._record = record
        self._records: list[dict[str, Any]] = []
        self._taken = ("", 0)  # the newest record taken: its run and its number

    # -- the control program -------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until the system has ended; :func:`open_system` runs it."""
        task_status.started()
        self.end = await self.nucleus.run(self._control_program)
        self._changed.unpark_all()

    async def _control_program(self, host: SimulatedHost) -> None:
        """What the process of a control program does, see :mod:`retinue.cp.main`."""
        kept = host.restored.kept
        if not host.restored.first and DECLARATION not in kept:
            host.end("cp-died", f"{host.restored.died}, before the system had begun", 1)
            return
        if DECLARATION in kept:
            declared = Declaration.recall(kept[DECLARATION])
        else:
            declared = Declaration(self.topology, {}, self._values)
        with ExitStack() as undo:
            journal = undo.enter_context(contextlib.closing(kept_journal(host)))
            operators = undo.enter_context(kept_operators(host, self._folder))
            async with trio.open_nursery() as nursery:
                cp = ControlProgram(declared, host, self._folder / "state", nursery, journal=journal)
                follower = undo.enter_context(cp.syslog.broadcast.follow())
                nursery.start_soon(self._follow, follower)
                async with self._recorded(cp):
                    # Known to tests after its first steps, in which it takes over what there is: as to operators.
                    nursery.start_soon(self._begin, cp)
                    try:
                        await cp.run(None, operators)
                    finally:
                        self._forget(cp)
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _recorded(self, cp: ControlProgram) -> AsyncIterator[None]:
        recorders = list(self._recorders.values()) if self._record else []

        @asynccontextmanager
        async def all_of(rest: list[Recorder]) -> AsyncIterator[None]:
            if not rest:
                yield
                return
            async with cp.switchboard.tap(rest[0].edge, rest[0]), all_of(rest[1:]):
                yield

        async with all_of(recorders):
            yield

    async def _follow(self, follower: Any) -> None:
        async for _ in follower.items:
            self._changed.unpark_all()

    async def _begin(self, cp: ControlProgram) -> None:
        if self.nucleus.end is None:
            self._cp = cp
            self._changed.unpark_all()

    def _forget(self, cp: ControlProgram) -> None:
        if self._cp is cp:
            self._take_records()
            self._cp = None

    @property
    def control_program(self) -> ControlProgram:
        """The present one. :exc:`SystemFailed` when the system has ended."""
        if self._cp is None:
            raise self._failed()
        return self._cp

    async def ask(self, what: Callable[[ControlProgram], Awaitable[T]]) -> T:
        """Ask the present control program for something; PathSevered when it dies meanwhile."""
        cp = self.control_program
        with trio.CancelScope() as scope:
            self._asking.add(scope)
            try:
                return await what(cp)
            finally:
                self._asking.discard(scope)
        raise PathSevered("lost", "the control program has died", "*CP")

    def _failed(self) -> Exception:
        return (
            RuntimeError("there is no control program now") if self.end is None else SystemFailed(self.name, self.end)
        )

    def kill_control_program(self) -> None:
        """As kill -9 of the control program: another one starts, and finds what the nucleus has kept."""
        if self._cp is not None:
            self.nucleus.kill_control_program()
            self._forget(self._cp)

    # -- machines ------------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> SimulatedMachine:
        """One machine; of several behind one name ``SHOP@2``. KeyError when there is none."""
        known = [] if self._cp is None else list(self._cp.lives)
        known += [each.name for each in self.topology.expanded().machines]
        if name not in known:
            raise KeyError(f"there is no machine {name!r}; there are {', '.join(known)}")
        return SimulatedMachine(self, name)

    @property
    def states(self) -> dict[str, str]:
        """The state of every machine, by name."""
        return {name: life.state.value for name, life in self.control_program.lives.items()}

    def life(self, name: str) -> Life:
        """What the control program knows of a machine."""
        return self.control_program.lives[name]

    @asynccontextmanager
    async def connect(self, name: str) -> AsyncIterator[Path]:
        """A path to a machine, as an operator has one, for the length of the block."""
        await self.ask(lambda cp: cp.lives[name].wait_ready(wait=True))
        made = await self.ask(lambda cp: cp.switchboard.connect_operator(name))
        transport = SocketTransport(socket.socket(fileno=made.descriptor))
        async with open_path(transport, name=name, peer=name) as path:
            yield path

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def wait_until(self, condition: Callable[[], bool], what: str = "it") -> None:
        """Until a condition holds, which is looked at whenever something has been told of the system.

        :exc:`SystemFailed` when the system ends before.
        """
        while True:
            if self._cp is not None and condition():
                return
            if self.end is not None:
                raise SystemFailed(self.name, self.end)
            await self._changed.park()

    async def wait_ready(self) -> None:
        """Until the system is READY: every machine is that starts with it. :exc:`SystemFailed` when it will not be."""
        await self.wait_until(lambda: self._cp is not None and self._cp.state == "READY")

    async def apply(self, topology: str | os.PathLike[str]) -> dict[str, Any]:
        """Make the system what another topology (a file, or a text) declares, as ``retinue apply``; what has changed.

        Fakes stay in their places.
        """
        file = _file(topology, self._folder, self._fakes)
        return await self.ask(lambda cp: cp.administration.apply(str(file), self._variables))

    async def stop(self) -> End:
        """Take the system down in order, as ``retinue down``; returns how it has ended."""
        if self._cp is not None:
            self._cp.stop("down", "the test ended it")
        return await self.wait_end()

    async def wait_end(self) -> End:
        """Until the system has ended; returns how."""
        while self.end is None:
            await self._changed.park()
        return self.end

    async def jump(self, seconds: float) -> None:
        """Let so much time pass, with everything that happens in it. RuntimeError without a virtual clock."""
        if not isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock):
            raise RuntimeError("the clock is a real one: let the test have the fixture autojump_clock")
        with scheduler().jumping():
            await trio.sleep(seconds)

    # -- what was said -------------------------------------------------------------------------------------------------

    def calls(self, edge: str) -> list[Call]:
        """Every message along an edge, such as ``CALLER.greeter``, the oldest first. KeyError for an unknown edge."""
        if edge not in self._recorders:
            raise KeyError(
                f"there is no edge {edge!r} between machines; there are {', '.join(sorted(self._recorders))}"
            )
        if not self._record:
            raise RuntimeError("this system was opened with record=False")
        return list(self._recorders[edge].calls)

    def records(self, machine: str | None = None) -> list[dict[str, Any]]:
        """The records of ``*LOG`` since the beginning, of one machine (or ``CP``) or of all, the oldest first."""
        self._take_records()
        return [record for record in self._records if machine is None or record["machine"] == machine]

    def _take_records(self) -> None:
        if self._cp is not None:
            syslog = self._cp.syslog
            run, taken = self._taken
            self._records += syslog.recent(None, MOST_RECORDS, after=taken if run == syslog.run else 0)
            self._taken = syslog.run, syslog.last

    def printed(self, machine: str) -> list[str]:
        """What a machine has printed, line by line."""
        return [str(record["message"]) for record in self.records(machine) if record["logger"] == "stdout"]

    async def wait_record(self, text: str, machine: str | None = None) -> dict[str, Any]:
        """Until there is a record whose message has ``text`` in it; returns the first one."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [record for record in self.records(machine) if text in record["message"]][:1]
            return bool(found)

        await self.wait_until(there)
        return found[0]


@asynccontextmanager
async def open_system(
    topology: str | os.PathLike[str],
    *,
    fakes: Mapping[str, Fake] | None = None,
    variables: Mapping[str, str | bytes] | None = None,
    seed: int = 0,
    record: bool = True,
    ready: bool = True,
    limit: float = 7200.0,
) -> AsyncIterator[SimulatedSystem]:
    """Run a system in the present trio run for the length of the block, at whose end it is gone.

    ``topology`` is a topology file, or the text of one: whatever has more than one line. ``fakes`` take the places of
    machines: an ``async def main(vm)``, or a table of replies by message. ``variables`` are those that secrets come
    from. The same ``seed`` makes the same things happen in the same order. With ``record`` the messages of every edge
    are remembered, for which they pass through the control program; byte streams, too. Without ``ready`` it does not
    wait until the system is READY. The block may take ``limit`` seconds of the clock, else trio.TooSlowError: on a
    virtual clock a test that waits for what never comes would run for ever.

    Raises :exc:`~retinue.cp.directory.DirectoryErrors` for a topology with mistakes, :exc:`SystemFailed` for one that
    does not become READY.
    """
    fakes = fakes or {}
    with tempfile.TemporaryDirectory(prefix="retinue-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as place:
        folder = pathlib.Path(place)
        (folder / "state").mkdir()
        file = _file(topology, folder, fakes)
        declared = directory.load(file)
        of_fakes.check(declared, fakes)
        given = {name: value.encode() if isinstance(value, str) else value for name, value in (variables or {}).items()}
        modules = {name: of_fakes.modules_of(declared.machine(name), fake) for name, fake in fakes.items()}
        try:
            with trio.fail_after(limit):
                async with open_nucleus(seed, modules=modules) as nucleus, trio.open_nursery() as nursery:
                    system = SimulatedSystem(declared, nucleus, folder, given, fakes, record=record)
                    await nursery.start(system.run)
                    if ready:
                        await system.wait_ready()
                    yield system
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # Of its own tasks only what is wrong with the control program raises: mostly it is one exception.
            raise _single(group) from None


def _single(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _file(topology: str | os.PathLike[str], folder: pathlib.Path, fakes: Mapping[str, Fake]) -> pathlib.Path:
    if not isinstance(topology, str) or "\n" not in topology:
        return pathlib.Path(topology)
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    file = programs / "topology.toml"
    file.write_text(topology)
    of_fakes.stubs(topology, programs, fakes)
    return file
