"""Bytes between a connection and a path: both ends in one process."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from retinue.pipes import Path, PathSevered, PathStream, SocketTransport, State, open_path, socket_pair
from retinue.svm.relay import Relay


class Pair:
    """A relay between ``near``, which is the other end of its connection, and ``far``, the other end of its path."""

    def __init__(self, near: trio.SocketStream, far: PathStream, relay: Relay) -> None:
        self.near, self.far, self.relay = near, far, relay
        self.ended = trio.Event()
        self.gone = False  # what the connection's end is said to be

    async def hung_up(self) -> bool:
        return self.gone

    def why(self) -> str:
        """How the path has ended."""
        assert isinstance(self.far.path.severed, PathSevered)
        return self.far.path.severed.code


async def opened(path: Path) -> None:
    while path.session.state is State.OPENING:
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def relay() -> AsyncIterator[Pair]:
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in socket.socketpair())
    one, other = (SocketTransport(each) for each in socket_pair())
    with trio.fail_after(20):
        async with open_path(one) as here, open_path(other) as there, trio.open_nursery() as nursery:
            await opened(here)
            await opened(there)

            async def hung_up() -> bool:
                return await pair.hung_up()

            async def run() -> None:
                await pair.relay.run()
                pair.ended.set()

            pair = Pair(ours, there.stream(), Relay(theirs, here, what="wire", hung_up=hung_up))
            nursery.start_soon(run)
            yield pair
            await pair.ended.wait()
            await ours.aclose()


async def test_relay_carries_both_ways_with_half_close() -> None:
    """Each direction ends for itself; the path is severed in order when both have."""
    async with relay() as pair:
        await pair.near.send_all(b"question")
        await pair.near.send_eof()
        assert await pair.far.receive_some() == b"question"
        assert await pair.far.receive_some() == b""
        await pair.far.send_all(b"answer")
        assert await pair.near.receive_some() == b"answer"
        await pair.far.send_eof()
        assert await pair.near.receive_some() == b""
        await pair.ended.wait()
        await pair.far.path.wait_severed()
        assert pair.why() == "closed"


async def test_relay_does_not_wait_for_a_connection_that_has_hung_up() -> None:
    """Nobody would read what comes."""
    async with relay() as pair:
        pair.gone = True
        await pair.near.send_all(b"the end")
        await pair.near.send_eof()
        assert await pair.far.receive_some() == b"the end"
        assert await pair.far.receive_some() == b""
        await pair.far.path.wait_severed()
        assert pair.why() == "closed"


async def test_relay_says_that_a_connection_broke() -> None:
    """An error at the other end, and no end."""
    async with relay() as pair:

        async def broke() -> bool:
            raise trio.BrokenResourceError

        pair.hung_up = broke  # type: ignore[method-assign]
        await pair.near.send_all(b"the beg")
        await pair.near.send_eof()
        assert await pair.far.receive_some() == b"the beg"
        with pytest.raises(trio.BrokenResourceError, match="the wire is gone"):
            await pair.far.receive_some()
        assert pair.why() == "lost"


async def test_relay_closes_the_connection_when_the_path_has_ended() -> None:
    """Whoever ended it, and however."""
    async with relay() as pair:
        pair.far.abort("enough")
        assert await pair.near.receive_some() == b""


@pytest.mark.parametrize("outward", [True, False])
async def test_relay_has_back_pressure(outward: bool) -> None:
    """A reader that does not read stops the writer; nothing is lost meanwhile."""
    async with relay() as pair:
        writer, reader = (pair.far, pair.near) if outward else (pair.near, pair.far)
        sent = 0
        with trio.move_on_after(0.2):
            while True:
                await writer.send_all(bytes(1000))
                sent += 1000
        assert sent < 4_000_000
        received = 0
        while received < sent:
            received += len(await reader.receive_some())
        pair.far.abort()
