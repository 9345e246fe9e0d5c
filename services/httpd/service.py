"""HTTPD at work: clients' paths in, requests out over the edges that the routes name."""

import logging
from functools import partial
from typing import Any, Final

import trio

from retinue.pipes import Message, Path, PathError
from retinue.pipes.message import close_all
from retinue.services.httpd.client import Address, Client, StreamClient
from retinue.services.httpd.config import Config
from retinue.services.httpd.connection import Connection
from retinue.services.httpd.errors import BadRoute, HttpError
from retinue.services.httpd.exchange import Exchange
from retinue.services.httpd.gateway import Gateway
from retinue.services.httpd.response import Reply
from retinue.services.httpd.resumption import ResumableClient
from retinue.services.httpd.routes import Routes
from retinue.services.resumable import ACCEPT, ASK, OFFER, BadWord
from retinue.svm import Machine
from retinue.svm.errors import ConfigError, ConfigMistake

log: Final = logging.getLogger("retinue.httpd")

# How long a caller has for its first message, which it sends as soon as it is connected.
OPENING_TIME: Final = 5.0


class Service:
    """The routes, their gateways, and the connections of all clients. The gateways run in ``nursery``."""

    def __init__(self, vm: Machine[Config], nursery: trio.Nursery) -> None:
        self._vm = vm
        self._config = vm.config
        self._routes = Routes(vm.config.routes, vm.edges)
        self._nursery = nursery
        self._gateways = {edge: self._gateway(edge) for edge in self._routes.edges}
        self._connections: set[Connection] = set()
        self._silent: set[Path] = set()  # nothing has come over them yet
        self._stopping = False

    def _gateway(self, edge: str) -> Gateway:
        return Gateway(edge, partial(self._vm.fan, edge), self._config, self._nursery)

    async def serve_client(self, path: Path) -> None:
        """Serve one client to its end. Whatever it does, nobody else notices."""
        try:
            client = await self._meet(path)
            if client is not None:
                await self._serve_connection(path, client)
            path.sever()
        except (BadOpening, BadWord) as exc:
            log.warning("%s: %s", path.peer or "a caller", exc)
            path.sever("refused", str(exc))
        except PathError as exc:
            log.debug("a connection ended before it began: %s", exc)
            path.sever()

    async def _meet(self, path: Path) -> Client | None:
        """Who is at the other end of a new path; None when nobody has anything to say."""
        # A predecessor of this machine may have been given the path, and the client may be idle.
        with trio.move_on_after(max(OPENING_TIME, self._config.idle_time)):
            self._silent.add(path)
            try:
                if self._stopping:
                    return None
                message = await path.receive()
            finally:
                self._silent.discard(path)
            close_all(message.descriptors)
            if message.wants_reply:
                return await self._resume(path, message)
            address, server = read_opening(message.body)
            if message.body.get(OFFER) is not True:
                return StreamClient(path.stream(), self._config, address, server)
            path.send_nowait({"type": ACCEPT})  # it leaves with the word that tcp.open was received
            return ResumableClient(path, self._config, address, server)
        return None

    async def _resume(self, path: Path, question: Message) -> Client:
        if type(question.body) is not dict or question.body.get("type") != ASK:
            raise BadOpening("the first message on a path to HTTPD must be tcp.open")
        client = ResumableClient(path, self._config)
        client.address, client.server = read_addresses(await client.resume(question))
        return client

    async def _serve_connection(self, path: Path, client: Client) -> None:
        connection = Connection(client, self.forward)
        self._connections.add(connection)
        try:
            if self._stopping:
                self._end(connection)
            await connection.serve()
        except BaseException:
            if not (self._draining and isinstance(client, ResumableClient)):
                path.sever("reset", "the response is not complete")
            raise
        finally:
            self._connections.discard(connection)
        if connection.aborted:
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
        """Let every connection end after the request that is under way, but for those that a successor gets."""
        self._stopping = True
        for connection in self._connections:
            self._end(connection)
        if not self._draining:
            for path in list(self._silent):
                path.sever()

    async def wait_draining(self) -> None:
        """Until a successor takes this machine's place: it gets every request that was not begun."""
        await self._vm.draining.wait()
        for connection in self._connections:
            if connection.resumable:
                connection.leave()

    def _end(self, connection: Connection) -> None:
        if not (self._draining and connection.resumable):
            connection.stop()

    @property
    def _draining(self) -> bool:
        return self._vm.draining.is_set()

    # -- other routes -----------------------------------------------------------------------------------------------

    async def reload(self, config: Config) -> None:
        """Go by another config, each connection from its next request on. Raises :exc:`ConfigError`."""
        try:
            routes = Routes(config.routes, self._vm.edges)
        except BadRoute as exc:
            raise ConfigError((ConfigMistake(("routes", exc.prefix), str(exc)),)) from exc
        self._config, self._routes = config, routes
        for edge in self._gateways.keys() - set(routes.edges):
            self._gateways.pop(edge).retire()
        for edge in routes.edges:
            if edge in self._gateways:
                self._gateways[edge].configure(config)
            else:
                self._gateways[edge] = self._gateway(edge)
        for connection in self._connections:
            connection.configure(config)


class BadOpening(ValueError):
    """A caller's first message is not a ``tcp.open`` message. ``text`` says what is wrong."""


def read_opening(untrusted: Any) -> tuple[Address | None, Address | None]:
    """(client, server) out of a ``tcp.open`` message (docs/reference/tcpip.md). Raises :exc:`BadOpening`."""
    if type(untrusted) is not dict or untrusted.get("type") != "tcp.open":
        raise BadOpening("the first message on a path to HTTPD must be tcp.open")
    return read_addresses(untrusted)


def read_addresses(untrusted: dict[str, Any]) -> tuple[Address | None, Address | None]:
    """(client, server) out of a message that tells both. Raises :exc:`BadOpening`."""
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
