"""Segments as a program has them; the control program is played by the test."""

import contextlib
import mmap
import os
import pathlib
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from retinue.pipes import AccessDenied, Message, Path, Rejected, SocketTransport, open_path, socket_pair
from retinue.svm import Machine, Segment
from retinue.svm.segment import map_segment, size_in_bytes

MIB = 1 << 20


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


class Cp:
    """Grants segments in files of its own, or refuses them."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.asked: list[Any] = []
        self.refusal: Rejected | None = None

    async def answer(self, message: Message) -> None:
        self.asked.append(message.body)
        if self.refusal is not None:
            raise self.refusal
        _, about = message.body
        descriptor = os.open(self.folder / about["name"], os.O_RDWR | os.O_CREAT, 0o600)
        os.truncate(descriptor, about["size"])
        try:
            await message.reply(None, descriptors=(descriptor,))
        finally:
            os.close(descriptor)


@pytest.fixture
async def pair(tmp_path: pathlib.Path) -> AsyncIterator[tuple[Machine[Any], Cp]]:
    ours, theirs = socket_pair()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            control: Path
            async with open_path(SocketTransport(ours)) as control, open_path(SocketTransport(theirs)) as other:
                machine: Machine[Any] = Machine(
                    name="SHOP", config=None, edges={}, disks={}, control=control, nursery=nursery
                )
                cp = Cp(tmp_path)
                nursery.start_soon(other.serve, cp.answer)
                yield machine, cp
                nursery.cancel_scope.cancel()


async def test_segment_is_writable_memory_in_the_file_that_was_granted(pair: tuple[Machine[Any], Cp]) -> None:
    machine, cp = pair
    with await machine.segment("cache", "1M", keep=True) as segment:
        assert cp.asked == [["segment", {"name": "cache", "size": MIB, "keep": True}]]
        assert (len(segment), segment.name, segment.keep) == (MIB, "cache", True)
        assert bytes(segment[:5]) == bytes(5)
        with memoryview(segment) as view, view.cast("Q") as numbers:
            numbers[1] = 0x0102030405060708
        segment.flush()
    found = await trio.Path(cp.folder / "cache").read_bytes()
    assert found[:16] == bytes(8) + (0x0102030405060708).to_bytes(8, sys.byteorder)


async def test_same_name_is_the_same_segment_until_it_is_closed(pair: tuple[Machine[Any], Cp]) -> None:
    machine, cp = pair
    first = await machine.segment("cache", MIB)
    assert await machine.segment("cache", "1024K") is first
    assert len(cp.asked) == 1
    first[3] = 9
    first.close()
    with await machine.segment("cache", MIB) as second:
        assert second is not first
        assert second[3] == 9
    assert len(cp.asked) == 2


async def test_asked_for_twice_at_once_it_is_mapped_once(pair: tuple[Machine[Any], Cp]) -> None:
    machine, _ = pair
    found: list[Segment] = []

    async def ask() -> None:
        found.append(await machine.segment("cache", MIB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
    assert found[0] is found[1]
    found[0].close()


async def test_refusals_of_the_control_program_are_the_programs(pair: tuple[Machine[Any], Cp]) -> None:
    machine, cp = pair
    for refusal in (AccessDenied('put  segments = "2M"'), Rejected("disk-full", "no room")):
        cp.refusal = refusal
        with pytest.raises(type(refusal), match=refusal.text):
            await machine.segment("cache", MIB)


async def test_what_is_unmapped_is_not_lost_and_nonsense_is_overlooked(pair: tuple[Machine[Any], Cp]) -> None:
    machine, _ = pair
    segment = await machine.segment("cache", MIB + 100)
    segment[0], segment[MIB + 99] = 1, 2
    for name, offset, length in (
        *(("cache", 0, 4096), ("cache", MIB, 4096), ("cache", 0, 1 << 40), ("other", 0, 4096)),
        *(("cache", 2 * MIB, 4096), ("cache", -4096, 4096), ("cache", 0, 0)),
    ):
        machine.unmap(name, offset, length)
    assert (segment[0], segment[MIB + 99]) == (1, 2)
    segment.prefetch()
    segment.prefetch(5000, 10)
    segment.prefetch(MIB, 1 << 40)
    segment.prefetch(2 * MIB)
    with pytest.raises(TypeError, match="keeps its size"):
        segment.resize(4096)
    segment.close()
    machine.unmap("cache", 0, 4096)
    with contextlib.closing(segment):
        assert segment.closed


@pytest.mark.parametrize("size", [0, -1, True, "", "0M", "64", "64MB", "64 M", "1T"])
async def test_what_is_no_size_is_an_error_of_the_program(pair: tuple[Machine[Any], Cp], size: Any) -> None:
    machine, cp = pair
    with pytest.raises(ValueError, match="no size"):
        await machine.segment("cache", size)
    assert cp.asked == []


def test_sizes_are_read_as_in_a_topology() -> None:
    assert [size_in_bytes(size) for size in (1, "4K", "3M", "2G")] == [1, 4096, 3 * MIB, 2 << 30]


LIMITED = """
import mmap, os, resource, sys
from retinue.svm.segment import map_segment

def granted(size):
    descriptor = os.memfd_create("it")
    os.truncate(descriptor, size)
    return descriptor

used = int(open("/proc/self/statm").read().split()[0]) * mmap.PAGESIZE
soft, hard = used + (8 << 20), used + (72 << 20)
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
segment = map_segment(granted(64 << 20), "one", 64 << 20, keep=False)
assert resource.getrlimit(resource.RLIMIT_AS) == (soft + (64 << 20), hard)
try:
    mmap.mmap(-1, 32 << 20)
except OSError:
    pass
else:
    sys.exit("it may have more of something else")
try:
    map_segment(granted(64 << 20), "two", 64 << 20, keep=False)
except OSError:
    pass
else:
    sys.exit("it may have more segments than its hard limit has room for")
assert resource.getrlimit(resource.RLIMIT_AS) == (soft + (64 << 20), hard)
segment.close()
segment.close()
assert resource.getrlimit(resource.RLIMIT_AS) == (soft, hard)
"""


def test_limit_of_addresses_grows_by_the_segment_and_shrinks_with_it() -> None:
    """So a machine has no more of anything else because it has segments."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_where_there_is_no_limit_none_is_set(tmp_path: pathlib.Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    descriptor = os.open(tmp_path / "it", os.O_RDWR | os.O_CREAT)
    os.truncate(descriptor, mmap.PAGESIZE)
    map_segment(descriptor, "it", mmap.PAGESIZE, keep=False).close()
    assert resource.getrlimit(resource.RLIMIT_AS) == before
