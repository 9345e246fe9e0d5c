"""A conversation with the control program: connecting, asking, waiting for the end.

Everything here speaks the operator protocol over a path to ``*CP``: a message is ``[verb, {arguments}]``.
"""

import os
import pathlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import trio

from retinue.cp import runtime
from retinue.cp.cli.errors import (
    CommandError,
    Denied,
    NoAnswer,
    PathLost,
    SystemGone,
    UnknownEdge,
    UnknownMachine,
)
from retinue.cp.operator_socket import StrangePeer, connect_operator
from retinue.pipes import (
    AccessDenied,
    Path,
    PathClosed,
    PathSevered,
    Rejected,
    Reply,
    SocketTransport,
    open_path,
)

# A system that is just starting has no operator socket yet; its control program needs some tenths of a second.
CONNECT_WAIT: Final = 5.0
# A listing is answered from memory. Longer means that the control program hangs.
ANSWER_WAIT: Final = 10.0
_RETRY: Final = 0.05
# A path that has ended may be the first sign of the end of the system: its nucleus is gone some moments later.
_LAST_MOMENTS: Final = 0.5
# The system stops in order as long as it takes, if something happens in every such span.
STOP_PATIENCE: Final = 60.0
# A control program that does not even take the order to force in such a time hangs; the nucleus is killed then.
FORCE_WAIT: Final = 5.0
# What the nucleus may take to bury everything once it was told to: longer than its own bounds for that (15 s).
BURY_WAIT: Final = 20.0

T = TypeVar("T")


def converse(conversation: Callable[[], Awaitable[T]]) -> T:
    """Run an async function under trio; what it raises arrives alone, not in the group of the nurseries it crossed.

    Ctrl-C cancels it and is raised as KeyboardInterrupt when it has ended. Raised where it happens to strike, as Python
    does it, an interrupt could be lost in a destructor, or leave a path half severed.
    """
    try:
        return trio.run(_interruptibly, conversation)
    except BaseExceptionGroup as group:
        raise _most_telling(group) from group


async def _interruptibly(conversation: Callable[[], Awaitable[T]]) -> T:
    interrupted = False
    async with trio.open_nursery() as nursery:

        async def watch(signals: AsyncIterator[int]) -> None:
            nonlocal interrupted
            async for _ in signals:
                interrupted = True
                nursery.cancel_scope.cancel()

        with trio.open_signal_receiver(signal.SIGINT) as signals:
            nursery.start_soon(watch, signals)
            result = await conversation()
            nursery.cancel_scope.cancel()
    if interrupted:
        raise KeyboardInterrupt
    return result


def _most_telling(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        each = stack.pop()
        if isinstance(each, BaseExceptionGroup):
            stack.extend(each.exceptions)
        else:
            leaves.append(each)
    for kind in (KeyboardInterrupt, CommandError, BrokenPipeError):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0] if len(leaves) == 1 else group


@asynccontextmanager
async def operator(system: runtime.Running) -> AsyncIterator[Path]:
    """A path to the control program of a running system. Raises NoAnswer or Denied if there is none to be had."""
    sock = None
    give_up = trio.current_time() + CONNECT_WAIT
    while sock is None:
        try:
            sock = connect_operator(system.runtime)
        except StrangePeer as error:
            raise Denied(str(error)) from error
        except PermissionError as error:
            raise Denied(f"{system.system}: {error.strerror} ({system.runtime})") from error
        except OSError as error:
            if not runtime.still_runs(system):
                raise SystemGone(system.system) from error
            if trio.current_time() >= give_up:
                why = error.strerror or str(error)
                raise NoAnswer(system.system, system.nucleus_pid, why) from error
            await trio.sleep(_RETRY)
    async with open_path(SocketTransport(sock), name="*CP", peer="*CP") as path:
        yield path


async def ask(
    path: Path,
    system: runtime.Running,
    verb: str,
    /,
    *,
    within: float = ANSWER_WAIT,
    descriptors: tuple[int, ...] = (),
    **arguments: Any,
) -> Any:
    """Ask the control program and return its answer. Raises SystemGone, NoAnswer, UnknownMachine, Denied...

    SystemGone is PathLost when the system goes on.
    """
    return (await ask_reply(path, system, verb, within=within, descriptors=descriptors, **arguments)).body


