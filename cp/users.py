"""Which user of the host each machine is, where the host can give each one of its own (it then runs as root)."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from retinue.cp.directory import Directory, MachineEntry
from retinue.cp.host.seal.users import FIRST_OWN, LAST_OWN

# The last one is for scratch machines.
SCRATCH: Final = LAST_OWN
COUNT: Final = LAST_OWN - FIRST_OWN


def own_users(topology: Directory) -> dict[str, int]:
    """A user number for each machine: the same at every start, for the disks belong to it.

    Machines that share a disk by a link share the user too, or neither could read what the other has written.
    """
    users: dict[str, int] = {}
    taken: set[int] = set()
    for group in _groups(topology.machines):
        seed = f"{topology.system.name}/{group[0]}".encode()
        number = int.from_bytes(hashlib.sha256(seed).digest()[:8], "big") % COUNT
        while number in taken:
            number = (number + 1) % COUNT
        taken.add(number)
        users |= dict.fromkeys(group, FIRST_OWN + number)
    return users


def given_users(topology: Directory, able: Collection[str], present: Mapping[str, int]) -> dict[str, int]:
    """The users of machines whose saved system is ``able`` to give them one; ``present``: those that they have.

    Who runs keeps its user, to which its disks belong; two that should be the same by now become so at the next start.
    """
    users = own_users(topology)
    systems = {entry.name: "network" if entry.network else "sealed" for entry in topology.machines}
    kept = {name: user for name, user in present.items() if name in users}
    taken = set(kept.values())
    new = {name: user for name, user in users.items() if name not in kept and systems[name] in able}
    return kept | {name: user if user not in taken else unused_user(taken) for name, user in new.items()}


def unused_user(taken: set[int]) -> int:
    """A number that is nobody's; it is added to ``taken``."""
    number = next(number for number in range(FIRST_OWN, FIRST_OWN + COUNT) if number not in taken)
    taken.add(number)
    return number


def _groups(machines: Sequence[MachineEntry]) -> list[list[str]]:
    """Machines that are joined by links, directly or through others; those with the names first in order first."""
    group_of = {machine.name: [machine.name] for machine in machines}
    for machine in machines:
        for link in machine.links:
            mine, theirs = group_of[machine.name], group_of[link.machine]
            if mine is not theirs:
                mine += theirs
                group_of |= dict.fromkeys(theirs, mine)
    return sorted({id(group): sorted(group) for group in group_of.values()}.values())
