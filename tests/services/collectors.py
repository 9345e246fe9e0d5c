"""The site's collector of records, for tests: a server of TCP that understands octet counting, and Debian's rsyslog."""

import os
import pathlib
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from tests.services.rfc5424_reader import Frames, Read, read
from tests.systems import LIMIT

RSYSLOGD = shutil.which("rsyslogd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")

needs_rsyslog = pytest.mark.skipif(RSYSLOGD is None, reason="no rsyslogd is installed (Debian: rsyslog)")

RSYSLOG = """\
global(workDirectory="{folder}")
module(load="imtcp")
module(load="imudp")
input(type="imtcp" address="127.0.0.1" port="{port}")
input(type="imudp" address="127.0.0.1" port="{port}")
"""
AT_SOCKET = """\
global(workDirectory="{folder}")
module(load="imuxsock" sysSock.use="off")
input(type="imuxsock" socket="{socket}" useSpecialParser="off" parseHostname="on" ignoreTimestamp="off"
    useSysTimeStamp="off" rateLimit.interval="0")
"""
TO_A_FILE = """\
template(name="all" type="string"
    string="%timestamp%|%hostname%|%syslogfacility-text%|%syslogseverity-text%|%app-name%|%structured-data%|%msg%\\n")
action(type="omfile" file="{folder}/records" template="all")
"""


class Collector:
    """Listens at ``port`` of 127.0.0.1 while it is :meth:`up`. ``messages`` is what it has read, of all connections."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.messages: list[Read] = []
        self.connections = 0
        self.reading = True
        self.port = 0
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._changed = trio.Event()
        self._streams: set[trio.SocketStream] = set()

    async def up(self) -> None:
        """Listen, at the same port as before; the first time at any."""
        (self._listener,) = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = self._listener.socket.getsockname()[1]
        self._scope = trio.CancelScope()
        self._nursery.start_soon(self._serve, self._listener, self._scope)

    def down(self) -> None:
        """Die: everything it has open is reset."""
        self._scope.cancel()
        self._listener.socket.close()
        while self._streams:
            stream = self._streams.pop()
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()

    async def wait(self, count: int) -> list[int]:
        """Until it has read so many messages: their numbers."""
        while len(self.messages) < count:
            await self._changed.wait()
        return self.seqs

    @property
    def seqs(self) -> list[int]:
        """The numbers of the records in the order in which they came."""
        return [int(each.about["seq"]) for each in self.messages]

    def resume(self) -> None:
        """Read again."""
        self.reading = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _serve(self, listener: trio.SocketListener, scope: trio.CancelScope) -> None:
        with scope:
            async with listener, trio.open_nursery() as nursery:
                while not scope.cancel_called:
                    stream = await listener.accept()
                    self.connections += 1
                    nursery.start_soon(self._read, stream)

    async def _read(self, stream: trio.SocketStream) -> None:
        frames = Frames()
        self._streams.add(stream)
        async with stream:
            try:
                while stream in self._streams:
                    while not self.reading:
                        await self._changed.wait()
                    if not (data := await stream.receive_some()):
                        break
                    self.messages += map(read, frames.feed(data))
                    self._tell()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # whoever was sending is gone, or the test has killed this one
            finally:
                self._streams.discard(stream)


def free_port() -> int:
    """A port of TCP and UDP that nobody listens at just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def rsyslog(folder: pathlib.Path, port: int) -> Iterator[pathlib.Path]:
    """Debian's collector; what it writes is in the file."""
    with _rsyslog(folder, RSYSLOG.format(folder=folder, port=port)) as records:
        yield records


@contextmanager
def rsyslog_at_socket(folder: pathlib.Path, address: pathlib.Path) -> Iterator[pathlib.Path]:
    """The same at a UNIX socket, which takes datagrams."""
    with _rsyslog(folder, AT_SOCKET.format(folder=folder, socket=address)) as records:
        yield records


@contextmanager
def _rsyslog(folder: pathlib.Path, inputs: str) -> Iterator[pathlib.Path]:
    assert RSYSLOGD is not None
    folder.mkdir(exist_ok=True)
    (folder / "rsyslog.conf").write_text(inputs + TO_A_FILE.format(folder=folder))
    process = subprocess.Popen([RSYSLOGD, "-n", "-f", str(folder / "rsyslog.conf"), "-i", str(folder / "pid")])
    try:
        yield folder / "records"
    finally:
        process.terminate()
        process.wait(LIMIT)


def lines_of(records: pathlib.Path) -> list[str]:
    return records.read_text().splitlines() if records.exists() else []
