"""The tables of a topology file, one by one: ``[system]`` and each ``[machines.NAME]``.

A part that is wrong is reported and then left out or replaced by its default, so that reading goes on and the rules
about the whole (:mod:`retinue.cp.directory.rules`) can still be checked.
"""

import keyword
import pathlib
import re
from typing import Any, cast, get_args

from retinue.cp.directory.model import (
    LIMIT_DEFAULT,
    LIMIT_MAXIMUM,
    LOCAL_NAME_LIMIT,
    NAME_LIMIT,
    PAUSE_DEFAULT,
    PAUSE_MAXIMUM,
    STORAGE_DEFAULT,
    STORAGE_MAXIMUM,
    STORAGE_MINIMUM,
    Disk,
    Edge,
    Kind,
    MachineEntry,
    OnRestart,
    Overflow,
    Restart,
    System,
)
from retinue.cp.directory.positions import KeyPath
from retinue.cp.directory.table import Table, described, did_you_mean, quoted, shown

#: The keys that the tables may have, in the order in which the reference page explains them.
SYSTEM_KEYS = ("name", "syslog", "preload", "secret")
MACHINE_KEYS = ("program", "asgi", "network", "storage", "restart", "pause", "uses", "disks", "config")
EDGE_KEYS = ("to", "limit", "lazy", "on_restart", "overflow")

_NAME = re.compile(rf"[A-Z][A-Z0-9]{{0,{NAME_LIMIT - 1}}}", re.ASCII)
_NAME_RULE = f"1 to {NAME_LIMIT} characters, an upper-case letter and then upper-case letters and digits"
_LOCAL_NAME = re.compile(rf"[a-z][a-z0-9_]{{0,{LOCAL_NAME_LIMIT - 1}}}", re.ASCII)
_LOCAL_NAME_RULE = f"1 to {LOCAL_NAME_LIMIT} characters, a lower-case letter and then lower-case letters, digits and _"
_SIZE = re.compile(r"([1-9][0-9]{0,14})([KMG])", re.ASCII)
_ALMOST_SIZE = re.compile(r"\s*([1-9][0-9]{0,14})\s*([kmg])(?:i?b)?\s*", re.ASCII | re.IGNORECASE)
_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}

