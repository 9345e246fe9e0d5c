"""Everything that a system has of the host: processes, descriptors by kind, files outside of disks."""

import contextlib
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterable

import attrs

from retinue.cp.campaign.world import World

# What stands in for what differs from one process to the next.
_NUMBERS = re.compile(r"[0-9]+")


@attrs.frozen
class Census:
    """``unseen`` are processes whose descriptors may not be looked at (an ordinary user's that are not dumpable)."""

    processes: Counter[str]
    descriptors: Counter[str]
    memfds: int
    files: int
    unseen: int

    def more_than(self, before: "Census") -> dict[str, int]:
        """What there is more of now, and how much; empty if there is nothing."""
        found = {f"processes: {name}": count for name, count in (self.processes - before.processes).items()}
        found |= {f"descriptors: {name}": count for name, count in (self.descriptors - before.descriptors).items()}
        if self.memfds > before.memfds:
            found["memfds"] = self.memfds - before.memfds
        if self.files > before.files:
            found["files"] = self.files - before.files
        return found


def take(world: World, folders: Iterable[pathlib.Path]) -> Census:
    """Count now. ``folders`` are the system's own, whose subfolder ``disks`` belongs to the machines."""
    processes: Counter[str] = Counter()
    descriptors: Counter[str] = Counter()
    memfds = unseen = 0
    for pid, name in _family(world.nucleus).items():
        processes[name] += 1
        try:
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    kind = _NUMBERS.sub("N", os.readlink(entry.path))
                    memfds += kind.startswith("/memfd:")
                    descriptors[f"{name} {kind.partition(':')[0]}"] += 1
        except PermissionError:
            unseen += 1
        except OSError:
            pass  # it has just ended
    files = sum(len(names) for folder in folders for names in _files(folder))
    return Census(processes, descriptors, memfds, files, unseen)


def _files(folder: pathlib.Path) -> Iterable[list[str]]:
    for place, below, names in os.walk(folder):
        if place == str(folder):
            below[:] = [name for name in below if name not in ("disks", "deaths")]
        yield names


def _family(root: int) -> dict[int, str]:
    """A process and all that it has begotten: process id and name. Machines are called after their names."""
    found: dict[int, str] = {}
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError, ValueError):
            found[pid] = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
            for task in os.listdir(f"/proc/{pid}/task"):
                waiting += map(int, pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found
