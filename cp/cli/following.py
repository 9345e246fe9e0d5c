"""Following a system as long as it runs: when its control program dies, the successor is asked to go on."""

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any, Final

import trio

from retinue.cp import runtime
from retinue.cp.cli.errors import PathLost, SystemGone
from retinue.cp.cli.output import say, tell, to_json
from retinue.cp.cli.session import ask, message_of, operator
from retinue.pipes import Path

# Seconds until it is tried again with a control program that has let us in and cut us off.
AGAIN: Final = 0.1


class Ending(Enum):
    """Why there is nothing more to follow."""

    ENOUGH = "enough"  # whoever follows has all it wanted
    WHOLE = "whole"  # the system has ended, and nothing is missing
    TORN = "torn"  # the system is gone without a word


async def keep_up(
    system: runtime.Running,
    begin: Callable[[Path, bool], Awaitable[None]],
    take: Callable[[str, Mapping[str, Any]], bool],
) -> Ending:
    """Take messages until the system has ended or ``take`` returns False.

    ``begin`` asks for them: on the first path, and with True on each further one.
    """
    again = False
    while True:
        try:
            async with operator(system) as path:
                await begin(path, again)
                if again:
                    tell(f"-- the control program of {system.system} has been restarted --")
                async for message in path:
                    kind, content = message_of(message.body)
                    if kind == "end":
                        return Ending.WHOLE
                    if not take(kind, content):
                        return Ending.ENOUGH
        except PathLost:
            pass
        except SystemGone:
            return Ending.TORN
        again = True
        await trio.sleep(AGAIN)


async def place_of(path: Path, system: runtime.Running, after: int) -> int:
    """Where to go on after record ``after``: there, or at the beginning of a log whose numbers have begun anew."""
    reply = await ask(path, system, "follow", records=False)
    return after if reply["seq"] >= after else 0


async def show_all(
    system: runtime.Running,
    asked: tuple[str, Mapping[str, Any]],
    last: int,
    kind: str,
    show: Callable[[Mapping[str, Any]], None],
    *,
    as_json: bool,
    torn: str = "",
) -> None:
    """Show everything of a kind that comes after number ``last``, and what is missing, until the system has ended.

    ``asked`` are the verb and its arguments but for the number, ``torn`` the line for an end that may not be the end.
    """

    def lost(count: Any, line: str = "") -> None:
        from retinue.cp.cli.records import lost_line

        say(to_json({"lost": count}, indent=None) if as_json else line or lost_line(count))

    async def begin(path: Path, again: bool) -> None:
        nonlocal last
        if again and (place := await place_of(path, system, last)) < last:
            last = place
            lost(None)
        verb, arguments = asked
        await ask(path, system, verb, **arguments, after=last)

    def take(told: str, content: Mapping[str, Any]) -> bool:
        nonlocal last
        if told == kind:
            last = content["seq"]
            show(content)
        elif told == "lost":
            lost(content.get("count"))
        return True

    if await keep_up(system, begin, take) is Ending.TORN:
        lost(None, torn)
    tell(f"-- {system.system} has ended --")
