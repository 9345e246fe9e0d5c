"""Paths to the services of the control program itself, whose names begin with a star.

The control program is their other end. When it dies they end without a word, and their machines ask its successor for
them, which makes each anew: it is another process that serves them, and so what had no answer comes again.
"""

import contextlib
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping

import trio

from retinue.cp.circuit import Circuit, Circuits
from retinue.cp.directory import Edge
from retinue.pipes import Meter, Path, Rejected, SocketTransport, socket_pair, wire

# Serves one path to a service of the control program itself (``*CP``, ``*LOG``) for the machine named.
StarService = Callable[[str, Path], Awaitable[None]]


class Stars:
    """Makes paths to star services, and serves them in the nursery."""

    def __init__(self, services: Mapping[str, StarService], circuits: Circuits, nursery: trio.Nursery) -> None:
        self._services = services
        self._circuits = circuits
        self._nursery = nursery
        self._ends: dict[int, socket.socket] = {}  # of those that are served, by number
        self._paths: defaultdict[str, set[Path]] = defaultdict(set)  # by label
        self._ended: defaultdict[str, Meter] = defaultdict(Meter)  # what passed along those that have ended

    def __contains__(self, name: str) -> bool:
        return name in self._services

    def connect(self, origin: str, generation: int, edge: Edge) -> tuple[int, int]:
        """A new path: its number, and the originator's end. Rejected ``exhausted``; OSError without room for it."""
        circuit = Circuit(origin, generation, edge)
        ours, theirs = socket_pair()
        try:
            self._circuits.add(circuit)
            self._circuits.use(circuit)
            self._circuits.keep(circuit)
        except BaseException:
            self._circuits.forget(circuit)
            ours.close()
            theirs.close()
            raise
        self._serve(circuit, ours)
        return circuit.ident, theirs.detach()

    def rebind(self, circuit: Circuit, *, stream: bool) -> int:
        """The originator's end of another binding of a path that an earlier control program has served.

        Rejected ``lost`` or ``violation``; OSError without room for it.
        """
        if circuit.ident in self._ends:
            raise Rejected("violation", f"{circuit.origin} asked for a path that has not ended")
        if stream or circuit.edge.to not in self._services:
            self._circuits.forget(circuit)
            raise Rejected("lost", "the control program was replaced")
        ours, theirs = socket_pair()
        try:
            self._circuits.use(circuit)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        if not circuit.key:
            self._circuits.keep(circuit)
        self._serve(circuit, ours)
        return theirs.detach()

    def _serve(self, circuit: Circuit, ours: socket.socket) -> None:
        # Requests are short; what a machine sends must not cost the control program more than that.
        path = Path(
            SocketTransport(ours),
            name=f"{circuit.origin} to {circuit.edge.to}",
            peer=circuit.origin,
            limit=circuit.edge.limit,
            largest=wire.MAX_PACKET,
        )
        book, service = circuit.label, self._services[circuit.edge.to]

        async def serve() -> None:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(path.run)
                    await service(circuit.origin, path)
                    nursery.cancel_scope.cancel()
            finally:
                del self._ends[circuit.ident]
                self._paths[book].discard(path)
                self._ended[book].add(path.meter)
                self._circuits.forget(circuit)

        self._ends[circuit.ident] = ours
        self._paths[book].add(path)
        self._nursery.start_soon(serve)

    def died(self, circuit: Circuit) -> None:
        """The originator's process has ended. A path that is served finds its end by itself."""
        if circuit.ident not in self._ends:
            self._circuits.forget(circuit)

    def leave(self) -> None:
        """End all without a word: who is at their other ends asks the next control program for them."""
        for end in self._ends.values():
            with contextlib.suppress(OSError):  # it has ended already
                end.shutdown(socket.SHUT_RDWR)

    def count(self) -> dict[str, int]:
        """How many paths are open along each edge."""
        return {book: len(paths) for book, paths in self._paths.items()}

    def meter(self, edge: str) -> Meter:
        """What passed along an edge, as this end counts it."""
        total = Meter()
        total.add(self._ended[edge])
        for path in self._paths[edge]:
            total.add(path.meter)
        return total
