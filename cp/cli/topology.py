"""``retinue check`` and ``retinue graph``: what a topology file says, without starting anything."""

from typing import TYPE_CHECKING, Any

import click

from retinue.cp.cli.command import json_option
from retinue.cp.cli.errors import OK, WRONG_TOPOLOGY, TopologyWrong
from retinue.cp.cli.output import neutralise, say, to_json

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
@click.argument("file", type=click.Path())
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "mermaid", "dot", "json"]),
    default="text",
    show_default=True,
    help="mermaid and dot are for drawing programs.",
)
@json_option("The same as --format json.")
def graph(file: str, form: str, as_json: bool) -> int:
    """Print who may talk to whom."""
    directory = load_directory(file)
    from retinue.cp.directory import graph as draw

    if as_json or form == "json":
        say(to_json(draw.as_json(directory)))
        return OK
    drawing = {"text": draw.text, "mermaid": draw.mermaid, "dot": draw.dot}[form](directory)
    say(drawing.rstrip("\n"))
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
