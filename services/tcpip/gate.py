"""TCP connections that come in, each to become one path along the edge of its address."""

import errno
import logging
from typing import Any, Final

import trio

from retinue.pipes import Path, PathError, Rejected
from retinue.pipes.message import close_all
from retinue.services.resumable import ACCEPT, LEAST_LIMIT, OFFER
from retinue.services.tcpip.address import Address, addresses, format_address
from retinue.services.tcpip.config import Config
from retinue.services.tcpip.conversation import Conversation
from retinue.services.tcpip.relay import Carrier, Relay, Relays, hang_up
from retinue.svm import Machine

log: Final = logging.getLogger("retinue.tcpip")

# How long accepting rests when the host has no descriptor or memory to spare: others must free one first.
ACCEPT_PAUSE: Final = 0.1
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# accept(2), "Error handling": errors of the new connection, not of the listener.
_CLIENT_FAULT: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.ENETDOWN,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    }
)


class Gate:
    """All listeners of the machine and the connections that came in through them, which run in ``nursery``."""

    def __init__(self, vm: Machine[Config], nursery: trio.Nursery) -> None:
        self.vm = vm
        self.config = vm.config
        self._nursery = nursery
        self._room = trio.Semaphore(vm.config.max_connections)
        self._relays = Relays()
        self._exhausted = False

    async def accept_all(self, listener: trio.socket.SocketType, edge: str) -> None:
        """Accept for ever. What goes wrong with one connection, or for want of descriptors, never ends it."""
        while True:
            await self._room.acquire()
            try:
                sock, _ = await listener.accept()
            except OSError as exc:
                self._room.release()
                if exc.errno in _CLIENT_FAULT:
                    continue
                if exc.errno not in EXHAUSTED:
                    raise
                if not self._exhausted:  # once for each time of want, not ten times a second
                    log.warning("cannot accept connections now: %s; clients wait", exc.strerror)
                self._exhausted = True
                await trio.sleep(ACCEPT_PAUSE)
            except BaseException:
                self._room.release()
                raise
            else:
                self._exhausted = False
                self._nursery.start_soon(self._serve, sock, edge)

    def finish(self) -> None:
        """Let the connections end: at once those that owe no answer."""
        self._relays.finish()

    async def _serve(self, sock: trio.socket.SocketType, edge: str) -> None:
        orderly = False
        try:
            client = trio.SocketStream(sock)  # sets TCP_NODELAY
            peer, here = sock.getpeername()[:2], sock.getsockname()[:2]
            opening = addresses(peer, here)
            path = await self._connect(edge, peer, opening)
            if path is not None:
                carrier: Carrier
                if _accepted(path):
                    carrier = Conversation(client, path, opening, self.config.max_kept)
                else:
                    carrier = Relay(client, path)
                await self._relays.run(carrier)
                orderly = carrier.orderly
                log.debug("%s: closed%s", format_address(peer), "" if orderly else ", cut off")
        except (OSError, PathError) as exc:  # gone before the first byte: the client, or the machine
            log.debug("connection lost before it began: %s", exc)
        finally:
            hang_up(sock, orderly=orderly)
            self._room.release()

    async def _connect(self, edge: str, peer: Address, opening: dict[str, Any]) -> Path | None:
        text = f"no answer within {self.config.patience:g} s"
        path: Path | None = None
        with trio.move_on_after(self.config.patience):
            try:
                path = await self.vm.connect(edge)
                offers = self.config.max_kept > 0 and path.limit >= LEAST_LIMIT
                await path.send({"type": "tcp.open", **opening, **({OFFER: True} if offers else {})})
                log.debug("%s: connected to the edge %s", format_address(peer), edge)
                return path
            except PathError as exc:
                text = str(exc)
        if path is not None:
            path.sever("lost", "not accepted in time")
        log.warning("%s: connection closed, the edge %s is not available: %s", format_address(peer), edge, text)
        return None


def _accepted(path: Path) -> bool:
    """Whether the machine that has received ``tcp.open`` takes up the offer in it: it has said so before.

    PathError when it says anything else.
    """
    message = path.next_message()
    if message is None:
        return False
    close_all(message.descriptors)
    if message.wants_reply or type(message.body) is not dict or message.body.get("type") != ACCEPT:
        path.sever("violation", f"after tcp.open comes {ACCEPT} or a stream")
        raise Rejected("violation", "the machine does not speak for connections")
    path.acknowledge(message)
    return True
