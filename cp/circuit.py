"""One path as the control program sees it: along which edge it was made, and who is at its ends now.

:class:`Circuits` are all of them. It keeps a duplicate of the target's end of each, by which a path can be cut and its
end is noticed, has another held for the next control program, and bounds what is remembered of paths that have ended.
"""

import contextlib
import select
import socket
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

import attrs
import trio

from retinue.cp.directory import Edge
from retinue.cp.keeping import NUMBERS, Keeper, Left, PathNote, key_number, path_key
from retinue.cp.relay import Relay
from retinue.pipes import Rejected

# Paths one machine may have opened: each costs the control program one descriptor.
MAX_PATHS: Final = 4096
# Paths that may lead to one machine: each costs it a descriptor, of which it has 4096. The next one would not only be
# refused: the offer would arrive without it, and the machine would take the control program for a liar and end.
MAX_TAKEN: Final = 3584
# Seconds a path that has hung up is known for, in case it was not ended on purpose and somebody asks for it.
LINGER: Final = 60.0
# Seconds of it in which the next control program would know it, too; its descriptors stay open as long.
KEPT_FOR: Final = 10.0
# Seconds a key that is not needed any more waits for another path: a machine that opens and closes paths all the time
# costs one message each. And how many keys are given up at a time: the link to who keeps them is not endless.
SPARE_FOR: Final = 2.0
SPARE_TURN: Final = 256
# Numbers of paths that are used before the next control program is told of more.
BLOCK: Final = 4096


class End(Enum):
    """The two ends of a path."""

    ORIGIN = "origin"
    TARGET = "target"


@attrs.define(eq=False)
class Ask:
    """A machine that has asked for its end again.

    ``descriptor`` is that end, once there is one. It is ``wanted`` for something that is to be sent. While
    ``succeeding``, the originator waits for a successor of the target. ``refused`` is the code and text when the
    process that has asked is no more.
    """

    process: tuple[str, int]
    stream: bool
    wanted: bool = True
    descriptor: int | None = None
    refused: tuple[str, str] | None = None
    succeeding: bool = False

    def take(self) -> int | None:
        """The descriptor, which is now the caller's to close."""
        taken, self.descriptor = self.descriptor, None
        return taken

    def refuse(self, code: str, text: str) -> None:
        """There will be none; whoever waits for one has to be woken up."""
        self.refused = code, text


@attrs.define(eq=False)
class Circuit:
    """One path. It is *joined* while the control program holds a duplicate of the target's end.

    ``origin`` may be the name of a star service, whose paths are never made again. ``target`` is the machine at the
    other end, one of several if the edge leads to instances. ``lost`` says why its process is not there any more, and
    is None again when a successor has taken its place; ``left`` that it was told to let go of its paths. ``over`` is
    the code and text with which the path has ended for good. ``ours``: the control program itself has cut it.
    ``adopted``: an earlier control program has made its present binding, and who has the ends is not quite known.
    """

    origin: str
    origin_generation: int
    edge: Edge
    target: str = attrs.field(default=attrs.Factory(lambda self: self.edge.to, takes_self=True), kw_only=True)
    ident: int = attrs.field(default=0, init=False)
    target_generation: int = attrs.field(default=0, init=False)
    held: socket.socket | None = attrs.field(default=None, init=False)
    relay: Relay | None = attrs.field(default=None, init=False)  # between its ends, while somebody looks at it
    lost: str | None = attrs.field(default=None, init=False)
    left: Left | None = attrs.field(default=None, init=False)
    let_go: bool = attrs.field(default=False, init=False)  # and it does not come for its end again
    over: tuple[str, str] | None = attrs.field(default=None, init=False)
    asks: dict[End, Ask] = attrs.field(factory=dict, init=False)
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    ours: bool = attrs.field(default=False, init=False)
    adopted: bool = attrs.field(default=False, init=False)
    succeeding: bool = attrs.field(default=False, init=False)  # bound by an offer to a successor
    asleep: bool = attrs.field(default=False, init=False)  # its originator gets an end when it wants one
    key: str = attrs.field(default="", init=False)  # under which the next control program would find it; empty if not
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
        return End.TARGET if self.leads_to(machine, generation) else None

    def leads_to(self, machine: str, generation: int) -> bool:
        """Whether this process is at its target end, as far as is known."""
        return (machine, generation) == (self.target, self.target_generation) and self.lost is None

    def name_of(self, end: End) -> str:
        """The name of who is at an end."""
        return self.origin if end is End.ORIGIN else self.target

    def has_hung_up(self) -> bool:
        """Whether one of the two ends has closed the descriptor that joins them (or it was cut)."""
        if self.held is None:
            return True
        poll = select.poll()
        poll.register(self.held, select.POLLRDHUP)
        return bool(poll.poll(0))

    def note(self) -> PathNote:
        """What the next control program has to know of it."""
        return PathNote(
            self.ident,
            (self.origin, self.origin_generation),
            (self.target, self.target_generation),
            self.edge,
            taps=self.relay is not None,
            succeeding=self.succeeding,
            asleep=self.left.text if self.asleep and self.left is not None else None,
        )


