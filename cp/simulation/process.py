"""A simulated process: tasks that have sockets and modules of their own, and that stop, go on and end together.

Which process a task belongs to is a context variable, which its children inherit.
"""

import contextvars
import os
import socket
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol

import outcome
import trio

from retinue.cp.simulation.modules import Modules
from retinue.pipes import watch

__all__ = ["Output", "Process", "nobody", "present"]


class Output(Protocol):
    """Where what a process prints and logs goes."""

    def print(self, text: str, *, error: bool) -> None:
        """What was written to standard output, or to standard error."""

    def log(self, record: Any) -> None:
        """A record of :mod:`logging`."""


_process: Final[contextvars.ContextVar["Process | None"]] = contextvars.ContextVar("retinue.process", default=None)


def present() -> "Process | None":
    """The process of the running task; None for a task of nobody's, such as a test."""
    return _process.get()


@contextmanager
def nobody() -> Iterator[None]:
    """Within the block the present task is nobody's: what it makes belongs to no process."""
    token = _process.set(None)
    try:
        yield
    finally:
        _process.reset(token)


def process_of(task: trio.lowlevel.Task) -> "Process | None":
    """The process that a task belongs to."""
    return task.context.get(_process)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.__new__" and (process := _process.get()) is not None:
        process.sockets.add(arguments[0])


class Process:
    """One process. ``output`` is where it prints, None for the place where everybody does."""

    _heard: bool = False

    def __init__(self, name: str, *, modules: Modules | None = None, output: Output | None = None) -> None:
        if not Process._heard:
            # The one public way to learn of every socket that somebody makes; it cannot be taken back.
            Process._heard = True
            sys.addaudithook(_hear)
        self.name = name
        self.modules = modules
        self.output = output
        self.sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.frozen = False
        self.killed = False
        self.bomb: BaseException | None = None
        """Raised in the next task of it that takes a step, if ``aim`` likes that task."""
        self.aim: Callable[[trio.lowlevel.Task], bool] = lambda task: True
        self.on_step: Callable[[trio.lowlevel.Task], None] | None = None
        self._scope = trio.CancelScope()
        self._dead: list[socket.socket] = []
        self._stopped: dict[trio.lowlevel.Task, outcome.Outcome[Any]] = {}
        self._root: trio.lowlevel.Task | None = None

    async def run(self, body: Callable[[], Awaitable[None]]) -> None:
        """Be this process in the present task, which ends with it; what it raises after it was killed is its own."""
        _process.set(self)
        self._root = trio.lowlevel.current_task()
        try:
            with self._scope:
                await trio.lowlevel.checkpoint()  # from its next step on the task is known to be this process's
                await body()
        except BaseException as exc:
            if not self.killed:
                raise
            if (cancelled := _cancelled_part(exc)) is not None:
                raise cancelled from None
        finally:
            _process.set(None)
            for sock in self._dead:
                sock.close()  # of each only its number is left

    # -- stop and go on ----------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """As SIGSTOP: none of its tasks takes another step."""
        self.frozen = not self.killed

    def thaw(self) -> None:
        """As SIGCONT."""
        self.frozen = False
        stopped, self._stopped = self._stopped, {}
        for task, then in stopped.items():
            trio.lowlevel.reschedule(task, then)

    def hold(self, task: trio.lowlevel.Task, then: outcome.Outcome[Any]) -> None:
        """A task has stopped, and shall go on with this outcome."""
        self._stopped[task] = then

    # -- end ---------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """As SIGKILL: from this moment on nobody outside hears of it, or can be heard by it.

        Its descriptors are closed without a word. Python cannot make tasks vanish: they are cancelled, and what they do
        about that reaches nobody.
        """
        if self.killed:
            return
        self.killed = True
        self.output = _SILENCE
        self._dead = list(self.sockets)
        for sock in self._dead:
            if (descriptor := sock.fileno()) >= 0:
                _cut(descriptor)
        self.thaw()
        self._scope.cancel()
        if self._root is not None:
            _open_shields(self._root)

    def tasks(self) -> list[trio.lowlevel.Task]:
        """Every task of it."""
        return [] if self._root is None else [task for task in _below(self._root) if process_of(task) is self]


class _Silence:
    """The output of the dead."""

    def print(self, text: str, *, error: bool) -> None:
        pass

    def log(self, record: Any) -> None:
        pass


_SILENCE: Final = _Silence()


def _cut(descriptor: int) -> None:
    """Close what is behind a descriptor as the kernel does at the end of a process, and leave the number in use.

    Not shutdown(2): somebody else may hold the same socket, and goes on with it. A number that is given up would be
    another socket's by the time its owner closes it.
    """
    trio.lowlevel.notify_closing(descriptor)
    seen = watch.watch()
    watched = descriptor in seen._readers
    if watched:
        with suppress(OSError):
            seen._epoll.unregister(descriptor)
    nobody, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.close()
    nobody.setblocking(False)
    os.dup2(nobody.fileno(), descriptor, inheritable=False)
    nobody.close()
    if watched:
        seen._epoll.register(descriptor, watch.IGNORED)


def _below(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    found = [task]
    for each in found:
        for nursery in each.child_nurseries:
            found += nursery.child_tasks
    return found


def _open_shields(root: trio.lowlevel.Task) -> None:
    """Who hides from being cancelled would outlive a kill."""
    for task in _below(root):
        status: Any = task._cancel_status
        while status is not None:
            status._scope.shield = False
            status = status.parent
        for nursery in task.child_nurseries:
            nursery.cancel_scope.shield = False


def _cancelled_part(error: BaseException) -> BaseException | None:
    """What of an exception is the cancellation of a scope around it."""
    if isinstance(error, trio.Cancelled):
        return error
    return error.subgroup(trio.Cancelled) if isinstance(error, BaseExceptionGroup) else None
