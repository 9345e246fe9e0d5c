"""``*CP`` and ``*LOG`` as services: what may be asked of a running system, and by whom.

Everybody asks in the same way, over a path: ``[verb, {arguments}]``. The operator at the socket may ask everything; a
machine with an edge to ``*CP`` may look, one with an edge to ``*LOG`` may read and follow the records.
"""

import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.cp.broadcast import Follower
from retinue.cp.circuit import label
from retinue.cp.edges import survey
from retinue.cp.ring import Ring
from retinue.cp.syslog import CRITICAL
from retinue.cp.tap import RECORDED, SHOWN, Lost, Tap, TapFailed
from retinue.pipes import AccessDenied, Message, Path, PathError, Rejected, Reply
from retinue.pipes.message import close_all

if TYPE_CHECKING:
    from retinue.cp.system import ControlProgram

# Records in one answer: what fits one message with room to spare.
MOST_RECORDS: Final = 10_000
# Bytes of records in one answer: well below what one message may have.
ANSWER_ROOM: Final = 16 * 1024 * 1024
# Followers on one path: each holds its own place in the stream.
MOST_FOLLOWERS: Final = 8
# Items of a follower that are on their way at once.
IN_FLIGHT: Final = 32

# Taps on one path.
MOST_TAPS: Final = 4

ALL: Final = frozenset({"status", "ps", "edges", "logs", "follow", "tap", "connect", "down", "detach"})
LOOK: Final = frozenset({"status", "ps", "edges"})
READ: Final = frozenset({"logs", "follow"})

Verb = Callable[["OperatorPath", dict[str, Any]], Awaitable[Any]]


