"""A control program without a will of its own: it does to its host what the test says over the console, and tells back.

Orders: ``{"id", "do": "spawn", "birth": {...}}`` with two descriptors, ``signal``, ``end``, ``report``,
``limits``, ``usage``, ``exit``.
Answers carry the id; ends of machines and events of the host come without one.
"""

import os
import socket
from typing import Any

import attrs
import trio

from retinue.cp.host.cgroups import Groups
from retinue.cp.host.errors import HostError
from retinue.cp.host.interface import Birth
from retinue.cp.host.link import Link, close_all
from retinue.cp.host.linux import LinuxHost, open_host


def main(args: dict[str, Any]) -> int:
    trio.run(_drive, socket.socket(fileno=args["link"]), Link(socket.socket(fileno=args["console"])), None)
    return 0


def main_with_groups(args: dict[str, Any]) -> int:
    """As a real control program: machines have control groups, where the host has any."""
    groups = Groups(args["system"])
    trio.run(_drive, socket.socket(fileno=args["link"]), Link(socket.socket(fileno=args["console"])), groups)
    return 0


async def _drive(link: socket.socket, console: Link, groups: Groups | None) -> None:
    try:
        async with open_host(link, groups) as host, trio.open_nursery() as nursery:
            nursery.start_soon(_tell_exits, host, console)
            nursery.start_soon(_tell_events, host, console)
            console.post({"ready": os.getpid()})
            while (received := await _receive(console)) is not None:
                nursery.start_soon(_obey, host, console, nursery.cancel_scope, *received)
            nursery.cancel_scope.cancel()
    except HostError as error:
        console.post({"error": type(error).__name__, "text": str(error)})


async def _receive(console: Link) -> tuple[dict[str, Any], list[int]] | None:
    while True:
        try:
            return console.receive()
        except BlockingIOError:
            await trio.lowlevel.wait_readable(console.fileno())


async def _obey(
    host: LinuxHost, console: Link, leave: trio.CancelScope, order: dict[str, Any], descriptors: list[int]
) -> None:
    answer: dict[str, Any] = {"id": order["id"]}
    try:
        if order["do"] == "spawn":
            birth = order["birth"]
            birth = Birth(**{**birth, "disks": tuple(birth["disks"]), "code": tuple(birth["code"])})
            if order.get("cancel"):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(host.spawn, birth, descriptors)
                    # Not before the nucleus was asked; it may be too late already, on a busy machine.
                    while (birth.machine, birth.generation) not in host._spawns and nursery.child_tasks:
                        await trio.lowlevel.checkpoint()
                    answer["value"] = bool(nursery.child_tasks)
                    nursery.cancel_scope.cancel()
            else:
                answer["value"] = attrs.asdict(await host.spawn(birth, descriptors))
        elif order["do"] == "signal":
            host.signal(order["machine"], order["generation"], order["number"])
        elif order["do"] == "end":
            host.end(order["how"], order["text"], order["exit_code"])
            leave.cancel()
        elif order["do"] == "report":
            answer["value"] = [attrs.asdict(layer) for layer in host.seal_report()]
        elif order["do"] == "limits":
            answer["value"] = [attrs.asdict(limit) for limit in host.limits_report()]
        elif order["do"] == "usage":
            answer["value"] = host.usage(order["machine"], order["generation"])
        elif order["do"] == "exit":
            os._exit(order["status"])
    except HostError as error:
        answer |= {"error": type(error).__name__, "text": str(error)}
    finally:
        close_all(descriptors)
    console.post(answer)


async def _tell_exits(host: LinuxHost, console: Link) -> None:
    async for ended in host.exits:
        console.post({"exit": attrs.asdict(ended)})


async def _tell_events(host: LinuxHost, console: Link) -> None:
    async for event in host.events:
        console.post({"event": type(event).__name__, **attrs.asdict(event)})
