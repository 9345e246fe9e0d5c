"""The disks of a machine and its links to the disks of others: its tables ``disks`` and ``links``."""

from collections.abc import Sequence
from typing import Final, cast, get_args

from retinue.cp.directory.model import DISK_MINIMUM, STORAGE_MAXIMUM, Disk, LinkedDisk, MachineEntry, Mode
from retinue.cp.directory.names import check_local_name, check_name, is_local_name, read_word
from retinue.cp.directory.positions import KeyPath
from retinue.cp.directory.quantities import as_size, read_size
from retinue.cp.directory.table import Mistakes, Table, did_you_mean, quoted, shown

DISK_KEYS: Final = ("size", "temporary", "linked_by")
LINK_KEYS: Final = ("disk", "mode")

_DISK_EXPECTED: Final = 'a table, as in disks.data = {} or disks.data = { size = "100M" }'
_LINK_EXPECTED: Final = (
    'another machine\'s disk, as in links.data = "FILES.data" or links.data = { disk = "FILES.data", mode = "rw" }'
)
_NAMED_EXPECTED: Final = 'a machine and its disk such as "FILES.data"'
_RIGHTS: Final[dict[Mode, str]] = {"ro": "read", "rw": "read and write"}


def read_disks(machine: str, table: Table) -> tuple[Disk, ...]:
    """A machine's own disks."""
    disks = table.table("disks", None, "a table of disks, as in disks.data = {}")
    return () if disks is None else tuple(_disk(machine, disks, name) for name in disks.values)


def _disk(machine: str, disks: Table, name: str) -> Disk:
    check_local_name(disks, name, "a disk")
    table = disks.table(name, DISK_KEYS, _DISK_EXPECTED)
    if table is None:
        return Disk(name)
    size = read_size(table, "size")
    if size is not None and size < DISK_MINIMUM:
        least = as_size(DISK_MINIMUM)
        table.wrong("size", f'size is "{as_size(size)}", and a disk has at least {least}', f'write at least "{least}"')
    elif size is not None and size > STORAGE_MAXIMUM:
        table.wrong("size", f'size is "{as_size(size)}", and the most is {as_size(STORAGE_MAXIMUM)}')
    temporary = table.value("temporary", bool, "true or false") or False
    if temporary and not table.given("size"):
        hint = f'write disks.{name} = {{ temporary = true, size = "16M" }}'
        table.wrong("temporary", "a temporary disk has a size, and this one has none", hint)
    if temporary and "linked_by" in table.values:
        message = "a temporary disk is empty at each start, and no other machine can link to it"
        table.wrong("linked_by", message, "remove one of the two")
        return Disk(name, size, temporary)
    return Disk(name, size, temporary, _linked_by(machine, name, table))


def _linked_by(machine: str, disk: str, table: Table) -> tuple[tuple[str, Mode], ...]:
    expected = f'a table of machines, as in disks.{disk} = {{ linked_by = {{ SHOP = "ro" }} }}'
    rights = table.table("linked_by", None, expected)
    if rights is None:
        return ()
    granted: list[tuple[str, Mode]] = []
    for other in rights.values:
        if other == machine:
            rights.wrong(other, f"the disk is {machine}'s own, and needs no link", "remove this")
            continue
        check_name(rights, other, other, "a machine")
        mode = read_word(rights, other, get_args(Mode))
        if mode is not None:
            granted.append((other, cast(Mode, mode)))
    return tuple(granted)


def read_links(machine: str, table: Table) -> tuple[LinkedDisk, ...]:
    """A machine's links, but for those that name no disk, or one of its own."""
    links = table.table("links", None, f"a table of links, each {_LINK_EXPECTED}")
    if links is None:
        return ()
    read = (_link(machine, table, links, name) for name in links.values)
    return tuple(link for link in read if link is not None)


