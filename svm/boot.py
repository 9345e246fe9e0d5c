"""The boot of a machine, in the process that the saved system has just forked for it.

:func:`boot` is the one place where the order of the steps stands. What a step does to the kernel is the host's business
and comes in as a :class:`Seal`; what it is for stands here.
"""

import faulthandler
import fcntl
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Collection, Mapping
from typing import Any, Final, NoReturn, Protocol

from retinue.svm import log, runtime
from retinue.svm.uncaught import Uncaught

CONTROL: Final = 3  # the path to *CP
# The descriptor of *LOG; also the console, as 1 and 2. By it comes another control path when the control program has
# died; to this process alone, for what a native program has as 1 and 2 are pipes.
LOG: Final = 4

EXIT_SEAL: Final = 71  # EX_OSERR: a step of the boot order failed


class Seal(Protocol):
    """The steps that only the host knows how to do. Each raises OSError when it cannot be done: nothing is optional."""

    def session(self) -> None:
        """A session of its own, default signals, no core files, folder /, umask 077."""

    def descriptors(self, keep: Collection[int]) -> None:
        """/dev/null as 0; every descriptor that is not kept is closed."""

    def root(self) -> None:
        """A root of its own, in which there is nothing but its disks and the code it runs, where the host can do it."""

    def limits(self) -> None:
        """Resource limits: what the topology's ``storage`` allows, and sane bounds for the rest."""

    def privileges(self) -> None:
        """Its own user, where the host gives it one; no_new_privs, and no capability of any kind."""

    def parent(self) -> None:
        """Die with the saved system."""

    def files(self) -> None:
        """No file but the machine's own disks and the code it runs."""

    def calls(self) -> None:
        """No system call but those a service needs."""


def boot(birth: Mapping[str, Any], seal: Seal, control_fd: int, log_fd: int) -> NoReturn:
    """Become the machine described by ``birth`` and run it. Never returns."""
    # 1. Apart from everybody: own session, no inherited signal handlers, a folder that holds nothing.
    seal.session()
    # 2. Two descriptors are the machine's: the control path and the log. Everything else it inherited is closed,
    #    before any code of the machine could look at it.
    _place(control_fd, log_fd)
    seal.descriptors((0, 1, 2, CONTROL, LOG))
    # 3. From here on it can speak, so that each later step can say why it failed.
    console = socket.socket(fileno=LOG)
    writer = log.LogWriter(console)
    step = "root"
    try:
        # 4. A root of its own. While it still has the right to mount, and after 2, which needs the host's /dev.
        seal.root()
        # 5. Bounds on memory, descriptors and so on. Before the seal: some limits cannot be set under it.
        step = "limits"
        seal.limits()
        # 6. Its own user, nothing to gain by any later exec, and no power left. After 4, which needs power; Landlock
        #    and seccomp ask for no_new_privs.
        step = "privileges"
        seal.privileges()
        # 7. Death with the parent. After the change of user in 6, which would clear it (prctl(2)).
        step = "parent"
        seal.parent()
        # 8. Files. As the user of 6 and in the root of 4; before seccomp, which refuses the calls of Landlock.
        step = "files"
        seal.files()
        # 9. System calls. The last step that needs any of the others' calls.
        step = "calls"
        seal.calls()
    except OSError as exc:
        writer.write(log.CRITICAL, "retinue.svm", f"the boot step {step!r} failed: {exc}", {"step": step})
        os._exit(EXIT_SEAL)
    # 10. What a fork copies and must not be the same in two machines.
    reseed()
    # 11. A Python whose output goes to the log, also when it crashes; threads small enough for small machines.
    log.install(writer)
    Uncaught(writer).install()
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)  # asked from outside what it does
    threading.stack_size(1024 * 1024)
    # 12. The program, by name, only now.
    code = runtime.run_to_exit_code(socket.socket(fileno=CONTROL), console)
    log.finish()
    os._exit(code)


def _place(control_fd: int, log_fd: int) -> None:
    """Put the two descriptors where a machine expects them, whatever numbers they came with."""
    control, console = (fcntl.fcntl(each, fcntl.F_DUPFD, 16) for each in (control_fd, log_fd))
    for source, target in ((control, CONTROL), (console, LOG), (console, 1), (console, 2)):
        os.dup2(source, target, inheritable=False)


def reseed() -> None:
    """Fresh randomness in everything that was seeded before the fork (the interpreter reseeds only ``random``)."""
    random.seed()
    trio_run = sys.modules.get("trio._core._run")
    if trio_run is not None:
        trio_run._r.seed()  # trio's scheduler shuffles with it; a fork copies it (measured: identical in all children)
