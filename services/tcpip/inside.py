"""Which addresses are inside: not of the public internet, or this host's own.

A name that its owner points to one of these must not lead there (DNS rebinding): only a rule for the address itself
does. The table is that of the IANA registries of special-purpose addresses, stated here because what the
:mod:`ipaddress` module calls private or global differs from one release of Python to the next.
"""

import errno
import ipaddress
import socket
from typing import Final

from retinue.services.tcpip.destination import IPAddress

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

INSIDE: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network; 0.0.0.0 is this host
        "10.0.0.0/8",  # private (RFC 1918)
        "100.64.0.0/10",  # between a provider and its customers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; 169.254.169.254 answers virtual machines of many providers with secrets
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
        # All of IPv6 but 2000::/3: loopback, fc00::/7 (RFC 4193), fe80::/10 link-local, ff00::/8 multicast ...
        "::/3",
        "4000::/2",
        "8000::/1",
        "2001::/23",  # protocol assignments; Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "3fff::/20",  # documentation
    )
)
# RFC 6052: a gateway takes what is sent there to the IPv4 address in the last 32 bits.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# Documentation: no host has it, so whoever can bind to it can bind to anything (ip_nonlocal_bind).
_NOBODYS: Final = {4: "192.0.2.1", 6: "2001:db8::1"}


def is_inside(address: IPAddress) -> bool:
    """Whether an address is not of the public internet."""
    if isinstance(address, ipaddress.IPv6Address) and address in _NAT64:
        address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return any(address in network for network in INSIDE)


def lies_inside(network: Network) -> bool:
    """Whether no address of a network is of the public internet, so that whoever names it means the inside."""
    return any(
        network.subnet_of(each)  # type: ignore[arg-type]  # of the same version
        for each in INSIDE
        if each.version == network.version
    )


def is_own(address: IPAddress) -> bool:
    """Whether an address is one of this host: one can bind to it. False where the host lets one bind to any address."""
    return _can_bind(str(address), address.version) and not _can_bind(_NOBODYS[address.version], address.version)


def _can_bind(host: str, version: int) -> bool:
    try:
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind((host, 0))
    except OSError as exc:
        # In use, or not permitted: it is ours. What is not ours is not available, or of a family that we do not have.
        return exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EMFILE, errno.ENFILE)
    return True
