"""A loaded system that is disturbed: what its clients notice of it."""

import contextlib
import os
import pathlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import trio

from benchmarks import web, wrk
from retinue.cp.operator_socket import connect_operator
from retinue.pipes import Path, PathError, SocketTransport, open_path

# Seconds in which an operator of a system whose control program was killed must have an answer.
PATIENCE: Final = 10.0
# Seconds the load goes on after the last disturbance.
CALM: Final = 2.0


@attrs.frozen
class Disturbed:
    """What clients saw (``summary``), how often they were disturbed, and the seconds of each recovery."""

    summary: wrk.Summary
    times: int
    recoveries: tuple[float, ...] = ()


@asynccontextmanager
async def operator(runtime: pathlib.Path) -> AsyncIterator[Path]:
    """A path to the control program."""
    async with open_path(SocketTransport(connect_operator(runtime)), name="*CP") as path:
        yield path


async def machines(path: Path) -> dict[str, dict[str, Any]]:
    """The listing, by name."""
    listing = await path.call(["ps", {}])
    return {each["name"]: each for each in listing["machines"]}


Disturb = Callable[[], Awaitable[float | None]]


async def under_load(system: web.Web, seconds: float, disturb: Disturb | None, every: float) -> Disturbed:
    """Load the system for so long, and disturb it all the time: at each tick, or as soon as it is done with one."""
    recoveries: list[float] = []
    times = 0
    with wrk.started(f"http://127.0.0.1:{system.port}{web.ASGI}", seconds) as process:
        begun = trio.current_time()
        while disturb is not None and trio.current_time() < begun + seconds - CALM:
            times += 1
            found = await disturb()
            if found is not None:
                recoveries.append(found)
            await trio.sleep_until(max(begun + times * every, trio.current_time()))
        summary = await trio.to_thread.run_sync(wrk.finish, process, seconds + 60)
    return Disturbed(summary, times, tuple(recoveries))


# -- disturbances --------------------------------------------------------------------------------------------------


def replacing(runtime: pathlib.Path, machine: str) -> Disturb:
    """Replace a machine; the seconds it takes."""

    async def disturb() -> float:
        begun = time.perf_counter()
        async with operator(runtime) as path:
            await path.call(["replace", {"machine": machine}])
        return time.perf_counter() - begun

    return disturb


def killing(runtime: pathlib.Path, machine: str) -> Disturb:
    """kill -9 of a machine; the seconds from the detection of its death until another process of it is ready."""

    async def disturb() -> float | None:
        async with operator(runtime) as path:
            before = (await machines(path))[machine]
            if before["state"] != "READY":
                return None
            async with events(path) as arrived:
                os.kill(before["pid"], signal.SIGKILL)
                detected = 0.0
                async for event in arrived:
                    if event["machine"] == machine and event["state"] == "ABEND":
                        detected = event["time"]
                    elif event["machine"] == machine and event["state"] == "READY":
                        return float(event["time"] - detected)
        return None

    return disturb


@asynccontextmanager
async def events(path: Path) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The events from now on."""
    send, receive = trio.open_memory_channel[dict[str, Any]](1000)

    async def take() -> None:
        async for message in path:
            if message.body[0] == "event":
                send.send_nowait(message.body[1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await path.call(["follow", {"records": False, "events": True}])
        yield receive
        nursery.cancel_scope.cancel()


def killing_cp(runtime: pathlib.Path) -> Disturb:
    """kill -9 of the control program; the seconds until another one answers an operator."""

    async def disturb() -> float:
        async with operator(runtime) as path:
            before = (await path.call(["status", {}]))["cp_pid"]
        os.kill(before, signal.SIGKILL)
        begun = time.perf_counter()
        with trio.fail_after(PATIENCE):
            while True:
                with contextlib.suppress(OSError, PathError):
                    async with operator(runtime) as path:
                        if (await path.call(["status", {}]))["cp_pid"] != before:
                            return time.perf_counter() - begun
                await trio.sleep(0.001)

    return disturb


async def generations(runtime: pathlib.Path) -> dict[str, int]:
    """How many processes each machine has had."""
    async with operator(runtime) as path:
        return {name: each["generation"] for name, each in (await machines(path)).items()}
