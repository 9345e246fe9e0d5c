"""The doctor: what takes the control program's place when a host is only looked at.

It is started by a nucleus, with saved systems, as a control program would be; runs the self-test in scratch machines of
every profile; hands what it has found to whoever started it, and ends. So what it says of the seal is what a system
gets, and not what a list of kernel features lets hope for.
"""

import os
import socket
import sys
from typing import Any, Final

import attrs
import trio

from retinue.cp.directory.model import STORAGE_DEFAULT
from retinue.cp.host.cgroups import Groups
from retinue.cp.host.errors import HostError
from retinue.cp.host.levels import missing
from retinue.cp.host.linux import LinuxHost, open_host
from retinue.cp.selftest import self_test
from retinue.cp.syslog import Syslog
from retinue.pipes import Message, Path, SocketTransport

__all__ = ["ENTRY", "PROFILES", "main"]

ENTRY: Final = "retinue.cp.doctor:main"
PROFILES: Final = ("program", "network", "exec")


async def _examine(host: LinuxHost) -> dict[str, Any]:
    seal, root = host.seal_report(), os.geteuid() == 0
    cures = {
        (system, lack.layer): lack.cure
        for system in ("sealed", "network")
        for lack in missing("full", seal, system=system, root=root)
    }
    report = await self_test(host, Syslog(), PROFILES, storage=STORAGE_DEFAULT)
    return {
        "root": root,
        "seal": [attrs.asdict(layer) | {"cure": cures.get((layer.system, layer.layer), "")} for layer in seal],
        "limits": [attrs.asdict(limit) for limit in host.limits_report()],
        "paging": attrs.asdict(host.paging_report()),
        "self_test": report.as_dict(),
    }


async def _run(arguments: dict[str, Any]) -> None:
    console = SocketTransport(socket.socket(fileno=arguments["console"]))
    async with trio.open_nursery() as nursery:
        path = Path(console, name="console", peer="the starter")
        await nursery.start(path.run)
        try:
            async with open_host(socket.socket(fileno=arguments["link"]), Groups(arguments["system"])) as host:
                findings = await _examine(host)
                host.end("finished", "it was looked at", 0)
        except HostError as exc:
            findings = {"trouble": str(exc)}

        async def tell(message: Message) -> Any:
            return findings

        nursery.start_soon(path.serve, tell)
        await path.wait_severed()
        nursery.cancel_scope.cancel()


def main(arguments: dict[str, Any]) -> int:
    """Look at the host and tell; returns the exit status of the process."""
    failed = False
    try:
        trio.run(_run, arguments)
    except* HostError as group:
        failed = True
        print(f"the doctor ends: {group.exceptions[0]}", file=sys.stderr)
    return int(failed)
