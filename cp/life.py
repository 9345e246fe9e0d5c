"""The life of one machine: one task, which reads as that life does.

Be wanted, start, be ready, die or be replaced or be stopped, be buried, pause, again. The processes that it consists of
are its :mod:`incarnations <retinue.cp.incarnation>`.
"""

import signal
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.cp import clock
from retinue.cp.backoff import Backoff
from retinue.cp.circuit import Circuit
from retinue.cp.death import ASKED, Cause, Death, Trouble
from retinue.cp.directory import MachineEntry
from retinue.cp.host.interface import Exit
from retinue.cp.incarnation import Incarnation
from retinue.cp.rest import until_idle
from retinue.cp.standing import Standing, Wish
from retinue.cp.states import AT_REST, FINAL, TABLE, Happening, State
from retinue.cp.syslog import ERROR, INFO, NOTICE
from retinue.pipes import Rejected

if TYPE_CHECKING:
    from retinue.cp.system import ControlProgram

# Seconds a machine has to finish what it has begun when it is asked to stop, unless the topology says otherwise.
GRACE: Final = 10.0
# Generations a machine may use up before the system has been ready once: somebody waits for it to come up.
FIRST_TRIES: Final = 3
# Characters of a cause that the next control program is told: a program may say more than the nucleus keeps.
CAUSE: Final = 2000


