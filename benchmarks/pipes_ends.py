"""What the two processes of benchmarks/pipes.py do with a path, and with the bare socket under it.

Settings of every experiment: ``seconds`` to measure, ``warm`` seconds before that; the others are named where they are
used. Times are of :func:`time.perf_counter`. Bodies are bytes, as large as ``size`` says.
"""

import gc
import itertools
import os
import pathlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final

import trio
import trio.testing

from retinue.pipes import Draft, Message, Path, SocketTransport

# How long the bare socket and the path are timed in turn: short against what a neighbour on the machine does, long
# against the change from one to the other.
_BLOCK: Final = 0.02

clock: Final = time.perf_counter


def quantiles(seconds: list[float]) -> dict[str, float]:
    """``p50``, ``p99`` and ``mean``, in microseconds."""
    ordered = sorted(seconds)
    return {
        "p50": ordered[len(ordered) // 2] * 1e6,
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1e6,
        "mean": sum(ordered) / len(ordered) * 1e6,
    }


async def _open(nursery: trio.Nursery, descriptor: int, limit: int) -> Path:
    path = Path(SocketTransport(socket.socket(fileno=descriptor)), name="bench", limit=limit)
    await nursery.start(path.run)
    return path


async def _echo(message: Message) -> Any:
    return message.body


def _left(experiment: Callable[[Path, dict[str, Any]], Awaitable[dict[str, Any]]]) -> Any:
    """The left side of an experiment that needs one path, of ``limit``."""

    async def main(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
        async with trio.open_nursery() as nursery:
            path = await _open(nursery, descriptors[0], settings["limit"])
            found = await experiment(path, settings)
            await path.aclose()
        return found

    return lambda descriptors, settings: trio.run(main, descriptors, settings)


def _right(experiment: Callable[[Path, dict[str, Any]], Awaitable[dict[str, Any]]]) -> Any:
    """The right side likewise: it ends with the path."""

    async def main(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
        async with trio.open_nursery() as nursery:
            return await experiment(await _open(nursery, descriptors[0], settings["limit"]), settings)

    return lambda descriptors, settings: trio.run(main, descriptors, settings)


async def _serve(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    await path.serve(_echo)
    return {}


# -- one at a time: the path and the bare socket under it, in turn ---------------------------------------------------


async def _time_block(exchange: Callable[[], Awaitable[object]], taken: list[float], seconds: float) -> None:
    end = clock() + seconds
    now = clock()
    while now < end:
        begun = now
        await exchange()
        now = clock()
        taken.append(now - begun)


async def _round_trips(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    body = bytes(settings["size"])
    with trio.socket.from_stdlib_socket(socket.socket(fileno=descriptors[1])) as bare:

        async def ping() -> None:
            await bare.send(body)
            if len(await bare.recv(4096)) != len(body):
                raise RuntimeError("a packet came back with another length")

        async with trio.open_nursery() as nursery:
            path = await _open(nursery, descriptors[0], settings["limit"])

            async def call() -> None:
                if len(await path.call(body)) != len(body):
                    raise RuntimeError("a reply of another length")

            await _time_block(ping, [], settings["warm"])
            await _time_block(call, [], settings["warm"])
            pings: list[float] = []
            calls: list[float] = []
            end = clock() + 2 * settings["seconds"]
            while not calls or clock() < end:
                await _time_block(ping, pings, _BLOCK)
                await _time_block(call, calls, _BLOCK)
            await path.aclose()
    return {"floor": quantiles(pings), "path": quantiles(calls)}


async def _answer_round_trips(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    async def pong() -> None:
        with trio.socket.from_stdlib_socket(socket.socket(fileno=descriptors[1])) as bare:
            while body := await bare.recv(4096):
                await bare.send(body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pong)
        path = await _open(nursery, descriptors[0], settings["limit"])
        await path.serve(_echo)
    return {}


# -- many at a time --------------------------------------------------------------------------------------------------


async def _calls(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings: ``outstanding``, each a task that calls again and again."""
    body = bytes(settings["size"])
    count = 0

    async def caller(end: float) -> None:
        nonlocal count
        while clock() < end:
            await path.call(body)
            count += 1

    async def phase(seconds: float) -> float:
        nonlocal count
        count = 0
        begun = clock()
        async with trio.open_nursery() as nursery:
            for _ in range(settings["outstanding"]):
                nursery.start_soon(caller, begun + seconds)
        return count / (clock() - begun)

    await phase(settings["warm"])
    return {"rate": await phase(settings["seconds"])}


# -- one way ---------------------------------------------------------------------------------------------------------


Bodies = Callable[[int], Iterable[Any]]  # so many


async def _send(path: Path, bodies: Bodies, settings: dict[str, Any]) -> tuple[float, int]:
    """Messages a second until all of them are received, and how many there were with those of the warm-up."""
    sent, fewest, taken = 0, settings["limit"], 0.0
    while taken < settings["warm"]:
        begun = clock()
        sent += await path.send_many(bodies(fewest))
        taken = clock() - begun
        rate = fewest / taken
        fewest *= 4
    count = max(settings["limit"], int(rate * settings["seconds"]))
    begun = clock()
    sent += await path.send_many(bodies(count))
    return count / (clock() - begun), sent


async def _one_way(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    body = bytes(settings["size"])
    rate, sent = await _send(path, lambda count: itertools.repeat(body, count), settings)
    return {"rate": rate, "messages": sent}


async def _receive(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    count = 0
    async for message in path:  # noqa: B007  (the last one is looked at)
        count += 1
    if len(message.body) != settings["size"]:
        raise RuntimeError("a body of another length")
    return {"messages": count}


async def _receive_numbered(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    count = 0
    async for message in path:
        if len(message.body) != settings["size"] or int.from_bytes(message.body[:8], "little") != count:
            raise RuntimeError("another body than the next one")
        count += 1
    return {"messages": count}


# -- bulk, beside copies within one process --------------------------------------------------------------------------


def _copies(copy: Callable[[], object], seconds: float) -> float:
    """How often a second."""
    count, begun = 0, clock()
    while (now := clock()) < begun + seconds or not count:
        copy()
        count += 1
    return count / (now - begun)


async def _bulk(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Bodies that are there already, and are copied at both ends."""
    return await _beside_copies(path, lambda source, count: itertools.repeat(source, count), settings)


async def _drafts(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Bodies made in place, of each of which 8 bytes are written: passing is measured as the plain copy is copying."""
    numbers = itertools.count()

    def made(source: bytes, count: int) -> Iterator[Draft]:
        for _ in range(count):
            draft = path.draft(len(source))
            draft.view[:8] = next(numbers).to_bytes(8, "little")
            yield draft

    return await _beside_copies(path, made, settings)


async def _beside_copies(
    path: Path, bodies: Callable[[bytes, int], Iterable[Any]], settings: dict[str, Any]
) -> dict[str, Any]:
    source = os.urandom(1 << 16) * (settings["size"] >> 16)
    view = memoryview(source)
    existing = memoryview(bytearray(source))

    def copy_into() -> None:
        existing[:] = view

    def copy_fresh() -> bytes:
        return bytes(view)

    for copy in (copy_into, copy_fresh):
        _copies(copy, settings["warm"] / 2)
    # Before and after, so that a neighbour's load falls on both.
    into = _copies(copy_into, settings["seconds"] / 4)
    fresh = _copies(copy_fresh, settings["seconds"] / 4)
    rate, sent = await _send(path, lambda count: bodies(source, count), settings)
    into = (into + _copies(copy_into, settings["seconds"] / 4)) / 2
    fresh = (fresh + _copies(copy_fresh, settings["seconds"] / 4)) / 2
    return {"rate": rate, "messages": sent, "into": into, "fresh": fresh}


# -- memory ----------------------------------------------------------------------------------------------------------


def private() -> int:
    """Bytes that this process keeps for itself alone: what would be free again without it (proc(5), smaps_rollup)."""
    gc.collect()
    found = 0
    for line in pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        if name in ("Private_Clean", "Private_Dirty"):
            found += int(value.split()[0]) * 1024
    return found


_MEASURE: Final = "measure"


async def _keep_open(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """Bytes for each path end: ``idle`` (open), ``used`` (open, after a call over each), ``serving`` (the other end).

    The first descriptor only warms up, and measures at the other end.
    """
    body = bytes(settings["size"])
    first, *others = descriptors
    async with trio.open_nursery() as nursery:
        paths = [await _open(nursery, first, settings["limit"])]
        await paths[0].call(body)
        theirs = await paths[0].call(_MEASURE)
        ours = private()
        paths += [await _open(nursery, descriptor, settings["limit"]) for descriptor in others]
        await paths[-1].call(body)  # the other process opens them in the same order
        await trio.testing.wait_all_tasks_blocked(0.1)
        idle = private() - ours
        for path in paths:
            await path.call(body)
        used = private() - ours
        serving = await paths[0].call(_MEASURE) - theirs
        for path in paths:
            await path.aclose()
    return {name: size / len(others) for name, size in (("idle", idle), ("used", used), ("serving", serving))}


async def _serve_open(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    asked = trio.Event()

    async def answer(message: Message) -> Any:
        if message.body != _MEASURE:
            return message.body
        asked.set()
        return private()

    async with trio.open_nursery() as nursery:
        for descriptor in descriptors:
            path = await _open(nursery, descriptor, settings["limit"])
            nursery.start_soon(path.serve, answer)
            if descriptor == descriptors[0]:
                await asked.wait()  # it is measured alone, before the others are opened
    return {}


LEFT: Final = {
    "round trips": lambda descriptors, settings: trio.run(_round_trips, descriptors, settings),
    "calls": _left(_calls),
    "one way": _left(_one_way),
    "bulk": _left(_bulk),
    "drafts": _left(_drafts),
    "keep open": lambda descriptors, settings: trio.run(_keep_open, descriptors, settings),
}
RIGHT: Final = {
    "round trips": lambda descriptors, settings: trio.run(_answer_round_trips, descriptors, settings),
    "calls": _right(_serve),
    "one way": _right(_receive),
    "bulk": _right(_receive),
    "drafts": _right(_receive_numbered),
    "keep open": lambda descriptors, settings: trio.run(_serve_open, descriptors, settings),
}
