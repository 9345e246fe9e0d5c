"""UNIX sockets of the host that a machine is connected to: which, and by what descriptor. We are the machine."""

import contextlib
import errno
import os
import pathlib
import secrets
import socket
import stat
import threading
import tomllib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors, few_left

from retinue.cp import host_sockets
from retinue.cp.directory import MachineEntry
from retinue.cp.directory.host_sockets import ADDRESS_MAXIMUM, wrong_address
from retinue.cp.host_sockets import CONNECTING, LIMIT, MAX_DATAGRAM, MOST, HostSockets
from retinue.cp.offences import Offences
from retinue.cp.syslog import Syslog
from retinue.pipes import AccessDenied, Path, PathSevered, Rejected, SocketTransport, open_path
from retinue.svm.host_socket import MAX_ADDRESS, is_address

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@attrs.frozen
class Process:
    """Of a machine."""

    entry: MachineEntry
    name: str = "TCPIP"
    generation: int = 1
    leaving: object = None


class Host:
    """Sockets in a folder, and who may be connected to them."""

    def __init__(self, folder: pathlib.Path, nursery: trio.Nursery, stack: contextlib.ExitStack) -> None:
        self.syslog = Syslog()
        self.sockets = HostSockets(Offences(self.syslog, nursery), self.syslog, nursery)
        self.stack = stack
        self.path = str(folder / "log")
        self.abstract = f"@{secrets.token_hex(8)}"
        self.other = str(folder / "other")

    def listen(self, address: str, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        made = self.stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        made.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        if kind != socket.SOCK_DGRAM:
            made.listen(1)
        made.settimeout(10)
        return made

    def process(self, *addresses: str) -> Process:
        return Process(MachineEntry("TCPIP", "program", "tcpip", network=True, host_sockets=addresses))

    async def connect(self, address: str, kind: str, *allowed: str) -> socket.socket:
        descriptor = await self.sockets.connect(self.process(*(allowed or (address,))), address, kind)
        assert os.get_inheritable(descriptor) is False
        return self.stack.enter_context(socket.socket(fileno=descriptor))

    @contextlib.asynccontextmanager
    async def datagrams(self, address: str) -> AsyncIterator[Path]:
        descriptor = await self.sockets.connect(self.process(address), address, "datagram")
        async with open_path(SocketTransport(socket.socket(fileno=descriptor))) as path:
            yield path


@pytest.fixture
async def host(tmp_path: pathlib.Path) -> AsyncIterator[Host]:
    with trio.fail_after(20), contextlib.ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            yield Host(tmp_path, nursery, stack)
            nursery.cancel_scope.cancel()


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, host: Host) -> str:
    return str(getattr(host, request.param))


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_stream_is_the_connection_itself(host: Host, address: str) -> None:
    """Bytes and ends pass between the machine and the socket without the control program."""
    listener = host.listen(address, socket.SOCK_STREAM)
    with await host.connect(address, "stream") as ours, listener.accept()[0] as theirs:
        assert (ours.type, os.get_blocking(ours.fileno())) == (socket.SOCK_STREAM, False)
        ours.send(b"to the outside")
        assert theirs.recv(100) == b"to the outside"
        theirs.send(b"and back")
        ours.setblocking(True)
        assert ours.recv(100) == b"and back"
        ours.shutdown(socket.SHUT_WR)
        assert theirs.recv(100) == b""


def attempts(sock: socket.socket, other: str) -> Iterator[tuple[str, Any]]:
    """What might lead a socket somewhere else."""
    yield "connect", lambda: sock.connect(other)
    yield "sendto", lambda: sock.sendto(b"x", other)
    yield "sendmsg", lambda: sock.sendmsg([b"x"], [], 0, other)
    yield "listen", lambda: sock.listen(1)
    sock.shutdown(socket.SHUT_RDWR)
    yield "connect after the end", lambda: sock.connect(other)


@pytest.mark.parametrize("gone", [False, True])
async def test_stream_leads_nowhere_else(host: Host, gone: bool) -> None:
    """Neither while it is connected, nor when the other end has gone; a datagram socket would."""
    listener = host.listen(host.path, socket.SOCK_STREAM)
    other = host.listen(host.abstract, socket.SOCK_STREAM)
    takes_datagrams = host.listen(host.abstract)
    ours = await host.connect(host.path, "stream")
    theirs = host.stack.enter_context(listener.accept()[0])
    if gone:
        theirs.close()
    there = f"\0{host.abstract[1:]}"
    for what, attempt in attempts(ours, there):
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            attempt()
        assert caught.value.errno in (errno.EISCONN, errno.EINVAL, errno.EPIPE), what
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.accept()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as free:
        free.sendto(b"x", there)
    assert takes_datagrams.recv(10) == b"x"


