"""One source, many followers, none of which can hold the source up."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

# Items a follower may be behind before it loses some: a busy second of a system.
BEHIND: Final = 4_000


class Follower:
    """One follower's place in the stream, with what it wants of an item: that, something made of it, or None.

    What it was too slow for is counted until :meth:`take_lost`.
    """

    def __init__(self, wanted: Callable[[Any], Any] | None = None) -> None:
        self._wanted = wanted
        self._send, self.items = trio.open_memory_channel[Any](BEHIND)
        self._lost = 0

    def offer(self, item: Any) -> None:
        if self._wanted is not None and (item := self._wanted(item)) is None:
            return
        try:
            self._send.send_nowait(item)
        except trio.WouldBlock:
            self._lost += 1

    def end(self) -> None:
        """Nothing more comes: the iteration over :attr:`items` ends after what is there."""
        self._send.close()

    def take_lost(self) -> int:
        """How many items were lost since the last time this was asked."""
        lost, self._lost = self._lost, 0
        return lost


class Broadcast:
    """Hands each item to every follower that is there."""

    def __init__(self) -> None:
        self._followers: set[Follower] = set()
        self._ended = False
        self._left = trio.lowlevel.ParkingLot()

    @property
    def followed(self) -> bool:
        """Whether there is anybody to publish for."""
        return bool(self._followers) and not self._ended

    def publish(self, item: Any) -> None:
        if not self._ended:
            for follower in self._followers:
                follower.offer(item)

    @contextmanager
    def follow(self, wanted: Callable[[Any], Any] | None = None) -> Iterator[Follower]:
        """Everything published from now to the end of the block, as far as it is wanted."""
        follower = Follower(wanted)
        self._followers.add(follower)
        if self._ended:
            follower.end()
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            self._left.unpark_all()

    async def finish(self) -> None:
        """Publish nothing more; returns when every follower has taken what there was and left."""
        self._ended = True
        for follower in self._followers:
            follower.end()
        while self._followers:
            await self._left.park()
