"""One path as the control program sees it: along which edge it was made, and who is at its ends now.

:class:`Circuits` are all of them. It keeps a duplicate of the target's end of each, by which a path can be cut and its
end is noticed, and bounds what is remembered of paths that have ended.
"""

import contextlib
import select
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import count
from typing import Final

import attrs
import trio

from retinue.cp.directory import Edge
from retinue.cp.relay import Relay
from retinue.pipes import Rejected

# Paths one machine may have opened: each costs the control program one descriptor.
MAX_PATHS: Final = 4096
# Paths that may lead to one machine: each costs it a descriptor, of which it has 4096. The next one would not only be
# refused: the offer would arrive without it, and the machine would take the control program for a liar and end.
MAX_TAKEN: Final = 3584
# Seconds a path that has hung up is known for, in case it was not ended on purpose and somebody asks for it.
LINGER: Final = 60.0


class End(Enum):
    """The two ends of a path."""

    ORIGIN = "origin"
    TARGET = "target"


@attrs.define(eq=False)
class Ask:
    """A machine that has asked for its end again.

    ``descriptor`` is that end, once there is one. While ``succeeding``, the originator waits for a successor of the
    target.
    """

    stream: bool
    descriptor: int | None = None
    succeeding: bool = False

    def take(self) -> int | None:
        """The descriptor, which is now the caller's to close."""
        taken, self.descriptor = self.descriptor, None
        return taken


@attrs.define(eq=False)
class Circuit:
    """One path. It is *joined* while the control program holds a duplicate of the target's end.

    ``origin`` may be the name of a star service, whose paths are never made again. ``lost`` says why the target is not
    there any more, and is None again when a successor has taken its place; ``over`` is the code and text with which
    the path has ended for good. ``patience`` is how many seconds an end waits for the other one.
    """

    origin: str
    origin_generation: int
    edge: Edge
    patience: float
    ident: int = attrs.field(default=0, init=False)
    target_generation: int = attrs.field(default=0, init=False)
    held: socket.socket | None = attrs.field(default=None, init=False)
    relay: Relay | None = attrs.field(default=None, init=False)  # between its ends, while somebody looks at it
    lost: str | None = attrs.field(default=None, init=False)
    over: tuple[str, str] | None = attrs.field(default=None, init=False)
    asks: dict[End, Ask] = attrs.field(factory=dict, init=False)
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    counted: bool = attrs.field(default=False, init=False)  # among the paths that its originator has open
    idle_since: float = attrs.field(default=0.0, init=False)  # if it is neither joined nor asked for
    rejoined: int = attrs.field(default=0, init=False)  # since window
    window: float = attrs.field(default=0.0, init=False)

    @property
    def label(self) -> str:
        """The edge, as both ends call it in their books: ``WEB.app``; for a path of the program's own ``*LOG``."""
        return label(self.origin, self.edge)

    def end_of(self, machine: str, generation: int) -> End | None:
        """Which end this process has, or None: it may not ask about this path."""
        if (machine, generation) == (self.origin, self.origin_generation):
            return End.ORIGIN
        if (machine, generation) == (self.edge.to, self.target_generation) and self.lost is None:
            return End.TARGET
        return None

    def name_of(self, end: End) -> str:
        """The name of who is at an end."""
        return self.origin if end is End.ORIGIN else self.edge.to

    def has_hung_up(self) -> bool:
        """Whether one of the two ends has closed the descriptor that joins them (or it was cut)."""
        if self.held is None:
            return True
        poll = select.poll()
        poll.register(self.held, select.POLLRDHUP)
        return bool(poll.poll(0))


def label(origin: str, edge: Edge) -> str:
    """See :attr:`Circuit.label`."""
    return f"{origin}.{edge.name}" if edge.name else origin


def other(end: End) -> End:
    """The end across."""
    return End.TARGET if end is End.ORIGIN else End.ORIGIN


