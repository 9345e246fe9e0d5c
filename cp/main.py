"""The entry of the control program's process, which the nucleus starts."""

import os
import pathlib
import socket
import sys
from typing import Any

import trio

from retinue.cp import directory
from retinue.cp.directory import DirectoryErrors
from retinue.cp.directory.secrets import read_values
from retinue.cp.host.cgroups import Groups
from retinue.cp.host.errors import HostError
from retinue.cp.host.linux import open_host
from retinue.cp.operator_socket import listen_operator
from retinue.cp.secrets import Secrets, take_over
from retinue.cp.switchboard import raise_descriptor_limit
from retinue.cp.system import EXIT_CONFIG, ControlProgram

EXIT_HOST = 1


async def _run(arguments: dict[str, Any], groups: Groups | None) -> int:
    console = socket.socket(fileno=arguments["console"])
    variables = take_over(arguments["secrets"]) if arguments["secrets"] >= 0 else {}
    async with open_host(socket.socket(fileno=arguments["link"]), groups) as host:
        try:
            topology = directory.load(pathlib.Path(arguments["topology"]))
            values = read_values(topology, variables, arguments["topology"])
        except DirectoryErrors as exc:
            # It was good when the command read it: somebody has just changed it.
            host.end("failed", str(exc), EXIT_CONFIG)
            return EXIT_CONFIG
        with listen_operator(arguments["runtime"]) as operators:
            async with trio.open_nursery() as nursery:
                cp = ControlProgram(
                    topology,
                    host,
                    pathlib.Path(arguments["state"]),
                    nursery,
                    secrets=Secrets(values),
                )
                await cp.run(console, operators)
                nursery.cancel_scope.cancel()
    return 0


def main(arguments: dict[str, Any]) -> int:
    """Run the control program; returns the exit status of the process."""
    return run(arguments, Groups(arguments["system"]))


def run(arguments: dict[str, Any], groups: Groups | None) -> int:
    """The same with the control groups that machines are to have; without, they have none."""
    os.umask(0o077)  # what it creates, disks above all, is nobody else's
    raise_descriptor_limit()
    try:
        return trio.run(_run, arguments, groups)
    except* HostError as group:
        for exc in group.exceptions:
            print(f"the control program ends: {exc}", file=sys.stderr)
    return EXIT_HOST
