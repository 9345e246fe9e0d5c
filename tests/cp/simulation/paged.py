"""A system of three machines that do nothing but have storage, which the test sets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from retinue.svm import Machine
from retinue.testing import SimulatedSystem, open_system

MIB: Final = 1 << 20
TOPOLOGY: Final = """\
[system]
name = "PAGED"
storage = "100M"

[machines.HIGH]
program = "high"
priority = 200

[machines.MIDDLE]
program = "middle"
reserve = "10M"

[machines.LOW]
program = "low"
priority = 50
"""
NAMES: Final = ("HIGH", "MIDDLE", "LOW")

# What on_shrink() of each machine was told since the last system was opened.
asked: dict[str, list[int]] = {}


async def program(vm: Machine[None]) -> None:
    """Remembers how much it was asked for, and answers its name."""
    vm.on_shrink(asked.setdefault(vm.name, []).append)

    async def answer(_: object) -> str:
        return vm.name

    await vm.serve(answer)


@asynccontextmanager
async def paged(topology: str = TOPOLOGY, *, room: int = 0) -> AsyncIterator[SimulatedSystem]:
    """``room`` is that of the paging device, in MiB."""
    asked.clear()
    async with open_system(topology, fakes=dict.fromkeys(NAMES, program), record=False) as system:
        system.nucleus.storage.room = room * MIB
        yield system


def resident(system: SimulatedSystem) -> dict[str, int]:
    """In MiB."""
    return {name: round(system[name].pages.resident / MIB) for name in NAMES}


def said(system: SimulatedSystem, text: str) -> list[str]:
    return [record["message"] for record in system.records() if text in record["message"]]
