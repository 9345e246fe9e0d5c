"""Where paths are made, and made again: authorised once, at connect, by the topology's edges.

For each path the control program makes a socket pair, offers one end to the target and, when that accepts, hands the
other to the originator. It stays off the data path and keeps a duplicate of the target's end, so that it can cut the
path at any time: at once when the target dies, whose end would otherwise seem alive as long as the duplicate is.

A machine whose descriptor has ended without a word asks for its end again. It gets one when the other machine has
asked as well, or when a successor of a dead target has taken its place, if the edge says ``keep``; else it learns why
there is none.
"""

import contextlib
import os
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Protocol

import trio

from retinue.cp.circuit import Ask, Circuit, Circuits, End, label, other
from retinue.cp.directory import Edge
from retinue.cp.relay import Direction, Listener, Relay
from retinue.pipes import Meter, Path, PathError, Rejected, SocketTransport, open_path, socket_pair, wire

# Seconds an end that has come back waits for the other, whose process lives.
RETURN_LIMIT: Final = 2.0
# The same when the control program itself has cut the path: then nobody is to blame who is busy just now.
CUT_LIMIT: Final = 10.0
# Times that two machines may make a path anew within the seconds after it.
MOST_REJOINS: Final = 32
REJOIN_WINDOW: Final = 10.0


class Target(Protocol):
    """What the switchboard needs of a machine."""

    @property
    def name(self) -> str: ...

    @property
    def generation(self) -> int: ...

    async def wait_ready(self, *, wait: bool) -> None:
        """Until it is READY. Rejected ``not-ready`` (without waiting) or ``broken`` when it will not be."""

    async def offer(self, circuit: Circuit, descriptor: int) -> None:
        """Hand it an end of the path; returns when it has accepted. Rejected as it says; PathError when it died."""


# Serves one path to a service of the control program itself (``*CP``, ``*LOG``) for the machine named.
StarService = Callable[[str, Path], Awaitable[None]]


class Tapper(Protocol):
    """Who looks at the packets of an edge."""

    def listener(self, path: int) -> Listener:
        """What sees the packets of one binding of a path."""

    def forget(self, path: int) -> None:
        """The path has ended for good."""


class Made(NamedTuple):
    """A new path: its number, and the originator's end, which is the caller's to close."""

    ident: int
    descriptor: int