class OperatorPath:
    """One path to the control program, with the verbs that whoever is at its other end may use."""

    def __init__(self, cp: "ControlProgram", path: Path, allowed: frozenset[str], who: str) -> None:
        self._cp = cp
        self._path = path
        self._allowed = allowed
        self._who = who
        self._nursery: trio.Nursery | None = None
        self._followers = 0
        self._taps = 0

    async def serve(self) -> None:
        """Answer until the path has ended."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._path.serve(self._handle, failed=self._failed)
            self._cp.offences.tell_violation(self._who, self._path)
            nursery.cancel_scope.cancel()

    async def _handle(self, message: Message) -> Any:
        close_all(message.descriptors)
        match message.body:
            case [str(verb), dict(arguments)] if verb in _VERBS:
                pass
            case [str(verb), dict()]:
                raise Rejected("unknown-verb", f"the control program does not know {verb[:64]!r}", sorted(_VERBS))
            case _:
                raise Rejected("bad-arguments", "a request is [verb, {arguments}]")
        if verb not in self._allowed:
            raise AccessDenied(f"{self._who} may not {verb}: it may {', '.join(sorted(self._allowed))}")
        answer = await _VERBS[verb](self, arguments)
        if not isinstance(answer, Reply):
            return answer
        try:
            await message.reply(answer.body, descriptors=answer.descriptors)
        finally:
            close_all(answer.descriptors)

    def _failed(self, message: Message, exc: Exception) -> None:
        # A bug of ours. It must not end the system because somebody has asked a question.
        trace = "".join(traceback.format_exception(exc))
        self._cp.syslog.write(CRITICAL, f"a request of {self._who} failed:\n{trace}")

    # -- the verbs -----------------------------------------------------------------------------------------------------

    async def _status(self, arguments: dict[str, Any]) -> Any:
        _take(arguments, {})
        return self._cp.status()

    async def _ps(self, arguments: dict[str, Any]) -> Any:
        _take(arguments, {})
        return {"system": self._cp.name, "state": self._cp.state, "machines": self._cp.listing()}

    async def _edges(self, arguments: dict[str, Any]) -> Any:
        _take(arguments, {})
        return {"system": self._cp.name, "edges": await survey(self._cp)}

    async def _logs(self, arguments: dict[str, Any]) -> Any:
        machine, count = _take(arguments, {"machine": (str, None), "count": (int, 100)})
        self._known(machine)
        records = await self._cp.records(machine, max(0, min(count, MOST_RECORDS)))
        return {"records": list(Ring(MOST_RECORDS, ANSWER_ROOM, records))}

    async def _follow(self, arguments: dict[str, Any]) -> Any:
        machine, events, records, after = _take(
            arguments, {"machine": (str, None), "events": (bool, False), "records": (bool, True), "after": (int, None)}
        )
        self._known(machine)
        if self._followers >= MOST_FOLLOWERS:
            raise Rejected("exhausted", f"one path may follow {MOST_FOLLOWERS} times at once: open another path")
        assert self._nursery is not None
        return {"seq": await self._nursery.start(self._follow_on, machine, events, records, after)}

    async def _follow_on(
        self,
        machine: str | None,
        events: bool,
        records: bool,
        after: int | None,
        *,
        task_status: trio.TaskStatus[int],
    ) -> None:
        syslog = self._cp.syslog

        def wanted(item: Any) -> bool:
            kind, content = item
            if kind == "record":
                return records and (machine is None or content["machine"] == machine)
            return events and (machine is None or content["machine"] in (machine, None))

        self._followers += 1
        try:
            with syslog.broadcast.follow() as follower:
                missed = syslog.recent(machine, MOST_RECORDS, after=after) if records and after is not None else []
                task_status.started(syslog.last)
                for record in missed:
                    await self._path.send(["record", record])
                async with trio.open_nursery() as nursery:
                    slots = trio.Semaphore(IN_FLIGHT)
                    async for item in follower.items:
                        if wanted(item):
                            await slots.acquire()
                            nursery.start_soon(self._push, item, slots)
                        await self._tell_lost(follower)
                # Only whoever sees this knows that nothing is missing at the end.
                await self._path.send(["end", {}])
        except* PathError:
            pass  # the end of the path ends the follower as well
        finally:
            self._followers -= 1

    async def _push(self, item: Any, slots: trio.Semaphore) -> None:
        try:
            await self._path.send(item)
        finally:
            slots.release()

    async def _tell_lost(self, follower: Follower) -> None:
        if lost := follower.take_lost():
            await self._path.send(["lost", {"count": lost}])

    async def _tap(self, arguments: dict[str, Any]) -> Any:
        edge, record = _take(arguments, {"edge": (str, ""), "record": (bool, False)})
        self._check_tappable(edge)
        if self._taps >= MOST_TAPS:
            raise Rejected("exhausted", f"one path may tap {MOST_TAPS} edges at once: open another path")
        assert self._nursery is not None
        return {"paths": await self._nursery.start(self._tap_on, edge, record)}

    async def _tap_on(self, edge: str, record: bool, *, task_status: trio.TaskStatus[int]) -> None:
        tap = Tap(self._cp.topology.system.secret, secrets=self._cp.secrets, largest=RECORDED if record else SHOWN)
        paths = self._cp.switchboard.paths_by_edge()[edge]
        self._taps += 1
        try:
            async with self._cp.switchboard.tap(edge, tap):
                task_status.started(paths)
                while True:
                    read = await tap.read()
                    if isinstance(read, Lost):
                        await self._path.send(["lost", {"count": read.count}])
                    else:
                        await self._path.send(["messages", {"items": read}])
        except PathError:
            pass  # the end of the path ends the tap as well
        except TapFailed as exc:
            trace = "".join(traceback.format_exception(exc))
            self._cp.syslog.write(CRITICAL, f"the tap of {self._who} on {edge} failed:\n{trace}")
        finally:
            self._taps -= 1

    def _check_tappable(self, name: str) -> None:
        edges = {label(machine.name, edge): edge for machine in self._cp.topology.machines for edge in machine.uses}
        if name not in edges:
            known = [each for each, edge in edges.items() if not edge.star]
            raise Rejected("unknown-edge", f"there is no edge {name[:64]!r}", known)
        if edges[name].star:
            text = f"{name} leads to {edges[name].to}, a service of the control program, and cannot be tapped"
            raise Rejected("unknown-edge", text)

    async def _connect(self, arguments: dict[str, Any]) -> Any:
        (machine,) = _take(arguments, {"machine": (str, "")})
        if machine not in self._cp.lives:
            raise Rejected("unknown-machine", f"there is no machine {machine[:64]!r}", list(self._cp.lives))
        made = await self._cp.switchboard.connect_operator(machine)
        return Reply(None, (made.descriptor,))

    async def _down(self, arguments: dict[str, Any]) -> Any:
        (force,) = _take(arguments, {"force": (bool, False)})
        self._cp.stop("down", f"{self._who} ended it", force=force)

    async def _detach(self, arguments: dict[str, Any]) -> Any:
        _take(arguments, {})
        self._cp.reception.detach(self._path)

    def _known(self, machine: str | None) -> None:
        if machine is not None and machine != "CP" and machine not in self._cp.lives:
            raise Rejected("unknown-machine", f"there is no machine {machine[:64]!r}", ["CP", *self._cp.lives])


_VERBS: Final[dict[str, Verb]] = {
    "status": OperatorPath._status,
    "ps": OperatorPath._ps,
    "edges": OperatorPath._edges,
    "logs": OperatorPath._logs,
    "follow": OperatorPath._follow,
    "tap": OperatorPath._tap,
    "connect": OperatorPath._connect,
    "down": OperatorPath._down,
    "detach": OperatorPath._detach,
}


def _take(untrusted: dict[str, Any], expected: dict[str, tuple[type, Any]]) -> list[Any]:
    """The arguments in the order of ``expected`` (name -> type and default); None passes for every type."""
    for name in untrusted:
        if name not in expected:
            raise Rejected("bad-arguments", f"unknown argument {str(name)[:64]!r}", sorted(expected))
    values = []
    for name, (kind, default) in expected.items():
        value = untrusted.get(name, default)
        if value is not None and type(value) is not kind:
            raise Rejected("bad-arguments", f"{name} must be {kind.__name__}")
        values.append(default if value is None else value)
    return values
