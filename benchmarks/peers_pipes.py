"""Other ways to send messages between two processes of one machine, measured as benchmarks/pipes.py measures a path.

Each is used in the fastest way that its documentation shows for Python objects or bytes. The modules that need not be
installed are imported where they are used, in a process of their own.
"""

import asyncio
import importlib
import multiprocessing.connection
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

clock: Final = time.perf_counter

# Between two looks at the clock while one-way messages are sent.
_MANY: Final = 256


def _exchange(send: Callable[[Any], object], receive: Callable[[], Any], settings: dict[str, Any]) -> dict[str, Any]:
    body = bytes(settings["size"])
    found: list[float] = []
    for seconds in (settings["warm"], settings["seconds"]):
        found.clear()
        end = (now := clock()) + seconds
        while now < end:
            begun = now
            send(body)
            receive()
            now = clock()
            found.append(now - begun)
    found.sort()
    return {
        "p50": found[len(found) // 2] * 1e6,
        "p99": found[min(len(found) - 1, len(found) * 99 // 100)] * 1e6,
        "mean": sum(found) / len(found) * 1e6,
    }


def _echo(send: Callable[[Any], object], receive: Callable[[], Any], settings: dict[str, Any]) -> dict[str, Any]:
    while body := receive():
        send(body)
    return {}


def _one_way(send: Callable[[Any], object], receive: Callable[[], Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Until the other side says that everything has come."""
    body = bytes(settings["size"])
    total = 0
    for seconds in (settings["warm"], settings["seconds"]):
        count, begun = 0, clock()
        while clock() < begun + seconds:
            for _ in range(_MANY):
                send(body)
            count += _MANY
        send(b"?")
        receive()
        rate = count / (clock() - begun)
        total += count
    return {"rate": rate, "messages": total}


def _count(send: Callable[[Any], object], receive: Callable[[], Any], settings: dict[str, Any]) -> dict[str, Any]:
    count, size = 0, settings["size"]
    while body := receive():
        if len(body) == size:
            count += 1
        else:
            send(b"!")
    return {"messages": count}


# -- multiprocessing.Pipe --------------------------------------------------------------------------------------------


def _pipe(experiment: Callable[..., dict[str, Any]], *, ends: bool) -> Any:
    """Python objects over the socket pair that multiprocessing.Pipe makes, each process blocking in its own."""

    def run(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
        with multiprocessing.connection.Connection(descriptors[0]) as connection:
            found = experiment(connection.send, connection.recv, settings)
            if ends:
                connection.send(b"")
        return found

    return run


# -- ZeroMQ ----------------------------------------------------------------------------------------------------------


def _zeromq(experiment: Callable[..., dict[str, Any]], *, ends: bool) -> Any:
    """A PAIR of sockets over ipc://, with libzmq's high-water marks of 1,000 messages, each process blocking."""

    def run(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
        zmq: Any = importlib.import_module("zmq")
        with zmq.Context() as context, context.socket(zmq.PAIR) as sock:
            if ends:
                sock.connect(f"ipc://{settings['address']}")
            else:
                sock.bind(f"ipc://{settings['address']}")
            found = experiment(sock.send, sock.recv, settings)
            if ends:
                sock.send(b"")
                with socket.socket(fileno=descriptors[0]) as other:
                    other.recv(1)  # it has closed its sockets: the address is free
        return found

    def keep(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
        with socket.socket(fileno=descriptors[0]):
            return run(descriptors, settings)

    return run if ends else keep


# -- gRPC ------------------------------------------------------------------------------------------------------------

_SERVICE, _METHOD = "bench.Echo", "Call"


async def _grpc_calls(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    grpc: Any = importlib.import_module("grpc")
    aio: Any = importlib.import_module("grpc.aio")
    body = bytes(settings["size"])
    other = socket.socket(fileno=descriptors[0])
    try:
        other.recv(1)  # the server listens
        async with aio.insecure_channel(f"unix:{settings['address']}") as channel:
            await channel.channel_ready()
            call = channel.unary_unary(f"/{_SERVICE}/{_METHOD}")  # no serializers: bytes as they are
            return await _many(lambda: call(body), asyncio_tasks, settings, grpc.RpcError)
    finally:
        other.close()


async def _many(
    call: Callable[[], Awaitable[Any]], tasks: Callable[..., Awaitable[None]], settings: dict[str, Any], *errors: Any
) -> dict[str, Any]:
    """``outstanding`` tasks that call again and again; with one alone also how long a call takes."""
    taken: list[float] = []

    async def caller(end: float) -> None:
        now = clock()
        while now < end:
            begun = now
            await call()
            now = clock()
            taken.append(now - begun)

    for seconds in (settings["warm"], settings["seconds"]):
        taken.clear()
        begun = clock()
        await tasks(caller, begun + seconds, settings["outstanding"])
        rate = len(taken) / (clock() - begun)
    taken.sort()
    return {"rate": rate, "p50": taken[len(taken) // 2] * 1e6, "p99": taken[len(taken) * 99 // 100] * 1e6}


async def asyncio_tasks(caller: Callable[[float], Awaitable[None]], end: float, count: int) -> None:
    await asyncio.gather(*(caller(end) for _ in range(count)))


async def _grpc_serve(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    grpc: Any = importlib.import_module("grpc")
    aio: Any = importlib.import_module("grpc.aio")

    async def answer(request: bytes, context: Any) -> bytes:
        return request

    other = socket.socket(fileno=descriptors[0])
    other.setblocking(False)
    server = aio.server()
    handlers = {_METHOD: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    server.add_insecure_port(f"unix:{settings['address']}")
    try:
        await server.start()
        other.send(b"!")
        await asyncio.get_running_loop().sock_recv(other, 1)  # until the other side ends
    finally:
        await server.stop(None)
        other.close()
    return {}


# -- tractor ---------------------------------------------------------------------------------------------------------


async def answer(body: bytes) -> bytes:
    """What the actor does; tractor finds it by its name."""
    return body


def _tractor_calls(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """An actor that tractor starts itself, over a UNIX socket."""
    trio: Any = importlib.import_module("trio")
    tractor: Any = importlib.import_module("tractor")

    async def tasks(caller: Callable[[float], Awaitable[None]], end: float, count: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(caller, end)

    async def main() -> dict[str, Any]:
        body = bytes(settings["size"])
        async with tractor.open_nursery(enable_transports=["uds"]) as actors:
            portal = await actors.start_actor("echo", enable_modules=[__name__])
            found = await _many(lambda: portal.run(answer, body=body), tasks, settings)
            await portal.cancel_actor()
        return found

    found: dict[str, Any] = trio.run(main)
    return found


def _idle(descriptors: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    return {}


LEFT: Final = {
    "pipe: round trips": _pipe(_exchange, ends=True),
    "pipe: one way": _pipe(_one_way, ends=True),
    "zmq: round trips": _zeromq(_exchange, ends=True),
    "zmq: one way": _zeromq(_one_way, ends=True),
    "grpc: calls": lambda descriptors, settings: asyncio.run(_grpc_calls(descriptors, settings)),
    "tractor: calls": _tractor_calls,
}
RIGHT: Final = {
    "pipe: round trips": _pipe(_echo, ends=False),
    "pipe: one way": _pipe(_count, ends=False),
    "zmq: round trips": _zeromq(_echo, ends=False),
    "zmq: one way": _zeromq(_count, ends=False),
    "grpc: calls": lambda descriptors, settings: asyncio.run(_grpc_serve(descriptors, settings)),
    "tractor: calls": _idle,
}
