"""``retinue top``: what the machines of a running system do, per second."""

import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from retinue.cp.cli.command import json_option, selection, state_option, system_option
from retinue.cp.cli.completing import complete_machines
from retinue.cp.cli.errors import OK, UnknownMachine
from retinue.cp.cli.listings import STATE_COLOUR
from retinue.cp.cli.output import (
    BOLD,
    DIM,
    RED,
    YELLOW,
    Paint,
    colour_wanted,
    duration,
    is_terminal,
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

# Seconds of a sample: long enough for figures that do not jump, short enough to wait for.
DELAY: Final = 1.0
DELAY_MIN: Final = 0.1

Rates = Mapping[str, Any]

_HEAD: Final = (
    *("NAME", "STATE", "CPU%", "RESIDENT", "PAGED", "LIMIT", "PAGE/S", "MSG/S", "OUT", "WAITING", "LOG/S", "GEN"),
    "UPTIME",
)
_EDGE_HEAD: Final = ("FROM", "EDGE", "TO", "PATHS", "MSG/S", "BACK/S", "BYTES/S", "BACK/S", "OUT", "LIMIT")


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_machines)
@click.option("-e", "--edges", is_flag=True, help="The edges instead of the machines.")
@click.option("-d", "--delay", type=click.FloatRange(min=DELAY_MIN), default=DELAY, show_default=True, metavar="S",
              help="Seconds of a sample.")  # fmt: skip
@click.option("-n", "--samples", "count", type=click.IntRange(min=1), metavar="N", help="End after N samples.")
@json_option("Print one JSON object per sample and line.")
@system_option()
@state_option()
@click.pass_context
def top(ctx: click.Context, names: tuple[str, ...], edges: bool, delay: float, count: int | None, as_json: bool) -> int:
    """Show what the machines do, per second.

    All of them, or those NAMEd. On a terminal a table that changes until Ctrl-C; elsewhere, and with --json, one
    sample. Rates are those of the last sample, of 1 s unless -d says otherwise.
    """
    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse

    live = is_terminal(sys.stdout) and not as_json and count is None
    converse(partial(_top, system, set(names), edges, delay, None if live else count or 1, as_json))
    return OK


async def _top(system: "Running", names: set[str], edges: bool, delay: float, count: int | None, as_json: bool) -> None:
    def shown(rates: Rates, *, paint: Paint, room: int | None) -> list[str]:
        return [head_line(rates, paint), *(edge_lines if edges else machine_lines)(rates, paint=paint, room=room)]

    def check(rates: Rates) -> Rates:
        known = [machine["name"] for machine in rates["machines"]]
        if unknown := names - {*known, *(each.partition("@")[0] for each in known)}:
            raise UnknownMachine(min(unknown), system.system, known)
        return only(rates, names) if names else rates

    paint, room = Paint(colour_wanted(sys.stdout)), width(sys.stdout)
    if count is None:
        await live_loop(system, delay, lambda rates: shown(check(rates), paint=paint, room=room))
        return

    def show(rates: Rates) -> None:
        checked = check(rates)
        for line in [to_json(checked, indent=None)] if as_json else shown(checked, paint=paint, room=room):
            say(line)

    await sample(system, delay, show, count)


async def sample(system: "Running", delay: float, show: Callable[[Rates], None], count: int | None = None) -> None:
    """Show rates, one after ``delay`` seconds each; over the death of the control program."""
    import trio

    from retinue.cp.cli.session import request
    from retinue.cp.rates import rates

    before = await request(system, "top")
    taken = 0
    due = trio.current_time()
    while count is None or taken < count:
        due = max(due + delay, trio.current_time())
        await trio.sleep_until(due)
        after = await request(system, "top", after=before["seq"])
        show(rates(before, after))
        before, taken = after, taken + 1


