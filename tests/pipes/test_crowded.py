"""How many memfds a path has out, and who waits until they come back."""

import subprocess
import sys
from typing import Any

import pytest
import trio
import trio.testing
from tests.pipes.test_draft import SIZE, filled
from tests.pipes.test_path import echo, open_ends
from tests.pipes.test_path_findings import no_other
from tests.pipes.test_path_hostile import make_pair

from retinue.pipes import Message, bulk, open_path

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture(params=["memory", "socket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_drafts_that_wait_hold_nobody_up(kind: str) -> None:
    """Those that are made beforehand, and those that are never sent: nobody gives their memory back."""
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, echo)
        assert await a.send_many([filled(a.draft(SIZE), bytes(SIZE)) for _ in range(2 * bulk.SMALL_SLOTS)]) == 8
        unsent = [a.draft(SIZE) for _ in range(bulk.SMALL_SLOTS)]
        assert await a.send_many([bytes(SIZE), *range(200)]) == 201
        for draft in unsent:
            draft.close()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("rebind", [None, no_other], ids=["plain", "rebind"])
async def test_calls_with_large_bodies_do_not_hold_one_way_messages_up(kind: str, rebind: Any) -> None:
    """Their bodies are kept for a successor until they are answered, which may be because of what is sent now."""
    enough = 200
    received = 0
    all_came = trio.Event()

    async def handler(message: Message) -> None:
        nonlocal received
        if message.wants_reply:
            await all_came.wait()
        else:
            received += 1
            if received == enough:
                all_came.set()

    ours, theirs = make_pair(kind)
    with trio.fail_after(10):
        async with (
            open_path(ours, rebind=rebind) as a,
            open_path(theirs, rebind=rebind) as b,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(b.serve, handler)
            async with trio.open_nursery() as callers:
                for _ in range(bulk.SMALL_SLOTS):
                    callers.start_soon(a.call, bytes(100_000))
                await trio.testing.wait_all_tasks_blocked()
                assert await a.send_many(range(enough)) == enough
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("rebind", [None, no_other], ids=["plain", "rebind"])
async def test_few_large_messages_of_many_are_in_memory(kind: str, rebind: Any) -> None:
    """However slow their receiver is, and though they are kept for a successor until it has received them."""
    ours, theirs = make_pair(kind)
    with trio.fail_after(10):
        async with (
            open_path(ours, rebind=rebind) as a,
            open_path(theirs, rebind=rebind) as b,
            trio.open_nursery() as nursery,
        ):
            most = 0

            async def handler(_: Message) -> None:
                nonlocal most
                assert a._shelf is not None
                most = max(most, len(a._shelf._out))
                await trio.testing.wait_all_tasks_blocked()

            nursery.start_soon(b.serve, handler)
            assert await a.send_many([bytes(100_000)] * 32) == 32
            assert most <= bulk.SMALL_SLOTS
            nursery.cancel_scope.cancel()


# As somebody who is not root: root may have any number of descriptors on their way.
CROWD = """
import os, resource, socket
import trio
from retinue.pipes import SocketTransport, open_path, socket_pair

if os.getuid() == 0:
    os.setgroups([])
    os.setresuid(65534, 65534, 65534)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
near.setblocking(False)
flying = 0
try:
    while True:
        socket.send_fds(near, [b"x"], [0] * 16)
        flying += 16
except OSError as exc:
    assert exc.strerror == os.strerror(109), exc  # ETOOMANYREFS


async def main():
    ours, theirs = socket_pair()
    with trio.fail_after(30):
        async with open_path(SocketTransport(ours)) as one, open_path(SocketTransport(theirs)) as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: one.send("with one", descriptors=(0,)))
                with trio.move_on_after(0.1) as waited:
                    await other.receive()
                assert waited.cancelled_caught
                assert one.severed is None
                for _ in range(0, flying, 16):
                    _, taken, _, _ = socket.recv_fds(far, 16, 16)
                    for each in taken:
                        os.close(each)
                message = await other.receive()
                assert message.body == "with one"
                assert len(message.descriptors) == 1
    print("arrived")


trio.run(main)
"""


def test_packet_waits_where_the_host_has_too_many_descriptors_on_their_way() -> None:
    done = subprocess.run([sys.executable, "-c", CROWD], capture_output=True, text=True, check=False)
    assert done.stdout == "arrived\n", done.stderr
