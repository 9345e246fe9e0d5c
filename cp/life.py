"""The life of one machine: one task, which reads as that life does.

Spawn, load, wait for the servers, start, be ready, die or be stopped, be buried, pause, again.
"""

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.cp.backoff import Backoff
from retinue.cp.circuit import MAX_PATHS, Circuit
from retinue.cp.death import Death, judge
from retinue.cp.directory import MachineEntry
from retinue.cp.errors import Misfit
from retinue.cp.host.errors import SpawnFailed
from retinue.cp.host.interface import Exit
from retinue.cp.states import FINAL, TABLE, Happening, State
from retinue.cp.syslog import CRITICAL, ERROR, INFO, NOTICE
from retinue.pipes import (
    AccessDenied,
    Message,
    Path,
    PathError,
    PathSevered,
    Rejected,
    SocketTransport,
    WrongMode,
    socket_pair,
    wire,
)
from retinue.pipes.message import close_all

if TYPE_CHECKING:
    from retinue.cp.system import ControlProgram

# Seconds from a machine's birth to its ready(). A program that never says it would hold up everybody for ever.
START_LIMIT: Final = 60.0
# Generations a machine may use up before the system has been ready once: somebody waits for it to come up.
FIRST_TRIES: Final = 3
# Seconds a machine has to finish what it has begun when it is asked to stop.
GRACE: Final = 10.0
# Seconds a machine that has closed its control path may take to end.
LEAVING: Final = 5.0
# Seconds to read what a dead machine has left in its log descriptor.
LAST_WORDS: Final = 2.0
# Seconds of it before the machine's paths are cut: its last line may be the reason that others are told.
LAST_LINE: Final = 0.2
# Messages a machine may have outstanding on its control path: connects wait there while a target restarts, and every
# path of such a target asks there for its successor.
CONTROL_LIMIT: Final = MAX_PATHS + 512
# Messages on their way to a machine above which it is not asked for its meters: it does not answer anyway.
METERS_LIMIT: Final = 64
# Bytes of one of them: the longest is a refused config, with all its mistakes.
CONTROL_LARGEST: Final = 256 * 1024
# Mistakes in one machine's config that are told.
MOST_MISTAKES: Final = 100


