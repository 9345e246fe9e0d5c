"""Answers with descriptors to a machine that asks for ever and never reads. We are both."""

import contextlib
import os
import pathlib

import pytest
import trio
import trio.testing

from retinue.cp.lending import MOST_UNREAD, Lending
from retinue.pipes import Message, SocketTransport, open_path, socket_pair, wire
from retinue.pipes.link import MOST_CARRYING

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture
def lent(tmp_path: pathlib.Path) -> str:
    """A file, of which descriptors are asked for."""
    (tmp_path / "lent").touch()
    return str(tmp_path / "lent")


def descriptors(of: str) -> int:
    found = 0
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the list itself
            found += os.readlink(f"/proc/self/fd/{each}") == of
    return found


async def test_so_many_wait_and_the_rest_is_refused(lent: str) -> None:
    """Not one descriptor more is open, whatever is asked; all of them are closed with the path."""
    lending, (ours, theirs) = Lending("PRISONER"), socket_pair()
    asked = 0

    async def answer(message: Message) -> None:
        nonlocal asked
        asked += 1
        await lending.lend(message, os.open(lent, os.O_RDONLY))

    with trio.fail_after(10), theirs:
        async with open_path(SocketTransport(ours), limit=1000) as path, trio.open_nursery() as nursery:
            nursery.start_soon(path.serve, answer)
            theirs.send(wire.encode([wire.Kind.HELLO, wire.VERSION, 1000, 77, 0, 0, 0, 0, 0]))
            for number in range(1, 501):
                theirs.send(wire.encode([wire.Kind.CALL, number, None]))
                if number % 50 == 0:
                    await trio.testing.wait_all_tasks_blocked()
            assert asked == 500
            assert path.severed is None
            assert MOST_UNREAD <= descriptors(lent) <= MOST_UNREAD + MOST_CARRYING
            path.sever()
        await trio.testing.wait_all_tasks_blocked()
        assert descriptors(lent) == 0


async def test_who_reads_is_answered_for_ever(lent: str) -> None:
    lending, (ours, theirs) = Lending("WORK"), socket_pair()

    async def answer(message: Message) -> None:
        await lending.lend(message, os.open(lent, os.O_RDONLY))

    with trio.fail_after(10):
        async with (
            open_path(SocketTransport(ours)) as path,
            open_path(SocketTransport(theirs)) as other,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(path.serve, answer)
            for _ in range(2 * MOST_UNREAD):
                (found,) = (await other.call_reply()).descriptors
                os.close(found)
            path.sever()
