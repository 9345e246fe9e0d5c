"""One source, many followers, none of which can hold the source up."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

# Items a follower may be behind before it loses some: a busy second of a system.
BEHIND: Final = 4_000


class Follower:
    """One follower's place in the stream, with what it wants of an item: that, something made of it, or None.

    What it was too slow for is counted until :meth:`take_lost`.
    """

    def __init__(self, wanted: Callable[[Any], Any] | None = None, machines: Collection[str] | None = None) -> None:
        self._wanted = wanted
        self._machines = machines
        self._send, self.items = trio.open_memory_channel[Any](BEHIND)
        self._lost = 0

    def wants(self, machine: str) -> bool:
        """Whether it may want a record of this machine."""
        return self._machines is None or machine in self._machines

    def offer(self, item: Any) -> None:
        if self._wanted is not None and (item := self._wanted(item)) is None:
            return
        try:
            self._send.send_nowait(item)
        except trio.WouldBlock:
            self._lost += 1

    async def take(self, most: int) -> list[Any]:
        """What there is, at most so many items; waits for the first one. None at all: there will be no more."""
        taken: list[Any] = []
        try:
            taken.append(await self.items.receive())
            while len(taken) < most:
                taken.append(self.items.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            pass
        return taken

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

    def followers_of(self, machine: str) -> list[Follower]:
        """Those to whom a record of this machine is to be offered."""
        return [] if self._ended else [each for each in self._followers if each.wants(machine)]

    def publish(self, item: Any) -> None:
        if not self._ended:
            for follower in self._followers:
                follower.offer(item)

    @contextmanager
    def follow(
        self, wanted: Callable[[Any], Any] | None = None, machines: Collection[str] | None = None
    ) -> Iterator[Follower]:
        """Everything published from now to the end of the block, as far as it is wanted; records only of ``machines``.

        That saves making the records of others.
        """
        follower = Follower(wanted, machines)
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
