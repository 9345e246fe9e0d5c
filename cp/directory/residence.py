"""The keys about what a machine keeps in real storage: ``reserve``, ``priority`` and ``idle_page_out``."""

from collections.abc import Sequence
from typing import Final

from attrs import evolve

from retinue.cp.directory.model import (
    DAY,
    PRIORITY_DEFAULT,
    PRIORITY_MAXIMUM,
    SECOND,
    MachineEntry,
    System,
)
from retinue.cp.directory.quantities import as_size, read_number, read_size, read_span
from retinue.cp.directory.table import Mistakes, Table

#: In the order in which the reference page explains them.
RESIDENCE_KEYS: Final = ("reserve", "priority", "idle_page_out")


def read_residence(table: Table, machine: MachineEntry) -> MachineEntry:
    """``machine`` with what its table says about real storage; what is wrong there has its default."""
    reserve = read_size(table, "reserve") or 0
    if reserve > machine.storage:
        most = as_size(machine.storage)
        message = f'reserve is "{table.values["reserve"]}", and the machine never has more than "{most}"'
        table.wrong("reserve", message, "raise storage, or write less")
        reserve = 0
    return evolve(
        machine,
        reserve=reserve,
        priority=read_number(table, "priority", 1, PRIORITY_MAXIMUM) or PRIORITY_DEFAULT,
        idle_page_out=read_idle_page_out(table),
    )


def read_idle_page_out(table: Table) -> float | None:
    """The seconds after which an idle machine is paged out; 0 for never, None when nothing is said."""
    if table.values.get("idle_page_out") == "off":
        return 0.0
    expected = 'a time such as "30s", or "off"'
    return read_span(table, "idle_page_out", SECOND, DAY, expected, fewer='for never: idle_page_out = "off"')


def check_residence(mistakes: Mistakes, system: System, machines: Sequence[MachineEntry]) -> None:
    """What is reserved for all machines together fits in the storage of the system."""
    if system.storage is None:
        return
    reserved = 0
    for machine in machines:
        reserved += machine.reserve * machine.instances
        if machine.reserve and reserved > system.storage:
            path = ("machines", machine.name)
            most = as_size(system.storage)
            message = f'{as_size(reserved)} are reserved up to here, and storage of the system is "{most}"'
            mistakes.add((*path, "reserve"), path, message, "reserve less, or raise [system] storage")
            return
