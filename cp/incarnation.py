"""One process of a machine, from its birth to its death; or from its adoption, if an earlier control program made it.

What becomes of the machine afterwards is the business of its :mod:`~retinue.cp.life`.
"""

import contextlib
import signal
import socket
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.cp import clock
from retinue.cp.circuit import MAX_PATHS, Circuit
from retinue.cp.death import ASKED, Cause, Death, Trouble, judge
from retinue.cp.directory import MachineEntry
from retinue.cp.errors import Misfit
from retinue.cp.host.errors import SpawnFailed
from retinue.cp.host.interface import Exit, Kept
from retinue.cp.lending import Lending, hand_over
from retinue.cp.pulse import Pulse
from retinue.cp.syslog import CRITICAL, NOTICE
from retinue.pipes import (
    AccessDenied,
    Message,
    Path,
    PathError,
    PathSevered,
    Rejected,
    Reply,
    SocketTransport,
    WrongMode,
    socket_pair,
    wire,
)
from retinue.pipes.message import close_all
from retinue.pipes.parcel import CONTROL, send_descriptor

if TYPE_CHECKING:
    from retinue.cp.life import Life
    from retinue.cp.system import ControlProgram

# Seconds from a machine's birth to its ready(). A program that never says it would hold up everybody for ever.
START_LIMIT: Final = 60.0
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


