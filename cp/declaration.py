"""What a system is declared to be, in a form that outlives the control program: topology, settings, secrets.

A control program that takes over must not read the file again: somebody may be at work on it, and secrets may be gone.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import attrs
import msgpack

from retinue.cp import directory
from retinue.cp.directory import Directory, MachineEntry
from retinue.cp.host.interface import Host, Kept

# Under which the nucleus keeps it.
KEY = "declaration"


@attrs.frozen
class Origin:
    """Where the definition of a machine comes from: a topology file, as it was read, and what was set since."""

    path: str
    text: str
    settings: Mapping[str, Mapping[str, Any]]


@attrs.frozen
class Declaration:
    """``settings`` are those that an operator has set since, by machine and key; ``secrets`` by machine and name.

    ``held`` are machines that are not what the file says: it is being applied (``applying``), or they could not be
    changed. In the topology they are what they are.
    """

    topology: Directory
    settings: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    secrets: Mapping[str, Mapping[str, bytes]] = attrs.field(factory=dict)
    held: Mapping[str, Origin] = attrs.field(factory=dict)
    applying: bool = False

    def keep(self, host: Host) -> None:
        """Have the nucleus keep it, in a file that has no name."""
        whole: list[Any] = [str(self.topology.path), self.topology.text, dict(self.settings), dict(self.secrets)]
        origins: list[Origin] = []
        for origin in self.held.values():
            if origin not in origins:
                origins.append(origin)
        held = {name: origins.index(origin) for name, origin in self.held.items()}
        whole += [[attrs.asdict(origin) for origin in origins], held, self.applying]
        descriptor = os.memfd_create(KEY, os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(msgpack.packb(whole))
            host.keep(KEY, {}, (descriptor,))
        finally:
            os.close(descriptor)

    @classmethod
    def recall(cls, kept: Kept) -> "Declaration":
        """What was kept; takes the descriptor over."""
        (descriptor,) = kept.descriptors
        try:
            whole = msgpack.unpackb(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        finally:
            os.close(descriptor)
        path, text, settings, secrets, *more = whole
        topology = directory.load(pathlib.Path(path), text=text, settings=settings)
        if not more:  # of an earlier version
            return cls(topology, settings, secrets)
        origins = [Origin(**about) for about in more[0]]
        held = {name: origins[index] for name, index in more[1].items()}
        return cls(assembled(topology, held), settings, secrets, held, more[2])


def assembled(topology: Directory, held: Mapping[str, Origin]) -> Directory:
    """A topology in which these machines are what they were. DirectoryErrors."""
    known: list[tuple[Origin, dict[str, MachineEntry]]] = []
    entries = {}
    for name, origin in held.items():
        found = next((machines for each, machines in known if each == origin), None)
        if found is None:
            load = directory.load(pathlib.Path(origin.path), text=origin.text, settings=origin.settings)
            found = load.entries
            known.append((origin, found))
        entries[name] = found[name]
    return mixed(topology, entries)


def mixed(topology: Directory, entries: Mapping[str, MachineEntry]) -> Directory:
    """The same with these machines as they are here."""
    if not entries:
        return topology
    whole = topology.entries | dict(entries)
    return attrs.evolve(topology, machines=tuple(whole.values()))
