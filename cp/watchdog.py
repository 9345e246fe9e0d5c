"""The watchdog of one machine: hung is not busy.

A machine makes progress when its loop turns (one that is idle turns to answer its own heart) or when it uses CPU time
(one that computes for a minute turns not once). It is hung when for ``limit`` seconds there was neither. Time in which
nobody looked, because the control program was stopped or late itself, does not count against the machine.
"""

import math
from collections.abc import Callable
from typing import Final

# Beats within the limit.
BEATS: Final = 4
# Seconds of CPU time within the limit that are no work: the beats use some tenths of a millisecond each, and the kernel
# counts in hundredths of a second, twice (user and system).
TRIFLE: Final = 0.03


class Watchdog:
    """Whether a machine is hung; pure policy.

    :param limit: seconds without progress after which it is; 0: never.
    :param cpu: seconds of CPU time that the machine has used, as the host says; None when it cannot say. Then what the
        machine says itself is believed.
    """

    def __init__(self, limit: float, clock: Callable[[], float], cpu: Callable[[], float | None]) -> None:
        self._limit = limit
        self._clock = clock
        self._cpu = cpu
        self.period = limit / BEATS
        """Seconds from beat to beat, and from look to look at the latest."""
        self._looked = self._progress = self._heard = clock()
        self._turns: int | None = None
        self._told: float | None = None  # CPU seconds, as the machine said last
        # What had been used at the last progress: by the host, and by the machine.
        self._marks: list[float | None] = [cpu(), None]
        self.next = self._looked + self.period if limit > 0 else math.inf
        """When to ask for the verdict, on the clock."""

    def beat(self, turns: int, cpu: float, stuck: float) -> None:
        """The heart has beaten: what the machine says of itself. All of it may be a lie."""
        now = self._look()
        self._heard = now
        self._told = cpu
        if self._turns is None or turns != self._turns:
            # It has turned since, and has been stuck from then on; of what was before the first beat nobody knows.
            self._note_progress(now if self._turns is None else max(self._progress, now - stuck))
        self._turns = turns
        self._look_at_cpu(now)

    def excuse(self) -> None:
        """The machine stands still because of us: it waits for something that we are to do."""
        self._heard = self._progress = self._look()

    def verdict(self) -> str | None:
        """Why the machine is hung; None while it is not."""
        now = self._look()
        if self._limit <= 0:
            return None
        self._look_at_cpu(now)
        # One sum for both: rounded otherwise, the next look could be now, and now again.
        deadline = self._progress + self._limit
        if now < deadline:
            self.next = min(now + self.period, deadline)
            return None
        self.next = now + self.period
        if now - self._heard < self._limit:
            what = "its loop did not turn: it waits in a call that blocks"
        else:
            what = "it gave no sign of life: it is stopped, or stands still as a whole"
        return f"for {self._limit:g} s {what}, and it used no CPU time"

    def _look(self) -> float:
        now = self._clock()
        unseen = now - self._looked - 2 * self.period
        if unseen > 0:
            # Nobody has looked. Beats of that time may still wait to be read: they have a period to come.
            self._progress = max(self._progress + unseen, now - self._limit + self.period)
            self._heard += unseen
        self._looked = now
        return now

    def _look_at_cpu(self, now: float) -> None:
        used = [self._cpu(), self._told]
        source = 0 if used[0] is not None else 1
        new, mark = used[source], self._marks[source]
        if new is not None and (mark is None or new < mark):
            self._marks[source] = new
        elif new is not None and mark is not None and new - mark > TRIFLE:
            self._note_progress(now)

    def _note_progress(self, when: float) -> None:
        self._progress = when
        self._marks = [self._cpu(), self._told]
