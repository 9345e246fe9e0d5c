"""``retinue ps``: what runs."""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import click

from retinue.cp.cli.command import json_option, selection, state_option, system_option
from retinue.cp.cli.edges import edge_lines
from retinue.cp.cli.errors import OK
from retinue.cp.cli.output import (
    BOLD,
    DIM,
    RED,
    YELLOW,
    Paint,
    colour_wanted,
    duration,
    neutralise,
    say,
    size,
    table,
    to_json,
    width,
)
from retinue.cp.cli.systems import find_system

_HEAD: Final = ("NAME", "STATE", "PID", "GEN", "STORAGE", "UPTIME", "RESTARTS", "PROGRAM")
_RIGHT: Final = frozenset({2, 3, 4, 5, 6})
STATE_COLOUR: Final = {"READY": "32", "DORMANT": DIM, "STARTING": YELLOW, "STOPPING": YELLOW, "WAITING": YELLOW}


@click.command()
@click.option("--edges", is_flag=True, help="List the edges, and what passed along them.")
@click.option("--storage", is_flag=True, help="List what of their storage is in real storage, and what is paged out.")
@json_option()
@system_option()
@state_option()
@click.pass_context
def ps(ctx: click.Context, edges: bool, storage: bool, as_json: bool) -> int:
    """List the machines of a running system."""
    if edges and storage:
        raise click.UsageError("--edges and --storage are two listings: ask for one of them", ctx)
    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse, request
    from retinue.cp.cli.storage import storage_lines

    listing = converse(partial(request, system, "edges" if edges else "storage" if storage else "ps"))
    if as_json:
        say(to_json(listing))
        return OK
    lines = edge_lines if edges else storage_lines if storage else ps_lines
    for line in lines(listing, paint=Paint(colour_wanted(sys.stdout)), room=width(sys.stdout)):
        say(line)
    return OK


def ps_lines(listing: Mapping[str, Any], *, paint: Paint, room: int | None = None) -> list[str]:
    """A `ps` reply as a table of at most `room` columns. Why a machine ended last stands behind its program."""
    machines = listing.get("machines", ())
    rows = [_ps_row(machine) for machine in machines]
    head: tuple[str, ...] = _HEAD
    if any(machine.get("cause") for machine in machines):
        head = (*_HEAD, "LAST END")
        rows = [
            [*row, neutralise(str(machine.get("cause") or "")).strip()]
            for row, machine in zip(rows, machines, strict=True)
        ]
    first, *rest = table(head, rows, right=_RIGHT, room=room)
    lines = [paint("  ".join(first).rstrip(), BOLD)]
    for cells in rest:
        name, state = cells[0], cells[1]
        cells[0] = paint.machine(name.strip(), name)
        cells[1] = paint(state, STATE_COLOUR.get(state.strip(), RED))
        if len(head) > len(_HEAD) and cells[-1]:
            cells[-1] = paint(cells[-1], DIM)
        lines.append("  ".join(cells).rstrip())
    return lines


def _ps_row(machine: Mapping[str, Any]) -> list[str]:
    storage = machine.get("storage") or {}
    resident, limit = storage.get("resident"), storage.get("limit")
    used = f"{size(resident)}/" if isinstance(resident, int) else ""
    uptime = machine.get("uptime")
    pid = machine.get("pid")
    program = neutralise(str(machine.get("program", "")))
    return [
        neutralise(str(machine.get("name", "?"))),
        neutralise(str(machine.get("state", "?"))),
        "-" if pid is None else str(pid),
        str(machine.get("generation", "-")),
        used + (size(limit) if isinstance(limit, int) else "-"),
        duration(uptime) if isinstance(uptime, int | float) else "-",
        str(machine.get("restarts", "-")),
        program + (" (network)" if machine.get("network") else ""),
    ]
