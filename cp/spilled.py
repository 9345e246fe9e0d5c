"""What is in the spill of a system, for somebody who only reads: nothing is written there, removed or followed.

:class:`retinue.cp.spill.Spill` is for the control program, which the folder belongs to, and tidies up. Here each folder
is opened from the one above it, as what it has to be: whoever may write there can neither lead a reader elsewhere nor
let it wait.
"""

import os
import pathlib
import re
import stat
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import attrs

from retinue.cp.spill import SpillFile, whole_chunks
from retinue.cp.tape import BLOCK, Packed

FOLDER: Final = "spill"
# What the folder of what was set aside is called, beside that of its run.
_ASIDE: Final = ".aside"
_NAME: Final = re.compile("([0-9]{1,20})-([0-9]{1,20})-([0-9]{1,20})")
# A file has one block. Of a larger one no more is read: it is none.
MOST: Final = 8 * BLOCK
# No number of a record has more bits.
NUMBER_BITS: Final = 44

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@attrs.frozen
class Spilled:
    """One file: whose records are in it, and where it is below the spill."""

    run: str
    machine: str
    file: SpillFile
    where: tuple[str, str, str]
    """The folder of the run, that of the machine, and the name."""
    written: int
    """When, in nanoseconds since the epoch: the host's word, not a machine's."""

    @property
    def is_aside(self) -> bool:
        """Whether it was set aside, because it could not be read."""
        return self.where[0].endswith(_ASIDE)


@attrs.frozen
class Listing:
    """All files, by run, machine and number; and what may have some that nobody knows of, with the reason."""

    files: list[Spilled]
    failed: list[tuple[pathlib.Path, OSError]]


def list_spilled(state: pathlib.Path) -> Listing:
    """What is in the spill below a state folder. What has no name of a file is left alone."""
    found = Listing([], [])
    for run in _folders(state, (FOLDER,), found):
        if not run.isascii() or "." in run.removesuffix(_ASIDE):
            continue
        for machine in filter(str.isascii, _folders(state, (FOLDER, run), found)):
            try:
                found.files.extend(_files(state, run, machine))
            except FileNotFoundError:
                continue
            except OSError as exc:
                found.failed.append((state / FOLDER / run / machine, exc))
    found.files.sort(key=lambda each: (each.run, each.machine, each.file.first, each.file.last))
    return found


def read_spilled(state: pathlib.Path, spilled: Spilled) -> list[Packed]:
    """The chunks of a file. OSError; ValueError when it is not what its name says."""
    run, machine, name = spilled.where
    with _opened(state, FOLDER, run, machine) as folder:
        # Opening is not harmless with every device, so it is looked at before, too.
        _check_regular(os.stat(name, dir_fd=folder, follow_symlinks=False))
        with open(os.open(name, _READ, dir_fd=folder), "rb") as stream:
            _check_regular(os.fstat(stream.fileno()))
            data = stream.read(MOST)
    return whole_chunks(spilled.machine, spilled.file, data)


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")


@contextmanager
def _opened(state: pathlib.Path, *names: str) -> Iterator[int]:
    """The descriptor of a folder some steps below the state folder."""
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            below = os.open(name, _READ | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _folders(state: pathlib.Path, names: tuple[str, ...], listing: Listing) -> list[str]:
    """What may be a folder in there."""
    try:
        with _opened(state, *names) as descriptor, os.scandir(descriptor) as entries:
            return sorted(entry.name for entry in entries if not entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as exc:
        listing.failed.append((state.joinpath(*names), exc))
        return []


def _files(state: pathlib.Path, run: str, machine: str) -> list[Spilled]:
    name, _, stored = machine.partition(".")
    whose = urllib.parse.unquote(name, errors="backslashreplace")
    had = int(stored) if re.fullmatch("[0-9]{1,20}", stored) else 0
    found = []
    with _opened(state, FOLDER, run, machine) as descriptor, os.scandir(descriptor) as entries:
        for entry in entries:
            if (match := _NAME.fullmatch(entry.name)) is None:
                continue
            first, last, records = map(int, match.groups())
            if not (0 < first <= last < 1 << NUMBER_BITS and 0 < records <= last - first + 1):
                continue
            try:
                about = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            file = SpillFile(first, last, records, about.st_size, had)
            found.append(Spilled(run.removesuffix(_ASIDE), whose, file, (run, machine, entry.name), about.st_mtime_ns))
    return found
