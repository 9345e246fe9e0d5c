"""A machine from load to its exit code, over a control path whose other end is the test."""

import contextlib
import logging
import pathlib
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.pipes import Path, PathError, Rejected, SocketTransport, open_path, socket_pair
from retinue.svm import runtime

PROGRAM = """
import logging
import attrs
import trio

@attrs.frozen
class Config:
    word: str = "hello"
    count: int = 1

SAID = []

async def serving(vm):
    async def handler(message):
        return [vm.config.word] * vm.config.count
    await vm.serve(handler)

async def returning(vm):
    SAID.append(vm.name)

async def failing(vm):
    raise ValueError("a bug")

async def heeding(vm):
    await vm.ready()
    await vm.stopping.wait()
    SAID.append("stopped")

async def deaf(vm):
    await vm.ready()
    await trio.sleep_forever()

async def exiting(vm):
    raise SystemExit(3)

main = {main}
"""


@pytest.fixture
def program(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[..., str]:
    """Makes a program whose main is one of the above."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(main: str) -> str:
        name = f"machine_{abs(hash(request.node.nodeid))}_{main}"
        (tmp_path / f"{name}.py").write_text(PROGRAM.format(main=main))
        return name

    return make


class Run:
    """One running machine."""

    def __init__(self, control: Path) -> None:
        self.control = control
        self.told: list[Any] = []
        self.ready = trio.Event()
        self.exit_code: int | None = None
        self.ended = trio.Event()

    async def answer(self, message: Any) -> None:
        self.told.append(message.body)
        if message.body == ["ready", {}]:
            self.ready.set()

    async def load(self, name: str, **config: Any) -> None:
        await self.control.call(
            [
                "load",
                {
                    "name": "SHOP",
                    "kind": "program",
                    "program": name,
                    "config": config,
                    "edges": {"stock": {"limit": 4, "overflow": "drop-newest"}},
                    "disks": {},
                    "secrets": {},
                },
            ]
        )

    async def start(self) -> None:
        await self.control.call(["start", {}])

    async def stop(self) -> None:
        await self.control.call(["stop", {}])

    async def offer(self) -> socket.socket:
        ours, theirs = socket_pair()
        with theirs:
            try:
                about = {"path": 7, "edge": "CALLER.shop", "peer": "CALLER", "limit": 4}
                await self.control.call(["offer", about], descriptors=(theirs.fileno(),))
            except BaseException:
                ours.close()
                raise
        return ours


@asynccontextmanager
async def machine() -> AsyncIterator[Run]:
    before = descriptors()
    with trio.fail_after(20):
        ours, theirs = socket_pair()
        async with open_path(SocketTransport(ours)) as control, trio.open_nursery() as nursery:
            run = Run(control)

            async def live() -> None:
                run.exit_code = await runtime.run(theirs)
                run.ended.set()

            nursery.start_soon(live)
            nursery.start_soon(control.serve, run.answer)
            yield run
            await run.ended.wait()
            nursery.cancel_scope.cancel()
    assert_none_left(before)


async def test_life_of_a_serving_machine(program: Callable[..., str]) -> None:
    """Load, start, ready, an accepted path, stop, exit 0."""
    async with machine() as run:
        await run.load(program("serving"), word="shoes", count=2)
        assert run.told == []
        await run.start()
        await run.ready.wait()
        async with open_path(SocketTransport(await run.offer())) as path:
            assert await path.call(None) == ["shoes", "shoes"]
            meters = await run.control.call(["meters", {}])
            assert meters["uses"]["stock"]["sent"] == 0
            assert meters["serves"]["CALLER.shop"]["received"] == 1
            await run.stop()
            await run.ended.wait()
        assert run.exit_code == runtime.EXIT_OK


async def test_meters_before_load() -> None:
    """There are none."""
    async with machine() as run:
        assert await run.control.call(["meters", {}]) == {"uses": {}, "serves": {}}
        run.control.sever()


async def test_program_that_returns_ends_its_machine(program: Callable[..., str]) -> None:
    """In order."""
    async with machine() as run:
        await run.load(program("returning"))
        await run.start()
        await run.control.wait_severed()
    assert run.exit_code == runtime.EXIT_OK


async def test_program_that_fails_is_logged_and_ends_its_machine(
    program: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    """With the traceback, and EX_SOFTWARE."""
    async with machine() as run:
        name = program("failing")
        await run.load(name)
        await run.start()
    assert run.exit_code == runtime.EXIT_PROGRAM_FAILED
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL
    assert record.getMessage() == f"the program {name} failed"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


@pytest.mark.parametrize("main", ["heeding", "deaf", "serving"])
async def test_every_program_can_be_stopped(program: Callable[..., str], main: str) -> None:
    """One that looks at stopping returns by itself, one that heeds nothing is cancelled."""
    async with machine() as run:
        await run.load(program(main))
        await run.start()
        await run.ready.wait()
        await run.stop()
    assert run.exit_code == runtime.EXIT_OK


async def test_stop_before_load() -> None:
    """There is nothing to finish."""
    async with machine() as run:
        await run.stop()
    assert run.exit_code == runtime.EXIT_OK


async def test_stop_of_a_loaded_machine_that_waits_for_its_turn(program: Callable[..., str]) -> None:
    """It ends at once, although its main never ran."""
    async with machine() as run:
        await run.load(program("serving"))
        await run.stop()
    assert run.exit_code == runtime.EXIT_OK


async def test_stop_twice(program: Callable[..., str]) -> None:
    """The second one finds it stopping, or gone."""
    async with machine() as run:
        await run.load(program("heeding"))
        await run.start()
        await run.ready.wait()
        await run.stop()
        with contextlib.suppress(PathError):
            await run.stop()
    assert run.exit_code == runtime.EXIT_OK


async def test_program_that_is_not_there() -> None:
    """Refused with the code bad-program; the machine waits to be ended."""
    async with machine() as run:
        with pytest.raises(Rejected, match="cannot import no_such_program") as caught:
            await run.load("no_such_program")
        assert caught.value.code == "bad-program"
        run.control.sever()


async def test_config_that_does_not_fit(program: Callable[..., str]) -> None:
    """Refused with every mistake, as the wire carries them."""
    async with machine() as run:
        with pytest.raises(Rejected) as caught:
            await run.load(program("serving"), word=5, cuont=1)
        assert caught.value.code == "bad-config"
        assert [mistake["keys"] for mistake in caught.value.detail] == [["word"], ["cuont"]]
        run.control.sever()


async def test_path_offered_too_early() -> None:
    """Refused, and its descriptor closed."""
    async with machine() as run:
        with pytest.raises(Rejected) as caught:
            await run.offer()
        assert caught.value.code == "not-ready"
        run.control.sever()


async def test_machine_whose_control_program_is_gone_ends(program: Callable[..., str]) -> None:
    """Whatever its program does; EX_UNAVAILABLE."""
    async with machine() as run:
        await run.load(program("deaf"))
        await run.start()
        await run.ready.wait()
        run.control.sever("lost")
    assert run.exit_code == runtime.EXIT_CP_GONE


@pytest.mark.parametrize("packet", [b"", b"\xc1"])
def test_machine_whose_control_path_breaks_ends(packet: bytes) -> None:
    """Also when what comes over it is no protocol; the exit code says that it was not the program."""
    ours, theirs = socket_pair()
    with ours:
        ours.send(packet)
        assert runtime.run_to_exit_code(theirs) == runtime.EXIT_CP_GONE


def test_program_that_raises_system_exit(program: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    """It ends the machine with the code that it names, as it would end any program."""
    ours, theirs = socket_pair()
    name = program("exiting")

    async def play() -> None:
        async with open_path(SocketTransport(ours)) as control:
            run = Run(control)
            await run.load(name)
            with trio.fail_after(5):
                await control.call(["start", {}])
                await control.wait_severed()

    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(runtime.run_to_exit_code(theirs)))
    thread.start()
    trio.run(play)
    thread.join()
    assert codes == [3]
    assert not caplog.records
