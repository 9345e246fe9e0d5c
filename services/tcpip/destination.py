"""Where a machine wants to go: a protocol, a host and a port, in one spelling each; or a UNIX socket of this host.

A host is an IP address or a name. An address counts as one only as the :mod:`ipaddress` module reads it; the other
spellings that a C library takes for an address (``127.1``, ``0x7f.1``, ``2130706433``) are neither, nor is an address
with a zone. IPv4 in IPv6 (``::ffff:10.0.0.1``) is IPv4. A name is in small letters, without a dot at its end, and in
ASCII (IDNA). A UNIX socket is an absolute path without detours, or ``@name`` if it is abstract.
"""

import ipaddress
import re
from typing import Any, Final, Literal

import attrs
import idna

from retinue.svm.host_socket import MAX_ADDRESS, is_address

Protocol = Literal["tcp", "udp", "unix"]
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# RFC 1035, 2.3.4, without the dot at the end.
MAX_NAME: Final = 253
# Underscores are in names that people use (_dmarc.example.org), whatever RFC 952 says.
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
# What getaddrinfo(3) would read as a number: inet_aton(3) knows octal and hexadecimal parts, and fewer than four.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


class BadHost(ValueError):
    """A text is neither an IP address nor a name. Fields: ``text``, ``why``."""

    def __init__(self, text: str, why: str) -> None:
        self.text, self.why = text, why
        super().__init__(f"{text[:80]!r} is no host: {why}")


def read_host(text: str) -> str | IPAddress:
    """A host in its one spelling. Raises :exc:`BadHost`; nothing is looked up."""
    try:
        return read_address(text)
    except ValueError:
        return read_name(text)


def read_address(text: str) -> IPAddress:
    """An IP address. ValueError for anything else, one with a zone (``fe80::1%eth0``) among it."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError("an address with a zone")
        return address.ipv4_mapped or address
    return address


def read_name(text: str) -> str:
    """A name in its one spelling. Raises :exc:`BadHost`."""
    if "%" in text:
        raise BadHost(text, "an address is written without a zone, and a name has no percent sign")
    if not text or len(text) > MAX_NAME + 1:
        raise BadHost(text, f"a name has 1 to {MAX_NAME} characters")
    name = text
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError:
            raise BadHost(text, "it is no international domain name") from None
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        raise BadHost(text, "an IP address is written in full and in decimal, such as 127.0.0.1")
    if len(name) > MAX_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise BadHost(text, "a name has labels of 1 to 63 letters, digits and hyphens, with dots between")
    return name


@attrs.frozen
class Destination:
    """``host`` as :func:`read_host` gives it, of ``unix`` the address of the socket, whose port is 0.

    As a text it is what a rule for it alone would be.
    """

    protocol: Protocol
    host: str | IPAddress
    port: int

    def __str__(self) -> str:
        if self.protocol == "unix":
            return f"unix:{self.host}"
        host = f"[{self.host}]" if isinstance(self.host, ipaddress.IPv6Address) else str(self.host)
        return f"{'udp:' if self.protocol == 'udp' else ''}{host}:{self.port}"

    def at(self, address: IPAddress) -> "Destination":
        """The same with an address for the host."""
        return attrs.evolve(self, host=address)


def read_destination(protocol: Protocol, untrusted_host: Any, untrusted_port: Any) -> Destination:
    """The destination of a request. Raises :exc:`BadHost`, ValueError for the rest."""
    if type(untrusted_host) is not str:
        raise ValueError("the host is no text")
    if type(untrusted_port) is not int or not 0 < untrusted_port < 65536:
        raise ValueError("the port is no whole number from 1 to 65535")
    return Destination(protocol, read_host(untrusted_host), untrusted_port)


def read_socket(untrusted_address: Any) -> Destination:
    """The socket of a request or a rule. ValueError, with what is wrong."""
    if type(untrusted_address) is not str or not is_address(untrusted_address):
        raise ValueError(
            "the address of a socket is an absolute path without detours, or @ and an abstract name; "
            f"{MAX_ADDRESS} bytes at most"
        )
    return Destination("unix", untrusted_address, 0)
