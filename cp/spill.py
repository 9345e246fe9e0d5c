"""The spill: records that wait on the disk to be stored, because the journal has no room for so many of one machine.

Each file has one block of a machine's chunks, as they lay in the journal; its name says the first and the last number
and how many records they are. A file is written under another name first and gets its own when it is whole, and is
removed when all in it is stored: what there is after a kill -9 is what the names in the folder say. ::

    spill/RUN/MACHINE/FIRST-LAST-RECORDS

Nothing is synchronised with the disk: what waits belongs to a run of the system, which ends with the host.
"""

import contextlib
import heapq
import os
import pathlib
import shutil
import urllib.parse
from collections import deque
from collections.abc import Iterator
from typing import Final

import attrs

from retinue.cp.tape import HEAD, Packed, size_of

# What is being written.
_NEW: Final = ".new"


@attrs.frozen
class SpillFile:
    """One file: the first and the last number in it, how many records they are, and its bytes."""

    first: int
    last: int
    records: int
    size: int

    @property
    def name(self) -> str:
        """Its name in the folder of its machine; names sort by number."""
        return f"{self.first:020}-{self.last:020}-{self.records}"


class Spill:
    """What one run of a system has on the disk. ``folder`` is for all runs; it is made when something is put there."""

    def __init__(self, folder: pathlib.Path, run: str) -> None:
        self._all = folder
        self._folder = folder / run
        self._files: dict[str, deque[SpillFile]] = {}
        self._sizes: dict[str, int] = {}
        self._kept: dict[str, tuple[SpillFile, list[Packed]]] = {}  # the file that was read last
        self.broken: list[tuple[str, SpillFile, int]] = []
        """Files that could not be read, with what was lost with them: whoever finds some here counts that."""
        self._find()

    def _find(self) -> None:
        for machine, files in _listed(self._folder):
            self._files[machine] = deque(files)
            self._sizes[machine] = sum(file.size for file in files)

    def _path(self, machine: str, file: SpillFile) -> pathlib.Path:
        return self._folder / _folder_name(machine) / file.name

    # -- writing ---------------------------------------------------------------------------------------------------

    def put(self, machine: str, first: int, last: int, records: int, data: bytes) -> None:
        """Write one more file of a machine. OSError: it is as if nothing had been written."""
        file = SpillFile(first, last, records, len(data))
        path = self._path(machine, file)
        new = path.with_name(_NEW)
        try:
            try:
                stream = new.open("wb", buffering=0)
            except FileNotFoundError:
                path.parent.mkdir(0o700, parents=True, exist_ok=True)
                stream = new.open("wb", buffering=0)
            with stream:
                view = memoryview(data)
                while view:
                    view = view[stream.write(view) :]
            new.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
        files = self._files.setdefault(machine, deque())
        files.append(file)
        if len(files) > 1 and files[-2].first > first:  # an older block was kept back, for it was just being stored
            self._files[machine] = deque(sorted(files, key=lambda each: each.first))
        self._sizes[machine] = self._sizes.get(machine, 0) + file.size

    def remove(self, machine: str, file: SpillFile) -> None:
        """What is in it is stored, or counted as lost, or still in the journal."""
        if file not in self._files.get(machine, ()):
            return
        with contextlib.suppress(OSError):
            self._path(machine, file).unlink()
        self._kept.pop(machine, None)
        self._files[machine].remove(file)
        self._sizes[machine] -= file.size
        if not self._files[machine]:
            del self._files[machine], self._sizes[machine]

    def stored(self, last: int) -> None:
        """Everything up to this number is stored."""
        for machine, files in [*self._files.items()]:
            while files and files[0].last <= last:
                self.remove(machine, files[0])

    def close(self) -> None:
        """Remove the folder of a run that has nothing on the disk."""
        if not self._files:
            shutil.rmtree(self._folder, ignore_errors=True)

    # -- reading ---------------------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return bool(self._files)

    @property
    def machines(self) -> list[str]:
        """Those that have something here."""
        return [*self._files]

    def files(self, machine: str) -> list[SpillFile]:
        """A machine's, the oldest first."""
        return [*self._files.get(machine, ())]

    def size(self, machine: str) -> int:
        """Bytes of a machine's files."""
        return self._sizes.get(machine, 0)

    def packed(self, after: int) -> Iterator[Packed]:
        """Chunks of all machines with higher numbers in them, the oldest first. A file is read when it is its turn."""
        heap: list[tuple[int, str, Packed | None, Iterator[Packed]]] = []
        for machine, files in self._files.items():
            heap.append((files[0].first, machine, None, self._chunks(machine, after)))
        heapq.heapify(heap)
        while heap:
            _, machine, chunk, rest = heapq.heappop(heap)
            if chunk is not None:
                yield chunk
            following = next(rest, None)
            if following is not None:
                heapq.heappush(heap, (following.first, machine, following, rest))

    def _chunks(self, machine: str, after: int) -> Iterator[Packed]:
        for file in self.files(machine):
            for chunk in self._read(machine, file, after) if file.last > after else ():
                if chunk.last > after:
                    yield chunk

    def waiting(self, machine: str, file: SpillFile, after: int) -> int:
        """How many records with higher numbers are in a file."""
        if file.first > after or file.last <= after:
            return file.records if file.first > after else 0
        chunks = self._read(machine, file, after)
        return sum(min(chunk.records, chunk.last - after) for chunk in chunks if chunk.last > after)

    def _read(self, machine: str, file: SpillFile, after: int) -> list[Packed]:
        of, chunks = self._kept.get(machine, (None, []))
        if of is file:
            return chunks
        try:
            data = self._path(machine, file).read_bytes()
            if len(data) != file.size:
                raise OSError("it has another length")
            chunks = chunks_of(machine, data)
            if not chunks or sum(chunk.records for chunk in chunks) != file.records or chunks[-1].last != file.last:
                raise OSError("what is in it is not what its name says")
        except OSError:
            if not any(each is file for _, each, _ in self.broken):
                lost = file.records if file.first > after else min(file.records, file.last - after)
                self.broken.append((machine, file, lost))
            return []
        self._kept[machine] = file, chunks
        return chunks

    # -- earlier runs ----------------------------------------------------------------------------------------------

    def earlier(self) -> list["Spill"]:
        """What runs before this one have left: nobody could store it before they ended."""
        with contextlib.suppress(OSError):
            names = sorted(each.name for each in self._all.iterdir())
            return [Spill(self._all, name) for name in names if name != self._folder.name]
        return []

    @property
    def run(self) -> str:
        """The run whose records they are."""
        return self._folder.name


