"""How a machine leaves the paths that it serves to its successor: each as soon as no message of it is outstanding."""

import contextlib
import weakref
from collections.abc import Iterable
from typing import Final

import trio

from retinue.pipes import Path, PathError

# Seconds until the program is told to stop although messages are still being answered.
SETTLE: Final = 1.0


class Drain:
    """The served paths of a machine that leaves; ``begun`` is set when it does. Paths are released in ``nursery``."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.begun = trio.Event()
        self._nursery = nursery
        self._releasing: dict[Path, trio.CancelScope] = {}
        self._kept: weakref.WeakSet[Path] = weakref.WeakSet()
        self._released = trio.lowlevel.ParkingLot()

    def begin(self, paths: Iterable[Path]) -> None:
        """Release the paths from now on. What is a byte stream, or becomes one, stays the program's."""
        self.begun.set()
        for path in paths:
            if path not in self._kept:
                scope = self._releasing[path] = trio.CancelScope()
                self._nursery.start_soon(self._release, path, scope)

    def keep(self, path: Path) -> None:
        """The path is about to become a byte stream, whatever it looks like: it is not released."""
        self._kept.add(path)
        if (scope := self._releasing.get(path)) is not None:
            scope.cancel()

    async def _release(self, path: Path, scope: trio.CancelScope) -> None:
        try:
            with contextlib.suppress(PathError):  # it has ended in another way, or is a byte stream
                with scope:
                    await path.release()
                if scope.cancelled_caught:
                    await path.resume()
        finally:
            del self._releasing[path]
            if not self._releasing:
                self._released.unpark_all()

    async def wait_released(self) -> None:
        """Until no path waits to be released; at once before it has begun."""
        await trio.lowlevel.checkpoint()
        while self._releasing:
            await self._released.park()
