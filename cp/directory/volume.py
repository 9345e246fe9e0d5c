"""The key ``paging`` of ``[system]``: the paging volume."""

from typing import Final

from retinue.cp.directory.model import PAGING_MAXIMUM, PAGING_MINIMUM, VOLUME_DEFAULT, PagingVolume
from retinue.cp.directory.quantities import as_size, read_size
from retinue.cp.directory.table import Table

#: In the order in which the reference page explains them.
PAGING_KEYS: Final = ("volume", "size")

_EXAMPLE: Final = 'paging = { volume = "page.img", size = "1G" }'


def read_paging(system: Table) -> PagingVolume | None:
    """What the table ``[system]`` says about a paging volume; None if there is none, or it is wrong."""
    table = system.table("paging", PAGING_KEYS, f"a table, as in {_EXAMPLE}")
    if table is None:
        return None
    volume = table.value("volume", str, 'a file such as "page.img"')
    if volume is None:
        volume = VOLUME_DEFAULT
    elif not volume or volume.endswith(("/", "/.", "/..")) or volume in (".", "..") or not volume.isprintable():
        table.wrong("volume", f'volume is "{volume}", which is no file', f"write {_EXAMPLE}")
    if not table.given("size"):
        system.wrong("paging", "paging has no size", f"write {_EXAMPLE}")
    size = read_size(table, "size")
    if size is None:
        return None
    if not PAGING_MINIMUM <= size <= PAGING_MAXIMUM:
        least, most = as_size(PAGING_MINIMUM), as_size(PAGING_MAXIMUM)
        table.wrong("size", f'size is "{table.values["size"]}", expected "{least}" to "{most}"')
    return PagingVolume(volume, size)
