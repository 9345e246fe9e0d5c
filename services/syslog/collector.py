"""The site's collector of records, and the ways to it: a connection of TCP, or datagrams, or a UNIX socket with either.

Everything goes through the machine at the end of an edge, which is TCPIP: its ``config.allow`` decides.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

import attrs
import trio

from retinue.pipes import PathError
from retinue.services.syslog.rfc5424 import count_octets
from retinue.svm import (
    Datagrams,
    Machine,
    OutsideStream,
    UnixDatagrams,
    dial,
    dial_unix,
    open_datagrams,
    open_unix_datagrams,
)
from retinue.svm.host_socket import MAX_ADDRESS, is_address

# How long a collector may take to accept what is sent at once, in bytes and seconds, and to read what is on its way and
# close a connection that has ended: some hundred KiB, over a slow line.
PIECE: Final = 64 * 1024
SEND_TIME: Final = 30.0
CLOSE_TIME: Final = 30.0
# How long the network has to say that what was sent came not, in seconds: many round trips of a site.
ANSWER_TIME: Final = 0.25
# Datagrams sent at once, and the seconds until the next ones: a socket's buffer on the other side has room for some
# 150 of 1 KiB, and what finds none is lost without a word.
BURST: Final = 32
BURST_PAUSE: Final = 0.005

_HOST: Final = re.compile(r"[^\s/:@?#\[\]]+")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_FORMS: Final = '"tcp://HOST:PORT", "udp://HOST:PORT", "unix:///PATH", "unix-stream:///PATH"'
_PROTOCOLS: Final = ("tcp", "udp", "unix", "unix-stream")


class BadCollector(ValueError):
    """A text is no collector that can be reached. Fields: ``text``, ``why``."""

    def __init__(self, text: str, why: str) -> None:
        self.text, self.why = text, why
        super().__init__(f"{text[:80]!r} is no collector: {why}")


class CollectorLost(Exception):
    """The collector has not taken everything that was sent; the text says why."""


@attrs.frozen
class Collector:
    """Where records are sent. As a text it is what the config has.

    ``unix`` takes datagrams; of both kinds of UNIX sockets ``host`` is the address, and ``port`` 0.
    """

    protocol: Literal["tcp", "udp", "unix", "unix-stream"]
    host: str
    port: int

    def __str__(self) -> str:
        if self.protocol in ("unix", "unix-stream"):
            return f"{self.protocol}://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}://{host}:{self.port}"


def parse_collector(text: str) -> Collector:
    """``"tcp://log.example.org:514"``, ``"udp://[2001:db8::7]:514"``, ``"unix:///dev/log"`` or
    ``"unix-stream://@collector"``. Raises :exc:`BadCollector`.
    """
    protocol, mark, rest = text.partition("://")
    if not mark or protocol not in _PROTOCOLS:
        raise BadCollector(text, f"write one of {_FORMS}")
    if protocol in ("unix", "unix-stream"):
        if not is_address(rest):
            form = f'"{protocol}:///PATH", the path without detours, or "{protocol}://@NAME" for an abstract name'
            raise BadCollector(text, f"write {form}; {MAX_ADDRESS} bytes at most")
        return Collector("unix" if protocol == "unix" else "unix-stream", rest, 0)
    host, colon, port = rest.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > 65535:
        raise BadCollector(text, "at its end is a port from 1 to 65535, as in tcp://log.example.org:514")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise BadCollector(text, "in brackets is an IPv6 address") from None
    elif not _HOST.fullmatch(host):
        raise BadCollector(text, "its host is a name, an IP address, or an IPv6 address in brackets")
    return Collector("tcp" if protocol == "tcp" else "udp", host, int(port))


class Link(Protocol):
    """A way to the collector for some messages. What was sent counts when :meth:`finish` has returned."""

    @property
    def lost(self) -> trio.Event:
        """Set when the way has ended by itself."""

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send them in order. Raises what :data:`~retinue.services.syslog.forward.FAILURES` names."""

    async def finish(self) -> None:
        """Until the collector has taken everything that was sent, as far as the protocol tells. Raises likewise."""

    def cut(self) -> None:
        """Let go of it."""


