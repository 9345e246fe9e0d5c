"""What a review of the trio face has found, and stays found: the other end dies, closes, and has successors."""

import pytest
import trio
import trio.testing
from tests.pipes.test_path_findings import facing_raw
from tests.pipes.test_path_hostile import all_frames, hello, make_pair

from retinue.pipes import Path, PathSevered, Transport, open_path, wire
from retinue.pipes.wire import Kind

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture(params=["memory", "socket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_nothing_is_written_to_a_dead_peer(kind: str) -> None:
    """What it cannot have got arrives at its successor, however much there is."""
    count = wire.MAX_UNSEEN // 60_000 + 20
    following, successor = make_pair(kind)

    async def rebind(_: Path) -> Transport:
        return following

    async with facing_raw(kind, hello(count), limit=count, rebind=rebind) as (path, peer):
        peer.close()
        for number in range(count):
            path.send_nowait([number, bytes(60_000)])
        path.flush()  # before the pump has had a turn to find the end
        assert path.severed is None
        assert path.session.link.backlog >= count - 1
        async with open_path(successor, limit=count) as other:
            got = []
            for _ in range(count):
                message = await other.receive()
                got.append((message.body[0], message.redelivered))
        assert [number for number, _ in got] == list(range(count))
        # The packet that was tried first may count as written.
        assert [number for number, redelivered in got if redelivered] in ([], [0])


async def test_closing_asks_for_no_other_transport(kind: str) -> None:
    """Who is to be closed and loses its peer is closed."""
    asked = 0

    async def rebind(_: Path) -> Transport:
        nonlocal asked
        asked += 1
        await trio.sleep_forever()
        raise AssertionError

    async with facing_raw(kind, rebind=rebind) as (path, peer), trio.open_nursery() as nursery:
        for _ in range(60):
            path.send_nowait(bytes(60_000))
        path.flush()
        assert path._congested
        nursery.start_soon(path.aclose)
        await trio.testing.wait_all_tasks_blocked()
        assert not path._over
        peer.close()
    assert asked == 0


async def test_messages_of_many_successors_are_bounded(kind: str) -> None:
    """Each may leave as many as the limit says; a program that takes none does not pile them up for ever."""
    limit = 4
    peer: Transport
    most = 0

    async def rebind(_: Path) -> Transport:
        nonlocal peer
        ours, peer = make_pair(kind)
        return ours

    ours, peer = make_pair(kind)
    with trio.fail_after(10):
        async with open_path(ours, limit=limit, rebind=rebind) as path:
            for token in range(1, 10):
                packet = wire.encode([Kind.HELLO, wire.VERSION, limit, token, 0, 0, 0, 0, 0])
                peer.send(packet + b"".join(wire.encode([Kind.SEND, n, None]) for n in range(1, limit + 1)))
                await trio.testing.wait_all_tasks_blocked()
                if path.severed is not None:
                    break
                most = max(most, path.pending)
                peer.close()
                await trio.testing.wait_all_tasks_blocked()
            assert isinstance(path.severed, PathSevered)
            assert path.severed.code == "overflow"
            assert most <= 3 * limit
            assert (await all_frames(peer))[-1] == [Kind.SEVER, "overflow", path.severed.text]
            peer.close()


async def test_redelivered_stays_what_it_was_on_arrival(kind: str) -> None:
    """Whatever the greeting of the next peer says."""
    peer: Transport

    async def rebind(_: Path) -> Transport:
        nonlocal peer
        ours, peer = make_pair(kind)
        return ours

    ours, peer = make_pair(kind)
    with trio.fail_after(10):
        async with open_path(ours, rebind=rebind) as path:
            received = []
            for token, again in ((9, 1), (10, 0), (11, 2)):
                peer.send(wire.encode([Kind.HELLO, wire.VERSION, 8, token, 5, 0, again, again, 0]))
                for ident in (1, -1, 2, -2):
                    peer.send(wire.encode([Kind.SEND, ident, None]))
                    received.append(await path.receive())
                peer.close()
                await trio.testing.wait_all_tasks_blocked()
            marks = [message.redelivered for message in received]
            assert marks == [True, True, False, False] + [False] * 4 + [True] * 4
    peer.close()
