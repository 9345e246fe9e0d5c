"""The sockets of a run that nobody reads at the moment: one task waits for all of them and calls who is to read."""

import contextlib
import select
from collections.abc import Callable
from typing import Final

import trio

# With one shot also an end of the socket is told once, whoever looks at it.
IGNORED: Final = select.EPOLLONESHOT
WATCHED: Final = select.EPOLLIN | select.EPOLLONESHOT


class Watch:
    """Calls back once when a socket has something to read.

    :attr:`set` turns that on (``WATCHED``) and off (``IGNORED``) for a descriptor that was added: one system call each.
    It must be off while a task waits for the same descriptor, else both are woken.
    """

    __slots__ = ("_epoll", "_readers", "set")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self.set: Callable[[int, int], None] = self._epoll.modify

    def add(self, descriptor: int, reader: Callable[[], None]) -> None:
        """Watch it from now on; ``reader`` is called when there is something."""
        self._epoll.register(descriptor, WATCHED)
        self._readers[descriptor] = reader

    def remove(self, descriptor: int) -> None:
        """Forget it; to be done before it is closed, since another process may have the same socket."""
        del self._readers[descriptor]
        if self._readers:
            with contextlib.suppress(OSError):  # somebody else has closed it
                self._epoll.unregister(descriptor)
        else:
            self.close()

    def close(self) -> None:
        """Watch nothing any more."""
        if not self._epoll.closed:
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()

    @property
    def closed(self) -> bool:
        """Whether the last descriptor was removed: another watch is needed for the next."""
        return self._epoll.closed

    async def run(self) -> None:
        """Call back until there is nothing to watch."""
        while not self._epoll.closed:
            for descriptor, _ in self._epoll.poll(0):
                self._readers[descriptor]()
            with contextlib.suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(self._epoll.fileno())


_watch: Final[trio.lowlevel.RunVar[Watch | None]] = trio.lowlevel.RunVar("retinue.pipes.watch", None)


def watch() -> Watch:
    """The watch of this trio run."""
    found = _watch.get()
    if found is None or found.closed:
        found = Watch()
        _watch.set(found)
        trio.lowlevel.spawn_system_task(found.run)
    return found