async def ask_reply(
    path: Path,
    system: runtime.Running,
    verb: str,
    /,
    *,
    within: float = ANSWER_WAIT,
    descriptors: tuple[int, ...] = (),
    **arguments: Any,
) -> Reply:
    """:func:`ask`, with the descriptors of the answer, which are the caller's to close."""
    try:
        with trio.fail_after(within):
            return await path.call_reply([verb, arguments], descriptors=descriptors)
    except trio.TooSlowError as error:
        raise NoAnswer(system.system, system.nucleus_pid, f"no answer in {within:g} s") from error
    except (PathSevered, PathClosed) as error:
        if await survives(system):
            raise PathLost(system.system, verb) from error
        raise SystemGone(system.system, severed_because(error)) from error
    except AccessDenied as error:
        raise Denied(f"the control program of {system.system} refuses {verb}: {error.text}") from error
    except Rejected as error:
        if error.code == "unknown-machine":
            known = list(map(str, error.detail)) if isinstance(error.detail, list) else []
            given = [arguments.get(key) for key in ("machine", "from", "to")]
            flat = [each for value in given for each in (value if isinstance(value, list) else [value])]
            named = [each for each in flat if isinstance(each, str) and each not in known]
            raise UnknownMachine(named[0] if named else "of that name", system.system, known) from error
        if error.code == "unknown-edge":
            known = error.detail if isinstance(error.detail, list) else []
            raise UnknownEdge(str(arguments.get("edge")), system.system, error.text, map(str, known)) from error
        if error.code == "unknown-verb":
            raise CommandError(
                f"the control program of {system.system} does not know {verb!r}",
                "it was started by another version of Retinue: start the system again",
            ) from error
        raise CommandError(
            f"the control program of {system.system} refuses {verb} ({error.code}): {error.text}"
        ) from error


async def survives(system: runtime.Running) -> bool:
    """Whether a system goes on of which a path has ended just now; its end may have begun with that."""
    if system.nucleus_pid is not None and (nucleus := NucleusProcess.of(system, system.nucleus_pid)) is not None:
        try:
            with trio.move_on_after(_LAST_MOMENTS):
                await nucleus.wait()
        finally:
            nucleus.close()
    return runtime.still_runs(system)


async def request(system: runtime.Running, verb: str, /, *, within: float = ANSWER_WAIT, **arguments: Any) -> Any:
    """Ask one thing that may be asked twice: once more when the control program dies meanwhile."""
    try:
        async with operator(system) as path:
            return await ask(path, system, verb, within=within, **arguments)
    except PathLost:
        async with operator(system) as path:
            return await ask(path, system, verb, within=within, **arguments)


def severed_because(error: PathSevered | PathClosed) -> str:
    """Why a path ended, as a word for people; nothing for an orderly end."""
    if isinstance(error, PathSevered) and error.code not in {"closed", "lost"}:
        return error.text or error.code
    return ""


def message_of(body: Any) -> tuple[str, Mapping[str, Any]]:
    """A one-way message of the control program as (kind, contents). Raises CommandError for anything else."""
    if isinstance(body, list) and len(body) == 2 and isinstance(body[0], str) and isinstance(body[1], Mapping):
        return body[0], body[1]
    raise CommandError("the control program sent a message that this version of Retinue does not understand")


class NucleusProcess:
    """The nucleus seen from outside, by a descriptor that cannot come to mean another process (pidfd_open(2))."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor: int | None = os.pidfd_open(pid)

    @classmethod
    def of(cls, system: runtime.Running, pid: int) -> "NucleusProcess | None":
        """The nucleus of a running system, None if it is gone already."""
        try:
            process = cls(pid)
        except ProcessLookupError:
            return None
        # The number could have been given to another process between its writing and the opening: then the lock
        # of the system is free.
        if not runtime.still_runs(system):
            process.close()
            return None
        return process

    async def wait(self) -> None:
        """Until the process has ended (a zombie has)."""
        if self._descriptor is None:
            raise ValueError("the descriptor of the nucleus is closed")
        await trio.lowlevel.wait_readable(self._descriptor)

    def kill(self) -> None:
        """SIGKILL; its machines and the control program die with it. No error if it is gone."""
        if self._descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def close(self) -> None:
        """Give the descriptor back. A second time has no effect."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Patience:
    """How long to wait for something that may take long as long as it makes progress."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._final = False  # progress no longer counts
        self._deadline = float("inf")
        self._scope = trio.CancelScope()

    def progress(self) -> None:
        """Something happened: begin to count anew."""
        if not self._final:
            self._until(trio.current_time() + self._seconds)

    def limit(self, seconds: float) -> None:
        """Wait at most `seconds` from now, whatever happens."""
        self._final = True
        self._until(trio.current_time() + seconds)

    def _until(self, deadline: float) -> None:
        self._deadline = self._scope.deadline = deadline

    async def wait(self, event: trio.Event) -> bool:
        """Wait for `event`; False if patience ran out first. One waits at a time."""
        self.progress()
        with trio.CancelScope(deadline=self._deadline) as self._scope:
            await event.wait()
        return event.is_set()


def tail(file: pathlib.Path, count: int = 10) -> list[str]:
    """The last lines of a file that may be missing; looks at its last 8 KiB."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - 8192))
            text = stream.read().decode(errors="backslashreplace")
    except OSError:
        return []
    return text.rstrip("\n").split("\n")[-count:] if text.strip() else []
