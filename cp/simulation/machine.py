"""One simulated machine: the runtime that is in every real one, over the same two sockets, as tasks of this process."""

import importlib
import logging
import os
import signal
import socket
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

import trio

from retinue.cp.host.interface import Birth, Exit
from retinue.cp.selftest import NAME as SELF_TEST
from retinue.cp.simulation.faults import Flaws
from retinue.cp.simulation.heart import SimulatedHeart
from retinue.cp.simulation.modules import Modules
from retinue.cp.simulation.output import LogEnd
from retinue.cp.simulation.process import Process
from retinue.pipes import Message, Path, PathError, SocketTransport

__all__ = ["SimulatedMachine"]

# In reality the child names it after the fork, for the control program does not import what machines are made of.
_runtime: Final[Any] = importlib.import_module("retinue.svm.runtime")
_log: Final[Any] = importlib.import_module("retinue.svm.log")

# Of the frames of a task those of trio tell nothing.
_TRIO: Final = os.sep + os.path.join("trio", "_")

_logger: Final = logging.getLogger("retinue.svm")


class _Console:
    """What the machine says, as its real one would: records in its log socket."""

    def __init__(self, end: LogEnd) -> None:
        self.writer = _log.LogWriter(end)
        self._out = _log.LogStream(self.writer, "stdout", _log.INFO)
        self._err = _log.LogStream(self.writer, "stderr", _log.NOTICE)
        self._handler = _log.LogHandler(self.writer)

    def print(self, text: str, *, error: bool) -> None:
        (self._err if error else self._out).write(text)

    def log(self, record: logging.LogRecord) -> None:
        self._handler.emit(record)

    def finish(self) -> None:
        self._out.finish()
        self._err.finish()


class SimulatedMachine:
    """A machine from its birth to its exit, of which ``exited`` is told once."""

    def __init__(
        self,
        birth: Birth,
        control: socket.socket,
        log: socket.socket,
        pid: int,
        flaws: Flaws,
        exited: Callable[["SimulatedMachine", Exit], None],
        given: Mapping[str, ModuleType],
    ) -> None:
        self.birth = birth
        self.pid = pid
        self.flaws = flaws
        self.storage = birth.storage
        self.ended = False
        self._control = control
        self._log = log.dup()  # where it may be given another control socket
        self._end = LogEnd(log)
        self._heart = SimulatedHeart(self._end)
        self._console = _Console(self._end)
        self._exited = exited
        self._main: trio.lowlevel.Task | None = None
        self._vm: Any = None
        modules = Modules(birth.code, given)
        self.process = Process(f"{birth.machine}/{birth.generation}", modules=modules, output=self._console)
        self.process.sockets |= {control, self._log}
        self.process.on_step = self._on_step
        self.process.aim = lambda task: task is self._main

    # -- life ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Its whole life, in a task of its own."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end.pour)
            nursery.start_soon(self._heart.beat)
            with self._control, self._log:
                await self.process.run(self._live)
            self._end.finish()
            self._heart.close()

    async def _live(self) -> None:
        if self.flaws.slow:
            await trio.sleep(self.flaws.slow)
        if self.flaws.hung:
            await trio.sleep_forever()
        try:
            if self.birth.machine == SELF_TEST:
                code = await _self_test(self._control)
            else:
                code = await _runtime.run(self._control, self._log, heart=self._heart)
        except PathError:
            code = _runtime.EXIT_CP_GONE
        except trio.Cancelled:
            raise
        except BaseException as exc:
            if self.process.killed or (isinstance(exc, BaseExceptionGroup) and exc.subgroup(trio.Cancelled)):
                raise
            _logger.critical("the machine failed", exc_info=exc)
            code = _runtime.EXIT_PROGRAM_FAILED
        self._console.finish()
        self._exit(code << 8)

    def _exit(self, status: int, *, out_of_storage: bool = False) -> None:
        if self.ended:
            return
        self.ended = True
        birth = self.birth
        self._heart.close()
        self._end.finish()
        exit = Exit(birth.machine, birth.generation, self.pid, status, 0.0, 0.0, 0, None, out_of_storage)
        self._exited(self, exit)

    # -- what happens to it --------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """A signal: process 1 of a namespace has to be killed, stopped or continued; the rest it has no handler for."""
        if self.ended:
            return
        if number == signal.SIGKILL:
            self.kill()
        elif number == signal.SIGSTOP:
            self.process.freeze()
            self._heart.stopped = True
        elif number == signal.SIGCONT:
            self.process.thaw()
            self._heart.resume()
        elif number == signal.SIGUSR1:
            self._dump()

    def kill(self, *, out_of_storage: bool = False) -> None:
        """End it at once; what it has said until now is heard."""
        if not self.ended:
            self._end.finish()
            self.process.kill()
            self._exit(signal.SIGKILL, out_of_storage=out_of_storage)

    def hang(self) -> None:
        """Its program keeps the thread to itself and never ends, nor computes: only its heartbeat goes on."""
        if not self.ended:
            self.process.freeze()
            self._heart.stuck = True

    def exhaust(self) -> None:
        """Its program gets a MemoryError where it waits now, or in its next step."""
        task: Any = self._main
        if task is None:
            self.kill(out_of_storage=True)
        elif task._abort_func is not None:
            task._attempt_abort(_raise_memory_error)
        else:
            self.process.bomb = MemoryError()

    def _dump(self) -> None:
        """As faulthandler does, raw text; but of the machine's tasks, which are what it has here."""
        lines = []
        for task in self.process.tasks():
            frames = (each for each in task.iter_await_frames() if _TRIO not in each[0].f_code.co_filename)
            lines.append(f"Task {task.name}:\n")
            lines += traceback.StackSummary.extract(frames).format()
        self._end.send("".join(lines).encode(errors="backslashreplace")[-60_000:])

    # -- its flaws -----------------------------------------------------------------------------------------------------

    def _on_step(self, task: trio.lowlevel.Task) -> None:
        if self._main is None and task.name.endswith("Runtime._run_main"):
            self._main = task
            frame: Any = task.coro.cr_frame
            self._vm = frame.f_locals["self"]._machine
            self._begin()
        if self.flaws.dies_at and self._vm is not None and self._received() >= self.flaws.dies_at:
            self.kill()

    def _begin(self) -> None:
        """Its program is about to take its first step."""
        if self.flaws.lost_ready:
            self._vm.ready = trio.sleep_forever
        if self.flaws.dies_before_ready:
            self._vm.ready = self._die
        if self.flaws.out_of_storage:
            self.process.bomb = MemoryError()

    async def _die(self) -> None:
        self.kill()
        await trio.sleep_forever()

    def _received(self) -> int:
        return sum(meter["received"] for side in self._vm.meters().values() for meter in side.values())


def _raise_memory_error() -> None:
    raise MemoryError


async def _self_test(control: socket.socket) -> int:
    """A scratch machine: there is no seal whose holes could be looked for."""

    async def answer(_: Message) -> Any:
        return {"attempts": 1, "succeeded": []}

    async with trio.open_nursery() as nursery:
        path = Path(SocketTransport(control), name="*CP", peer="*CP")
        await nursery.start(path.run)
        await path.serve(answer)
        nursery.cancel_scope.cancel()
    return 0
