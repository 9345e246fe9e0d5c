"""The disks of a system: folders of the host, each machine's own, and what others may see of them."""

import os
import pathlib
from collections.abc import Mapping
from typing import Final, NamedTuple

from retinue.cp.directory import Disk, LinkedDisk, MachineEntry

# Bytes of the largest file that any file system takes (RLIMIT_FSIZE knows no more either).
_UNBOUNDED: Final = 2**63 - 1


class Held(NamedTuple):
    """What the seal must know of a machine's disks: absolute folders."""

    writable: tuple[str, ...]
    readable: tuple[str, ...]
    temporary: tuple[tuple[str, int], ...]
    """With the bytes that each may hold."""
    file_size: int
    """Bytes that one file of it may have; 0 where it has no disk to put one on."""


class Disks:
    """Folders below the state folder."""

    def __init__(self, state: pathlib.Path, machines: Mapping[str, MachineEntry]) -> None:
        self._folder = state / "disks"
        self._machines = machines

    def folder(self, machine: str, disk: str) -> str:
        """The folder of a machine's own disk."""
        return str(self._folder / machine / disk)

    def table(self, machine: MachineEntry) -> dict[str, str]:
        """Every disk and link that the machine has, by its local name."""
        own = {disk.name: self.folder(machine.name, disk.name) for disk in machine.disks}
        return own | {link.name: self.folder(link.machine, link.disk) for link in machine.links}

    def held(self, machine: MachineEntry) -> Held:
        """The same by what may be done with them."""
        kept = [self.folder(machine.name, disk.name) for disk in machine.disks if not disk.temporary]
        linked = [self.folder(link.machine, link.disk) for link in machine.links if link.mode == "rw"]
        readable = [self.folder(link.machine, link.disk) for link in machine.links if link.mode == "ro"]
        temporary = [(self.folder(machine.name, disk.name), disk.size or 0) for disk in machine.disks if disk.temporary]
        return Held((*kept, *linked), tuple(readable), tuple(temporary), self._file_size(machine))

    def _file_size(self, machine: MachineEntry) -> int:
        """What is not on a disk is memory, of which there is as much as the machine's storage."""
        linked = [self._linked(link) for link in machine.links if link.mode == "rw"]
        sizes = [disk.size for disk in (*machine.disks, *linked)]
        return max(machine.storage, *(_UNBOUNDED if size is None else size for size in sizes)) if sizes else 0

    def _linked(self, link: LinkedDisk) -> Disk:
        return next(disk for disk in self._machines[link.machine].disks if disk.name == link.disk)

    def make(self, users: Mapping[str, int]) -> None:
        """Make every folder, and give it with all in it to the machine's user, if ``users`` has one. OSError."""
        for machine in self._machines.values():
            for disk in machine.disks:
                folder = pathlib.Path(self.folder(machine.name, disk.name))
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if machine.name in users:
                    _give(folder, users[machine.name])

    def empty(self, machine: MachineEntry) -> None:
        """Remove what an earlier generation has left on the temporary disks. OSError."""
        for disk in machine.disks:
            if disk.temporary:
                _clear(self.folder(machine.name, disk.name))


def _clear(folder: str) -> None:
    """Remove everything in a folder, however deep a hostile machine has made it: what is below is lifted first."""
    lifted = 0
    while entries := _entries(folder):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in _entries(entry.path):
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)  # a folder that is moved is written to: its way up is another
                    while os.path.lexists(place := os.path.join(folder, f"{lifted}")):
                        lifted += 1
                    os.rename(inner.path, place)
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _give(folder: pathlib.Path, user: int) -> None:
    """Make a folder and all in it somebody's, unless it is: then everything in it has been made by that user."""
    if folder.stat().st_uid == user:
        return
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(os.path.join(parent, name), user, user, follow_symlinks=False)
    os.chown(folder, user, user)