class Life:
    """One machine of a running system."""

    def __init__(self, entry: MachineEntry, cp: "ControlProgram") -> None:
        self.entry = entry
        self.name = entry.name
        self.state = State.DEFINED
        self.generation = 0
        self.pid: int | None = None
        self.seal: tuple[str, ...] = ()
        self.restarts = 0
        self.cause: str | None = None  # why it last ended
        self.born_at: float | None = None  # monotonic
        self.misfits: tuple[Misfit, ...] = ()
        self.settled = trio.Event()  # the first generation has loaded its program, or failed to
        self._ready_at: float | None = None
        self._edges = {edge.name: edge for edge in entry.uses}
        self._cp = cp
        self._changed = trio.lowlevel.ParkingLot()
        self._control: Path | None = None
        self._exit: Exit | None = None
        self._exited = trio.Event()
        self._stop_asked = trio.Event()
        self._trouble: str | None = None  # why we ended the process ourselves
        self._begun = False  # its program runs, and may have paths
        self._follows = False  # it was ended because a target has died

    # -- state -------------------------------------------------------------------------------------------------------

    def _happen(self, happening: Happening, cause: str | None = None) -> None:
        previous, self.state = self.state, TABLE[self.state, happening]
        self._cp.announce(self.name, self.generation, self.state.value, previous.value, cause)
        self._changed.unpark_all()

    async def wait_for(self, condition: Callable[[State], bool]) -> State:
        """Until the present state fits; looks at what is, never at what was."""
        while not condition(self.state):
            await self._changed.park()
        return self.state

    def _reachable(self) -> bool:
        """READY, and not just ending: its control path ends a moment before its state changes."""
        return self.state is State.READY and self._control is not None and self._control.severed is None

    async def wait_ready(self, *, wait: bool) -> None:
        """Until it is READY; Rejected ``broken`` or ``not-ready`` when it will not be (or should not be waited for)."""
        if wait:
            await self.wait_for(lambda state: self._reachable() or state in FINAL or state is State.STOPPING)
        if self._reachable():
            return
        if self.state in FINAL or self.state is State.STOPPING:
            raise Rejected("broken", f"{self.name} is {self.state.value}" + (f": {self.cause}" if self.cause else ""))
        raise Rejected("not-ready", f"{self.name} is {self.state.value}")

    # -- the life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live until stopped, finished or broken."""
        backoff = Backoff(self.entry.pause)
        while not self._stop_asked.is_set():
            self._happen(Happening.START)
            death = await self._live()
            ready_for = 0.0 if self._ready_at is None else time.monotonic() - self._ready_at
            self._bury(death)
            self.settled.set()
            if self.state in FINAL:
                return
            if self._follows:
                self.restarts += 1
                self._cp.restart_users(self)
                continue  # it waits for its target, which has a pause and a number of tries of its own
            if not self._cp.was_ready and (self._ready_at is None or self.generation >= FIRST_TRIES):
                self._cp.first_start_failed(self, death.cause)
                return
            if self.entry.restart == "never":
                self._happen(Happening.GIVE_UP, "its restart policy is never")
                return
            self._cp.restart_users(self)
            if pause := backoff.pause(ready_for):
                self._happen(Happening.PAUSE, f"starting again in {pause:.1f} s")
                with trio.move_on_after(pause):
                    await self._stop_asked.wait()
            self.restarts += 1
        if self.state not in FINAL:
            self._happen(Happening.STOP)

    async def _live(self) -> Death:
        """One generation, from birth to death."""
        self.generation += 1
        self._exit, self._exited, self._trouble, self._ready_at = None, trio.Event(), None, None
        self._begun = self._follows = False
        if full := await self._cp.watch.full(self.entry):
            return Death(full, asked=False, failed=True)
        control_ours, control_theirs = socket_pair()
        log_ours, log_theirs = socket_pair()
        try:
            if any(disk.temporary for disk in self.entry.disks):
                # By a thread: what a machine has left there may be deep and much.
                await trio.to_thread.run_sync(self._cp.outfit.disks.empty, self.entry)
            birth = self._cp.outfit.birth(self.entry, self.generation)
            with control_theirs, log_theirs:
                born = await self._cp.host.spawn(birth, (control_theirs.fileno(), log_theirs.fileno()))
        except (SpawnFailed, OSError) as exc:
            control_ours.close()
            log_ours.close()
            return Death(str(exc), asked=False, failed=True)
        except BaseException:
            control_ours.close()
            log_ours.close()
            raise
        self.pid, self.seal, self.born_at = born.pid, born.seal, time.monotonic()
        async with trio.open_nursery() as nursery:
            last_words = trio.Event()

            async def read_log() -> None:
                await self._cp.syslog.read(self.name, self.generation, log_ours)
                last_words.set()

            nursery.start_soon(read_log)
            self._control = Path(
                SocketTransport(control_ours),
                name=self.name,
                peer=self.name,
                limit=CONTROL_LIMIT,
                largest=CONTROL_LARGEST,
            )
            await nursery.start(self._control.run)
            nursery.start_soon(partial(self._control.serve, self._on_message, failed=self._failed))
            nursery.start_soon(self._bring_up, self._cp.outfit.load(birth, self.entry))
            nursery.start_soon(self._end_when_asked)
            nursery.start_soon(self._end_without_control, self._control)
            await self._exited.wait()
            self._control.sever()
            with trio.move_on_after(LAST_LINE):
                await last_words.wait()
            # Before anybody can connect again: nobody must be left with a path to the dead.
            self._cp.switchboard.died(self.name, self.generation, self._judge().obituary(self.entry))
            with trio.move_on_after(LAST_WORDS):
                await last_words.wait()
            nursery.cancel_scope.cancel()
        self._control = self.pid = self.born_at = None
        return self._judge()

    async def _bring_up(self, arguments: dict[str, Any]) -> None:
        """Load the program, wait for its servers, run it, expect it to be ready in time."""
        with trio.move_on_after(START_LIMIT) as limit:
            try:
                await self._ask("load", arguments)
                self.settled.set()
                limit.deadline = float("inf")  # waiting for others is not its own time
                await self._cp.turn_of(self)
                if self.state is not State.STARTING:
                    return  # asked to stop meanwhile
                limit.deadline = trio.current_time() + START_LIMIT
                self._begun = True
                await self._ask("start")
                await self.wait_for(lambda state: state is not State.STARTING)
            except Rejected as exc:
                self._not_loaded(exc)
            except PathError:
                return  # it died; its exit will say of what
        if limit.cancelled_caught:
            omitted = "listen at its socket" if self.entry.kind == "exec" else "call vm.ready()"
            self._kill(f"it was not ready within {START_LIMIT:.0f} s: its program did not {omitted}")

    def _not_loaded(self, refusal: Rejected) -> None:
        untrusted = refusal.detail
        if refusal.code == "bad-config" and type(untrusted) is list and untrusted:
            self.misfits = tuple(self._cp.misfit(self.name, mistake) for mistake in untrusted[:MOST_MISTAKES])
            self._kill("\n".join(map(str, self.misfits)))
        else:
            self._kill(refusal.text)

    def _kill(self, trouble: str) -> None:
        if self._trouble is None:
            self._trouble = self._cp.secrets.hide(trouble)  # it may be what the machine said
        self._cp.host.signal(self.name, self.generation, signal.SIGKILL)

    def overrun(self, cause: str) -> None:
        """The process of the present generation is over a limit, and is ended."""
        self._kill(cause)

    async def _end_when_asked(self) -> None:
        """Ask, wait for a bounded time, force: each step is a record."""
        await self._stop_asked.wait()
        self._happen(Happening.STOP)
        with trio.move_on_after(self._cp.grace):
            with contextlib.suppress(PathError):  # it is ending already
                await self._ask("stop")
            await self._exited.wait()
        if not self._exited.is_set():
            self._cp.syslog.write(
                NOTICE, f"{self.name} did not stop within {self._cp.grace:.0f} s and is ended by force"
            )
            self._cp.host.signal(self.name, self.generation, signal.SIGKILL)

    async def _end_without_control(self, control: Path) -> None:
        """A machine that cannot be told anything any more is ended."""
        await control.wait_severed()
        why = control.severed
        if isinstance(why, PathSevered) and why.code == "violation":
            self._kill(f"it broke the protocol on its control path: {why.text}")
        # Otherwise it is most likely ending just now, and its exit says more than we could.
        with trio.move_on_after(LEAVING):
            await self._exited.wait()
        if not self._exited.is_set():
            self._kill("it closed its control path and did not end")

    def exited(self, exit: Exit) -> None:
        """The host reports the end of the process of the present generation."""
        if exit.generation == self.generation:
            self._exit = exit
            self._exited.set()

    def _judge(self) -> Death:
        exit = self._exit
        assert exit is not None
        return judge(
            exit,
            self.entry,
            asked=self._stop_asked.is_set(),
            trouble=self._trouble,
            last_complaint=lambda: self._cp.syslog.last_complaint(self.name, self.generation),
        )

    def _bury(self, death: Death) -> None:
        self.cause = death.cause
        in_order = death.in_order(self.entry)
        exit = self._exit
        fields: dict[str, Any] = {"cause": death.cause}
        if in_order:
            fields["event"] = State.STOPPED.value  # which a display of states shows anyway
        if exit is not None:
            fields |= {"pid": exit.pid, "status": exit.status, "peak_kib": exit.peak_kib}
            if exit.peak_storage:
                fields["peak_storage"] = exit.peak_storage
            fields |= {"user_s": round(exit.user_s, 3), "system_s": round(exit.system_s, 3)}
        severity = INFO if in_order else ERROR
        self._cp.syslog.write(
            severity, death.obituary(self.entry), machine=self.name, generation=self.generation, fields=fields
        )
        if self.state in FINAL:
            return
        self._happen(Happening.FINISH if in_order else Happening.DIE, death.cause)

    def ask_to_stop(self) -> None:
        """Let the life end in order; :meth:`run` returns when it has."""
        self._stop_asked.set()
        if self.state in (State.DEFINED, State.BROKEN):
            self._happen(Happening.STOP)

    def follow(self, target: str, edge: str, cause: str | None) -> None:
        """A target has died that takes this machine with it, if its program has begun to run."""
        if self._begun and not self._exited.is_set() and not self._stop_asked.is_set():
            self._follows = True
            self._kill(f'{target} died ({cause}), and the edge {edge} says on_restart = "restart"')

    # -- the control path --------------------------------------------------------------------------------------------

    async def _on_message(self, message: Message) -> Any:
        close_all(message.descriptors)
        if not message.wants_reply:
            # Its own runtime sends nothing of the kind, and what is answered with a descriptor needs an answer.
            self._kill("it broke the protocol on its control path: it asked for something and wants no answer")
            raise Rejected("violation")
        match message.body:
            case ["ready", {**more}] if not more:
                if self.state is State.STARTING:
                    self._ready_at = time.monotonic()
                    self._happen(Happening.READY)
                return None
            case ["connect", {"edge": str(name), "wait": bool(wait), **more}] if not more:
                return await self._connect(name, wait, message)
            case ["rebind", {"path": int(ident), "stream": bool(stream), **more}] if not more:
                board = self._cp.switchboard
                descriptor = await board.rebind(self.name, self.generation, ident, stream=stream)
                return await self._hand_over(message, None, descriptor)
        raise Rejected("unknown-verb", "the control program knows ready, connect and rebind")

    def _failed(self, message: Message, exc: Exception) -> None:
        # A bug of ours. It must not end the system because a machine has found it.
        trace = "".join(traceback.format_exception(exc))
        self._cp.syslog.write(CRITICAL, f"a request of {self.name} failed:\n{trace}")

    async def _connect(self, name: str, wait: bool, message: Message) -> None:
        edge = self._edges.get(name)
        if edge is None:
            # Its own runtime asks only for declared edges: this is a forged message, and a record.
            self._cp.offences.tell(self.name, "edge", f"{self.name} asked for an edge it has not: {name[:64]!r}")
            raise AccessDenied(f"{self.name} has no edge {name[:64]!r}")
        made = await self._cp.switchboard.connect(self.name, self.generation, edge, wait=wait)
        await self._hand_over(message, {"path": made.ident}, made.descriptor)

    async def _hand_over(self, message: Message, body: Any, descriptor: int) -> None:
        try:
            await message.reply(body, descriptors=(descriptor,))
        except OSError as exc:
            raise Rejected("exhausted", f"the control program cannot hand over a path: {exc.strerror}") from exc
        finally:
            os.close(descriptor)

    async def offer(self, circuit: Circuit, descriptor: int) -> None:
        """Hand the machine its end of a path; see :class:`~retinue.cp.switchboard.Target`."""
        arguments = {"path": circuit.ident, "edge": circuit.label, "peer": circuit.origin}
        await self._ask("offer", {**arguments, "limit": min(circuit.edge.limit, wire.MAX_LIMIT)}, (descriptor,))

    async def meters(self) -> Any:
        """What the machine says that passed along its edges; unchecked. PathError when it does not say anything."""
        if self._control is None or self._control.meter.outstanding > METERS_LIMIT:
            raise Rejected("not-ready", f"{self.name} is {self.state.value}")
        return await self._ask("meters")

    async def _ask(self, verb: str, arguments: dict[str, Any] | None = None, descriptors: tuple[int, ...] = ()) -> Any:
        """Ask the machine for something over its control path. Rejected as it says, PathError when it cannot hear."""
        if self._control is None:
            raise Rejected("not-ready", f"{self.name} is {self.state.value}")
        try:
            return await self._control.call([verb, arguments or {}], descriptors=descriptors)
        except WrongMode:
            self._kill("it broke the protocol on its control path: it made a byte stream of it")
            self._control.sever("violation", "a control path carries messages")
            raise
