"""Descriptors that the control program hands over to a machine, as answers.

An answer waits in the control program until its machine reads, with a descriptor of its own. Of paths there are only so
many. What a machine may ask for again and again, the same each time, is bounded here.
"""

import os
from typing import Any, Final

from retinue.pipes import Message, Rejected

__all__ = ["MOST_UNREAD", "Lending", "hand_over"]

#: Answers of the kind that one machine has not read, as many as the kernel and its path have taken not counted.
MOST_UNREAD: Final = 64


async def hand_over(message: Message, body: Any, descriptor: int) -> None:
    """Answer with a descriptor, and close it. Rejected ``exhausted`` when there is no room for another."""
    try:
        await message.reply(body, descriptors=(descriptor,))
    except OSError as exc:
        raise Rejected("exhausted", f"the control program cannot hand over a descriptor: {exc.strerror}") from exc
    finally:
        os.close(descriptor)


class Lending:
    """To one process of the machine ``name``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._unread = 0

    async def lend(self, message: Message, descriptor: int) -> None:
        """As :func:`hand_over`, until the answer is written; Rejected ``exhausted`` also while too many are not."""
        if self._unread >= MOST_UNREAD:
            os.close(descriptor)
            raise Rejected("exhausted", f"{self._name} does not read {MOST_UNREAD} answers with descriptors")
        self._unread += 1
        try:
            await hand_over(message, None, descriptor)
            await message.path.wait_written()
        finally:
            self._unread -= 1
