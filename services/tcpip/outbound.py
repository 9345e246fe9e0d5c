"""Connections and datagrams that other machines ask for, as far as the policy lets them.

A machine opens a path and calls ``tcp.connect``, ``udp.open``, ``unix.connect`` or ``unix.open``. What is refused is a
counted record; what is allowed turns the path into the stream of a connection, or into a carrier of datagrams.
"""

import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import attrs
import trio

from retinue.pipes import AccessDenied, Path, PathError, Rejected
from retinue.pipes.message import close_all
from retinue.services.tcpip.config import Config
from retinue.services.tcpip.datagrams import DatagramRelay
from retinue.services.tcpip.destination import (
    Destination,
    IPAddress,
    Protocol,
    read_address,
    read_destination,
    read_socket,
)
from retinue.services.tcpip.dialling import connect_tcp, connect_udp
from retinue.services.tcpip.gate import EXHAUSTED
from retinue.services.tcpip.host_datagrams import Links, hand_on
from retinue.services.tcpip.inside import is_inside, is_own
from retinue.services.tcpip.policy import OutsideDenied, Policy
from retinue.services.tcpip.relay import Relay, Relays, hang_up
from retinue.services.tcpip.resolver import Resolver
from retinue.services.tcpip.tallies import Tallies
from retinue.svm import BadDestination, Machine, OutsideFailed

log: Final = logging.getLogger("retinue.tcpip")

# How long a machine has for its first message, which it sends as soon as it is connected.
OPENING_TIME: Final = 5.0
# Messages that a machine may have outstanding with us: datagrams. A program that dials has one.
LIMIT: Final = 64

_VERBS: Final[dict[str, Protocol]] = {
    "tcp.connect": "tcp",
    "udp.open": "udp",
    "unix.connect": "unix",
    "unix.open": "unix",
}


@attrs.frozen
class Opened:
    """What a request has come to: a connected socket, and the address at its other end.

    ``handed_on`` is the way to a UNIX socket that takes datagrams.
    """

    destination: Destination
    address: IPAddress | str
    stream: trio.socket.SocketType | None = None
    datagrams: socket.socket | None = None
    handed_on: Path | None = None

    @property
    def told(self) -> Any:
        """The address, as the machine is told."""
        return self.address if isinstance(self.address, str) else [str(self.address), self.destination.port]

    @property
    def here(self) -> str:
        """The address at this end."""
        sock = self.stream or self.datagrams
        assert sock is not None
        return str(sock.getsockname()[0])