def label(origin: str, edge: Edge) -> str:
    """See :attr:`Circuit.label`."""
    return f"{origin}.{edge.name}" if edge.name else origin


def other(end: End) -> End:
    """The end across."""
    return End.TARGET if end is End.ORIGIN else End.ORIGIN


class Circuits:
    """All paths, open or lately ended. ``forgotten`` is called when one will never be bound again.

    With a ``keeper`` they are kept for the next control program.
    """

    def __init__(self, forgotten: Callable[[Circuit], None], keeper: Keeper | None = None) -> None:
        self._forgotten = forgotten
        self.keeper = keeper
        self._left = False
        self.opened: Counter[str] = Counter()  # by originator, also paths to star services
        self._taken: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by target, then by originator
        self._last = 0  # number given
        self._reserved = 0  # the next control program begins above it
        self._known: dict[int, Circuit] = {}
        self._held: dict[int, Circuit] = {}  # by descriptor
        self._idle: defaultdict[str, dict[int, Circuit]] = defaultdict(dict)  # by originator, the longest idle first
        self._asleep: defaultdict[str, dict[int, Circuit]] = defaultdict(dict)  # likewise, and not for LINGER only
        self._hung_up: deque[tuple[float, Circuit]] = deque()  # idle ones that may still be kept, the first first
        # Keys with what is still kept under them: by the number of that path, since when; the first first.
        self._keys_made = 0
        self._spare_keys: OrderedDict[int, tuple[float, str]] = OrderedDict()
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

    def taken(self, target: str) -> int:
        """How many paths lead to a machine."""
        return self._taken[target].total()

    def check_room(self, origin: str) -> None:
        """Rejected ``exhausted`` when the machine has as many paths open as it may have."""
        if self.opened[origin] >= MAX_PATHS:
            raise Rejected("exhausted", f"{origin} has {MAX_PATHS} paths open, which is the most a machine may have")

    def add(self, circuit: Circuit) -> None:
        """Know it, by a number that no other will ever have."""
        self._last += 1
        if self._last > self._reserved and self.keeper is not None:
            self._reserved = self._last + BLOCK - 1
            self.keeper.keep(NUMBERS, {"used": self._reserved})
        circuit.ident = self._last
        self._known[circuit.ident] = circuit

    def number_above(self, ident: int) -> None:
        """Give numbers above this one only."""
        self._last = max(self._last, ident)

    def adopt(self, circuit: Circuit, end: socket.socket | None) -> None:
        """Know one that an earlier control program has kept, by its number; ``end`` is the target's, taken over."""
        circuit.adopted = True
        self._keys_made = max(self._keys_made, key_number(circuit.key))
        self.number_above(circuit.ident)
        self._known[circuit.ident] = circuit
        if end is not None:
            self._count(circuit)
            self.hold(circuit, end)

    def use(self, circuit: Circuit) -> None:
        """It is among the paths that its originator has open; Rejected as by :meth:`check_room`, or by the target's."""
        if not circuit.counted:
            self.check_room(circuit.origin)
            self._check_taken(circuit, circuit.target)
            self._count(circuit)
        self._idle[circuit.origin].pop(circuit.ident, None)
        self._asleep[circuit.origin].pop(circuit.ident, None)

    def lead(self, circuit: Circuit, target: str) -> None:
        """It leads to another instance from here on; Rejected ``exhausted`` when that one has no room for it."""
        if circuit.target == target:
            return
        self._check_taken(circuit, target)
        if circuit.counted:
            self._taken[circuit.target][circuit.origin] -= 1
            self._taken[target][circuit.origin] += 1
        circuit.target = target

    def _count(self, circuit: Circuit) -> None:
        self.opened[circuit.origin] += 1
        self._taken[circuit.target][circuit.origin] += 1
        circuit.counted = True

    def _check_taken(self, circuit: Circuit, target: str) -> None:
        # As many as are left for others, and not one more: so a single machine can take half of them.
        if circuit.edge.star:
            return
        origin = circuit.origin
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
        self._idle[circuit.origin].pop(circuit.ident, None)
        idle = (self._asleep if circuit.asleep else self._idle)[circuit.origin]
        idle.pop(circuit.ident, None)
        idle[circuit.ident] = circuit
        if circuit.key and not circuit.asleep:
            self._hung_up.append((circuit.idle_since, circuit))
        if len(idle) > MAX_PATHS:
            self.forget(next(iter(idle.values())))

    def forget(self, circuit: Circuit) -> None:
        """Nobody will ask for it again."""
        self.cut(circuit)
        self._discount(circuit)
        self._idle[circuit.origin].pop(circuit.ident, None)
        self._asleep[circuit.origin].pop(circuit.ident, None)
        self._drop(circuit)
        if self._known.pop(circuit.ident, None) is not None:
            self._forgotten(circuit)

    def _discount(self, circuit: Circuit) -> None:
        if circuit.counted:
            self.opened[circuit.origin] -= 1
            self._taken[circuit.target][circuit.origin] -= 1
            circuit.counted = False

    # -- kept ----------------------------------------------------------------------------------------------------------

    def keep(self, circuit: Circuit) -> None:
        """Have it kept as it is now, with the end that joins it if it is joined."""
        if self.keeper is not None:
            circuit.key = circuit.key or self._key(circuit.ident)
            descriptors = () if circuit.held is None else (circuit.held.fileno(),)
            self.keeper.keep(circuit.key, circuit.note().as_dict(), descriptors)

    def _key(self, ident: int) -> str:
        if not self._spare_keys:
            self._keys_made += 1
            return path_key(self._keys_made)
        # There must not be two of one path.
        _, key = self._spare_keys.pop(ident) if ident in self._spare_keys else self._spare_keys.popitem(last=False)[1]
        return key

    def _drop(self, circuit: Circuit) -> None:
        # What is kept under the key does no harm for a while: it is a path that nobody will ask for.
        if circuit.key:
            self._spare_keys[circuit.ident] = trio.current_time(), circuit.key
            circuit.key = ""

    def _drop_keys(self, before: float) -> None:
        for _ in range(SPARE_TURN):
            if self.keeper is None or not self._spare_keys:
                break
            ident, (since, key) = next(iter(self._spare_keys.items()))
            if since > before:
                break
            del self._spare_keys[ident]
            self.keeper.drop(key)

    # -- joined --------------------------------------------------------------------------------------------------------

    def hold(self, circuit: Circuit, end: socket.socket) -> None:
        """Its ends are joined; ``end`` is the target's, taken over."""
        if self._left:
            end.close()
            return
        # Only the hang-up is wanted: the end is readable all the time while messages pass.
        self._epoll.register(end.fileno(), select.EPOLLRDHUP)
        self._held[end.fileno()] = circuit
        circuit.held = end

    def cut(self, circuit: Circuit) -> None:
        """Part its ends, if they are joined."""
        relay, circuit.relay = circuit.relay, None
        if relay is not None:
            relay.cut()
        end = self._let_go(circuit)
        if end is not None:
            with contextlib.suppress(OSError):  # the other end was first
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _let_go(self, circuit: Circuit) -> socket.socket | None:
        end, circuit.held = circuit.held, None
        if end is not None:
            del self._held[end.fileno()]
            self._epoll.unregister(end.fileno())
        return end

    def leave(self) -> None:
        """Let go of the ends and leave them joined; from here on nothing is kept or dropped."""
        self.keeper, self._left = None, True
        for circuit in self:
            if (end := self._let_go(circuit)) is not None:
                end.close()

    async def watch(self) -> None:
        """Let go of paths that have hung up; runs until it is cancelled, which leaves paths as they are."""
        with self._epoll:
            try:
                while True:
                    with trio.move_on_after(SPARE_FOR if self._hung_up or self._spare_keys else LINGER / 4):
                        await trio.lowlevel.wait_readable(self._epoll.fileno())
                    for number, _ in self._epoll.poll(0, 256):
                        circuit = self._held[number]
                        self.cut(circuit)
                        self.settle(circuit)
                    self.sweep()
                    await trio.lowlevel.checkpoint()
            finally:
                self.leave()

    def sweep(self) -> None:
        """Have nothing kept that has been idle for longer than KEPT_FOR, and forget it after LINGER."""
        now = trio.current_time()
        while self._hung_up and self._hung_up[0][0] <= now - KEPT_FOR:
            when, circuit = self._hung_up.popleft()
            if circuit.idle_since == when and circuit.ident in self._idle[circuit.origin]:
                self._drop(circuit)
        self._drop_keys(now - SPARE_FOR)
        for idle in self._idle.values():
            while idle and (longest := next(iter(idle.values()))).idle_since <= now - LINGER:
                self.forget(longest)
