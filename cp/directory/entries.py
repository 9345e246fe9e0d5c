"""The tables of a topology file, one by one: ``[system]`` and each ``[machines.NAME]``.

A part that is wrong is reported and then left out or replaced by its default, so that reading goes on and the rules
about the whole (:mod:`retinue.cp.directory.rules`) can still be checked.
"""

import pathlib
from typing import Any, Final, cast, get_args

from retinue.cp.directory.commands import read_command, read_sockets
from retinue.cp.directory.disks import read_disks, read_links
from retinue.cp.directory.edges import read_edges
from retinue.cp.directory.host_sockets import read_host_sockets
from retinue.cp.directory.lives import LIFE_KEYS, read_life
from retinue.cp.directory.logs import default_log, read_log
from retinue.cp.directory.model import (
    CPU_MAXIMUM,
    SHARE_DEFAULT,
    SHARE_MAXIMUM,
    STORAGE_DEFAULT,
    STORAGE_MAXIMUM,
    STORAGE_MINIMUM,
    THREADS_DEFAULT,
    THREADS_MAXIMUM,
    Kind,
    LogPolicy,
    MachineEntry,
    SealLevel,
    System,
)
from retinue.cp.directory.names import check_name, is_module, read_word
from retinue.cp.directory.positions import KeyPath
from retinue.cp.directory.quantities import as_size, read_number, read_percent, read_size
from retinue.cp.directory.residence import RESIDENCE_KEYS, read_idle_page_out, read_residence
from retinue.cp.directory.secrets import read_secrets
from retinue.cp.directory.table import Table, described, listed, quoted, shown
from retinue.cp.directory.volume import read_paging

#: The keys that the tables may have, in the order in which the reference page explains them.
SYSTEM_KEYS: Final = ("name", "syslog", "preload", "secret", "seal", "storage", "idle_page_out", "paging", "log")
MACHINE_KEYS: Final = (
    *("program", "asgi", "wsgi", "threads", "exec", "network", "host_sockets", "storage", "segments", "share", "cpu"),
    *LIFE_KEYS,
    *RESIDENCE_KEYS,
    *("log", "uses", "sockets", "disks", "links", "secrets", "config"),
)

_KINDS: Final = get_args(Kind)
# Configuration travels to the machine in a message, whose integers have 64 bits.
_INTEGERS: Final = range(-(2**63), 2**64)


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
    elif name is not None:
        check_name(table, "name", name, "a system")
    expected = 'a list of module names such as ["sqlite3"]'
    preload = []
    for index, module in table.words("preload", expected):
        if is_module(module):
            preload.append(module)
        else:
            message = f"preload has {shown(module)} in it, expected {expected}"
            table.mistakes.add((*table.path, "preload", index), table.path, message)
    syslog = table.value("syslog", str, 'the name of a machine such as "SYSLOG"')
    seal = cast(SealLevel, read_word(table, "seal", get_args(SealLevel)) or "strong")
    storage = _storage(table) if "storage" in table.values else None
    log = read_log(table, LogPolicy())
    idle, paging = read_idle_page_out(table), read_paging(table)
    return System(name or "", syslog, tuple(preload), _secret(table), seal, storage, idle, log, paging)


def _secret(table: Table) -> tuple[str, ...]:
    expected = 'a list of keys such as ["password"]'
    keys = []
    for index, key in table.words("secret", expected):
        if key:
            keys.append(key)
        else:
            table.mistakes.add((*table.path, "secret", index), table.path, f'secret has "" in it, expected {expected}')
    return tuple(keys)


