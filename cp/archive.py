"""Where the records of a system are while it does not run: a note in its state folder, ``archive.json``.

The control program writes it whenever the machines are given their disks, so it is true of the last run. No machine can
write there.
"""

import json
import os
import pathlib
import time
from typing import Any, Final

import attrs

from retinue.cp.directory import Directory

NAME: Final = "archive.json"
# The disk on which the syslog machine keeps its records, as it calls it.
DISK: Final = "a"
# Longest note that is read: some thousand names.
NOTE_MAX: Final = 1 << 20


@attrs.frozen
class Archive:
    """What the last run of a system has said of its records."""

    system: str
    time: float
    """When it was written, in seconds since the epoch."""
    machines: tuple[str, ...]
    """All that the system had."""
    machine: str | None = None
    """The syslog machine, if there was one."""
    program: str = ""
    """Of that machine."""
    disk: tuple[str, str] | None = None
    """Where its records are: a machine, and a disk of that."""

    @classmethod
    def of(cls, topology: Directory) -> "Archive":
        """Of a topology with an entry for each machine, from now on."""
        system, entries = topology.system, topology.entries
        if system.syslog is None:
            return cls(system.name, time.time(), tuple(entries))
        keeper = entries[system.syslog]
        disks = {disk.name: (keeper.name, disk.name) for disk in keeper.disks}
        disks |= {link.name: (link.machine, link.disk) for link in keeper.links}
        return cls(system.name, time.time(), tuple(entries), keeper.name, keeper.program, disks.get(DISK))

    def folder(self, state: pathlib.Path) -> pathlib.Path | None:
        """The folder with the records."""
        return None if self.disk is None else state.joinpath("disks", *self.disk)

    def write(self, state: pathlib.Path) -> None:
        """Write the note whole or not at all. OSError."""
        path = state / NAME
        new = path.with_name(f"{NAME}.new")
        with open(new, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            json.dump(attrs.asdict(self), file)
        new.replace(path)


def read_archive(state: pathlib.Path) -> Archive | None:
    """The note in a state folder; None when there is none, or no whole one."""
    try:
        with (state / NAME).open("rb") as file:
            note = json.loads(file.read(NOTE_MAX))
    except (OSError, ValueError):
        return None
    match note:
        case {
            "system": str(system),
            "time": float(when),
            "machines": list(machines),
            "machine": str() | None as machine,
            "program": str(program),
            "disk": disk,
        } if all(isinstance(name, str) for name in machines):
            return Archive(system, when, tuple(machines), machine, program, _pair(disk))
    return None


def _pair(found: Any) -> tuple[str, str] | None:
    match found:
        case [str(machine), str(disk)]:
            return machine, disk
    return None
