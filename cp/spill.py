"""The spill: records that wait on the disk to be stored, because the journal has no room for so many of one machine.

Each file has one block of a machine's chunks, as they lay in the journal; its name says the first and the last number
and how many records they are. A file is written under another name first and gets its own when it is whole, and is
removed when all in it is stored: what there is after a kill -9 is what the names in the folder say. ::

    spill/RUN/MACHINE/FIRST-LAST-RECORDS

Nothing is synchronised with the disk: what waits belongs to a run of the system, which ends with the host.

One descriptor is kept for it (:mod:`retinue.cp.leeway`): records go to the disk also when no other is left.

What is gone or spoilt is lost. What cannot be read for another reason (no descriptor is left, somebody may not read it)
is read another time, and nothing that comes after it is handed over before that; but if the reason is none that passes
by itself, no longer than half a minute. Then the file is *set aside*, into a folder beside that of its run, from where
its records are stored, with the numbers that they have, as soon as somebody has let it be read::

    spill/RUN.aside/MACHINE/FIRST-LAST-RECORDS
    spill/RUN.aside/MACHINE.STORED/FIRST-LAST-RECORDS    (what is in it up to that number had been stored)

It takes the room that its machine has on the disk. A file that cannot be removed comes again in the next run: the
machine that keeps records knows each by its run and its number.
"""

import contextlib
import errno
import heapq
import itertools
import os
import pathlib
import urllib.parse
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import attrs
import msgpack

from retinue.cp.checking import is_body
from retinue.cp.leeway import EXHAUSTED, Leeway
from retinue.cp.losses import tells, told_in
from retinue.cp.tape import ENDLESS, HEAD, Packed, size_of

# What is being written.
_NEW: Final = ".new"
# There is no such file any more.
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
# Reasons why a file cannot be read that have nothing to do with it: they pass.
_PASSING: Final = (*EXHAUSTED, errno.ENOMEM)
# How often a file is read in vain, until it is given up (the disk says EIO) or set aside (it says something else): half
# a minute of attempts, some minutes for one of an earlier run.
TRIES: Final = 30
# What the name of a folder ends in that has what was set aside. That of a run does not.
_ASIDE: Final = ".aside"

Tries = dict[tuple[str, str, int], tuple[int | None, int]]
"""By run, machine and first number: why a file could not be read, and how often for that reason."""


@attrs.frozen
class SpillFile:
    """One file: the first and the last number in it, how many records they are, and its bytes.

    ``stored``: what is in it up to this number had been stored before it was set aside. ``told``: how many lost records
    are told by what is in it, if it was set aside by who had written it; its name does not say that.
    """

    first: int
    last: int
    records: int
    size: int
    stored: int = 0
    told: int = attrs.field(default=0, eq=False)

    @property
    def name(self) -> str:
        """Its name in the folder of its machine; names sort by number."""
        return f"{self.first:020}-{self.last:020}-{self.records}"

    def most(self, after: int = 0) -> int:
        """How many records with higher numbers may wait in it; all machines have numbers between first and last."""
        after = max(after, self.stored)
        return self.records if self.first > after else max(0, min(self.records, self.last - after))


@attrs.frozen
class SetAside:
    """What was set aside of one machine: the files, where the oldest of them is now, and why.

    ``records`` is how many are in them that were not stored; at most, if some of the first file had been.
    """

    machine: str
    files: list[SpillFile]
    path: pathlib.Path
    why: OSError

    @property
    def records(self) -> int:
        return sum(file.most() for file in self.files)


