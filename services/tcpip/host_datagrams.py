"""Datagrams from a machine to a UNIX socket of the host, by way of the control program.

Nothing is dropped: a machine that sends faster than the socket is read waits. Nothing comes back, for the socket at
this end has no name.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from retinue.pipes import Path, PathError, PathSevered, Rejected
from retinue.pipes.message import close_all
from retinue.svm.outside import FLUSH, MAX_DATAGRAM

# Paths to the control program for one machine. There are only 16 for all (cp/host_sockets.py).
MOST: Final = 4
# Seconds that datagrams of a machine which has gone may wait for room.
LAST: Final = 1.0


class Links:
    """The paths to the control program, which ``connect`` makes, by the machine that asked for them."""

    def __init__(self, connect: Callable[[str], Awaitable[Path]]) -> None:
        self._connect = connect
        self._asked: Counter[str] = Counter()
        self._made: list[tuple[str, Path]] = []

    async def make(self, machine: str, address: str) -> Path:
        """Another one. Rejected ``exhausted`` when the machine has MOST, or as the control program says."""
        self._made = [(owner, link) for owner, link in self._made if link.severed is None]
        if self._asked[machine] + sum(owner == machine for owner, _ in self._made) >= MOST:
            raise Rejected("exhausted", f"{MOST} paths of {machine} to UNIX sockets for datagrams are open")
        self._asked[machine] += 1
        try:
            link = await self._connect(address)
        finally:
            self._asked[machine] -= 1
        self._made.append((machine, link))
        return link


async def hand_on(path: Path, socket: Path) -> None:
    """Carry what comes on a machine's path until one of the two has ended; then both have."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, path, nursery.cancel_scope)
        nursery.start_soon(_end_with, path, socket)
        try:
            await _carry(path, socket)
        except PathError:
            _tell(path, socket)
        nursery.cancel_scope.cancel()
    socket.sever()


async def _carry(path: Path, socket: Path) -> None:
    """Raises PathError when the socket takes nothing more."""
    async for message in path:
        close_all(message.descriptors)
        untrusted = message.body
        if message.wants_reply:
            if untrusted != FLUSH:
                path.reject(message, "unknown-message", f"after unix.open there is one call, {FLUSH['type']}")
                continue
            await socket.call(None)
            path.reply(message, None)
        elif type(untrusted) is not bytes or len(untrusted) > MAX_DATAGRAM:
            path.sever("refused", f"a datagram is a one-way message of bytes, {MAX_DATAGRAM} at most")
        else:
            try:
                socket.send_nowait(untrusted)
            except trio.WouldBlock:
                await socket.send(untrusted)


async def _watch(path: Path, scope: trio.CancelScope) -> None:
    await path.wait_severed()
    if isinstance(path.severed, PathSevered) and path.severed.code == "lost":
        scope.deadline = trio.current_time() + LAST
    else:  # what the machine sends next, over another path, must not come between
        scope.cancel()


async def _end_with(path: Path, socket: Path) -> None:
    await socket.wait_severed()
    _tell(path, socket)


def _tell(path: Path, socket: Path) -> None:
    """The socket has gone: the machine learns why."""
    why = socket.severed
    if isinstance(why, PathSevered):
        path.sever(why.code, why.text)
