"""Going outside: connections and datagrams that the machine with the network makes for this one, where it may.

Also to UNIX sockets of the host, as far as the topology lets that machine have them.

``edge`` is an edge to that machine (``retinue.services.tcpip``). It resolves names, decides by its ``config.allow``,
and connects. What is refused raises :exc:`~retinue.pipes.AccessDenied`, whose text has the line that would allow it.
"""

from typing import Any, Final

import trio

from retinue.pipes import LimitExceeded, Path, PathClosed, PathError, PathSevered, PathStream, Rejected
from retinue.pipes.message import close_all
from retinue.svm.errors import BadDestination, ConnectRefused, OutsideFailed
from retinue.svm.machine import Machine

# What UDP over IPv4 can carry: 65,535 bytes without the headers of both.
MAX_DATAGRAM: Final = 65507

# A call on a path for datagrams to a UNIX socket: all that were sent before it are with whoever reads the socket.
FLUSH: Final = {"type": "unix.flush"}

Address = tuple[str, int]

_OUTSIDE: Final = frozenset({"unresolved", "unreachable", "timeout"})
_TURNED_AWAY: Final = frozenset({"exhausted", "stopping"})


class OutsideStream(PathStream):
    """The bytes of a connection: a stream of trio, for whatever takes one, such as :class:`trio.SSLStream`.

    ``address`` is the IP address and port at its other end, or the address of a UNIX socket. ``abort()``, and a death
    of this machine, reset the connection (whoever is at a UNIX socket only sees it end); a connection that is reset
    from outside raises :exc:`trio.BrokenResourceError`.
    """

    def __init__(self, path: Path, address: Address | str) -> None:
        path.stream()
        assert path.chunks is not None
        super().__init__(path, path.chunks)
        self.address = address


async def dial(vm: Machine[Any], edge: str, host: str, port: int) -> OutsideStream:
    """A TCP connection to ``host`` (a name or an IP address) and ``port``, through the machine at the end of ``edge``.

    That machine bounds the time it takes. Raises :exc:`~retinue.pipes.AccessDenied` (policy),
    :exc:`~retinue.svm.OutsideFailed` (an OSError: no such name, refused, no answer),
    :exc:`~retinue.svm.BadDestination`, :exc:`~retinue.svm.ConnectRefused` (the machine with the network takes no
    more), or what ``vm.connect`` raises.
    """
    return _stream(*await _open(vm, edge, {"type": "tcp.connect", "host": host, "port": port}))


async def open_datagrams(vm: Machine[Any], edge: str, host: str, port: int) -> "Datagrams":
    """UDP to one host and port, through the machine at the end of ``edge``. Raises as :func:`dial` does."""
    return Datagrams(*await _open(vm, edge, {"type": "udp.open", "host": host, "port": port}))


async def dial_unix(vm: Machine[Any], edge: str, address: str) -> OutsideStream:
    """A connection to a UNIX socket of the host (``/run/x``, ``@name``), through the machine at the end of ``edge``.

    Raises as :func:`dial` does.
    """
    return _stream(*await _open(vm, edge, {"type": "unix.connect", "address": address}))


async def open_unix_datagrams(vm: Machine[Any], edge: str, address: str) -> "UnixDatagrams":
    """Datagrams to a UNIX socket of the host, through the machine at the end of ``edge``. Raises as :func:`dial`."""
    return UnixDatagrams(*await _open(vm, edge, {"type": "unix.open", "address": address}))


