"""What a program gets from a path: a message that came in, or the reply to a call of its own."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import trio

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


@attrs.define(eq=False)
class Message:
    """One incoming message.

    ``body`` is any msgpack value. A message with ``wants_reply`` counts against the path's limit until it is answered
    by :meth:`reply` or :meth:`reject`; ``purged`` is set when the caller withdraws it, and it must be answered all the
    same (the answer then goes nowhere).
    """

    path: "Path"
    id: int
    body: Any
    wants_reply: bool
    _descriptors: tuple[int, ...] = ()
    _taken: bool = attrs.field(default=False, init=False, repr=False)
    purged: trio.Event = attrs.field(factory=trio.Event, repr=False)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What came with it. Whoever has looked at them has to close them; else they are closed with the message."""
        self._taken = True
        return self._descriptors

    def __del__(self) -> None:
        if not self._taken:
            close_all(self._descriptors)

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
