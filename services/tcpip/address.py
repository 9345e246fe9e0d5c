"""Addresses to listen on: an IP address and a port, written as people write them."""

import ipaddress
from typing import Any

Address = tuple[str, int]


class BadAddress(ValueError):
    """``config.listen`` names something that is not an address. Field: ``address``."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(
            f"config.listen: {address!r} is not an address; write an IP address and a port (0-65535), "
            'such as "127.0.0.1:8080" or "[::1]:8080"'
        )


def parse_address(text: str) -> Address:
    """``"127.0.0.1:8080"`` or ``"[::1]:80"`` as (host, port). Raises :exc:`BadAddress`; names are not looked up."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise BadAddress(text) from None
    fits = colon and port.isascii() and port.isdigit() and int(port) < 65536
    if not fits or bracketed != (address.version == 6):
        raise BadAddress(text)
    return str(address), int(port)


def format_address(address: Address) -> str:
    """The inverse of :func:`parse_address`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def addresses(client: Address, server: Address) -> dict[str, Any]:
    """Both addresses of a connection as messages say them, each ``[host, port]``."""
    return {"client": list(client), "server": list(server)}