# -- datagrams ---------------------------------------------------------------------------------------------------------


async def test_messages_are_datagrams(host: Host, address: str) -> None:
    """In order, each whole; a call is answered when the socket has all that came before it."""
    reader = host.listen(address)
    async with host.datagrams(address) as path:
        for each in (b"first", b"", b"x" * 65507):
            await path.send(each)
        await path.call(None)
        reader.setblocking(False)
        assert [reader.recv(1 << 17) for _ in range(3)] == [b"first", b"", b"x" * 65507]
        assert await path.call(b"one that is answered") is None
        assert reader.recv(100) == b"one that is answered"


async def test_machine_gets_no_socket_that_could_send_elsewhere(host: Host) -> None:
    """What it has is one end of a pair of packets, whose other end is the control program."""
    host.listen(host.path)
    other = host.listen(host.abstract)
    listener = host.listen(host.abstract, socket.SOCK_SEQPACKET)
    ours = await host.connect(host.path, "datagram")
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_SEQPACKET
    assert ours.getpeername() == ""
    there = f"\0{host.abstract[1:]}"
    for _ in range(2):
        with pytest.raises(OSError, match="already connected"):
            ours.connect(there)
        ours.shutdown(socket.SHUT_RDWR)
    ours = await host.connect(host.path, "datagram")
    with contextlib.suppress(OSError):  # the address is not looked at
        ours.sendto(b"\xc1", there)
    for each, attempt in ((other, lambda: other.recv(100)), (listener, listener.accept)):
        each.setblocking(False)
        with pytest.raises(BlockingIOError):
            attempt()


