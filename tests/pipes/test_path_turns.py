"""What a path does in one turn of the loop: how often it waits shows in what a message costs."""

from collections.abc import Awaitable

import trio
import trio.testing
from tests.pipes.test_path_hostile import HELLO

from retinue.pipes import SocketTransport, open_path, socket_pair, wire
from retinue.pipes.wire import Kind


class Counting(SocketTransport):
    """Tells how often its reader has waited."""

    waits = 0

    def wait_readable(self) -> Awaitable[None]:
        self.waits += 1
        return super().wait_readable()


async def test_acknowledgements_that_have_come_are_read_in_one_turn() -> None:
    """Each in a packet of its own, as a peer sends them that is faster than this end."""
    left, right = socket_pair()
    ours = Counting(left)
    with right, trio.fail_after(10):
        async with open_path(ours, limit=8) as path:
            right.send(HELLO)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(5):
                path.send_nowait(number)
            await trio.testing.wait_all_tasks_blocked()
            before = ours.waits
            for number in range(1, 6):
                right.send(wire.encode([Kind.ACK, number, number]))
            await trio.testing.wait_all_tasks_blocked()
            assert path.session.outstanding == (0, 0)
            assert ours.waits == before + 1
