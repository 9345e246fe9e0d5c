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
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import trio

from retinue.cp.directory import MachineEntry, System
from retinue.cp.directory.names import is_local_name
from retinue.cp.directory.quantities import as_size
from retinue.cp.eviction import DUE, Looked, Segment, cached, drop_cold, look, put_out, unmap_outside, write_ahead
from retinue.cp.host import file_pages
from retinue.cp.keeping import Keeper, Kept
from retinue.pipes import AccessDenied, PathError, Rejected

__all__ = ["Holder", "Segments", "place"]

#: Of one machine: each is two descriptors in the control program and one in the nucleus.
MOST: Final = 16
#: Seconds that a machine may take to unmap what it is told.
PATIENCE: Final = 1.0
#: The part of the stock that is taken from it at once: a machine of which more must go had better stand still.
SMALL: Final = 0.4
#: The part of what is asked for with which one goes on: the rest is asked for again soon, and a machine is left alone.
ENOUGH: Final = 0.5
#: Threads that have something written ahead: a full queue of the disk may keep them, and others have work as well.
WRITERS: Final = 4

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


class Segments:
    """Of one running system: the files are below ``folder``, each the user's whom ``user`` tells (-1: ours)."""

    def __init__(self, folder: pathlib.Path, keeper: Keeper, user: Callable[[str], int]) -> None:
        self._folder = folder
        self._keeper = keeper
        self._user = user
        self._holders: dict[tuple[str, int], Holder] = {}
        self._segments: dict[tuple[str, int], dict[str, Segment]] = {}
        self._granting = trio.Lock()
        self._turns: dict[str, trio.Lock] = {}
        self._laying: set[str] = set()
        self._writers = trio.CapacityLimiter(WRITERS)

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
            self._segments.setdefault(key, {})[name] = Segment.of(name, keep, descriptor)
            return granted

    def _check_room(
        self, entry: MachineEntry, machine: str, theirs: Mapping[str, Segment], name: str, size: int
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
                await trio.to_thread.run_sync(_empty, list(theirs.values()))
                async with self._turn(machine):  # somebody may be putting them out, and shall find them open
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
            self._segments.setdefault(process, {})[name] = Segment.of(name, what.note["keep"], descriptor)

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
                        _shorten(segment)
                        found[machine] = found.get(machine, 0) + cached(segment)
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

        Nothing is lost by it: they are read again when they are touched. Out of the stock (:meth:`lay_in`) they go at
        once. Where that does not last the machine is asked for more and stands ``still`` while that is put out: else it
        would have it back before it is out.
        """
        theirs, gone = self._of(machine), 0
        if most is not None and 0 < most <= sum(each.recency.left for each in theirs) * SMALL:
            gone = await trio.to_thread.run_sync(drop_cold, theirs, most)
            if gone >= most * ENOUGH:
                return gone
        async with self._turn(machine):
            looked, most = await self._look(machine, None if most is None else most - gone)
            asked = most is not None or not await trio.to_thread.run_sync(unmap_outside, looked, None)
            if asked:
                await self._ask_all(machine, looked, most)
            with still():
                gone += await trio.to_thread.run_sync(put_out, looked, most)
            if not asked and any(each.touched for each in looked):
                # Pages that the kernel had in its hands are still in the tables of the machine.
                looked, _ = await self._look(machine, None)
                if any(each.left for each in looked):
                    await self._ask_all(machine, looked, None)
                    gone += await trio.to_thread.run_sync(put_out, looked, None)
            return gone

    async def lay_in(self, machine: str) -> None:
        """Have the coldest pages of a machine's segments ready to be dropped, if many of those that were are gone."""
        theirs, turn = self._of(machine), self._turn(machine)
        busy = turn.locked() or machine in self._laying
        if not theirs or busy or max(segment.used for segment in theirs) < DUE:
            return
        self._laying.add(machine)
        try:
            async with turn:
                with contextlib.suppress(OSError):  # it has just been released, or the host is short of something
                    looked, _ = await self._look(machine, 0)
                    await self._ask_all(machine, looked, 0)
            await trio.to_thread.run_sync(write_ahead, self._of(machine), limiter=self._writers)
        finally:
            self._laying.discard(machine)

    def _of(self, machine: str) -> list[Segment]:
        return [each for (name, _), theirs in self._segments.items() if name == machine for each in theirs.values()]

    def _turn(self, machine: str) -> trio.Lock:
        return self._turns.setdefault(machine, trio.Lock())

    def _theirs(self, machine: str) -> list[tuple[Holder, list[Segment]]]:
        return [(holder, [*self._segments[key].values()]) for key, holder in self._holders.items() if key[0] == machine]

    async def _look(self, machine: str, most: int | None) -> tuple[list[Looked], int | None]:
        """A round. Returns what was found, and how much of it is to go; None if it is all of it."""
        wanted = [(holder.pid or 0, each) for holder, theirs in self._theirs(machine) for each in theirs]
        looked = await trio.to_thread.run_sync(look, wanted)
        return looked, None if most is None or most >= sum(each.resident for each in looked) else most

    async def _ask_all(self, machine: str, looked: list[Looked], most: int | None) -> None:
        """Have everything leave the tables of the machine: by the machine, if it answers. So the next round knows who
        came back, which it would not if only that was unmapped which is to go. From outside what stays cannot be
        unmapped without being put out.
        """
        theirs = self._theirs(machine)
        answered = [await self._ask_to_unmap(holder, looked, segments) for holder, segments in theirs]
        if most and not all(answered):
            await trio.to_thread.run_sync(unmap_outside, looked, most)

    async def _ask_to_unmap(self, holder: Holder, looked: list[Looked], theirs: list[Segment]) -> bool:
        wanted = [
            [each.segment.name, 0, each.segment.size]
            for each in looked
            if each.touched and any(each.segment is segment for segment in theirs)
        ]
        if not wanted:
            return True
        with trio.move_on_after(PATIENCE), contextlib.suppress(PathError):
            await holder.ask("evict", {"segments": wanted})
            return True
        return False


def _shorten(segment: Segment) -> None:
    """To the size that was granted. OSError."""
    with segment.opened() as descriptor:
        if os.fstat(descriptor).st_size > segment.size:
            os.ftruncate(descriptor, segment.size)


def _empty(segments: list[Segment]) -> None:
    """Those that are not kept."""
    for segment in segments:
        if not segment.keep:
            with contextlib.suppress(OSError), segment.opened() as descriptor:
                # Here, and not where the last descriptor is closed: that is the nucleus, which has no time.
                os.ftruncate(descriptor, 0)


def _close(segments: list[Segment]) -> None:
    for segment in segments:
        segment.close()