def read_machines(root: Table, system: System) -> list[MachineEntry]:
    """The tables ``[machines.NAME]`` of the document ``root``, in the order of the file.

    What ``system`` says is for all of them that do not say it themselves.

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
        check_name(table, name, name, "a machine")
        machine = table.table(name, MACHINE_KEYS, 'a table, as in [machines.SHOP] asgi = "shop:app"')
        machines.append(_machine(name, machine, system) if machine else MachineEntry(name, "program", ""))
    return machines


def _machine(name: str, table: Table, system: System) -> MachineEntry:
    kind, program, command = _program(table)
    machine = MachineEntry(
        name=name,
        kind=kind,
        program=program,
        network=table.value("network", bool, "true or false") or False,
        host_sockets=read_host_sockets(table),
        storage=_storage(table) or STORAGE_DEFAULT,
        uses=read_edges(name, table),
        disks=read_disks(name, table),
        config=_config(table),
        command=command,
        sockets=read_sockets(table),
        threads=read_number(table, "threads", 1, THREADS_MAXIMUM) or THREADS_DEFAULT,
        links=read_links(name, table),
        share=read_number(table, "share", 1, SHARE_MAXIMUM) or SHARE_DEFAULT,
        cpu=(read_percent(table, "cpu", CPU_MAXIMUM) or 0) / 100,
        secrets=read_secrets(table),
        segments=_segments(table),
        log=read_log(table, default_log(system, name)),
    )
    _check_kind(table, machine)
    return read_residence(table, read_life(table, machine))


def _program(table: Table) -> tuple[Kind, str, tuple[str, ...]]:
    """What the machine runs, with the words of a command; an empty program if that is wrong."""
    given = [kind for kind in _KINDS if kind in table.values]
    if len(given) > 1:
        # Shown where the last of them stands, which is one that was one too many.
        later = max(given, key=lambda kind: table.mistakes.positions.line(*table.path, kind))
        both, others = ("both ", "other") if len(given) == 2 else ("", "others")
        table.wrong(later, f"{both}{listed(given)} are given", f"a machine runs one of them; remove the {others}")
    elif not any(map(table.given, _KINDS)):
        hint = 'write program = "module", asgi or wsgi = "module:attribute", or exec = ["./server"]'
        table.mistakes.add(table.path, table.path, f"there is none of {listed(_KINDS)}", hint)
    elif given == ["program"]:
        return "program", _module(table), ()
    elif given == ["exec"]:
        command = read_command(table)
        return "exec", command[0] if command else "", command
    elif given:
        return cast(Kind, given[0]), _application(table, given[0]), ()
    return "program", "", ()


def _module(table: Table) -> str:
    program = table.value("program", str, 'a module name such as "shop"')
    if program is None or is_module(program):
        return program or ""
    module, _, attribute = program.partition(":")
    hint = ""
    if is_module(module) and attribute.isidentifier():
        hint = f'did you mean asgi = "{program}"?'
    elif is_module(stem := pathlib.PurePath(program).stem):
        hint = f"did you mean {quoted(stem)}?"
    table.wrong("program", f'program is {shown(program)}, expected a module name such as "shop"', hint)
    return ""


def _application(table: Table, kind: str) -> str:
    expected = 'a module and an attribute such as "shop:app"'
    application = table.value(kind, str, expected)
    if application is None:
        return ""
    module, _, attribute = application.partition(":")
    if is_module(module) and attribute.isidentifier():
        return application
    hint = f'did you mean "{application}:app"?' if is_module(application) else ""
    table.wrong(kind, f"{kind} is {shown(application)}, expected {expected}", hint)
    return ""


def _check_kind(table: Table, machine: MachineEntry) -> None:
    """What only machines of some kinds may have."""
    if not any(table.given(kind) for kind in _KINDS):
        return
    if "threads" in table.values and not table.given("wsgi"):
        table.wrong("threads", "threads is for WSGI applications", "remove it")
    if "sockets" in table.values and not table.given("exec"):
        table.wrong("sockets", "sockets are for native programs, which exec names", "remove them")
    if "host_sockets" in table.values and (not table.given("network") or table.values.get("network") is False):
        hint = "give it to that one, and let this one use it by an edge"
        table.wrong("host_sockets", "host_sockets are for the machine with the network", hint)
    if machine.kind == "exec":
        if "segments" in table.values:
            table.wrong("segments", "a native program cannot ask for segments", "remove it")
        if machine.config:
            table.wrong("config", "config is for Python programs: a native one never gets it", "use words of exec")
        if machine.network:
            hint = 'let a machine with program = "retinue.services.tcpip" have it, and use that by an edge'
            table.wrong("network", "a native program cannot have the network", hint)


def _storage(table: Table) -> int | None:
    storage = read_size(table, "storage")
    if storage is None:
        return None
    value = table.values["storage"]
    if storage < STORAGE_MINIMUM:
        least = as_size(STORAGE_MINIMUM)
        message = f'storage is "{value}", and the interpreter alone needs up to {least}'
        table.wrong("storage", message, f'write at least "{least}"')
    elif storage > STORAGE_MAXIMUM:
        most = as_size(STORAGE_MAXIMUM)
        table.wrong("storage", f'storage is "{value}", and a process cannot address more than {most}')
    return storage


def _segments(table: Table) -> int | None:
    segments = read_size(table, "segments")
    if segments is not None and segments > STORAGE_MAXIMUM:
        most, value = as_size(STORAGE_MAXIMUM), table.values["segments"]
        table.wrong("segments", f'segments is "{value}", and a process cannot address more than {most}')
    return segments


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
