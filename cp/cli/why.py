"""``retinue why``: how a machine came to its end, from its death certificate."""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from retinue.cp.cli.command import Selection, json_option, selection, state_option, system_option
from retinue.cp.cli.completing import complete_dead
from retinue.cp.cli.errors import OK, CommandError, NoSystem, UnknownMachine
from retinue.cp.cli.events import clock
from retinue.cp.cli.output import (
    BOLD,
    DIM,
    RED,
    YELLOW,
    Paint,
    colour_wanted,
    duration,
    neutral_lines,
    neutralise,
    say,
    size,
    tell,
    to_json,
)
from retinue.cp.cli.systems import find_system
from retinue.cp.places import find_places

if TYPE_CHECKING:
    from retinue.cp.runtime import Running

# Certificates that --all shows: as many as are kept of one machine.
ALL: Final = 10
# Deaths that somebody wanted.
_WANTED: Final = frozenset({"asked", "replaced", "idle"})

_MEANING: Final = {
    "exit": "its program ended",
    "signal": "a signal ended it",
    "out-of-storage": "it needed more storage than it may have",
    "no-room": "all machines together needed more real storage than there is, and it counted least",
    "watchdog": "it made no progress, and was ended",
    "seal-refused": "its seal could not be made",
    "bad-program": "its program could not be loaded",
    "bad-config": "its program does not take its config",
    "not-ready": "it did not become ready in time",
    "disk-full": "a disk of it was full",
    "asked": "it was asked to stop",
    "replaced": "a successor took its place",
    "idle": "nobody needed it",
    "followed": "it was ended with a machine it uses",
    "violation": "it broke the protocol, and was ended",
    "not-made": "the host could not make it",
    "unknown": "nobody saw what happened",
}


@click.command()
@click.argument("name", shell_complete=complete_dead)
@click.option("--all", "every", is_flag=True, help=f"Every death that is kept, at most {ALL}; the newest first.")
@json_option()
@system_option()
@state_option()
@click.pass_context
def why(ctx: click.Context, name: str, every: bool, as_json: bool) -> int:
    """Show why a machine ended: its death certificate.

    Cause, exit status or signal, what it used, who was told, its last log lines, the messages it has not answered, its
    traceback, and what the control program did next. Works after the end of the system, too.
    """
    found = _look(selection(ctx), name, ALL if every else 1)
    certificates = found["certificates"]
    if as_json:
        say(to_json(certificates if every else (certificates[0] if certificates else None)))
        return OK
    paint = Paint(colour_wanted(sys.stdout))
    if not certificates:
        states = ", ".join(f"{each['name']} is {each['state']}" for each in found["machines"])
        tell(f"{name} has never ended" + (f": {states}" if states else ""))
    for index, certificate in enumerate(certificates):
        if index:
            say("")
        for line in page(certificate, paint):
            say(line)
    for each in found["machines"] if certificates else ():
        say(
            paint(
                f"now: {neutralise(each['name'])} is {neutralise(each['state'])}, generation {each['generation']}", DIM
            )
        )
    return OK


def _look(chosen: Selection, name: str, count: int) -> dict[str, Any]:
    """Ask the running system, or else read what the last one has left."""
    try:
        system = find_system(chosen)
    except NoSystem as error:
        try:
            folder = state_folder(chosen)
        except LookupError:
            raise error from None
        return _left(folder, name, count, error)
    from retinue.cp.cli.session import converse

    found: dict[str, Any] = converse(partial(_ask, system, name, count))
    return found


async def _ask(system: "Running", name: str, count: int) -> Any:
    from retinue.cp.cli.session import request

    return await request(system, "why", machine=name, count=count)


def state_folder(chosen: Selection) -> pathlib.Path:
    """The state folder of the system that is meant, or of the one that ended last. LookupError without one."""
    from retinue.cp import runtime

    places = find_places(chosen.state)
    if places.single:
        return places.state
    if chosen.system is not None:
        return places.folders(chosen.system).state
    end = runtime.last_end(places)
    if end is None:
        raise LookupError("no system has run")
    return places.folders(end.system).state


def _left(folder: pathlib.Path, name: str, count: int, error: NoSystem) -> dict[str, Any]:
    from retinue.cp.certificates import kept_names, read

    certificates = read(folder, name)
    if not certificates:
        names = kept_names(folder)
        if not names:
            raise error
        raise UnknownMachine(name, "the last run", names)
    return {"certificates": [each.as_dict() for each in certificates[:count]], "machines": []}


