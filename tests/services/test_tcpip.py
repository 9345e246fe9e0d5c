"""TCPIP with real sockets, and the chain TCPIP -> HTTPD -> application, every machine a real machine object."""

import errno
import logging
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from tests.leaks import few_left
from tests.services.machines import Far, Running, System, everything, reset

from retinue.pipes import Message, Path, PathError, memory_pair
from retinue.services import httpd, tcpip
from retinue.svm.asgi import serve_asgi
from retinue.svm.edge import Edge
from retinue.svm.machine import Machine


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "retinue")


@pytest.fixture
async def system() -> AsyncIterator[System]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            system = System(nursery)
            yield system
            nursery.cancel_scope.cancel()
    system.close()


def port_of(caplog: Any) -> int:
    """The port that TCPIP has chosen and logged."""
    found = re.search(r"listening on 127\.0\.0\.1:(\d+) for the edge web", caplog.text)
    assert found is not None
    return int(found[1])


LISTEN = tcpip.Config(listen={"127.0.0.1:0": "web"})


@asynccontextmanager
async def connected(
    system: System, caplog: Any, config: tcpip.Config = LISTEN
) -> AsyncIterator[tuple[trio.SocketStream, Any, Running]]:
    """(client's TCP stream, the machine's stream, TCPIP)."""
    far = Far()
    await system.start("FAR", far.main)
    tcp = await system.start("TCPIP", tcpip.main, config, web="FAR")
    client = await trio.open_tcp_stream("127.0.0.1", port_of(caplog))
    stream, _ = await far.accept()
    async with client:
        yield client, stream, tcp


# -- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "address"), [("127.0.0.1:8080", ("127.0.0.1", 8080)), ("[::1]:0", ("::1", 0))])
def test_address(text: str, address: tuple[str, int]) -> None:
    assert tcpip.parse_address(text) == address
    assert tcpip.format_address(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "1.2.3.4:65536", "::1:80", "[1.2.3.4]:80", "localhost:80"],
)
def test_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(tcpip.BadAddress, match="is not an address"):
        tcpip.parse_address(text)


async def test_listener_says_what_is_wrong_and_what_helps() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(tcpip.ListenFailed, match="another program listens there") as caught:
            await tcpip.open_listener(address, 1)
    assert (caught.value.address, caught.value.errno) == (address, errno.EADDRINUSE)
    with pytest.raises(tcpip.ListenFailed, match="this host has no such address"):
        await tcpip.open_listener("203.0.113.7:0", 1)


async def test_tcpip_is_not_ready_unless_it_listens(system: System) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = tcpip.Config(listen={"127.0.0.1:0": "web", f"127.0.0.1:{taken.getsockname()[1]}": "web"})
        with pytest.raises(tcpip.ListenFailed):
            await tcpip.main(_bare_machine(config, "web"))
    with pytest.raises(tcpip.UnknownEdge, match=r"uses\.web"):
        await tcpip.main(_bare_machine(LISTEN))


def _bare_machine(config: tcpip.Config, *edges: str) -> Machine[Any]:
    path = Path(memory_pair()[0])
    return Machine(
        name="TCPIP",
        config=config,
        edges={edge: Edge(edge, 1) for edge in edges},
        disks={},
        control=path,
        nursery=None,  # type: ignore[arg-type]
    )


# -- relaying -------------------------------------------------------------------------------------------------------


async def test_tcpip_tells_who_is_calling(system: System, caplog: Any) -> None:
    far = Far()
    await system.start("FAR", far.main)
    await system.start("TCPIP", tcpip.main, LISTEN, web="FAR")
    async with await trio.open_tcp_stream("127.0.0.1", port_of(caplog)) as client:
        _, opening = await far.accept()
        assert opening == {
            "type": "tcp.open",
            "client": list(client.socket.getsockname()),
            "server": ["127.0.0.1", port_of(caplog)],
            "resumable": True,
        }


async def test_tcpip_relays_both_ways_and_half_closes(system: System, caplog: Any) -> None:
    async with connected(system, caplog) as (client, stream, _):
        await client.send_all(b"question")
        await client.send_eof()
        assert await everything(stream) == b"question"
        await stream.send_all(b"answer " * 10)
        await stream.send_eof()
        assert await everything(client) == b"answer " * 10


