"""A word and a descriptor in one packet, and what is no parcel."""

import os
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.pipes import socket_pair
from retinue.pipes.parcel import CONTROL, receive_descriptor, send_descriptor


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    before = descriptors()
    left, right = socket_pair()
    with left, right:
        yield left, right
    assert_none_left(before)


async def test_descriptor_arrives(pair: tuple[socket.socket, socket.socket]) -> None:
    """As a copy, whether it was there before or is waited for."""
    left, right = pair
    found: list[int] = []

    async def receive() -> None:
        found.append(await receive_descriptor(right, CONTROL))

    with trio.fail_after(5):
        reading, writing = os.pipe()
        send_descriptor(left, CONTROL, writing)
        await receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            send_descriptor(left, CONTROL, writing)
        for number, descriptor in enumerate(found):
            os.write(descriptor, b"%d" % number)
            os.close(descriptor)
        os.close(writing)
        assert os.read(reading, 10) == b"01"
        os.close(reading)


async def test_everything_else_is_thrown_away(pair: tuple[socket.socket, socket.socket]) -> None:
    """Other words, with or without descriptors, and more than one."""
    left, right = pair
    left.send(b"nothing with it")
    left.send(bytes(1000))
    send_descriptor(left, b"another word", left.fileno())
    socket.send_fds(left, [CONTROL], [left.fileno()] * 2)
    socket.send_fds(left, [b""], [left.fileno()])
    send_descriptor(left, CONTROL, left.fileno())
    with trio.fail_after(5):
        os.close(await receive_descriptor(right, CONTROL))


async def test_word_without_its_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    """As it arrives where there is no room for it."""
    left, right = pair
    left.send(CONTROL)
    with trio.fail_after(5), pytest.raises(OSError, match="no room for the descriptor of the parcel control"):
        await receive_descriptor(right, CONTROL)


async def test_end(pair: tuple[socket.socket, socket.socket]) -> None:
    """Nobody is there who could send one; also when the other end left something unread behind."""
    left, right = pair
    right.send(b"never read")
    left.close()
    with trio.fail_after(5), pytest.raises(EOFError):
        await receive_descriptor(right, CONTROL)


async def test_sender_never_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    """And gets the descriptor back, so to say."""
    left, _ = pair

    def fill() -> None:
        while True:
            send_descriptor(left, CONTROL, left.fileno())

    with pytest.raises(BlockingIOError):
        fill()
