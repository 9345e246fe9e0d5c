"""One source, many followers."""

import trio
import trio.testing

from retinue.cp.broadcast import BEHIND, Broadcast, Follower


async def taken(follower: Follower) -> list[object]:
    """What is there for a follower now."""
    found = []
    while True:
        try:
            found.append(follower.items.receive_nowait())
        except trio.WouldBlock:
            return found


async def test_every_follower_gets_everything_from_its_beginning_on() -> None:
    """And nothing after its end."""
    broadcast = Broadcast()
    broadcast.publish(1)
    with broadcast.follow() as one:
        broadcast.publish(2)
        with broadcast.follow() as other:
            broadcast.publish(3)
        broadcast.publish(4)
    broadcast.publish(5)
    assert await taken(one) == [2, 3, 4]
    assert await taken(other) == [3]


async def test_slow_follower_loses_and_knows_how_many() -> None:
    """It holds up neither the source nor the others."""
    broadcast = Broadcast()
    with broadcast.follow() as slow, broadcast.follow() as quick:
        for number in range(BEHIND + 7):
            broadcast.publish(number)
            assert await taken(quick) == [number]
        assert (slow.take_lost(), slow.take_lost(), quick.take_lost()) == (7, 0, 0)
        assert await taken(slow) == list(range(BEHIND))
        broadcast.publish("again")
        assert await taken(slow) == ["again"]


async def test_finish_waits_until_everybody_has_taken_what_there_was() -> None:
    """What is published afterwards goes nowhere; who follows afterwards gets an end at once."""
    broadcast = Broadcast()
    got: list[object] = []
    finished = trio.Event()

    async def follow() -> None:
        with broadcast.follow() as follower:
            async for item in follower.items:
                await trio.lowlevel.checkpoint()
                got.append(item)

    async def finish() -> None:
        await broadcast.finish()
        finished.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(5):
                broadcast.publish(number)
            nursery.start_soon(finish)
            await finished.wait()
            broadcast.publish("late")
    assert got == list(range(5))
    with broadcast.follow() as late:
        assert [item async for item in late.items] == []


async def test_follower_is_not_behind_by_what_it_does_not_want() -> None:
    """A flood of others loses it nothing."""
    source = Broadcast()
    with source.follow(lambda item: item * 10 if item % 1_000 == 0 else None) as follower:
        for number in range(BEHIND * 2):
            source.publish(number)
        assert follower.take_lost() == 0
        assert await taken(follower) == [number * 10 for number in range(0, BEHIND * 2, 1_000)]


async def test_records_are_made_only_for_who_wants_those_of_their_machine() -> None:
    """Whoever follows one machine does not pay for another one that floods."""
    broadcast = Broadcast()
    assert broadcast.followers_of("M") == []
    with broadcast.follow() as everything, broadcast.follow(machines={"M", "N"}) as some:
        assert set(broadcast.followers_of("M")) == {everything, some}
        assert broadcast.followers_of("FLOOD") == [everything]
        broadcast.publish("what is no record")
        assert await taken(some) == ["what is no record"]


async def test_follower_takes_what_there_is() -> None:
    """At most so much at once; it waits only for the first item, and gets nothing when there is nothing more."""
    broadcast = Broadcast()
    with trio.fail_after(5), broadcast.follow() as follower:
        for number in range(5):
            broadcast.publish(number)
        assert [await follower.take(3), await follower.take(3)] == [[0, 1, 2], [3, 4]]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broadcast.finish)
            assert await follower.take(3) == []
            nursery.cancel_scope.cancel()
