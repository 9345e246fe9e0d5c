"""Segments: large writable memory of machines that lies in files, and goes out of real storage when it must.

A machine asks for one by name and gets the descriptor of a file of its own, which it maps. The kernel reads pages of it
when they are touched; the control program has them written and put out, without root and without swap: the machine
takes them out of its tables (or is made to, from outside, where that is allowed), they are written, and then dropped.

A file has all its room when it is granted (posix_fallocate(3)): a full disk is told at once, and not by SIGBUS in the
middle of a program. One that is not kept has no name any more when its machine gets it, so it is gone with the last
process that has it, whatever happens. The nucleus holds the descriptors for the next control program.
"""

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import attrs
import trio

from retinue.cp.directory import MachineEntry, System
from retinue.cp.directory.names import is_local_name
from retinue.cp.directory.quantities import as_size
from retinue.cp.host import file_pages
from retinue.cp.keeping import Keeper, Kept
from retinue.cp.recency import Recency, chunk_of, runs
from retinue.pipes import AccessDenied, PathError, Rejected

__all__ = ["Holder", "Segments", "place"]

#: Of one machine: each is two descriptors in the control program and one in the nucleus.
MOST: Final = 16
#: Seconds that a machine may take to unmap what it is told.
PATIENCE: Final = 1.0
#: Times that pages are dropped: the kernel leaves those that it has in its hands just then.
TRIES: Final = 3
#: Ranges in one message to a machine.
RANGES: Final = 1024

_KEY: Final = "segment/"
_MIB: Final = 1 << 20


def place(system: System, state: pathlib.Path) -> pathlib.Path:
    """Where a system's segments are: in its state folder, or beside a paging volume that lies elsewhere."""
    if system.paging is None or not os.path.isabs(system.paging.volume):
        return state / "paging"
    return pathlib.Path(system.paging.volume).parent / "paging" / system.name


# Has a machine stand still for the length of a block.
Still = Callable[[], contextlib.AbstractContextManager[None]]


class Holder(Protocol):
    """A process of a machine."""

    @property
    def name(self) -> str: ...

    @property
    def generation(self) -> int: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def entry(self) -> MachineEntry: ...

    async def ask(self, verb: str, arguments: dict[str, Any] | None = None) -> Any:
        """PathError when it does not hear."""


