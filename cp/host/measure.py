"""What machines use, looked at from outside (proc(5)): for what no control group counts."""

import contextlib
import os
import stat
import time
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from retinue.cp.host.kernel_files import sizes

__all__ = ["Clock", "Size", "activity", "folder_size", "processes", "rollup", "storage", "written"]

DEEPEST: Final = 256
"""Levels of folders that are looked into. Each takes a descriptor while one is in it."""

MOST_FILES: Final = 500_000
"""Files of one disk that are counted at one look: some two seconds of work."""

MOST_PROCESSES: Final = 4096

_STAT: Final = 1024  # bytes that hold the line of /proc/PID/stat, whatever the process is called
_BLOCK: Final = 512  # what st_blocks counts (inode(7))


class Clock:
    """Tells whether a process has used any processor time since it was last asked. OSError when it is gone."""

    def __init__(self, pid: int) -> None:
        # Kept open: to open it again would cost more than to read it, and might find another process of that number.
        self._stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        self._pid = pid
        self._last: list[bytes] = []

    def moved(self) -> bool:
        """Whether it has run at all; its children count, by ticks (10 ms, mostly), when it has waited for them."""
        used = [*_times(os.pread(self._stat, _STAT, 0)), _nanoseconds(self._pid)]
        moved, self._last = used != self._last, used
        return moved

    def close(self) -> None:
        """It is not asked any more."""
        os.close(self._stat)


def activity(pids: Iterable[int]) -> list[bytes]:
    """Something that differs from what it was before if any of the processes has run, or others have come or gone."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            found.append(b" ".join([b"%d" % pid, *_times(file.read()), _nanoseconds(pid)]))
    return found


def _nanoseconds(pid: int) -> bytes:
    """What all threads of a process have used, by its processor-time clock (clock_getcpuclockid(3)). OSError."""
    return b"%d" % time.clock_gettime_ns((~pid << 3) | 2)


def _times(line: bytes) -> list[bytes]:
    """utime, stime, cutime and cstime of a line of /proc/PID/stat."""
    return line.rpartition(b")")[2].split(maxsplit=15)[11:15]


def processes(pid: int) -> list[int]:
    """A process and everybody below it."""
    found = [pid]
    for one in found:
        if len(found) >= MOST_PROCESSES:
            break
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{thread}/children") as children:
                    found += map(int, children.read().split())
    return found


def storage(pids: Iterable[int], apart: Collection[tuple[int, int]] = ()) -> int:
    """Bytes of storage that processes have to themselves, shared ones in proportion.

    Private memory, shared anonymous memory, changed pages of files that are mapped, all that was swapped out, and the
    whole of every memfd they hold, mapped or not. Of the pages that all machines have from the saved system they count
    their part. A process that is gone, or not ours to look at, counts nothing. Nor do the files ``apart`` (device and
    inode), which are written back when room is needed.
    """
    plain = shared = mapped = 0
    memfds: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            sums = rollup(pid)
            anonymous, shmem = sums.get(b"Pss_Anon", 0), sums.get(b"Pss_Shmem", 0)
            plain += anonymous + sums.get(b"SwapPss", 0) + max(0, sums.get(b"Pss_Dirty", 0) - anonymous - shmem)
            if apart:
                plain -= _changed(pid, apart)
            shared += shmem
            found = _memfds(pid)
            if found:
                memfds |= found
                mapped += sum(min(size, found[key]) for key, size in _mappings(pid).items() if key in found)
    # What is mapped of a memfd is in both figures. More than that cannot be told apart without a look at every page.
    return plain + sum(memfds.values()) + max(0, shared - mapped)


def written(pids: Iterable[int]) -> int:
    """Bytes that processes have written to files, also in mapped memory; not what they have reserved."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/io") as io:
            for line in io:
                if line.startswith("write_bytes:"):
                    total += int(line.split()[1])
    return total


def rollup(pid: int) -> dict[bytes, int]:
    """The sums over all mappings of a process, in bytes; nothing for one that is just ending. OSError."""
    return sizes(f"/proc/{pid}/smaps_rollup")


