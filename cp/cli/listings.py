"""``retinue ps`` and ``retinue logs``: what runs, and what it wrote."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from retinue.cp.cli.command import json_option, selection, state_option, system_option
from retinue.cp.cli.completing import complete_machines
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

if TYPE_CHECKING:
    from retinue.cp.runtime import Running

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Enough to see what happened, little enough for one look.
LOGS_DEFAULT: Final = 100
# What `all` and every larger number mean: the largest integer of the wire that is one for everybody.
COUNT_MAX: Final = 2**31 - 1

_HEAD: Final = ("NAME", "STATE", "PID", "GEN", "STORAGE", "UPTIME", "RESTARTS", "PROGRAM")
_RIGHT: Final = frozenset({2, 3, 4, 5, 6})
STATE_COLOUR: Final = {"READY": "32", "DORMANT": DIM, "STARTING": YELLOW, "STOPPING": YELLOW, "WAITING": YELLOW}


@click.command()
@click.option("--edges", is_flag=True, help="List the edges, and what passed along them.")
@json_option()
@system_option()
@state_option()
@click.pass_context
def ps(ctx: click.Context, edges: bool, as_json: bool) -> int:
    """List the machines of a running system."""
    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse, request

    listing = converse(partial(request, system, "edges" if edges else "ps"))
    if as_json:
        say(to_json(listing))
        return OK
    lines = edge_lines if edges else ps_lines
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


def _count(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """A number of lines, or `all`."""
    if value == "all":
        return COUNT_MAX
    if not (value.isascii() and value.isdecimal()):
        raise click.BadParameter(f"{value!r} is neither a number nor 'all'", ctx, param)
    return min(int(value[:20]), COUNT_MAX)


def count_option(what: str) -> Callable[[_Function], _Function]:
    """``-n N``."""
    return click.option(
        "-n", "--lines", "count", callback=_count, default=str(LOGS_DEFAULT), show_default=True, metavar="N", help=what
    )


@click.command()
@click.argument("name", required=False, shell_complete=complete_machines)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@count_option("The last N records, or 'all'.")
@json_option("Print one JSON object per record and line.")
@system_option()
@state_option()
@click.pass_context
def logs(ctx: click.Context, name: str | None, follow: bool, count: int, as_json: bool) -> int:
    """Show what the machines wrote, or one of them."""
    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse

    converse(partial(_logs, system, name, follow, count, as_json))
    return OK


async def _logs(system: "Running", name: str | None, follow: bool, count: int, as_json: bool) -> None:
    from retinue.cp.cli.records import RecordFormat
    from retinue.cp.cli.session import request

    names = [] if as_json else [str(machine["name"]) for machine in (await request(system, "ps"))["machines"]]
    form = RecordFormat([name] if name else names, paint=Paint(colour_wanted(sys.stdout)), times=True)
    # With -n 0 one record is asked for all the same: it says where following begins.
    records = (await request(system, "logs", machine=name, count=max(count, 1)))["records"]
    for record in records if count else ():
        _print_record(record, form, as_json)
    if follow:
        await _follow(system, name, records[-1]["seq"] if records else 0, form, as_json)


async def _follow(system: "Running", name: str | None, last: int, form: Any, as_json: bool) -> None:
    from retinue.cp.cli.following import show_all

    def show(record: Mapping[str, Any]) -> None:
        _print_record(record, form, as_json)

    asked = "follow", {"machine": name, "events": False, "records": True}
    torn = "-- the last records may be missing --"
    await show_all(system, asked, last, "record", show, as_json=as_json, torn=torn)


def _print_record(record: Mapping[str, Any], form: Any, as_json: bool) -> None:
    if as_json:
        say(to_json(record, indent=None))
        return
    for line in form.lines(record):
        say(line)