class Spill:
    """What one run of a system has on the disk. ``folder`` is for all runs; it is made when something is put there.

    ``tries`` says how often files were read in vain, for whoever looks at earlier runs again and again; they share the
    ``leeway``.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        run: str,
        tries: Tries | None = None,
        leeway: Leeway | None = None,
    ) -> None:
        self._all = folder
        self._folder = folder / run
        self._files: dict[str, deque[SpillFile]] = {}
        self._sizes: dict[str, int] = {}
        self._beside: dict[str, int] = {}  # the bytes of each machine that this run has set aside
        self._kept: dict[str, tuple[SpillFile, list[Packed]]] = {}  # the file that was read last
        self._told: dict[tuple[str, int], int] = {}  # what was told in files that were written here
        self._tries: Tries = {} if tries is None else tries
        self._leeway = leeway or Leeway()
        self.broken: list[tuple[str, SpillFile, int]] = []
        """Files that are spoilt or gone, with what was lost with them: whoever finds some here counts that."""
        self.unread: list[tuple[str, SpillFile, OSError]] = []
        """Files that :meth:`packed` could not read just now, and may another time."""
        self._passed: dict[tuple[str, SpillFile], OSError] = {}  # those that were left out, of what was set aside
        self.unlisted: OSError | None = None
        """Why there may be files that are not known here. They stay where they are, for the next run."""
        self._find()
        if not self.is_aside:
            self._beside = Spill(folder, run + _ASIDE, self._tries, self._leeway)._sizes

    def _find(self) -> None:
        try:
            names = sorted(self._leeway.do(lambda: os.listdir(self._folder)))
        except OSError as exc:
            self.unlisted = None if exc.errno in _GONE else exc
            return
        for name in names:
            try:
                machine, stored = _named(name)
                files = self._leeway.do(partial(_listed, self._folder / name, stored))
            except OSError as exc:
                self.unlisted = self.unlisted if exc.errno in _GONE else exc
                continue
            if files:
                files += self._files.get(machine, ())
                self._files[machine] = deque(sorted(files, key=lambda file: file.first))
                self._sizes[machine] = sum(file.size for file in files)

    def _path(self, machine: str, file: SpillFile) -> pathlib.Path:
        return self._folder / _folder_name(machine, file.stored) / file.name

    # -- writing ---------------------------------------------------------------------------------------------------

    def put(self, machine: str, first: int, last: int, records: int, data: bytes) -> None:
        """Write one more file of a machine. OSError: it is as if nothing had been written."""
        file = SpillFile(first, last, records, len(data))
        chunks = chunks_of(machine, data) if tells(data) else ()
        told = sum(told_in(chunk.blob, chunk.first, 0) for chunk in chunks)
        path = self._path(machine, file)
        new = path.with_name(_NEW)
        try:
            try:
                self._leeway.do(lambda: _write(new, data))
            except FileNotFoundError:
                path.parent.mkdir(0o700, parents=True, exist_ok=True)
                self._leeway.do(lambda: _write(new, data))
            new.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
        self._told[machine, first] = told
        files = self._files.setdefault(machine, deque())
        files.append(file)
        if len(files) > 1 and files[-2].first > first:  # an older block was kept back, for it was just being stored
            self._files[machine] = deque(sorted(files, key=lambda each: each.first))
        self._sizes[machine] = self._sizes.get(machine, 0) + file.size

    def try_remove(self, machine: str, file: SpillFile) -> bool:
        """Remove a file in which something waits. False: the disk does not let go of it, and nothing has changed."""
        try:
            self._path(machine, file).unlink()
        except OSError as exc:
            if exc.errno not in _GONE:
                return False
        self.remove(machine, file)
        return True

    def remove(self, machine: str, file: SpillFile) -> None:
        """What is in it is stored, or counted as lost, or still in the journal."""
        if file not in self._files.get(machine, ()):
            return
        with contextlib.suppress(OSError):
            self._path(machine, file).unlink()
        self._kept.pop(machine, None)
        self._told.pop((machine, file.first), None)
        self._tries.pop((self.run, machine, file.first), None)
        self.unread[:] = [each for each in self.unread if each[:2] != (machine, file)]
        self._files[machine].remove(file)
        self._sizes[machine] -= file.size
        if not self._files[machine]:
            del self._files[machine], self._sizes[machine]

    def stored(self, last: int) -> None:
        """Everything up to this number is stored."""
        for machine, files in [*self._files.items()]:
            for file in [*itertools.takewhile(lambda file: file.last <= last, files)]:
                if (machine, file) not in self._passed:
                    self.remove(machine, file)

    def set_aside(self, after: int) -> list[SetAside]:
        """Put away what could not be read for too long. ``after``: up to this number all is stored.

        From then on it is part of :meth:`earlier`. What the disk does not move stays here, and waits.
        """
        moved: dict[str, SetAside] = {}
        for machine, file, why in [*self.unread]:
            _, tries = self._tries.get((self.run, machine, file.first), (None, 0))
            if self.is_aside or why.errno in _PASSING or tries < TRIES:
                continue
            told = self._told.get((machine, file.first), 0)
            there = attrs.evolve(file, stored=after if file.first <= after else 0, told=told)
            to = self._all / f"{self.run}{_ASIDE}" / _folder_name(machine, there.stored) / there.name
            try:
                to.parent.mkdir(0o700, parents=True, exist_ok=True)
                self._path(machine, file).rename(to)
            except OSError:
                continue
            self.remove(machine, file)
            self._beside[machine] = self._beside.get(machine, 0) + file.size
            moved.setdefault(machine, SetAside(machine, [], to, why)).files.append(there)
        return [*moved.values()]

    @property
    def passed(self) -> list[SetAside]:
        """What was left out by :meth:`packed` of what was set aside."""
        found: dict[str, SetAside] = {}
        for (machine, file), why in sorted(self._passed.items(), key=lambda each: each[0][1].first):
            found.setdefault(machine, SetAside(machine, [], self._path(machine, file), why)).files.append(file)
        return [*found.values()]

    def close(self) -> None:
        """Remove the folder of a run that has nothing on the disk; whatever else there is stays."""
        if self._files:
            return
        with contextlib.suppress(OSError):
            for machine in self._leeway.do(lambda: os.listdir(self._folder)):
                with contextlib.suppress(OSError):
                    os.rmdir(self._folder / machine)
            os.rmdir(self._folder)

    # -- reading ---------------------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return bool(self._files)

    @property
    def machines(self) -> list[str]:
        """Those that have something here."""
        return [*self._files]

    @property
    def beside(self) -> list[str]:
        """Those of which this run has set something aside, as far as that is known."""
        return [*self._beside]

    def files(self, machine: str) -> list[SpillFile]:
        """A machine's, the oldest first."""
        return [*self._files.get(machine, ())]

    def size(self, machine: str) -> int:
        """Bytes of a machine's files, with those that were set aside."""
        return self._sizes.get(machine, 0) + self._beside.get(machine, 0)

    def packed(self, after: int) -> Iterator[Packed]:
        """Chunks of all machines with higher numbers in them, the oldest first. A file is read when it is its turn.

        Those of :attr:`unread` files are left out: see :meth:`before_unread`.
        """
        self.unread.clear()
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

    def before_unread(self, chunks: Sequence[Packed]) -> Sequence[Packed]:
        """Those of them, oldest first, before which nothing is missing that may be read another time."""
        first = self.first_unread
        return [chunk for chunk in chunks if chunk.first < first] if self.unread else chunks

    @property
    def first_unread(self) -> int:
        """The number before which everything could be read. Nothing that was set aside waits for something else."""
        return ENDLESS if self.is_aside else min((file.first for _, file, _ in self.unread), default=ENDLESS)

    @property
    def trouble(self) -> OSError | None:
        """Why something here could not be read, if that is so."""
        return next((why for _, _, why in self.unread), None) or next(iter(self._passed.values()), self.unlisted)

    def left(self, after: int) -> int:
        """How many records with higher numbers are at most in files that :meth:`packed` could not read."""
        return sum(file.most(after) for _, file, _ in self.unread)

    def _chunks(self, machine: str, after: int) -> Iterator[Packed]:
        for file in self.files(machine):
            # Of what was left out the rest is left out too: it is handed over from its first record on, another time.
            if file.last <= after or (file.first <= after and (machine, file) in self._passed):
                continue
            if chunks := self._read(machine, file, after):
                self._passed.pop((machine, file), None)
            for chunk in chunks:
                if chunk.last > max(after, file.stored):
                    yield chunk

    def waiting(self, machine: str, file: SpillFile, after: int) -> int:
        """How many records with higher numbers are in a file; at most, if it cannot be read now."""
        if file.first > after or file.last <= after:
            return file.records if file.first > after else 0
        chunks = self._read(machine, file, after)
        if not chunks:
            return file.most(after)
        return sum(min(chunk.records, chunk.last - after) for chunk in chunks if chunk.last > after)

    def told(self, machine: str, file: SpillFile) -> int:
        """How many lost records are told by what is in a file; of one that was found here as far as it can be read."""
        if (machine, file.first) in self._told:
            return self._told[machine, file.first]
        return sum(told_in(chunk.blob, chunk.first, 0) for chunk in self._read(machine, file, 0))

    def _read(self, machine: str, file: SpillFile, after: int) -> list[Packed]:
        of, chunks = self._kept.get(machine, (None, []))
        if of is file:
            return chunks
        try:
            data = self._leeway.do(self._path(machine, file).read_bytes)
            chunks = whole_chunks(machine, file, data)
        except (OSError, ValueError) as exc:
            self._failed(machine, file, after, exc)
            return []
        self._kept[machine] = file, chunks
        return chunks

    def _failed(self, machine: str, file: SpillFile, after: int, why: OSError | ValueError) -> None:
        if isinstance(why, OSError) and why.errno not in _GONE:
            key = self.run, machine, file.first
            reason, tries = self._tries.get(key, (None, 0))
            tries = tries + 1 if reason == why.errno else 1
            self._tries[key] = why.errno, tries
            if why.errno != errno.EIO or tries < TRIES:
                self.unread.append((machine, file, why))
                if self.is_aside:
                    self._passed[machine, file] = why
                return
        if not any(each is file for _, each, _ in self.broken):
            self.broken.append((machine, file, file.most(after)))

    # -- earlier runs ----------------------------------------------------------------------------------------------

    def earlier(self) -> list["Spill"]:
        """What runs before this one have left, for nobody could store it before they ended, and what was set aside.

        OSError: nobody knows now.
        """
        try:
            names = sorted(self._leeway.do(lambda: os.listdir(self._all)))
        except FileNotFoundError:
            names = []
        found = [Spill(self._all, name, self._tries, self._leeway) for name in names if name != self._folder.name]
        beside = [each for each in found if each.is_aside and each.run == self.run]
        if not any(each.unlisted for each in beside):
            self._beside = beside[0]._sizes if beside else {}
        return found

    @property
    def run(self) -> str:
        """The run whose records they are."""
        return self._folder.name.removesuffix(_ASIDE)

    @property
    def is_aside(self) -> bool:
        """Whether this is what was set aside."""
        return self._folder.name.endswith(_ASIDE)


