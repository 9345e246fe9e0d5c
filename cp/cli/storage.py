"""``retinue ps --storage``: what the machines have of storage, and what of it is in real storage."""

from collections.abc import Mapping
from typing import Any, Final

from retinue.cp.cli.listings import STATE_COLOUR
from retinue.cp.cli.output import BOLD, DIM, RED, YELLOW, Paint, duration, neutralise, size, table

__all__ = ["storage_lines", "user_lines"]

_HEAD: Final = (
    *("NAME", "STATE", "DEFINED", "INSTANT", "RESIDENT", "PRIVATE", "SEGMENT", "WORKING", "PAGED"),
    *("READS", "WRITES", "RESERVE", "PRIO", "IDLE"),
)
# What the steps of over-commitment mean; nothing for none.
_STEPS: Final = {
    "shrink": "over-committed: the machines are asked to shrink",
    "hold": "over-committed: no machine is started",
    "end": "over-committed: machines are ended, the lowest priority first",
}
_PAGE: Final = 4096


def storage_lines(report: Mapping[str, Any], *, paint: Paint, room: int | None = None) -> list[str]:
    """A ``storage`` reply for people: the machines as a table, then all of them in a few lines."""
    machines = report["machines"]
    first, *rest = table(
        _HEAD, [_row(machine) for machine in machines], right=frozenset(range(2, len(_HEAD))), room=room
    )
    lines = [paint("  ".join(first).rstrip(), BOLD)]
    for cells, machine in zip(rest, machines, strict=True):
        cells[0] = paint.machine(cells[0].strip(), cells[0])
        cells[1] = paint(cells[1], DIM if machine["paged_out"] else STATE_COLOUR.get(cells[1].strip(), RED))
        lines.append("  ".join(cells).rstrip())
        if machine["held"]:
            lines.append(f"  {paint(neutralise(machine['held']), YELLOW)}")
    return [*lines, "", *_totals(report, paint)]


def _row(machine: Mapping[str, Any]) -> list[str]:
    idle = machine["idle"]
    return [
        neutralise(machine["name"]),
        neutralise(machine["state"]) + (" paged" if machine["paged_out"] else ""),
        *(_size(machine[name]) for name in ("defined", "instantiated", "resident", "private", "segments", "working")),
        _size(machine["paged"]),
        _number(machine["reads"]),
        _number(machine["writes"]),
        _size(machine["reserve"] or None),
        str(machine["priority"]),
        "-" if idle is None else duration(idle),
    ]


def _totals(report: Mapping[str, Any], paint: Paint) -> list[str]:
    sums, ratios, limit = report["totals"], report["overcommit"], report["storage"]
    resident = size(sums["resident"])
    if limit is None:
        real = f"{resident} resident, without a bound"
    else:
        colour = RED if sums["resident"] > limit else STATE_COLOUR["READY"]
        real = f"{paint(resident, colour)} of {size(limit)} resident"
    lines = [
        f"{real}; {size(sums['defined'])} defined, {size(sums['instantiated'])} instantiated, "
        f"{_size(sums['working'])} working set, {size(sums['paged'])} paged, {size(sums['reserve'])} reserved",
        f"over-commit {_ratio(ratios['defined'])} defined, {_ratio(ratios['instantiated'])} instantiated; "
        f"{sums['reads']} pages read, {sums['writes']} written",
    ]
    paging = report["paging"]
    text = f"paging by {neutralise(paging['mechanism'])}"
    if paging["why"]:
        text += f" ({neutralise(paging['why'])})"
    if report["pressure"] is not None:
        text += f"; pressure {report['pressure'] * 100:.0f} %"
    lines.append(text)
    if paging["cure"]:
        lines.append(paint(f"to have better: {neutralise(paging['cure'])}", DIM))
    if step := _STEPS.get(report["step"]):
        lines.append(paint(step, RED))
    return lines


def user_lines(report: Mapping[str, Any], names: set[str]) -> list[str]:
    """Machines as INDICATE USER shows them on z/VM, in pages of 4 KiB; all of them without ``names``."""
    lines = []
    for machine in report["machines"]:
        if names and not {machine["name"], machine["name"].partition("@")[0]} & names:
            continue
        lines += [
            f"USERID={neutralise(machine['name']):<8} STATE={neutralise(machine['state'])} "
            f"STOR={_size(machine['defined'])} PRIO={machine['priority']}",
            f"PAGES: RES={_pages(machine['resident'])} WS={_pages(machine['working'])} "
            f"INSTAN={_pages(machine['instantiated'])} RESVD={_pages(machine['reserve'])} "
            f"PAGED={_pages(machine['paged'])} READS={_number(machine['reads'])} WRITES={_number(machine['writes'])}",
        ]
    return lines


def _size(value: int | None) -> str:
    return "-" if value is None else size(value)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _pages(value: int | None) -> str:
    return "-" if value is None else str(-(-value // _PAGE))


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:g}:1"
