"""``retinue tap``: the messages that pass along an edge of a running system."""

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from retinue.cp.cli.command import json_option, selection, state_option, system_option
from retinue.cp.cli.completing import complete_edges
from retinue.cp.cli.errors import OK, CannotCreate, CommandError
from retinue.cp.cli.output import Paint, colour_wanted, say, tell, width
from retinue.cp.cli.systems import find_system

if TYPE_CHECKING:
    from retinue.cp.recording import Writer
    from retinue.cp.runtime import Running
    from retinue.pipes import Path


@click.command()
@click.argument("edge", shell_complete=complete_edges)
@click.option("-n", "count", metavar="N", type=click.IntRange(min=1), help="Stop after N lines.")
@click.option(
    "--record",
    "file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write them to FILE, for 'retinue replay'; nothing is printed unless --json is given too.",
)
@json_option("Print one JSON object per line.")
@system_option()
@state_option()
@click.pass_context
def tap(ctx: click.Context, edge: str, count: int | None, file: str | None, as_json: bool) -> int:
    """Show the messages that pass along EDGE, as in SHOP.prices.

    The machines notice nothing of it. The values of secret keys are not shown. Ctrl-C ends it.
    """
    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse

    converse(partial(_tap, system, edge, count, file, as_json))
    return OK


async def _tap(system: "Running", edge: str, count: int | None, file: str | None, as_json: bool) -> None:
    from retinue.cp.cli.session import ask, operator, survives

    with ExitStack() as stack:
        async with operator(system) as path:
            reply = await ask(path, system, "tap", edge=edge, record=file is not None)
            writer = stack.enter_context(_create(file, system.system, edge)) if file is not None else None
            paths = reply["paths"]
            tell(f"-- {edge}: {paths} path{'' if paths == 1 else 's'} open; Ctrl-C ends the tap --")
            shown = Shown(count, writer, as_json)
            ended = await _until_interrupted(shown, path)
        if ended and not await survives(system):
            tell(f"-- {system.system} has ended --")
            ended = False
        tell(f"-- {shown} --")
        if ended:
            problem = f"the control program of {system.system} has been restarted, and the tap has ended with it"
            raise CommandError(problem, f"go on with: retinue tap {edge}")


def _create(file: str, system: str, edge: str) -> "Writer":
    from retinue.cp.recording import Writer

    try:
        return Writer(file, system, edge)
    except FileExistsError as error:
        raise CannotCreate(f"{file} is there already", "choose another name, or remove it") from error
    except OSError as error:
        raise CannotCreate(f"cannot create {file}: {error.strerror}") from error


class Shown:
    """What has been printed and recorded, at most `count` items."""

    def __init__(self, count: int | None, writer: "Writer | None", as_json: bool) -> None:
        from retinue.cp.cli.messages import ItemFormat

        self._left = count
        self._writer = writer
        self._json = as_json
        self._print = as_json or writer is None
        self._form = ItemFormat(paint=Paint(colour_wanted(sys.stdout)), room=width(sys.stdout))
        self.items = 0
        self.lost = 0
        if self._print and not as_json:
            say(self._form.head())

    def __str__(self) -> str:
        text = f"{self.items} line{'' if self.items == 1 else 's'}"
        if self._writer is not None:
            text += " recorded"
        return text + (f", {self.lost} lost" if self.lost else "")

    def take(self, items: list[Any]) -> bool:
        """Print and record items; False when there are enough of them."""
        if self._left is not None:
            items = items[: self._left]
            self._left -= len(items)
        self.items += len(items)
        self._put(items)
        return self._left != 0

    def lose(self, count: Any) -> None:
        """Say that items are missing here."""
        self.lost += int(count)
        self._put([{"lost": count}])

    def _put(self, items: list[Any]) -> None:
        from retinue.cp.cli.messages import item_json

        if self._writer is not None:
            try:
                self._writer.write(items)
            except OSError as error:
                raise CommandError(f"cannot write the recording: {error.strerror}") from error
        if self._print:
            for item in items:
                say(item_json(item) if self._json else self._form.line(item))


async def _until_interrupted(shown: Shown, path: "Path") -> bool:
    """Show what comes until Ctrl-C or until it is enough; True if the system ended first."""
    import trio

    ended = False
    async with trio.open_nursery() as nursery:

        async def watch(signals: AsyncIterator[int]) -> None:
            async for _ in signals:
                nursery.cancel_scope.cancel()

        # The nearest receiver has the signal: here Ctrl-C is the usual end, elsewhere it is an error.
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            nursery.start_soon(watch, signals)
            ended = await _show(shown, path)
            nursery.cancel_scope.cancel()
    return ended


async def _show(shown: Shown, path: "Path") -> bool:
    from retinue.cp.cli.session import message_of

    async for message in path:
        kind, content = message_of(message.body)
        if kind == "messages":
            if not shown.take(content["items"]):
                return False
        elif kind == "lost":
            shown.lose(content["count"])
    return True
