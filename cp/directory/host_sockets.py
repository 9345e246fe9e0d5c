"""The key ``host_sockets``: the UNIX sockets of the host that the machine with the network may be connected to."""

import posixpath
from typing import Final

from retinue.cp.directory.table import Table, shown

#: Bytes of an address: what the system has room for (unix(7)), without the byte that ends it or makes it abstract.
ADDRESS_MAXIMUM: Final = 107

_EXPECTED: Final = 'a list of addresses such as ["/dev/log"]'


def read_host_sockets(table: Table) -> tuple[str, ...]:
    """The addresses of the key ``host_sockets``, but for those that are wrong."""
    found: list[str] = []
    for index, address in table.words("host_sockets", _EXPECTED):
        problem, hint = wrong_address(address)
        if not problem and address in found:
            problem, hint = "which is there already", "remove it"
        if problem:
            message = f"host_sockets has {shown(address)} in it, {problem}"
            table.mistakes.add((*table.path, "host_sockets", index), table.path, message, hint)
        else:
            found.append(address)
    return tuple(found)


def wrong_address(address: str) -> tuple[str, str]:
    """What is wrong with the address of a socket, and what helps; nothing if it is one in its one spelling."""
    try:
        size = len(address.encode())
    except UnicodeEncodeError:
        return "which is no text", ""
    if not address.isprintable():
        return "which has characters that cannot be shown", ""
    if size > ADDRESS_MAXIMUM:
        return f"which has {size} bytes, and the address of a socket has {ADDRESS_MAXIMUM} at most", ""
    if address.startswith("@"):
        return ("", "") if len(address) > 1 else ("which is an abstract name without a name", "")
    if not address.startswith("/"):
        return "expected an absolute path, or @ and an abstract name", ""
    plain = "/" + posixpath.normpath(address).lstrip("/")
    if address != plain:
        return "which is no path without detours", f'write "{plain}"'
    return ("which is a folder", "") if address == "/" else ("", "")
