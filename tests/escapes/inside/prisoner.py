"""The program of a machine that makes the attempts it is told to, and of the one that passes descriptors on."""

import os
import select
from typing import Any

from tests.escapes.inside import bombs, channels, control, files, kernel, processes, sockets
from tests.escapes.inside.attempt import perform

from retinue.pipes import Message, Rejected
from retinue.svm import Machine

__all__ = ["files", "kernel", "processes", "sockets"]


async def main(vm: Machine[Any]) -> None:
    disk = vm.disk("d")
    (disk / "mine").write_text("mine")
    (disk / "spare").write_text("spare")

    async def handle(message: Message) -> Any:
        match message.body:
            case ["perform", str(name), dict(world)]:
                return perform(name, world)
            case ["perform-all", list(names), dict(world)]:
                return {name: perform(name, world) for name in names}
            case ["control", str(name), dict(world)]:
                return await control.perform(vm, name, world)
            case ["send", str(name), dict(world), int(bit)]:
                return channels.send(name, world, bit)
            case ["receive", str(name), dict(world)]:
                return channels.receive(name, world)
            case ["bomb", str(name), dict(world)]:
                return bombs.explode(name, world)
            case ["release"]:
                bombs.release()
                return None
            case ["say", list(packets)]:
                for packet in packets:
                    select.select((), (1,), ())
                    os.write(1, packet)
                return None
            case ["give", str(what)]:
                descriptor = give(str(disk), what)
                try:
                    await message.reply(None, descriptors=(descriptor,))
                finally:
                    os.close(descriptor)
                return None
            case ["descriptors"]:
                return {str(number): kind for number, kind in sockets.open_descriptors().items()}
            case ["echo", body]:
                return body
        raise Rejected("what")

    await vm.serve(handle)


def give(disk: str, what: str) -> int:
    """A descriptor of its own."""
    return {
        "folder": lambda: os.open(disk, os.O_RDONLY | os.O_DIRECTORY),
        "o-path": lambda: os.open(disk, os.O_PATH | os.O_DIRECTORY),
        "file": lambda: os.open(f"{disk}/mine", os.O_RDONLY),
        "control": lambda: os.dup(3),
    }[what]()
