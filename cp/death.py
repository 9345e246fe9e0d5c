"""How a process of a machine has ended, and what is said of it."""

import os
import signal
from collections.abc import Callable
from typing import Final

import attrs

from retinue.cp.directory import MachineEntry
from retinue.cp.host.interface import Exit
from retinue.cp.watch import MIB, mebibytes

# How a program's last complaint begins when it was refused memory: by its interpreter, and by a call (ENOMEM).
OUT_OF_STORAGE: Final = ("MemoryError", "OSError: [Errno 12]")


@attrs.frozen
class Death:
    """The cause in a sentence. ``asked``: the machine had been asked to end; ``failed``: it did not end well."""

    cause: str
    asked: bool
    failed: bool

    def in_order(self, entry: MachineEntry) -> bool:
        """Whether it was meant to end now."""
        return self.asked or (not self.failed and entry.restart != "always")

    def obituary(self, entry: MachineEntry) -> str:
        """What others are told."""
        return f"{entry.name} {'stopped' if self.in_order(entry) else 'died'}: {self.cause}"


def judge(
    exit: Exit, entry: MachineEntry, *, asked: bool, trouble: str | None, last_complaint: Callable[[], str | None]
) -> Death:
    """The death that an exit means. ``trouble`` is why the control program ended the process itself, if it did."""
    code = os.waitstatus_to_exitcode(exit.status)
    if trouble is not None:
        return Death(trouble, asked, failed=True)
    if code == 0:
        return Death("asked to stop" if asked else "its program returned", asked, failed=False)
    if exit.out_of_storage:
        return Death(f"out of storage: killed by the host at its limit of {_storage(exit, entry)}", asked, failed=True)
    if code < 0:
        return Death(f"killed by {_signal_name(-code)}", asked, failed=True)
    said = exit.ended or last_complaint()
    if said and said.startswith(OUT_OF_STORAGE):
        return Death(f"out of storage: its program got {said} within {_storage(exit, entry)}", asked, failed=True)
    return Death(f"exit status {code}" + (f": {said}" if said else ""), asked, failed=True)


def _storage(exit: Exit, entry: MachineEntry) -> str:
    peak = f" (peak {exit.peak_storage / MIB:.1f} MiB)" if exit.peak_storage else ""
    return mebibytes(entry.storage) + peak


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
