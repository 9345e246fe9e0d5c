"""Going to UNIX sockets of the host through TCPIP: real machine objects, a real TCPIP, and the control program's."""

import contextlib
import errno
import logging
import pathlib
import socket
import tomllib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from tests.services.machines import Running, System, everything
from tests.services.test_tcpip_outside import Shop

from retinue.pipes import AccessDenied, PathSevered, Rejected
from retinue.services import tcpip
from retinue.services.tcpip.host_datagrams import MOST
from retinue.svm import (
    BadDestination,
    ConnectRefused,
    Machine,
    OutsideFailed,
    UnixDatagrams,
    dial_unix,
    open_unix_datagrams,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


class Place:
    """A system with TCPIP, SHOP that uses it, and a socket of the host."""

    def __init__(self, system: System, address: str, stack: contextlib.ExitStack) -> None:
        self.system = system
        self.address = address
        self.stack = stack
        self.rules = [f"unix:{address}"]
        self.vm: Machine[Any]

    async def start(self) -> tuple[Machine[Any], Running]:
        """(SHOP, which has the edge ``net``, TCPIP)."""
        running = await self.system.start(
            "TCPIP", tcpip.main, tcpip.Config(allow={"SHOP": self.rules, "OTHER": self.rules})
        )
        shop = Shop()
        await self.system.start("SHOP", shop.main, net="TCPIP")
        self.vm = shop.vm
        return shop.vm, running

    def listen(self, kind: int) -> trio.socket.SocketType:
        sock = self.stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        sock.bind(self.address)
        if kind == socket.SOCK_STREAM:
            sock.listen(1)
        return trio.socket.from_stdlib_socket(sock)

    async def datagrams(self) -> tuple[UnixDatagrams, trio.socket.SocketType]:
        reader = self.listen(socket.SOCK_DGRAM)
        vm, _ = await self.start()
        return await open_unix_datagrams(vm, "net", self.address), reader


@pytest.fixture
async def place(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Place]:
    caplog.set_level(logging.DEBUG, "retinue")
    address = str(tmp_path / "s")
    with trio.fail_after(20), contextlib.ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            system = System(nursery, host_sockets=("/run/another", address))
            yield Place(system, address, stack)
            nursery.cancel_scope.cancel()
        system.close()


async def test_stream_has_both_directions_and_both_ends(place: Place) -> None:
    listener = place.listen(socket.SOCK_STREAM)
    vm, _ = await place.start()
    async with await dial_unix(vm, "net", place.address) as stream:
        far = trio.SocketStream((await listener.accept())[0])
        async with far:
            assert stream.address == place.address
            await stream.send_all(b"question")
            await stream.send_eof()
            assert await everything(far) == b"question"
            await far.send_all(b"answer")
            await far.send_eof()
            assert await everything(stream) == b"answer"


async def test_stream_that_is_closed_with_something_unread_breaks(place: Place) -> None:
    """So an orderly end says that all was read, as with TCP."""
    listener = place.listen(socket.SOCK_STREAM)
    vm, _ = await place.start()
    stream = await dial_unix(vm, "net", place.address)
    far, _ = await listener.accept()
    await stream.send_all(b"not read")
    await trio.lowlevel.wait_readable(far)
    far.close()
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    stream.abort()


async def test_datagrams_arrive_whole_and_in_order(place: Place) -> None:
    """When flush returns, whoever reads the socket has them all."""
    datagrams, reader = await place.datagrams()
    sent = [b"", b"x" * 65507, *(b"%d" % number for number in range(5))]
    for each in sent:
        await datagrams.send(each)
    await datagrams.flush()
    assert [await reader.recv(1 << 17) for _ in sent] == sent
    await datagrams.send(b"last")
    await datagrams.aclose()
    assert await reader.recv(100) == b"last"


async def test_reader_that_is_slow_holds_the_sender_up(place: Place) -> None:
    """Nothing is dropped, and flush waits for what has no room yet."""
    datagrams, reader = await place.datagrams()
    flushed = trio.Event()
    # What the kernel keeps for the reader, and one more.
    rest = int(await trio.Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 2

    async def send() -> None:
        for number in range(1000):
            await datagrams.send(b"%d" % number)
        await datagrams.flush()
        flushed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert datagrams.path.meter.outstanding == datagrams.path.limit
        got = [await reader.recv(100) for _ in range(1000 - rest)]
        assert not flushed.is_set()
        got += [await reader.recv(100) for _ in range(rest)]
        await flushed.wait()
    assert got == [b"%d" % number for number in range(1000)]
    await datagrams.aclose()


async def test_reader_that_has_gone_is_told(place: Place) -> None:
    """What flush had not said is not with it."""
    datagrams, reader = await place.datagrams()
    await datagrams.send(b"read")
    await datagrams.flush()
    reader.close()
    await datagrams.send(b"not read")
    with pytest.raises(trio.BrokenResourceError, match="nobody listens there"):
        await datagrams.flush()
    with pytest.raises(trio.BrokenResourceError, match="nobody listens there"):
        await datagrams.send(b"neither")
    await datagrams.aclose()


async def test_places_are_bounded_and_that_of_a_sender_who_has_gone_is_free(place: Place) -> None:
    """Also if what it had sent found no room: that is given up. Another machine has places of its own."""
    place.listen(socket.SOCK_DGRAM)
    vm, _ = await place.start()
    all_there_are = [await open_unix_datagrams(vm, "net", place.address) for _ in range(MOST)]
    with pytest.raises(ConnectRefused, match=f"SHOP is not connected to .*: {MOST} paths of SHOP .* are open"):
        await open_unix_datagrams(vm, "net", place.address)
    other = Shop()
    await place.system.start("OTHER", other.main, net="TCPIP")
    all_there_are.append(await open_unix_datagrams(other.vm, "net", place.address))
    path = all_there_are[0].path
    while path.meter.outstanding < path.limit:
        path.send_nowait(b"x")
        await trio.testing.wait_all_tasks_blocked()
    path.sever()
    again = None
    while again is None:
        with contextlib.suppress(ConnectRefused):
            again = await open_unix_datagrams(vm, "net", place.address)
    for each in all_there_are[1:]:
        each.path.sever()
    again.path.sever()


async def test_what_was_sent_over_a_path_that_was_severed_comes_before_that_of_the_next_or_never(place: Place) -> None:
    datagrams, reader = await place.datagrams()
    while datagrams.path.meter.outstanding < datagrams.path.limit:
        datagrams.path.send_nowait(b"old")
        await trio.testing.wait_all_tasks_blocked()
    datagrams.path.sever()
    await trio.testing.wait_all_tasks_blocked()
    again = await open_unix_datagrams(place.vm, "net", place.address)
    await again.send(b"new")
    got = list[bytes]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.flush)
        while not got or got[-1] != b"new":
            got.append(await reader.recv(100))
    assert set(got[:-1]) == {b"old"}
    await again.send(b"last")
    assert await reader.recv(100) == b"last"
    await again.aclose()


@pytest.mark.parametrize("body", ["text", {"type": "udp.error"}, b"x" * 65508])
async def test_what_is_no_datagram_ends_the_path(place: Place, body: Any) -> None:
    datagrams, _ = await place.datagrams()
    await datagrams.path.send(body)
    await datagrams.path.wait_severed()
    assert isinstance(datagrams.path.severed, PathSevered)
    assert datagrams.path.severed.code == "refused"


async def test_call_that_is_unknown_is_refused_and_the_path_goes_on(place: Place) -> None:
    datagrams, reader = await place.datagrams()
    with pytest.raises(Rejected, match=r"unknown-message: after unix.open there is one call, unix.flush"):
        await datagrams.path.call({"type": "unix.read"})
    await datagrams.send(b"x")
    assert await reader.recv(100) == b"x"
    await datagrams.aclose()


async def test_stop_ends_datagrams(place: Place) -> None:
    place.listen(socket.SOCK_DGRAM)
    vm, running = await place.start()
    datagrams = await open_unix_datagrams(vm, "net", place.address)
    running.machine.stop()
    with pytest.raises(trio.BrokenResourceError, match="stopping"):
        await datagrams.receive()


# -- refusals ----------------------------------------------------------------------------------------------------------


async def test_rule_is_needed_and_the_line_to_add_works(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """For this machine and this socket: the same rule for both kinds."""
    listener = place.listen(socket.SOCK_STREAM)
    place.rules = ["unix:/run/another"]
    vm, running = await place.start()
    with pytest.raises(AccessDenied) as caught:
        await dial_unix(vm, "net", place.address)
    line = f'config.allow.SHOP = ["unix:/run/another", "unix:{place.address}"]'
    assert f"put  {line}  under [machines.TCPIP]" in caught.value.text
    assert [each.getMessage() for each in caplog.records if "refused" in each.getMessage()]
    running.scope.cancel()
    await running.ended.wait()
    place.rules = tomllib.loads(line)["config"]["allow"]["SHOP"]
    vm, _ = await place.start()
    stream = await dial_unix(vm, "net", place.address)
    (await listener.accept())[0].close()
    await stream.aclose()


@pytest.mark.parametrize("kind", ["stream", "datagram"])
async def test_topology_must_name_the_socket_too(place: Place, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    place.system.host_sockets = ("/run/another",)
    place.listen(socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM)
    vm, _ = await place.start()
    reach: Any = dial_unix if kind == "stream" else open_unix_datagrams
    with pytest.raises(AccessDenied) as caught:
        await reach(vm, "net", place.address)
    line = f'host_sockets = ["/run/another", "{place.address}"]  under [machines.TCPIP]'
    assert caught.value.text.endswith(f"put  {line}")
    assert line in caplog.text


@pytest.mark.parametrize("kind", ["stream", "datagram"])
async def test_host_says_no(place: Place, kind: str) -> None:
    vm, _ = await place.start()
    reach: Any = dial_unix if kind == "stream" else open_unix_datagrams
    with pytest.raises(OutsideFailed) as caught:
        await reach(vm, "net", place.address)
    assert (caught.value.code, caught.value.errno) == ("unreachable", errno.ENOENT)
    assert str(caught.value) == f"{place.address}: there is no such socket"
    place.listen(socket.SOCK_DGRAM if kind == "stream" else socket.SOCK_STREAM)
    with pytest.raises(OutsideFailed, match="the socket there is of another kind"):
        await reach(vm, "net", place.address)


@pytest.mark.parametrize("address", ["log", "/a/../b", "@", "/" + "x" * 107, "/\0", 7, None])
async def test_address_that_is_none(place: Place, address: Any) -> None:
    vm, _ = await place.start()
    with pytest.raises(BadDestination, match="the address of a socket is an absolute path"):
        await dial_unix(vm, "net", address)
