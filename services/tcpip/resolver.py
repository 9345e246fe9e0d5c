"""From a name to its addresses, by the host's own resolver, bounded in time and in threads."""

import contextlib
import socket
from typing import Final, Protocol, cast

import trio

from retinue.services.tcpip.destination import IPAddress, read_address

# Names looked up at once: each holds a thread for as long as getaddrinfo(3) takes, which nobody can end.
MOST_LOOKUPS: Final = 16
# Of these for one machine: slow names of one must not keep the others from theirs.
MOST_LOOKUPS_PER_MACHINE: Final = 4


class Resolver(Protocol):
    """Whoever knows the addresses of names."""

    async def resolve(self, machine: str, name: str) -> list[IPAddress]:
        """The addresses of a name that ``machine`` asks for, best first. Raises OSError when there are none."""


class SystemResolver:
    """What the host's ``/etc/hosts``, ``resolv.conf`` and so on say, through getaddrinfo(3)."""

    def __init__(self) -> None:
        self._all = trio.CapacityLimiter(MOST_LOOKUPS)
        self._machines: dict[str, trio.CapacityLimiter] = {}

    def limiter(self, machine: str) -> trio.CapacityLimiter:
        """What bounds the lookups of one machine."""
        return self._machines.setdefault(machine, trio.CapacityLimiter(MOST_LOOKUPS_PER_MACHINE))

    async def resolve(self, machine: str, name: str) -> list[IPAddress]:
        """As :class:`Resolver` has it. Cancelled, its thread goes on, and counts, until getaddrinfo(3) returns."""
        both = _Both(self.limiter(machine), self._all)
        limiter = cast(trio.CapacityLimiter, both)  # to_thread uses two of its methods
        return await trio.to_thread.run_sync(_look_up, name, limiter=limiter, abandon_on_cancel=True)


class _Both:
    """Two limiters as one: a thread counts in both until it has ended, whether or not somebody waits for it."""

    def __init__(self, first: trio.CapacityLimiter, second: trio.CapacityLimiter) -> None:
        self._first, self._second = first, second

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._first.acquire_on_behalf_of(borrower)
        try:
            await self._second.acquire_on_behalf_of(borrower)
        except BaseException:
            self._first.release_on_behalf_of(borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        self._second.release_on_behalf_of(borrower)
        self._first.release_on_behalf_of(borrower)


def _look_up(name: str) -> list[IPAddress]:
    # As any program of this host would ask, so /etc/hosts and the search list of resolv.conf(5) count.
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    addresses: dict[IPAddress, None] = {}
    for *_, address in found:
        with contextlib.suppress(ValueError):  # link-local, with a zone: no rule can mean it
            addresses[read_address(str(address[0]))] = None
    return list(addresses)
