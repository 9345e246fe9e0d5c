"""How a process of a machine has ended, and what is said of it."""

import os
import signal
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import attrs

from retinue.cp.directory import MachineEntry
from retinue.cp.host.interface import Exit
from retinue.cp.watch import MIB, mebibytes

# How a program's last complaint begins when it was refused memory: by its interpreter, and by a call (ENOMEM).
OUT_OF_STORAGE: Final = ("MemoryError", "OSError: [Errno 12]")
# Exit status of a machine that could not be sealed (retinue.svm.boot).
EXIT_SEAL: Final = 71


class Cause(StrEnum):
    """Why a process has ended, in a word."""

    EXIT = "exit"  # by itself, with a status
    SIGNAL = "signal"
    OUT_OF_STORAGE = "out-of-storage"
    NO_ROOM = "no-room"  # in real storage: all machines together needed more than there is
    WATCHDOG = "watchdog"  # it made no progress
    SEAL_REFUSED = "seal-refused"
    BAD_PROGRAM = "bad-program"
    BAD_CONFIG = "bad-config"
    NOT_READY = "not-ready"  # in time
    DISK_FULL = "disk-full"
    VIOLATION = "violation"  # of the protocol on its control path
    NOT_MADE = "not-made"  # the host could not make it
    ASKED = "asked"  # by the operator, or at the end of the system
    REPLACED = "replaced"
    IDLE = "idle"
    FOLLOWED = "followed"  # a target, as its edge says, or others of its group
    UNKNOWN = "unknown"


@attrs.frozen
class Trouble:
    """Why the control program has ended a process, or asked it to end."""

    cause: Cause
    text: str


ASKED: Final = Trouble(Cause.ASKED, "asked to stop")


@attrs.frozen
class Death:
    """The cause, and a sentence about it. ``asked``: it had been asked to end; ``failed``: it did not end well."""

    cause: Cause
    text: str
    asked: bool
    failed: bool

    def in_order(self, entry: MachineEntry) -> bool:
        """Whether it was meant to end now."""
        return self.asked or (not self.failed and entry.restart != "always")

    def obituary(self, entry: MachineEntry) -> str:
        """What others are told."""
        return f"{entry.name} {'stopped' if self.in_order(entry) else 'died'}: {self.text}"


def judge(
    exit: Exit,
    entry: MachineEntry,
    *,
    asked: Trouble | None,
    trouble: Trouble | None,
    last_complaint: Callable[[], str | None],
) -> Death:
    """The death that an exit means.

    ``asked`` is what it had been asked to end for, ``trouble`` why the control program ended the process itself.
    """
    code = os.waitstatus_to_exitcode(exit.status)
    wanted = asked is not None
    if trouble is not None:
        return Death(trouble.cause, trouble.text, wanted, failed=True)
    if code == 0:
        cause, text = (asked.cause, asked.text) if asked is not None else (Cause.EXIT, "its program returned")
        return Death(cause, text, wanted, failed=False)
    if exit.out_of_storage:
        text = f"out of storage: killed by the host at its limit of {_storage(exit, entry)}"
        return Death(Cause.OUT_OF_STORAGE, text, wanted, failed=True)
    if code < 0:
        return Death(Cause.SIGNAL, f"killed by {_signal_name(-code)}", wanted, failed=True)
    said = exit.ended or last_complaint()
    if said and said.startswith(OUT_OF_STORAGE):
        text = f"out of storage: its program got {said} within {_storage(exit, entry)}"
        return Death(Cause.OUT_OF_STORAGE, text, wanted, failed=True)
    cause = Cause.SEAL_REFUSED if code == EXIT_SEAL else Cause.EXIT
    return Death(cause, f"exit status {code}" + (f": {said}" if said else ""), wanted, failed=True)


def _storage(exit: Exit, entry: MachineEntry) -> str:
    peak = f" (peak {exit.peak_storage / MIB:.1f} MiB)" if exit.peak_storage else ""
    return mebibytes(entry.storage) + peak


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
