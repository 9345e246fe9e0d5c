"""What the kernel's scheduler does for processes: who may run, and with what; and chance that can be had again."""

import importlib
import logging
import math
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import outcome
import trio
import trio.testing

from retinue.cp.simulation import output
from retinue.cp.simulation.process import Process, process_of

__all__ = ["scheduler", "simulating"]

# By name, for none of it is public: the shuffling of tasks, and the word by which a task goes to sleep.
_run: Final[Any] = importlib.import_module("trio._core._run")
_traps: Final[Any] = importlib.import_module("trio._core._traps")


# Seconds in which most threads are done: everybody waits so long for one that begins to work.
PATIENCE: Final = 0.2
# Seconds between two looks at it.
GLANCE: Final = 0.0001


class Scheduler(trio.abc.Instrument):
    """Sees every step of every task of a run. One for all simulations of it."""

    def __init__(self) -> None:
        self._modules_of: Process | None = None
        clock = trio.lowlevel.current_clock()
        self._clock = clock if isinstance(clock, trio.testing.MockClock) else None
        self._threshold: float | None = None
        self._limiter = trio.to_thread.current_default_thread_limiter()
        self._threads: float = 0
        self._starting: set[trio.lowlevel.Task] = set()
        token: Any = trio.lowlevel.current_trio_token()
        self._reports: deque[Any] = token._reentry_queue.queue  # where threads put what they want of the run

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Put in what belongs to the task's process, or hold the task."""
        process = process_of(task)
        if process is not self._modules_of:
            self._switch(process)
        if process is None:
            return
        if process.frozen:
            self._hold(task, process)
            return
        if process.on_step is not None:
            process.on_step(task)
        if process.bomb is not None and process.aim(task) and _has_begun(task):
            exc, process.bomb = process.bomb, None
            _set(task, outcome.Error(exc))

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Threads: a virtual clock must not jump while one works, for nobody waits for time then."""
        before, self._threads = self._threads, self._limiter.borrowed_tokens
        if self._threads > before:
            self._starting.add(task)  # it has leave to start a thread, and does so in its next step
        elif task in self._starting:
            self._starting.discard(task)
            # Without this it would be real time that decides what happens first.
            give_up = time.monotonic() + PATIENCE
            while not self._reports and time.monotonic() < give_up:
                time.sleep(GLANCE)
        if self._clock is None:
            return
        if self._threads:
            if self._threshold is None:
                self._threshold = self._clock.autojump_threshold
                self._clock.autojump_threshold = math.inf
        elif self._threshold is not None:
            self._clock.autojump_threshold, self._threshold = self._threshold, None

    @contextmanager
    def jumping(self) -> Iterator[None]:
        """Within the block the virtual clock jumps by itself, as one with autojump does at all times."""
        clock, held = self._clock, self._threshold
        assert clock is not None
        if (clock.autojump_threshold if held is None else held) < math.inf or clock.rate:
            yield
            return
        self._jump(0.0)
        try:
            yield
        finally:
            self._jump(math.inf)

    def _jump(self, threshold: float) -> None:
        assert self._clock is not None
        if self._threshold is None:
            self._clock.autojump_threshold = threshold
        else:  # when the thread is done
            self._threshold = threshold

    def close(self) -> None:
        """Leave everything as it was."""
        self._switch(None)
        if self._clock is not None and self._threshold is not None:
            self._clock.autojump_threshold = self._threshold

    def _switch(self, process: Process | None) -> None:
        if self._modules_of is not None and self._modules_of.modules is not None:
            self._modules_of.modules.leave()
        self._modules_of = process
        if process is not None and process.modules is not None:
            process.modules.enter()

    def _hold(self, task: trio.lowlevel.Task, process: Process) -> None:
        """Let the task sleep instead of what it was about to do, until the process goes on."""
        private: Any = task
        then, step = private._next_send, private._next_send_fn

        def park(_: object) -> Any:
            if step == task.coro.send:
                process.hold(task, then)
            else:  # an exception, by its own way
                process.hold(task, outcome.Error(then))
            return _traps.WaitTaskRescheduled(lambda _: trio.lowlevel.Abort.FAILED)

        private._next_send_fn = park


def _has_begun(task: trio.lowlevel.Task) -> bool:
    private: Any = task
    return bool(private._schedule_points)


def _set(task: trio.lowlevel.Task, then: outcome.Outcome[Any]) -> None:
    private: Any = task
    private._next_send = then


class _Shared:
    """The scheduler of each run that simulates, and how many of its simulations use it."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.users = 0


_shared: Final[trio.lowlevel.RunVar[_Shared | None]] = trio.lowlevel.RunVar("retinue.cp.simulation", None)


def scheduler() -> Scheduler:
    """That of the present run. LookupError outside a simulation."""
    if (shared := _shared.get()) is None:
        raise LookupError("nothing is simulated in this run")
    return shared.scheduler


@contextmanager
def simulating(seed: int) -> Iterator[None]:
    """Processes can be simulated within the block, and chance is that of the seed: of trio and of :mod:`random`."""
    shared = _shared.get()
    if shared is None:
        shared = _Shared()
        _shared.set(shared)
    with ExitStack() as undo:
        if shared.users == 0:
            undo.enter_context(_seeded(seed))
            undo.enter_context(_plain_modules())
            undo.enter_context(output.routed(logging.getLogger()))
            undo.callback(shared.scheduler.close)
            trio.lowlevel.add_instrument(shared.scheduler)
            undo.callback(trio.lowlevel.remove_instrument, shared.scheduler)
            undo.callback(_shared.set, None)
        shared.users += 1
        try:
            yield
        finally:
            shared.users -= 1


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    of_trio, of_everybody, sorted_first = _run._r.getstate(), random.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._r.seed(seed)
    random.seed(seed)
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        yield
    finally:
        _run._r.setstate(of_trio)
        random.setstate(of_everybody)
        _run._ALLOW_DETERMINISTIC_SCHEDULING = sorted_first


@contextmanager
def _plain_modules() -> Iterator[None]:
    """A machine may not write beside its program; nor does a simulated one leave compiled modules there."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
