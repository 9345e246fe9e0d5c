"""Segments as the control program has them: granted, bounded, put out of real storage, adopted, released.

The machine is played by this process, with real files and real pages.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import pathlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import pytest
import trio

from retinue.cp import eviction, segments
from retinue.cp.directory import MachineEntry, System
from retinue.cp.directory.model import PagingVolume
from retinue.cp.eviction import Segment as Paged
from retinue.cp.host import file_pages
from retinue.cp.host.interface import Kept
from retinue.cp.segments import MOST, Segments, place
from retinue.pipes import AccessDenied, PathSevered, Rejected
from retinue.svm.segment import Segment, map_segment

MIB = 1 << 20
ENTRY = MachineEntry("WORK", "program", "work", storage=32 * MIB, segments=24 * MIB)


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@attrs.define
class Keeper:
    """What the nucleus holds."""

    kept: dict[str, Kept] = attrs.field(factory=dict)

    def keep(self, key: str, note: dict[str, Any], given: Sequence[int] = ()) -> None:
        self.kept[key] = Kept(note, tuple(map(os.dup, given)))

    def drop(self, key: str) -> None:
        if (kept := self.kept.pop(key, None)) is not None:
            kept.close()


@attrs.define
class Played:
    """A machine."""

    name: str = "WORK"
    generation: int = 1
    pid: int | None = attrs.field(factory=os.getpid)
    entry: MachineEntry = ENTRY
    mapped: dict[str, Segment] = attrs.field(factory=dict)
    answers: bool = True
    asked: int = 0

    async def ask(self, verb: str, arguments: dict[str, Any] | None = None) -> Any:
        assert verb == "evict"
        assert arguments is not None
        self.asked += 1
        if not self.answers:
            raise PathSevered("lost")
        for name, offset, length in arguments["segments"]:
            self.mapped[name].unmap(offset, length)

    def close(self) -> None:
        for segment in self.mapped.values():
            segment.close()


@attrs.define
class Stage:
    segments: Segments
    keeper: Keeper
    folder: pathlib.Path
    machine: Played

    async def grant(self, name: str, size: int, *, keep: bool = False) -> Segment:
        descriptor = await self.segments.grant(self.machine, name, size, keep=keep)
        self.machine.mapped[name] = segment = map_segment(descriptor, name, size, keep=keep)
        return segment


@pytest.fixture
async def stage(tmp_path: pathlib.Path) -> Any:
    keeper, machine = Keeper(), Played()
    made = Stage(Segments(tmp_path / "paging", keeper, lambda _: -1), keeper, tmp_path / "paging", machine)
    yield made
    machine.close()
    await made.segments.release("WORK", 1)
    await made.segments.release("WORK", 2)
    for key in list(keeper.kept):
        keeper.drop(key)


def from_outside() -> bool:
    """Whether we may do to ourselves what the control program does to machines: before Linux 6.13 only root may."""
    with contextlib.closing(mmap.mmap(-1, mmap.PAGESIZE)) as page:
        place = ctypes.addressof(ctypes.c_char.from_buffer(page))
        return file_pages.unmap(os.getpid(), [file_pages.Mapping(place, place + len(page), 0)], [(0, len(page))])


ONLY_FROM_OUTSIDE = pytest.mark.skipif(not from_outside(), reason="needs CAP_SYS_NICE, or Linux 6.13")


def fill(segment: Segment) -> None:
    for offset in range(0, len(segment), 4096):
        segment[offset : offset + 8] = offset.to_bytes(8, "big")


def holds(segment: Segment) -> bool:
    return all(segment[at : at + 8] == at.to_bytes(8, "big") for at in range(0, len(segment), 4096))


# -- putting out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "means",
    [
        pytest.param("from outside", marks=ONLY_FROM_OUTSIDE),
        pytest.param("from outside, blind", marks=ONLY_FROM_OUTSIDE),
        "by the machine",
        "by the machine, blind",
    ],
)
async def test_everything_goes_out_of_real_storage_and_comes_back_as_it_was(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, means: str
) -> None:
    """By each of the means, which hosts have or have not."""
    if means.startswith("by"):
        monkeypatch.setattr(file_pages, "unmap", lambda *_: False)
    if means.endswith("blind"):
        monkeypatch.setattr(file_pages, "present", lambda *_: None)
    one, two = await stage.grant("one", 8 * MIB), await stage.grant("two", 4 * MIB)
    fill(one)
    fill(two)
    assert stage.segments.resident() == {"WORK": 12 * MIB}
    assert await stage.segments.evict("WORK") == 12 * MIB
    assert stage.segments.resident() == {"WORK": 0}
    if means.startswith("by"):
        assert stage.machine.asked > 0
    assert holds(one)
    assert holds(two)
    assert stage.segments.resident() == {"WORK": 12 * MIB}


async def test_so_much_goes_as_is_asked_for_and_first_what_nobody_came_back_to(stage: Stage) -> None:
    segment = await stage.grant("data", 16 * MIB)
    fill(segment)
    segment.flush()
    assert await stage.segments.evict("WORK", 0) == 0  # a round, after which nothing is in the tables
    assert stage.segments.resident() == {"WORK": 16 * MIB}
    for offset in range(0, 8 * MIB, 4096):
        assert segment[offset + 7] == (offset & 0xFF)
    assert await stage.segments.evict("WORK", 8 * MIB) == 8 * MIB
    with os.fdopen(await stage.segments.grant(stage.machine, "data", 16 * MIB, keep=False)) as file:
        vector = file_pages.residency(file.fileno(), 16 * MIB)
    assert vector == b"\1" * 2048 + b"\0" * 2048
    assert holds(segment)


async def test_a_machine_that_does_not_answer_keeps_what_it_has_mapped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_pages, "unmap", lambda *_: False)
    segment = await stage.grant("data", MIB)
    fill(segment)
    stage.machine.answers = False
    assert await stage.segments.evict("WORK") == 0
    stage.machine.answers = True
    assert await stage.segments.evict("WORK") == MIB
    assert await stage.segments.evict("WORK") == 0


@ONLY_FROM_OUTSIDE
async def test_of_a_machine_that_does_not_answer_only_victims_are_taken_from_outside(stage: Stage) -> None:
    segment = await stage.grant("data", 4 * MIB)
    fill(segment)
    segment.flush()
    stage.machine.answers = False
    gone = await stage.segments.evict("WORK", MIB)
    assert 0 < gone <= MIB  # but for pages that the kernel has in its hands
    assert stage.segments.resident() == {"WORK": 4 * MIB - gone}
    assert stage.machine.asked == 1


async def test_a_machine_that_has_touched_nothing_is_not_woken(stage: Stage) -> None:
    fill(await stage.grant("data", 2 * MIB))
    assert await stage.segments.evict("WORK", MIB) == MIB
    assert stage.machine.asked == 1
    assert await stage.segments.evict("WORK", MIB // 2) == MIB // 2
    assert await stage.segments.evict("WORK", MIB) == MIB // 2
    assert stage.machine.asked == 1


async def test_what_was_laid_in_goes_at_once_and_nobody_is_asked_or_stands_still(stage: Stage) -> None:
    """What was touched after that stays: the kernel drops nothing that is in anybody's tables."""
    still = 0

    @contextlib.contextmanager
    def stands() -> Iterator[None]:
        nonlocal still
        still += 1
        yield

    segment = await stage.grant("data", 8 * MIB)
    fill(segment)
    await stage.segments.lay_in("WORK")
    assert stage.machine.asked == 1
    segment.flush()
    touched = range(0, 2 * MIB, 64 * 1024)
    for offset in touched:
        assert segment[offset + 7] == (offset & 0xFF)
    gone = await stage.segments.evict("WORK", MIB, stands)
    assert MIB // 2 <= gone <= MIB + 4096
    assert stage.segments.resident() == {"WORK": 8 * MIB - gone}
    assert (stage.machine.asked, still) == (1, 0)
    with os.fdopen(await stage.segments.grant(stage.machine, "data", 8 * MIB, keep=False)) as file:
        vector = file_pages.residency(file.fileno(), 8 * MIB)
    assert all(vector[offset // 4096] for offset in touched)
    assert holds(segment)


async def test_more_is_laid_in_when_some_of_it_is_gone_and_not_before(stage: Stage) -> None:
    segment = await stage.grant("data", 8 * MIB)
    fill(segment)
    await stage.segments.lay_in("WORK")
    assert holds(segment)
    await stage.segments.lay_in("WORK")
    assert stage.machine.asked == 1
    await stage.segments.evict("WORK", 7 * MIB)
    assert holds(segment)
    await stage.segments.evict("WORK", MIB)
    asked = stage.machine.asked
    assert holds(segment)
    await stage.segments.lay_in("WORK")
    assert stage.machine.asked == asked + 1
    await stage.segments.lay_in("NOBODY")


async def test_a_segment_that_its_machine_has_cut_short_does_no_harm(stage: Stage) -> None:
    segment = await stage.grant("data", 2 * MIB)
    fill(segment)
    descriptor = await stage.segments.grant(stage.machine, "data", 2 * MIB, keep=False)
    os.ftruncate(descriptor, 4096)
    os.close(descriptor)
    assert await stage.segments.evict("WORK") <= 4096
    assert stage.segments.resident() == {"WORK": 0}


def test_a_file_that_has_got_the_number_of_a_closed_segment_is_left_alone(tmp_path: pathlib.Path) -> None:
    """Who still looks at the segment in a thread finds it closed; who has begun goes on with the file that it was."""
    segment = Paged.of("data", False, os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT))
    number = segment.descriptor
    with open(tmp_path / "other", "w+b") as other, segment.opened() as begun:
        os.truncate(other.fileno(), MIB)
        segment.close()
        os.dup2(other.fileno(), number)
        try:
            assert os.fstat(begun).st_ino == segment.inode
            with pytest.raises(OSError, match="closed"):
                segments._shorten(segment)
            eviction.write_ahead([segment])
            segment.close()
            assert os.fstat(number).st_size == MIB
        finally:
            os.close(number)


async def test_what_is_not_kept_is_gone_before_anybody_is_waited_for(stage: Stage) -> None:
    """A machine that has ended may be asked for its pages just then; it is closed after that."""
    await stage.grant("data", MIB)
    descriptor = await stage.segments.grant(stage.machine, "data", MIB, keep=False)
    async with trio.open_nursery() as nursery, stage.segments._turn("WORK"):
        nursery.start_soon(stage.segments.release, "WORK", 1)
        with trio.fail_after(10):
            while os.fstat(descriptor).st_size:
                await trio.lowlevel.checkpoint()
        assert len(nursery.child_tasks) == 1
    os.close(descriptor)


async def test_a_machine_whose_changes_are_being_written_is_not_asked_for_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes nothing keeps one thread for each machine, and no more."""
    begun, go_on, entered = threading.Event(), threading.Event(), 0
    begin_writing = file_pages.begin_writing

    def slow(descriptor: int, ranges: Any) -> None:
        nonlocal entered
        entered += 1
        begun.set()
        go_on.wait()
        begin_writing(descriptor, ranges)

    monkeypatch.setattr(file_pages, "begin_writing", slow)
    fill(await stage.grant("data", MIB))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.segments.lay_in, "WORK")
        try:
            await trio.to_thread.run_sync(begun.wait)
            stage.segments._of("WORK")[0].stock = 0  # it is due again
            with trio.fail_after(10):
                await stage.segments.lay_in("WORK")
        finally:
            go_on.set()
    assert (stage.machine.asked, entered) == (1, 1)


@pytest.mark.parametrize("told", ["by cachestat", "by nobody", "of large ranges"])
def test_what_is_changed_is_begun_to_be_written_and_what_is_clean_goes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """And other threads go on meanwhile: no call that may wait for the disk is a quick one."""
    if told == "by nobody":
        monkeypatch.setattr(file_pages, "_count", lambda *_: None)
    if told == "of large ranges":
        monkeypatch.setattr(file_pages, "_LARGE", 1)
    pages, dropped = 400, file_pages._quick.posix_fadvise
    quick: set[int] = set()

    def counted(descriptor: int, offset: int, length: int, advice: int) -> Any:
        quick.add(offset // file_pages.PAGE)
        return dropped(descriptor, offset, length, advice)

    monkeypatch.setattr(file_pages._quick, "posix_fadvise", counted)
    with open(tmp_path / "data", "w+b", buffering=0) as file:
        for _ in range(pages):  # one by one: several at once may be bound together
            file.write(bytes(file_pages.PAGE))
        file_pages.write_back(file.fileno(), [(0, pages * file_pages.PAGE)])
        for page in range(0, pages, 4):
            os.pwrite(file.fileno(), b"x", page * file_pages.PAGE)
        wanted = [(page * file_pages.PAGE, file_pages.PAGE) for page in range(0, pages, 2)]
        file_pages.drop(file.fileno(), wanted)
        counts = file_pages._count(file.fileno(), [(0, pages * file_pages.PAGE)])
        if counts is not None:
            assert counts[0].dirty == 0
            assert quick == (set() if told == "of large ranges" else set(range(2, pages, 4)))
        file_pages.write_back(file.fileno(), [(0, pages * file_pages.PAGE)])
        file_pages.drop(file.fileno(), wanted)
        assert not any(file_pages.cached(file.fileno(), wanted))
        assert os.pread(file.fileno(), 1, 4 * file_pages.PAGE) == b"x"


async def test_a_machine_that_has_made_its_segment_longer_loses_what_it_added(stage: Stage) -> None:
    segment = await stage.grant("data", MIB)
    fill(segment)
    descriptor = await stage.segments.grant(stage.machine, "data", MIB, keep=False)
    os.truncate(descriptor, 8 * MIB)
    assert stage.segments.resident() == {"WORK": MIB}
    assert os.fstat(descriptor).st_size == MIB
    os.close(descriptor)
    assert holds(segment)


async def test_nothing_is_lost_while_the_machine_writes(stage: Stage) -> None:
    """A thread writes, all is put out over and over; at the end everything is there."""
    segment = await stage.grant("data", 4 * MIB)
    number, enough = 0, threading.Event()

    def write() -> None:
        nonlocal number
        while not enough.is_set():
            number += 1
            for offset in range(0, len(segment), 4096):
                segment[offset : offset + 4] = number.to_bytes(4, "big")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, write)
        for _ in range(10):
            await stage.segments.evict("WORK")
        enough.set()
    assert number > 1
    assert all(segment[at : at + 4] == number.to_bytes(4, "big") for at in range(0, len(segment), 4096))


async def test_who_has_no_segments_has_nothing_to_put_out(stage: Stage) -> None:
    assert stage.segments.resident() == stage.segments.granted() == {}
    assert await stage.segments.evict("NOBODY", 5) == 0
    assert stage.segments.files("NOBODY") == set()


# -- granting ----------------------------------------------------------------------------------------------------------


async def test_room_is_reserved_and_free_again_when_the_machine_has_ended(stage: Stage) -> None:
    segment = await stage.grant("data", 8 * MIB)
    descriptor = await stage.segments.grant(stage.machine, "data", 8 * MIB, keep=False)
    about = os.fstat(descriptor)
    assert (about.st_nlink, about.st_mode & 0o777, about.st_size) == (0, 0o600, 8 * MIB)
    assert about.st_blocks * 512 >= 8 * MIB
    assert stage.segments.granted() == {"WORK": 8 * MIB}
    assert stage.segments.files("WORK") == {(about.st_dev, about.st_ino)}
    assert bytes(segment[:64]) == bytes(64)
    segment.close()
    await stage.segments.release("WORK", 1)
    assert os.fstat(descriptor).st_blocks == 0
    os.close(descriptor)
    assert stage.segments.granted() == {}
    assert stage.keeper.kept == {}


async def test_kept_segment_is_there_again_and_has_one_size(stage: Stage) -> None:
    fill(await stage.grant("data", MIB, keep=True))
    path = stage.folder / "WORK" / "data"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    await stage.segments.release("WORK", 1)
    stage.machine.close()
    stage.machine.generation = 2
    assert holds(await stage.grant("data", MIB, keep=True))
    await stage.segments.release("WORK", 2)
    with pytest.raises(Rejected, match=re.escape(f"remove {path} to begin")) as refused:
        await stage.segments.grant(stage.machine, "data", 2 * MIB, keep=True)
    assert refused.value.code == "wrong-size"
    assert path.stat().st_size == MIB


@pytest.mark.parametrize(
    ("name", "size", "code"),
    [("Data", 1, "bad-name"), ("../x", 1, "bad-name"), ("x", 0, "bad-size"), ("x", -1, "bad-size")],
)
async def test_what_cannot_be_a_segment_is_refused(stage: Stage, name: str, size: int, code: str) -> None:
    with pytest.raises(Rejected) as refused:
        await stage.segments.grant(stage.machine, name, size, keep=False)
    assert refused.value.code == code
    assert not stage.folder.exists()


async def test_the_same_name_is_the_same_segment_and_no_other(stage: Stage) -> None:
    first, again = await stage.grant("data", MIB), await stage.grant("data", MIB)
    first[5] = 7
    assert again[5] == 7
    first.close()
    for size, keep in ((2 * MIB, False), (MIB, True)):
        with pytest.raises(Rejected, match=f"of {MIB} bytes and not kept") as refused:
            await stage.segments.grant(stage.machine, "data", size, keep=keep)
        assert refused.value.code == "wrong-size"


async def test_over_the_bound_the_line_is_told_that_would_allow_it(stage: Stage) -> None:
    await stage.grant("one", 16 * MIB)
    with pytest.raises(AccessDenied, match=r'put  segments = "26M"  under \[machines.WORK\]'):
        await stage.segments.grant(stage.machine, "two", 9 * MIB + 1, keep=False)
    await stage.grant("two", 8 * MIB)


async def test_what_an_earlier_process_has_kept_counts(stage: Stage) -> None:
    await stage.grant("one", 16 * MIB, keep=True)
    stage.machine.close()
    await stage.segments.release("WORK", 1)
    with pytest.raises(AccessDenied):
        await stage.segments.grant(stage.machine, "two", 16 * MIB, keep=False)
    await stage.grant("one", 16 * MIB, keep=True)


async def test_no_machine_has_more_than_some(stage: Stage) -> None:
    for number in range(MOST):
        os.close(await stage.segments.grant(stage.machine, f"s{number}", 4096, keep=False))
    with pytest.raises(AccessDenied, match=f"{MOST} segments"):
        await stage.segments.grant(stage.machine, "one_more", 4096, keep=False)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk-full"), (errno.EDQUOT, "disk-full"), (errno.EIO, "failed")]
)
async def test_room_that_the_disk_has_not_is_told_at_once_and_leaves_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    """A disk that is really full would be that of everybody here."""

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Rejected, match=os.strerror(number)) as refused:
        await stage.segments.grant(stage.machine, "data", MIB, keep=True)
    assert refused.value.code == code
    assert list((stage.folder / "WORK").iterdir()) == []
    assert stage.keeper.kept == {}


async def test_real_storage_is_no_place_for_segments(stage: Stage) -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no tmpfs to try")
    place = pathlib.Path("/dev/shm") / f"retinue-test-{os.getpid()}"
    try:
        with pytest.raises(Rejected, match="--state DIR") as refused:
            await Segments(place, stage.keeper, lambda _: -1).grant(stage.machine, "data", MIB, keep=True)
        assert refused.value.code == "no-volume"
        assert list((place / "WORK").iterdir()) == []
    finally:
        (place / "WORK").rmdir()
        place.rmdir()


async def test_a_link_in_the_place_of_a_segment_is_not_followed(stage: Stage) -> None:
    (stage.folder / "WORK").mkdir(parents=True)
    (stage.folder / "WORK" / "data").symlink_to(stage.folder.parent / "elsewhere")
    with pytest.raises(Rejected) as refused:
        await stage.segments.grant(stage.machine, "data", MIB, keep=True)
    assert refused.value.code == "failed"
    assert not (stage.folder.parent / "elsewhere").exists()


def test_files_are_below_the_state_folder_or_beside_a_volume_elsewhere() -> None:
    state = pathlib.Path("/state")
    assert (
        place(System("IT"), state)
        == place(System("IT", paging=PagingVolume("page.img", MIB)), state)
        == state / "paging"
    )
    elsewhere = System("IT", paging=PagingVolume("/fast/page.img", MIB))
    assert place(elsewhere, state) == pathlib.Path("/fast/paging/IT")


# -- over the death of a control program -------------------------------------------------------------------------------


async def test_next_control_program_puts_out_what_the_one_before_has_granted(stage: Stage) -> None:
    segment = await stage.grant("data", 2 * MIB)
    fill(segment)
    dead = Played(generation=7)
    os.close(await stage.segments.grant(dead, "data", MIB, keep=False))
    successor = Segments(stage.folder, stage.keeper, lambda _: -1)
    kept = {key: Kept(each.note, tuple(map(os.dup, each.descriptors))) for key, each in stage.keeper.kept.items()}
    successor.adopt(kept | {"life/WORK": Kept({})}, [stage.machine])
    assert successor.granted() == {"WORK": 2 * MIB}
    assert list(stage.keeper.kept) == ["segment/WORK/1/data"]
    assert await successor.evict("WORK") == 2 * MIB
    assert holds(segment)
    again = await successor.grant(stage.machine, "data", 2 * MIB, keep=False)
    assert os.fstat(again).st_ino == os.fstat(stage.keeper.kept["segment/WORK/1/data"].descriptors[0]).st_ino
    os.close(again)
    await stage.segments.release("WORK", 7)
    for process in (stage.machine, dead):
        await successor.release("WORK", process.generation)