def chunks_of(machine: str, data: bytes) -> list[Packed]:
    """The chunks of a block of the journal. OSError when it is none."""
    chunks = []
    place = 0
    while place < len(data):
        if place + HEAD.size > len(data):
            raise OSError("it ends within a chunk")
        length, records, first, generation = HEAD.unpack_from(data, place)
        start = place + HEAD.size
        if start + length > len(data) or not records:
            raise OSError("it ends within a chunk")
        chunks.append(Packed(machine, generation, first, records, data[start : start + length]))
        place += size_of(length)
    return chunks


def _folder_name(machine: str) -> str:
    return urllib.parse.quote(machine, safe="").replace(".", "%2E")


def _listed(folder: pathlib.Path) -> Iterator[tuple[str, list[SpillFile]]]:
    """The files in the folder of a run, by machine; what was not finished is removed."""
    try:
        machines = sorted(os.listdir(folder))
    except OSError:
        return
    for name in machines:
        files = []
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(folder / name), key=lambda entry: entry.name):
                numbers = entry.name.split("-")
                if len(numbers) == 3 and all(each.isdecimal() for each in numbers):
                    files.append(_file(numbers, entry.stat().st_size))
                else:
                    os.unlink(entry)
        if files:
            yield urllib.parse.unquote(name), files


def _file(numbers: list[str], size: int) -> SpillFile:
    first, last, records = map(int, numbers)
    return SpillFile(first, last, records, size)
