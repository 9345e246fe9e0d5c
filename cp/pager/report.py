"""What an operator is told of storage: every machine, and all of them together, as INDICATE tells it on z/VM."""

from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from retinue.cp.pager.census import Record

if TYPE_CHECKING:
    from retinue.cp.life import Life
    from retinue.cp.system import ControlProgram

__all__ = ["figures_of", "report"]

_SUMS: Final = ("defined", "instantiated", "resident", "private", "segments", "paged", "reads", "writes", "reserve")
_FIGURES: Final = (*("instantiated", "resident", "private", "segments", "working", "paged"), "reads", "writes")


async def report(cp: "ControlProgram") -> dict[str, Any]:
    """Everything, with figures that are taken now. Sizes in bytes, times in seconds, reads and writes in pages."""
    await cp.pager.look()
    granted = {} if cp.pager.segments is None else cp.pager.segments.granted()
    machines = [_machine(cp, life, granted.get(life.name, 0)) for life in cp.lives.values()]
    sums = {name: sum(machine[name] or 0 for machine in machines) for name in _SUMS}
    working = [machine["working"] for machine in machines if machine["working"] is not None]
    sums["working"] = sum(working) if working else None
    limit = cp.pager.limit
    real = limit or sums["resident"]
    return {
        "system": cp.name,
        "state": cp.state,
        "storage": limit,
        "step": cp.pager.overcommit.step.name.lower(),
        "pressure": cp.host.pressure(),
        "paging": attrs.asdict(cp.host.paging_report()),
        "totals": sums,
        "overcommit": {
            "defined": round(sums["defined"] / real, 2) if real else None,
            "instantiated": round(sums["instantiated"] / real, 2) if real else None,
        },
        "machines": machines,
    }


def figures_of(cp: "ControlProgram", name: str) -> dict[str, Any]:
    """What is known of a machine already, all its processes together; None for what nobody knows."""
    return _sum([record for (of, _), record in cp.pager.census.records.items() if of == name])


def _sum(records: list[Record]) -> dict[str, Any]:
    if not records:
        return dict.fromkeys(_FIGURES)
    working = [record.working for record in records if record.working is not None]
    return {
        "instantiated": sum(record.storage.instantiated + record.segments for record in records),
        "resident": sum(record.resident for record in records),
        "private": sum(record.storage.private for record in records),
        "segments": sum(record.segments for record in records),
        "working": sum(working) if working else None,
        "paged": sum(record.storage.paged for record in records),
        "reads": sum(record.storage.reads for record in records),
        "writes": sum(record.writes for record in records),
    }


def _machine(cp: "ControlProgram", life: "Life", granted: int) -> dict[str, Any]:
    records = [record for (of, _), record in cp.pager.census.records.items() if of == life.name]
    now = trio.current_time()
    return {
        "name": life.name,
        "state": life.state.value,
        "generation": life.generation,
        "paged_out": bool(records) and all(record.whole for record in records),
        "defined": life.entry.storage + granted,
        **_sum(records),
        "idle": min((round(now - record.ran, 3) for record in records), default=None),
        "reserve": life.entry.reserve,
        "priority": life.entry.priority,
        "idle_page_out": cp.pager.idle_page_out(life) or None,
        "held": (cp.pager.why_waits(life) or None) if life.current is None else None,
    }
