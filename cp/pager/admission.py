"""Whether there is room in real storage for a machine to be started; and who waits for it after it was ended for it."""

from collections.abc import Callable
from typing import Any, Final

import attrs

from retinue.cp import clock
from retinue.cp.pager.policy import LOW

__all__ = ["Admission", "Room"]

BIRTH: Final = 8 << 20
"""Bytes that a machine needs at least, above what it shares with others, before its program has done anything."""

FIRST: Final = 5.0
"""Seconds that a machine waits which was ended for want of real storage, even if there is room at once."""

LONGEST: Final = 300.0
"""Seconds that it waits at most: each time twice as long as the time before."""

FORGOTTEN: Final = 600.0
"""Seconds after which an end counts no more."""


@attrs.frozen
class Room:
    """What there is, in bytes; ``held`` says that nobody is to be started. ``total`` is None before the first look."""

    total: int | None
    limit: int | None
    held: bool

    def fits(self, more: int) -> bool:
        """Whether all have room, and are to be started again, if they have so many bytes more."""
        return self.limit is None or (self.total is not None and self.total + more <= self.limit * LOW)

    @property
    def text(self) -> str:
        """In words."""
        if self.limit is None or self.total is None:
            return "nobody has looked yet"
        return f"{self.total / (1 << 20):.1f} MiB of {self.limit / (1 << 20):.1f} MiB are resident"


@attrs.frozen
class _Ended:
    """Times in seconds, by clock.stamp()."""

    times: int
    at: float
    until: float


class Admission:
    """Of one system. ``room`` tells what there is now, ``keep`` has what is known outlive this control program."""

    def __init__(self, room: Callable[[], Room], keep: Callable[[], None]) -> None:
        self._room = room
        self._keep = keep
        self._ended: dict[str, _Ended] = {}
        self.sizes: dict[str, int] = {}
        """Bytes that a machine had when it began to rest, without its segments."""

    def ended(self, machine: str) -> float:
        """It was ended so that others have its storage. Returns the seconds that it waits at the least."""
        now, before = clock.stamp(), self._ended.get(machine)
        times = 1 if before is None or now - before.at > FORGOTTEN else before.times + 1
        pause = float(min(FIRST * 2 ** (times - 1), LONGEST))
        self._ended[machine] = _Ended(times, now, now + pause)
        self._keep()
        return pause

    def forgive(self, machine: str) -> None:
        """An operator wants it to run: it waits for room, and no longer."""
        if (found := self._ended.get(machine)) is not None:
            self._ended[machine] = attrs.evolve(found, until=0.0)
            self._keep()

    def forget(self, machine: str) -> None:
        """It is no part of the system any more."""
        self.sizes.pop(machine, None)
        if self._ended.pop(machine, None) is not None:
            self._keep()

    def why_not(self, machine: str, reserve: int = 0, freed: int = 0) -> str:
        """Why a machine is not started now; empty if it may be. ``freed``: bytes that will be free before."""
        room = self._room()
        if room.held and not (freed and room.fits(-freed)):
            return f"no room in real storage: {room.text}, and nothing more can be paged out"
        ended = self._ended.get(machine)
        if ended is None or clock.stamp() - ended.at > FORGOTTEN:
            return ""
        if (left := ended.until - clock.stamp()) > 0:
            return f"it was ended for want of real storage, and may start again in {left:.0f} s if there is room"
        if room.limit is not None and not room.fits(self.need(machine, reserve) - freed):
            return f"it was ended for want of real storage, and there is no room for it yet: {room.text}"
        return ""

    def need(self, machine: str, reserve: int = 0) -> int:
        """Bytes that must be free before it begins after it was ended."""
        return max(reserve, self.sizes.get(machine, BIRTH))

    def wants(self, machine: str, reserve: int = 0) -> int:
        """Bytes for which others are to rest, or to lose pages, so that a machine can start that was ended for want of
        them; 0 while it could not start even so."""
        room, ended = self._room(), self._ended.get(machine)
        if room.held or room.limit is None or ended is None or ended.until > clock.stamp():
            return 0
        return self.need(machine, reserve) + int(room.limit * (1 - LOW))

    # -- over the death of a control program ---------------------------------------------------------------------------

    def note(self) -> dict[str, Any]:
        """For the next control program."""
        return {name: [ended.times, ended.at, ended.until] for name, ended in self._ended.items()}

    def restore(self, note: dict[str, Any]) -> None:
        """What an earlier control program has noted."""
        self._ended = {name: _Ended(*values) for name, values in note.items()}
