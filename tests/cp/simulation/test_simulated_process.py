"""A simulated process stops, goes on and dies as one, and has what it has imported to itself."""

import pathlib
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from retinue.cp.simulation.modules import Modules
from retinue.cp.simulation.process import Process
from retinue.cp.simulation.scheduler import simulating
from retinue.pipes import PathSevered, SocketTransport, open_path, socket_pair


async def start(nursery: trio.Nursery, process: Process, body: Callable[[], Awaitable[None]]) -> None:
    """Run a process, and let it take its first steps."""
    nursery.start_soon(process.run, body)
    await trio.testing.wait_all_tasks_blocked()


async def test_frozen_process_takes_no_step(autojump_clock: trio.testing.MockClock) -> None:
    """Stopped, none of its tasks goes on, whatever they wait for; continued, they find how late it is."""
    seen: list[float] = []

    async def tick() -> None:
        while True:
            await trio.sleep(1)
            seen.append(trio.current_time())

    async def body() -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(tick)
            inner.start_soon(tick)

    with simulating(1):
        process = Process("P")
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            await start(nursery, process, body)
            await trio.sleep(2.5)
            process.freeze()
            await trio.sleep(10)
            assert len(seen) == 4
            process.thaw()
            await trio.sleep(0.1)
            assert [round(when - begun, 1) for when in seen] == [1, 1, 2, 2, 12.5, 12.5]
            nursery.cancel_scope.cancel()


async def test_killed_process_says_nothing_and_is_heard_no_more() -> None:
    """Its descriptors close without a word, though its tasks are cancelled and would have said something."""
    ours, theirs = socket_pair()
    kept = theirs.dup()  # as the control program has one

    async def body() -> None:
        async with open_path(SocketTransport(theirs), name="theirs") as path:
            await path.send("alive")
            try:
                await trio.sleep_forever()
            finally:
                path.sever("closed", "a last word")

    with simulating(1), kept:
        process = Process("P")
        process.sockets.add(theirs)
        async with trio.open_nursery() as nursery, open_path(SocketTransport(ours), name="ours") as path:
            await start(nursery, process, body)
            message = await path.receive()
            assert message.body == "alive"
            process.kill()
            await trio.testing.wait_all_tasks_blocked()
            assert path.severed is None, "somebody still has the other end"
            assert not nursery.child_tasks
            kept.shutdown(socket.SHUT_RDWR)
            await path.wait_severed()
            assert isinstance(path.severed, PathSevered)
            assert path.severed.code == "lost"


async def test_killed_process_cannot_hide_behind_a_shield(autojump_clock: trio.testing.MockClock) -> None:
    """What shields itself from being cancelled does not outlive its process; nor what is frozen."""

    async def body() -> None:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as inner:
                inner.cancel_scope.shield = True
                inner.start_soon(trio.sleep_forever)

    with simulating(1):
        for frozen in (False, True):
            process = Process("P")
            with trio.fail_after(1):
                async with trio.open_nursery() as nursery:
                    await start(nursery, process, body)
                    if frozen:
                        process.freeze()
                    process.kill()


async def test_exception_of_a_process_is_its_own_only_when_it_was_killed() -> None:
    """What a living one raises is told; what a dead one raises reaches nobody."""

    async def body() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in vain")

    with simulating(1):
        process = Process("P")
        async with trio.open_nursery() as nursery:
            await start(nursery, process, body)
            process.kill()

        with pytest.RaisesGroup(ValueError):
            async with trio.open_nursery() as nursery:
                await start(nursery, Process("P"), body)
                nursery.cancel_scope.cancel()


async def test_processes_have_modules_of_their_own(tmp_path: pathlib.Path) -> None:
    """Two processes import the same file and have two modules; nobody else has any, nor finds the folder."""
    (tmp_path / "counter_of_mine.py").write_text("import helper_of_mine\ncount = 0\n")
    (tmp_path / "helper_of_mine.py").write_text("")
    found: list[object] = []

    async def body() -> None:
        for _ in range(3):
            # Not when the module begins: what it finds is looked up when it runs.
            import counter_of_mine  # type: ignore[import-not-found]

            counter_of_mine.count += 1
            await trio.sleep(0.01)
        assert "helper_of_mine" in sys.modules
        found.append(counter_of_mine)

    before = list(sys.path)
    with simulating(1):
        async with trio.open_nursery() as nursery:
            for name in ("P", "Q"):
                nursery.start_soon(Process(name, modules=Modules([str(tmp_path)])).run, body)
            await trio.testing.wait_all_tasks_blocked()
            assert "counter_of_mine" not in sys.modules
            assert sys.path == before
    assert [vars(each)["count"] for each in found] == [3, 3]
    assert found[0] is not found[1]
    assert not (tmp_path / "__pycache__").exists()


async def test_clock_does_not_jump_while_a_thread_works(autojump_clock: trio.testing.MockClock) -> None:
    """A thread takes real time; no virtual time passes meanwhile."""
    with simulating(1):
        begun = trio.current_time()
        late = trio.CancelScope(deadline=begun + 60)
        waiting, go = socket.socketpair()
        with late, waiting, go:
            async with trio.open_nursery() as nursery:

                async def release() -> None:
                    await trio.to_thread.run_sync(go.send, b"x")

                async def wait() -> None:
                    await trio.to_thread.run_sync(waiting.recv, 1)

                nursery.start_soon(wait)
                nursery.start_soon(release)
        assert not late.cancelled_caught
        assert trio.current_time() == begun


async def test_chance_is_that_of_the_seed_and_is_given_back() -> None:
    """Within a simulation the module random begins with the seed; outside it goes on as before."""
    import random

    random.seed(99)
    first = random.random()
    random.seed(99)
    drawn = []
    for _ in range(2):
        with simulating(7):
            drawn.append(random.random())
    assert drawn[0] == drawn[1]
    assert random.random() == first
