"""``retinue check`` and ``retinue graph``: what a topology file says, without starting anything."""

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from retinue.cp.cli.command import json_option, selection, state_option, system_option
from retinue.cp.cli.errors import OK, WRONG_TOPOLOGY, TopologyWrong
from retinue.cp.cli.output import Paint, colour_wanted, is_terminal, neutralise, say, to_json, width

if TYPE_CHECKING:
    from retinue.cp.directory import Directory
    from retinue.cp.directory.errors import DirectoryError, DirectoryErrors


@click.command()
@click.argument("file", type=click.Path())
@json_option()
def check(file: str, as_json: bool) -> int:
    """Check a topology file and print every mistake in it."""
    from retinue.cp.directory.errors import DirectoryErrors

    try:
        directory = _load(file)
    except DirectoryErrors as wrong:
        if not as_json:
            raise told(file, wrong) from wrong
        say(to_json({"ok": False, "file": file, "errors": [_as_dict(error) for error in wrong.errors]}))
        return WRONG_TOPOLOGY
    machines, edges = len(directory.machines), sum(len(machine.uses) for machine in directory.machines)
    if as_json:
        counts = {"system": directory.system.name, "machines": machines, "edges": edges}
        say(to_json({"ok": True, "file": file, **counts, "errors": []}))
    else:
        say(f"ok: {directory.system.name}, {_count(machines, 'machine')}, {_count(edges, 'edge')}")
    return OK


@click.command()
@click.argument("file", type=click.Path(), required=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "mermaid", "dot", "json"]),
    default="text",
    show_default=True,
    help="mermaid and dot are for drawing programs.",
)
@click.option("--live", is_flag=True, help="The running system, with states and rates; on a terminal until Ctrl-C.")
@click.option("-d", "--delay", type=click.FloatRange(min=0.1), default=1.0, metavar="S", help="Seconds of a sample.")
@click.option("-n", "--samples", "count", type=click.IntRange(min=1), metavar="N", help="End after N samples.")
@json_option("The same as --format json.")
@system_option()
@state_option()
@click.pass_context
def graph(
    ctx: click.Context, file: str | None, form: str, live: bool, delay: float, count: int | None, as_json: bool
) -> int:
    """Print who may talk to whom.

    As FILE says; with --live, what the running system does of it.

    \b
    retinue graph shop.toml --format mermaid
    retinue graph --live
    """
    form = "json" if as_json else form
    if live:
        if file is not None or form not in ("text", "json"):
            raise click.UsageError("--live draws the running system, as text or json", ctx)
        return _live(ctx, delay, count, form == "json")
    if file is None:
        raise click.UsageError("missing argument 'FILE' (or --live)", ctx)
    directory = load_directory(file)
    from retinue.cp.directory import graph as draw

    if form == "json":
        say(to_json(draw.as_json(directory)))
        return OK
    drawing = {"text": draw.text, "mermaid": draw.mermaid, "dot": draw.dot}[form](directory)
    say(drawing.rstrip("\n"))
    return OK


def _live(ctx: click.Context, delay: float, count: int | None, as_json: bool) -> int:
    from retinue.cp.cli.picture import picture
    from retinue.cp.cli.session import converse
    from retinue.cp.cli.systems import find_system
    from retinue.cp.cli.top import live_loop, sample

    system = find_system(selection(ctx))
    paint, room = Paint(colour_wanted(sys.stdout)), width(sys.stdout)

    def show(rates: Any) -> None:
        for line in [to_json(rates, indent=None)] if as_json else picture(rates, paint=paint, room=room):
            say(line)

    if is_terminal(sys.stdout) and count is None and not as_json:
        converse(partial(live_loop, system, delay, partial(picture, paint=paint, room=room)))
    else:
        converse(partial(sample, system, delay, show, count or 1))
    return OK


def load_directory(file: str) -> "Directory":
    """The directory that `file` declares. Raises TopologyWrong, which shows every mistake in it."""
    from retinue.cp.directory.errors import DirectoryErrors

    try:
        return _load(file)
    except DirectoryErrors as wrong:
        raise told(file, wrong) from wrong


def _load(file: str) -> "Directory":
    from retinue.cp.directory import load

    return load(file)


def told(file: str, wrong: "DirectoryErrors") -> TopologyWrong:
    """The error that shows every mistake in the topology `file`."""
    if len(wrong.errors) == 1 and wrong.errors[0].line is None:  # nothing in the file, but the file
        return TopologyWrong(f"{file}: {wrong.errors[0].message}", wrong.errors[0].hint or None)
    lines = []
    for error in wrong.errors:
        place = ":".join(str(part) for part in (error.file, error.line, error.column) if part is not None)
        table = f"[{error.table}] " if error.table else ""
        lines.append(neutralise(f"{place}: {table}{error.message}"))
        if error.hint:
            lines.append(f"  {neutralise(error.hint)}")
    return TopologyWrong(f"{_count(len(wrong.errors), 'mistake')} in {file}", listing=lines)


def _as_dict(error: "DirectoryError") -> dict[str, Any]:
    names = ("file", "line", "column", "table", "message", "hint")
    return {name: getattr(error, name) for name in names}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
