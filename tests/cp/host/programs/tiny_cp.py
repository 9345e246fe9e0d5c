"""A control program without a will of its own: it does to its host what the test says over the console, and tells back.

Orders: ``{"id", "do": "spawn", "birth": {...}}`` with two descriptors, ``signal``, ``end``, ``report``,
``limits``, ``usage``, ``exit``; ``keep``, ``drop``, ``buried``, ``spare``, ``hand_over``, ``kept``, ``set_limits``,
``cpu_time``, ``nonsense``, ``hang_up``.
Answers carry the id; ends of machines and events of the host come without one.
"""

import os
import signal
import socket
import time
from typing import Any

import attrs
import trio

from retinue.cp.host.cgroups import Groups
from retinue.cp.host.errors import HostError
from retinue.cp.host.interface import Birth, Restored
from retinue.cp.host.link import Link, close_all
from retinue.cp.host.linux import LinuxHost, open_host
from retinue.cp.host.takeover import wait_restored

CONSOLE = "console"


def main(args: dict[str, Any]) -> int:
    return _run(args, None)


def main_with_groups(args: dict[str, Any]) -> int:
    """As a real control program: machines have control groups, where the host has any."""
    return _run(args, Groups(args["system"], owner=os.getppid()))


def main_only_first(args: dict[str, Any]) -> int:
    """Whoever comes after the first dies in office."""
    return _run(args, None, onward=False)


def main_no_spare(args: dict[str, Any]) -> int:
    """Whoever comes after the first cannot load."""
    return _run(args, None) if args["console"] >= 0 else 9


def _run(args: dict[str, Any], groups: Groups | None, *, onward: bool = True) -> int:
    link, restored = wait_restored(socket.socket(fileno=args["link"]))
    at = time.monotonic()
    if not restored.first and not onward:
        os._exit(8)
    # The test goes on over the console of the first: it is kept for whoever follows.
    descriptor = args["console"] if restored.first else restored.kept[CONSOLE].descriptors[0]
    trio.run(_drive, link, restored, Link(socket.socket(fileno=descriptor)), groups, at)
    return 0


async def _drive(link: Link, restored: Restored, console: Link, groups: Groups | None, at: float) -> None:
    try:
        async with open_host(link, groups, restored) as host, trio.open_nursery() as nursery:
            if restored.first:
                host.keep(CONSOLE, {}, [console.fileno()])
            nursery.start_soon(_tell_exits, host, console)
            nursery.start_soon(_tell_events, host, console)
            residents = [[*key, one.pid, list(one.seal)] for key, one in restored.residents.items()]
            told = {"first": restored.first, "died": restored.died, "residents": residents, "at": at}
            console.post({"ready": os.getpid(), **told})
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
        elif order["do"] == "keep":
            for number in range(order.get("count", 1)):
                key = order["key"] + (f"/{number}" if "count" in order else "")
                host.keep(key, {**order["note"], "number": number} if "count" in order else order["note"], descriptors)
            if order.get("die"):
                while host._link.waiting:
                    await trio.lowlevel.checkpoint()
                os.kill(os.getpid(), signal.SIGKILL)
        elif order["do"] == "drop":
            for number in range(order.get("count", 1)):
                host.drop(order["key"] + (f"/{number}" if "count" in order else ""))
        elif order["do"] == "unanswered":
            answer["value"] = len(host._spawns)
        elif order["do"] == "kept":
            kept = [(key, one) for key, one in host.restored.kept.items() if key != CONSOLE]
            answer["value"] = [
                [key, one.note, [os.fstat(each).st_ino for each in one.descriptors]]
                for key, one in kept[: order.get("most")]
            ]
        elif order["do"] == "count":
            answer["value"] = len(host.restored.kept) - 1
        elif order["do"] == "buried":
            host.buried(order["machine"], order["generation"])
        elif order["do"] == "spare":
            host.spare()
        elif order["do"] == "hand_over":
            host.hand_over()
        elif order["do"] == "set_limits":
            answer["value"] = host.set_limits(order["machine"], order["generation"], **order["limits"])
        elif order["do"] == "cpu_time":
            answer["value"] = host.cpu_time(order["machine"], order["generation"])
        elif order["do"] == "nonsense":
            host._link._socket.send(b"{")
        elif order["do"] == "hang_up":
            host._link._socket.shutdown(socket.SHUT_RDWR)
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
