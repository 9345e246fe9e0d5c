"""The process of a native program, and what process 1 owes to every other: that its end is taken note of."""

import ctypes
import fcntl
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from retinue.svm.console import Lines

# The number of the first descriptor that a program inherits beside the three that every program has.
FIRST: Final = 3

_PR_SET_PDEATHSIG: Final = 1
# Above every descriptor that a machine can have (cp/host/seal/hygiene.py: 4,096).
_LAST: Final = 1 << 16


class Child:
    """The program of a machine, as its child. ``exited`` is set when it has ended; :meth:`run` has to be running."""

    def __init__(
        self, executable: str, arguments: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int]
    ) -> None:
        """Start it. Raises OSError when the file cannot be run.

        ``descriptors`` are its FIRST and following ones; 0 is /dev/null, 1 and 2 are pipes that become records.
        It stays in the machine's session and process group: whoever ends the group ends it, too.
        """
        output, output_end = os.pipe()
        errors, errors_end = os.pipe()
        try:
            self._pid = _spawn(executable, arguments, environment, (output_end, errors_end, *descriptors))
        except BaseException:
            os.close(output)
            os.close(errors)
            raise
        finally:
            os.close(output_end)
            os.close(errors_end)
        self._status: int | None = None
        self.exited = trio.Event()
        self._output, self._errors = Lines(output, sys.stdout), Lines(errors, sys.stderr)

    @property
    def status(self) -> int | None:
        """Its exit status, or the negative number of the signal that killed it; None while it lives."""
        return self._status

    @property
    def last_line(self) -> str:
        """The last thing it said: on standard error, or else on standard output."""
        return self._errors.last or self._output.last

    def terminate(self) -> None:
        """Ask it to end; no effect when it has."""
        if self.status is None:
            os.kill(self._pid, signal.SIGTERM)

    async def run(self) -> None:
        """Until it has ended: make records of what it writes, to the last word, and reap whoever ends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._output.run)
                nursery.start_soon(self._errors.run)
                with trio.open_signal_receiver(signal.SIGCHLD) as deaths:
                    self._reap()  # those who were faster than the line before
                    while self.status is None:
                        await anext(deaths)
                        self._reap()
                # Processes that it has left may hold the pipes, which then have no end.
                nursery.cancel_scope.cancel()
        finally:
            self._output.finish()
            self._errors.finish()

    def _reap(self) -> None:
        """Take note of every end. Orphans become children of process 1, and stay zombies until it does."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._status = os.waitstatus_to_exitcode(status)
                self.exited.set()


def _spawn(
    executable: str, arguments: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int]
) -> int:
    """A process that runs the file, with ``descriptors`` as 1, 2 and so on, and no others. OSError when it cannot.

    Not by :mod:`subprocess`, where descriptors keep their numbers: a shell knows only those of one digit.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    report, report_end = os.pipe()
    try:
        with warnings.catch_warnings():
            # Of threads (from Python 3.12 on): the heartbeat is one, and the child does nothing that could wait for it.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            number = 0
            try:
                report_end = _arrange(descriptors, report_end)
                # In a PID namespace the kernel does it, and for all of them.
                if parent != 1 and prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
                    raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
                if parent != 1 and os.getppid() != parent:
                    os._exit(1)  # it died before that
                os.chdir("/")
                for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by the interpreter, and then across exec
                    signal.signal(ignored, signal.SIG_DFL)
                os.execve(executable, list(arguments), environment)
            except OSError as exc:
                number = exc.errno or 0
            finally:
                os.write(report_end, b"%d" % number)
                os._exit(1)
    finally:
        os.close(report_end)
    with open(report, "rb") as reading:
        reason = reading.read()  # exec has closed the other end
    if reason:
        os.waitpid(pid, 0)
        raise OSError(int(reason), os.strerror(int(reason)))
    return pid


def _arrange(descriptors: Sequence[int], report: int) -> int:
    """Make /dev/null 0 and ``descriptors`` 1 and so on, and close all others but ``report``; returns its new number."""
    null = os.open("/dev/null", os.O_RDWR)
    above = len(descriptors) + 1
    # First out of each other's way.
    *sources, report = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, above) for each in (null, *descriptors, report))
    for number, source in enumerate(sources):
        os.dup2(source, number)
    os.closerange(above, report)
    os.closerange(report + 1, _LAST)
    return report
