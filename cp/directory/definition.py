"""What a topology says of its system, groups and machines, key by key in the words of the file; and what differs."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from attrs import asdict, frozen

from retinue.cp.directory.model import (
    Budget,
    Directory,
    Disk,
    Edge,
    LinkedDisk,
    LogPolicy,
    MachineEntry,
    PagingVolume,
    Pause,
    Secret,
)
from retinue.cp.directory.quantities import as_duration, as_size
from retinue.cp.directory.table import dotted

#: What stands in the place of a value that nobody is shown.
HIDDEN: Final = "[redacted]"
#: What a key that is not there says.
NONE: Final = "none"

# Characters of a value: enough to recognise it.
_SHOWN: Final = 60


@frozen
class Said:
    """What one key says: ``exact`` to be compared and ``shown`` to be read; ``parts`` of a table, by key."""

    exact: str
    shown: str
    parts: Mapping[str, "Said"] | None = None


@frozen
class Difference:
    """One key that says one thing here and another there, with its path and as ``share: 100 -> 200``."""

    path: tuple[str, ...]
    text: str


def differences(was: Mapping[str, Said], now: Mapping[str, Said], *path: str) -> Iterator[Difference]:
    """Every key that differs in two tables, which are at ``path``. A table that is in one only is one difference."""
    for key in {**was, **now}:
        old, new, here = was.get(key), now.get(key), (*path, key)
        if old is not None and new is not None:
            if old.parts is not None and new.parts is not None:
                yield from differences(old.parts, new.parts, *here)
                continue
            if old.exact == new.exact:
                continue
        before, after = (NONE if said is None else said.shown for said in (old, new))
        yield Difference(here, f"{dotted(here)}: {'changed' if before == after else f'{before} -> {after}'}")


def system_keys(directory: Directory) -> dict[str, Said]:
    """What the table ``[system]`` says."""
    system = directory.system
    return {
        "name": _word(system.name),
        "syslog": _word(system.syslog),
        "preload": _json(list(system.preload)),
        "secret": _json(list(system.secret)),
        "seal": _word(system.seal),
        "log": _log(system.log),
        "storage": _size(system.storage),
        "idle_page_out": _idle_page_out(system.idle_page_out),
        "paging": _paging(system.paging),
    }


def group_keys(directory: Directory) -> dict[str, Said]:
    """What the tables ``[groups.NAME]`` say, by name."""
    return {
        group.name: _table(
            f"{group.strategy} of {', '.join(group.members)}",
            members=_json(list(group.members)),
            strategy=_word(group.strategy),
            restarts=_budget(group.restarts),
        )
        for group in directory.groups
    }


def machine_keys(machine: MachineEntry, hide: Callable[[Any], Any]) -> dict[str, Said]:
    """What a table ``[machines.NAME]`` says, but for ``instances``.

    ``hide`` makes of a config what may be shown of it: the same with :data:`HIDDEN` for some of its values.
    """
    return {
        machine.kind: _json(list(machine.command)) if machine.kind == "exec" else _word(machine.program),
        "threads": _word(machine.threads),
        "network": _json(machine.network),
        "host_sockets": _json(list(machine.host_sockets) or None),
        "storage": _size(machine.storage),
        "segments": _size(machine.segments),
        "log": _log(machine.log),
        "share": _word(machine.share),
        "cpu": _word(f"{machine.cpu * 100:g}%" if machine.cpu else None),
        "restart": _word(machine.restart),
        "pause": _pause(machine.backoff),
        "restarts": _budget(machine.restarts),
        "essential": _json(machine.essential),
        "start": _word(machine.start),
        "idle": _duration(machine.idle),
        "watchdog": _duration(machine.watchdog) if machine.watchdog else _word("off"),
        "grace": _duration(machine.grace),
        "replace": _word(machine.replace),
        "reserve": _size(machine.reserve or None),
        "priority": _word(machine.priority),
        "idle_page_out": _idle_page_out(machine.idle_page_out),
        "uses": _table("", **{edge.name: _edge(edge) for edge in machine.uses}),
        "sockets": _table("", **{socket.name: _word(socket.side) for socket in machine.sockets}),
        "disks": _table("", **{disk.name: _disk(disk) for disk in machine.disks}),
        "links": _table("", **{link.name: _link(link) for link in machine.links}),
        "secrets": _table("", **{secret.name: _secret(secret) for secret in machine.secrets}),
        "config": _config(machine.config, hide(machine.config)),
    }


def _word(word: object) -> Said:
    return Said(NONE, NONE) if word is None else Said(str(word), str(word))


def _json(value: object) -> Said:
    if value is None:
        return Said(NONE, NONE)
    # Unlike == this tells 1 from 1.0 and from true, and finds that a number which is none is itself.
    exact = json.dumps(value, sort_keys=True)
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if shown.isprintable() else json.dumps(value)
    return Said(exact, shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}...")


def _table(shown: str, /, **parts: Said) -> Said:
    return Said("", shown, parts)


def _size(size: int | None) -> Said:
    return _word(None) if size is None else Said(str(size), as_size(size))


def _duration(seconds: float) -> Said:
    return Said(str(seconds), as_duration(seconds))


def _paging(paging: PagingVolume | None) -> Said:
    if paging is None:
        return _word(None)
    size = _size(paging.size)
    return _table(f"{paging.volume} of {size.shown}", volume=_word(paging.volume), size=size)


def _idle_page_out(seconds: float | None) -> Said:
    return _word(None) if seconds is None else _duration(seconds) if seconds else _word("off")


def _budget(budget: Budget | None) -> Said:
    if budget is None:
        return _word(None)
    within = _duration(budget.within)
    return _table(f"{budget.most} within {within.shown}", most=_word(budget.most), within=within)


def _pause(pause: Pause) -> Said:
    parts = {
        name: _word(f"{value:g}") if name in ("factor", "jitter") else _duration(value)
        for name, value in asdict(pause).items()
    }
    return _table("", **parts)


def _log(log: LogPolicy) -> Said:
    rate = None if log.rate is None else f"{log.rate.most}/{as_duration(log.rate.within).lstrip('1')}"
    return _table(
        log.policy,
        policy=_word(log.policy),
        buffer=_size(log.buffer),
        spill=_size(log.spill),
        rate=_word(rate or "off"),
    )


def _edge(edge: Edge) -> Said:
    return _table(
        edge.to,
        to=_word(edge.to),
        limit=_word(edge.limit),
        lazy=_json(edge.lazy),
        on_restart=_word(edge.on_restart),
        overflow=_word(edge.overflow),
    )


def _disk(disk: Disk) -> Said:
    linked_by = {name: _word(mode) for name, mode in disk.linked_by}
    shown = "temporary" if disk.temporary else "a disk"
    shown = shown if disk.size is None else f"{shown} of {as_size(disk.size)}"
    return _table(shown, size=_size(disk.size), temporary=_json(disk.temporary), linked_by=_table("", **linked_by))


def _link(link: LinkedDisk) -> Said:
    disk = f"{link.machine}.{link.disk}"
    return _table(disk, disk=_word(disk), mode=_word(link.mode))


def _secret(secret: Secret) -> Said:
    """Where it comes from; its value is nowhere here."""
    return _table("a secret", file=_json(secret.file), variable=_json(secret.variable))


def _config(real: Any, shown: Any) -> Said:
    """``shown`` is ``real`` with some of its values hidden."""
    if isinstance(real, dict) and isinstance(shown, dict):
        said = _json(shown)
        return Said(_json(real).exact, said.shown, {key: _config(real[key], shown[key]) for key in real})
    return Said(_json(real).exact, HIDDEN if shown == HIDDEN else _json(shown).shown)
