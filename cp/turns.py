"""Turns: for how long a machine's log descriptor is read at once, when it is read again, and who is read next.

A round of trio's loop is one step of every task that can run, in any order. A record of a machine that writes little
passes two or three rounds until a follower has it. Were all that flood read in each of them, it would wait for all of
them every time. So in one round one of them is read, for TURN; the next round is the next one's.
"""

import time
from collections.abc import Callable
from typing import Final

import trio

from retinue.cp.source import Source

# Seconds a descriptor that was read empty is left alone, so that what comes meanwhile is read at once: shorter than its
# buffer (some 250 small records) takes to fill at 50,000 records a second.
PAUSE: Final = 0.005
# The same of a machine that writes so seldom that a longer pause brings next to nothing together, and of one whose
# buffer was half full. In between the pause is halved when it has brought SELDOM or less, and doubled by ENOUGH.
SHORT_PAUSE: Final = 0.001
SELDOM: Final = 2
ENOUGH: Final = 4
HALF: Final = 128
# Seconds for which one machine is read before the others get their turn: a hundred small records. To change over takes
# a fortieth of it.
TURN: Final = 0.0005
# Packets or records that a machine writes in one pause and is not taken for one that floods.
FEW: Final = 32


class Turns:
    """The turns of all machines; ``clock`` is what they are measured by."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._floor = trio.Lock()

    async def take(self, source: Source, turn: Callable[[], float | None]) -> float | None:
        """What ``turn`` returns; for a machine that floods it is called in a round that has no other such turn."""
        if not source.floods:
            return turn()
        try:
            self._floor.acquire_nowait()
        except trio.WouldBlock:
            await self._floor.acquire()  # one after the other, in the order in which they came
        try:
            pause = turn()
            await trio.lowlevel.checkpoint()  # up to here it is still this round
            return pause
        finally:
            self._floor.release()

    def end(self) -> float:
        """When a turn that begins now is over."""
        return self.clock() + TURN


def go_on(source: Source) -> float:
    """It was not read empty: the next turn is as soon as the others had theirs."""
    source.floods = True
    return 0.0


def rest(source: Source, *, late: bool = False) -> float:
    """It was read empty: the seconds until the next turn. ``late``: that took a whole turn, of however few packets."""
    came, source.came = source.came, 0
    source.floods = late or came > FEW
    if came <= SELDOM:
        source.pause = max(source.pause / 2, SHORT_PAUSE)
    elif came >= ENOUGH:
        source.pause = min(max(source.pause, SHORT_PAUSE) * 2, PAUSE)
    return max(source.pause, SHORT_PAUSE) if came < HALF else SHORT_PAUSE
