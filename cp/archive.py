"""Where the records of a system are while it does not run: a note in its state folder, ``archive.json``.

The control program writes it whenever the machines are given their disks, so it is true of the last run. No machine can
write there. It is believed only where a stranger could not have written it either.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import stat
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:  # a completion of names pays for what this module imports
    from retinue.cp.directory import Directory

NAME: Final = "archive.json"
# The program whose records can be read without it, and what they are in.
STOCK: Final = "retinue.services.syslog"
DATABASE: Final = "records.sqlite3"
# The disk on which the syslog machine keeps its records, as it calls it.
DISK: Final = "a"
# Longest note that is read: some thousand names.
NOTE_MAX: Final = 1 << 20

# As in a topology (retinue.cp.directory.names); each of the machines behind one name has its number.
SYSTEM_NAME: Final = re.compile(r"[A-Z][A-Z0-9]{0,7}", re.ASCII)
_MACHINE: Final = re.compile(r"[A-Z][A-Z0-9]{0,7}(@[0-9]{1,3})?", re.ASCII)
_DISK: Final = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)


@attrs.frozen
class Store:
    """A syslog machine that kept the records of some run."""

    machine: str
    program: str
    disk: tuple[str, str] | None
    """Where its records are: a machine, and a disk of that."""

    def holds(self, state: pathlib.Path) -> bool:
        """Whether there is something in it that can be read."""
        if self.program != STOCK or self.disk is None:
            return False
        return os.path.lexists(state.joinpath("disks", *self.disk, DATABASE))


@attrs.frozen
class Archive:
    """What the last run of a system has said of its records."""

    system: str
    time: float
    """When that run began, in seconds since the epoch."""
    machines: tuple[str, ...]
    """All that the system had."""
    machine: str | None = None
    """The syslog machine, if there was one."""
    program: str = ""
    """Of that machine."""
    disk: tuple[str, str] | None = None
    """Where its records are: a machine, and a disk of that."""
    runtime: str = ""
    """The runtime folder of that run, if it had one."""
    earlier: Store | None = None
    """Where the records of the runs before were, if that was somewhere else."""

    @classmethod
    def of(cls, topology: "Directory", time: float, runtime: str = "") -> "Archive":
        """Of a topology with an entry for each machine, and a run that began at ``time``."""
        system, entries = topology.system, topology.entries
        if system.syslog is None:
            return cls(system.name, time, tuple(entries), runtime=runtime)
        keeper = entries[system.syslog]
        disks = {disk.name: (keeper.name, disk.name) for disk in keeper.disks}
        disks |= {link.name: (link.machine, link.disk) for link in keeper.links}
        disk = disks.get(DISK)
        return cls(system.name, time, tuple(entries), keeper.name, keeper.program, disk, runtime)

    @property
    def store(self) -> Store | None:
        """Where the last run has kept its records, if it has."""
        return None if self.machine is None else Store(self.machine, self.program, self.disk)

    def folder(self, state: pathlib.Path) -> pathlib.Path | None:
        """The folder with the records."""
        return None if self.disk is None else state.joinpath("disks", *self.disk)

    def after(self, last: "Archive | None", state: pathlib.Path) -> "Archive":
        """The same when ``last`` is the note before it: what is not known here any more is not forgotten."""
        if last is None:
            return self
        before = last.store
        earlier = last.earlier if before is None or not before.holds(state) or before == self.store else before
        return attrs.evolve(self, earlier=None if earlier == self.store else earlier)

    def readable(self, state: pathlib.Path) -> "Archive":
        """The same with the store that holds something: the earlier one, if there is nothing in the last one yet."""
        earlier, store = self.earlier, self.store
        if earlier is None or not earlier.holds(state):
            return self
        if store is not None and (store.program != STOCK or store.holds(state)):
            return self  # or only that program knows whether it has stored any
        return attrs.evolve(self, machine=earlier.machine, program=earlier.program, disk=earlier.disk)

    def write(self, state: pathlib.Path) -> None:
        """Write the note whole or not at all. OSError.

        It is not forced to the disk, for who calls this has no time to wait for that: if the host dies just then, there
        may be a torn note, which is read as none.
        """
        path = state / NAME
        new = path.with_name(f"{NAME}.new")
        new.unlink(missing_ok=True)
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w") as file:
                json.dump(attrs.asdict(self), file)
            new.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise


def read_archive(state: pathlib.Path) -> Archive | None:
    """The note in a state folder; None when there is none, no whole one, or one that somebody else may have written."""
    try:
        note = json.loads(_read(state))
    except (OSError, ValueError, RecursionError):
        return None
    match note:
        case {
            "system": str(system),
            "time": float(when),
            "machines": list(machines),
            "machine": str() | None as machine,
            "program": str(program),
            "disk": disk,
            "runtime": str(runtime),
            "earlier": earlier,
        } if SYSTEM_NAME.fullmatch(system) and math.isfinite(when) and all(map(_is_machine, machines)):
            pass
        case _:
            return None
    try:
        store = None if machine is None else _store(machine, program, disk)
        before = None if earlier is None else _store(earlier["machine"], earlier["program"], earlier["disk"])
    except (ValueError, TypeError, KeyError):
        return None
    if runtime and (not os.path.isabs(runtime) or "\0" in runtime):
        return None
    made = Archive(system, when, tuple(machines), runtime=runtime, earlier=before)
    if store is None:
        return made
    return attrs.evolve(made, machine=store.machine, program=store.program, disk=store.disk)


def _read(state: pathlib.Path) -> bytes:
    """What is in the note, if folder and note are root's or ours. OSError."""
    folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(folder, stat.S_ISDIR)
        descriptor = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        _check(descriptor, stat.S_ISREG)
        return os.read(descriptor, NOTE_MAX)
    finally:
        os.close(descriptor)


def _check(descriptor: int, kind: Any) -> None:
    found = os.fstat(descriptor)
    if not kind(found.st_mode) or found.st_uid not in {0, os.geteuid()} or found.st_mode & 0o002:
        raise PermissionError(f"{NAME} may be somebody else's")


def _is_machine(untrusted: Any) -> bool:
    return isinstance(untrusted, str) and _MACHINE.fullmatch(untrusted) is not None


def _store(machine: Any, program: Any, disk: Any) -> Store:
    """ValueError if it is none."""
    if not _is_machine(machine) or not isinstance(program, str):
        raise ValueError("no machine")
    match disk:
        case None:
            return Store(machine, program, None)
        case [str(owner), str(name)] if _is_machine(owner) and _DISK.fullmatch(name):
            return Store(machine, program, (owner, name))
    raise ValueError("no disk")