class Switchboard:
    """Connects, cuts and connects again."""

    def __init__(self, targets: dict[str, Target], stars: dict[str, StarService], nursery: trio.Nursery) -> None:
        self._targets = targets
        self._stars = stars
        self._nursery = nursery
        self._circuits = Circuits(self._forgotten)
        self._taps: defaultdict[str, list[Tapper]] = defaultdict(list)  # by edge
        self._star_paths: defaultdict[str, set[Path]] = defaultdict(set)  # by label
        self._star_meters: defaultdict[str, Meter] = defaultdict(Meter)  # of paths that have ended

    # -- connecting --------------------------------------------------------------------------------------------------

    async def connect(self, origin: str, generation: int, edge: Edge, *, wait: bool) -> Made:
        """Make a path along an edge of the machine ``origin``, whose present process asks for it.

        Raises Rejected with the target's reason or ``not-ready``, ``broken``, ``exhausted``.
        """
        self._circuits.check_room(origin)
        if edge.to in self._stars:
            return Made(0, self._connect_star(origin, edge))
        return await self._connect_machine(origin, generation, edge, wait=wait)

    def _connect_star(self, origin: str, edge: Edge) -> int:
        try:
            ours, theirs = socket_pair()
        except OSError as exc:
            raise _exhausted(exc) from exc
        # Requests are short; what a machine sends must not cost the control program more than that.
        path = Path(
            SocketTransport(ours),
            name=f"{origin} to {edge.to}",
            peer=origin,
            limit=edge.limit,
            largest=wire.MAX_PACKET,
        )
        book = label(origin, edge)

        async def serve() -> None:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(path.run)
                    await self._stars[edge.to](origin, path)
                    nursery.cancel_scope.cancel()
            finally:
                self._circuits.opened[origin] -= 1
                self._star_paths[book].discard(path)
                self._star_meters[book].add(path.meter)

        self._circuits.opened[origin] += 1
        self._star_paths[book].add(path)
        self._nursery.start_soon(serve)
        return theirs.detach()

    async def _connect_machine(self, origin: str, generation: int, edge: Edge, *, wait: bool) -> Made:
        target = self._targets[edge.to]
        while True:
            await target.wait_ready(wait=wait)
            circuit = Circuit(origin, generation, edge, RETURN_LIMIT)
            self._circuits.add(circuit)
            try:
                self._circuits.use(circuit)
                return Made(circuit.ident, await self._offer(circuit, target))
            except BaseException as exc:
                self._circuits.forget(circuit)
                if isinstance(exc, OSError):
                    raise _exhausted(exc) from exc
                if isinstance(exc, Rejected) or not isinstance(exc, PathError):
                    raise
            if not wait:
                raise Rejected("not-ready", f"{target.name} died while it was asked")
            # Wait for its successor. Neither of the two above is bound to let other tasks run meanwhile.
            await trio.lowlevel.checkpoint()

    async def _offer(self, circuit: Circuit, target: Target) -> int:
        origin_end, target_end = self._pair(circuit)
        with contextlib.ExitStack() as undo:
            undo.callback(origin_end.close)
            # Held before it is offered: a target that dies in between must not leave a path to nobody.
            undo.callback(self._circuits.cut, circuit)
            undo.callback(self._lose, circuit, circuit.lost)
            circuit.target_generation, circuit.lost = target.generation, None
            self._circuits.hold(circuit, target_end)
            await target.offer(circuit, target_end.fileno())
            undo.pop_all()
        return origin_end.detach()

    def _lose(self, circuit: Circuit, why: str | None) -> None:
        circuit.lost = circuit.lost or why

    @asynccontextmanager
    async def open_to(self, origin: str, target: Target) -> AsyncIterator[Path]:
        """A path of the control program's own (``origin`` is a star name) to a machine, for the length of the block."""
        made = await self._connect_machine(origin, 0, Edge("", target.name), wait=True)
        async with open_path(
            SocketTransport(socket.socket(fileno=made.descriptor)), name=target.name, peer=target.name
        ) as path:
            yield path

    async def connect_operator(self, machine: str) -> Made:
        """A path of the operator's to a machine that is READY now; as :meth:`connect`."""
        return await self._connect_machine("*OPERATOR", 0, Edge("", machine), wait=False)

    # -- connecting again --------------------------------------------------------------------------------------------

    async def rebind(self, machine: str, generation: int, ident: int, *, stream: bool) -> int:
        """Another end of a path, for a machine whose own has ended without a word; ``stream`` if bytes passed on it.

        Rejected, with what severs the path: ``lost`` and why (also for a path that is not the machine's: nothing is
        said of it), ``violation`` when it asks twice or has not lost its end, or what a successor of the target says.
        """
        circuit = self._circuits.get(ident)
        end = None if circuit is None else circuit.end_of(machine, generation)
        if circuit is None or end is None:
            raise Rejected("lost", f"the control program knows no such path of {machine}")
        if circuit.over is not None:
            raise Rejected(*circuit.over)
        if end in circuit.asks:
            raise Rejected("violation", f"{machine} has asked for this path already")
        if not circuit.has_hung_up():
            raise Rejected("violation", f"{machine} asked for a path that has not ended")
        if circuit.origin.startswith("*"):
            raise Rejected("lost", f"{circuit.origin} has ended the path")
        self._circuits.use(circuit)
        self._circuits.cut(circuit)
        ask = circuit.asks[end] = Ask(stream)
        circuit.changed.unpark_all()
        try:
            return await self._come_back(circuit, end, ask)
        finally:
            del circuit.asks[end]
            if (unwanted := ask.take()) is not None:
                os.close(unwanted)
            self._circuits.settle(circuit)

    async def _come_back(self, circuit: Circuit, end: End, ask: Ask) -> int:
        with trio.move_on_after(circuit.patience) as scope:
            while (descriptor := ask.take()) is None:
                if circuit.over is not None:
                    raise Rejected(*circuit.over)
                if circuit.lost is not None:
                    scope.deadline = float("inf")
                    return await self._succeed(circuit, ask)
                across = circuit.asks.get(other(end))
                if across is not None and not across.succeeding:
                    self._join(circuit)
                else:
                    await circuit.changed.park()
            return descriptor
        raise self._ended(circuit, "lost", f"{circuit.name_of(other(end))} did not come back to the path")

    def _join(self, circuit: Circuit) -> None:
        """Both have come: a new pair, and one end for each."""
        now = trio.current_time()
        if now - circuit.window > REJOIN_WINDOW:
            circuit.window, circuit.rejoined = now, 0
        circuit.rejoined += circuit.patience != CUT_LIMIT  # our own cuts are nobody's fault
        if circuit.rejoined > MOST_REJOINS:
            self._end(circuit, "violation", f"the path was cut {MOST_REJOINS} times in {REJOIN_WINDOW:.0f} s")
            return
        try:
            origin_end, target_end = self._pair(circuit)
            with origin_end, contextlib.ExitStack() as undo:
                undo.callback(target_end.close)
                theirs = os.dup(target_end.fileno())
                undo.pop_all()
                circuit.asks[End.ORIGIN].descriptor = origin_end.detach()
                circuit.asks[End.TARGET].descriptor = theirs
        except OSError as exc:
            self._end(circuit, "exhausted", _exhausted(exc).text)
            return
        circuit.patience = RETURN_LIMIT
        self._circuits.hold(circuit, target_end)
        circuit.changed.unpark_all()

    async def _succeed(self, circuit: Circuit, ask: Ask) -> int:
        """The originator's end of a path whose target has died: the other one goes to the target's successor."""
        why = circuit.lost or ""
        if circuit.edge.on_restart != "keep" or ask.stream:
            raise self._ended(circuit, "lost", why)
        target = self._targets[circuit.edge.to]
        ask.succeeding = True
        while True:
            try:
                await target.wait_ready(wait=True)
                return await self._offer(circuit, target)
            except Rejected as exc:
                raise self._ended(circuit, "lost" if exc.code == "broken" else exc.code, exc.text) from None
            except PathError:
                pass
            except OSError as exc:
                raise self._ended(circuit, "exhausted", _exhausted(exc).text) from exc
            await trio.lowlevel.checkpoint()

    def _ended(self, circuit: Circuit, code: str, text: str) -> Rejected:
        self._end(circuit, code, text)
        return Rejected(code, text)

    # -- cutting -----------------------------------------------------------------------------------------------------

    def cut(self, edge: str) -> int:
        """Cut every path of an edge (``WEB.app``), so that both ends come for a new one; returns how many."""
        theirs = [circuit for circuit in self._circuits.joined if circuit.label == edge]
        for circuit in theirs:
            circuit.patience = CUT_LIMIT
            self._circuits.cut(circuit)
            self._circuits.settle(circuit)
        return len(theirs)

    def died(self, machine: str, generation: int, text: str) -> int:
        """A process has ended: cut every path that it has, and remember why; returns how many were joined."""
        joined = 0
        for circuit in self._circuits:
            origin = (machine, generation) == (circuit.origin, circuit.origin_generation)
            target = (machine, generation) == (circuit.edge.to, circuit.target_generation) and circuit.lost is None
            if not origin and not target:
                continue
            joined += circuit.held is not None
            nobody_is_left = circuit.over is not None or (origin and circuit.lost is not None)
            if target:
                circuit.lost = text
            if origin:
                self._end(circuit, "lost", text)
            self._circuits.cut(circuit)
            circuit.changed.unpark_all()
            self._circuits.settle(circuit)
            if nobody_is_left:
                self._circuits.forget(circuit)
        return joined

    def _end(self, circuit: Circuit, code: str, text: str) -> None:
        """The path has ended for good; whoever asks for it learns why."""
        if circuit.over is None:
            circuit.over = code, text
        self._circuits.cut(circuit)
        circuit.changed.unpark_all()

    # -- looking on --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def tap(self, edge: str, tapper: Tapper) -> AsyncIterator[None]:
        """Show the packets of every path of an edge (``WEB.app``), present and new, for the length of the block.

        Its paths are cut at the beginning and at the end, which their ends notice and nobody else.
        """
        self._taps[edge].append(tapper)
        self.cut(edge)
        try:
            yield
        finally:
            self._taps[edge].remove(tapper)
            self.cut(edge)

    def _pair(self, circuit: Circuit) -> tuple[socket.socket, socket.socket]:
        """Both ends of a new binding; between them a relay if somebody looks on. OSError without room for it."""
        origin_end, target_end = socket_pair()
        taps = self._taps.get(circuit.label)
        if not taps:
            return origin_end, target_end
        try:
            relay_end, other_end = socket_pair()
        except OSError:
            origin_end.close()
            target_end.close()
            raise
        listeners = [tapper.listener(circuit.ident) for tapper in taps]

        def listen(direction: Direction, data: bytes, descriptors: Sequence[int]) -> None:
            for listener in listeners:
                listener(direction, data, descriptors)

        circuit.relay = Relay(target_end, relay_end, listen)
        self._nursery.start_soon(circuit.relay.run)
        return origin_end, other_end

    def _forgotten(self, circuit: Circuit) -> None:
        for tapper in self._taps.get(circuit.label, ()):
            tapper.forget(circuit.ident)

    # -- what is known -----------------------------------------------------------------------------------------------

    @property
    def open_paths(self) -> int:
        """How many paths between machines are open."""
        return len(self._circuits.joined)

    def paths_by_edge(self) -> Counter[str]:
        """How many paths are open along each edge (``WEB.app``), those to star services among them."""
        found = Counter(circuit.label for circuit in self._circuits.joined)
        found.update({book: len(paths) for book, paths in self._star_paths.items()})
        return found

    def star_meter(self, edge: str) -> Meter:
        """What passed along an edge to a star service, as this end counts it."""
        total = Meter()
        total.add(self._star_meters[edge])
        for path in self._star_paths[edge]:
            total.add(path.meter)
        return total

    async def watch(self) -> None:
        """Let go of paths that have ended; runs until it is cancelled."""
        await self._circuits.watch()


def _exhausted(error: OSError) -> Rejected:
    return Rejected("exhausted", f"the control program cannot make a path: {error.strerror}")


def raise_descriptor_limit() -> int:
    """Let this process hold as many descriptors as it may; returns the number."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return os.sysconf("SC_OPEN_MAX") if hard == resource.RLIM_INFINITY else hard