async def test_reader_that_is_slow_holds_up_the_machine_and_nobody_else(host: Host) -> None:
    """Nothing is dropped, and so much waits and no more; another socket goes on meanwhile."""
    reader, free = host.listen(host.path), host.listen(host.abstract)
    sent = 0
    async with host.datagrams(host.path) as path, host.datagrams(host.abstract) as other:
        await path.wait_open()
        with contextlib.suppress(trio.WouldBlock):
            while True:
                path.send_nowait(b"%d" % sent)
                sent += 1
                await trio.testing.wait_all_tasks_blocked()
        queue = int(await trio.Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        assert queue < sent <= queue + LIMIT + 2
        await other.call(b"still here")
        assert free.recv(100) == b"still here"
        got = [await trio.to_thread.run_sync(reader.recv, 100) for _ in range(sent)]
        assert got == [b"%d" % number for number in range(sent)]
        await path.call(None)


async def fill(path: Path) -> int:
    """Send until nothing more is taken; returns how many messages it were."""
    sent = 0
    await path.wait_open()
    with contextlib.suppress(trio.WouldBlock):
        while True:
            path.send_nowait(b"x")
            sent += 1
            await trio.testing.wait_all_tasks_blocked()
    return sent


async def test_what_waits_has_no_descriptors(host: Host) -> None:
    """They are closed as soon as they come, also of messages that wait behind others."""
    reader = host.listen(host.path)
    async with host.datagrams(host.path) as path, trio.open_nursery() as nursery:
        sent = await fill(path)
        before = descriptors()
        for _ in range(sent - 1):
            reader.recv(100)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(sent - 1):
            nursery.start_soon(partial(path.send, b"x", descriptors=(0,) * 10))
        await trio.testing.wait_all_tasks_blocked()
        assert path.meter.outstanding == LIMIT
        assert_none_left(before)
        nursery.cancel_scope.cancel()


async def test_what_is_no_datagram_does_not_wait_behind_those_that_do(host: Host) -> None:
    """Decoded it may be fifty times as large as its bytes."""
    reader = host.listen(host.path)
    async with host.datagrams(host.path) as path:
        sent = await fill(path)
        reader.recv(100)
        await trio.testing.wait_all_tasks_blocked()
        path.send_nowait([[]] * 10000)
        await path.wait_severed()
        assert isinstance(path.severed, PathSevered)
        assert path.severed.code == "violation"
    reader.setblocking(False)
    read = 1
    with contextlib.suppress(BlockingIOError):
        while reader.recv(100):
            read += 1
    assert read < sent


async def test_reader_that_goes_ends_the_path_and_the_machine_learns_why(host: Host) -> None:
    """And its successor is reached by another one."""
    reader = host.listen(host.path)
    async with host.datagrams(host.path) as path:
        await path.call(b"read")
        reader.close()
        with pytest.raises(PathSevered) as caught:
            await path.call(b"not read")
        assert (caught.value.code, caught.value.text) == ("unreachable", f"{host.path}: nobody listens there")
    os.unlink(host.path)
    reader = host.listen(host.path)
    async with host.datagrams(host.path) as path:
        await path.call(b"again")
        assert reader.recv(100) == b"again"


@pytest.mark.parametrize("body", ["text", {"type": "x"}, None, b"x" * (MAX_DATAGRAM + 1)])
async def test_what_is_no_datagram_ends_the_path_with_a_record(host: Host, body: Any) -> None:
    host.listen(host.path)
    async with host.datagrams(host.path) as path:
        with contextlib.suppress(PathSevered):
            await path.send(body)
        await path.wait_severed()
        assert isinstance(path.severed, PathSevered)
        assert path.severed.code == "violation"
    await trio.testing.wait_all_tasks_blocked()
    (record,) = host.syslog.recent(None, 10)
    assert record["message"].startswith(f"the path TCPIP to {host.path} was severed: TCPIP broke the protocol: a datag")
    assert (record["fields"]["of"], record["fields"]["rule"]) == ("TCPIP", path.severed.text)


async def test_bug_ends_the_path_and_nothing_else(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one of the host: it raises what is no error of a socket."""
    reader, send = host.listen(host.path), socket.socket.send

    def broken(sock: socket.socket, data: bytes, *flags: int) -> int:
        if sock.type == socket.SOCK_DGRAM:
            raise ZeroDivisionError("as it happens")
        return send(sock, data, *flags)

    async with host.datagrams(host.path) as path:
        await path.wait_open()
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "send", broken, raising=False)
            path.send_nowait(b"not sent")
            await path.wait_severed()
    await trio.testing.wait_all_tasks_blocked()
    (record,) = host.syslog.recent(None, 10)
    assert record["message"].startswith(f"handing on datagrams failed, TCPIP to {host.path}:\n")
    assert "ZeroDivisionError: as it happens" in record["message"]
    async with host.datagrams(host.path) as path:
        await path.call(b"sent")
    assert reader.recv(100) == b"sent"


async def test_machine_that_dies_leaves_nothing_waiting(host: Host) -> None:
    """Its places are free, also if what it had sent found no room; MOST bounds them."""
    host.listen(host.path)
    kept = [await host.connect(host.path, "datagram") for _ in range(MOST - 1)]
    async with host.datagrams(host.path) as path:
        await fill(path)
        with pytest.raises(Rejected, match=f"exhausted: TCPIP has {MOST} datagram sockets"):
            await host.connect(host.path, "datagram")
    for each in kept:
        each.close()
    await trio.testing.wait_all_tasks_blocked(0.01)
    again = [await host.connect(host.path, "datagram") for _ in range(MOST)]
    assert len(again) == MOST


# -- refusals ----------------------------------------------------------------------------------------------------------


async def test_only_what_the_topology_names_is_connected(host: Host, address: str) -> None:
    """A denial is a counted record, and has the line that would allow it, with what is allowed already."""
    host.listen(address)
    with pytest.raises(AccessDenied) as caught:
        await host.connect(address, "datagram", "/run/another")
    line = f'put  host_sockets = ["/run/another", "{address}"]  under [machines.TCPIP]'
    assert caught.value.text.endswith(line)
    (record,) = host.syslog.recent(None, 10)
    assert (record["message"], record["fields"]["of"]) == (caught.value.text, "TCPIP")


async def test_line_to_add_is_toml_whatever_the_name(host: Host) -> None:
    names = ('@say "größe"', "@back\\slash")
    with pytest.raises(AccessDenied) as caught:
        await host.connect(names[0], "stream", names[1])
    line = caught.value.text.partition("put  ")[2].partition("  under")[0]
    assert tomllib.loads(line) == {"host_sockets": [names[1], names[0]]}


async def test_process_that_is_to_end_gets_none(host: Host) -> None:
    host.listen(host.path)
    leaving = Process(host.process(host.path).entry, leaving="asked")
    with pytest.raises(Rejected, match="stopping: TCPIP is ending"):
        await host.sockets.connect(leaving, host.path, "datagram")


async def test_paths_that_are_not_looked_up_are_not_waited_for_without_end(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We have the places of those that are being looked up, as a file system that does not answer has them."""
    monkeypatch.setattr(host_sockets, "PATIENCE", 0.01)
    host.listen(host.path)
    stuck = [object() for _ in range(CONNECTING)]
    for each in stuck:
        host.sockets.connecting.acquire_on_behalf_of_nowait(each)
    for _ in range(MOST + 1):  # no place is lost
        with pytest.raises(Rejected, match=r"timeout: .* was not connected within 0.01 s") as caught:
            await host.connect(host.path, "datagram")
    assert caught.value.detail == {"errno": errno.ETIMEDOUT}
    for each in stuck:
        host.sockets.connecting.release_on_behalf_of(each)
    monkeypatch.undo()
    assert await host.connect(host.path, "datagram")


async def test_want_of_threads_is_told(host: Host) -> None:
    host.listen(host.path)
    over, exhausted = threading.Event(), trio.Event()
    limiter = trio.CapacityLimiter(1000)
    before = threading.stack_size(1 << 47)  # there are not so many addresses
    try:
        async with trio.open_nursery() as nursery:

            async def keep_busy() -> None:
                try:
                    await trio.to_thread.run_sync(over.wait, limiter=limiter)
                except RuntimeError:
                    exhausted.set()

            while not exhausted.is_set():  # as long as there are idle ones
                nursery.start_soon(keep_busy)
                await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Rejected, match="exhausted: the host has no room for a thread"):
                await host.connect(host.path, "datagram")
            over.set()
    finally:
        threading.stack_size(before)
        over.set()


@pytest.mark.parametrize(
    ("what", "kind", "number", "text"),
    [
        ("nothing", "stream", errno.ENOENT, "there is no such socket"),
        ("nothing", "datagram", errno.ENOENT, "there is no such socket"),
        ("nobody", "stream", errno.ECONNREFUSED, "nobody listens there"),
        ("nobody", "datagram", errno.ECONNREFUSED, "nobody listens there"),
        ("a file", "datagram", errno.ECONNREFUSED, "nobody listens there"),
        ("datagrams", "stream", errno.EPROTOTYPE, "the socket there is of another kind"),
        ("streams", "datagram", errno.EPROTOTYPE, "the socket there is of another kind"),
        ("a full backlog", "stream", errno.EAGAIN, "more connections wait there than it takes"),
        ("one of root", "stream", errno.EACCES, "the user that the system runs as may not write to it"),
    ],
)
async def test_host_says_no(host: Host, what: str, kind: str, number: int, text: str) -> None:
    """Never waiting; with the reason, and the number of it."""
    match what:
        case "nobody":
            host.listen(host.path, socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM).close()
        case "a file":
            await trio.Path(host.path).touch()
        case "datagrams":
            host.listen(host.path)
        case "streams" | "a full backlog" | "one of root":
            host.listen(host.path, socket.SOCK_STREAM)
    if what == "a full backlog":
        waiting = [await host.connect(host.path, kind) for _ in range(2)]
        assert len(waiting) == 2
    if what == "one of root":
        if os.geteuid() == 0:
            pytest.skip("root may write to all sockets")
        os.chmod(host.path, stat.S_IRUSR)
    with pytest.raises(Rejected) as caught:
        await host.connect(host.path, kind)
    assert (caught.value.code, caught.value.detail) == ("unreachable", {"errno": number})
    assert caught.value.text == f"{host.path}: {text}"


@pytest.mark.parametrize("address", ["log", "/a/../b", "@"])
async def test_request_that_is_none(host: Host, address: str) -> None:
    with pytest.raises(Rejected, match=r"^bad-address: the address of a socket was asked for, "):
        await host.connect(address, "stream")
    with pytest.raises(Rejected, match="bad-kind: a socket is of the kind stream or datagram"):
        await host.connect(host.path, "seqpacket")


async def test_want_of_descriptors_is_told(host: Host) -> None:
    host.listen(host.path)
    # A worker thread, which needs none, is there already when the limit is low.
    (await host.connect(host.path, "datagram")).close()
    with few_left(), pytest.raises(Rejected, match="exhausted: the host has no room for a connection"):
        await host.connect(host.path, "datagram")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("/dev/log", ""),
        ("@log", ""),
        ("@/run/log with spaces", ""),
        ("/run/größe", ""),
        ("/" + "x" * 106, ""),
        ("/" + "x" * 107, "has 108 bytes"),
        ("/" + "ö" * 54, "has 109 bytes"),
        ("", "expected an absolute path"),
        ("dev/log", "expected an absolute path"),
        ("./log", "expected an absolute path"),
        ("@", "an abstract name without a name"),
        ("/", "a folder"),
        ("//dev/log", "no path without detours"),
        ("/dev//log", "no path without detours"),
        ("/dev/./log", "no path without detours"),
        ("/dev/../dev/log", "no path without detours"),
        ("/dev/log/", "no path without detours"),
        ("/dev/\0log", "characters that cannot be shown"),
        ("@\0", "characters that cannot be shown"),
        ("/dev/\x1b[2J", "characters that cannot be shown"),
        ("/dev/\ud800", "no text"),
    ],
)
def test_address_has_one_spelling(address: str, why: str) -> None:
    """For the topology and for the machines the same."""
    assert wrong_address(address)[0].find(why) >= 0
    assert is_address(address) is (why == "")
    assert bool(wrong_address(address)[0]) is (why != "")
    assert MAX_ADDRESS == ADDRESS_MAXIMUM
