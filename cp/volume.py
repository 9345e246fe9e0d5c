"""The paging volume of a running system: opened before its machines, and again by each later control program."""

import os
import pathlib

import trio

from retinue.cp.directory import System
from retinue.cp.host.interface import Host
from retinue.cp.syslog import INFO, WARNING, Syslog

__all__ = ["open_volume"]


async def open_volume(system: System, host: Host, state_folder: pathlib.Path, syslog: Syslog) -> None:
    """Have the host use the volume that ``[system] paging`` asks for; without it the system goes on, with a record."""
    if (paging := system.paging) is None:
        return
    path = os.path.join(state_folder, paging.volume)
    why = await trio.to_thread.run_sync(host.open_volume, path, paging.size)
    if why:
        syslog.write(WARNING, f"there is no paging volume: {why}", fields={"volume": path})
    elif host.restored.first:
        mechanism = host.paging_report().mechanism
        syslog.write(INFO, f"the paging volume is {path}; pages go there by {mechanism}", fields={"volume": path})
