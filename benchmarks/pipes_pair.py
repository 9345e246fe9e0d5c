"""Two processes that measure between them: each does as it is told, one experiment after another, over one socket.

An experiment is a pair of functions of one module, ``LEFT[name]`` and ``RIGHT[name]``. Both get the descriptors that
the parent made for this run (one end of each socket pair each) and the same settings, and return a dict that goes
through JSON. The left one measures; the right one answers until the left one closes its end.
"""

import array
import contextlib
import gc
import importlib
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Final, NoReturn

ROOT: Final = pathlib.Path(__file__).resolve().parent.parent

Experiment = Callable[[list[int], dict[str, Any]], dict[str, Any]]
Kind = socket.SocketKind

# Longer than any experiment takes, also on a machine that others use: then something hangs.
PATIENCE: Final = 60.0
# Of descriptors in one message; the kernel takes 253 (SCM_MAX_FD).
_BATCH: Final = 200

# The arguments: the folder of this repository, the sockets to the parent, and what to import before the processes part.
_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from benchmarks.pipes_pair import fork; fork(*map(int, sys.argv[2:4]), *sys.argv[4:])"
)


class ExperimentFailed(RuntimeError):
    """An experiment did not come to its end. The first line of the text says why, the others where."""


class Worker:
    """The parent's side of one process."""

    def __init__(self, control: socket.socket, output: IO[bytes]) -> None:
        self.control = control
        self._output = output
        self.pid: int = self.answer()["pid"]

    def order(self, about: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        while len(descriptors) > _BATCH:
            socket.send_fds(self.control, [b"{}"], list(descriptors[:_BATCH]))
            descriptors = descriptors[_BATCH:]
        socket.send_fds(self.control, [json.dumps(about).encode()], list(descriptors))

    def answer(self) -> dict[str, Any]:
        try:
            data = self.control.recv(1 << 16)
        except TimeoutError:
            raise ExperimentFailed(f"no result within {PATIENCE:g} s") from None
        except ConnectionError:
            data = b""
        if not data:
            size = self._output.seek(0, os.SEEK_END)
            self._output.seek(max(0, size - 2000))
            raise ExperimentFailed(f"the process died\n{self._output.read().decode('utf-8', 'replace')}")
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise ExperimentFailed(answer["error"])
        return answer

    def pin(self, cores: set[int]) -> None:
        """Every thread it has; those to come inherit it from the one that starts them."""
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)


class Pair:
    """Two processes, from the start to the end of a ``with`` block. ``interpreter``: the Python that they run.

    They are forked from one that has imported ``modules``, as machines are from their saved system: what they do not
    write to is one and the same memory.
    """

    def __init__(self, interpreter: str = sys.executable, modules: Sequence[str] = ()) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        self._controls, theirs = zip(*pairs, strict=True)
        # What they write is looked at when one dies; else some peers' remarks would stand between ours.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        numbers = [sock.fileno() for sock in theirs]
        self._process = subprocess.Popen(
            [interpreter, "-P", "-c", _PROGRAM, str(ROOT), *map(str, numbers), *modules],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            pass_fds=numbers,
            start_new_session=True,
        )
        for sock in theirs:
            sock.close()
        self.workers: tuple[Worker, ...] = ()
        try:
            for sock in self._controls:
                sock.settimeout(PATIENCE)
                self.workers += (Worker(sock, self._output),)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End both processes and what they have started."""
        for sock in self._controls:
            sock.close()
        # What an experiment has started (tractor does) is in the group of its process, and ends with it.
        for leader in (self._process.pid, *(worker.pid for worker in self.workers)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)
        self._process.wait()
        self._output.close()

    def run(
        self,
        module: str,
        name: str,
        settings: Mapping[str, Any],
        *,
        cores: set[int],
        sockets: int = 1,
        kind: Kind = socket.SOCK_SEQPACKET,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One experiment with both processes on these cores; what the left and the right one found.

        Raises :exc:`ExperimentFailed`; then the pair is to be stopped, the other side may still wait for this one.
        """
        ends: tuple[list[int], list[int]] = [], []
        try:
            for _ in range(sockets):
                for descriptors, sock in zip(ends, socket.socketpair(socket.AF_UNIX, kind), strict=True):
                    descriptors.append(sock.detach())
            for worker, descriptors, side in zip(self.workers, ends, ("LEFT", "RIGHT"), strict=True):
                worker.pin(cores)
                worker.order({"module": module, "side": side, "name": name, "settings": settings}, descriptors)
        except OSError as exc:
            raise ExperimentFailed(f"the processes cannot be told: {exc.strerror}") from exc
        finally:
            for descriptors in ends:
                for descriptor in descriptors:
                    os.close(descriptor)
        left, right = self.workers
        return left.answer(), right.answer()


def allow_descriptors(count: int) -> int:
    """Let this process have so many descriptors and some more, as far as the host lets it; how many of them it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = count + 100 if hard == resource.RLIM_INFINITY else min(count + 100, hard)
    if allowed > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return min(count, allowed - 100)


# -- in the process ------------------------------------------------------------------------------------------------


def fork(left: int, right: int, *modules: str) -> NoReturn:
    """Import the modules, become two processes, one for each socket to the parent, and wait for them."""
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    for mine, other in ((left, right), (right, left)):
        if os.fork() == 0:
            os.setsid()  # as a machine does, which the scheduler so takes for a group of its own
            os.close(other)
            work(socket.socket(fileno=mine))
            os._exit(0)
    os.close(left)
    os.close(right)
    for _ in range(2):
        os.wait()
    os._exit(0)


def work(control: socket.socket) -> None:
    """Do what the parent says on a socket, until it closes it."""
    control.send(json.dumps({"pid": os.getpid()}).encode())
    allow_descriptors(1 << 14)
    for order, descriptors in _orders(control):
        gc.collect()
        # What is there already is left out of the collections that follow, which go on as in any program.
        gc.freeze()
        try:
            experiment: Experiment = getattr(importlib.import_module(order["module"]), order["side"])[order["name"]]
            found = experiment(descriptors, order["settings"])
        except Exception as exc:
            found = {"error": f"{_first(exc)}\n{''.join(traceback.format_exception(exc))[-4000:]}"}
        control.send(json.dumps(found).encode())


def _orders(control: socket.socket) -> Iterator[tuple[dict[str, Any], list[int]]]:
    space = socket.CMSG_SPACE(_BATCH * array.array("i").itemsize)
    waiting: list[int] = []
    while True:
        data, ancillary, _, _ = control.recvmsg(1 << 16, space)
        if not data:
            return
        for _, _, content in ancillary:
            numbers = array.array("i")
            numbers.frombytes(content)
            waiting += numbers
        if order := json.loads(data):
            yield order, waiting
            waiting = []


def _first(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return f"{type(exc).__name__}: {exc}".splitlines()[0]
