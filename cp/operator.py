"""``*CP`` and ``*LOG`` as services: what may be asked of a running system, and by whom.

Everybody asks in the same way, over a path: ``[verb, {arguments}]``. The operator at the socket may ask everything; a
machine with an edge to ``*CP`` may look, one with an edge to ``*LOG`` may read and follow the records. What each verb
does is in :mod:`retinue.cp.requests`.
"""

import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.cp.requests import following, looking, steering
from retinue.cp.syslog import CRITICAL
from retinue.pipes import AccessDenied, Message, Path, Rejected, Reply
from retinue.pipes.message import close_all

if TYPE_CHECKING:
    from retinue.cp.system import ControlProgram

Verb = Callable[["OperatorPath", dict[str, Any]], Awaitable[Any]]

_VERBS: Final[dict[str, Verb]] = {
    "status": looking.status,
    "ps": looking.ps,
    "edges": looking.edges,
    "top": looking.top,
    "storage": looking.storage,
    "why": looking.why,
    "explain": looking.explanation,
    "events": following.events,
    "logs": following.logs,
    "follow": following.follow,
    "tap": following.tap,
    "connect": steering.connect,
    "start": steering.start,
    "stop": steering.stop,
    "restart": steering.restart,
    "replace": steering.replace,
    "plan": steering.plan,
    "set": steering.set_,
    "upgrade": steering.upgrade,
    "attend": steering.attend,
    "detach": steering.detach,
    "down": steering.down,
}
# Verbs whose requests may carry descriptors.
_CARRYING: Final = {"apply": steering.apply}

ALL: Final = frozenset({*_VERBS, *_CARRYING})
LOOK: Final = frozenset({"status", "ps", "edges", "top", "storage", "explain", "events"})
READ: Final = frozenset({"logs", "follow", "events"})


class OperatorPath:
    """One path to the control program, with the verbs that whoever is at its other end may use."""

    nursery: trio.Nursery
    """For as long as the path is served."""

    def __init__(self, cp: "ControlProgram", path: Path, allowed: frozenset[str], who: str) -> None:
        self.cp = cp
        self.path = path
        self.who = who
        self.followers = 0
        self.taps = 0
        self._allowed = allowed

    async def serve(self) -> None:
        """Answer until the path has ended."""
        async with trio.open_nursery() as self.nursery:
            await self.path.serve(self._handle, failed=self._failed)
            self.cp.offences.tell_violation(self.who, self.path)
            self.nursery.cancel_scope.cancel()

    async def _handle(self, message: Message) -> Any:
        try:
            answer = await self._answer(message.body, message.descriptors)
        finally:
            close_all(message.descriptors)
        if not isinstance(answer, Reply):
            return answer
        try:
            await message.reply(answer.body, descriptors=answer.descriptors)
        finally:
            close_all(answer.descriptors)

    async def _answer(self, untrusted_body: Any, descriptors: tuple[int, ...]) -> Any:
        match untrusted_body:
            case [str(verb), dict(arguments)] if verb in ALL:
                pass
            case [str(verb), dict()]:
                raise Rejected("unknown-verb", f"the control program does not know {verb[:64]!r}", sorted(ALL))
            case _:
                raise Rejected("bad-arguments", "a request is [verb, {arguments}]")
        if verb not in self._allowed:
            raise AccessDenied(f"{self.who} may not {verb}: it may {', '.join(sorted(self._allowed))}")
        if verb in _CARRYING:
            return await _CARRYING[verb](self, arguments, descriptors)
        return await _VERBS[verb](self, arguments)

    def _failed(self, message: Message, exc: Exception) -> None:
        # A bug of ours. It must not end the system because somebody has asked a question.
        trace = "".join(traceback.format_exception(exc))
        self.cp.syslog.write(CRITICAL, f"a request of {self.who} failed:\n{trace}")