class Outbound:
    """The paths of all machines that ask to go outside; they run in ``nursery``."""

    def __init__(
        self, vm: Machine[Config], policy: Policy, resolver: Resolver, tallies: Tallies, nursery: trio.Nursery
    ) -> None:
        self._vm = vm
        self._config = vm.config
        self._policy = policy
        self._resolver = resolver
        self._tallies = tallies
        self._nursery = nursery
        self._relays = Relays()
        self._links = Links(vm.host_datagrams)
        self._open: Counter[str] = Counter()  # paths by machine
        self._endless: set[Path] = set()  # nothing on them is worth waiting for when the machine stops
        self._finishing = False

    async def accept_all(self, incoming: AsyncIterator[Path]) -> None:
        """Serve every path that a machine opens, until the machine stops."""
        async for path in incoming:
            self._nursery.start_soon(self._serve, path)

    def finish(self) -> None:
        """Let the connections end: at once those whose machine waits for no answer, and all that is no connection."""
        self._finishing = True
        self._relays.finish()
        for path in list(self._endless):
            path.sever("stopping", "TCPIP is stopping")

    # -- one path -----------------------------------------------------------------------------------------------------

    async def _serve(self, path: Path) -> None:
        self._endless.add(path)
        try:
            with self._place(path.peer):
                while (opened := await self._answer(path)) is None:
                    pass
                await self._run(path, opened)
        except trio.TooSlowError:
            path.sever("refused", "no request came")
        except Rejected as exc:
            path.sever(exc.code, exc.text)
        except (OSError, PathError) as exc:
            log.debug("%s: a path ended before it led anywhere: %s", path.peer, exc)
        finally:
            self._endless.discard(path)
            path.sever("lost", "TCPIP has given it up")  # no effect after an orderly end

    @contextmanager
    def _place(self, machine: str) -> Iterator[None]:
        """A place among the paths that may be open. Rejected ``exhausted`` when there is none."""
        config, mine = self._config, self._open[machine]
        if mine >= config.max_outbound_per_machine:
            self._refuse(machine, "exhausted", f"{mine} paths of {machine} are open (max_outbound_per_machine)")
        if (total := self._open.total()) >= config.max_outbound:
            self._refuse(machine, "exhausted", f"{total} paths are open (max_outbound)")
        self._open[machine] += 1
        try:
            yield
        finally:
            self._open[machine] -= 1
            self._open += Counter()  # forget who has none

    async def _answer(self, path: Path) -> Opened | None:
        """Take one request and answer it; None when it was refused."""
        with trio.fail_after(OPENING_TIME):
            message = await path.receive()
        close_all(message.descriptors)
        if not message.wants_reply:
            # A path that outlived the TCPIP that it was opened with, perhaps, with a datagram on it.
            raise Rejected("refused", "nothing is open on this path: it begins with tcp.connect, udp.open or the like")
        opened: Opened | None = None
        with trio.CancelScope() as message.scope:
            if not message.withdrawn:
                try:
                    opened = await self._try(path.peer, message.body)
                except Rejected as exc:
                    path.reject(message, exc.code, exc.text, exc.detail)
                    return None
        if opened is None or message.withdrawn:
            path.reject(message, "purged")
            if opened is not None:
                _close(opened)
            return None
        path.reply(message, {"address": opened.told})
        return opened

    async def _run(self, path: Path, opened: Opened) -> None:
        destination = opened.destination
        log.debug("%s: connected to %s (%s)", path.peer, destination, opened.address)
        if opened.stream is not None:
            orderly = False
            self._endless.discard(path)
            try:
                relay = Relay(trio.SocketStream(opened.stream), path, outbound=True)
                await self._relays.run(relay)
                orderly = relay.orderly
            finally:
                hang_up(opened.stream, orderly=orderly)
        elif opened.handed_on is not None:
            try:
                await hand_on(path, opened.handed_on)
            finally:
                _close(opened)
        else:
            assert opened.datagrams is not None
            try:
                await DatagramRelay(
                    opened.datagrams, path, destination, self._tallies, idle_time=self._config.udp_idle_time
                ).run()
            finally:
                _close(opened)
        log.debug("%s: %s closed", path.peer, destination)

    # -- one request --------------------------------------------------------------------------------------------------

    async def _try(self, machine: str, body: Any) -> Opened:
        """Do what a request asks for. Raises Rejected with what the machine is to be told."""
        destination = self._read(machine, body)
        if self._finishing:
            raise Rejected("stopping", "TCPIP is stopping")
        try:
            self._policy.check(machine, destination)
            if destination.protocol == "unix":
                return await self._reach_socket(machine, destination, datagrams=body["type"] == "unix.open")
            addresses = await self._addresses(machine, destination)
            return await self._connect(machine, destination, addresses)
        except OutsideDenied as exc:
            self._record(machine, exc.code, exc.text, str(exc.destination))
            raise

    def _read(self, machine: str, untrusted: Any) -> Destination:
        verb = untrusted.get("type") if type(untrusted) is dict else None
        protocol = _VERBS.get(verb) if type(verb) is str else None
        if protocol is None:
            raise Rejected("unknown-message", f"TCPIP answers calls of the types {' and '.join(_VERBS)}")
        try:
            if protocol == "unix":
                return read_socket(untrusted.get("address"))
            return read_destination(protocol, untrusted.get("host"), untrusted.get("port"))
        except ValueError as exc:
            self._refuse(machine, "bad-destination", str(exc))

    async def _addresses(self, machine: str, destination: Destination) -> list[IPAddress]:
        """Where the destination is, as far as the machine may go there. Nothing looks up its name a second time."""
        host = destination.host
        if not isinstance(host, str):
            return [host]
        found: list[IPAddress] | None = None
        with trio.move_on_after(self._config.resolve_time):
            try:
                found = await self._resolver.resolve(machine, host)
            except OSError as exc:
                raise Rejected("unresolved", f"{host}: {exc.strerror or exc}", {"errno": 0}) from exc
        if found is None:
            text = f"{host} was not resolved within {self._config.resolve_time:g} s"
            raise Rejected("timeout", text, {"errno": errno.ETIMEDOUT})
        if not found:
            raise Rejected("unresolved", f"{host} has no address", {"errno": 0})
        open_to_it = [address for address in found if self._reaches(machine, destination, address)]
        if not open_to_it:
            raise self._policy.inside(machine, destination, found[0])
        return open_to_it

    def _reaches(self, machine: str, destination: Destination, address: IPAddress) -> bool:
        """Whether a name may lead a machine to an address: a public one of others, or one that a rule is for."""
        if self._policy.covers(machine, destination.at(address)):
            return True
        return not is_inside(address) and not is_own(address)

    async def _connect(self, machine: str, destination: Destination, addresses: Sequence[IPAddress]) -> Opened:
        opened: Opened | None = None
        with trio.move_on_after(self._config.connect_time):
            try:
                if destination.protocol == "tcp":
                    address, stream = await connect_tcp(addresses, destination.port)
                    opened = Opened(destination, address, stream=stream)
                else:
                    address, sock = connect_udp(addresses, destination.port)
                    opened = Opened(destination, address, datagrams=sock)
            except OSError as exc:
                if exc.errno in EXHAUSTED:
                    self._refuse(machine, "exhausted", f"the host has no room for a connection: {exc.strerror}")
                text = f"{destination}: {os.strerror(exc.errno) if exc.errno else exc}"
                raise Rejected("unreachable", text, {"errno": exc.errno or 0}) from exc
        if opened is None:
            text = f"{destination} did not answer within {self._config.connect_time:g} s"
            raise Rejected("timeout", text, {"errno": errno.ETIMEDOUT})
        # A connection from an address to itself stays on this host, also where is_own could not tell.
        covered = self._policy.covers(machine, destination.at(address))
        if not covered and read_address(opened.here) == address:
            _close(opened)
            raise self._policy.inside(machine, destination, address)
        return opened

    async def _reach_socket(self, machine: str, destination: Destination, *, datagrams: bool) -> Opened:
        """A UNIX socket of the host, to which the control program connects this machine, if the topology names it."""
        address = str(destination.host)
        try:
            with trio.fail_after(self._config.connect_time):
                if datagrams:
                    return Opened(destination, address, handed_on=await self._links.make(machine, address))
                return Opened(destination, address, stream=(await self._vm.host_stream(address)).socket)
        except OutsideFailed as exc:
            raise Rejected(exc.code, str(exc), {"errno": exc.errno}) from exc
        except BadDestination as exc:
            self._refuse(machine, "bad-destination", exc.text)
        except trio.TooSlowError:
            text = f"{destination} was not connected within {self._config.connect_time:g} s"
            raise Rejected("timeout", text, {"errno": errno.ETIMEDOUT}) from None
        except AccessDenied as exc:
            # Also of the topology's host_sockets: the text has what to add there.
            self._record(machine, exc.code, exc.text, str(destination))
            raise
        except Rejected as exc:
            self._refuse(machine, exc.code, f"{machine} is not connected to {destination}: {exc.text}")

    # -- records ------------------------------------------------------------------------------------------------------

    def _refuse(self, machine: str, code: str, text: str) -> NoReturn:
        self._record(machine, code, text)
        raise Rejected(code, text)

    def _record(self, machine: str, code: str, text: str, destination: str = "") -> None:
        """A refusal: recorded at once when it is the first of its kind, with its number once a second otherwise."""

        def tell(count: int) -> None:
            about = {"peer": machine, "code": code, "destination": destination, "count": count}
            log.warning("refused%s: %s", "" if count == 1 else f" {count} times", text, extra=about)

        self._tallies.happen(machine, f"refuse {code} {destination}", tell)


def _close(opened: Opened) -> None:
    if opened.stream is not None:
        hang_up(opened.stream, orderly=False)
    if opened.handed_on is not None:
        opened.handed_on.sever()
    if opened.datagrams is not None:
        trio.lowlevel.notify_closing(opened.datagrams)
        opened.datagrams.close()
