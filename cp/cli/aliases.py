"""Commands under the names that people know who have operated z/VM. They are not listed in the help."""

import sys
from functools import partial
from typing import Any, Final

import click

from retinue.cp.cli.command import selection, state_option, system_option
from retinue.cp.cli.completing import complete_machines
from retinue.cp.cli.errors import OK, did_you_mean
from retinue.cp.cli.output import Paint, colour_wanted, neutralise, say, width
from retinue.cp.cli.steering import start, stop
from retinue.cp.cli.systems import find_system

# What may be queried, and the command that tells it here.
_QUERIES: Final = {
    "names": "ps",
    "users": "ps",
    "userid": "ps",
    "iucv": "ps --edges",
    "limits": "doctor",
    "storage": "ps --storage",
    "frames": "ps --storage",
    "cplevel": "version",
}
# Names on a line of QUERY NAMES.
_ON_A_LINE: Final = 4


@click.command(hidden=True)
@click.argument("what", metavar="NAMES|USERS|USERID")
@click.argument("name", required=False, shell_complete=complete_machines)
@system_option()
@state_option()
@click.pass_context
def query(ctx: click.Context, what: str, name: str | None) -> int:
    """QUERY NAMES, USERS or USERID as CP answers it: who is there.

    The machines that run, disconnected as every machine here is (DSC). More is told by: retinue ps
    """
    folded = what.casefold()
    meant = [each for each in _QUERIES if each == folded] or [each for each in _QUERIES if each.startswith(folded)]
    if len(meant) != 1:
        raise click.UsageError(f"cannot query {what}{did_you_mean(what, _QUERIES)}", ctx)
    if (command := _QUERIES[meant[0]]) != "ps":
        raise click.UsageError(f"here that is: retinue {command}", ctx)
    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse, request

    listing = converse(partial(request, system, "ps"))
    names = [str(machine["name"]) for machine in listing["machines"] if machine["pid"] is not None]
    match meant[0]:
        case "userid":
            say(f"OPERATOR AT {neutralise(listing['system'])}")
        case "users":
            say(f"{len(names)} USERS, 0 DIALED, 0 NET")
        case _:
            shown = [f"{neutralise(each):<8} - DSC" for each in names if name in (None, each)]
            for first in range(0, len(shown), _ON_A_LINE):
                say(", ".join(shown[first : first + _ON_A_LINE]))
    return OK


@click.command(hidden=True)
@click.argument("what", metavar="USER|LOAD|STORAGE")
@click.argument("name", required=False, shell_complete=complete_machines)
@system_option()
@state_option()
@click.pass_context
def indicate(ctx: click.Context, what: str, name: str | None) -> int:
    """INDICATE USER [NAME], INDICATE LOAD or INDICATE STORAGE: what the machines use.

    LOAD is the same as: retinue top -n 1; STORAGE the same as: retinue ps --storage
    """
    folded = what.casefold()
    meant = [each for each in ("user", "load", "storage") if folded and each.startswith(folded)]
    if not meant:
        raise click.UsageError(f"cannot indicate {what}: USER, LOAD or STORAGE", ctx)
    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse, request
    from retinue.cp.cli.storage import storage_lines, user_lines
    from retinue.cp.cli.top import DELAY, head_line, machine_lines, only, sample

    if meant[0] != "load":
        report = converse(partial(request, system, "storage"))
        paint = Paint(colour_wanted(sys.stdout))
        names = {name.upper()} if name else set()
        shown = user_lines(report, names) if meant[0] == "user" else None
        for line in storage_lines(report, paint=paint, room=width(sys.stdout)) if shown is None else shown:
            say(line)
        return OK

    def show(rates: Any) -> None:
        paint = Paint(colour_wanted(sys.stdout))
        shown = only(rates, {name.upper()}) if name else rates
        say(head_line(rates, paint))
        for line in machine_lines(shown, paint=paint, room=width(sys.stdout)):
            say(line)

    converse(partial(sample, system, DELAY, show, 1))
    return OK


def _alias(command: click.Command, name: str, says: str) -> click.Command:
    return click.Command(
        name, callback=command.callback, params=command.params, help=f"{says}\n\n{command.help}", hidden=True
    )


xautolog = _alias(start, "xautolog", "XAUTOLOG NAME: the same as retinue start NAME.")
force = _alias(stop, "force", "FORCE NAME: the same as retinue stop NAME.")