class Life(Standing):
    """One machine of a running system. ``entry`` is its definition, which may change while it lives."""

    def __init__(self, entry: MachineEntry, cp: "ControlProgram") -> None:
        super().__init__(entry)
        self.settled = trio.Event()  # the first incarnation has loaded its program, or failed to
        self._cp = cp
        self._successor: Incarnation | None = None  # starts beside the current one
        self._again: trio.Event | None = None  # it ends to be started again, when this is set
        self._trial: MachineEntry | None = None  # what to go back to if the next one does not become ready
        self.trial_failed: str | None = None  # why it was not
        self._follows = False  # it was ended because a target has died
        self._broken: str | None = None  # it ends to be given up
        self._hurry = False  # somebody asks for it to be started now
        self._meters: tuple[Incarnation | None, Any] = None, None  # what which process has told last
        self._strays: set[int] = set()  # generations of an earlier control program that are being ended
        self._until: float | None = None  # it waits, by clock.stamp()
        self.failed: tuple[int, Cause | None] = 0, None
        """The newest generation that has died before it was ready, and of what."""
        self._nursery: trio.Nursery | None = None
        self._backoff = Backoff(entry.backoff)
        self._removed = False

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def wait_ready(self, *, wait: bool) -> None:
        """Until it is READY; Rejected ``broken`` or ``not-ready`` when it will not be (or should not be waited for)."""
        if wait and self.wish is Wish.REST:
            self._want(Wish.UP)
        if self.ready or (wait and await self.wait_usable()):
            return
        if self.hopeless:
            raise Rejected("broken", f"{self.name} is {self.state.value}" + (f": {self.cause}" if self.cause else ""))
        raise Rejected("not-ready", f"{self.name} is {self.state.value}")

    def _happen(self, happening: Happening, cause: str | None = None) -> None:
        previous, self.state = self.state, TABLE[self.state, happening]
        self._cp.announce(self.name, self.generation, self.state.value, previous.value, cause)
        self._keep()
        self.notice()

    def _want(self, wish: Wish) -> None:
        self.wish = wish
        self._keep()
        self.notice()

    # -- over the death of a control program ---------------------------------------------------------------------------

    def _keep(self) -> None:
        note = {"state": self.state, "wish": self.wish, "generation": self._number, "restarts": self.restarts}
        note |= {"held": self.held, "again": self._again is not None, "broken": self._broken and self._broken[:CAUSE]}
        note |= {"deaths": self._backoff.deaths, "until": self._until, "cause": self.cause and self.cause[:CAUSE]}
        self._cp.host.keep(f"life/{self.name}", note)

    def adopt(self, note: dict[str, Any], incarnation: Incarnation | None, strays: set[int]) -> None:
        """Go on where an earlier control program has left off.

        ``incarnation`` is the process that was ready then, if there is one; ``strays`` are generations that are being
        ended, for they had no place in it.
        """
        self.state, self.wish = State(note["state"]), Wish(note["wish"])
        self._number, self.restarts, self.cause = note["generation"], note["restarts"], note["cause"]
        self.held, self._broken, self._until = note["held"], note["broken"], note["until"]
        self._backoff.deaths = note["deaths"]
        self.settled.set()
        self._strays = strays
        self.current = self._last = incarnation
        if incarnation is not None:
            self.state = State.READY
            if self.wish is not Wish.UP or note["again"]:
                self.state = State.STOPPING
                incarnation.leave(ASKED, drain=self.wish is not Wish.DOWN, grace=self._cp.grace)
        elif self.state not in AT_REST and self.state is not State.WAITING:
            self.state = State.ABEND  # whatever was under way begins again

    def forget(self) -> None:
        """The machine is no part of the system any more."""
        self._removed = True
        self.wish = Wish.DOWN
        self._cp.host.drop(f"life/{self.name}")
        self.notice()

    # -- the life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live as it is wished, until the machine is removed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self.current is not None:
                nursery.start_soon(self.current.run)
                self._begin_to_rest(self.current)
            while not self._removed:
                if self.current is None:
                    await self.wait_until(lambda: not self._strays)
                    if self.state is State.WAITING:
                        await self._pass_pause()
                    await self._until_wanted()
                    if self._removed:
                        break
                    if not await self._has_room():
                        continue
                    self._start(nursery)
                await self.wait_until(lambda: self.current is None or self.current.death is not None)
                await self._after()
            nursery.cancel_scope.cancel()

    async def _until_wanted(self) -> None:
        while self.wish is not Wish.UP and not self._removed:
            if self.wish is Wish.DOWN and self.state not in FINAL:
                self._happen(Happening.STOP)
            elif self.wish is Wish.REST and self.state is not State.DORMANT:
                self._happen(Happening.REST)
            self.settled.set()
            await self._changed.park()

    async def _has_room(self) -> bool:
        """Until there is room for it in real storage; False when it is not wanted any more."""
        pager, asked, why = self._cp.pager, trio.current_time(), ""
        try:
            while self._successor is None and self.wish is Wish.UP and not pager.admits(self, asked):
                told, why = why, pager.why_held(self)
                if why and not told:
                    if (self.state, Happening.PAUSE) in TABLE:
                        self._happen(Happening.PAUSE, why)
                    else:
                        text = f"{self.name} is not started yet: {why}"
                        self._cp.syslog.write(NOTICE, text, fields={"of": self.name})
                self.settled.set()
                await self._changed.park()
        finally:
            pager.withdraw(self)
        return self.wish is Wish.UP and not self._removed

    def _start(self, nursery: trio.Nursery) -> None:
        incarnation, self._successor = self._successor, None
        if incarnation is None:
            incarnation = self._next(self.entry)
            nursery.start_soon(incarnation.run)
        self.current = self._last = incarnation
        incarnation.placed = True
        self._happen(Happening.START)
        nursery.start_soon(self._tell_settled, incarnation)
        if incarnation.ready:
            self._happen(Happening.READY)
            self._begin_to_rest(incarnation)

    def _next(self, entry: MachineEntry) -> Incarnation:
        self._number += 1
        self._keep()  # a generation is one process, also for the next control program
        return Incarnation(self, entry, self._number, self._cp)

    async def _tell_settled(self, incarnation: Incarnation) -> None:
        await incarnation.settled.wait()
        self.settled.set()
        self.notice()

    def became_ready(self, incarnation: Incarnation) -> None:
        """A process has said that it is ready."""
        if incarnation is self.current and self.state is State.STARTING:
            self._happen(Happening.READY)
            self._begin_to_rest(incarnation)
        self.notice()

    async def _after(self) -> None:
        """The present process has ended: what now?"""
        dead = self.current
        if dead is None or dead.death is None:
            return
        death, again, follows = dead.death, self._again, self._follows
        self.current = self._again = None
        self._follows = False
        if dead.ready_at is None and not death.asked:
            self.failed = dead.generation, death.cause
        self._bury(dead, death)
        if self._broken is not None:
            text, self._broken = self._broken, None
            self._give_up(text)
        elif self.wish is not Wish.UP:
            self._cp.certificates.then(self.name, dead.generation, f"it is to be {self.wish.value}")
        elif again is not None:
            await again.wait()
            self.restarts += 1
        elif self._successor is not None:
            self.restarts += 1  # it is on its way already
            if not death.in_order(self.entry):
                self._cp.supervision.restart_users(self)
        elif dead.leaving is not None:
            self.restarts += dead.leaving.cause is not Cause.IDLE  # it was asked to end, and is wanted again
        elif death.cause is Cause.NO_ROOM and self.entry.restart != "never":
            self.restarts += 1  # by no fault of its own, nor of its group
            self._then(dead, "it is started again when there is room")
            self._cp.supervision.restart_users(self)
        elif self._trial is not None and dead.ready_at is None:
            # The new definition does not work: back to the one before, which did.
            self.entry, self._trial, self.trial_failed = self._trial, None, death.text
            self.notice()
        elif death.in_order(self.entry):
            self._then(dead, "it stays so, as its restart policy says")
            self._want(Wish.DOWN)
            self._cp.supervision.finished(self)
        elif follows:
            self.restarts += 1
            self._then(dead, "it is started again with its target")
            self._cp.supervision.restart_users(self)
        else:
            await self._failed(dead, death)

    async def _failed(self, dead: Incarnation, death: Death) -> None:
        """It has ended out of order, by its own fault."""
        supervision = self._cp.supervision
        if not self._cp.was_ready and (dead.ready_at is None or self._number >= FIRST_TRIES):
            supervision.first_start_failed(self, death.text)
            await self.wait_until(lambda: self.wish is Wish.DOWN)
            return
        if self.entry.restart == "never":
            self._give_up("its restart policy is never")
            return
        together = supervision.failed(self)
        if self.state is not State.ABEND:
            return  # its budget is spent, or that of its group
        supervision.restart_users(self)
        pause = self._backoff.pause(dead.ready_for)
        self._then(dead, f"it is started again in {pause:.1f} s" if pause else "it is started again at once")
        if pause:
            self._until = clock.stamp() + pause
            self._happen(Happening.PAUSE, f"starting again in {pause:.1f} s")
            await self._pass_pause()
        self._hurry = False
        await together.wait()
        self.restarts += 1

    async def _pass_pause(self) -> None:
        """Until its turn has come, or nobody waits for that any more."""
        with trio.move_on_after(max(0.0, (self._until or 0.0) - clock.stamp())):
            await self.wait_until(lambda: self.wish is not Wish.UP or self._hurry)
        self._until = None

    def _bury(self, dead: Incarnation, death: Death) -> None:
        self.cause = death.text
        self.report(dead, death)
        if self._broken is not None:
            return  # which is said instead
        self._happen(Happening.FINISH if death.in_order(self.entry) else Happening.DIE, death.text)

    def report(self, dead: Incarnation, death: Death, *, then: str = "") -> None:
        """Write down how a process has ended, in a record and a certificate, and what was done ``then``."""
        in_order = death.in_order(dead.entry)
        fields: dict[str, Any] = {"cause": death.cause.value, "text": death.text}
        if in_order:
            fields["event"] = State.STOPPED.value  # which a display of states shows anyway
        if (exit := dead.exit) is not None:
            fields |= {"pid": exit.pid, "status": exit.status, "peak_kib": exit.peak_kib}
            if exit.peak_storage:
                fields["peak_storage"] = exit.peak_storage
            fields |= {"user_s": round(exit.user_s, 3), "system_s": round(exit.system_s, 3)}
        severity = INFO if in_order else ERROR
        text = death.obituary(dead.entry)
        self._cp.syslog.write(severity, text, machine=self.name, generation=dead.generation, fields=fields)
        self._cp.certify(self, dead, death)
        if then:
            self._then(dead, then)

    def _then(self, dead: Incarnation, text: str) -> None:
        self._cp.certificates.then(self.name, dead.generation, text)

    def _give_up(self, text: str) -> None:
        self.wish = Wish.DOWN
        self._happen(Happening.GIVE_UP, text)
        self._cp.certificates.then(self.name, self._number, f"it is given up: {text}")
        self._cp.supervision.broken(self, text)

    @property
    def processes(self) -> list[Incarnation]:
        """Every process that it has now."""
        found = (self.current, self._successor, *self._leaving)
        return [each for each in found if each is not None and each.pid and each.death is None]

    def exited(self, exit: Exit) -> None:
        """The host reports the end of one of its processes."""
        self._leaving = [each for each in self._leaving if each.death is None]
        for incarnation in (self.current, self._successor, *self._leaving):
            if incarnation is not None and incarnation.generation == exit.generation:
                incarnation.exited(exit)
                return
        self._strays.discard(exit.generation)
        self._cp.host.buried(self.name, exit.generation)
        self.notice()

    # -- asked from outside --------------------------------------------------------------------------------------------

    def ask_to_stop(self, *, grace: float | None = None, why: Trouble = ASKED) -> None:
        """Let it end in order, and stay so."""
        self._want(Wish.DOWN)
        if self._nursery is None and self.state not in FINAL:
            self._happen(Happening.STOP)  # it has not begun to live
        if (successor := self._successor) is not None:
            self.disown(successor)
            successor.leave(ASKED, grace=grace)
        if self.current is not None:
            if self.state in (State.STARTING, State.READY):
                self._happen(Happening.STOP)
            self.current.leave(why, grace=grace)

    def ask_to_start(self) -> None:
        """Let it run, also if it had been given up; at once, if it is waiting for its turn."""
        if self._cp.stopping:
            raise Rejected("stopping", "the system is stopping")
        self._hurry, self.held, self._broken = self.state is State.WAITING, False, None
        self._want(Wish.UP)

    def give_up(self, text: str) -> None:
        """Let it end, for its group is spent."""
        if self.state in (State.ABEND, State.WAITING):
            self._give_up(text)
        elif self.current is not None and self.wish is Wish.UP:
            self._broken = text
            self.ask_to_stop(why=Trouble(Cause.FOLLOWED, text))
        elif self.wish is Wish.UP:
            self._want(Wish.DOWN)  # it has ended, to be started again with others

    def start_again(self, why: Trouble, when: trio.Event) -> None:
        """Let it end in order, and start when ``when`` is set; nothing of what others have asked is lost."""
        current = self.current
        if current is not None and self.wish is Wish.UP and current.leaving is None:
            self._again = when
            self._happen(Happening.STOP, why.text)
            self._cp.switchboard.release(self.name, current.generation, f"{self.name} is started again")
            current.leave(why, drain=current.ready_at is not None)

    def follow(self, target: str, edge: str, cause: str | None) -> None:
        """A target has died that takes this machine with it, if its program has begun to run."""
        if self.current is not None and self.current.begun:
            self._follows = True
            text = f'{target} died ({cause}), and the edge {edge} says on_restart = "restart"'
            self.current.kill(Trouble(Cause.FOLLOWED, text))

    def overrun(self, cause: str) -> None:
        """The present process is over a limit, and is ended."""
        if self.current is not None:
            kind = Cause.DISK_FULL if cause.startswith("disk") else Cause.OUT_OF_STORAGE
            self.current.kill(Trouble(kind, cause))

    def kill(self) -> None:
        """End the present process as a fault would."""
        if self.current is not None:
            self._cp.host.signal(self.name, self.current.generation, signal.SIGKILL)

    async def offer(self, circuit: Circuit, descriptor: int) -> None:
        """Hand the machine its end of a path; see :class:`~retinue.cp.switchboard.Target`."""
        if self.current is None:
            raise Rejected("not-ready", f"{self.name} is {self.state.value}")
        await self.current.offer(circuit, descriptor)

    async def meters(self) -> Any:
        """What the machine says that passed along its edges; unchecked. PathError when it does not say anything."""
        if self.current is None or self.current.overloaded:
            raise Rejected("not-ready", f"{self.name} is {self.state.value}")
        asked, known = self._meters
        if asked is self.current and self.current.pulse.asleep:
            return known
        current = self.current
        known = await current.ask("meters")
        self._meters = current, known
        return known

    async def last(self) -> Any:
        """Its newest messages without an answer; unchecked. PathError when it does not say anything."""
        if self.current is None or self.current.overloaded:
            raise Rejected("not-ready", f"{self.name} is {self.state.value}")
        return await self.current.ask("last", {"edge": None})

    # -- replacing -----------------------------------------------------------------------------------------------------

    def bear(self, entry: MachineEntry) -> Incarnation:
        """Begin a successor with this definition beside the present process."""
        assert self._nursery is not None
        self._successor = self._next(entry)
        self._nursery.start_soon(self._successor.run)
        return self._successor

    def disown(self, successor: Incarnation) -> None:
        """It has not become ready, and nothing is changed."""
        if self._successor is successor:
            self._successor = None
            if successor.death is None:
                self._leaving.append(successor)

    def takes(self, successor: Incarnation) -> bool:
        """Whether a successor can have the place of the present process now."""
        return self._successor is successor and self.state is State.READY and successor.ready

    def hand_over(self, successor: Incarnation) -> None:
        """Put it in the place of the present process, which lets go of its paths."""
        current = self.current
        assert current is not None
        self._successor, self.current, self._last = None, successor, successor
        successor.placed = True
        self._leaving.append(current)
        self._happen(Happening.REPLACE, f"generation {successor.generation} has replaced {current.generation}")
        self._begin_to_rest(successor)
        self._cp.switchboard.release(self.name, current.generation, f"{self.name} is replaced")
        current.leave(Trouble(Cause.REPLACED, f"replaced by generation {successor.generation}"), drain=True)

    def replaced(self, predecessor: Incarnation) -> None:
        """A predecessor has ended."""
        assert predecessor.death is not None
        self.report(predecessor, predecessor.death)

    def put_to_trial(self, before: MachineEntry | None) -> None:
        """If the next process does not become ready, ``before`` is the definition again; None: no trial any more."""
        self._trial = before
        if before is not None:
            self.trial_failed = None

    def redefine(self, entry: MachineEntry) -> None:
        """From now on this is its definition; a process that runs has the one of its birth."""
        before, self.entry = self.entry, entry
        if entry.start != before.start:
            if self.wish is Wish.REST:
                self._want(Wish.UP)
            elif self.current is not None:
                self._begin_to_rest(self.current)
        self._backoff.change(entry.backoff)
        self._hurry = self.state is State.WAITING
        self.notice()

    def set(self, entry: MachineEntry) -> None:
        """The same for a definition that differs in nothing for which the present process would have to end."""
        waiting = self._hurry
        self.redefine(entry)
        self._hurry = waiting
        if self.current is not None:
            self.current.set(entry)

    # -- on demand -----------------------------------------------------------------------------------------------------

    def _begin_to_rest(self, incarnation: Incarnation) -> None:
        if self.entry.start == "on-demand" and self._nursery is not None:
            self._nursery.start_soon(until_idle, incarnation, self._idle, self.rest)

    def _idle(self, incarnation: Incarnation) -> float | None:
        """Seconds without a message after which this process may rest; None: it may not."""
        present = incarnation is self.current and self.entry.start == "on-demand"
        return self.entry.idle if present else None

    def may_rest(self, incarnation: Incarnation) -> bool:
        """Whether it can be let rest: it is the present process, and is wanted for nothing but to be called."""
        alone = incarnation is self.current and incarnation.ready and self._successor is None
        return alone and self.wish is Wish.UP and self.entry.start == "on-demand"

    def rest(self, incarnation: Incarnation, text: str) -> bool:
        """Let it end until somebody needs it. False when that cannot be now."""
        if not self.may_rest(incarnation):
            return False
        self._want(Wish.REST)
        self._happen(Happening.STOP, text)
        self._cp.switchboard.sleep(self.name, incarnation.generation, text)
        incarnation.leave(Trouble(Cause.IDLE, text), drain=True)
        self._cp.pager.rests(self, incarnation)
        return True