async def test_tcpip_passes_on_the_end_of_the_machine_first(system: System, caplog: Any) -> None:
    async with connected(system, caplog) as (client, stream, _):
        await stream.send_eof()
        assert await everything(client) == b""
        await client.send_all(b"still here")
        assert await stream.receive_some() == b"still here"
        await client.aclose()
        assert await everything(stream) == b""


async def test_tcpip_relays_much_without_loss_and_with_back_pressure(system: System, caplog: Any) -> None:
    total = 20_000_000
    async with connected(system, caplog) as (client, stream, _), trio.open_nursery() as nursery:
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < total:
                await client.send_all(bytes(100_000))
                sent += 100_000
            await client.send_eof()

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent < total  # nobody reads at the other end: the client has to wait
        received = 0
        async for piece in stream:
            received += len(piece)
        assert received == total


async def test_tcpip_severs_the_path_of_a_client_that_is_gone(system: System, caplog: Any) -> None:
    async with connected(system, caplog) as (client, stream, _):
        reset(client)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


@pytest.mark.parametrize("how", ["killed", "aborted"])
async def test_tcpip_resets_the_client_of_a_machine_that_is_gone(system: System, caplog: Any, how: str) -> None:
    async with connected(system, caplog) as (client, stream, _):
        await stream.send_all(b"the first ha")
        assert await client.receive_some() == b"the first ha"
        if how == "killed":
            system.kill("FAR")
        else:
            stream.abort("no more")
        with pytest.raises(trio.BrokenResourceError):  # not an end: nobody may take the half for the whole
            await client.receive_some()


async def test_tcpip_closes_the_connection_when_nobody_is_there(system: System, caplog: Any) -> None:
    config = tcpip.Config(listen={"127.0.0.1:0": "web"}, patience=0.1)
    await system.start("TCPIP", tcpip.main, config, web="NOBODY")
    async with await trio.open_tcp_stream("127.0.0.1", port_of(caplog)) as client:
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
    assert "the edge web is not available: no answer within 0.1 s" in caplog.text
    far = Far()
    await system.start("NOBODY", far.main)
    async with await trio.open_tcp_stream("127.0.0.1", port_of(caplog)) as second:
        stream, _ = await far.accept()
        await stream.send_all(b"now")
        assert await second.receive_some() == b"now"


async def test_tcpip_goes_on_when_a_machine_refuses_at_once(system: System, caplog: Any) -> None:
    async def refuse(vm: Machine[Any]) -> None:
        incoming = vm.listen()
        await vm.ready()
        async for path in incoming:
            path.sever("refused", "go away")

    await system.start("FAR", refuse)
    await system.start("TCPIP", tcpip.main, LISTEN, web="FAR")
    for _ in range(3):
        async with await trio.open_tcp_stream("127.0.0.1", port_of(caplog)) as client:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
    assert "go away" in caplog.text


async def test_tcpip_lets_no_more_in_than_it_may(system: System, caplog: Any) -> None:
    far = Far()
    await system.start("FAR", far.main)
    config = tcpip.Config(listen={"127.0.0.1:0": "web"}, max_connections=1)
    await system.start("TCPIP", tcpip.main, config, web="FAR")
    first = await trio.open_tcp_stream("127.0.0.1", port_of(caplog))
    await far.accept()
    second = await trio.open_tcp_stream("127.0.0.1", port_of(caplog))  # completed by the kernel, not accepted
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert far.paths.statistics().current_buffer_used == 0
    reset(first)
    async with second:
        await far.accept()


async def test_tcpip_waits_when_the_host_has_no_descriptor_to_spare(system: System, caplog: Any) -> None:
    far = Far()
    await system.start("FAR", far.main)
    await system.start("TCPIP", tcpip.main, LISTEN, web="FAR")
    client = trio.socket.socket()
    with client:
        with few_left():
            await client.connect(("127.0.0.1", port_of(caplog)))
            while "cannot accept connections now: Too many open files" not in caplog.text:
                await trio.testing.wait_all_tasks_blocked(0.001)
        await far.accept()
    assert caplog.text.count("cannot accept") == 1


async def test_tcpip_finishes_what_is_owed_when_it_stops(system: System, caplog: Any) -> None:
    async with connected(system, caplog) as (client, stream, tcp):
        await client.send_all(b"question")
        assert await stream.receive_some() == b"question"
        tcp.machine.stop()
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(OSError, match=r"."):
            await trio.open_tcp_stream("127.0.0.1", port_of(caplog))
        await stream.send_all(b"answer")
        assert await client.receive_some() == b"answer"
        assert await everything(stream) == b""  # the client's side is ended now
        await stream.send_eof()
        assert await everything(client) == b""
        await tcp.ended.wait()


