"""``retinue plan`` and ``retinue apply``: from the system that runs to the one that a file declares."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from retinue.cp.cli.command import Selection, json_option, selection, state_option, system_option
from retinue.cp.cli.errors import OK, CommandError, NoSystem
from retinue.cp.cli.output import BOLD, DIM, RED, YELLOW, Paint, colour_wanted, neutralise, say, tell, to_json
from retinue.cp.cli.systems import find_system
from retinue.cp.cli.topology import load_directory

if TYPE_CHECKING:
    from retinue.cp.directory import Directory
    from retinue.cp.runtime import Running

# With --detailed-exitcode: there is something to change; something cannot be changed while the system runs.
CHANGES: Final = 3
IMPOSSIBLE: Final = 4

# How each kind of change is marked, and told.
_MARKS: Final = {
    "add": ("+", "32", "is started"),
    "remove": ("-", RED, "is stopped and removed"),
    "replace": ("±", YELLOW, "is replaced: paths go over to a successor"),
    "reload": ("~", "36", "takes its new config (or is replaced, if its program cannot)"),
    "set": ("~", "36", "is changed in place"),
    "system": ("~", "36", "is changed in place"),
    "impossible": ("!", RED, "cannot be changed while the system runs"),
}


@click.command()
@click.argument("file", type=click.Path())
@click.option(
    "--detailed-exitcode",
    is_flag=True,
    help=f"Exit with {CHANGES} if something would change, {IMPOSSIBLE} if something cannot.",
)
@json_option()
@system_option()
@state_option()
@click.pass_context
def plan(ctx: click.Context, file: str, detailed_exitcode: bool, as_json: bool) -> int:
    """Show what `apply` would change, and why.

    \b
    +  a machine that is new            -  one that is no longer there
    ±  replaced by a successor          ~  changed in place, not restarted
    !  needs a retinue down and up

    Of a system that does not run everything is new.
    """
    directory = load_directory(file)
    system = _running(ctx, file, directory)
    changes = _all_new(directory) if system is None else _planned(system, directory)
    if as_json:
        running = system is not None
        say(to_json({"system": directory.system.name, "running": running, "file": file, "changes": changes}))
    else:
        if system is None:
            tell(f"-- no system {directory.system.name} is running: retinue up {file} --")
        for line in lines(changes, len(directory.expanded().machines), Paint(colour_wanted(sys.stdout)), file):
            say(line)
    return _code(changes) if detailed_exitcode else OK


@click.command()
@click.argument("file", type=click.Path())
@json_option()
@system_option()
@state_option()
@click.pass_context
def apply(ctx: click.Context, file: str, as_json: bool) -> int:
    """Change the running system to what FILE declares.

    What has not changed there is not touched. The plan is shown first, then each change as it happens. Machines whose
    definition is the same keep their process. If something cannot be changed while the system runs, nothing is. Secrets
    that come from variables are read anew.
    """
    from retinue.cp.cli.up import secret_variables

    directory = load_directory(file)
    system = _running(ctx, file, directory)
    if system is None:
        # Says where was looked, and how the last run ended.
        system = find_system(_named(selection(ctx), directory.system.name))
    variables = secret_variables(file, directory)
    changes = _planned(system, directory)
    if not as_json:
        for line in lines(changes, len(directory.expanded().machines), Paint(colour_wanted(sys.stdout)), file):
            say(line)
    impossible = [change for change in changes if change["kind"] == "impossible"]
    if impossible:
        raise CommandError(
            f"nothing was changed: {'; '.join(why for change in impossible for why in change['why'])}",
            f"retinue down --system {system.system}, then retinue up {file}",
        )
    began = time.monotonic()
    answer = _apply(system, directory, variables) if changes else {}
    done = answer.get("changed", changes) if isinstance(answer, dict) else changes
    if as_json:
        say(to_json({"system": system.system, "file": file, "changes": done}))
    failed = [f"{change['machine']}: {change['failed']}" for change in done if change.get("failed")]
    if failed:
        text = "\n".join(failed)
        raise CommandError(f"{len(failed)} of {len(done)} could not be changed:\n{text}", f"see: retinue plan {file}")
    if changes:
        tell(f"{system.system} is as {file} says ({time.monotonic() - began:.2f} s)")
    return OK


def _running(ctx: click.Context, file: str, directory: "Directory") -> "Running | None":
    """The running system that the file declares, if it runs."""
    chosen, name = selection(ctx), directory.system.name
    if chosen.named and chosen.system != name:
        raise click.UsageError(f"{file} declares the system {name}, not {chosen.system}", ctx)
    try:
        return find_system(_named(chosen, name))
    except NoSystem:
        return None


def _named(chosen: Selection, name: str) -> Selection:
    found = Selection()
    found.system, found.state = name, chosen.state
    return found


def _planned(system: "Running", directory: "Directory") -> list[dict[str, Any]]:
    from retinue.cp.cli.session import converse, request

    found = converse(partial(request, system, "plan", path=str(directory.path)))
    changes: list[dict[str, Any]] = found["changes"]
    return changes


def _all_new(directory: "Directory") -> list[dict[str, Any]]:
    import attrs

    from retinue.cp.changes import changes

    return [change.as_dict() for change in changes(attrs.evolve(directory, machines=(), groups=()), directory)]


def _apply(system: "Running", directory: "Directory", variables: Mapping[str, bytes]) -> Any:
    from retinue.cp.cli.orders import order
    from retinue.cp.cli.session import converse
    from retinue.cp.secrets import hand_over

    descriptor = hand_over(variables) if variables else None
    try:
        given = () if descriptor is None else (descriptor,)
        return converse(partial(order, system, "apply", descriptors=given, path=str(directory.path)))
    finally:
        if descriptor is not None:
            os.close(descriptor)


def lines(changes: Sequence[Mapping[str, Any]], machines: int, paint: Paint, file: str) -> list[str]:
    """A plan for people: a line for each change, and why below it."""
    if not changes:
        return [f"nothing to change: {machines} machine{'' if machines == 1 else 's'} as {file} says"]
    said = []
    for change in changes:
        mark, colour, text = _MARKS.get(change["kind"], ("?", RED, neutralise(str(change["kind"]))))
        name = neutralise(change.get("machine") or "the system")
        place = paint(f"{file}:{change['line']}", DIM) if change.get("line") else ""
        said.append(f"{paint(f'{mark} {name}', BOLD, colour)} {text}  {place}".rstrip())
        said += [f"    {neutralise(str(why))}" for why in change["why"]]
    kinds = [change["kind"] for change in changes]
    counts = {word: sum(kind in meant for kind in kinds) for word, meant in _COUNTED.items()}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    touched = {change.get("machine") for change in changes if change["kind"] not in ("remove", "system")} - {None, ""}
    return [*said, "", paint(f"{told}; {machines - len(touched)} as they are", BOLD)]


_COUNTED: Final = {
    "to start": {"add"},
    "to remove": {"remove"},
    "to replace": {"replace"},
    "to change in place": {"set", "reload", "system"},
    "impossible": {"impossible"},
}


def _code(changes: Sequence[Mapping[str, Any]]) -> int:
    if any(change["kind"] == "impossible" for change in changes):
        return IMPOSSIBLE
    return CHANGES if changes else OK
