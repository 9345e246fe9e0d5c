"""What a new control program makes of the machines that an earlier one has left."""

import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

from retinue.cp.host.interface import Exit, Kept, Restored
from retinue.cp.incarnation import Incarnation

if TYPE_CHECKING:
    from retinue.cp.system import ControlProgram


def inherit(cp: "ControlProgram", restored: Restored, exits: Mapping[tuple[str, int], Exit]) -> int:
    """Give every machine the process that was ready; every other process is ended. Returns how many were adopted.

    A process that was still starting, or that a successor was just replacing, is not worth more than a new one: what it
    was asked and has not answered goes to whoever takes its place.
    """
    adopted = 0
    births: dict[str, dict[int, Kept]] = {}
    for key, kept in restored.kept.items():
        kind, _, rest = key.partition("/")
        if kind == "birth":
            machine, _, number = rest.rpartition("/")
            births.setdefault(machine, {})[int(number)] = kept
    for machine, generation in restored.residents:
        births.setdefault(machine, {}).setdefault(generation, Kept({}))
    for machine in births.keys() | cp.lives.keys():
        life = cp.lives.get(machine)
        chosen: Incarnation | None = None
        strays: set[int] = set()
        for generation, kept in sorted(births.get(machine, {}).items(), key=lambda each: -each[0]):
            process = machine, generation
            ready = restored.kept.get(f"ready/{machine}/{generation}")
            there = process in restored.residents or process in exits
            if life is not None and chosen is None and ready is not None and kept.descriptors and there:
                chosen = Incarnation.adopt(life, life.entry, cp, generation, kept, ready.note)
                adopted += 1
                continue
            kept.close()
            if process in restored.residents:
                strays.add(generation)
                cp.host.signal(machine, generation, signal.SIGKILL)
            cp.host.drop(f"birth/{machine}/{generation}")
            cp.host.drop(f"ready/{machine}/{generation}")
        if life is None:
            cp.host.drop(f"life/{machine}")  # it was being removed
        elif (note := restored.kept.get(f"life/{machine}")) is not None:
            life.adopt(note.note, chosen, strays)
    for source in cp.syslog.unread():
        heir = cp.lives.get(source.machine)
        if heir is None or heir.current is None or heir.generation != source.generation:
            cp.syslog.end(source.machine, source.generation)
    return adopted
