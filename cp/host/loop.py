"""The loop of a process without an event loop: its links and its signals in one poll. Standard library only."""

import contextlib
import os
import select
import signal
from collections.abc import Callable
from typing import Any

from retinue.cp.host.errors import LinkError
from retinue.cp.host.link import AT_ONCE, CROWDED_SECONDS, Link, close_all

__all__ = ["Hear", "Loop", "Lost"]

Hear = Callable[[dict[str, Any], list[int]], None]
"""Takes a message and its descriptors. Those that it leaves in the list are closed."""
Lost = Callable[[str], None]
"""Takes why a link is not heard any more: empty if the other end is gone."""


class Loop:
    """Waits for links and signals together, and for nobody longer than for the others."""

    def __init__(self, *signals: int) -> None:
        """``signals`` do nothing from here on but to end a wait."""
        self._links: dict[int, tuple[Link, Hear, Lost]] = {}
        self._poll = select.poll()
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, lambda *_: None)
        self._poll.register(self._wake, select.POLLIN)

    def __contains__(self, link: Link) -> bool:
        return self._links.get(link.fileno(), (None,))[0] is link

    def add(self, link: Link, hear: Hear, lost: Lost) -> None:
        """Hear a link, until it is removed or lost."""
        self._links[link.fileno()] = link, hear, lost
        self._poll.register(link.fileno(), select.POLLIN)

    def remove(self, link: Link) -> None:
        """Hear no more of a link."""
        if link in self:
            del self._links[link.fileno()]
            self._poll.unregister(link.fileno())

    def turn(self, seconds: float | None = None) -> bytes:
        """Wait until something happens, send what waits and hear what came. Returns the signals, one byte each."""
        for descriptor, (link, _, _) in self._links.items():
            writes = link.waiting and not link.crowded
            self._poll.modify(descriptor, select.POLLIN | (select.POLLOUT if writes else 0))
            if link.crowded:
                seconds = CROWDED_SECONDS if seconds is None else min(seconds, CROWDED_SECONDS)
        ready = dict(self._poll.poll(None if seconds is None else seconds * 1000))
        for descriptor, (link, _, _) in list(self._links.items()):
            if link.waiting:
                with contextlib.suppress(ConnectionError):  # the end of it is heard, too
                    link.flush()
            if ready.get(descriptor, 0) & ~select.POLLOUT:
                for _ in range(AT_ONCE):
                    if not self.hear(link):
                        break
        with contextlib.suppress(BlockingIOError):
            return os.read(self._wake, 4096)
        return b""

    def hear(self, link: Link) -> bool:
        """Take one message from a link. Returns False if there is none."""
        if link not in self:
            return False
        _, hear, lost = self._links[link.fileno()]
        why = ""
        try:
            received = link.receive()
            if received is not None:
                message, descriptors = received
                try:
                    hear(message, descriptors)
                finally:
                    close_all(descriptors)
                return True
        except BlockingIOError:
            return False
        except LinkError as error:
            why = str(error)
        self.remove(link)
        lost(why)
        return False
