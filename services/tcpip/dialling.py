"""Connecting to the first of several addresses that answers (RFC 8305, "happy eyeballs", without its sorting)."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import trio

from retinue.services.tcpip.destination import IPAddress

# How long an address may take before the next one is tried beside it (RFC 8305, section 5).
ATTEMPT_DELAY: Final = 0.25
# Addresses of one name that are tried.
MOST_ADDRESSES: Final = 8


def interleaved(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """The first MOST_ADDRESSES in the order to try them: by turns of the two families, beginning with the first's."""
    ours = [address for address in addresses if address.version == addresses[0].version]
    others = [address for address in addresses if address.version != addresses[0].version]
    found: list[IPAddress] = []
    for rank in range(max(len(ours), len(others))):
        found += ours[rank : rank + 1] + others[rank : rank + 1]
    return found[:MOST_ADDRESSES]


async def connect_tcp(addresses: Sequence[IPAddress], port: int) -> tuple[IPAddress, trio.socket.SocketType]:
    """A connection to one of the addresses, and to which. The OSError of the first to fail when none is reached."""
    winners: list[tuple[IPAddress, trio.socket.SocketType]] = []
    errors: list[OSError] = []

    async def attempt(address: IPAddress, failed: trio.Event) -> None:
        with ExitStack() as stack:
            try:
                sock = stack.enter_context(trio.socket.socket(_family(address), socket.SOCK_STREAM))
                await sock.connect((str(address), port))
            except OSError as exc:
                errors.append(exc)
                failed.set()
                return
            if not winners:
                stack.pop_all()
                winners.append((address, sock))
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for address in interleaved(addresses):
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(ATTEMPT_DELAY):
                    await failed.wait()
        if winners:
            return winners.pop()
    finally:
        for _, sock in winners:  # cancelled at the last moment
            sock.close()
    raise errors[0]


def connect_udp(addresses: Sequence[IPAddress], port: int) -> tuple[IPAddress, socket.socket]:
    """A socket, which never waits, to the first of the addresses that this host has a way to, and which that is.

    Raises the OSError of the first when there is a way to none.
    """
    errors: list[OSError] = []
    for address in interleaved(addresses):
        try:
            with ExitStack() as stack:
                sock = stack.enter_context(socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
                sock.connect((str(address), port))
                stack.pop_all()
                return address, sock
        except OSError as exc:
            errors.append(exc)
    raise errors[0]


def _family(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
