"""The machine that keeps the host's network: TCP connections in, paths out; and, as far as it is allowed, out again.

It listens where its config says and makes one path per TCP connection. The first message on the path says who is
calling (``tcp.open``); then both ends call ``stream()`` and bytes are relayed in both directions, with back-pressure
and half-close. A machine that would rather answer questions (``tcp.ask``) leaves its connections to its successor when
it dies. Another machine with an edge to this one may ask for a connection, or for datagrams, to a place that
``config.allow`` names for it. TCPIP knows nothing of what the bytes mean.

====================  =============================================================================================
config.listen         ``{ "127.0.0.1:8080" = "web" }``: address -> local name of the edge that is connected for it
config.allow          ``{ SHOP = ["api.example.org:443"] }``: machine, or ``*`` -> where it may go; nobody else anywhere
config.*              limits and times, :class:`Config`
edges used            every edge that ``listen`` names
edges provided        ``tcp.connect``, ``udp.open``, ``unix.connect`` and ``unix.open``; :mod:`retinue.svm.outside`
                      speaks them
====================  =============================================================================================

Who learns what, and when: ``docs/reference/tcpip.md``.
"""

import logging
from typing import Final

import trio

from retinue.services.tcpip.address import BadAddress as BadAddress
from retinue.services.tcpip.address import format_address as format_address
from retinue.services.tcpip.address import parse_address as parse_address
from retinue.services.tcpip.config import Config as Config
from retinue.services.tcpip.gate import Gate
from retinue.services.tcpip.listener import ListenFailed as ListenFailed
from retinue.services.tcpip.listener import UnknownEdge as UnknownEdge
from retinue.services.tcpip.listener import open_listener as open_listener
from retinue.services.tcpip.outbound import LIMIT, Outbound
from retinue.services.tcpip.policy import Policy
from retinue.services.tcpip.resolver import Resolver, SystemResolver
from retinue.services.tcpip.tallies import Tallies
from retinue.svm import Machine

log: Final = logging.getLogger("retinue.tcpip")


async def main(vm: Machine[Config]) -> None:
    """Bind everything, say ready, accept until told to stop, let connections finish for ``drain_time``."""
    await run(vm, SystemResolver())


async def run(vm: Machine[Config], resolver: Resolver) -> None:
    """:func:`main`, with whoever knows the addresses of names."""
    config = vm.config
    policy = Policy(vm.name, config.allow)
    for address, edge in config.listen.items():
        if edge not in vm.edges:
            raise UnknownEdge(address, edge, vm.edges)
    listeners = []
    try:
        for address, edge in config.listen.items():
            listener = await open_listener(address, config.backlog)
            listeners.append((listener, edge))
            log.info("listening on %s for the edge %s", format_address(listener.getsockname()[:2]), edge)
        async with trio.open_nursery() as recording:
            async with trio.open_nursery() as connections:
                gate = Gate(vm, connections)
                outbound = Outbound(vm, policy, resolver, Tallies(recording), connections)
                async with trio.open_nursery() as accepting:
                    for listener, edge in listeners:
                        accepting.start_soon(gate.accept_all, listener, edge)
                    accepting.start_soon(outbound.accept_all, vm.listen(limit=LIMIT))
                    await vm.ready()
                    await vm.stopping.wait()
                    accepting.cancel_scope.cancel()
                for listener, _ in listeners:
                    listener.close()
                gate.finish()
                outbound.finish()
                connections.cancel_scope.deadline = trio.current_time() + config.drain_time
            recording.cancel_scope.cancel()
    finally:
        for listener, _ in listeners:
            listener.close()