async def open_link(vm: Machine[Any], edge: str, collector: Collector, nursery: trio.Nursery) -> Link:
    """A way to the collector; a task of it runs in ``nursery``. Raises as :func:`~retinue.svm.dial` does."""
    link: StreamLink | DatagramLink
    match collector.protocol:
        case "tcp":
            link = StreamLink(await dial(vm, edge, collector.host, collector.port))
        case "unix-stream":
            link = StreamLink(await dial_unix(vm, edge, collector.host))
        case "udp":
            link = DatagramLink(await open_datagrams(vm, edge, collector.host, collector.port))
        case "unix":
            link = UnixDatagramLink(await open_unix_datagrams(vm, edge, collector.host))
    nursery.start_soon(link.listen)
    return link


class StreamLink:
    """One connection, octet-counted. Its orderly end is the collector's only word that it has read it all.

    A collector that ends it before it has read what has come resets it. What comes later is reset within a round trip,
    which is waited for first: an end that only crosses what was sent is no word about that.
    """

    def __init__(self, stream: OutsideStream) -> None:
        self.lost = trio.Event()
        self._stream = stream
        self._finishing = False
        self._sent_at = 0.0
        self._error: Exception | None = None

    async def listen(self) -> None:
        """Task: wait for the end of the connection; what a collector says before is nothing to us."""
        try:
            while await self._stream.receive_some():
                pass
            if not self._finishing:
                self._error = CollectorLost("it closed the connection")
        except (PathError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._error = CollectorLost(f"the connection broke: {exc}")
        self.lost.set()

    async def send(self, messages: Sequence[bytes]) -> None:
        self._check()
        data = b"".join(map(count_octets, messages))
        try:
            for start in range(0, len(data), PIECE):
                with trio.fail_after(SEND_TIME):
                    await self._stream.send_all(data[start : start + PIECE])
        except trio.TooSlowError:
            raise CollectorLost(f"it took none of what was sent within {SEND_TIME:g} s") from None
        self._sent_at = trio.current_time()

    async def finish(self) -> None:
        with trio.move_on_at(self._sent_at + ANSWER_TIME):
            await self.lost.wait()
        self._check()
        self._finishing = True
        await self._stream.send_eof()
        with trio.move_on_after(CLOSE_TIME):
            await self.lost.wait()
        if not self.lost.is_set():
            raise CollectorLost(f"it did not close a connection within {CLOSE_TIME:g} s of its end")
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def cut(self) -> None:
        self._stream.abort()


class DatagramLink:
    """Datagrams, one for each message. Nobody says that they have come; the network may say that they have not."""

    def __init__(self, datagrams: Datagrams) -> None:
        self.lost = trio.Event()
        self._datagrams = datagrams
        self._error: Exception | None = None

    async def listen(self) -> None:
        """Task: wait for what the network says of datagrams."""
        try:
            while True:
                await self._datagrams.receive()
        except (PathError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._error = CollectorLost(str(exc))
        self.lost.set()

    async def send(self, messages: Sequence[bytes]) -> None:
        for number, message in enumerate(messages, 1):
            if self._error is not None:
                raise self._error
            await self._datagrams.send(message)
            if number % BURST == 0:
                await trio.sleep(BURST_PAUSE)

    async def finish(self) -> None:
        deadline = trio.current_time() + SEND_TIME
        while self._error is None:
            with trio.move_on_after(ANSWER_TIME):
                await self.lost.wait()
            if not self._datagrams.path.meter.outstanding:  # TCPIP has taken them all
                break
            if trio.current_time() > deadline:
                raise CollectorLost(f"the datagrams were not sent within {SEND_TIME:g} s")
        if self._error is not None:
            raise self._error

    def cut(self) -> None:
        self._datagrams.path.sever("closed", "")


class UnixDatagramLink(DatagramLink):
    """Datagrams to a UNIX socket of this host, one for each message. The kernel keeps them for the collector."""

    def __init__(self, datagrams: UnixDatagrams) -> None:
        super().__init__(datagrams)
        self._socket = datagrams

    async def send(self, messages: Sequence[bytes]) -> None:
        try:
            for message in messages:
                with trio.fail_after(SEND_TIME):
                    await self._socket.send(message)
        except trio.TooSlowError:
            raise CollectorLost(f"it took nothing of what was sent within {SEND_TIME:g} s") from None
        except trio.BrokenResourceError as exc:
            raise CollectorLost(str(exc)) from None

    async def finish(self) -> None:
        try:
            with trio.fail_after(SEND_TIME):
                await self._socket.flush()
        except trio.TooSlowError:
            raise CollectorLost(f"it did not take what was sent within {SEND_TIME:g} s") from None
        except trio.BrokenResourceError as exc:
            raise CollectorLost(str(exc)) from None
