"""Turns at the log descriptors: who is read when, and for how long."""

import itertools
import socket

import pytest
import trio
import trio.testing

from retinue.cp.directory.model import LogPolicy
from retinue.cp.intake import SLOTS
from retinue.cp.log_policy import LogPolicies
from retinue.cp.source import Source
from retinue.cp.syslog import Syslog
from retinue.cp.turns import ENOUGH, FEW, HALF, PAUSE, SELDOM, SHORT_PAUSE, TURN, Turns, go_on, rest
from retinue.pipes import socket_pair, wire

FLOODERS = 7


class Clock:
    """Every look at it takes half a turn: each turn is over after as many calls as the first two looks."""

    def __init__(self) -> None:
        self._looks = itertools.count()

    def __call__(self) -> float:
        return next(self._looks) * TURN / 2


class Rounds(trio.abc.Instrument):
    """Counts the rounds of the loop."""

    number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


def record(number: int, message: str) -> bytes:
    return wire.encode([wire.Kind.SEND, number, [1.5, 6, "x", message, {}]])


def fill(sock: socket.socket, numbers: "itertools.count[int]") -> int:
    """As many records as there is room for."""
    for count in itertools.count():
        number = next(numbers)
        try:
            sock.send(record(number, "of a flood"), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return count
    raise AssertionError("it has no end")


def flooder(index: int) -> Source:
    return Source(index, f"M{index}", 1, floods=True)


async def test_one_flooder_is_read_in_a_round() -> None:
    """One after the other in the order in which they came: nobody has a second turn while others wait for one."""
    turns, rounds = Turns(), Rounds()
    taken: list[tuple[int, int]] = []

    async def read(index: int) -> None:
        for _ in range(5):
            await turns.take(flooder(index), lambda: taken.append((rounds.number, index)))

    trio.lowlevel.add_instrument(rounds)
    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for index in range(FLOODERS):
                    nursery.start_soon(read, index)
    finally:
        trio.lowlevel.remove_instrument(rounds)
    assert len({number for number, _ in taken}) == 5 * FLOODERS
    order = [index for _, index in taken]
    assert sorted(order[:FLOODERS]) == [*range(FLOODERS)]
    assert order == order[:FLOODERS] * 5


async def test_who_writes_little_waits_for_nobody() -> None:
    """It is read at once, whoever has the floor and however many wait for it."""
    turns, rounds, called = Turns(), Rounds(), trio.Event()

    async def flood(index: int) -> None:
        while not called.is_set():
            await turns.take(flooder(index), lambda: 0.0)
            await trio.lowlevel.checkpoint()

    trio.lowlevel.add_instrument(rounds)
    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for index in range(FLOODERS):
                    nursery.start_soon(flood, index)
                for _ in range(3 * FLOODERS):
                    await trio.lowlevel.checkpoint()
                    before = rounds.number
                    assert await turns.take(Source(FLOODERS, "M", 1), lambda: PAUSE) == PAUSE
                    assert rounds.number == before
                called.set()
    finally:
        trio.lowlevel.remove_instrument(rounds)


async def test_turn_that_fails_or_is_cancelled_leaves_the_floor() -> None:
    """The others go on."""
    turns = Turns()

    def fail() -> float:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await turns.take(flooder(0), fail)
    with trio.CancelScope() as scope:
        scope.cancel()
        await turns.take(flooder(0), lambda: 0.0)
    assert scope.cancelled_caught
    with trio.fail_after(10):
        assert await turns.take(flooder(1), lambda: PAUSE) == PAUSE


@pytest.mark.parametrize(
    ("before", "came", "pause", "floods"),
    [
        (0.0, 0, SHORT_PAUSE, False),
        (PAUSE, SELDOM, PAUSE / 2, False),
        (SHORT_PAUSE, SELDOM, SHORT_PAUSE, False),
        (0.002, SELDOM + 1, 0.002, False),
        (0.0, ENOUGH, 0.002, False),
        (PAUSE, ENOUGH, PAUSE, False),
        (PAUSE, FEW, PAUSE, False),
        (PAUSE, FEW + 1, PAUSE, True),
        (PAUSE, HALF, SHORT_PAUSE, True),
    ],
)
def test_pause_grows_with_what_it_brings(before: float, came: int, pause: float, floods: bool) -> None:
    """Up to the one in which a buffer would be full; who writes much is read in turns with others from then on."""
    source = Source(0, "M", 1, pause=before, came=came, floods=not floods)
    assert (rest(source), source.floods, source.came) == (pause, floods, 0)


@pytest.mark.parametrize(("step", "floods"), [(TURN, True), (TURN / 2, False)])
def test_few_packets_that_take_a_whole_turn_are_a_flood(step: float, floods: bool) -> None:
    """They are large: their machine is read in turns with others until it was read empty sooner."""
    looks = itertools.count()
    log = Syslog(turns=Turns(lambda: next(looks) * step))
    source = log.journal.source("M", 1)
    source.slots = SLOTS
    ours, theirs = socket_pair()
    with ours, theirs:
        theirs.send(record(1, "x" * 30_000))
        assert log._turn(source, ours, None) == SHORT_PAUSE
    assert (log.last, source.floods) == (1, floods)


async def test_machine_that_blocks_waits_for_room_that_others_took(mock_clock: trio.testing.MockClock) -> None:
    """While it waited for its turn: it is not read before there is room."""
    policies = LogPolicies()
    policies.every(LogPolicy("block", buffer=64 * 1024))
    log = Syslog(policies=policies)
    log.journal.keep()
    ours, theirs = socket_pair()
    async with trio.open_nursery() as nursery:
        await log.turns._floor.acquire()
        source = log.journal.source("M", 1)
        source.floods = True
        theirs.send(record(1, "a word"))
        nursery.start_soon(log.read, "M", 1, ours)
        await trio.testing.wait_all_tasks_blocked()
        while not log.journal.room.full("M"):
            log.write(5, "x" * 10_000, machine="M")
        last = log.last
        log.turns._floor.release()
        await trio.testing.wait_all_tasks_blocked()
        assert (log.last, log.held("M", 1)) == (last, True)
        log.journal.store(log.last, log.journal.unkept)
        log.waiting.unpark_all()
        await trio.testing.wait_all_tasks_blocked()
        assert (log.last, log.held("M", 1)) == (last + 1, False)
        nursery.cancel_scope.cancel()
    theirs.close()


def test_machine_whose_turn_was_too_short_floods() -> None:
    """It goes on without a pause."""
    source = Source(0, "M", 1, came=1)
    assert (go_on(source), source.floods, source.came) == (0.0, True, 1)


async def test_record_beside_flooders_waits_for_a_few_short_turns(mock_clock: trio.testing.MockClock) -> None:
    """Not for all that they have written: no more than one of them is read in a round."""
    log, rounds = Syslog(turns=Turns(Clock())), Rounds()
    floods = [socket_pair() for _ in range(FLOODERS)]
    ours, theirs = socket_pair()
    numbers = [itertools.count(1) for _ in floods]
    written = sum(fill(flood, each) for (_, flood), each in zip(floods, numbers, strict=True))
    seen: list[tuple[int, int]] = []
    trio.lowlevel.add_instrument(rounds)
    try:
        async with trio.open_nursery() as nursery:
            for index, (flooded, _) in enumerate(floods):
                nursery.start_soon(log.read, f"F{index}", 1, flooded)
            nursery.start_soon(log.read, "M", 1, ours)
            with log.broadcast.follow(machines={"M"}) as follower:
                for number in range(1, 6):
                    before, begun = log.last, rounds.number
                    theirs.send(record(number, "a word"))
                    mock_clock.jump(PAUSE)  # as long as it was left alone
                    while not (items := await follower.take(1)):
                        pass
                    assert items[0][1]["message"] == "a word"
                    seen.append((rounds.number - begun, log.last - before))
            nursery.cancel_scope.cancel()
    finally:
        trio.lowlevel.remove_instrument(rounds)
        for sock in (theirs, *(flood for _, flood in floods)):
            sock.close()
    assert log.last < written
    # Its pause ends, it is readable, it is read, and the follower has it. The first round has a first turn of each.
    assert all(passed <= 5 for passed, _ in seen)
    assert all(read <= 2 * SLOTS * passed for passed, read in seen[1:])
    assert sum(read for _, read in seen) > FLOODERS
