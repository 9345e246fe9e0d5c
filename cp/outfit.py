"""What the machines of a system are given: disks, users and secrets, as host and machine are told of them."""

import pathlib
from collections.abc import Mapping
from typing import Any

from retinue.cp.archivist import Archivist
from retinue.cp.directory import Directory, MachineEntry, code_folders, executable
from retinue.cp.disks import Disks
from retinue.cp.host.interface import Birth
from retinue.cp.secrets import Secrets
from retinue.cp.syslog import Syslog


class Outfit:
    """The belongings of all machines of a system."""

    def __init__(
        self,
        topology: Directory,
        state_folder: pathlib.Path,
        secrets: Secrets,
        runtime_folder: pathlib.Path | None,
        syslog: Syslog,
    ) -> None:
        self._topology = topology
        self._secrets = secrets
        self._state = state_folder
        self._archivist = Archivist(state_folder, runtime_folder, syslog)
        self.users: Mapping[str, int] = {}
        """The user of each machine that has one for itself."""
        self.disks = Disks(state_folder, topology.entries)

    def make(self, users: Mapping[str, int], since: float) -> None:
        """Make the disks, in a run that began at ``since``.

        ``users`` has the user of each machine that has one for itself. OSError.
        """
        self.users = users
        self.disks.make(users)
        self._archivist.note(self._topology, since)

    def declare(self, topology: Directory, users: Mapping[str, int], since: float) -> None:
        """From now on these are the machines: as :meth:`make`."""
        disks = Disks(self._state, topology.entries)
        disks.make(users)
        self._archivist.note(topology, since)
        self._topology, self.disks, self.users = topology, disks, users

    def instances(self, target: str) -> int:
        """How many machines are behind a name."""
        return max(1, sum(entry.base == target for entry in self._topology.machines))

    def birth(self, entry: MachineEntry, generation: int) -> Birth:
        """What the host is told of a machine. OSError: the program of an ``exec`` machine is not there any more."""
        held = self.disks.held(entry)
        return Birth(
            machine=entry.name,
            generation=generation,
            network=entry.network,
            storage=entry.storage,
            disks=held.writable,
            code=code_folders(self._topology, entry),
            kind=entry.kind,
            uid=self.users.get(entry.name, -1),
            links=held.readable,
            temporary=held.temporary,
            executable=executable(self._topology, entry) if entry.kind == "exec" else "",
            file_size=held.file_size,
            share=entry.share,
            cpu=entry.cpu,
            largest_share=max(each.share for each in self._topology.machines),
            segments=entry.most_segments,
        )

    def _own(self, entry: MachineEntry) -> dict[str, bytes]:
        names = {secret.name for secret in entry.secrets}
        return {name: value for name, value in self._secrets.of(entry.declared).items() if name in names}

    def load(self, birth: Birth, entry: MachineEntry) -> dict[str, Any]:
        """What the machine is told: the arguments of ``load`` on its control path."""
        arguments = {
            "name": entry.name,
            "kind": entry.kind,
            "program": entry.program,
            "config": entry.config,
            "edges": {
                edge.name: {
                    "limit": edge.limit,
                    "overflow": edge.overflow,
                    "to": edge.to,
                    "lazy": edge.lazy,
                    "instances": self.instances(edge.to),
                }
                for edge in entry.uses
            },
            "disks": self.disks.table(entry),
            "threads": entry.threads,
            "secrets": self._own(entry),
            "log": entry.log.policy,
        }
        if entry.kind == "exec":
            arguments |= {
                "executable": birth.executable,
                "command": [birth.executable, *entry.command[1:]],
                "sockets": {socket.name: socket.side for socket in entry.sockets},
            }
        return arguments
