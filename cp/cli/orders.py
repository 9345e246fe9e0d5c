"""Giving a running system an order that takes its time: what happens meanwhile is shown on standard error."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.cp.cli.board import Board
from retinue.cp.cli.errors import CommandError
from retinue.cp.cli.output import tell
from retinue.cp.cli.session import ask, message_of, operator
from retinue.pipes import PathError

if TYPE_CHECKING:
    from retinue.cp.runtime import Running
    from retinue.pipes import Path

# An order takes what the machines take: a grace is up to an hour, and a start up to a minute after its servers.
FOREVER: Final = float("inf")

# What is told of an event: a line, or None for nothing.
Teller = Callable[[Mapping[str, Any]], str | None]


async def order(
    system: "Running", verb: str, /, *, progress: bool = True, descriptors: tuple[int, ...] = (), **arguments: Any
) -> Any:
    """Give one order and show every change of state until it has been carried out; returns the answer.

    An order whose control program dies is not given again: PathLost.
    """
    async with operator(system) as path:
        if not progress:
            return await ask(path, system, verb, within=FOREVER, descriptors=descriptors, **arguments)
        board = Board(system.system, (), trio.current_time)
        board.prime(await ask(path, system, "ps"))
        await ask(path, system, "follow", records=False, events=True)
        answer: Any = None
        raised: CommandError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show, path, board)
            try:
                answer = await ask(path, system, verb, within=FOREVER, descriptors=descriptors, **arguments)
            except CommandError as error:
                raised = error  # raised here it would leave the nursery in a group
            nursery.cancel_scope.cancel()
        with suppress(CommandError):
            # The last of what has happened may come after the answer.
            for line in board.catch_up(await ask(path, system, "ps")):
                tell(line)
        if raised is not None:
            raise raised
        return answer


async def _show(path: "Path", board: Board) -> None:
    try:
        async for message in path:
            kind, content = message_of(message.body)
            if kind == "event" and (line := board.apply(content)) is not None:
                tell(line)
    except PathError:
        pass  # whoever waits for the answer learns of it
