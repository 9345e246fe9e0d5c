"""The seal: what a machine loses before its program's first instruction. Standard library only.

A :class:`SealKit` is made once in a saved system (paths surveyed, filter assembled, kernel asked); each machine gets a
:class:`Seal` from it, whose steps :mod:`retinue.svm.boot` calls in this order::

    session  descriptors  limits  privileges  parent  files  calls

Every step stands for itself; why the order is what it is stands at each step. One that fails raises SealFailed (an
OSError) and the machine must not run.
"""

import errno
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from retinue.cp.host import libc
from retinue.cp.host.errors import SealFailed
from retinue.cp.host.seal import code, hygiene, landlock, policy

__all__ = ["Seal", "SealKit"]

DEVICES = (("/dev/null", landlock.READ_WRITE), ("/dev/zero", landlock.READ), ("/dev/urandom", landlock.READ))


class SealKit:
    """What all machines of one saved system have in common.

    :param import_path: the sys.path every machine has.
    :param network: the machines keep the host's network.
    :param own_pid_namespace: each of them is process 1 of a PID namespace.
    :raises SealFailed: this kernel (or machine architecture) cannot seal anything.
    """

    def __init__(self, import_path: Sequence[str], *, network: bool, own_pid_namespace: bool) -> None:
        if libc.MACHINE not in ("x86_64", "aarch64"):
            raise SealFailed("calls", f"architecture {libc.MACHINE}", errno.ENOSYS, "x86_64 and aarch64 are supported")
        self.landlock_abi = landlock.abi()
        self.network = network
        self.own_pid_namespace = own_pid_namespace
        self.parent = os.getpid()
        self.filter = policy.policy(network=network)
        paths = [*code.interpreter_paths(), *code.library_paths(import_path)]
        if network:
            paths += code.NAME_SERVICE
        self.grants = [*((path, landlock.CODE) for path in _outermost(paths)), *DEVICES]
        self.signals: list[int] = []
        self.image = 0

    def complete(self) -> None:
        """Note what only shows when everything is imported and set up: handled signals, and the size of the image."""
        self.signals = hygiene.changed_signals()
        self.image = _data_bytes()

    @property
    def layers(self) -> list[tuple[str, str]]:
        """The layers every machine has, or refuses to start: (name, version)."""
        return [
            ("no-new-privs", ""),
            ("landlock", f"ABI {self.landlock_abi}"),
            ("seccomp", f"{len(self.filter)} steps"),
        ]

    def seal(self, birth: Mapping[str, Any]) -> "Seal":
        """The steps for one machine; ``birth`` as in :class:`retinue.cp.host.interface.Birth`."""
        return Seal(self, birth)


class Seal:
    """The steps of sealing the calling process, for :mod:`retinue.svm.boot`."""

    def __init__(self, kit: SealKit, birth: Mapping[str, Any]) -> None:
        self._kit = kit
        self._birth = birth

    def session(self) -> None:
        """Own session, umask, working directory, signals, no core. First: what follows should not be interrupted."""
        hygiene.leave_session(self._birth["machine"], self._kit.signals)

    def descriptors(self, keep: Collection[int]) -> None:
        """Close every descriptor but 0, 1, 2 and ``keep``; 0 is /dev/null. Before files, which closes /dev off."""
        hygiene.keep_descriptors(keep)

    def limits(self) -> None:
        """Resource limits. Before the program can allocate anything; does not depend on other steps."""
        hygiene.set_limits(self._birth["storage"], self._kit.image)

    def privileges(self) -> None:
        """no_new_privs and no capability. Before files and calls: without it the kernel lets only root do those.

        A machine with the host's network keeps the right to bind a port below 1024, if the system has it.
        """
        hygiene.drop_privileges(1 << hygiene.CAP_NET_BIND_SERVICE if self._kit.network else 0)

    def files(self) -> None:
        """Landlock: its disks read-write, code read-only, nothing else. After privileges and descriptors."""
        birth = self._birth
        grants = [
            *self._kit.grants,
            *((path, landlock.CODE) for path in code.program_paths(birth["code"])),
            *((path, landlock.DISK) for path in birth["disks"]),
        ]
        for folder in (*birth["disks"], *birth["code"]):
            try:
                os.listdir(folder)
            except OSError as error:
                raise SealFailed("files", folder, error.errno or 0, landlock.REACH) from error
        landlock.restrict(grants, network=self._kit.network)

    def parent(self) -> None:
        """Die with the saved system. After privileges (a change of user would undo it), before calls (it is prctl).

        The kernel kills every process of a PID namespace with the one that made the saved system's; elsewhere the
        parent is looked at a second time, for it may have died before.
        """
        libc.prctl(libc.PR_SET_PDEATHSIG, 9)
        if not self._kit.own_pid_namespace and os.getppid() != self._kit.parent:
            raise SealFailed("parent", "saved system", errno.ESRCH)

    def calls(self) -> None:
        """seccomp. Last: it takes away the calls the other steps are made of."""
        self._kit.filter.load(os.getpid())


def _outermost(paths: Sequence[str]) -> list[str]:
    """Those that exist, without links and without what lies in another of them: each one costs every machine a rule."""
    kept: list[str] = []
    for path in sorted({os.path.realpath(path) for path in paths if os.path.exists(path)}):
        if not path.startswith(tuple(folder + os.sep for folder in kept)):
            kept.append(path)
    return kept


def _data_bytes() -> int:
    """Private writable memory of this process, as RLIMIT_DATA counts it."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