def _changed(pid: int, files: Collection[tuple[int, int]]) -> int:
    """Bytes of changed pages that a process has of these files."""
    total, wanted = 0, False
    with open(f"/proc/{pid}/smaps", errors="surrogateescape") as smaps:
        for line in smaps:
            first, *rest = line.split(maxsplit=5)
            if not first.endswith(":"):
                major, minor = (int(each, 16) for each in rest[2].split(":"))
                wanted = (os.makedev(major, minor), int(rest[3])) in files
            elif wanted and first == "Pss_Dirty:":
                total += int(rest[0]) * 1024
    return total


def _memfds(pid: int) -> dict[tuple[int, int], int]:
    """The memfds a process holds: device and inode, and the bytes each has."""
    found = {}
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        with contextlib.suppress(OSError):
            if os.readlink(f"{folder}/{number}").startswith("/memfd:"):
                about = os.stat(f"{folder}/{number}")
                found[about.st_dev, about.st_ino] = about.st_blocks * _BLOCK
    return found


def _mappings(pid: int) -> dict[tuple[int, int], int]:
    """How much of each memfd a process has mapped, in bytes of addresses."""
    found: dict[tuple[int, int], int] = {}
    with open(f"/proc/{pid}/maps", errors="surrogateescape") as maps:
        for line in maps:
            if "/memfd:" in line:
                addresses, _, _, device, inode, _ = line.split(maxsplit=5)
                first, last = (int(each, 16) for each in addresses.split("-"))
                major, minor = (int(each, 16) for each in device.split(":"))
                key = os.makedev(major, minor), int(inode)
                found[key] = found.get(key, 0) + last - first
    return found


LEAST: Final = 4096
"""Bytes that a file or folder counts for at least: an empty one has no block, and takes an inode all the same."""


class Size(NamedTuple):
    """Of a folder."""

    size: int
    """Bytes that its files and folders take up."""
    whole: bool
    """False: there is more, too deep or too many to be counted, or closed to us."""


def folder_size(folder: str, pids: Iterable[int] = ()) -> Size:
    """What everything in a folder takes up; also what was removed while one of the processes ``pids`` has it open.

    Somebody may change it meanwhile, and may want us to look elsewhere: no link is followed, and no other file system
    entered. OSError: the folder itself cannot be read.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    top = os.open(folder, flags)
    about = os.fstat(top)
    size, whole, files = about.st_blocks * _BLOCK, True, 0
    several: set[int] = set()
    device = about.st_dev
    # For each level its descriptor, and the folders in it that were not entered yet.
    levels: list[tuple[int, list[str]]] = [(top, [])]
    try:
        fresh = True
        while levels:
            here, waiting = levels[-1]
            if fresh:
                with contextlib.suppress(OSError), os.scandir(here) as entries:
                    for entry in entries:
                        files += 1
                        with contextlib.suppress(OSError):
                            about = entry.stat(follow_symlinks=False)
                            if about.st_nlink > 1 and not stat.S_ISDIR(about.st_mode):
                                if about.st_ino in several:
                                    continue
                                several.add(about.st_ino)
                            size += max(about.st_blocks * _BLOCK, LEAST)
                            if stat.S_ISDIR(about.st_mode) and about.st_dev == device:
                                waiting.append(entry.name)
            fresh = False
            if files >= MOST_FILES or not waiting:
                whole = whole and not waiting
                levels.pop()
                os.close(here)
                continue
            name = waiting.pop()
            if len(levels) >= DEEPEST:
                whole = False
                continue
            try:
                levels.append((os.open(name, flags, dir_fd=here), []))
                fresh = True
            except PermissionError:
                whole = False
            except OSError:
                pass  # it has been removed meanwhile, or replaced by something else
    finally:
        for descriptor, _ in levels:
            os.close(descriptor)
    return Size(size + _removed(folder, device, pids), whole)


def _removed(folder: str, device: int, pids: Iterable[int]) -> int:
    """Bytes of files that have no name any more and are still open."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                link = f"/proc/{pid}/fd/{number}"
                with contextlib.suppress(OSError):
                    if os.readlink(link).startswith(folder + os.sep):
                        about = os.stat(link)
                        if about.st_nlink == 0 and about.st_dev == device:
                            found[about.st_ino] = about.st_blocks * _BLOCK
    return sum(found.values())


def resident(pid: int | None) -> int | None:
    """Bytes of real storage a process keeps, shared pages in proportion (proc(5), smaps_rollup); None if it is gone."""
    if not pid:
        return None
    with contextlib.suppress(OSError):
        if pss := rollup(pid).get(b"Pss"):
            return pss
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
