"""Where paths are made, and made again: authorised once, at connect, by the topology's edges.

For each path the control program makes a socket pair, offers one end to the target and, when that accepts, hands the
other to the originator. It stays off the data path and keeps a duplicate of the target's end, so that it can cut the
path at any time: at once when the target dies, whose end would otherwise seem alive as long as the duplicate is.

A machine whose descriptor has ended without a word asks for its end again. It gets one when the other machine has
asked as well, or when a successor of the target has taken its place, if the edge says ``keep``; else it learns why
there is none.

Another duplicate of each is kept, with a note, for the next control program: it adopts the paths as they are.
"""

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from retinue.cp.adoption import Ended, adopt
from retinue.cp.circuit import Ask, Circuit, Circuits, End
from retinue.cp.directory import Edge
from retinue.cp.joining import Joiner, Tapper, exhausted
from retinue.cp.keeping import Keeper, Kept, Left, left_key
from retinue.cp.stars import Stars, StarService
from retinue.cp.targets import Target, Targets
from retinue.pipes import Meter, Path, PathError, Rejected, SocketTransport, open_path


class Made(NamedTuple):
    """A new path: its number, the originator's end, which is the caller's to close, and how many machines there are
    that the edge may lead to.
    """

    ident: int
    descriptor: int
    instances: int = 1


