"""Large frames in memfds: what the sender keeps, what the receiver believes, and what neither leaves behind."""

import array
import contextlib
import ctypes
import fcntl
import gc
import itertools
import mmap
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.leaks import assert_none_left, descriptors

from retinue.pipes import LimitExceeded, ProtocolViolation, bulk, wire
from retinue.pipes import reader as reader_module
from retinue.pipes.bulk import PATIENCE, Shelf, Slot, split
from retinue.pipes.reader import Reader
from retinue.pipes.wire import Kind

SIZE = 100_000
MIB = 1024 * 1024
FUTURE_WRITE = 0x10
SHRINK, GROW, WRITE = fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE


def message(size: int = SIZE, *rest: int) -> wire.Frame:
    return [Kind.SEND, 1, os.urandom(size), *rest]


def mappings() -> list[str]:
    """The mappings of memfds in this process: their permissions."""
    with open("/proc/self/maps") as maps:
        return sorted(line.split()[1] for line in maps if "memfd:" in line)


def inode(slot: Slot) -> int:
    return os.fstat(slot.descriptor).st_ino


def pages(descriptor: int) -> int:
    """How many pages of the file exist."""
    return os.fstat(descriptor).st_blocks * 512 // mmap.PAGESIZE


def punch_hole(descriptor: int) -> None:
    """Take the first page out of the file."""
    libc = ctypes.CDLL(None, use_errno=True)
    keep_size_punch_hole = 3
    if libc.fallocate(descriptor, keep_size_punch_hole, ctypes.c_long(0), ctypes.c_long(mmap.PAGESIZE)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture(autouse=True, scope="module")
def nothing_from_before() -> None:
    """What other tests have left in cycles goes now, and not in the middle of one of these."""
    gc.collect()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does, closing its shelves and readers gives everything back."""
    before, mapped = descriptors(), mappings()
    yield
    assert_none_left(before)
    assert mappings() == mapped


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with contextlib.closing(Shelf()) as shelf:
        yield shelf


@pytest.fixture
def reader() -> Iterator[Reader]:
    with contextlib.closing(Reader()) as reader:
        yield reader


@pytest.fixture
def memfd() -> Iterator[Callable[..., int]]:
    """Memfds of a sender that is not this program: content, seals, and how large the file is."""
    with contextlib.ExitStack() as stack:

        def make(content: bytes = b"", seals: int = SHRINK, length: int = 0, flags: int = 0) -> int:
            descriptor = os.memfd_create("foreign", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
            stack.callback(os.close, descriptor)
            os.truncate(descriptor, max(length, len(content)))
            if content:
                os.pwrite(descriptor, content, 0)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            return descriptor

        yield make


def carry(shelf: Shelf, reader: Reader, frame: wire.Frame) -> wire.Frame:
    """Once from one end to the other."""
    slot = shelf.store(split(frame))
    try:
        return reader.fetch(slot.descriptor, slot.size)
    finally:
        slot.release()


# -- there and back ------------------------------------------------------------------------------------------------

NUMBERS = st.integers(-(1 << 63) + 1, (1 << 63) - 1).filter(bool)
BLOBS = st.builds(
    lambda size, fill, kind: kind(bytes([fill]) * size),
    st.integers(0, 64) | st.integers(65_530, 65_545) | st.integers(60_000, 400_000),
    st.integers(0, 255),
    st.sampled_from([bytes, bytearray, memoryview]),
)
BODIES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | BLOBS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def plain(value: Any) -> Any:
    """What arrives when the value is sent."""
    match value:
        case bytearray() | memoryview():
            return bytes(value)
        case list():
            return [plain(each) for each in value]
        case dict():
            return {key: plain(each) for key, each in value.items()}
        case _:
            return value


@settings(deadline=None, max_examples=60)
@given(
    bodies=st.lists(st.tuples(st.integers(1, 1 << 62), BODIES, st.lists(st.integers(1, 16), max_size=1)), max_size=6)
)
def test_every_frame_arrives_as_it_was_sent(bodies: list[tuple[int, Any, list[int]]]) -> None:
    """In parts or whole, in new and in used slots, read and mapped; and it is what the codec would have said."""
    with contextlib.closing(Shelf()) as shelf, contextlib.closing(Reader()) as reader:
        for number, body, rest in bodies:
            frame = [Kind.SEND, number, body, *rest]
            assert b"".join(split(frame)) == wire.encode(frame)
            for _ in range(4):
                assert carry(shelf, reader, frame) == plain(frame)


@pytest.mark.parametrize("kind", [Kind.SEND, Kind.CALL, Kind.REPLY])
def test_large_binary_body_is_not_copied(kind: Kind) -> None:
    """It is one of the parts, the caller's own."""
    body = bytearray(SIZE)
    parts = split([kind, 7, body, 2])
    body[5] = 99
    assert b"".join(parts) == wire.encode([kind, 7, body, 2])
    assert sum(len(part) for part in parts if not isinstance(part, memoryview)) < 20


def test_items_of_any_size_are_sent_as_their_bytes(shelf: Shelf, reader: Reader) -> None:
    """As msgpack takes them."""
    body = memoryview(array.array("d", [1.5] * SIZE))
    assert carry(shelf, reader, [Kind.SEND, 1, body])[2] == body.tobytes()
    square = body.cast("B").cast("d", (SIZE // 100, 100))
    assert carry(shelf, reader, [Kind.SEND, 1, square])[2] == body.tobytes()
    for _ in range(3):
        parts: list[Any] = [b"head", body, square, b"tail"]
        slot = shelf.store(parts)
        assert os.pread(slot.descriptor, slot.size, 0) == b"head" + body.tobytes() * 2 + b"tail"
        slot.release()


@pytest.mark.parametrize(
    "frame",
    [[Kind.SEND, 1, memoryview(bytes(2 * SIZE))[::2]], [Kind.SEND, 1 << 65, bytes(SIZE)], [Kind.SEND, 1, {SIZE: {1}}]],
    ids=["with gaps", "number too large", "no such type"],
)
def test_what_cannot_be_said_is_a_type_error(frame: wire.Frame) -> None:
    """As for a small message."""
    with pytest.raises(TypeError):
        split(frame)


def test_message_over_the_limit_is_refused() -> None:
    """The largest one has exactly MAX_MESSAGE bytes, head included."""
    around = len(wire.encode([Kind.SEND, 1, b""])) + 3  # bin32 says its length in three bytes more than bin8
    body = memoryview(mmap.mmap(-1, wire.MAX_MESSAGE))  # no pages, nothing is copied
    with body, body[: wire.MAX_MESSAGE - around] as largest:
        parts = split([Kind.SEND, 1, largest])
        assert sum(map(len, parts)) == wire.MAX_MESSAGE
        parts.clear()
        with body[: wire.MAX_MESSAGE - around + 1] as larger, pytest.raises(LimitExceeded):
            split([Kind.SEND, 1, larger])


def test_frame_is_a_private_copy(shelf: Shelf, reader: Reader) -> None:
    """What is stored next does not change what was fetched."""
    for _ in range(4):
        first = message()
        body = carry(shelf, reader, first)[2]
        carry(shelf, reader, message())
        assert type(body) is bytes
        assert body == first[2]


# -- what the other end can do with a slot -------------------------------------------------------------------------


def test_receiver_cannot_change_a_slot(shelf: Shelf) -> None:
    """Not its bytes, not its size, not its seals; not even with holes."""
    slot = shelf.store([b"x" * SIZE])
    copy = os.dup(slot.descriptor)
    try:
        assert not os.get_inheritable(slot.descriptor)
        for attempt in (
            lambda: os.pwrite(copy, b"y", 0),
            lambda: os.truncate(copy, 0),
            lambda: os.truncate(copy, 64 * MIB),
            lambda: mmap.mmap(copy, SIZE),
            lambda: fcntl.fcntl(copy, fcntl.F_ADD_SEALS, WRITE),
            lambda: punch_hole(copy),
        ):
            with pytest.raises(PermissionError):
                attempt()
        assert os.pread(copy, SIZE, 0) == b"x" * SIZE
    finally:
        os.close(copy)


def test_maker_of_a_sealed_memfd_cannot_punch_holes(shelf: Shelf) -> None:
    """What a receiver's mapping relies on: once without holes, always without holes."""
    slot = shelf.store([b"x" * SIZE])
    assert slot._mapping is not None
    with pytest.raises(PermissionError):
        slot._mapping.madvise(mmap.MADV_REMOVE, 0, mmap.PAGESIZE)
    with pytest.raises(PermissionError):
        punch_hole(slot.descriptor)
    assert pages(slot.descriptor) == -(-SIZE // mmap.PAGESIZE)


@pytest.mark.parametrize("body", [b"x" * SIZE, ["x" * SIZE]])
def test_kernel_without_the_seal_for_future_writes(
    shelf: Shelf, reader: Reader, monkeypatch: pytest.MonkeyPatch, body: Any
) -> None:
    """Then a memfd is for one message, and nobody can write to it, this end included."""
    monkeypatch.setattr(bulk, "_FUTURE_WRITE", 0x4000)  # no kernel knows this one
    for _ in range(4):
        slot = shelf.store(split([Kind.SEND, 1, body]))
        assert fcntl.fcntl(slot.descriptor, fcntl.F_GET_SEALS) & WRITE
        assert reader.fetch(slot.descriptor, slot.size) == [Kind.SEND, 1, body]
        slot.release()
        assert slot.descriptor == -1
    assert mappings() == []


# -- what a shelf keeps --------------------------------------------------------------------------------------------


def test_slots_are_used_again(shelf: Shelf, reader: Reader) -> None:
    """From the second message of a size on; the receiver maps what it knows, once, and read-only."""
    carry(shelf, reader, message())
    inodes = set()
    for _ in range(10):
        slot = shelf.store(split(frame := message()))
        inodes.add(inode(slot))
        assert reader.fetch(slot.descriptor, slot.size) == frame
        slot.release()
    assert len(inodes) == 1
    assert mappings() == ["r--s", "rw-s"]


def test_slot_that_is_out_is_not_written_to(shelf: Shelf) -> None:
    """Each message has its own until it is released."""
    slots = [shelf.store([bytes([number]) * SIZE]) for number in range(8)]
    assert len({inode(slot) for slot in slots}) == 8
    for number, slot in enumerate(slots):
        assert os.pread(slot.descriptor, slot.size, 0) == bytes([number]) * SIZE


def test_slot_that_comes_back_twice_is_there_once(shelf: Shelf) -> None:
    """Releasing is idempotent, also after the shelf was closed."""
    slots = [shelf.store([bytes(SIZE)]) for _ in range(2)]
    for slot in slots * 2:
        slot.release()
    again = [shelf.store([bytes(SIZE)]) for _ in range(3)]
    assert len({inode(slot) for slot in again}) == 3
    shelf.close()
    for slot in again:
        slot.release()
        assert slot.descriptor == -1


def test_one_large_message_is_not_kept(shelf: Shelf) -> None:
    """Its memory goes back at once."""
    slot = shelf.store([bytes(4 * MIB)])
    slot.release()
    assert slot.descriptor == -1
    assert mappings() == []


def test_slots_are_kept_only_for_messages_of_their_size(shelf: Shelf) -> None:
    """A small message never holds a large memfd."""
    large = [shelf.store([bytes(2 * MIB)]) for _ in range(2)]
    for slot in large:
        slot.release()
    small = shelf.store([bytes(SIZE)])
    assert inode(small) not in {inode(slot) for slot in large}
    assert os.fstat(small.descriptor).st_size == bulk.SMALLEST_SLOT


def test_slot_that_later_messages_do_not_need_is_dropped(shelf: Shelf) -> None:
    """After PATIENCE messages of other sizes."""
    large = [shelf.store([bytes(2 * MIB)]) for _ in range(2)]
    for slot in large:
        slot.release()
    for _ in range(PATIENCE):
        shelf.store([bytes(SIZE)]).release()
        assert all(slot.descriptor >= 0 for slot in large)
    shelf.store([bytes(SIZE)]).release()
    assert all(slot.descriptor == -1 for slot in large)


@pytest.mark.parametrize(("size", "kept"), [(SIZE, 4), (4 * MIB, 4), (4 * MIB + 1, 2)])
def test_path_keeps_few_slots(shelf: Shelf, size: int, kept: int) -> None:
    """And says beforehand when one more would not be kept."""
    slots = []
    for number in range(7):
        assert shelf.crowded == (number >= kept)
        slots.append(shelf.store([bytes(size)]))
    for slot in slots:
        slot.release()
    assert not shelf.crowded
    assert [slot.descriptor >= 0 for slot in slots] == [False] * (7 - kept) + [True] * kept


def test_process_keeps_a_bounded_number_of_bytes() -> None:
    """The slots that are free longest go first, whosever they are."""
    size = bulk.FREE_BYTES // 4
    with contextlib.ExitStack() as stack:
        shelves = [stack.enter_context(contextlib.closing(Shelf())) for _ in range(3)]
        slots = []
        for shelf in shelves:
            pair = [shelf.store([bytes(size)]) for _ in range(2)]
            for slot in pair:
                slot.release()
            slots += pair
        assert [slot.descriptor >= 0 for slot in slots] == [False, False, True, True, True, True]
        assert bulk._FREE.nbytes == bulk.FREE_BYTES
        other = shelves[0].store([bytes(size)])  # not one of the others' slots
        assert inode(other) not in {inode(slot) for slot in slots[2:]}
    assert bulk._FREE.nbytes == 0


def test_shelves_in_threads_share_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drops the others' free slots, never one that is in use."""
    monkeypatch.setattr(bulk, "FREE_BYTES", 3 * bulk.SMALLEST_SLOT)
    wrong: list[Slot] = []

    def work(fill: bytes) -> None:
        with contextlib.closing(Shelf()) as shelf, contextlib.closing(Reader()) as reader:
            for _ in range(200):
                slots = [shelf.store(split([Kind.SEND, 1, fill * SIZE])) for _ in range(3)]
                wrong.extend(slot for slot in slots if reader.fetch(slot.descriptor, slot.size)[2] != fill * SIZE)
                for slot in slots:
                    slot.release()

    threads = [threading.Thread(target=work, args=(fill,)) for fill in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert bulk._FREE.nbytes == 0


def test_message_that_is_larger_than_those_before_it_fits(shelf: Shelf, reader: Reader) -> None:
    """The same slot grows within its power of two, at both ends."""
    inodes = set()
    for size in (70_000, 70_000, 70_000, 75_000, 130_000, 90_000, 130_900):
        slot = shelf.store(split(frame := message(size)))
        assert reader.fetch(slot.descriptor, slot.size) == frame
        inodes.add(inode(slot))
        slot.release()
    assert len(inodes) == 2  # the first is not kept


def test_closed_shelf_and_reader_take_nothing(shelf: Shelf, reader: Reader) -> None:
    """What they would open, nobody would close."""
    slot = shelf.store([bytes(SIZE)])
    copy = os.dup(slot.descriptor)
    shelf.close()
    reader.close()
    try:
        assert slot.descriptor == -1
        with pytest.raises(ValueError, match="closed"):
            shelf.store([bytes(SIZE)])
        with pytest.raises(ValueError, match="closed"):
            reader.fetch(copy, SIZE)
    finally:
        os.close(copy)


@contextlib.contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.mark.parametrize("room", [0, 1])
def test_store_without_descriptors(shelf: Shelf, room: int) -> None:
    """It fails, leaves nothing behind, and works again when there are some."""
    used = max(int(name.split()[0]) for name in descriptors()) + 1
    spare = [os.dup(0) for _ in range(used)]  # fills every gap
    highest = max(spare)
    try:
        with limited(resource.RLIMIT_NOFILE, highest + 1 + room):
            if room == 0:
                with pytest.raises(OSError, match="Too many open files"):
                    shelf.store([bytes(SIZE)])
            else:  # the mapping of an earlier Python needs one more
                with contextlib.suppress(OSError):
                    shelf.store([bytes(SIZE)])
    finally:
        for each in spare:
            os.close(each)
    shelf.store([bytes(SIZE)]).release()


def address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * mmap.PAGESIZE


def test_store_without_memory(shelf: Shelf) -> None:
    """OSError, whichever call it is that fails."""
    body = memoryview(mmap.mmap(-1, 64 * MIB))
    with body, limited(resource.RLIMIT_AS, address_space() + 32 * MIB), pytest.raises(OSError, match="memory"):
        shelf.store([body])
    assert mappings() == []


def test_failed_store_loses_only_its_slot(shelf: Shelf) -> None:
    """A slot that is half filled is not used again."""
    for _ in range(3):
        shelf.store([bytes(SIZE)]).release()
    with pytest.raises((TypeError, BufferError)):
        shelf.store([bytes(SIZE - 4), memoryview(b"12345678")[::2]])
    assert mappings() == []
    shelf.store([bytes(SIZE)]).release()


# -- what a reader believes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/", "/proc/self/status"])
def test_other_file_is_a_violation(reader: Reader, path: str) -> None:
    """A descriptor of anything else is never read."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(ProtocolViolation, match="not a memfd"):
            reader.fetch(descriptor, SIZE)
    finally:
        os.close(descriptor)


def test_pipe_or_socket_is_a_violation(reader: Reader) -> None:
    """A read of it could wait for ever."""
    ends = [*os.pipe(), *(each.detach() for each in socket.socketpair())]
    try:
        for end in ends:
            with pytest.raises(ProtocolViolation, match="not a memfd"):
                reader.fetch(end, SIZE)
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.parametrize("seals", [0, GROW, GROW | WRITE, FUTURE_WRITE])
def test_memfd_that_could_shrink_is_a_violation(reader: Reader, memfd: Callable[..., int], seals: int) -> None:
    """A mapping of it could end under the reader, which would end the reader."""
    descriptor = memfd(wire.encode(message()), seals)
    for _ in range(3):
        with pytest.raises(ProtocolViolation, match="shrinking"):
            reader.fetch(descriptor, SIZE)


@pytest.mark.parametrize("seals", [SHRINK, SHRINK | GROW | WRITE, SHRINK | FUTURE_WRITE])
def test_memfd_that_is_shorter_than_announced_is_a_violation(
    reader: Reader, memfd: Callable[..., int], seals: int
) -> None:
    """Also by less than a page, and also if it is mapped already."""
    content = wire.encode(frame := message())
    descriptor = memfd(content, seals)
    for _ in range(4):
        with pytest.raises(ProtocolViolation, match="shorter"):
            reader.fetch(descriptor, len(content) + 1)
        assert reader.fetch(descriptor, len(content)) == frame


def test_memfd_of_huge_pages_is_a_violation(reader: Reader, memfd: Callable[..., int]) -> None:
    """There may be none left when it is read."""
    try:
        descriptor = memfd(seals=SHRINK | GROW, length=2 * MIB, flags=os.MFD_HUGETLB)
    except OSError as exc:
        pytest.skip(f"this host makes no memfds of huge pages: {exc}")
    for _ in range(3):
        with pytest.raises(ProtocolViolation, match="huge"):
            reader.fetch(descriptor, SIZE)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_PATH])
def test_memfd_that_cannot_be_read_is_a_violation(reader: Reader, memfd: Callable[..., int], flags: int) -> None:
    """Sealed, of the right size, and opened for something else."""
    content = wire.encode(message())
    descriptor = memfd(content, SHRINK | FUTURE_WRITE)
    other = os.open(f"/proc/self/fd/{descriptor}", flags)
    try:
        for _ in range(3):
            with pytest.raises(ProtocolViolation, match=r"cannot be read|not a memfd"):
                reader.fetch(other, len(content))
        assert mappings() == []
    finally:
        os.close(other)


@pytest.mark.parametrize("seals", [SHRINK | GROW | WRITE, SHRINK | GROW | FUTURE_WRITE, SHRINK | WRITE, SHRINK])
@pytest.mark.parametrize("length", [0, 4 * MIB])
def test_memfd_of_another_program_is_read(reader: Reader, memfd: Callable[..., int], seals: int, length: int) -> None:
    """Sealed for good and used once, or used again; exactly as long as the frame, or longer."""
    for frame in ([Kind.CALL, 3, b"x" * SIZE, 1], [Kind.REPLY, 3, ["x" * SIZE, {"a": b"y" * SIZE}]]):
        content = wire.encode(frame)
        descriptor = memfd(content, seals, length)
        os.lseek(descriptor, 50, os.SEEK_SET)  # its position does not matter
        for _ in range(3):
            assert reader.fetch(descriptor, len(content)) == frame


def test_holes_are_zeros_and_cost_nothing(reader: Reader, memfd: Callable[..., int]) -> None:
    """Reading one must not allocate its pages, let alone fail for want of them."""
    head = split([Kind.SEND, 1, memoryview(bytes(8 * MIB))])[0]
    for seals in (SHRINK, SHRINK | GROW | WRITE, SHRINK | FUTURE_WRITE):
        descriptor = memfd(bytes(head), seals, 16 * MIB)
        for _ in range(4):
            assert reader.fetch(descriptor, len(head) + 8 * MIB)[2] == bytes(8 * MIB)
        assert pages(descriptor) == 1


def test_hole_behind_what_was_read_before(reader: Reader, memfd: Callable[..., int]) -> None:
    """A memfd that is mapped for short messages says a longer one, most of it a hole."""
    short = wire.encode([Kind.SEND, 1, b"x" * SIZE])
    descriptor = memfd(short, 0, 8 * MIB)
    with mmap.mmap(descriptor, 8 * MIB) as mapping:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SHRINK | FUTURE_WRITE)
        for _ in range(3):
            assert reader.fetch(descriptor, len(short))[2] == b"x" * SIZE
        assert mappings() == ["r--s", "rw-s"]
        mapping[:10] = bytes(split([Kind.SEND, 1, memoryview(bytes(4 * MIB))])[0]).ljust(10)
        before = pages(descriptor)
        body = reader.fetch(descriptor, 4 * MIB + 8)[2]
        assert pages(descriptor) == before
        assert len(body) == 4 * MIB
        assert body.endswith(bytes(3 * MIB))
    assert mappings() == ["r--s"]


def test_memfd_that_may_get_holes_is_not_mapped(reader: Reader, memfd: Callable[..., int]) -> None:
    """It may get them between a look and a read; here between two messages."""
    content = wire.encode(message())
    descriptor = memfd(content, SHRINK)
    for _ in range(3):
        reader.fetch(descriptor, len(content))
    punch_hole(descriptor)
    before = pages(descriptor)
    with pytest.raises(ProtocolViolation):
        reader.fetch(descriptor, len(content))
    assert pages(descriptor) == before
    assert mappings() == []


def test_reader_keeps_few_mappings(reader: Reader, memfd: Callable[..., int]) -> None:
    """However many memfds come again and again, and however large their files are."""
    content = wire.encode(frame := message())
    many = [memfd(content, SHRINK | FUTURE_WRITE) for _ in range(6)]
    large = [memfd(content, SHRINK | FUTURE_WRITE, wire.MAX_MESSAGE) for _ in range(3)]
    giant = [memfd(content, SHRINK | FUTURE_WRITE, wire.MAX_MESSAGE + 1)]
    for group, kept in ((many, reader_module.KEPT_VIEWS), (large, 2), (giant, 2)):
        for _ in range(3):
            for descriptor in group:
                assert reader.fetch(descriptor, len(content)) == frame
        assert mappings() == ["r--s"] * kept


def test_mapping_that_later_messages_do_not_need_is_dropped(reader: Reader, memfd: Callable[..., int]) -> None:
    """So what the sender has given up is not held for long."""
    content = wire.encode(frame := message())
    first, second = (memfd(content, SHRINK | FUTURE_WRITE) for _ in range(2))
    for _ in range(2):
        reader.fetch(first, len(content))
    for number in range(PATIENCE + 1):
        assert mappings() == ["r--s"] * (1 if number < 2 else 2)
        assert reader.fetch(second, len(content)) == frame
    assert mappings() == ["r--s"]


def test_memfd_that_comes_once_is_not_mapped(reader: Reader, memfd: Callable[..., int]) -> None:
    """Mapping it would cost more than it saves."""
    content = wire.encode(message())
    for _ in range(10):
        reader.fetch(memfd(content, SHRINK | GROW | WRITE), len(content))
    assert mappings() == []


def test_fetch_without_address_space_for_a_mapping(reader: Reader, memfd: Callable[..., int]) -> None:
    """It is read instead."""
    content = wire.encode(frame := message())
    descriptor = memfd(content, SHRINK | FUTURE_WRITE, 48 * MIB)
    with limited(resource.RLIMIT_AS, address_space() + 24 * MIB):
        for _ in range(3):
            assert reader.fetch(descriptor, len(content)) == frame
        assert mappings() == []


@pytest.mark.parametrize("known", [False, True])
def test_fetch_without_memory(reader: Reader, memfd: Callable[..., int], known: bool) -> None:
    """MemoryError, and the next message is read."""
    parts = split([Kind.SEND, 1, memoryview(bytes(48 * MIB))])
    large = memfd(b"".join(parts), SHRINK | FUTURE_WRITE)
    content = wire.encode(frame := message())
    small = memfd(content, SHRINK | FUTURE_WRITE)
    for _ in range(2 * known):
        reader.fetch(large, 48 * MIB + 8)
    with limited(resource.RLIMIT_AS, address_space() + 24 * MIB):
        # The first few may fit into what is allocated and free.
        with pytest.raises(MemoryError):
            [reader.fetch(large, 48 * MIB + 8) for _ in range(20)]
        assert reader.fetch(small, len(content)) == frame


# -- what a reader makes of bytes ----------------------------------------------------------------------------------

# The parts of a frame; the first of each makes a good one.
NUMBERS_SAID = [b"\x01", b"\xff", b"\x00", b"\xcc\x01", b"\xcd\0\1", b"\xce\0\0\0\1", b"\xcf" + bytes(7) + b"\1"]
NUMBERS_SAID += [b"\xd0\xff", b"\xd1\xff\xff", b"\xd2\0\0\0\1", b"\xd3" + bytes(7) + b"\1", b"\xc3", b"\xa1a", b"\xc6"]
VARIANTS: list[list[bytes]] = [
    [b"\x93", b"\x94", b"\x95", b"\x92", b"\x96", b"\x83", b"\xdc\0\3", b"\xdd\0\0\0\3", b"\xc0", b""],
    [*(bytes([kind]) for kind in (1, 2, 3, 4, 5, 7, 9, 12, 99)), b"\xcc\x01", b"\xff", b"\xc0", b""],
    NUMBERS_SAID,
    [b"\xc6", b"\xdb", b"\xc5", b"\xc9", b"\xdd", b"\xc0"],
    [(SIZE + skew).to_bytes(4, "big") for skew in (0, -1, 1, 2, -63, -64, -65, 64, -40_000, -SIZE, 1 << 31)],
    [
        b"",
        b"\x01",
        b"\x01\x02",
        b"\x00",
        b"\x11",
        b"\xc0",
        b"\xa1a",
        b"\xc6",
        bytes(64),
        bytes(65),
        b"\xd9\x46" + b"a" * 70,
    ],
]


@pytest.mark.parametrize("tail", VARIANTS[-1][:2])
def test_every_content_is_read_as_the_codec_reads_it(shelf: Shelf, reader: Reader, tail: bytes) -> None:
    """The way around large bodies takes what the codec takes, and refuses what it refuses: any two things differ."""
    good = [each[0] for each in VARIANTS]
    good[0], good[-1] = (b"\x94" if tail else b"\x93"), tail
    taken = 0
    for first, second in itertools.combinations(range(len(good)), 2):
        for one, other in itertools.product(VARIANTS[first], VARIANTS[second]):
            parts = [*good]
            parts[first], parts[second] = one, other
            content = b"".join(parts[:-1]) + bytes(SIZE) + parts[-1]
            taken += read_as_the_codec_does(shelf, reader, content)
    assert taken > 100


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=30), st.binary(max_size=70))
def test_noise_is_read_as_the_codec_reads_it(head: bytes, tail: bytes) -> None:
    """Almost always a violation."""
    with contextlib.closing(Shelf()) as shelf, contextlib.closing(Reader()) as reader:
        for _ in range(3):
            read_as_the_codec_does(shelf, reader, head + bytes(SIZE) + tail)


def read_as_the_codec_does(shelf: Shelf, reader: Reader, content: bytes) -> bool:
    """Whether it is a frame."""
    expected: Any = ProtocolViolation
    with contextlib.suppress(ProtocolViolation):
        expected = wire.Decoder().decode_bulk(content)
    slot = shelf.store([content])
    found: Any = ProtocolViolation
    with contextlib.suppress(ProtocolViolation):
        found = reader.fetch(slot.descriptor, slot.size)
    slot.release()
    assert found == expected, content[:40]
    return found is not ProtocolViolation


@pytest.mark.parametrize("size", [1, 2, 16, 63, 64, 65, 70_000])
def test_short_content_is_read_as_the_codec_reads_it(reader: Reader, memfd: Callable[..., int], size: int) -> None:
    """However little there is of it."""
    descriptor = memfd(b"\x93\x01\x01\xc6\x00\x01\x86\xa0" + bytes(70_000), SHRINK)
    for _ in range(3):
        with pytest.raises(ProtocolViolation):
            reader.fetch(descriptor, size)


@pytest.mark.parametrize("future", [0, FUTURE_WRITE], ids=["read", "mapped"])
def test_content_that_changes_while_it_is_read(reader: Reader, memfd: Callable[..., int], future: int) -> None:
    """It is a frame of some moment or a violation, never anything else; and the next one is read as ever."""
    size = 300_000
    one = wire.encode([Kind.SEND, 1, b"a" * (size - 8)])
    contents = [
        one,
        wire.encode([Kind.CALL, 2, b"b" * (size - 10), 3, 100]),
        wire.encode([Kind.SEND, 1, b"c" * (size - 70), 1])[:-1] + b"\xd9\x3c" + b"d" * 60,
        b"\x93\x01\x01\xc6\xff\xff\xff\xff".ljust(size, b"\x93"),
        wire.encode([Kind.REPLY, 1, ["x" * 50] * ((size - 6) // 52)]).ljust(size, b"\xc0"),
        bytes(size),
    ]
    assert {len(content) for content in contents} == {size}
    descriptor = memfd(length=size, seals=0)
    stop = threading.Event()
    with mmap.mmap(descriptor, size) as mapping:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SHRINK | GROW | future)

        def change() -> None:
            while not stop.is_set():
                for content in contents:
                    mapping[:64] = content[:64]  # one after the other, so that most reads see a mixture
                    mapping[-64:] = content[-64:]
                    mapping[64:-64] = content[64:-64]

        mapping[:] = one
        assert [reader.fetch(descriptor, size)[1] for _ in range(3)] == [1, 1, 1]
        hostile = threading.Thread(target=change)
        hostile.start()
        try:
            for _ in range(300):
                with contextlib.suppress(ProtocolViolation):
                    frame = reader.fetch(descriptor, size)
                    assert wire.encode(frame)
                    assert type(frame[1]) is int
        finally:
            stop.set()
            hostile.join()
        mapping[:] = one
        assert reader.fetch(descriptor, size)[2] == b"a" * (size - 8)


@pytest.mark.parametrize("claimed", [SIZE, SIZE - 1, SIZE - 30, SIZE - 64, SIZE - 65, SIZE + 1])
@pytest.mark.parametrize("tail", [b"", b"\x01", b"\xc6\xff\xff\xff\xff"])
def test_parser_never_looks_twice(claimed: int, tail: bytes) -> None:
    """Every copy is of other content, as if the sender changed it whenever anything was read."""
    size = 8 + SIZE + len(tail)
    copied: list[tuple[int, int]] = []

    def copy(start: int, end: int) -> bytes:
        copied.append((start, end))
        head = b"%c\x01%c\xc6" % (0x94 if tail else 0x93, len(copied)) + claimed.to_bytes(4, "big")
        return (head + bytes([len(copied)]) * SIZE + tail)[start:end]

    try:
        frame = reader_module._parse(copy, size)
    except ProtocolViolation:
        assert (claimed, tail) not in ((SIZE, b""), (SIZE, b"\x01"))
        return
    assert (claimed, tail) in ((SIZE, b""), (SIZE, b"\x01"))
    head, *rest = copied
    assert frame[1] == 1  # from the first copy, and nothing of that is copied again
    assert sorted(rest) == [(8, 8 + SIZE), (8 + SIZE, size)]
    assert head[0] == 0
    assert len(set(frame[2])) == 1
