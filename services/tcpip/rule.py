"""One line of ``config.allow``: a host or many, and the ports there; or a UNIX socket of this host.

==================================  =================================================================================
``api.example.org:443``             this name
``*.example.org:443``               every name below it, not ``example.org`` itself
``192.0.2.7:443``, ``[2001:db8::7]:443``   this address
``10.0.0.0/8:5432``, ``[2001:db8::/32]:443``   every address of the network
``...:8000-8100``, ``...:*``        a range of ports, every port
``udp:192.0.2.53:53``               UDP instead of TCP
``unix:/dev/log``, ``unix:@name``   this socket; :mod:`the topology <retinue.svm.host_socket>` must name it, too
==================================  =================================================================================
"""

import ipaddress
import re
from typing import Final

import attrs

from retinue.services.tcpip.destination import (
    BadHost,
    Destination,
    IPAddress,
    Protocol,
    read_address,
    read_name,
    read_socket,
)
from retinue.services.tcpip.inside import Network, is_inside, lies_inside

_PORTS: Final = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?", re.ASCII)
_PREFIX: Final = re.compile(r"[0-9]{1,3}", re.ASCII)


class BadRule(ValueError):
    """A text is no rule. Fields: ``text``, ``why``."""

    def __init__(self, text: str, why: str) -> None:
        self.text, self.why = text, why
        super().__init__(f'{text[:80]!r} is no rule: {why}; rules are "api.example.org:443", "10.0.0.0/8:5432"')


@attrs.frozen
class Rule:
    """Where one rule lets a machine go. Of ``name`` and ``network`` one is None; a ``name`` may begin with ``*.``.

    That of a UNIX socket is its address, and its port is 0.
    """

    text: str
    protocol: Protocol
    name: str | None
    network: Network | None
    first_port: int
    last_port: int

    def names(self, destination: Destination) -> bool:
        """Whether this rule allows the name that is the destination's host. Never for an address."""
        host = destination.host
        if self.name is None or not isinstance(host, str) or not self._serves(destination):
            return False
        return host.endswith(self.name[1:]) if self.name.startswith("*") else host == self.name

    def covers(self, destination: Destination) -> bool:
        """Whether this rule allows the address that is the destination's host. Never for a name.

        A network with public addresses in it does not stand for those inside: ``0.0.0.0/0`` is the internet.
        """
        host = destination.host
        if self.network is None or isinstance(host, str) or not self._serves(destination):
            return False
        return host in self.network and (lies_inside(self.network) or not is_inside(host))

    def _serves(self, destination: Destination) -> bool:
        return self.protocol == destination.protocol and self.first_port <= destination.port <= self.last_port


def parse_rule(text: str) -> Rule:
    """A rule as it is written. Raises :exc:`BadRule`."""
    if text.startswith("unix:"):
        try:
            address = str(read_socket(text.removeprefix("unix:")).host)
        except ValueError as exc:
            raise BadRule(text, str(exc)) from None
        return Rule(text, "unix", address, None, 0, 0)
    rest = text.removeprefix("udp:")
    if rest.startswith("["):
        host, bracket, ports = rest[1:].partition("]")
        if not bracket or not ports.startswith(":"):
            raise BadRule(text, 'after an IPv6 address in brackets comes a port, as in "[2001:db8::7]:443"')
        ports = ports[1:]
    else:
        host, colon, ports = rest.rpartition(":")
        if not colon:
            raise BadRule(text, 'it has no port; ":443", ":8000-8100" or ":*" at its end')
        if ":" in host:
            raise BadRule(text, 'an IPv6 address stands in brackets, as in "[2001:db8::7]:443"')
    name, network = _read_hosts(text, host)
    if network is not None and (network.version == 6) != rest.startswith("["):
        raise BadRule(text, "IPv6 addresses stand in brackets, others do not")
    if network is None and rest.startswith("["):
        raise BadRule(text, "only IPv6 addresses stand in brackets")
    first, last = _read_ports(text, ports)
    return Rule(text, "udp" if text.startswith("udp:") else "tcp", name, network, first, last)


def _read_hosts(text: str, host: str) -> tuple[str | None, Network | None]:
    if "/" in host:
        return None, _read_network(text, host)
    try:
        return None, _only(read_address(host))
    except ValueError:
        pass
    below = host.startswith("*.")
    if host == "*" or "*" in host[2 if below else 0 :]:
        raise BadRule(
            text, 'a star stands for whole labels at the beginning, as in "*.example.org"; every address is 0.0.0.0/0'
        )
    try:
        name = read_name(host.removeprefix("*."))
    except BadHost as exc:
        raise BadRule(text, exc.why) from None
    return f"*.{name}" if below else name, None


def _only(address: IPAddress) -> Network:
    return ipaddress.ip_network(address)


def _read_network(text: str, host: str) -> Network:
    base, _, prefix = host.partition("/")
    if not _PREFIX.fullmatch(prefix):
        raise BadRule(text, 'the size of a network is its number of bits, as in "10.0.0.0/8"')
    try:
        address = ipaddress.ip_address(base)
        network = ipaddress.ip_network((address.packed, int(prefix)), strict=False)
    except ValueError:
        raise BadRule(text, f"{host[:80]!r} is no network") from None
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id is not None or address.ipv4_mapped is not None):
        raise BadRule(text, "it is written as IPv4, and without a zone")
    if network.network_address != address:
        raise BadRule(text, f"{base} is not the first address of its network, which is {network}")
    return network


def _read_ports(text: str, ports: str) -> tuple[int, int]:
    if ports == "*":
        return 1, 65535
    found = _PORTS.fullmatch(ports)
    if found is not None:
        first, last = int(found[1]), int(found[2] or found[1])
        if first <= last < 65536:
            return first, last
    raise BadRule(text, f'{ports[:20]!r} is no port from 1 to 65535, no range such as "8000-8100", and no "*"')
