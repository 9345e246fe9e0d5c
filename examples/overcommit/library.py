"""The same table in a segment, which needs no swap to be paged out, and outlives the machine while it rests."""

import attrs
from hoard import ROW, row

from retinue.pipes import Message
from retinue.svm import Machine


@attrs.frozen
class Config:
    """How many MiB the table has."""

    mib: int = 24


async def main(vm: Machine[Config]) -> None:
    rows = vm.config.mib * 1024 * 1024 // ROW
    table = await vm.segment("table", rows * ROW, keep=True)
    if table[-ROW:] != row(rows - 1):  # it is new: what was kept has its last row
        for number in range(rows):
            table[number * ROW : (number + 1) * ROW] = row(number)

    async def look(message: Message) -> bool:
        number = message.body % rows
        return table[number * ROW : (number + 1) * ROW] == row(number)

    await vm.serve(look)
