"""A second thread tells how the first one is, also when that is stuck."""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.pipes import socket_pair
from retinue.pipes.beat import Beat, read_beat
from retinue.svm.heartbeat import Heartbeat

QUICK = 0.005


class Log:
    """The control program's end of a machine's log."""

    def __init__(self) -> None:
        self.end, self.machine = socket_pair()

    def read(self) -> bytes:
        """The next packet; blocks this thread, and with it trio's loop."""
        poll = select.poll()
        poll.register(self.end, select.POLLIN)
        assert poll.poll(10_000), "nothing came"
        return self.end.recv(1 << 17)

    def beat(self) -> Beat:
        """The next heartbeat, with the loop blocked meanwhile."""
        beat = read_beat(self.read())
        assert beat is not None
        return beat

    async def next_beat(self) -> Beat:
        """The next heartbeat, while the loop runs."""
        await trio.lowlevel.wait_readable(self.end)
        return self.beat()

    def drain(self) -> None:
        """Forget what has come."""
        while select.select([self.end], [], [], 0)[0]:
            self.end.recv(1 << 17)


@pytest.fixture
def log() -> Iterator[Log]:
    before = descriptors()
    made = Log()
    with made.end, made.machine:
        yield made
    assert_none_left(before)


def threads() -> frozenset[str]:
    """Those of this process."""
    return frozenset(os.listdir("/proc/self/task"))


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    before = threads()
    yield
    wait_until(lambda: threads() <= before)


def wait_until(condition: Callable[[], bool]) -> None:
    """A thread that has released its last lock is there for a moment more."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end


async def test_loop_that_runs_answers(log: Log) -> None:
    """Each beat asks it once; time in the processor is told."""
    heart = Heartbeat(log.machine)
    heart.watch(QUICK)
    with trio.fail_after(10):
        first = await log.next_beat()
        assert (first.turns, first.stuck) == (0, 0.0)
        beats = [await log.next_beat() for _ in range(5)]
        while beats[-1].turns < 5:
            beats.append(await log.next_beat())
        assert [beat.turns for beat in beats] == sorted(beat.turns for beat in beats)
        assert beats[-1].cpu >= first.cpu > 0
    heart.close()


async def test_loop_that_is_stuck_is_told_so(log: Log) -> None:
    """For how long, and until it goes on."""
    heart = Heartbeat(log.machine)
    heart.watch(QUICK)
    log.beat()
    beats = [log.beat() for _ in range(10)]
    assert {beat.turns for beat in beats} == {0}
    assert [beat.stuck for beat in beats] == sorted({beat.stuck for beat in beats})
    assert beats[0].stuck >= QUICK
    assert beats[-1].stuck >= 10 * QUICK
    log.drain()
    with trio.fail_after(10):
        while (beat := await log.next_beat()).stuck:
            pass
        assert beat.turns >= 1
    heart.close()


async def test_what_computes_is_not_idle(log: Log) -> None:
    """A loop that is stuck in a computation uses the processor meanwhile."""
    heart = Heartbeat(log.machine)
    heart.watch(QUICK)
    first = log.beat()
    found = first
    while found.stuck < 0.1:
        sum(range(10_000))
        if select.select([log.end], [], [], 0)[0]:
            found = log.beat()
    assert found.cpu - first.cpu > 0.02
    heart.close()


async def test_interval_is_changed_and_ended(log: Log) -> None:
    """One thread whatever it is; none at 0, and there may be another."""
    heart = Heartbeat(log.machine)
    before = threads()
    for _ in range(3):
        heart.watch(3600)
        log.beat()
        heart.watch(3600)  # begins with a beat of its own
        log.beat()
        heart.watch(QUICK)
        for _ in range(3):
            log.beat()
        assert len(threads() - before) == 1
        assert heart.watch(0) is None
        wait_until(lambda: threads() <= before)
        log.drain()
    heart.close()


async def test_full_log_stops_no_heart(log: Log) -> None:
    """What finds no room is not told; the next one is."""
    heart = Heartbeat(log.machine)
    try:
        while True:
            log.machine.send(bytes(1000), socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass
    heart.watch(QUICK)
    with trio.fail_after(10):
        while heart._turns < 3:
            await trio.lowlevel.checkpoint()
        log.drain()
        assert (await log.next_beat()).turns >= 3
    heart.close()


async def test_log_that_is_gone_stops_no_heart(log: Log) -> None:
    """The machine is about to be ended, and not by this."""
    heart = Heartbeat(log.machine)
    log.end.close()
    heart.watch(QUICK)
    with trio.fail_after(10):
        while heart._turns < 3:
            await trio.lowlevel.checkpoint()
    heart.close()


def test_loop_that_ends_ends_the_thread(log: Log) -> None:
    """As soon as it asks it."""

    async def begin() -> Heartbeat:
        heart = Heartbeat(log.machine)
        heart.watch(QUICK)
        return heart

    heart = trio.run(begin)
    assert heart._running is not None
    wait_until(lambda: heart._running is not None and not heart._running.locked())
    heart.close()


async def test_stacks_become_lines_of_the_log(log: Log) -> None:
    """Of all threads, whole, and soon."""
    heart = Heartbeat(log.machine)
    heart.watch(3600)
    log.beat()
    os.kill(os.getpid(), signal.SIGUSR1)
    text = b""
    while b"test_stacks_become_lines_of_the_log" not in text or not text.endswith(b"\n"):
        text += log.read()
    assert b"heartbeat.py" in text
    assert b"(most recent call first)" in text
    heart.close()


async def test_stacks_that_the_thread_cannot_take(log: Log) -> None:
    """Are there for whoever has the descriptor."""
    heart = Heartbeat(log.machine)
    descriptor = heart.watch(3600)
    assert descriptor is not None
    theirs, end = os.dup(descriptor), os.dup(heart._stacks_end)
    heart.close()
    os.write(end, b"a line\n")
    assert os.read(theirs, 100) == b"a line\n"
    os.close(theirs)
    os.close(end)
