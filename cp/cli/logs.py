"""``retinue logs``: what the machines wrote, as far as somebody wants to see it."""

import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from retinue.cp.cli.command import json_option, selection, state_option, system_option
from retinue.cp.cli.completing import complete_logged
from retinue.cp.cli.counting import COUNT_MAX, LINES_DEFAULT, count_option
from retinue.cp.cli.errors import OK, NoSystem, did_you_mean
from retinue.cp.cli.moments import moment_option
from retinue.cp.cli.output import Paint, colour_wanted, say, to_json
from retinue.cp.cli.records import SEVERITIES, TIMES, RecordFormat, gap_line, is_gap
from retinue.cp.cli.systems import find_system

if TYPE_CHECKING:
    from retinue.cp.cli.left import Left
    from retinue.cp.cli.paging import Ask
    from retinue.cp.runtime import Running

# What people call severities elsewhere.
_ALIASES: Final = {"emerg": 0, "panic": 0, "crit": 2, "err": 3, "warn": 4, "information": 6}
# Less of a trace id is no trace id; the whole has 32 characters.
_TRACE: Final = re.compile("[0-9a-f]{4,32}")


def severity_of(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A severity by its name, the beginning of that, or its number."""
    if value is None:
        return None
    word = value.casefold()
    if word.isascii() and word.isdecimal() and int(word[:9]) < len(SEVERITIES):
        return int(word[:9])
    meant = [number for number, name in enumerate(SEVERITIES) if word and name.startswith(word)]
    number = _ALIASES.get(word, meant[0] if len(meant) == 1 else None)
    if number is None:
        near = did_you_mean(word, SEVERITIES)
        raise click.BadParameter(f"{value!r} is no severity: {', '.join(SEVERITIES)}, or 0 to 7{near}", ctx, param)
    return number


def _complete_severities(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in SEVERITIES if name.startswith(incomplete.casefold())]


def _fields(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    fields = {}
    for each in values:
        name, equals, value = each.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{each!r} is not NAME=VALUE", ctx, param)
        fields[name] = value
    return fields


def _pattern(ctx: click.Context, param: click.Parameter, value: str | None) -> re.Pattern[str] | None:
    try:
        return None if value is None else re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        why = f"{value!r} is no regular expression: {error}"
        raise click.BadParameter(f"{why} (for plain text: --text)", ctx, param) from None


def _trace(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _TRACE.fullmatch(value.casefold()):
        raise click.BadParameter(
            f"{value!r} is no trace id: 32 hexadecimal characters, or the first 4 or more", ctx, param
        )
    return value and value.casefold()


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_logged)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@count_option(
    f"The last N records that match, or 'all'.  [default: {LINES_DEFAULT}; all with --since, --until or --trace]", None
)
@click.option(
    *("-s", "--severity"),
    callback=severity_of,
    shell_complete=_complete_severities,
    metavar="SEVERITY",
    help="That or worse: warning, or its number, 4.",
)
@moment_option("--since", "From then on: 10m (ago), 09:30, today, 2026-11-21T09:30.")
@moment_option("--until", "Before that.")
@click.option("-t", "--text", metavar="TEXT", help="Messages with this text in them; case does not count.")
@click.option(
    "-g", "--grep", "pattern", callback=_pattern, metavar="REGEX", help="Messages that this finds; case counts."
)
@click.option("-l", "--logger", metavar="NAME", help="Loggers whose names begin so.")
@click.option(
    *("--field", "fields"),
    multiple=True,
    callback=_fields,
    metavar="NAME=VALUE",
    help="Records with this field; may be given several times.",
)
@click.option("--trace", callback=_trace, metavar="ID", help="One request on its way: a trace id, or how it begins.")
@click.option("--times", type=click.Choice(TIMES), default="local", show_default=True, help="How times are shown.")
@json_option("Print one JSON object per record and line.")
@system_option()
@state_option()
@click.pass_context
def logs(
    ctx: click.Context,
    names: tuple[str, ...],
    follow: bool,
    count: int | None,
    severity: int | None,
    since: float | None,
    until: float | None,
    text: str | None,
    pattern: re.Pattern[str] | None,
    logger: str | None,
    fields: dict[str, str],
    trace: str | None,
    times: str,
    as_json: bool,
) -> int:
    """Show what the machines wrote, or some of them; CP is the control program.

    Of a system that is not running: what its syslog machine has stored, and what waits to be.

    \b
    retinue logs SHOP -f                     what SHOP writes, from now on, too
    retinue logs --since 10m -s warning      warnings and worse of the last ten minutes
    retinue logs WEB SHOP -t refused         with a text in them
    retinue logs -g 'took \\d{4,} ms'         with what a regular expression finds
    retinue logs --field status=500          with a field of this value
    retinue logs --trace 4bf92f35            all that belongs to one request
    retinue logs -n all --json | jq -r 'select(.severity < 4).message'
    """
    if follow and until is not None:
        raise click.UsageError("--until is the end, and --follow has none: leave one of them out", ctx)
    if count is None:
        count = LINES_DEFAULT if (since, until, trace) == (None, None, None) else COUNT_MAX
    given: dict[str, Any] = {"severity": severity, "since": since, "until": until, "text": text, "logger": logger}
    given |= {"fields": fields, "trace": trace}
    query = {name: value for name, value in given.items() if value not in (None, "", {})}
    content = pattern is not None or not {"severity", "text", "logger", "fields"}.isdisjoint(query)
    if content and not trace:
        query["gaps"] = True  # what is lost may have been what is looked for
    if names:
        query["machine"] = names[0] if len(names) == 1 else [*dict.fromkeys(names)]
    chosen = selection(ctx)
    system: Running | Left
    try:
        system = find_system(chosen)
    except NoSystem as error:
        from retinue.cp.cli.left import NotFollowed, find_left

        system = find_left(chosen, error)
        if follow:
            raise NotFollowed(system) from error
    from retinue.cp.cli.session import converse

    converse(partial(_logs, system, query, pattern, follow, count, times, as_json))
    return OK


@asynccontextmanager
async def _opened(system: "Running | Left") -> AsyncIterator["Ask"]:
    """Whoever answers for a system that runs, or for one that does not."""
    from retinue.cp.cli.paging import PAGE_WAIT
    from retinue.cp.cli.session import request
    from retinue.cp.runtime import Running

    if isinstance(system, Running):
        yield partial(request, system, "logs", within=PAGE_WAIT)
        return
    from retinue.cp.cli.archived import open_reader

    async with open_reader(system) as reader:
        yield reader.ask


async def _machines(system: "Running | Left") -> list[str]:
    from retinue.cp.cli.session import request
    from retinue.cp.runtime import Running

    if isinstance(system, Running):
        return [str(machine["name"]) for machine in (await request(system, "ps"))["machines"]]
    return [*system.archive.machines]


async def _logs(
    system: "Running | Left",
    query: dict[str, Any],
    pattern: re.Pattern[str] | None,
    follow: bool,
    count: int,
    times: str,
    as_json: bool,
) -> None:
    from retinue.cp.cli.paging import Pages
    from retinue.cp.runtime import Running

    def matches(record: Mapping[str, Any]) -> bool:
        return pattern is None or pattern.search(str(record.get("message"))) is not None

    named = query.get("machine", [])
    asked = [named] if isinstance(named, str) else named
    names = asked if as_json or asked else await _machines(system)
    paint = Paint(colour_wanted(sys.stdout))
    printer = Printer(RecordFormat(names, paint=paint, times=True, style=times), as_json)
    async with _opened(system) as ask:
        pages = Pages(ask, query, matches)
        async with aclosing(pages.all() if count == COUNT_MAX else pages.last(count)) as found:
            async for record in found:
                printer.take(record)
        printer.flush()
    if follow and isinstance(system, Running):
        await _follow(system, query, matches, await pages.place(), printer)


async def _follow(system: "Running", query: Mapping[str, Any], matches: Any, last: int, printer: "Printer") -> None:
    from retinue.cp.cli.following import show_all

    def show(record: Mapping[str, Any]) -> None:
        if is_gap(record) or matches(record):
            printer.take(record)
            printer.flush()

    torn = "-- the last records may be missing --"
    await show_all(system, ("follow", query), last, "record", show, as_json=printer.as_json, torn=torn)


class Printer:
    """Prints records. Gaps of one machine with nothing between them are one line, unless it is JSON."""

    def __init__(self, form: RecordFormat, as_json: bool) -> None:
        self.as_json = as_json
        self._form = form
        self._gap: dict[str, Any] | None = None

    def take(self, record: Mapping[str, Any]) -> None:
        """Print it, or keep it until :meth:`flush` because more may come to it."""
        if self.as_json:
            say(to_json(record, indent=None))
            return
        if self._gap is not None and is_gap(record) and _alike(self._gap, record):
            self._gap["fields"]["lost"] += record["fields"]["lost"]
            return
        self.flush()
        if is_gap(record) and isinstance(record["fields"]["lost"], int):
            self._gap = {**record, "fields": {**record["fields"]}}
            return
        self._print(record)

    def flush(self) -> None:
        """Print what was kept."""
        if self._gap is not None:
            gap, self._gap = self._gap, None
            self._print(gap)

    def _print(self, record: Mapping[str, Any]) -> None:
        for line in self._form.lines(record):
            say(line)


def _alike(gap: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return isinstance(other["fields"]["lost"], int) and (
        gap_line({**gap, "fields": {**gap["fields"], "lost": 0}})
        == gap_line({**other, "fields": {**other["fields"], "lost": 0}})
    )