@attrs.define
class _Segment:
    """One that a process has; ``size`` in bytes."""

    name: str
    size: int
    keep: bool
    descriptor: int
    device: int
    inode: int
    recency: Recency

    @classmethod
    def of(cls, name: str, keep: bool, descriptor: int) -> "_Segment":
        about = os.fstat(descriptor)
        recency = Recency(chunk_of(about.st_size) // file_pages.PAGE)
        return cls(name, about.st_size, keep, descriptor, about.st_dev, about.st_ino, recency)

    @property
    def chunk(self) -> int:
        return chunk_of(self.size)


@attrs.define
class _Looked:
    """What a look at one segment has found."""

    segment: _Segment
    pid: int
    mappings: list[file_pages.Mapping]
    touched: list[tuple[int, int]]
    """Ranges that are in the tables of the machine, or may be."""
    counts: list[int]
    victims: list[int] = attrs.field(factory=list)

    @property
    def left(self) -> bool:
        """Victims are still in real storage."""
        return any(self.counts[chunk] for chunk in self.victims)


class Segments:
    """Of one running system: the files are below ``folder``, each the user's whom ``user`` tells (-1: ours)."""

    def __init__(self, folder: pathlib.Path, keeper: Keeper, user: Callable[[str], int]) -> None:
        self._folder = folder
        self._keeper = keeper
        self._user = user
        self._holders: dict[tuple[str, int], Holder] = {}
        self._segments: dict[tuple[str, int], dict[str, _Segment]] = {}
        self._granting = trio.Lock()
        self._evicting: dict[str, trio.Lock] = {}

    # -- granting ------------------------------------------------------------------------------------------------------

    async def grant(self, holder: Holder, name: str, size: int, *, keep: bool) -> int:
        """A descriptor of the segment for its process, the caller's to close. To ask again gives the same one.

        AccessDenied over the machine's ``segments``; Rejected ``bad-name``, ``bad-size``, ``wrong-size`` for one that
        is there with another size, ``disk-full``, ``no-volume`` where files are real storage, ``failed``.
        """
        if not is_local_name(name):
            raise Rejected("bad-name", f"{name[:64]!r} is no name of a segment: a lower-case letter, then a-z, 0-9, _")
        if size <= 0:
            raise Rejected("bad-size", f"a segment of {size} bytes")
        key = holder.name, holder.generation
        async with self._granting:
            theirs = self._segments.get(key, {})
            if (found := theirs.get(name)) is not None:
                if (found.size, found.keep) != (size, keep):
                    kept = "kept" if found.keep else "not kept"
                    raise Rejected("wrong-size", f"the segment {name} is there, of {found.size} bytes and {kept}")
                return os.dup(found.descriptor)
            self._check_room(holder.entry, holder.name, theirs, name, size)
            descriptor = await trio.to_thread.run_sync(self._make, holder.name, name, size, keep)
            try:
                self._keeper.keep(f"{_KEY}{key[0]}/{key[1]}/{name}", {"keep": keep}, (descriptor,))
                granted = os.dup(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            self._holders[key] = holder
            self._segments.setdefault(key, {})[name] = _Segment.of(name, keep, descriptor)
            return granted

    def _check_room(
        self, entry: MachineEntry, machine: str, theirs: Mapping[str, _Segment], name: str, size: int
    ) -> None:
        """Kept ones that an earlier process has left count, too."""
        sizes = self._kept(machine) | {each.name: each.size for each in theirs.values()}
        sizes[name] = max(size, sizes.get(name, 0))
        if len(sizes) > MOST:
            raise AccessDenied(f"{machine} has {MOST} segments, and no machine may have more")
        wanted, most = sum(sizes.values()), entry.most_segments
        if wanted > most:
            needed = as_size(-(-wanted // _MIB) * _MIB)
            raise AccessDenied(
                f"with {name} the segments of {machine} would have {wanted} bytes, and it may have {most}; "
                f'to allow it, put  segments = "{needed}"  under [machines.{entry.declared}]'
            )

    def _kept(self, machine: str) -> dict[str, int]:
        with contextlib.suppress(OSError), os.scandir(self._folder / machine) as files:
            return {file.name: file.stat(follow_symlinks=False).st_size for file in files}
        return {}

    def _make(self, machine: str, name: str, size: int, keep: bool) -> int:
        """In a thread: to reserve the room may take a while."""
        folder = self._folder / machine
        path = folder / (name if keep else f".{name}")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not keep:
                path.unlink(missing_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags if keep else flags | os.O_EXCL, 0o600)
        except OSError as exc:
            raise Rejected("failed", f"the segment {name} cannot be made: {exc.strerror}") from exc
        had = 0
        try:
            if not keep:
                path.unlink()
            had = os.fstat(descriptor).st_size
            if had not in (0, size):
                cure = f"remove {path} to begin with an empty one"
                raise Rejected("wrong-size", f"the segment {name} was kept with {had} bytes; {cure}")
            if file_pages.in_memory(descriptor):
                cure = "choose a place on a disk for the state, with --state DIR"
                raise Rejected("no-volume", f"{self._folder} lies in real storage itself (tmpfs); {cure}")
            if (user := self._user(machine)) >= 0:
                os.fchown(descriptor, user, user)
            os.posix_fallocate(descriptor, 0, size)
            return descriptor
        except BaseException as exc:
            os.close(descriptor)
            if keep and not had:
                path.unlink(missing_ok=True)
            if not isinstance(exc, OSError):
                raise
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                text = f"no room for a segment of {size} bytes in {self._folder}: {exc.strerror}"
                raise Rejected("disk-full", text) from exc
            raise Rejected("failed", f"the segment {name} cannot be made: {exc.strerror}") from exc

    async def release(self, machine: str, generation: int) -> None:
        """The process has ended: what it did not keep is gone, all of it, and its room is free."""
        self._holders.pop((machine, generation), None)
        theirs = self._segments.pop((machine, generation), {})
        for segment in theirs.values():
            self._keeper.drop(f"{_KEY}{machine}/{generation}/{segment.name}")
        if theirs:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_close, list(theirs.values()))

    def adopt(self, kept: Mapping[str, Kept], holders: Iterable[Holder]) -> None:
        """Take over what an earlier control program had granted; ``holders`` are the processes that live."""
        alive = {(holder.name, holder.generation): holder for holder in holders}
        for key, what in kept.items():
            if not key.startswith(_KEY):
                continue
            machine, generation, name = key.removeprefix(_KEY).split("/")
            process = machine, int(generation)
            if (holder := alive.get(process)) is None or not what.descriptors:
                self._keeper.drop(key)
                for descriptor in what.descriptors:
                    os.close(descriptor)
                continue
            (descriptor,) = what.descriptors
            self._holders[process] = holder
            self._segments.setdefault(process, {})[name] = _Segment.of(name, what.note["keep"], descriptor)

    # -- looking on ----------------------------------------------------------------------------------------------------

    def resident(self) -> dict[str, int]:
        """Bytes of segments in real storage, of every machine that has any. May be called in a worker thread.

        A machine that has made its file longer, which its descriptor lets it, loses what it was not granted.
        """
        found: dict[str, int] = {}
        seen: set[tuple[int, int]] = set()
        for (machine, _), theirs in list(self._segments.items()):
            for segment in list(theirs.values()):
                # A kept one may be that of two generations.
                if (segment.device, segment.inode) not in seen:
                    seen.add((segment.device, segment.inode))
                    with contextlib.suppress(OSError):  # it has just been released
                        if os.fstat(segment.descriptor).st_size > segment.size:
                            os.ftruncate(segment.descriptor, segment.size)
                        found[machine] = found.get(machine, 0) + file_pages.cached(segment.descriptor, segment.size)
        return found

    def granted(self) -> dict[str, int]:
        """Bytes that the segments of each machine have together, in real storage or not."""
        sizes = {
            (machine, segment.device, segment.inode): segment.size
            for (machine, _), theirs in self._segments.items()
            for segment in theirs.values()
        }
        found: dict[str, int] = {}
        for (machine, _, _), size in sizes.items():
            found[machine] = found.get(machine, 0) + size
        return found

    def files(self, machine: str) -> set[tuple[int, int]]:
        """Device and inode of each segment of a machine."""
        return {
            (segment.device, segment.inode)
            for (name, _), theirs in list(self._segments.items())
            if name == machine
            for segment in list(theirs.values())
        }

    # -- evicting ------------------------------------------------------------------------------------------------------

    async def evict(self, machine: str, most: int | None = None, still: Still = contextlib.nullcontext) -> int:
        """Put pages of a machine's segments out of real storage, those first that are missed least; at most so many
        bytes, or all. Returns how many it were, which is fewer when the machine holds on to them.

        Nothing is lost by it: they are read again when they are touched. While pages are put out that the machine has
        given up, it stands ``still``: else it would have them back before they are out.
        """
        async with self._evicting.setdefault(machine, trio.Lock()):
            holders = {key: holder for key, holder in self._holders.items() if key[0] == machine}
            theirs = {key: list(self._segments[key].values()) for key in holders}
            look = trio.to_thread.run_sync
            looked = await look(_look, [(holders[key].pid or 0, each) for key in theirs for each in theirs[key]])
            whole = _choose(looked, most)
            owners = [(holder, theirs[key]) for key, holder in holders.items()]
            asked = any(each.touched for each in looked) and await self._unmap(looked, owners, whole=whole)
            with still():
                gone = await look(_put_out, looked)
            if whole and not asked and any(each.touched and each.left for each in looked):
                # Pages that the kernel had in its hands are still in the tables of the machine.
                for holder, segments in owners:
                    await self._ask_to_unmap(holder, looked, segments)
                gone += await look(_put_out, looked)
            return gone

    async def _unmap(self, looked: list[_Looked], owners: list[tuple[Holder, list[_Segment]]], *, whole: bool) -> bool:
        """Have victims leave the tables of the machine. Returns whether it was asked.

        From outside when everything goes, which wakes nobody. Else by the machine, if it answers: also what stays is
        unmapped, so that the next round knows who came back. From outside that would put out what stays, too.
        """
        if whole and await trio.to_thread.run_sync(_unmap_outside, looked, True):
            return False
        answered = [await self._ask_to_unmap(holder, looked, theirs) for holder, theirs in owners]
        if not whole and not all(answered):
            await trio.to_thread.run_sync(_unmap_outside, looked, False)
        return True

    async def _ask_to_unmap(self, holder: Holder, looked: list[_Looked], theirs: list[_Segment]) -> bool:
        wanted = [
            [each.segment.name, offset, length]
            for each in looked
            if any(each.segment is segment for segment in theirs)
            for offset, length in each.touched
        ]
        with trio.move_on_after(PATIENCE), contextlib.suppress(PathError):
            for at in range(0, len(wanted), RANGES):
                await holder.ask("evict", {"segments": wanted[at : at + RANGES]})
            return True
        return False


def _close(segments: list[_Segment]) -> None:
    for segment in segments:
        if not segment.keep:
            with contextlib.suppress(OSError):
                # Here, and not where the last descriptor is closed: that is the nucleus, which has no time.
                os.ftruncate(segment.descriptor, 0)
        os.close(segment.descriptor)


def _look(wanted: list[tuple[int, _Segment]]) -> list[_Looked]:
    """In a thread."""
    found = []
    for pid, segment in wanted:
        mappings = file_pages.mapped(pid, segment.device, segment.inode) if pid else []
        touched = file_pages.present(pid, mappings, segment.size) if mappings else None
        counts = segment.recency.look(file_pages.residency(segment.descriptor, segment.size), touched)
        each = _Looked(segment, pid, mappings, [(0, segment.size)], counts)
        if touched is not None:
            per = segment.chunk // file_pages.PAGE
            chunks = [at for at in range(len(counts)) if touched.find(1, at * per, at * per + per) >= 0]
            each.touched = _ranges(segment, chunks)
        found.append(each)
    return found


def _choose(looked: list[_Looked], most: int | None) -> bool:
    """Victims, over all segments of the machine. Returns whether they are all that is in real storage."""
    left = float("inf") if most is None else most
    candidates = sorted(
        (*old, at) for at, each in enumerate(looked) for old in each.segment.recency.oldest(each.counts)
    )
    for _, _, chunk, at in candidates:
        if left <= 0:
            return False
        looked[at].victims.append(chunk)
        left -= looked[at].counts[chunk] * file_pages.PAGE
    return True


def _unmap_outside(looked: list[_Looked], whole: bool) -> bool:
    """In a thread, and without the machine. False when it has to be asked."""
    return all(
        each.mappings
        and file_pages.unmap(each.pid, each.mappings, each.touched if whole else _ranges(each.segment, each.victims))
        for each in looked
        if each.touched
    )


def _ranges(segment: _Segment, chunks: Sequence[int]) -> list[tuple[int, int]]:
    return list(runs(chunks, segment.chunk, segment.size))


def _put_out(looked: list[_Looked]) -> int:
    """In a thread: write and drop the victims. Returns how many bytes are out of real storage."""
    gone = 0
    for each in looked:
        segment, left = each.segment, {chunk: each.counts[chunk] for chunk in each.victims if each.counts[chunk]}
        for _ in range(TRIES):
            if not left:
                break
            ranges = _ranges(segment, list(left))
            with contextlib.suppress(OSError):  # the disk does not take them: they stay
                file_pages.write_back(segment.descriptor, ranges)
                file_pages.drop(segment.descriptor, ranges)
            resident = file_pages.residency(segment.descriptor, segment.size)
            per = segment.chunk // file_pages.PAGE
            now = {chunk: resident.count(1, chunk * per, (chunk + 1) * per) for chunk in left}
            gone += sum(max(0, left[chunk] - now[chunk]) for chunk in left)
            for chunk, count in now.items():
                each.counts[chunk] = count
            left = {chunk: count for chunk, count in now.items() if count}
    return gone * file_pages.PAGE
