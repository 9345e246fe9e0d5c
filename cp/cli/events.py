"""``retinue events``: every change of state of the machines and of the system."""

import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from retinue.cp.cli.command import json_option, selection, state_option, system_option
from retinue.cp.cli.completing import complete_machines
from retinue.cp.cli.counting import COUNT_MAX, count_option
from retinue.cp.cli.errors import OK
from retinue.cp.cli.output import DIM, RED, YELLOW, Paint, colour_wanted, neutralise, say, to_json
from retinue.cp.cli.systems import find_system

if TYPE_CHECKING:
    from retinue.cp.runtime import Running

_COLOURS: Final = {"READY": "32", "ABEND": RED, "BROKEN": RED, "FAILED": RED, "WAITING": YELLOW}


@click.command()
@click.argument("name", required=False, shell_complete=complete_machines)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@count_option("The last N events, or 'all'.")
@json_option("Print one JSON object per event and line.")
@system_option()
@state_option()
@click.pass_context
def events(ctx: click.Context, name: str | None, follow: bool, count: int, as_json: bool) -> int:
    """Show every change of state, or those of a machine.

    \b
    retinue events -f                        what happens from now on, too
    retinue events --json -n all | jq 'select(.state == "ABEND")'
    """
    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse

    converse(partial(_events, system, name, follow, min(count, COUNT_MAX), as_json))
    return OK


async def _events(system: "Running", name: str | None, follow: bool, count: int, as_json: bool) -> None:
    from retinue.cp.cli.session import request

    form = EventFormat(Paint(colour_wanted(sys.stdout)))
    found = (await request(system, "events", machine=name, count=max(count, 1)))["events"]
    for event in found if count else ():
        say(to_json(event, indent=None) if as_json else form.line(event))
    if follow:
        await _follow(system, name, found[-1]["seq"] if found else 0, form, as_json)


async def _follow(system: "Running", name: str | None, last: int, form: "EventFormat", as_json: bool) -> None:
    from retinue.cp.cli.following import show_all

    def show(event: Mapping[str, Any]) -> None:
        say(to_json(event, indent=None) if as_json else form.line(event))

    await show_all(system, ("events", {"machine": name, "follow": True}), last, "event", show, as_json=as_json)


class EventFormat:
    """Turns events into lines: when, who, from which state to which, and why."""

    def __init__(self, paint: Paint) -> None:
        self._paint = paint

    def line(self, event: Mapping[str, Any]) -> str:
        """The line of one event."""
        paint = self._paint
        name = neutralise(str(event.get("machine") or "(system)"))
        generation = event.get("generation")
        state = neutralise(str(event.get("state")))
        previous = event.get("previous")
        change = paint(f"{state:<8}", *filter(None, [_COLOURS.get(state)]))
        was = paint(f"{neutralise(str(previous)) if previous else '':>8} -> ", DIM) if previous else ""
        number = f"#{generation}" if isinstance(generation, int) and generation else ""
        cause = event.get("cause")
        why = "  " + neutralise(" … ".join(_ends(str(cause)))) if cause else ""
        when = paint(clock(event.get("time")), DIM)
        return f"{when}  {paint.machine(name, f'{name:<10}')} {number:<5} {was}{change}{why}".rstrip()


def _ends(text: str) -> list[str]:
    """The first and the last line, which say most."""
    first, *rest = text.strip().splitlines() or [""]
    return [first.rstrip(), rest[-1].strip()] if rest else [first]


def clock(seconds: Any) -> str:
    """Local time to the millisecond, as in ``Nov 21 09:01:02.123``."""
    try:
        return f"{time.strftime('%b %d %H:%M:%S', time.localtime(seconds))}.{int(seconds % 1 * 1000):03d}"
    except (TypeError, OverflowError, OSError, ValueError):
        return "--- -- --:--:--.---"
