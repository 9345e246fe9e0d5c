"""What a new control program does with the paths of the one before it.

Paths whose ends are still joined go on, and are watched. Others come back to it as they would have to the other: who
has lost an end asks for it. What nobody asks for was closed, or never quite made, and is forgotten as such paths are.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

from retinue.cp.circuit import Circuit, Circuits
from retinue.cp.keeping import LEFT, NUMBERS, PREFIX, Kept, Left, PathNote, key_number, left_key, left_process

# Why a process (a machine's name and generation) is no more; None while it lives.
Ended = Callable[[str, int], str | None]

# What a note is that another version has written, or a descriptor that is no socket.
_UNREADABLE: Final = (ValueError, KeyError, TypeError, OSError)


def adopt(circuits: Circuits, left: dict[tuple[str, int], Left], kept: Mapping[str, Kept], ended: Ended) -> None:
    """Know the paths that were kept, and in ``left`` the processes that let go of theirs."""
    for key, each in kept.items():
        with contextlib.suppress(*_UNREADABLE):
            if key == NUMBERS:
                circuits.number_above(int(each.note["used"]))
            elif key.startswith(LEFT):
                left[left_process(key)] = Left(str(each.note["text"]), asleep=bool(each.note["asleep"]))
    for key, each in kept.items():
        if key.startswith(PREFIX) and key != NUMBERS and not key.startswith(LEFT):
            try:
                circuit, end = _read(key, each)
            except _UNREADABLE:
                _undo(each)
                if circuits.keeper is not None:
                    circuits.keeper.drop(key)
                continue
            _adopt(circuits, circuit, end, left.get((circuit.target, circuit.target_generation)), ended)
    for process in [each for each in left if ended(*each) is not None]:
        del left[process]
        if circuits.keeper is not None:
            circuits.keeper.drop(left_key(*process))


def _read(key: str, kept: Kept) -> tuple[Circuit, socket.socket | None]:
    key_number(key)
    note = PathNote.read(kept.note)
    circuit = Circuit(*note.origin, note.edge, target=note.target[0])
    circuit.key, circuit.ident, circuit.target_generation = key, note.ident, note.target[1]
    circuit.ours, circuit.succeeding = note.taps, note.succeeding
    if note.asleep is not None:
        circuit.asleep, circuit.left, circuit.lost = True, Left(note.asleep, asleep=True), note.asleep
    (descriptor,) = kept.descriptors or (None,)
    return circuit, None if descriptor is None else socket.socket(fileno=descriptor)


def _undo(kept: Kept) -> None:
    """Part the ends of a path of which nothing is known: who has one is told that it is lost."""
    for descriptor in kept.descriptors:
        try:
            end = socket.socket(fileno=descriptor)
        except OSError:  # it is none
            os.close(descriptor)
            continue
        with contextlib.suppress(OSError), end:
            end.shutdown(socket.SHUT_RDWR)


def _adopt(circuits: Circuits, circuit: Circuit, end: socket.socket | None, left: Left | None, ended: Ended) -> None:
    circuits.adopt(circuit, end)
    circuit.left = circuit.left or left
    own = circuit.origin.startswith("*")
    without_origin = None if own else ended(circuit.origin, circuit.origin_generation)
    gone = circuit.has_hung_up()
    if circuit.lost is None and not circuit.edge.star:
        circuit.lost = ended(circuit.target, circuit.target_generation)
        if circuit.lost is not None and gone and circuit.left is not None:
            circuit.lost = circuit.left.text
    if without_origin is not None:
        circuit.over = "lost", without_origin
    origin_asks = without_origin is None and not (own and gone)
    target_asks = circuit.lost is None and not circuit.edge.star
    if not origin_asks and not target_asks:
        circuits.forget(circuit)
    elif gone or circuit.lost is not None or circuit.over is not None:
        circuits.cut(circuit)
        circuits.settle(circuit)