def page(certificate: Mapping[str, Any], paint: Paint) -> list[str]:
    """A certificate for people."""
    try:
        return _page(certificate, paint)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as exc:
        raise CommandError("this certificate was written by another version of Retinue") from exc


def _page(certificate: Mapping[str, Any], paint: Paint) -> list[str]:
    name, cause = neutralise(certificate["machine"]), certificate["cause"]
    colour = YELLOW if cause in _WANTED else RED
    first, *rest = neutral_lines(certificate["text"])
    lines = [paint(f"{name} (generation {certificate['generation']}) ended: ", BOLD) + paint(first, colour)]
    lines += [f"  {line}" for line in rest]
    facts = [
        ("cause", f"{neutralise(cause)}: {_MEANING.get(cause, '')}".rstrip(": ")),
        ("when", f"{clock(certificate['time'])}   (system {neutralise(certificate['system'])})"),
        ("lived", _lived(certificate)),
        ("process", _process(certificate)),
        ("used", _used(certificate)),
        ("storage", _storage(certificate)),
    ]
    lines += [f"  {paint(f'{word:<8}', DIM)}  {text}" for word, text in facts if text]
    if cause != "replaced":  # nobody has noticed
        lines += _section("who was told", _told(certificate), paint)
    lines += _section("its last log lines", _log(certificate["last_log"]), paint)
    lines += _section("messages it has not answered", _messages(certificate["last_messages"]), paint)
    lines += _section("traceback", neutral_lines(certificate["traceback"] or ""), paint)
    after = [line for text in certificate["next"] for line in neutral_lines(text)]
    return lines + _section("what the control program did next", after, paint)


def _section(head: str, lines: Sequence[str], paint: Paint) -> list[str]:
    return ["", paint(head, BOLD), *(f"  {line}" for line in lines)] if any(lines) else []


def _lived(certificate: Mapping[str, Any]) -> str:
    lived, ready = certificate["lived"], certificate["ready"]
    told = f"{ready:.3f} s" if ready < 10 else duration(ready)
    return (f"{lived:.3f} s" if lived < 10 else duration(lived)) + (f", READY for {told}" if ready else ", never READY")


def _process(certificate: Mapping[str, Any]) -> str:
    import signal

    pid, code, number = certificate["pid"], certificate["exit_code"], certificate["signal"]
    if number is not None:
        try:
            how = f"killed by {signal.Signals(number).name} ({number})"
        except ValueError:
            how = f"killed by signal {number}"
    elif code is not None:
        how = f"exit status {code}"
    else:
        return "it had none" if not pid else f"pid {pid}"
    return f"{how}, pid {pid}" if pid else how


def _used(certificate: Mapping[str, Any]) -> str:
    user, system, peak = certificate["user_s"], certificate["system_s"], certificate["peak_kib"]
    if not (user or system or peak):
        return ""
    return f"{user:.2f} s of processor time, {system:.2f} s in the kernel; at most {size(peak * 1024)} resident"


def _storage(certificate: Mapping[str, Any]) -> str:
    limit, peak = certificate["storage"], certificate["peak_storage"]
    if not limit:
        return ""
    return f"at most {size(peak)} of {size(limit)}" if peak else f"{size(limit)} allowed"


def _told(certificate: Mapping[str, Any]) -> list[str]:
    told = certificate["told"]
    column = max((len(f"{machine} ({edge})") for machine, edge, _ in told), default=0)
    return [
        f"{neutralise(f'{machine} ({edge})'):<{column}}  {_POLICIES.get(what, neutralise(what))}"
        for machine, edge, what in told
    ]


# What became of the paths of an edge that says so.
_POLICIES: Final = {
    "keep": "its paths wait for a successor",
    "reconnect": "its paths have ended, and it may connect again",
    "restart": "it was started again, too",
}


def _log(records: Sequence[Mapping[str, Any]]) -> list[str]:
    from retinue.cp.cli.records import RecordFormat

    form = RecordFormat(times=True)
    return [line for record in records for line in form.lines(record)]


def _messages(by_edge: Mapping[str, Sequence[Sequence[Any]]]) -> list[str]:
    lines = []
    for edge, items in by_edge.items():
        lines.append(neutralise(edge))
        for ident, kind, count, age, head in items:
            said = f"{neutralise(str(kind))} {ident}, {size(count)}, {age:.3f} s before"
            lines.append(f"  {said}: {neutralise(head)}" if head else f"  {said}")
    return lines
