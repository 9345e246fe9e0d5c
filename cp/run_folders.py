"""The folders of the ``exec`` machines for their UNIX sockets, on a host where a machine has no root of its own.

They lie below the runtime folder: nothing in them outlives the machine that it belongs to.
"""

import os
import pathlib
import shutil
from typing import Final

from retinue.cp.directory import MachineEntry

# Where a machine has it that has a root of its own.
INSIDE: Final = "/run"


class RunFolders:
    """One folder for each machine that needs one."""

    def __init__(self, runtime: pathlib.Path) -> None:
        self._folder = runtime / "machines"

    def folder(self, machine: MachineEntry) -> str:
        """The absolute path of a machine's folder on the host; empty for one that needs none."""
        return str(self._folder / machine.name) if machine.kind == "exec" else ""

    def renew(self, machine: MachineEntry, user: int) -> None:
        """Give a machine an empty folder, its own if it has a ``user`` of its own (else -1). OSError."""
        if folder := self.folder(machine):
            if os.path.lexists(folder):
                shutil.rmtree(folder)
            os.makedirs(folder, mode=0o700)
            if user >= 0:
                os.chown(folder, user, user)

    def remove(self) -> None:
        """Remove them all; what cannot be removed stays."""
        shutil.rmtree(self._folder, ignore_errors=True)