async def test_tcpip_stop_is_bounded(system: System, caplog: Any) -> None:
    config = tcpip.Config(listen={"127.0.0.1:0": "web"}, drain_time=0.05)
    async with connected(system, caplog, config) as (client, stream, tcp):
        await client.send_all(b"question")
        await stream.receive_some()
        tcp.machine.stop()
        await tcp.ended.wait()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()


# -- the whole chain ------------------------------------------------------------------------------------------------

GET = b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    body = f"{scope['path']} for {scope['client'][0]}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def run_app(vm: Machine[Any]) -> None:
    await serve_asgi(vm, app)


async def run_plain(vm: Machine[Any]) -> None:
    async def handle(message: Message) -> Any:
        return f"plain {message.body['scope']['path']}"

    await vm.serve(handle)


async def start_site(system: System, **limits: Any) -> Running:
    await system.start("SHOP", run_app)
    await system.start("PLAIN", run_plain)
    config = httpd.Config(routes={"/": "shop", "/plain": "plain"}, **limits)
    running = await system.start("HTTPD", httpd.main, config, shop="SHOP", plain="PLAIN")
    await system.start("TCPIP", tcpip.main, LISTEN, web="HTTPD")
    return running


async def ask(client: trio.SocketStream, path: bytes) -> tuple[int, bytes]:
    await client.send_all(GET % path)
    response = await client.receive_some()
    head, _, body = bytes(response).partition(b"\r\n\r\n")
    return int(head[9:12]), body


async def test_http_through_all_machines(system: System, caplog: Any) -> None:
    await start_site(system)
    async with await trio.open_tcp_stream("127.0.0.1", port_of(caplog)) as client:
        assert await ask(client, b"/x") == (200, b"/x for 127.0.0.1")
        assert await ask(client, b"/plain/x") == (200, b"plain /plain/x")
        await client.send_all(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")  # about HTTPD itself
        assert (await client.receive_some()).startswith(b"HTTP/1.1 204 ")
    assert '127.0.0.1 "GET /x HTTP/1.1" 200 16 ' in caplog.text


async def test_http_survives_the_death_of_an_application(system: System, caplog: Any) -> None:
    await start_site(system, patience=0.1)
    async with await trio.open_tcp_stream("127.0.0.1", port_of(caplog)) as client:
        assert (await ask(client, b"/x"))[0] == 200
        system.kill("SHOP")
        assert (await ask(client, b"/x"))[0] in (502, 503)
        assert (await ask(client, b"/x"))[0] == 503
        assert (await ask(client, b"/plain"))[0] == 200
        await system.start("SHOP", run_app)
        assert (await ask(client, b"/x"))[0] == 200


async def test_http_without_a_route_is_a_404(system: System, caplog: Any) -> None:
    await system.start("PLAIN", run_plain)
    await system.start("HTTPD", httpd.main, httpd.Config(routes={"/plain": "plain"}), plain="PLAIN")
    await system.start("TCPIP", tcpip.main, LISTEN, web="HTTPD")
    async with await trio.open_tcp_stream("127.0.0.1", port_of(caplog)) as client:
        assert (await ask(client, b"/"))[0] == 404
        assert (await ask(client, b"/plain"))[0] == 200


async def test_http_stops_in_order(system: System, caplog: Any) -> None:
    running = await start_site(system)
    async with await trio.open_tcp_stream("127.0.0.1", port_of(caplog)) as client:
        assert (await ask(client, b"/x"))[0] == 200
        running.machine.stop()
        assert await client.receive_some() == b""
    await running.ended.wait()


async def test_httpd_turns_away_who_does_not_open_properly(system: System, caplog: Any) -> None:
    async def intrude(vm: Machine[Any]) -> None:
        for body in ("hello", {"type": "tcp.open", "client": ["evil\n", 1]}):
            path = await vm.connect("web")
            await path.send(body)
            with pytest.raises(PathError):
                await path.receive()
        await vm.ready()

    await start_site(system)
    await system.start("INTRUDER", intrude, web="HTTPD")
    assert caplog.text.count("INTRUDER: ") >= 2
    async with await trio.open_tcp_stream("127.0.0.1", port_of(caplog)) as client:
        assert (await ask(client, b"/x"))[0] == 200
