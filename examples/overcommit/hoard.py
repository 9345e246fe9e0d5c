"""Keeps a table of numbers in ordinary memory, and answers what stands in its rows. It knows nothing of paging."""

import attrs

from retinue.pipes import Message
from retinue.svm import Machine

ROW = 4096


@attrs.frozen
class Config:
    """How many MiB the table has."""

    mib: int = 24


def row(number: int) -> bytes:
    """What stands in a row: its number, over and over."""
    return number.to_bytes(8, "big") * (ROW // 8)


async def main(vm: Machine[Config]) -> None:
    rows = vm.config.mib * 1024 * 1024 // ROW
    table = bytearray(rows * ROW)
    for number in range(rows):
        table[number * ROW : (number + 1) * ROW] = row(number)

    async def look(message: Message) -> bool:
        number = message.body % rows
        return table[number * ROW : (number + 1) * ROW] == row(number)

    await vm.serve(look)