def _link(machine: str, table: Table, links: Table, name: str) -> LinkedDisk | None:
    check_local_name(links, name, "a link")
    disks = table.values.get("disks")
    if isinstance(disks, dict) and name in disks:
        place = links.mistakes.place(*table.path, "disks", name)
        links.wrong(name, f"{quoted(name)} is the name of a disk as well ({place})", "give one of them another name")
    mode: str | None = None
    if isinstance(links.values[name], str):
        target: str | None = links.values[name]
        path: KeyPath = (*links.path, name)
    else:
        each = links.table(name, LINK_KEYS, _LINK_EXPECTED)
        if each is None:
            return None
        path = (*each.path, "disk")
        target = each.value("disk", str, _NAMED_EXPECTED)
        mode = read_word(each, "mode", get_args(Mode))
        if not each.given("disk"):
            each.wrong("disk", "the link leads nowhere", 'write disk = "FILES.data", a machine and its disk')
    if target is None:
        return None
    owner, dot, disk = target.partition(".")
    if not owner or not dot or not is_local_name(disk):
        links.mistakes.add(path, links.path, f"{name}: {shown(target)} is no disk, expected {_NAMED_EXPECTED}")
        return None
    if owner == machine:
        message, hint = f"{name}: the disk is the machine's own, and needs no link", "remove this link"
        links.mistakes.add(path, links.path, message, hint)
        return None
    return LinkedDisk(name, owner, disk, cast(Mode, mode or "ro"))


def check_links(mistakes: Mistakes, machines: Sequence[MachineEntry]) -> None:
    """Every link leads to a disk whose owner says in ``linked_by`` that it may; every ``linked_by`` to a machine."""
    owners = {machine.name: machine for machine in machines}
    for machine in machines:
        for disk in machine.disks:
            for other, _ in disk.linked_by:
                if other not in owners:
                    path: KeyPath = ("machines", machine.name, "disks", disk.name, "linked_by", other)
                    hint = did_you_mean(other, [name for name in owners if name != machine.name])
                    mistakes.add(path, path[:-1], f"there is no machine {quoted(other)}", hint)
        seen: dict[tuple[str, str], LinkedDisk] = {}
        for link in machine.links:
            path = ("machines", machine.name, "links", link.name)
            first = seen.setdefault((link.machine, link.disk), link)
            if first is not link:
                message = f"{link.name}: {first.name} is a link to the same disk"
                mistakes.add(path, path[:-1], message, "remove one of the two")
            elif problem := _problem(mistakes, machine, link, owners):
                mistakes.add((*path, "disk"), path[:-1], f"{link.name}: {problem[0]}", problem[1])


def _problem(
    mistakes: Mistakes, machine: MachineEntry, link: LinkedDisk, owners: dict[str, MachineEntry]
) -> tuple[str, str] | None:
    """What is wrong with a link, and what would cure it."""
    owner = owners.get(link.machine)
    if owner is None:
        names = [name for name in owners if name != machine.name]
        return f"there is no machine {quoted(link.machine)}", did_you_mean(link.machine, names)
    disk = next((disk for disk in owner.disks if disk.name == link.disk), None)
    if disk is None:
        return f"{owner.name} has no disk {quoted(link.disk)}", did_you_mean(
            link.disk, [disk.name for disk in owner.disks if not disk.temporary]
        )
    if disk.temporary:
        return f"the disk {disk.name} of {owner.name} is temporary, and no other machine can link to it", ""
    granted = dict(disk.linked_by).get(machine.name)
    if granted == "rw" or granted == link.mode:
        return None
    place = mistakes.place("machines", owner.name, "disks", disk.name)
    if granted is None:
        message = f"{owner.name} does not let {machine.name} {_RIGHTS[link.mode]} its disk {disk.name} ({place})"
    else:
        message = f"{owner.name} lets {machine.name} only {_RIGHTS[granted]} its disk {disk.name} ({place})"
    allowed = {**dict(disk.linked_by), machine.name: link.mode}
    return message, f"to allow it, write  {_line(disk, allowed)}  under [machines.{owner.name}]"


def _line(disk: Disk, allowed: dict[str, Mode]) -> str:
    """The line that declares a disk with these machines allowed to link to it."""
    size = "" if disk.size is None else f'size = "{as_size(disk.size)}", '
    machines = ", ".join(f'{name} = "{mode}"' for name, mode in allowed.items())
    return f"disks.{disk.name} = {{ {size}linked_by = {{ {machines} }} }}"