_DURATION = re.compile(r"(0|[1-9][0-9]{0,14})(ms|s|m|h)", re.ASCII)
_ALMOST_DURATION = re.compile(r"\s*([0-9]{1,15})\s*(ms|s|m|h)[a-z]*\s*", re.ASCII | re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

_DURATION_EXPECTED = 'a time such as "10s"'
_SIZE_EXPECTED = 'a size such as "64M"'
_TARGET_EXPECTED = 'a machine or a star service, as in uses.app = "SHOP" or uses.app = { to = "SHOP", limit = 8 }'
# Configuration travels to the machine in a message, whose integers have 64 bits.
_INTEGERS = range(-(2**63), 2**64)


def read_system(root: Table) -> System:
    """The table ``[system]`` of the document ``root``; its name is empty if that is missing or wrong."""
    if not root.given("system"):
        root.mistakes.add((), (), "there is no table [system]", 'begin with [system] and name = "SHOP"')
    table = root.table("system", SYSTEM_KEYS, 'a table with a name, as in [system] name = "SHOP"')
    if table is None:
        return System("")
    name = table.value("name", str, 'a name such as "SHOP"')
    if not table.given("name"):
        table.wrong("name", "the system has no name", 'write name = "SHOP"')
    elif name is not None and not _NAME.fullmatch(name):
        table.wrong("name", f"{quoted(name)} is no name of a system: it has {_NAME_RULE}", _upper_case(name))
    expected = 'a list of module names such as ["sqlite3"]'
    preload = []
    for index, module in table.words("preload", expected):
        if _is_module(module):
            preload.append(module)
        else:
            message = f"preload has {shown(module)} in it, expected {expected}"
            table.mistakes.add((*table.path, "preload", index), table.path, message)
    syslog = table.value("syslog", str, 'the name of a machine such as "SYSLOG"')
    return System(name or "", syslog, tuple(preload), _secret(table))


def _secret(table: Table) -> tuple[str, ...]:
    expected = 'a list of keys such as ["password"]'
    keys = []
    for index, key in table.words("secret", expected):
        if key:
            keys.append(key)
        else:
            table.mistakes.add((*table.path, "secret", index), table.path, f'secret has "" in it, expected {expected}')
    return tuple(keys)


def read_machines(root: Table) -> list[MachineEntry]:
    """The tables ``[machines.NAME]`` of the document ``root``, in the order of the file.

    A machine that is wrong in any way is among them: others may have edges to it. Its program is empty if that is
    what is wrong.
    """
    declare = 'declare one: [machines.SHOP] asgi = "shop:app"'
    table = root.table("machines", None, 'a table of machines, as in [machines.SHOP] asgi = "shop:app"')
    if table is None:
        if not root.given("machines"):
            root.mistakes.add((), (), "there is no machine", declare)
        return []
    if not table.values:
        root.wrong("machines", "there is no machine", declare)
    machines = []
    for name in table.values:
        if not _NAME.fullmatch(name):
            message = f"{quoted(name)} is no name of a machine: it has {_NAME_RULE}"
            table.wrong(name, message, _upper_case(name))
        machine = table.table(name, MACHINE_KEYS, 'a table, as in [machines.SHOP] asgi = "shop:app"')
        machines.append(_machine(name, machine) if machine else MachineEntry(name, "program", ""))
    return machines


def _machine(name: str, table: Table) -> MachineEntry:
    kind, program = _program(table)
    return MachineEntry(
        name=name,
        kind=kind,
        program=program,
        network=table.value("network", bool, "true or false") or False,
        storage=_storage(table),
        restart=cast(Restart, _word(table, "restart", get_args(Restart)) or "always"),
        pause=_pause(table),
        uses=_uses(name, table),
        disks=_disks(table),
        config=_config(table),
    )


def _program(table: Table) -> tuple[Kind, str]:
    """What the machine runs; an empty program if that is wrong."""
    program = table.value("program", str, 'a module name such as "shop"')
    asgi = table.value("asgi", str, 'a module and an attribute such as "shop:app"')
    if "program" in table.values and "asgi" in table.values:
        # Shown where the second of them stands, which is the one that was one too many.
        later = max("program", "asgi", key=lambda key: table.mistakes.positions.line(*table.path, key))
        table.wrong(later, "both program and asgi are given", "a machine runs one of them; remove the other")
        return "program", ""
    if not table.given("program") and not table.given("asgi"):
        hint = 'write program = "module" or asgi = "module:attribute"'
        table.mistakes.add(table.path, table.path, "neither program nor asgi is given", hint)
    if program is not None:
        if _is_module(program):
            return "program", program
        module, _, attribute = program.partition(":")
        hint = ""
        if _is_module(module) and attribute.isidentifier():
            hint = f'did you mean asgi = "{program}"?'
        elif _is_module(stem := pathlib.PurePath(program).stem):
            hint = f"did you mean {quoted(stem)}?"
        table.wrong("program", f'program is {shown(program)}, expected a module name such as "shop"', hint)
    elif asgi is not None:
        module, _, attribute = asgi.partition(":")
        if _is_module(module) and attribute.isidentifier():
            return "asgi", asgi
        expected = 'a module and an attribute such as "shop:app"'
        hint = f'did you mean "{asgi}:app"?' if _is_module(asgi) else ""
        table.wrong("asgi", f"asgi is {shown(asgi)}, expected {expected}", hint)
    return "program", ""


def _uses(machine: str, table: Table) -> tuple[Edge, ...]:
    """The edges of a machine, but for those that lead nowhere or to the machine itself."""
    edges = table.table("uses", None, f"a table of edges, each {_TARGET_EXPECTED}")
    if edges is None:
        return ()
    read = (_edge(machine, edges, name) for name in edges.values)
    return tuple(edge for edge in read if edge is not None)


def _edge(machine: str, edges: Table, name: str) -> Edge | None:
    if not _LOCAL_NAME.fullmatch(name):
        message = f"{quoted(name)} is no name of an edge: it has {_LOCAL_NAME_RULE}"
        edges.wrong(name, message, _lower_case(name))
    if isinstance(edges.values[name], str):
        edge = Edge(name, edges.values[name])
    else:
        table = edges.table(name, EDGE_KEYS, _TARGET_EXPECTED)
        if table is None:
            return None
        to = table.value("to", str, 'the name of a machine or a star service such as "SHOP"')
        if not table.given("to"):
            table.wrong("to", "the edge leads nowhere", 'write to = "SHOP", the name of a machine')
        limit = table.value("limit", int, f"a number from 1 to {LIMIT_MAXIMUM}")
        if limit is not None and not 1 <= limit <= LIMIT_MAXIMUM:
            table.wrong("limit", f"limit is {described(limit)}, expected a number from 1 to {LIMIT_MAXIMUM}")
        lazy = table.value("lazy", bool, "true or false")
        on_restart = cast(OnRestart, _word(table, "on_restart", get_args(OnRestart)) or "keep")
        overflow = cast(Overflow, _word(table, "overflow", get_args(Overflow)) or "block")
        if to is None:
            return None
        edge = Edge(name, to, LIMIT_DEFAULT if limit is None else limit, lazy or False, on_restart, overflow)
        _check_policies(table, edge)
    if edge.to == machine:
        place = (*edges.path, name, "to")
        edges.mistakes.add(place, edges.path, f"{name}: a machine cannot use itself", "remove this edge")
        return None
    return edge


def _check_policies(table: Table, edge: Edge) -> None:
    for key in ("on_restart", "overflow") if edge.star else ():
        if key in table.values:
            message = f"{key} is for edges to machines, and {quoted(edge.to)} is the control program itself"
            table.wrong(key, message, "remove this key")
    if edge.on_restart == "restart" and edge.lazy:
        message = 'on_restart is "restart", which starts the machine after its target, and a lazy edge makes no order'
        table.wrong("on_restart", message, "remove one of the two")


def _pause(table: Table) -> float:
    value = table.value("pause", str, _DURATION_EXPECTED)
    if value is None:
        return PAUSE_DEFAULT
    duration = _DURATION.fullmatch(value)
    if duration is None:
        almost = _ALMOST_DURATION.fullmatch(value)
        hint = f'did you mean "{int(almost[1])}{almost[2].lower()}"?' if almost else ""
        table.wrong("pause", f"pause is {shown(value)}, expected {_DURATION_EXPECTED}", hint)
        return PAUSE_DEFAULT
    pause = int(duration[1]) * _SECONDS[duration[2]]
    if pause > PAUSE_MAXIMUM:
        table.wrong("pause", f'pause is "{value}", and the longest is "1h"', 'to give up instead: restart = "never"')
    return pause


def _storage(table: Table) -> int:
    value = table.value("storage", str, _SIZE_EXPECTED)
    if value is None:
        return STORAGE_DEFAULT
    size = _SIZE.fullmatch(value)
    if size is None:
        almost = _ALMOST_SIZE.fullmatch(value)
        hint = f'did you mean "{almost[1]}{almost[2].upper()}"?' if almost else ""
        table.wrong("storage", f"storage is {shown(value)}, expected {_SIZE_EXPECTED}", hint)
        return STORAGE_DEFAULT
    storage = int(size[1]) * _UNITS[size[2]]
    if storage < STORAGE_MINIMUM:
        least = _as_size(STORAGE_MINIMUM)
        message = f'storage is "{value}", and the interpreter alone needs up to {least}'
        table.wrong("storage", message, f'write at least "{least}"')
    elif storage > STORAGE_MAXIMUM:
        most = _as_size(STORAGE_MAXIMUM)
        table.wrong("storage", f'storage is "{value}", and a process cannot address more than {most}')
    return storage


def _word(table: Table, key: str, words: tuple[str, ...]) -> str | None:
    either = " or ".join(filter(None, (", ".join(f'"{word}"' for word in words[:-1]), f'"{words[-1]}"')))
    value = table.value(key, str, either)
    if value is None or value in words:
        return value
    hint = did_you_mean(value, words)
    table.wrong(key, f"{key} is {shown(value)}, expected {either}", hint if hint.endswith("?") else "")
    return None


def _disks(table: Table) -> tuple[Disk, ...]:
    disks = table.table("disks", None, "a table of disks, as in disks.data = {}")
    if disks is None:
        return ()
    for name in disks.values:
        if not _LOCAL_NAME.fullmatch(name):
            message = f"{quoted(name)} is no name of a disk: it has {_LOCAL_NAME_RULE}"
            disks.wrong(name, message, _lower_case(name))
        if content := disks.value(name, dict, "an empty table, as in disks.data = {}"):
            Table(table.mistakes, (*disks.path, name), content, (), f"write disks.{name} = {{}}")
    return tuple(map(Disk, disks.values))


def _config(table: Table) -> dict[str, Any]:
    config = table.value("config", dict, "a table of the program's own settings")
    pending: list[tuple[KeyPath, str, object]] = [((*table.path, "config"), "config", config or {})]
    while pending:
        path, name, value = pending.pop()
        match value:
            case dict():
                pending += [((*path, key), key, inner) for key, inner in value.items()]
                continue
            case list():
                pending += [((*path, at), f"{name}[{at}]", inner) for at, inner in enumerate(value)]
                continue
            case bool() | str() | float():
                continue
            case int() if value in _INTEGERS:
                continue
            case int():
                message = f"{name} is {described(value)}, which does not fit in 64 bits"
            case _:
                message = f"{name} is {described(value)}, which cannot be sent to a machine"
        owner = path[:-1]
        while isinstance(owner[-1], int):
            owner = owner[:-1]
        owner = owner if isinstance(path[-1], str) else owner[:-1]
        table.mistakes.add(path, owner, message, "write it as a string")
    return config or {}


def _is_module(name: str) -> bool:
    """Whether this is a dotted module name."""
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split("."))


def _upper_case(name: str) -> str:
    return f"did you mean {quoted(name.upper())}?" if _NAME.fullmatch(name.upper()) else ""


def _lower_case(name: str) -> str:
    lower = name.lower().replace("-", "_")
    return f"did you mean {quoted(lower)}?" if _LOCAL_NAME.fullmatch(lower) else ""


def _as_size(size: int) -> str:
    unit = next(unit for unit in reversed(_UNITS) if size % _UNITS[unit] == 0)
    return f"{size // _UNITS[unit]}{unit}"
