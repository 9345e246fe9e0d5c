"""``retinue explain``: may one machine reach another, which line says so, and what would have to stand there."""

import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from retinue.cp.cli.command import json_option, selection, state_option, system_option
from retinue.cp.cli.completing import complete_targets
from retinue.cp.cli.errors import OK, UnknownMachine
from retinue.cp.cli.output import BOLD, DIM, RED, YELLOW, Paint, colour_wanted, neutralise, say, to_json
from retinue.cp.cli.systems import find_system

if TYPE_CHECKING:
    from retinue.cp.runtime import Running

# Exit codes that scripts may ask for: there is no edge; there is one, and nobody answers at its end now.
NO_EDGE: Final = 3
NOT_NOW: Final = 4


@click.command()
@click.argument("origin", metavar="A", shell_complete=complete_targets)
@click.argument("target", metavar="B", shell_complete=complete_targets)
@click.option("--file", metavar="FILE", type=click.Path(), help="Look at a topology file and at no running system.")
@json_option()
@system_option()
@state_option()
@click.pass_context
def explain(ctx: click.Context, origin: str, target: str, file: str | None, as_json: bool) -> int:
    """Tell whether the machine A may reach B, and why.

    B is a machine, or *CP or *LOG. By which edges, and which line of which file says so; whether somebody answers there
    now; the ways through other machines; and without an edge the line to add. The exit code is 0 if A reaches B now, 3
    without an edge, 4 if there is an edge and B does not answer.
    """
    found = _from_file(file, origin, target) if file is not None else _from_system(ctx, origin, target)
    if as_json:
        say(to_json(found))
    else:
        for line in lines(found, Paint(colour_wanted(sys.stdout))):
            say(line)
    if not found["allowed"]:
        return NO_EDGE
    return NOT_NOW if found["usable"] is False else OK


def _from_file(file: str, origin: str, target: str) -> dict[str, Any]:
    from retinue.cp.cli.topology import load_directory
    from retinue.cp.explanation import explain as explained

    directory = load_directory(file)
    try:
        return {"system": directory.system.name, **explained(directory, origin, target).as_dict()}
    except KeyError as error:
        raise UnknownMachine(error.args[0], directory.system.name, error.args[1]) from None


def _from_system(ctx: click.Context, origin: str, target: str) -> dict[str, Any]:
    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse

    found: dict[str, Any] = converse(partial(_ask, system, origin, target))
    return found


async def _ask(system: "Running", origin: str, target: str) -> Any:
    from retinue.cp.cli.session import request

    arguments: dict[str, Any] = {"from": origin, "to": target}  # the one is no name in Python
    return await request(system, "explain", **arguments)


def lines(found: Mapping[str, Any], paint: Paint) -> list[str]:
    """An explanation for people."""
    origin, target = neutralise(found["origin"]), neutralise(found["target"])
    file = neutralise(os.path.relpath(found["file"]) if os.path.exists(found["file"]) else found["file"])
    said = []
    if found["allowed"]:
        usable = found["usable"]
        verdict = {None: "may reach", True: "reaches", False: "may reach"}[usable]
        but = paint(", but not now", YELLOW) if usable is False else ""
        said.append(paint(f"{origin} {verdict} {target}", BOLD) + but)
        for step in found["direct"]:
            said += _step(step, file, paint)
    else:
        said.append(paint(f"{origin} may not reach {target}", BOLD, RED) + ": no edge leads there")
    if found["back"]:
        said += ["", f"{target} may reach {origin}, and on such a path {origin} may send and answer, too:"]
        for step in found["back"]:
            said += _step(step, file, paint)
    if found["through"]:
        said += ["", "through others, if they pass on what they are asked:"]
        for way in found["through"]:
            names = [f"{neutralise(step['machine'])} --{neutralise(step['edge'])}-->" for step in way]
            said.append(f"  {' '.join(names)} {neutralise(way[-1]['to'])}")
            for step in way:
                if step["usable"] is False:
                    said.append(paint(f"    {neutralise(step['why_not'])}", YELLOW))
    if found["disks"]:
        said += ["", "without a path:", *(f"  {neutralise(each)}" for each in found["disks"])]
    said += _missing(found["missing"], file, paint)
    if found["stale"]:
        said += ["", paint(f"{file} has changed since it was read: the lines are those that it had then", YELLOW)]
    return said


def _step(step: Mapping[str, Any], file: str, paint: Paint) -> list[str]:
    name = f"{neutralise(step['machine'])}.{neutralise(step['edge'])}"
    text = f"   {neutralise(step['text'])}" if step["text"] else ""
    place = paint(f"{file}:{step['line']}", DIM)
    said = [f"  {name}  {place}{text}"]
    if step["usable"] is False:
        said.append(paint(f"    {neutralise(step['why_not'])}", YELLOW))
    return said


def _missing(missing: Mapping[str, Any] | None, file: str, paint: Paint) -> list[str]:
    if missing is None:
        return []
    if missing["text"] is None:
        return ["", neutralise(missing["why"])]
    after, instead = missing["after"], missing["instead"]
    place = f"add this after line {after} of {file}" if instead is None else f"replace line {instead} of {file} by this"
    said = ["", f"to allow it, {place}, then retinue apply {file}:", ""]
    said += [f"  {paint(neutralise(line), BOLD)}" if line else "" for line in missing["text"].split("\n")]
    return said + (["", neutralise(missing["why"])] if missing["why"] else [])
