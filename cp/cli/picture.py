"""``retinue graph --live``: who talks to whom in a running system, with states and rates on the picture."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from retinue.cp.cli.listings import STATE_COLOUR
from retinue.cp.cli.output import DIM, RED, YELLOW, Paint, neutralise, shorten, size
from retinue.cp.cli.top import Rates, head_line, rate

_MARKS: Final = {"READY": "●", "DORMANT": "◌", "STOPPED": "○", "DEFINED": "○", "BROKEN": "✗", "ABEND": "✗"}


def picture(rates: Rates, *, paint: Paint, room: int | None = None) -> list[str]:
    """A tree from the machines that nobody uses down along the edges, each with what passes along it now.

    A machine that was drawn already is marked ``(above)``.
    """
    machines = {machine["name"]: machine for machine in rates["machines"]}
    uses: dict[str, list[Mapping[str, Any]]] = {name: [] for name in machines}
    for edge in rates["edges"]:
        uses.setdefault(edge["from"], []).append(edge)
    drawn: set[str] = set()
    lines = [head_line(rates, paint)]
    for root in _roots(machines, uses, drawn):
        lines.append(_node(machines[root], paint))
        drawn.add(root)
        # What stands before an edge's own branch, and the edge; the next one to draw is the last.
        pending = [("", edge, last) for edge, last in _with_last(uses[root])][::-1]
        while pending:
            before, edge, last = pending.pop()
            targets = _behind(edge["to"], machines)
            lines.append(before + ("└─ " if last else "├─ ") + _edge(edge, paint) + _ends(edge, targets, drawn, paint))
            below = before + ("   " if last else "│  ")
            for target in targets:
                name = target["name"]
                if len(targets) > 1:
                    above = name in drawn
                    lines.append(f"{below}  {_node(target, paint)}{paint(' (above)', DIM) if above else ''}")
                if name not in drawn:
                    drawn.add(name)
                    pending += [(below, each, end) for each, end in _with_last(uses[name])][::-1]
    return lines if room is None or paint.on else [shorten(line, room) for line in lines]


def _roots(machines: Mapping[str, Any], uses: Mapping[str, Any], drawn: set[str]) -> Iterator[str]:
    """Those that nobody uses, then what is left: machines that use each other in a circle."""
    used = {target["name"] for edges in uses.values() for edge in edges for target in _behind(edge["to"], machines)}
    for name in machines:
        if name not in used:
            yield name
    for name in machines:
        if name not in drawn:
            yield name


def _with_last(edges: list[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], bool]]:
    for index, edge in enumerate(edges):
        yield edge, index == len(edges) - 1


def _behind(name: str, machines: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The machines that an edge to that name leads to: one, or all its instances; none for a star service."""
    return [machine for each, machine in machines.items() if name in (each, each.partition("@")[0])]


def _node(machine: Mapping[str, Any], paint: Paint) -> str:
    state, name = machine["state"], neutralise(machine["name"])
    colour = STATE_COLOUR.get(state, RED)
    figures = []
    if machine["cpu"] is not None:
        figures.append(f"{machine['cpu'] * 100:.1f}%")
    if (resident := machine["storage"].get("resident")) is not None:
        figures.append(size(resident))
    if machine["restarts"]:
        figures.append(f"{machine['restarts']} restart{'' if machine['restarts'] == 1 else 's'}")
    mark = paint(_MARKS.get(state, "◐"), colour)
    shown = paint.machine(name, name) + ("" if state == "READY" else " " + paint(neutralise(state), colour))
    return f"{mark} {shown}" + (paint(f"  {', '.join(figures)}", DIM) if figures else "")


def _edge(edge: Mapping[str, Any], paint: Paint) -> str:
    passes = f"{rate(edge['forth'])}/s" + (f", {rate(edge['back'])}/s back" if edge["back"] else "")
    outstanding, limit = edge["outstanding"], edge["limit"]
    if not edge["paths"]:
        passes = paint("no path", DIM)
    elif outstanding:
        full = outstanding >= limit
        passes += ", " + paint(f"{outstanding} of {limit} outstanding", RED if full else YELLOW)
    return f"{neutralise(edge['name'])} [{passes}] "


def _ends(edge: Mapping[str, Any], targets: list[Mapping[str, Any]], drawn: set[str], paint: Paint) -> str:
    if len(targets) != 1:
        return neutralise(edge["to"]) + (f" ({len(targets)} instances)" if targets else "")
    return _node(targets[0], paint) + (paint(" (above)", DIM) if targets[0]["name"] in drawn else "")
