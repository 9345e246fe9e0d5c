"""What one machine's life means for others: order of start and stop, groups, essential machines."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import trio

from retinue.cp import clock
from retinue.cp.death import Cause, Trouble
from retinue.cp.directory import MachineEntry
from retinue.cp.errors import ConfigRejected, StartFailed
from retinue.cp.groups import GroupPolicy
from retinue.cp.life import Life
from retinue.cp.standing import Wish
from retinue.cp.states import AT_REST, FINAL, State

if TYPE_CHECKING:
    from retinue.cp.system import ControlProgram


class Supervision:
    """The policy of one system."""

    def __init__(self, cp: "ControlProgram") -> None:
        self._cp = cp
        self._groups = GroupPolicy(cp.topology, clock.stamp)
        self.not_started: list[tuple[Life, str]] = []
        """Those that could not be started when the system was, each with the cause."""

    def redeclare(self) -> None:
        """The topology has changed."""
        self._groups.change(self._cp.topology)

    def note(self) -> dict[str, Any]:
        """What budgets are spent, for the next control program."""
        return self._groups.note()

    def restore(self, note: dict[str, Any]) -> None:
        """Go on with what an earlier control program has noted."""
        self._groups.restore(note)

    def renew(self, life: Life) -> None:
        """Somebody outside has taken the machine in hand: its budget is whole again."""
        self._groups.renew(life.name)
        self._cp.keep()

    @property
    def _lives(self) -> Iterable[Life]:
        return list(self._cp.lives.values())

    # -- order ---------------------------------------------------------------------------------------------------------

    async def turn_of(self, life: Life) -> None:
        """Until a loaded machine may run: at the first start every program is loaded; always its servers are there,
        and there is room for it in real storage, if that is short."""
        if not self._cp.was_ready:
            for other in self._lives:
                await other.settled.wait()
            if self.not_started:
                await trio.sleep_forever()
        while waited := [server for server in self.servers_of(life) if not (server.ready or server.hopeless)]:
            await waited[0].wait_usable()
        if not life.ready:  # a successor is another one beside it
            asked = trio.current_time()
            await life.wait_until(lambda: self._cp.pager.turn(life, asked))

    def servers_of(self, life: Life, entry: MachineEntry | None = None) -> list[Life]:
        """The machines that must be ready before this one, or would with another definition; SYSLOG before everybody,
        and none that waits to be used."""
        bases = _waits_for(entry or life.entry)
        keeper = self._cp.topology.system.syslog
        if keeper is not None and keeper != life.name:
            bases.add(keeper)
        return [each for each in self._lives if each.base in bases and each.wish is not Wish.REST]

    async def stop_all(self) -> None:
        """Stop each machine after everybody who uses it; SYSLOG last, so that it hears of everything."""
        async with trio.open_nursery() as nursery:
            for life in self._lives:
                nursery.start_soon(self._stop, life)

    async def _stop(self, life: Life) -> None:
        keeper = self._cp.topology.system.syslog
        for user in self._lives:
            if user is not life and (
                life.base in _waits_for(user.entry) or (life.name == keeper and user.name != keeper)
            ):
                await user.wait_for(lambda state: state in FINAL)
        if life.name == keeper:
            await self._cp.settle_records()
        life.ask_to_stop(grace=self._cp.grace)
        await life.wait_for(lambda state: state in FINAL)

    # -- the first start -----------------------------------------------------------------------------------------------

    def first_start_failed(self, life: Life, cause: str) -> None:
        """A machine could not be started when the system was: the system does not start."""
        self.not_started.append((life, cause))
        if len(self.not_started) == 1:
            self._cp.nursery.start_soon(self._fail)

    async def _fail(self) -> None:
        # Others may fail to load as well: tell everything at once.
        for life in self._lives:
            await life.settled.wait()
        misfits = tuple(misfit for life, _ in self.not_started for misfit in life.misfits)
        if misfits:
            await self._cp.fail(ConfigRejected(misfits))
        else:
            await self._cp.fail(StartFailed(self.not_started[0][0].name, self.not_started[0][1]))

    # -- deaths --------------------------------------------------------------------------------------------------------

    def restart_users(self, dead: Life) -> None:
        """A machine has died and is started again: so are those that said so of their edges to it."""
        for life in self._lives:
            for edge in life.entry.uses:
                if edge.to == dead.base and edge.on_restart == "restart":
                    life.follow(dead.name, edge.name, dead.cause)

    def failed(self, life: Life) -> trio.Event:
        """A machine has died by its own fault: do with it and its group what budgets and strategy say.

        The event is set when it may start again, unless it was given up.
        """
        verdict = self._groups.failed(life.name)
        self._cp.keep()
        for each in self._named(verdict.broken):
            each.give_up(verdict.why)
        others = [each for each in self._named(verdict.restart) if each is not life]
        together = trio.Event()
        if not others:
            together.set()
            return together
        why = Trouble(Cause.FOLLOWED, verdict.why or f"started again with {life.name}, which died")
        self._cp.nursery.start_soon(self._start_together, others, why, together)
        return together

    async def _start_together(self, lives: list[Life], why: Trouble, together: trio.Event) -> None:
        """End them one after the other, then let all of them start; each waits for its servers as always."""
        try:
            for life in lives:
                dying = life.current
                life.start_again(why, together)
                if dying is not None and dying.leaving is not None:
                    await life.wait_end_of(dying)
        finally:
            together.set()

    def _named(self, names: Iterable[str]) -> list[Life]:
        return [self._cp.lives[name] for name in names if name in self._cp.lives]

    def broken(self, life: Life, text: str) -> None:
        """A machine is given up."""
        if life.entry.essential:
            self._cp.stop("essential", f"{life.name}, which is essential, is broken: {text}", exit_code=1)

    def finished(self, life: Life) -> None:
        """A machine has ended in order, by itself."""
        if life.entry.essential and not self._cp.stopping:
            self._cp.stop("essential", f"{life.name}, which is essential, has ended: {life.cause}", exit_code=1)

    # -- the whole -----------------------------------------------------------------------------------------------------

    async def until_up(self) -> None:
        """Until every machine is ready, at rest, or never will be."""
        for life in self._lives:
            await life.wait_for(lambda state: state is State.READY or state in AT_REST)

    async def until_over(self) -> None:
        """Until nothing runs, and nothing will: who waits to be called is not when everybody else has ended."""
        while True:
            running = [life for life in self._lives if not life.over and life.state is not State.DORMANT]
            if not running and any(life.over for life in self._lives):
                return
            waited = running[0] if running else next(iter(self._lives))
            before = waited.state
            await waited.wait_until(lambda: waited.over or waited.state is not before)  # noqa: B023


def _waits_for(entry: MachineEntry) -> set[str]:
    """The names behind the edges that make an order of start."""
    return {edge.to for edge in entry.uses if not edge.star and not edge.lazy}
