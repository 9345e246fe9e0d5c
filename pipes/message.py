"""What a program gets from a path: a message that came in, or the reply to a call of its own."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import trio

from retinue.pipes.wire import Frame, Kind, trace_of

if TYPE_CHECKING:
    from retinue.pipes.path import Path


def copy_all(descriptors: Sequence[int]) -> tuple[int, ...]:
    """Duplicates of descriptors, all or none. OSError when one is not open or there is no room for more."""
    copies: list[int] = []
    try:
        for each in descriptors:
            copies.append(os.dup(each))
    except OSError:
        close_all(copies)
        raise
    return tuple(copies)


def close_all(descriptors: tuple[int, ...] | list[int]) -> None:
    """Close descriptors that nobody wants."""
    for each in descriptors:
        os.close(each)


@attrs.frozen
class Reply:
    """The answer to a call. ``descriptors`` are the caller's to close."""

    body: Any
    descriptors: tuple[int, ...] = ()


class Message:
    """One incoming message.

    ``body`` is any msgpack value. A call (``wants_reply``) counts against the path's limit until it is answered by
    :meth:`reply` or :meth:`reject`, which it must be even when its caller has withdrawn it (``purged``; the answer
    then goes nowhere). ``redelivered``: a predecessor of this machine may have had it before, whole or in part.
    """

    __slots__ = ("_descriptors", "_purged", "_replayed", "body", "epoch", "frame", "path", "scope")

    def __init__(
        self, path: "Path", frame: Frame, epoch: int, replayed: tuple[int, int], descriptors: "Claimed | None" = None
    ) -> None:
        self.path = path
        self.body: Any = frame[2]
        self.epoch = epoch  # which of the peers that the path has had sent it
        self.scope: trio.CancelScope | None = None  # of its handler
        self.frame = frame  # as it came, but for the deadline: that of this end's clock
        self._replayed = replayed  # up to where a predecessor had messages, in each lane, when it came
        self._descriptors = descriptors
        self._purged: trio.Event | None = None

    def __repr__(self) -> str:
        return f"<Message {self.id} on {self.path!r}>"

    @property
    def id(self) -> int:
        """Its number on the path: 1, 2, 3 ... for ordinary ones, -1, -2, -3 ... for those with priority."""
        number: int = self.frame[1]
        return number

    @property
    def wants_reply(self) -> bool:
        """Whether it is a call."""
        return bool(self.frame[0] == Kind.CALL)

    @property
    def priority(self) -> bool:
        """Whether it has overtaken ordinary messages."""
        return self.id < 0

    @property
    def redelivered(self) -> bool:
        """Whether a predecessor of this end may have been given it before."""
        ident = self.id
        return ident <= self._replayed[0] if ident > 0 else -ident <= self._replayed[1]

    @property
    def deadline(self) -> float:
        """The trio time after which nobody waits for the reply any more; infinity when the caller waits for ever."""
        frame = self.frame
        return frame[4] if len(frame) > 4 and type(frame[4]) is float else math.inf

    @property
    def trace(self) -> str | None:
        """The id of the trace that its sender works for, 32 lower-case hexadecimal digits; None without one."""
        trace = trace_of(self.frame)
        return None if trace is None else trace.hex()

    @property
    def purged(self) -> trio.Event:
        """Set when the caller does not wait any more: it has withdrawn the call, or is gone."""
        if self._purged is None:
            self._purged = trio.Event()
        return self._purged

    @property
    def withdrawn(self) -> bool:
        """Whether ``purged`` is set."""
        return self._purged is not None and self._purged.is_set()

    def withdraw(self) -> None:
        """Set ``purged`` and cancel the handler; the path calls this."""
        self.purged.set()
        if self.scope is not None:
            self.scope.cancel()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What came with it. Whoever has looked at them has to close them; else they are closed with the message."""
        return self._descriptors.take() if self._descriptors is not None else ()

    async def reply(self, body: Any = None, *, descriptors: tuple[int, ...] = ()) -> None:
        """Answer a call; the descriptors are copied. No effect when the path is severed or the call was withdrawn.

        :exc:`WrongMode` for a one-way message or a second answer, LimitExceeded or TypeError for a body that cannot go.
        """
        self.path.reply(self, body, descriptors)
        await trio.lowlevel.checkpoint()

    async def reject(self, code: str, text: str = "", detail: Any = None) -> None:
        """Refuse a call; the same rules as for :meth:`reply`."""
        self.path.reject(self, code, text, detail)
        await trio.lowlevel.checkpoint()


class Claimed:
    """Descriptors that came with a message: closed with it unless its program has taken them."""

    __slots__ = ("_descriptors", "_taken")

    def __init__(self, descriptors: tuple[int, ...]) -> None:
        self._descriptors = descriptors
        self._taken = False

    def take(self) -> tuple[int, ...]:
        """They are the program's from now on."""
        self._taken = True
        return self._descriptors

    def __del__(self) -> None:
        if not self._taken:
            close_all(self._descriptors)
