"""Counted records: the first of a kind at once, those after it with their number, once a pause."""

import logging
from collections.abc import Callable
from typing import Final

import trio

log: Final = logging.getLogger("retinue.tcpip")

# Seconds between two records of the same kind.
PAUSE: Final = 1.0
# Kinds of one machine that are told apart at a time. Whoever asks for more at once gets one record for the rest: what a
# machine asks for is its own choice, and must cost neither memory nor lines without bound.
MOST_KINDS: Final = 8

Tell = Callable[[int], None]


class Tallies:
    """Counts what machines do often. ``tell(count)`` writes a record; the pauses run in ``nursery``."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._machines: dict[str, dict[str, _Tally]] = {}

    def happen(self, machine: str, kind: str, tell: Tell) -> None:
        """It has happened once more. Of the ``tell`` of one kind the first is kept while it goes on happening."""
        tallies = self._machines.get(machine)
        if tallies is None:
            tallies = self._machines[machine] = {}
            self._nursery.start_soon(self._tell_on, machine)
        tally = tallies.get(kind)
        if tally is None:
            if len(tallies) >= MOST_KINDS:
                kind, tell = "", _others(machine)
            tally = tallies.setdefault(kind, _Tally(tell))
        tally.happen()

    async def _tell_on(self, machine: str) -> None:
        tallies = self._machines[machine]
        try:
            while tallies:
                await trio.sleep(PAUSE)
                for kind in [kind for kind, tally in tallies.items() if not tally.tell_rest()]:
                    del tallies[kind]
        finally:
            del self._machines[machine]
            for tally in tallies.values():
                tally.tell_rest()  # TCPIP ends


class _Tally:
    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._first = True
        self._count = 0  # not recorded yet

    def happen(self) -> None:
        self._count += 1
        if self._first:
            self._first = False
            self.tell_rest()

    def tell_rest(self) -> bool:
        """Record what was not; whether there was anything."""
        count, self._count = self._count, 0
        if count:
            self._tell(count)
        return bool(count)


def _others(machine: str) -> Tell:
    def tell(count: int) -> None:
        log.warning("%s: %d more, of other kinds", machine, count, extra={"machine": machine, "count": count})

    return tell
