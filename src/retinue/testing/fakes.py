"""Fakes: what takes a machine's place in a test, as a program of its own in a machine like any other."""

import pathlib
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import Any

import attrs

from retinue.cp.directory import Directory, MachineEntry
from retinue.pipes import Message, Rejected
from retinue.svm import Machine

__all__ = ["Fake", "check", "modules_of", "stubs"]

Fake = Callable[[Machine[Any]], Awaitable[None]] | Mapping[Any, Any]
"""An ``async def main(vm)``; or a table of replies by message, in which ``...`` stands for every other message.

A reply may be a function of the message, also an asynchronous one, or an exception, which refuses the message.
"""


def modules_of(entry: MachineEntry, fake: Fake) -> dict[str, ModuleType]:
    """The modules that the machine finds instead of its own program, by name."""
    answer = _answering(entry.name, fake) if isinstance(fake, Mapping) else fake

    async def main(vm: Machine[Any], *_: Any) -> None:
        await answer(vm)

    if entry.kind == "exec":
        command = _module("retinue.svm.command", read_command=lambda arguments: arguments)
        return {command.__name__: command, **_named(_module("retinue.svm.native", main_of=lambda command: main))}
    if entry.kind == "program":
        keys = {key: attrs.field(type=Any) for key in entry.config}
        config = {"Config": attrs.make_class("Config", keys)} if keys else {}
        return _named(_module(entry.module, main=main, **config))
    # The application itself is not looked at; what would serve it is another.
    serving = _module(f"retinue.svm.{entry.kind}", THREADS=0, **{f"serve_{entry.kind}": main})
    return {**_named(_module(entry.module, **{entry.attribute: main})), **_named(serving)}


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name, "Of a fake.")
    vars(module).update(contents)
    return module


def _named(module: ModuleType) -> dict[str, ModuleType]:
    return {module.__name__: module}


def _answering(name: str, table: Mapping[Any, Any]) -> Callable[[Machine[Any]], Awaitable[None]]:
    replies = [(_plain(key), reply) for key, reply in table.items() if key is not ...]
    other = table.get(..., Rejected("no-fake", f"the fake of {name} has no reply for it"))

    async def handle(message: Message) -> Any:
        reply = next((reply for key, reply in replies if key == message.body), other)
        if callable(reply):
            reply = reply(message.body)
            if isinstance(reply, Awaitable):
                reply = await reply
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def main(vm: Machine[Any]) -> None:
        await vm.serve(handle)

    return main


def _plain(value: Any) -> Any:
    """A key as it arrives: a message has lists, and a key cannot."""
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def check(topology: Directory, fakes: Mapping[str, Fake]) -> None:
    """ValueError for a fake of a machine that there is not."""
    known = [entry.name for entry in topology.machines]
    for name in fakes:
        if name not in known:
            raise ValueError(f"there is no machine {name!r} that could be a fake; there are {', '.join(known)}")


def stubs(text: str, folder: pathlib.Path, fakes: Mapping[str, Fake]) -> None:
    """Files for the programs that a topology names and fakes replace, so that those need not exist."""
    machines = tomllib.loads(text).get("machines", {})
    for name in fakes:
        entry = machines.get(name)
        for key in ("program", "asgi", "wsgi"):
            named = entry.get(key) if isinstance(entry, dict) else None
            if isinstance(named, str) and all(part.isidentifier() for part in named.replace(":", ".").split(".")):
                module, _, attribute = named.partition(":")
                file = folder.joinpath(*module.split(".")).with_suffix(".py")
                if not file.exists() and module.partition(".")[0] != "retinue":
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(f"async def main(vm): ...\n{attribute.partition('.')[0] or 'app'} = main\n")
                    for parent in file.relative_to(folder).parents[:-1]:
                        (folder / parent / "__init__.py").touch()
