"""HTTPD at work: clients' paths in, requests out over the edges that the routes name."""

import logging
from typing import Any, Final

import trio

from retinue.pipes import Path, PathError
from retinue.services.httpd.client import Address
from retinue.services.httpd.config import Config
from retinue.services.httpd.connection import Connection
from retinue.services.httpd.errors import HttpError
from retinue.services.httpd.exchange import Exchange
from retinue.services.httpd.gateway import Gateway
from retinue.services.httpd.response import Reply
from retinue.services.httpd.routes import Routes
from retinue.svm import Machine

log: Final = logging.getLogger("retinue.httpd")

# How long a caller has for its first message, which it sends as soon as it is connected.
OPENING_TIME: Final = 5.0


class Service:
    """The routes, their gateways, and the connections of all clients. The gateways run in ``nursery``."""

    def __init__(self, vm: Machine[Config], routes: Routes, nursery: trio.Nursery) -> None:
        self._config = vm.config
        self._routes = routes
        self._gateways = {edge: Gateway(edge, vm.connect, vm.config, nursery) for edge in routes.edges}
        self._connections: set[Connection] = set()
        self._stopping = False

    async def serve_client(self, path: Path) -> None:
        """Serve one client to its end. Whatever it does, nobody else notices."""
        try:
            with trio.fail_after(OPENING_TIME):
                untrusted_opening = (await path.receive()).body
            client, server = read_opening(untrusted_opening)
            await self._serve_connection(path, client, server)
        except trio.TooSlowError:
            path.sever("refused", "no tcp.open message came")
        except BadOpening as exc:
            log.warning("%s: %s", path.peer or "a caller", exc)
            path.sever("refused", str(exc))
        except PathError as exc:
            log.debug("a connection ended before it began: %s", exc)
        finally:
            path.sever()

    async def _serve_connection(self, path: Path, client: Address | None, server: Address | None) -> None:
        connection = Connection(path.stream(), self.forward, self._config, address=client, server=server)
        self._connections.add(connection)
        orderly = False
        try:
            if self._stopping:
                connection.stop()
            await connection.serve()
            orderly = not connection.aborted
        finally:
            self._connections.discard(connection)
            if not orderly:
                path.sever("reset", "the response is not complete")
        await path.aclose()

    async def forward(self, exchange: Exchange) -> None:
        """Answer one request by the machine that its path is routed to, or here where it is about HTTPD itself."""
        path = exchange.request.path
        if path == "*":
            await exchange.respond(Reply(204, [], b""))
            return
        edge = self._routes.find(path)
        if edge is None:
            raise HttpError(404, "Nothing is served under this path.")
        await self._gateways[edge].forward(exchange)

    def stop(self) -> None:
        """Let every connection end after the request that is under way."""
        self._stopping = True
        for connection in self._connections:
            connection.stop()


class BadOpening(ValueError):
    """A caller's first message is not a ``tcp.open`` message. ``text`` says what is wrong."""


def read_opening(untrusted: Any) -> tuple[Address | None, Address | None]:
    """(client, server) out of a ``tcp.open`` message (docs/reference/tcpip.md). Raises :exc:`BadOpening`."""
    if type(untrusted) is not dict or untrusted.get("type") != "tcp.open":
        raise BadOpening("the first message on a path to HTTPD must be tcp.open")
    return _address(untrusted.get("client")), _address(untrusted.get("server"))


def _address(untrusted: Any) -> Address | None:
    if untrusted is None:
        return None
    if type(untrusted) is list and len(untrusted) == 2:
        host, port = untrusted
        # It goes into the log and to applications: what cannot be an address must not pass for one.
        if type(host) is str and len(host) <= 64 and host.isprintable() and type(port) is int and 0 <= port < 65536:
            return host, port
    raise BadOpening("an address in tcp.open is not [host, port]")
