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
from retinue.cp.directory import Directory
from retinue.cp.host.interface import Host, Kept

# Under which the nucleus keeps it.
KEY = "declaration"


@attrs.frozen
class Declaration:
    """``settings`` are those that an operator has set since, by machine and key; ``secrets`` by machine and name."""

    topology: Directory
    settings: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    secrets: Mapping[str, Mapping[str, bytes]] = attrs.field(factory=dict)

    def keep(self, host: Host) -> None:
        """Have the nucleus keep it, in a file that has no name."""
        whole = [str(self.topology.path), self.topology.text, dict(self.settings), dict(self.secrets)]
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
            path, text, settings, secrets = msgpack.unpackb(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        finally:
            os.close(descriptor)
        return cls(directory.load(pathlib.Path(path), text=text, settings=settings), settings, secrets)