def chunks_of(machine: str, data: bytes) -> list[Packed]:
    """The chunks of a block of the journal. ValueError when it is none."""
    chunks = []
    place = 0
    while place < len(data):
        if place + HEAD.size > len(data):
            raise ValueError("it ends within a chunk")
        length, records, first, generation = HEAD.unpack_from(data, place)
        start = place + HEAD.size
        if start + length > len(data) or not records:
            raise ValueError("it ends within a chunk")
        chunks.append(Packed(machine, generation, first, records, data[start : start + length]))
        place += size_of(length)
    return chunks


def whole_chunks(machine: str, file: SpillFile, data: bytes) -> list[Packed]:
    """The chunks in what was read of a file. ValueError when they are not what its name says."""
    chunks = chunks_of(machine, data)
    if len(data) != file.size or not _is_whole(file, chunks):
        raise ValueError("what is in it is not what its name says")
    return chunks


def _is_whole(file: SpillFile, chunks: Sequence[Packed]) -> bool:
    """Whether these are the records that its name says, in order, each as the journal has packed it."""
    before, records = file.first - 1, 0
    for chunk in chunks:
        if chunk.first <= before or chunk.generation >= ENDLESS:
            return False
        before = chunk.last
        records += chunk.records
        try:
            bodies = msgpack.unpackb(chunk.blob, strict_map_key=False)
        except Exception:  # whatever it raises: it is nothing that the journal has packed
            return False
        if type(bodies) is not list or len(bodies) != chunk.records or not all(map(is_body, bodies)):
            return False
    return bool(chunks) and (chunks[0].first, before, records) == (file.first, file.last, file.records)


def _write(path: pathlib.Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as stream:
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]


def _folder_name(machine: str, stored: int) -> str:
    return urllib.parse.quote(machine, safe="").replace(".", "%2E") + (f".{stored}" if stored else "")


def _named(folder: str) -> tuple[str, int]:
    """The machine whose folder has this name, and up to which number what is in there had been stored."""
    name, _, stored = folder.partition(".")
    return urllib.parse.unquote(name), int(stored) if stored.isdecimal() else 0


def _listed(folder: pathlib.Path, stored: int) -> list[SpillFile]:
    """The files in the folder of a machine; what was not finished is removed."""
    files = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        numbers = entry.name.split("-")
        if len(numbers) == 3 and all(each.isdecimal() for each in numbers):
            first, last, records = map(int, numbers)
            with contextlib.suppress(FileNotFoundError):  # somebody has just removed this one: the others are there
                files.append(SpillFile(first, last, records, _size(entry), stored))
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry)
    return files


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError as exc:
        if exc.errno not in _GONE:
            raise
    return entry.stat(follow_symlinks=False).st_size  # a link to nothing: who reads it finds that it is lost
