"""Shares by the weights of sessions."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import trio

from retinue.cp.host import autogroup
from retinue.cp.host.autogroup import Shares, available, managed_group, steps

WAIT = [sys.executable, "-S", "-c", "input()"]
needs_autogroup = pytest.mark.skipif(bool(why := available("/")), reason=why)


@pytest.mark.parametrize(
    ("share", "largest", "nice"),
    [(100, 100, 0), (200, 100, 0), (100, 200, 3), (100, 300, 5), (90, 100, 0), (80, 100, 1), (1, 10_000, 19)],
)
def test_shares_as_steps(share: int, largest: int, nice: int) -> None:
    assert steps(share, largest) == nice


def test_weights_are_those_of_the_kernel() -> None:
    """Each a fifth less than the one before it, as sched(7) says; and every share is met within half a step."""
    assert all(1.18 < above / below < 1.3 for above, below in pairwise(autogroup._WEIGHT))
    for share in range(2, 101):
        weight = autogroup._WEIGHT[steps(share, 100)] / autogroup._WEIGHT[0]
        assert 0.87 < weight / (share / 100) < 1.15


def test_a_managed_group_and_a_kernel_without_are_told() -> None:
    assert "which the cpu controller manages" in available("/user.slice") or available("/")
    assert managed_group().startswith("/")


@pytest.fixture
def sessions() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Thirteen processes, the last one not yet with a session of its own."""
    started = [subprocess.Popen(WAIT, stdin=subprocess.PIPE, start_new_session=True) for _ in range(12)]
    started.append(
        subprocess.Popen(
            [sys.executable, "-S", "-c", "import os; input(); os.setsid(); print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    )
    yield started
    for one in started:
        one.send_signal(signal.SIGKILL)
        one.communicate()


def weight_of(pid: int) -> str:
    """As the kernel tells it, which is nothing for a process that has never had a session made since the start."""
    return pathlib.Path(f"/proc/{pid}/autogroup").read_text()


def nice_of(pid: int) -> int:
    return int(weight_of(pid).rpartition(" ")[2] or 0)


@needs_autogroup
async def test_every_session_gets_its_weight(sessions: list["subprocess.Popen[bytes]"]) -> None:
    """More than the kernel takes at once from who is not root; who is gone, or has no session yet, holds up nobody."""
    ours = weight_of(os.getpid())
    *most, late = sessions
    tell = [sys.executable, "-S", "-c", "import os; print(os.getpid())"]
    gone = (await trio.run_process(tell, capture_stdout=True)).stdout
    shares = Shares(sessions=True)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shares.run)
            shares.give(late.pid, 100, 200)
            shares.give(int(gone), 100, 200)
            shares.give(0, 100, 200)
            for one in most:
                shares.give(one.pid, 100, 200)
            await until(lambda: [nice_of(one.pid) for one in most] == [3] * 12)
            assert weight_of(os.getpid()) == ours
            assert late.stdin is not None
            assert late.stdout is not None
            late.stdin.write(b"\n")
            late.stdin.flush()
            late.stdout.readline()
            await until(lambda: nice_of(late.pid) == 3)
            nursery.cancel_scope.cancel()
    assert weight_of(os.getpid()) == ours


async def test_without_sessions_processes_have_the_weights(sessions: list["subprocess.Popen[bytes]"]) -> None:
    shares = Shares(sessions=False)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shares.run)
            shares.give(sessions[0].pid, 100, 300)
            await until(lambda: os.getpriority(os.PRIO_PROCESS, sessions[0].pid) == 5)
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await trio.sleep(0.01)
