"""Joining the two ends of a path: the first time, when both have come back to it, and when a successor takes one.

For each binding there is a new socket pair. The target's end goes to it with an offer, or to each who has asked for
its own; a duplicate stays here, and another with who keeps paths for the next control program.
"""

import contextlib
import os
import socket
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, Protocol

import trio

from retinue.cp.circuit import Ask, Circuit, Circuits, End, other
from retinue.cp.keeping import Left
from retinue.cp.relay import Direction, Listener, Relay
from retinue.cp.targets import Target, Targets
from retinue.pipes import PathError, Rejected, socket_pair

# Seconds an end that has come back waits for the other, whose process lives.
RETURN_LIMIT: Final = 2.0
# The same when the control program itself has cut the path: then nobody is to blame who is busy just now.
CUT_LIMIT: Final = 10.0
# Times that two machines may make a path anew within the seconds after it.
MOST_REJOINS: Final = 32
REJOIN_WINDOW: Final = 10.0


class Tapper(Protocol):
    """Who looks at the packets of an edge."""

    def listener(self, path: int) -> Listener:
        """What sees the packets of one binding of a path."""

    def forget(self, path: int) -> None:
        """The path has ended for good."""


class Joiner:
    """Gives paths their bindings. ``taps`` are by edge, ``left`` by process: those that let go of their paths."""

    def __init__(self, circuits: Circuits, targets: Targets, nursery: trio.Nursery) -> None:
        self._circuits = circuits
        self._targets = targets
        self._nursery = nursery
        self.taps: defaultdict[str, list[Tapper]] = defaultdict(list)
        self.left: dict[tuple[str, int], Left] = {}

    async def offer(self, circuit: Circuit, target: Target) -> int:
        """The originator's end, after the target has accepted the other. As :meth:`Target.offer`; OSError."""
        self._circuits.lead(circuit, target.name)
        origin_end, target_end = self._pair(circuit)
        with contextlib.ExitStack() as undo:
            undo.callback(origin_end.close)
            # Held before it is offered: a target that dies in between must not leave a path to nobody.
            undo.callback(self._circuits.cut, circuit)
            undo.callback(self._lose, circuit, circuit.lost)
            if (stranger := circuit.asks.pop(End.TARGET, None)) is not None:
                stranger.refuse("lost", f"{circuit.target} has another process at the path")
                circuit.changed.unpark_all()
            circuit.target_generation = target.generation
            circuit.left = self.left.get((target.name, target.generation))
            self._bound(circuit, target_end)
            await target.offer(circuit, target_end.fileno())
            undo.pop_all()
        return origin_end.detach()

    def _lose(self, circuit: Circuit, why: str | None) -> None:
        circuit.lost = circuit.lost or why

    def _bound(self, circuit: Circuit, target_end: socket.socket) -> None:
        circuit.lost = None
        circuit.ours = circuit.adopted = circuit.asleep = circuit.let_go = False
        self._circuits.hold(circuit, target_end)
        self._circuits.keep(circuit)

    def should_ask_again(self, circuit: Circuit, refusal: BaseException) -> bool:
        """Whether an offer was refused by a process that stops because another one takes its place."""
        process = circuit.target, circuit.target_generation
        return isinstance(refusal, Rejected) and refusal.code == "stopping" and process in self.left

    # -- both come back ------------------------------------------------------------------------------------------------

    async def come_back(self, circuit: Circuit, end: End, ask: Ask) -> int:
        """An end for who has asked; Rejected with what severs the path, or with ``asleep``."""
        with trio.move_on_after(_patience(circuit, end)) as scope:
            while (descriptor := ask.take()) is None:
                refusal = ask.refused or circuit.over
                if refusal is not None:
                    raise Rejected(*refusal)
                across = circuit.asks.get(other(end))
                if end is End.ORIGIN and (circuit.lost is not None or (across is None and _let_go(circuit))):
                    scope.deadline = float("inf")
                    return await self._succeed(circuit, ask)
                if across is not None and not across.succeeding:
                    self._join(circuit)
                else:
                    await circuit.changed.park()
            return descriptor
        if ask.refused is not None:
            raise Rejected(*ask.refused)
        # A process that has let go of it does not come, nor one that was never offered it: who should have done that
        # was the control program before this one.
        if end is End.ORIGIN and (circuit.left is not None or (circuit.adopted and circuit.succeeding)):
            return await self._succeed(circuit, ask)
        raise self._ended(circuit, "lost", f"{circuit.name_of(other(end))} did not come back to the path")

    def _join(self, circuit: Circuit) -> None:
        """Both have come: a new pair, and one end for each."""
        now = trio.current_time()
        if now - circuit.window > REJOIN_WINDOW:
            circuit.window, circuit.rejoined = now, 0
        circuit.rejoined += not circuit.ours  # our own cuts are nobody's fault
        if circuit.rejoined > MOST_REJOINS:
            self.end(circuit, "violation", f"the path was cut {MOST_REJOINS} times in {REJOIN_WINDOW:.0f} s")
            return
        circuit.succeeding = False
        try:
            origin_end, target_end = self._pair(circuit)
            with origin_end, contextlib.ExitStack() as undo:
                undo.callback(target_end.close)
                theirs = os.dup(target_end.fileno())
                undo.pop_all()
                undo.callback(os.close, theirs)
                self._bound(circuit, target_end)
                undo.pop_all()
                circuit.asks[End.ORIGIN].descriptor = origin_end.detach()
                circuit.asks[End.TARGET].descriptor = theirs
        except OSError as exc:
            self.end(circuit, "exhausted", exhausted(exc).text)
            return
        circuit.changed.unpark_all()

    # -- a successor comes ---------------------------------------------------------------------------------------------

    async def _succeed(self, circuit: Circuit, ask: Ask) -> int:
        """The originator's end of a path whose target is not there any more: the other one goes to its successor."""
        left = circuit.left
        if circuit.lost is None:
            # From here on the process that has had the other end is a stranger to the path.
            circuit.lost = left.text if left is not None else f"{circuit.target} was never offered the path"
        if circuit.edge.on_restart != "keep" or ask.stream:
            raise self._ended(circuit, "lost", circuit.lost)
        if left is not None and left.asleep and not ask.wanted:
            circuit.asleep = True
            self._circuits.keep(circuit)
            raise Rejected("asleep", left.text)
        ask.succeeding = circuit.succeeding = True
        while True:
            try:
                return await self.offer(circuit, await self._targets.successor(circuit.target, circuit.edge.to))
            except Rejected as exc:
                if not self.should_ask_again(circuit, exc):
                    code = "lost" if exc.code == "broken" else exc.code
                    raise self._ended(circuit, code, exc.text) from None
            except PathError:
                pass
            except OSError as exc:
                raise self._ended(circuit, "exhausted", exhausted(exc).text) from exc
            # Neither of the two above is bound to let other tasks run.
            await trio.lowlevel.checkpoint()

    def _ended(self, circuit: Circuit, code: str, text: str) -> Rejected:
        self.end(circuit, code, text)
        return Rejected(code, text)

    def end(self, circuit: Circuit, code: str, text: str) -> None:
        """The path has ended for good; whoever asks for it learns why."""
        if circuit.over is None:
            circuit.over = code, text
        self._circuits.cut(circuit)
        circuit.changed.unpark_all()

    # -- a new binding -------------------------------------------------------------------------------------------------

    def _pair(self, circuit: Circuit) -> tuple[socket.socket, socket.socket]:
        """Both ends of a new binding; between them a relay if somebody looks on. OSError without room for it."""
        origin_end, target_end = socket_pair()
        taps = self.taps.get(circuit.label)
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


def _let_go(circuit: Circuit) -> bool:
    """Whether the process at the target end has ended this binding on purpose, as it was told to."""
    return circuit.left is not None and (not circuit.ours or circuit.let_go)


def _patience(circuit: Circuit, end: End) -> float:
    # A process that lets go of its paths comes at once if it has something to do on this one, or not at all.
    may_be_busy = end is End.TARGET or circuit.left is None
    return CUT_LIMIT if circuit.ours and may_be_busy else RETURN_LIMIT


def exhausted(error: OSError) -> Rejected:
    """What a machine is told that there was no room for."""
    return Rejected("exhausted", f"the control program cannot make a path: {error.strerror}")
