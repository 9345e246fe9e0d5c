"""What goes on in a running system, per second: the difference of two samples of it (the verb ``top``).

A counter that is lower than before has begun anew, with a new process of its machine.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Final

from retinue.cp.host import measure

_FIGURES: Final = ("sent", "received", "bytes_sent", "bytes_received")

Sample = Mapping[str, Any]


def processor_seconds(pid: int | None) -> float | None:
    """Processor time that a process and all below it have used; None if it is gone."""
    if not pid:
        return None
    total, found = 0, False
    for each in measure.processes(pid):
        with contextlib.suppress(OSError):
            # The processor-time clock of a process (clock_getcpuclockid(3)): of all its threads, in nanoseconds.
            total += time.clock_gettime_ns((~each << 3) | 2)
            found = True
    return total / 1e9 if found else None


def rates(before: Sample, after: Sample) -> dict[str, Any]:
    """What happened between two samples of one system, per second, beside what is so now.

    The result has ``time``, ``seconds``, ``system``, ``state``, ``machines`` (each with ``cpu``: processors in use,
    ``messages``, ``records``, ``outstanding``, ``page_reads``, ``page_writes``) and ``edges`` (each with ``forth``,
    ``back`` and their bytes).
    """
    seconds = max(float(after["time"]) - float(before["time"]), 1e-6)
    edges = _edges(before, after, seconds)
    old = {machine["name"]: machine for machine in before["machines"]}
    machines = [_machine(old.get(now["name"], {}), now, edges, seconds) for now in after["machines"]]
    return {
        "system": after["system"],
        "state": after["state"],
        "seconds": round(seconds, 3),
        "machines": machines,
        "edges": edges,
    }


def _machine(old: Mapping[str, Any], now: Mapping[str, Any], edges: list[dict[str, Any]], seconds: float) -> Any:
    name, base = now["name"], now["name"].partition("@")[0]
    used = now.get("cpu_s")
    same = old.get("pid") == now.get("pid") and old.get("cpu_s") is not None
    # A process that is younger than the first sample has used everything since.
    cpu = None if used is None else round(max(0.0, used - (old["cpu_s"] if same else 0.0)) / seconds, 4)
    mine = [edge for edge in edges if edge["from"] == name]
    others = [edge for edge in edges if edge["to"] == name or (base != name and edge["to"] == base)]
    records = now.get("records")
    return {
        "name": name,
        "state": now["state"],
        "pid": now["pid"],
        "generation": now["generation"],
        "restarts": now["restarts"],
        "uptime": now["uptime"],
        "cpu": cpu,
        "storage": now["storage"],
        "page_reads": _paged(old, now, "reads", seconds),
        "page_writes": _paged(old, now, "writes", seconds),
        "messages": _sum(edge[way] for edge in (*mine, *(others if base == name else ())) for way in ("forth", "back")),
        "outstanding": sum(edge["outstanding"] or 0 for edge in mine),
        "waiting": sum(edge["outstanding"] or 0 for edge in others) if base == name else None,
        "records": None if records is None else round(records / seconds, 2),
        "cause": now["cause"],
    }


def _paged(old: Mapping[str, Any], now: Mapping[str, Any], name: str, seconds: float) -> float | None:
    """Pages per second; None where nobody knows."""
    count = now["storage"].get(name)
    if count is None:
        return None
    before = (old.get("storage") or {}).get(name) if old.get("pid") == now["pid"] else 0
    return None if before is None else round(max(0, count - before) / seconds, 2)


def _sum(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 2) if known else None


def _edges(before: Sample, after: Sample, seconds: float) -> list[dict[str, Any]]:
    old = {(edge["from"], edge["name"]): edge["meters"] for edge in before["edges"]}
    rows = []
    for now in after["edges"]:
        meters, earlier = now["meters"], old.get((now["from"], now["name"]), {"from": None, "to": None})
        end, names = ("from", _FIGURES) if meters["from"] is not None else ("to", _CROSSED)
        row = {each: now[each] for each in ("from", "name", "to", "paths", "limit")}
        for figure, name in zip(("forth", "back", "bytes_forth", "bytes_back"), names, strict=True):
            grown = None if meters[end] is None else _grown(earlier[end], meters[end], name)
            row[figure] = None if grown is None else round(grown / seconds, 2)
        row["outstanding"] = None if meters["from"] is None else meters["from"]["outstanding"]
        rows.append(row)
    return rows


# The same figures as the other end counts them.
_CROSSED: Final = ("received", "sent", "bytes_received", "bytes_sent")


def _grown(earlier: Mapping[str, int] | None, now: Mapping[str, int], name: str) -> int:
    """By how much a counter has grown; of an end that did not tell before nothing is known."""
    if earlier is None:
        return 0
    return now[name] - earlier[name] if now[name] >= earlier[name] else now[name]