class Switchboard:
    """Connects, cuts and connects again. With a ``keeper`` the paths outlive it."""

    def __init__(
        self,
        targets: Mapping[str, Target],
        stars: Mapping[str, StarService],
        nursery: trio.Nursery,
        keeper: Keeper | None = None,
    ) -> None:
        self._circuits = Circuits(self._forgotten, keeper)
        self._targets = Targets(targets.values(), self._circuits.taken)
        self._joiner = Joiner(self._circuits, self._targets, nursery)
        self._stars = Stars(stars, self._circuits, nursery)
        self._leaving = False

    def add_target(self, target: Target) -> None:
        """Paths may lead to one more machine, or to this one instead of another of its name."""
        self._targets.add(target)

    def remove_target(self, name: str) -> None:
        """No new path leads to this machine, and no successor of it is waited for; those that it has stay."""
        self._targets.remove(name)

    # -- connecting --------------------------------------------------------------------------------------------------

    async def connect(
        self, origin: str, generation: int, edge: Edge, *, wait: bool, instance: int | None = None
    ) -> Made:
        """Make a path along an edge of the machine ``origin``, whose present process asks for it.

        Of several machines behind the edge it leads to ``instance``, or else to the one with the fewest paths. Raises
        Rejected with the target's reason or ``not-ready``, ``broken``, ``exhausted``, ``unknown-instance``.
        """
        await self._stay()
        self._circuits.check_room(origin)
        if edge.to in self._stars:
            try:
                return Made(*self._stars.connect(origin, generation, edge))
            except OSError as exc:
                raise exhausted(exc) from exc
        return await self._connect_machine(origin, generation, edge, wait=wait, instance=instance)

    async def _connect_machine(
        self, origin: str, generation: int, edge: Edge, *, wait: bool, instance: int | None = None
    ) -> Made:
        while True:
            target = await self._targets.choose(edge.to, wait=wait, instance=instance)
            circuit = Circuit(origin, generation, edge, target=target.name)
            self._circuits.add(circuit)
            try:
                self._circuits.use(circuit)
                descriptor = await self._joiner.offer(circuit, target)
                return Made(circuit.ident, descriptor, self._targets.count(edge.to))
            except BaseException as exc:
                self._circuits.forget(circuit)
                if isinstance(exc, OSError):
                    raise exhausted(exc) from exc
                final = isinstance(exc, Rejected) or not isinstance(exc, PathError)
                if final and not self._joiner.should_ask_again(circuit, exc):
                    raise
            if not wait:
                raise Rejected("not-ready", f"{target.name} died while it was asked")
            # Wait for its successor. Neither of the two above is bound to let other tasks run meanwhile.
            await trio.lowlevel.checkpoint()

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
        await self._stay()
        return await self._connect_machine("*OPERATOR", 0, Edge("", machine), wait=False)

    # -- connecting again --------------------------------------------------------------------------------------------

    async def rebind(self, machine: str, generation: int, ident: int, *, stream: bool, wanted: bool = True) -> int:
        """Another end of a path, for a machine whose own has ended without a word; ``stream`` if bytes passed on it.

        Rejected, with what severs the path: ``lost`` and why (also for a path that is not the machine's: nothing is
        said of it), ``violation`` when it asks twice or has not lost its end, or what a successor of the target says.
        Only ``asleep`` does not sever it: the target sleeps, and is started when an end is ``wanted``.
        """
        await self._stay()
        circuit = self._circuits.get(ident)
        end = None if circuit is None else circuit.end_of(machine, generation)
        if circuit is None or end is None:
            raise Rejected("lost", f"the control program knows no such path of {machine}")
        if circuit.edge.star:
            try:
                return self._stars.rebind(circuit, stream=stream)
            except OSError as exc:
                raise exhausted(exc) from exc
        if circuit.over is not None:
            raise Rejected(*circuit.over)
        if end in circuit.asks:
            raise Rejected("violation", f"{machine} has asked for this path already")
        # The control program before this one may have died when it had joined the path and not told the target.
        may_not_have_it = circuit.adopted and end is End.TARGET
        if not circuit.has_hung_up() and not may_not_have_it:
            raise Rejected("violation", f"{machine} asked for a path that has not ended")
        if circuit.origin.startswith("*"):
            raise Rejected("lost", f"{circuit.origin} has ended the path")
        self._circuits.use(circuit)
        self._circuits.cut(circuit)
        if not circuit.key:
            self._circuits.keep(circuit)
        ask = circuit.asks[end] = Ask((machine, generation), stream, wanted)
        circuit.changed.unpark_all()
        try:
            return await self._joiner.come_back(circuit, end, ask)
        except trio.Cancelled:
            if end is End.TARGET:  # it has withdrawn its call, and nothing more to do on the path
                circuit.let_go = True
                circuit.changed.unpark_all()
            raise
        finally:
            if circuit.asks.get(end) is ask:
                del circuit.asks[end]
            if (unwanted := ask.take()) is not None:
                os.close(unwanted)
            self._circuits.settle(circuit)

    # -- cutting -----------------------------------------------------------------------------------------------------

    def cut(self, edge: str) -> int:
        """Cut every path of an edge (``WEB.app``), so that both ends come for a new one; returns how many."""
        theirs = [circuit for circuit in self._circuits.joined if circuit.label == edge]
        for circuit in theirs:
            circuit.ours = True
            self._circuits.cut(circuit)
            self._circuits.settle(circuit)
        return len(theirs)

    def died(self, machine: str, generation: int, text: str) -> int:
        """A process has ended: cut every path that it has, and remember why; returns how many were joined."""
        if self._joiner.left.pop((machine, generation), None) is not None and self._circuits.keeper is not None:
            self._circuits.keeper.drop(left_key(machine, generation))
        return sum(self._died(circuit, machine, generation, text) for circuit in self._circuits)

    def _died(self, circuit: Circuit, machine: str, generation: int, text: str) -> bool:
        end = circuit.end_of(machine, generation)
        ask = circuit.asks.get(End.TARGET)
        if ask is not None and ask.process == (machine, generation):
            del circuit.asks[End.TARGET]
            ask.refuse("lost", text)
        if end is None:
            return False
        if circuit.edge.star:
            self._stars.died(circuit)
            return False
        joined = circuit.held is not None
        nobody_is_left = circuit.over is not None or (end is End.ORIGIN and circuit.lost is not None)
        if circuit.leads_to(machine, generation):
            # What it had let go of was not lost by its death.
            circuit.lost = circuit.left.text if circuit.left is not None and not joined else text
        if end is End.ORIGIN:
            self._joiner.end(circuit, "lost", text)
        self._circuits.cut(circuit)
        circuit.changed.unpark_all()
        self._circuits.settle(circuit)
        if nobody_is_left:
            self._circuits.forget(circuit)
        return joined

    # -- letting go ----------------------------------------------------------------------------------------------------

    def release(self, machine: str, generation: int, text: str) -> int:
        """This process will let go of the paths that lead to it, one after the other, for its successor to take them.

        To be called before the process is told so. Nothing is cut; paths that are not handed on (byte streams, edges
        that do not say ``keep``) are ``lost`` with the text. Returns how many paths lead to it now.
        """
        return self._let_go(machine, generation, Left(text))

    def sleep(self, machine: str, generation: int, text: str) -> int:
        """As :meth:`release`; but a successor is waited for, and so started, only for who wants something of it.

        Others are refused with ``asleep`` and the text, and their paths are known as long as they live.
        """
        return self._let_go(machine, generation, Left(text, asleep=True))

    def _let_go(self, machine: str, generation: int, left: Left) -> int:
        self._joiner.left[machine, generation] = left
        if self._circuits.keeper is not None:
            note = {"text": left.text, "asleep": left.asleep}
            self._circuits.keeper.keep(left_key(machine, generation), note)
        theirs = [circuit for circuit in self._circuits if circuit.leads_to(machine, generation)]
        for circuit in theirs:
            circuit.left = left
            circuit.changed.unpark_all()
        return sum(circuit.held is not None for circuit in theirs)

    # -- between two control programs ----------------------------------------------------------------------------------

    def adopt(self, kept: Mapping[str, Kept], ended: Ended) -> None:
        """Take over what an earlier control program had kept; before anything else.

        Of ``kept`` it takes what it has put there itself. ``ended`` tells why a process (a machine and its generation)
        is no more, or None while it lives.
        """
        adopt(self._circuits, self._joiner.left, kept, ended)

    def leave(self) -> None:
        """The control program goes, and its machines stay: let go of all paths without a word, for the next one.

        Nothing is kept or dropped after this, and who asks for a path gets no answer.
        """
        self._leaving = True
        self._circuits.leave()
        self._stars.leave()

    async def _stay(self) -> None:
        if self._leaving:
            await trio.sleep_forever()

    # -- looking on --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def tap(self, edge: str, tapper: Tapper) -> AsyncIterator[None]:
        """Show the packets of every path of an edge (``WEB.app``), present and new, for the length of the block.

        Its paths are cut at the beginning and at the end, which their ends notice and nobody else.
        """
        self._joiner.taps[edge].append(tapper)
        self.cut(edge)
        try:
            yield
        finally:
            self._joiner.taps[edge].remove(tapper)
            self.cut(edge)

    def _forgotten(self, circuit: Circuit) -> None:
        for tapper in self._joiner.taps.get(circuit.label, ()):
            tapper.forget(circuit.ident)

    # -- what is known -----------------------------------------------------------------------------------------------

    @property
    def open_paths(self) -> int:
        """How many paths between machines are open."""
        return len(self._circuits.joined)

    def paths_by_edge(self) -> Counter[str]:
        """How many paths are open along each edge (``WEB.app``), those to star services among them."""
        found = Counter(circuit.label for circuit in self._circuits.joined)
        found.update(self._stars.count())
        return found

    def paths_to(self, machine: str) -> int:
        """How many paths lead to a machine, those among them whose ends are about to be joined again."""
        return self._circuits.taken(machine)

    def star_meter(self, edge: str) -> Meter:
        """What passed along an edge to a star service, as this end counts it."""
        return self._stars.meter(edge)

    async def watch(self) -> None:
        """Let go of paths that have ended; runs until it is cancelled."""
        await self._circuits.watch()


def raise_descriptor_limit() -> int:
    """Let this process hold as many descriptors as it may; returns the number."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return os.sysconf("SC_OPEN_MAX") if hard == resource.RLIM_INFINITY else hard
