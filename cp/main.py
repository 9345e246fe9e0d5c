"""The entry of the control program's process, which the nucleus starts: as the first, or as a spare that waits.

Everything it will need is imported before it says that it has loaded. From the moment in which it is told what there is
to take over, every millisecond is one without a control program.
"""

import gc
import importlib
import os
import pathlib
import socket
import sys
from typing import Any, Final

import trio

from retinue.cp import directory
from retinue.cp.declaration import KEY as DECLARATION
from retinue.cp.declaration import Declaration
from retinue.cp.directory import DirectoryErrors
from retinue.cp.directory.secrets import read_values
from retinue.cp.host.cgroups import Groups
from retinue.cp.host.errors import HostError
from retinue.cp.host.interface import Host, Restored
from retinue.cp.host.link import Link
from retinue.cp.host.linux import open_host
from retinue.cp.host.takeover import wait_restored
from retinue.cp.kept import kept_journal, kept_operators
from retinue.cp.secrets import take_over
from retinue.cp.switchboard import raise_descriptor_limit
from retinue.cp.system import EXIT_CONFIG, ControlProgram

EXIT_HOST = 1

_LATE: Final = ("retinue", "resource", "encodings.idna", "encodings.utf_8_sig")
"""What others import only when they first need it."""


def _load() -> None:
    for name in _LATE:
        importlib.import_module(name)
    trio.run(trio.sleep, 0)
    gc.collect()
    gc.freeze()


def _declared(host: Host, arguments: dict[str, Any]) -> Declaration:
    """What the system is declared to be. DirectoryErrors when its file is not in order any more."""
    if (kept := host.restored.kept.get(DECLARATION)) is not None:
        return Declaration.recall(kept)
    topology = directory.load(pathlib.Path(arguments["topology"]))
    variables = take_over(arguments["secrets"]) if arguments["secrets"] >= 0 else {}
    return Declaration(topology, {}, read_values(topology, variables, arguments["topology"]))


async def _run(arguments: dict[str, Any], link: Link, restored: Restored, groups: Groups | None) -> int:
    async with open_host(link, groups, restored) as host:
        if not restored.first and DECLARATION not in restored.kept:
            host.end("cp-died", f"{restored.died}, before the system had begun", EXIT_HOST)
            return EXIT_HOST
        # Of a control program that has died the console has gone with it; whoever holds the other end comes back.
        console = socket.socket(fileno=arguments["console"]) if restored.first else None
        try:
            declared = _declared(host, arguments)
        except DirectoryErrors as exc:
            # It was good when the command read it: somebody has just changed it.
            host.end("failed", str(exc), EXIT_CONFIG)
            return EXIT_CONFIG
        with kept_operators(host, arguments["runtime"]) as operators:
            async with trio.open_nursery() as nursery:
                state, runtime = pathlib.Path(arguments["state"]), pathlib.Path(arguments["runtime"])
                journal = kept_journal(host)
                cp = ControlProgram(declared, host, state, nursery, journal=journal, runtime=runtime)
                await cp.run(console, operators)
                nursery.cancel_scope.cancel()
    return 0


def main(arguments: dict[str, Any]) -> int:
    """Run the control program; returns the exit status of the process."""
    # The groups are the nucleus', which outlives a control program.
    return run(arguments, Groups(arguments["system"], owner=os.getppid()))


def run(arguments: dict[str, Any], groups: Groups | None) -> int:
    """The same with the control groups that machines are to have; without, they have none."""
    os.umask(0o077)  # what it creates, disks above all, is nobody else's
    raise_descriptor_limit()
    _load()
    try:
        link, restored = wait_restored(socket.socket(fileno=arguments["link"]))
        return trio.run(_run, arguments, link, restored, groups)
    except* HostError as group:
        for exc in group.exceptions:
            print(f"the control program ends: {exc}", file=sys.stderr)
    return EXIT_HOST