class Circuits:
    """All paths between machines, open or lately ended. ``forgotten`` is called when one will never be bound again."""

    def __init__(self, forgotten: Callable[[Circuit], None]) -> None:
        self._forgotten = forgotten
        self.opened: Counter[str] = Counter()  # by originator, also paths to star services
        self._taken: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by target, then by originator
        self._idents = count(1)
        self._known: dict[int, Circuit] = {}
        self._held: dict[int, Circuit] = {}  # by descriptor
        self._idle: defaultdict[str, dict[int, Circuit]] = defaultdict(dict)  # by originator, the longest idle first
        self._epoll = select.epoll()

    def __iter__(self) -> Iterator[Circuit]:
        return iter(list(self._known.values()))

    def get(self, ident: int) -> Circuit | None:
        """The path of that number, if it is known."""
        return self._known.get(ident)

    @property
    def joined(self) -> list[Circuit]:
        """Those whose ends are joined."""
        return list(self._held.values())

    def check_room(self, origin: str) -> None:
        """Rejected ``exhausted`` when the machine has as many paths open as it may have."""
        if self.opened[origin] >= MAX_PATHS:
            raise Rejected("exhausted", f"{origin} has {MAX_PATHS} paths open, which is the most a machine may have")

    def add(self, circuit: Circuit) -> None:
        """Know it, by a number that no other will ever have."""
        circuit.ident = next(self._idents)
        self._known[circuit.ident] = circuit

    def use(self, circuit: Circuit) -> None:
        """It is among the paths that its originator has open; Rejected as by :meth:`check_room`, or by the target's."""
        if not circuit.counted:
            self.check_room(circuit.origin)
            self._check_taken(circuit)
            self.opened[circuit.origin] += 1
            self._taken[circuit.edge.to][circuit.origin] += 1
            circuit.counted = True
        self._idle[circuit.origin].pop(circuit.ident, None)

    def _check_taken(self, circuit: Circuit) -> None:
        # As many as are left for others, and not one more: so a single machine can take half of them.
        origin, target = circuit.origin, circuit.edge.to
        taken = self._taken[target]
        if taken[origin] >= MAX_TAKEN - taken.total():
            raise Rejected(
                "exhausted", f"{taken.total()} paths lead to {target}: {origin} has its share of {MAX_TAKEN}"
            )

    def settle(self, circuit: Circuit) -> None:
        """It is idle if it is neither joined nor asked for: its originator may open another one instead."""
        if circuit.held is not None or circuit.asks or circuit.ident not in self._known:
            return
        self._discount(circuit)
        circuit.idle_since = trio.current_time()
        idle = self._idle[circuit.origin]
        idle.pop(circuit.ident, None)
        idle[circuit.ident] = circuit
        if len(idle) > MAX_PATHS:
            self.forget(next(iter(idle.values())))

    def forget(self, circuit: Circuit) -> None:
        """Nobody will ask for it again."""
        self.cut(circuit)
        self._discount(circuit)
        self._idle[circuit.origin].pop(circuit.ident, None)
        if self._known.pop(circuit.ident, None) is not None:
            self._forgotten(circuit)

    def _discount(self, circuit: Circuit) -> None:
        if circuit.counted:
            self.opened[circuit.origin] -= 1
            self._taken[circuit.edge.to][circuit.origin] -= 1
            circuit.counted = False

    # -- joined --------------------------------------------------------------------------------------------------------

    def hold(self, circuit: Circuit, end: socket.socket) -> None:
        """Its ends are joined; ``end`` is the target's, taken over."""
        # Only the hang-up is wanted: the end is readable all the time while messages pass.
        self._epoll.register(end.fileno(), select.EPOLLRDHUP)
        self._held[end.fileno()] = circuit
        circuit.held = end

    def cut(self, circuit: Circuit) -> None:
        """Part its ends, if they are joined."""
        end, circuit.held = circuit.held, None
        relay, circuit.relay = circuit.relay, None
        if relay is not None:
            relay.cut()
        if end is not None:
            del self._held[end.fileno()]
            self._epoll.unregister(end.fileno())
            with contextlib.suppress(OSError):  # the other end was first
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    async def watch(self) -> None:
        """Let go of paths that have hung up; runs until it is cancelled."""
        with self._epoll:
            try:
                while True:
                    with trio.move_on_after(LINGER / 4):
                        await trio.lowlevel.wait_readable(self._epoll.fileno())
                    for number, _ in self._epoll.poll(0, 256):
                        circuit = self._held[number]
                        self.cut(circuit)
                        self.settle(circuit)
                    self.sweep()
                    await trio.lowlevel.checkpoint()
            finally:
                for circuit in self:
                    self.forget(circuit)

    def sweep(self) -> None:
        """Forget what has been idle for longer than LINGER."""
        before = trio.current_time() - LINGER
        for idle in self._idle.values():
            while idle and (longest := next(iter(idle.values()))).idle_since <= before:
                self.forget(longest)