async def live_loop(system: "Running", delay: float, shown: Callable[[Rates], Sequence[str]]) -> None:
    """Show each sample in the place of the one before, until Ctrl-C or the end of the system."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from retinue.cp.cli.errors import SystemGone
    from retinue.cp.cli.output import tell

    console = Console(file=sys.stdout, width=width(sys.stdout), no_color=not colour_wanted(sys.stdout), highlight=False)
    with Live(
        console=console,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
        vertical_overflow="ellipsis",
    ) as live:

        def draw(rates: Rates) -> None:
            # The lines are neutralised already; only escape sequences of our own are in them.
            live.update(Text.from_ansi("\n".join(shown(rates)), no_wrap=True), refresh=True)

        ended = False
        try:
            await until_interrupted(partial(sample, system, delay, draw))
        except SystemGone:
            ended = True
    if ended:
        tell(f"-- {system.system} has ended --")


async def until_interrupted(what: Callable[[], Awaitable[None]]) -> None:
    """Ctrl-C is the usual end of it, and no error. What it raises arrives alone."""
    import trio

    raised: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def watch(signals: AsyncIterator[int]) -> None:
            async for _ in signals:
                nursery.cancel_scope.cancel()

        # The nearest receiver has the signal.
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            nursery.start_soon(watch, signals)
            try:
                await what()
            except Exception as exc:
                raised = exc
            nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


def only(rates: Rates, names: set[str]) -> Rates:
    """The rates of these machines, and of the edges from or to them; a name also means the instances behind it."""

    def meant(name: str) -> bool:
        return name in names or name.partition("@")[0] in names

    return {
        **rates,
        "machines": [machine for machine in rates["machines"] if meant(machine["name"])],
        "edges": [edge for edge in rates["edges"] if meant(edge["from"]) or meant(edge["to"])],
    }


def head_line(rates: Rates, paint: Paint) -> str:
    """The system in a line."""
    machines = rates["machines"]
    ready = sum(machine["state"] == "READY" for machine in machines)
    cpu = sum(machine["cpu"] or 0.0 for machine in machines)
    resident = sum(machine["storage"].get("resident") or 0 for machine in machines)
    messages = sum((edge["forth"] or 0) + (edge["back"] or 0) for edge in rates["edges"])
    records = sum(machine["records"] or 0 for machine in machines)
    state = paint(rates["state"], STATE_COLOUR.get(rates["state"], RED))
    figures = f"{cpu * 100:.0f}% CPU, {size(resident)}, {rate(messages)} messages/s, {rate(records)} records/s"
    return f"{paint(neutralise(rates['system']), BOLD)} is {state}: {ready} of {len(machines)} READY, {figures}"


def machine_lines(rates: Rates, *, paint: Paint, room: int | None = None) -> list[str]:
    """The machines as a table."""
    rows = [_machine_row(machine) for machine in rates["machines"]]
    first, *rest = table(_HEAD, rows, right=frozenset(range(2, len(_HEAD))), room=room)
    lines = [paint("  ".join(first).rstrip(), BOLD)]
    for cells, machine in zip(rest, rates["machines"], strict=True):
        cells[0] = paint.machine(cells[0].strip(), cells[0])
        cells[1] = paint(cells[1], STATE_COLOUR.get(cells[1].strip(), RED))
        cells[2] = paint(cells[2], YELLOW) if (machine["cpu"] or 0) >= 0.9 else cells[2]
        lines.append("  ".join(cells).rstrip())
    return lines


def _machine_row(machine: Mapping[str, Any]) -> list[str]:
    resident, uptime = machine["storage"].get("resident"), machine["uptime"]
    paged, reads, writes = machine["storage"].get("paged"), machine.get("page_reads"), machine.get("page_writes")
    return [
        neutralise(machine["name"]),
        neutralise(machine["state"]),
        "-" if machine["cpu"] is None else f"{machine['cpu'] * 100:.1f}",
        "-" if resident is None else size(resident),
        "-" if paged is None else size(paged),
        size(machine["storage"]["limit"]),
        rate(None if reads is None or writes is None else reads + writes),
        rate(machine["messages"]),
        str(machine["outstanding"]),
        "-" if machine["waiting"] is None else str(machine["waiting"]),
        rate(machine["records"]),
        str(machine["generation"]),
        "-" if uptime is None else duration(uptime),
    ]


def edge_lines(rates: Rates, *, paint: Paint, room: int | None = None) -> list[str]:
    """The edges as a table, the busiest first."""
    edges = sorted(rates["edges"], key=lambda edge: -((edge["forth"] or 0) + (edge["back"] or 0)))
    rows = [
        [
            *(neutralise(edge[name]) for name in ("from", "name", "to")),
            str(edge["paths"]),
            rate(edge["forth"]),
            rate(edge["back"]),
            _bytes(edge["bytes_forth"]),
            _bytes(edge["bytes_back"]),
            "-" if edge["outstanding"] is None else str(edge["outstanding"]),
            str(edge["limit"]),
        ]
        for edge in edges
    ]
    first, *rest = table(_EDGE_HEAD, rows, right=frozenset(range(3, len(_EDGE_HEAD))), room=room)
    lines = [paint("  ".join(first).rstrip(), BOLD)]
    for cells, edge in zip(rest, edges, strict=True):
        for column in (0, 2):
            cells[column] = paint.machine(cells[column].strip(), cells[column])
        if edge["outstanding"] is not None and edge["outstanding"] >= edge["limit"]:
            cells[-2] = paint(cells[-2], RED)
        lines.append("  ".join(cells).rstrip() if edge["paths"] else paint("  ".join(cells).rstrip(), DIM))
    return lines


def rate(value: float | None) -> str:
    """So many per second, with the digits that matter; nothing known: -."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 99.5 or value == int(value) else f"{value:.1f}"


def _bytes(value: float | None) -> str:
    return "-" if value is None else size(int(value))
