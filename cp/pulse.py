"""The pulse of one process of a machine: whether it makes progress, and its rest while it is paged out.

A machine that makes no progress is ended (:mod:`retinue.cp.watchdog`). For that its heart beats, by a thread that uses
some pages each time; so one that is paged out as a whole is told to beat no more. Until it has used any processor time
it cannot hang: it has done nothing. When it has, its heart is started again, and what a hang is counts from there.
"""

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from retinue.cp.syslog import NOTICE
from retinue.cp.watchdog import BEATS, Watchdog
from retinue.pipes import PathError, Rejected
from retinue.pipes.beat import Beat
from retinue.pipes.message import close_all

if TYPE_CHECKING:
    from retinue.cp.host.interface import Host
    from retinue.cp.incarnation import Incarnation
    from retinue.cp.syslog import Syslog

__all__ = ["Pulse"]

# Seconds a hung machine has to write its stacks to its log.
DUMP: Final = 1.0
# Bytes of the stacks of a hung machine that are told: what its pipe holds.
STACKS: Final = 64 * 1024
# Seconds a machine has to answer that its heart rests: an idle one needs milliseconds.
ANSWER: Final = 2.0
# Seconds between two looks whether a machine that was just told something sleeps again, and how many there are.
SLEEPS_AGAIN: Final = 0.01
LOOKS: Final = 20


class Pulse:
    """Of one process. ``exited`` waits for its end."""

    def __init__(
        self, machine: "Incarnation", host: "Host", syslog: "Syslog", exited: Callable[[], trio.Event]
    ) -> None:
        self._machine = machine
        self._host = host
        self._syslog = syslog
        self._exited = exited
        self._watchdog: Watchdog | None = None
        self._turn = trio.CancelScope()
        self._resting: float | None = None  # seconds of processor time it had used when it was paged out

    @property
    def resting(self) -> bool:
        """It was paged out as a whole, and has not run since."""
        return self._resting is not None

    @property
    def asleep(self) -> bool:
        """It has not run since to this very moment: whoever asks it something would have it read back."""
        return self._resting is not None and self._cpu_time() == self._resting

    async def run(self) -> str:
        """Until the process is hung; returns why it is believed to be."""
        while True:
            with trio.CancelScope() as self._turn:
                if self._resting is not None:
                    await self._sleep()
                    self._resting = None
                return await self._until_hung()

    def changed(self) -> None:
        """The definition of the machine has another limit from here on."""
        self._turn.cancel()

    def beat(self, beat: Beat) -> None:
        """Its heart has beaten."""
        if self._watchdog is not None:
            self._watchdog.beat(beat.turns, beat.cpu, beat.stuck)

    # -- progress ------------------------------------------------------------------------------------------------------

    async def _until_hung(self) -> str:
        if not (limit := self._machine.entry.watchdog):
            self._watchdog = None
            await trio.sleep_forever()
        watchdog = self._watchdog = Watchdog(limit, trio.current_time, self._cpu_time)
        stacks: list[int] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._start_heart, watchdog.period, stacks)
                while True:
                    await trio.sleep_until(watchdog.next)
                    if self._syslog.held(self._machine.name, self._machine.generation):
                        watchdog.excuse()
                    if (verdict := watchdog.verdict()) is not None:
                        break
                self._host.signal(self._machine.name, self._machine.generation, signal.SIGUSR1)
                with trio.move_on_after(DUMP):
                    await self._exited().wait()
                self._tell_stacks(stacks, verdict)
                nursery.cancel_scope.cancel()
        finally:
            close_all(tuple(stacks))
        return verdict

    async def _start_heart(self, period: float, stacks: list[int]) -> None:
        # A machine that hangs already does not answer; without beats the time that it uses is looked at all the same.
        with contextlib.suppress(PathError):
            reply = await self._machine.ask_reply("watch", {"every": period})
            stacks += reply.descriptors

    def _tell_stacks(self, pipes: list[int], verdict: str) -> None:
        """Where its threads are, as far as it has not told its log itself."""
        untrusted = b""
        for pipe in pipes:
            with contextlib.suppress(OSError):
                os.set_blocking(pipe, False)
                untrusted += os.read(pipe, STACKS)
        text = f"{self._machine.name} is hung: {verdict}"
        if untrusted:
            text += "\n" + untrusted.decode("ascii", "backslashreplace")
        self._syslog.write(NOTICE, text, machine=self._machine.name, generation=self._machine.generation)

    def _cpu_time(self) -> float | None:
        return self._host.cpu_time(self._machine.name, self._machine.generation)

    # -- rest ----------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def rest(self) -> AsyncIterator[None]:
        """Within the block the machine is paged out because it is idle; from then on it rests until it runs."""
        rested = self.resting and self._cpu_time() == self._resting
        rests = rested or await self._rest()
        if not rests and self.resting:  # it has run, and does not answer now
            self._resting = None
            self._turn.cancel()
        before = self._resting if rested else await self._asleep() if rests else None
        try:
            yield
        except BaseException:
            if rests and not rested:
                self._turn.cancel()  # its heart begins anew
            raise
        if rests and self._cpu_time() != before and not await self._rest():  # it has run meanwhile, and hangs perhaps
            self._resting, rests = None, False
            self._turn.cancel()
        if rests:
            self._resting = await self._asleep()
            self._turn.cancel()

    async def _rest(self) -> bool:
        """Have its heart rest. False if it has none, or it does not answer: then it is not idle."""
        if not self._machine.entry.watchdog or self._watchdog is None:
            return False
        with trio.move_on_after(ANSWER), contextlib.suppress(PathError, Rejected):
            await self._machine.ask("watch", {"every": 0.0})
            return True
        return False

    async def _asleep(self) -> float | None:
        """The processor time it has used when it sleeps again; it has just answered."""
        used = self._cpu_time()
        for _ in range(LOOKS):
            await trio.sleep(SLEEPS_AGAIN)
            before, used = used, self._cpu_time()
            if used == before:
                break
        return used

    async def _sleep(self) -> None:
        """Until it has used any processor time."""
        limit = self._machine.entry.watchdog
        while limit:
            await trio.sleep(limit / BEATS)
            if self._cpu_time() != self._resting:
                break