class Incarnation:
    """One process of a machine. ``entry`` is the machine's definition at its birth."""

    def __init__(self, life: "Life", entry: MachineEntry, generation: int, cp: "ControlProgram") -> None:
        self.entry = entry
        self.name = entry.name
        self.generation = generation
        self.pid: int | None = None
        self.seal: tuple[str, ...] = ()
        self.born_at: float | None = None
        self.ready_at: float | None = None
        self.misfits: tuple[Misfit, ...] = ()
        self.settled = trio.Event()
        """Its program is loaded, or it has failed to."""
        self.death: Death | None = None
        self.exit: Exit | None = None
        self.leaving: Trouble | None = None
        """What it was asked to end for."""
        self.placed = False
        """It is the machine's present process, or was."""
        self._life = life
        self._cp = cp
        self._edges = {edge.name: edge for edge in entry.uses}
        self._control: Path | None = None
        self._exited = trio.Event()
        self._asked = trio.Event()
        self._drains = False
        self._grace = entry.grace
        self._trouble: Trouble | None = None
        self._adopted: tuple[socket.socket, socket.socket] | None = None
        self._begun = False  # its program runs, and may have paths
        self._lending = Lending(entry.name)
        self.pulse = Pulse(self, cp.host, cp.syslog, lambda: self._exited)

    @classmethod
    def adopt(
        cls, life: "Life", entry: MachineEntry, cp: "ControlProgram", generation: int, kept: Kept, ready: dict[str, Any]
    ) -> "Incarnation":
        """One that an earlier control program has made and that was ready."""
        self = cls(life, entry, generation, cp)
        control, log = kept.descriptors
        self._adopted = socket.socket(fileno=control), socket.socket(fileno=log)
        self.pid, self.seal = ready["pid"], tuple(ready["seal"])
        self.born_at, self.ready_at = clock.from_stamp(ready["born"]), clock.from_stamp(ready["ready"])
        self._begun = True
        self.settled.set()
        return self

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """It is ready, and not just ending: its control path ends a moment before it is known to be dead."""
        return (
            self.ready_at is not None
            and self.leaving is None
            and self.death is None
            and self._control is not None
            and self._control.severed is None
        )

    @property
    def reached(self) -> bool:
        """There is a control path to it."""
        return self._control is not None

    @property
    def ready_for(self) -> float:
        """Seconds since it was ready; 0 if it never was."""
        return 0.0 if self.ready_at is None else trio.current_time() - self.ready_at

    @property
    def begun(self) -> bool:
        """Its program runs, and nobody has asked it to end."""
        return self._begun and not self._exited.is_set() and self.leaving is None

    @property
    def _key(self) -> str:
        return f"{self.name}/{self.generation}"

    # -- from birth to death -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live. :attr:`death` is set at the end."""
        try:
            death = await (self._live_on() if self._adopted is not None else self._live())
        finally:
            self._control = None
            self.settled.set()
            for sock in self._adopted or ():
                sock.close()
        for kind in ("birth", "ready"):
            self._cp.host.drop(f"{kind}/{self._key}")
        await self._cp.segments.release(self.name, self.generation)
        self._cp.host.buried(self.name, self.generation)
        self.pid = None
        self.death = death
        self._life.notice()

    async def _live(self) -> Death:
        if full := await self._cp.watch.full(self.entry):
            return Death(Cause.DISK_FULL, full, asked=False, failed=True)
        control_ours, control_theirs = socket_pair()
        log_ours, log_theirs = socket_pair()
        with contextlib.ExitStack() as undo:
            undo.callback(log_ours.close)
            undo.callback(control_ours.close)
            try:
                with control_theirs, log_theirs:
                    if any(disk.temporary for disk in self.entry.disks):
                        # By a thread: what a machine has left there may be deep and much.
                        await trio.to_thread.run_sync(self._cp.outfit.disks.empty, self.entry)
                    birth = self._cp.outfit.birth(self.entry, self.generation)
                    # Before it is born: whoever comes after this control program must know whom it has made.
                    self._cp.host.keep(f"birth/{self._key}", {}, (control_ours.fileno(), log_ours.fileno()))
                    born = await self._cp.host.spawn(birth, (control_theirs.fileno(), log_theirs.fileno()))
            except (SpawnFailed, OSError) as exc:
                return Death(Cause.NOT_MADE, str(exc), asked=False, failed=True)
            undo.pop_all()
        self.pid, self.seal, self.born_at = born.pid, born.seal, trio.current_time()
        return await self._attend(control_ours, log_ours, partial(self._bring_up, birth))

    async def _live_on(self) -> Death:
        """Take over from an earlier control program: a new control path takes the place of the one it had."""
        assert self._adopted is not None
        control, log = self._adopted
        ours, theirs = socket_pair()
        with theirs, control:
            with contextlib.suppress(OSError):  # it is dead: its exit is on its way here
                send_descriptor(log, CONTROL, theirs.fileno())
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
        return await self._attend(ours, log, self._keep_watch)

    async def _attend(self, control: socket.socket, log: socket.socket, task: Callable[[], Awaitable[None]]) -> Death:
        """From the moment it has a process to its end; takes both sockets over."""
        # Closed also when this is cancelled before those have begun who take them over.
        with log, control:
            async with trio.open_nursery() as nursery:
                last_words = trio.Event()

                async def read_log() -> None:
                    await self._cp.syslog.read(self.name, self.generation, log, beat=self.pulse.beat)
                    last_words.set()

                nursery.start_soon(read_log)
                path = self._control = Path(
                    SocketTransport(control),
                    name=self.name,
                    peer=self.name,
                    limit=CONTROL_LIMIT,
                    largest=CONTROL_LARGEST,
                )
                await nursery.start(path.run)
                self._life.notice()  # one that was adopted can be reached from here on
                nursery.start_soon(partial(path.serve, self._on_message, failed=self._failed))
                nursery.start_soon(task)
                nursery.start_soon(self._end_when_asked)
                nursery.start_soon(self._end_without_control, path)
                await self._exited.wait()
                self._cp.syslog.release(self.name, self.generation)
                path.sever()
                self._life.notice()  # it is not ready any more
                with trio.move_on_after(LAST_LINE):
                    await last_words.wait()
                # Before anybody can connect again: nobody must be left with a path to the dead.
                self._cp.switchboard.died(self.name, self.generation, self._judge().obituary(self.entry))
                with trio.move_on_after(LAST_WORDS):
                    await last_words.wait()
                nursery.cancel_scope.cancel()
        self._cp.syslog.end(self.name, self.generation)
        return self._judge()

    def exited(self, exit: Exit) -> None:
        """The host reports the end of the process."""
        self.exit = exit
        self._exited.set()

    def _judge(self) -> Death:
        assert self.exit is not None
        return judge(
            self.exit,
            self.entry,
            asked=self.leaving,
            trouble=self._trouble,
            last_complaint=lambda: self._cp.syslog.last_complaint(self.name, self.generation),
        )

    # -- start ---------------------------------------------------------------------------------------------------------

    async def _bring_up(self, birth: Any) -> None:
        """Load the program, wait for its servers, run it, expect it to be ready in time."""
        with trio.move_on_after(START_LIMIT) as limit:
            try:
                await self.ask("load", self._cp.outfit.load(birth, self.entry))
                self.settled.set()
                self._life.notice()
                limit.deadline = float("inf")  # waiting for others is not its own time
                await self._cp.supervision.turn_of(self._life)
                if self._asked.is_set():
                    return
                limit.deadline = trio.current_time() + START_LIMIT
                self._begun = True
                await self.ask("start")
                await self._life.wait_until(lambda: self.ready_at is not None or self._asked.is_set())
            except Rejected as exc:
                self._not_loaded(exc)
            except PathError:
                return  # it died; its exit will say of what
        if limit.cancelled_caught:
            omitted = "listen at its socket" if self.entry.kind == "exec" else "call vm.ready()"
            text = f"it was not ready within {START_LIMIT:.0f} s: its program did not {omitted}"
            self.kill(Trouble(Cause.NOT_READY, text))
        elif self.ready_at is not None:
            await self._keep_watch()

    def _not_loaded(self, refusal: Rejected) -> None:
        untrusted = refusal.detail
        if refusal.code == "bad-config" and type(untrusted) is list and untrusted:
            mistakes = untrusted[:MOST_MISTAKES]
            self.misfits = tuple(self._cp.misfit(self.entry, mistake) for mistake in mistakes)
            self.kill(Trouble(Cause.BAD_CONFIG, "\n".join(map(str, self.misfits))))
        else:
            self.kill(Trouble(Cause.BAD_PROGRAM, refusal.text))

    def _is_ready(self) -> None:
        if self.ready_at is not None or self._exited.is_set():
            return
        self.ready_at = trio.current_time()
        now = clock.stamp()
        born = now - (self.ready_at - (self.born_at or self.ready_at))
        about = {"pid": self.pid, "seal": list(self.seal), "born": born, "ready": now}
        self._cp.host.keep(f"ready/{self._key}", about)
        self._life.became_ready(self)

    # -- progress ------------------------------------------------------------------------------------------------------

    async def _keep_watch(self) -> None:
        """End the process when it makes no progress any more, with its stacks in the log."""
        verdict = await self.pulse.run()
        self.kill(Trouble(Cause.WATCHDOG, f"hung: {verdict}"))

    def set(self, entry: MachineEntry) -> None:
        """Go on with a definition that asks for no other process."""
        if entry.watchdog != self.entry.watchdog:
            self.pulse.changed()
        told, self.entry = self.entry.log.policy, entry
        if "block" in (told, entry.log.policy) and told != entry.log.policy and self._control is not None:
            self._cp.nursery.start_soon(self._tell_log)

    async def _tell_log(self) -> None:
        with contextlib.suppress(PathError, Rejected):  # it ends, or is of a release that knows no such verb
            await self.ask("log", {"policy": self.entry.log.policy})

    # -- end -----------------------------------------------------------------------------------------------------------

    def kill(self, trouble: Trouble) -> None:
        """End the process at once."""
        if self._trouble is None:
            # It may be what the machine said.
            self._trouble = Trouble(trouble.cause, self._cp.secrets.hide(trouble.text))
        self._cp.host.signal(self.name, self.generation, signal.SIGKILL)

    def leave(self, why: Trouble = ASKED, *, drain: bool = False, grace: float | None = None) -> None:
        """Let the process end in order; with ``drain`` what it has not begun is left to whoever comes after it."""
        if self.leaving is None:
            self.leaving, self._drains = why, drain
            self._grace = self.entry.grace if grace is None else grace
            self._asked.set()
            self._cp.syslog.release(self.name, self.generation)  # who waits for room hears nothing

    async def _end_when_asked(self) -> None:
        """Ask, wait for a bounded time, force: each step is a record."""
        await self._asked.wait()
        with trio.move_on_after(self._grace):
            with contextlib.suppress(PathError):  # it is ending already
                await self.ask("drain" if self._drains and self._begun else "stop")
            await self._exited.wait()
        if not self._exited.is_set():
            text = f"{self.name} did not stop within {self._grace:.0f} s and is ended by force"
            self._cp.syslog.write(NOTICE, text, fields={"of": self.name, "generation": self.generation})
            self._cp.host.signal(self.name, self.generation, signal.SIGKILL)

    async def _end_without_control(self, control: Path) -> None:
        """A machine that cannot be told anything any more is ended."""
        await control.wait_severed()
        why = control.severed
        if isinstance(why, PathSevered) and why.code == "violation":
            text = f"it broke the protocol on its control path: {why.text}"
            self.kill(Trouble(Cause.VIOLATION, text))
        # Otherwise it is most likely ending just now, and its exit says more than we could.
        with trio.move_on_after(LEAVING):
            await self._exited.wait()
        if not self._exited.is_set():
            self.kill(Trouble(Cause.VIOLATION, "it closed its control path and did not end"))

    # -- the control path ----------------------------------------------------------------------------------------------

    async def _on_message(self, message: Message) -> Any:
        close_all(message.descriptors)
        if not message.wants_reply:
            # Its own runtime sends nothing of the kind, and what is answered with a descriptor needs an answer.
            text = "it broke the protocol on its control path: it asked for something and wants no answer"
            self.kill(Trouble(Cause.VIOLATION, text))
            raise Rejected("violation")
        match message.body:
            case ["ready", {**more}] if not more:
                self._is_ready()
                return None
            case ["connect", {"edge": str(name), "wait": bool(wait), **more}] if not more:
                return await self._connect(name, wait, None, message)
            case ["connect", {"edge": str(name), "wait": bool(wait), "instance": int(number), **more}] if not more:
                return await self._connect(name, wait, number, message)
            case ["rebind", {"path": int(ident), "stream": bool(stream), "wanted": bool(wanted), **more}] if not more:
                descriptor = await self._cp.switchboard.rebind(
                    self.name, self.generation, ident, stream=stream, wanted=wanted
                )
                return await hand_over(message, None, descriptor)
            case ["segment", {"name": str(name), "size": int(size), "keep": bool(keep), **more}] if not more:
                return await self._lending.lend(message, await self._cp.segments.grant(self, name, size, keep=keep))
            case ["socket", {"address": str(address), "kind": str(kind), **more}] if not more:
                return await self._lending.lend(message, await self._cp.host_sockets.connect(self, address, kind))
        raise Rejected("unknown-verb", "the control program knows ready, connect, rebind, segment and socket")

    def _failed(self, message: Message, exc: Exception) -> None:
        # A bug of ours. It must not end the system because a machine has found it.
        trace = "".join(traceback.format_exception(exc))
        self._cp.syslog.write(CRITICAL, f"a request of {self.name} failed:\n{trace}")

    async def _connect(self, name: str, wait: bool, instance: int | None, message: Message) -> None:
        edge = self._edges.get(name)
        if edge is None:
            # Its own runtime asks only for declared edges: this is a forged message, and a record.
            self._cp.offences.tell(self.name, "edge", f"{self.name} asked for an edge it has not: {name[:64]!r}")
            raise AccessDenied(f"{self.name} has no edge {name[:64]!r}")
        made = await self._cp.switchboard.connect(self.name, self.generation, edge, wait=wait, instance=instance)
        await hand_over(message, {"path": made.ident, "instances": made.instances}, made.descriptor)

    async def offer(self, circuit: Circuit, descriptor: int) -> None:
        """Hand it its end of a path; see :class:`~retinue.cp.switchboard.Target`."""
        arguments = {"path": circuit.ident, "edge": circuit.label, "peer": circuit.origin}
        await self.ask("offer", {**arguments, "limit": min(circuit.edge.limit, wire.MAX_LIMIT)}, (descriptor,))

    async def tell_instances(self, instances: Callable[[str], int]) -> None:
        """How many machines are behind its edges by now."""
        with contextlib.suppress(PathError):  # it ends, and its successor is told at its birth
            for edge in self.entry.uses:
                if not edge.star:
                    await self.ask("edge", {"name": edge.name, "instances": instances(edge.to)})

    @property
    def overloaded(self) -> bool:
        """So much is on its way to it that it does not answer anyway."""
        return self._control is None or self._control.meter.outstanding > METERS_LIMIT

    async def ask(self, verb: str, arguments: dict[str, Any] | None = None, descriptors: tuple[int, ...] = ()) -> Any:
        """Ask the machine for something over its control path. Rejected as it says, PathError when it cannot hear."""
        reply = await self.ask_reply(verb, arguments, descriptors)
        close_all(reply.descriptors)
        return reply.body

    async def ask_reply(
        self, verb: str, arguments: dict[str, Any] | None = None, descriptors: tuple[int, ...] = ()
    ) -> Reply:
        """The same; the descriptors of the reply are the caller's to close."""
        if self._control is None:
            raise Rejected("not-ready", f"{self.name} has no process")
        try:
            return await self._control.call_reply([verb, arguments or {}], descriptors=descriptors)
        except WrongMode:
            text = "it broke the protocol on its control path: it made a byte stream of it"
            self.kill(Trouble(Cause.VIOLATION, text))
            self._control.sever("violation", "a control path carries messages")
            raise