class Datagrams(trio.abc.Channel[bytes]):
    """Datagrams to one address outside and back. As always with UDP, any of them may be lost.

    ``address`` is the IP address and port at the other end. Once no datagram has passed for some time (TCPIP's
    ``udp_idle_time``) it ends.
    """

    def __init__(self, path: Path, address: Address | str) -> None:
        self.path = path
        self.address = address

    async def send(self, value: bytes) -> None:
        """Send one datagram; waits while the machine with the network has too many of them to take.

        LimitExceeded when it has more than MAX_DATAGRAM bytes; trio.BrokenResourceError when nobody takes it any more.
        """
        if len(value) > MAX_DATAGRAM:
            raise LimitExceeded("size of a datagram in bytes", len(value), MAX_DATAGRAM)
        datagram = bytes(value)
        try:
            try:
                self.path.send_nowait(datagram)
            except trio.WouldBlock:
                await self.path.send(datagram)
            else:
                await trio.lowlevel.checkpoint()
        except (PathSevered, PathClosed) as exc:
            raise _ended(exc) from exc

    async def receive(self) -> bytes:
        """The next datagram. :exc:`~retinue.svm.OutsideFailed` when the network says that one sent before came not.

        After that it goes on. trio.BrokenResourceError when it has ended, trio.ClosedResourceError when it was closed.
        """
        try:
            message = await self.path.receive()
        except (PathSevered, PathClosed) as exc:
            raise _ended(exc) from exc
        close_all(message.descriptors)
        untrusted = message.body
        if type(untrusted) is bytes:
            return untrusted
        if type(untrusted) is dict and untrusted.get("type") == "udp.error":
            raise OutsideFailed("unreachable", str(untrusted.get("text")), _number(untrusted))
        self.path.sever("violation", "no datagram")
        raise trio.BrokenResourceError("what came is no datagram")

    async def aclose(self) -> None:
        """Close it, after what was sent has been handed over."""
        await self.path.aclose()


class UnixDatagrams(Datagrams):
    """Datagrams to a UNIX socket of the host: none is lost on the way, and whoever sends too fast waits.

    Nothing comes back. They end when nobody reads the socket any more.
    """

    async def flush(self) -> None:
        """Until whoever reads the socket has all that was sent: the kernel keeps it for that process.

        trio.BrokenResourceError when it has not got it, trio.ClosedResourceError when this end was closed.
        """
        try:
            await self.path.call(FLUSH)
        except (PathSevered, PathClosed) as exc:
            raise _ended(exc) from exc

    async def aclose(self) -> None:
        """Close it, after what was sent is with whoever reads the socket."""
        try:
            if self.path.severed is None:
                await self.flush()
        except trio.BrokenResourceError:
            pass  # as it is for a stream: closing tells nothing
        finally:
            await self.path.aclose()


def _stream(path: Path, address: Address | str) -> OutsideStream:
    try:
        return OutsideStream(path, address)
    except BaseException:
        path.sever()
        raise


async def _open(vm: Machine[Any], edge: str, question: dict[str, Any]) -> tuple[Path, Address | str]:
    path = await vm.connect(edge)
    try:
        untrusted = await path.call(question)
        return path, _read_address(untrusted)
    except PathError as exc:
        path.sever()
        explained = _explained(exc, edge)
        if explained is exc:
            raise
        raise explained from None
    except BaseException:
        path.sever()
        raise


def _explained(error: PathError, edge: str) -> PathError:
    """What a refusal means to a program, by who is at fault; other errors as they are."""
    if isinstance(error, Rejected | PathSevered):
        if error.code in _TURNED_AWAY:
            return ConnectRefused(edge, error.code, error.text)
        if error.code == "bad-destination":
            return BadDestination(error.text)
    if isinstance(error, Rejected) and error.code in _OUTSIDE:
        return OutsideFailed(error.code, error.text, _number(error.detail))
    return error


def _number(untrusted: Any) -> int:
    number = untrusted.get("errno") if type(untrusted) is dict else 0
    return number if type(number) is int else 0


def _read_address(untrusted: Any) -> Address | str:
    address = untrusted.get("address") if type(untrusted) is dict else None
    if type(address) is str:
        return address
    if type(address) is list and [type(each) for each in address] == [str, int]:
        return address[0], address[1]
    raise Rejected("bad-reply", "the machine at the end of the edge does not speak for the outside")


def _ended(error: PathSevered | PathClosed) -> Exception:
    if isinstance(error, PathClosed):
        return trio.ClosedResourceError(str(error))
    return trio.BrokenResourceError(str(error))
