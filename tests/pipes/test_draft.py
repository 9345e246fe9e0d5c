"""Bodies that are made in place: what arrives, what is copied, and who gets the memory afterwards."""

import contextlib
import gc
import mmap
import os
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors
from tests.pipes.test_bulk import inode, mappings
from tests.pipes.test_path import echo, make_pair, open_ends
from tests.pipes.test_path_findings import facing_raw
from tests.pipes.test_path_hostile import next_frames

from retinue.pipes import Draft, LimitExceeded, Message, PathClosed, Transport, bulk, open_path, wire
from retinue.pipes.bulk import Shelf
from retinue.pipes.reader import Reader
from retinue.pipes.wire import Kind

SIZE = 200_000


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does, what it has closed gives everything back."""
    before, mapped = descriptors(), mappings()
    yield
    assert_none_left(before)
    assert mappings() == mapped


@pytest.fixture(params=["memory", "socket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with contextlib.closing(Shelf()) as shelf:
        yield shelf


def filled(draft: Draft, content: bytes) -> Draft:
    draft.view[:] = content
    return draft


def body_of(shelf: Shelf, draft: Draft) -> bulk.Slot:
    return shelf.finish([Kind.SEND, 1, draft])


# -- what arrives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind_of", "ident", "rest"),
    [(Kind.SEND, 1, []), (Kind.SEND, -128, [16]), (Kind.REPLY, (1 << 63) - 1, [1])]
    + [(Kind.CALL, ident, rest) for ident in (1, -(1 << 62)) for rest in ([], [0], [16, wire.MAX_REMAINING])],
)
def test_frame_is_as_if_it_was_sent_as_bytes(shelf: Shelf, kind_of: Kind, ident: int, rest: list[int]) -> None:
    """For every number and what may be behind the body; read in parts, whole, by pread and by a mapping."""
    with contextlib.closing(Reader()) as reader:
        for _ in range(4):
            content = os.urandom(SIZE)
            slot = shelf.finish([kind_of, ident, filled(shelf.reserve(SIZE), content), *rest])
            expected = [kind_of, ident, content, *rest]
            assert wire.Decoder().decode_bulk(os.pread(slot.descriptor, slot.size, 0)) == expected
            assert reader.fetch(slot.descriptor, slot.size) == expected
            slot.release()


async def test_drafts_of_any_size_arrive_as_bytes(kind: str) -> None:
    """Also those that fit into a packet; as a call, with priority, with a deadline and with descriptors."""
    null = os.open("/dev/null", os.O_RDONLY)
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, echo)
        for size in (0, 1, 5000, *range(wire.MAX_PACKET - 12, wire.MAX_PACKET + 2), SIZE, 3_000_000):
            content = os.urandom(size)
            assert await a.call(filled(a.draft(size), content)) == content
        content = os.urandom(SIZE)
        assert await a.call(filled(a.draft(SIZE), content), priority=True) == content
        with trio.fail_after(1000):
            assert await a.call(filled(a.draft(SIZE), content), descriptors=(null,)) == content
        nursery.cancel_scope.cancel()
    os.close(null)


async def test_reply_may_be_a_draft(kind: str) -> None:
    """Of the path that the call came on."""

    async def answer(message: Message) -> Any:
        return filled(message.path.draft(SIZE), bytes([message.body]) * SIZE)

    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, answer)
        for number in range(5):
            assert await a.call(number) == bytes([number]) * SIZE
        nursery.cancel_scope.cancel()


async def test_file_can_be_read_into_a_draft(kind: str, tmp_path: Path) -> None:
    """As the reference shows it."""
    content = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(content)
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, echo)
        draft = a.draft(SIZE)
        with (tmp_path / "file").open("rb") as file:
            file.readinto(draft.view)
        assert await a.call(draft) == content
        nursery.cancel_scope.cancel()


async def test_many_drafts_use_few_memfds(kind: str) -> None:
    """Each is made when the one before has been written, in memory that came back."""
    async with open_ends(kind, limit=8) as (a, b), trio.open_nursery() as nursery:
        got: list[int] = []

        @nursery.start_soon
        async def receive() -> None:
            async for message in b:
                got.append(message.body[0] if message.body == message.body[:1] * SIZE else -1)

        most = 0

        def made(number: int) -> Draft:
            nonlocal most
            draft = filled(a.draft(SIZE), bytes([number]) * SIZE)
            most = max(most, len([each for each in mappings() if "w" in each]))
            return draft

        assert await a.send_many(made(number) for number in range(40)) == 40
        assert got == [*range(40)]
        assert most <= bulk.SMALL_SLOTS + 1
        nursery.cancel_scope.cancel()


def test_nothing_is_copied(shelf: Shelf) -> None:
    """What the view was is what the other end reads: the same pages."""
    draft = filled(shelf.reserve(SIZE), b"x" * SIZE)
    slot = draft.place
    assert isinstance(slot, bulk.Slot)
    with mmap.mmap(slot.descriptor, 0, prot=mmap.PROT_READ) as seen:
        assert seen.find(b"x" * SIZE) == bulk._HEAD.size
        draft.view[5] = ord("y")
        assert seen[bulk._HEAD.size + 5] == ord("y")
    assert body_of(shelf, draft) is slot


async def test_successor_is_sent_the_same_draft(kind: str) -> None:
    """Its memory is not used again before the message has ended, whatever its first reader has seen of it."""
    content = os.urandom(SIZE)
    ours, theirs = make_pair(kind)

    async def another(_: object) -> Transport:
        return ours

    async with facing_raw(kind, rebind=another) as (path, peer), trio.open_nursery() as nursery:
        answers: list[Any] = []

        @nursery.start_soon
        async def call() -> None:
            answers.append(await path.call(filled(path.draft(SIZE), content)))

        while Kind.BULK not in [frame[0] for frame in await next_frames(peer)]:
            pass
        peer.send(wire.encode([Kind.SEEN, 1]))
        path.send_nowait(bytes(SIZE))  # finds no memory of the draft's
        peer.close()
        async with open_path(theirs) as successor:
            message = await successor.receive()
            assert message.redelivered
            await message.reply(message.body)
            await trio.testing.wait_all_tasks_blocked()
        assert answers == [content]
        path.sever()


# -- what a draft may be used for --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, SIZE])
async def test_draft_is_sent_once(kind: str, size: int) -> None:
    """And its memory is not the program's any more, if it is not a copy that was sent."""
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, echo)
        draft = filled(a.draft(size), b"x" * size)
        await a.send(draft)
        if size == SIZE:
            with pytest.raises(ValueError, match="released"):
                draft.view[0] = 1
        with pytest.raises(ValueError, match="one message"):
            await a.send(draft)
        draft.close()
        assert await a.call(b"still there") == b"still there"
        nursery.cancel_scope.cancel()


async def test_draft_belongs_to_its_path(kind: str) -> None:
    """Another path would tell its peer what this one has in its memory. It can still be sent where it belongs."""
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, echo)
        draft = filled(b.draft(SIZE), b"x" * SIZE)
        for _ in range(2):
            with pytest.raises(ValueError, match="path that has made it"):
                await a.send(draft)
            a.send_nowait(b"this path, too, has memfds" * SIZE)
        draft.close()
        with pytest.raises(ValueError, match="one message"):
            await b.send(draft)
        nursery.cancel_scope.cancel()


async def test_draft_is_a_body_and_nothing_else(kind: str) -> None:
    """Not a part of one, and not the detail of a rejection."""
    async with open_ends(kind) as (a, b):
        for size in (10, SIZE):
            with pytest.raises(TypeError):
                await a.send([a.draft(size)])
        a.flush()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.call, b"x")
            message = await b.receive()
            for size in (10, SIZE):
                with pytest.raises(TypeError, match="detail"):
                    await message.reject("no", detail=b.draft(size))
            nursery.cancel_scope.cancel()


def test_view_that_is_in_use_is_not_sent(shelf: Shelf) -> None:
    """Else the program could change what it has sent, and later messages; when it lets go, the draft can be sent."""
    draft = shelf.reserve(SIZE)
    user = pickle.PickleBuffer(draft.view)
    with pytest.raises(BufferError, match="still in use"):
        body_of(shelf, draft)
    draft.view[0] = 5
    user.release()
    assert body_of(shelf, draft) is draft.place


async def test_limits(kind: str) -> None:
    """Those of any message, told when the draft is asked for; and a path that has ended makes none."""
    async with open_ends(kind) as (a, _):
        with pytest.raises(LimitExceeded):
            a.draft(wire.MAX_MESSAGE)
        with pytest.raises(ValueError, match="negative"):
            a.draft(-1)
        largest = a.draft(wire.MAX_MESSAGE - bulk._HEAD.size - bulk._TAIL)
        largest.close()
        a.sever()
        with pytest.raises(PathClosed):
            a.draft(SIZE)


def test_kernel_without_the_seal_for_future_writes(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the memory is a plain one, and copied."""
    monkeypatch.setattr(bulk, "_FUTURE_WRITE", 0x4000)  # no kernel knows this one
    draft = filled(shelf.reserve(SIZE), b"x" * SIZE)
    assert draft.place is None
    assert draft.take() == b"x" * SIZE


# -- whose memory it is ------------------------------------------------------------------------------------------------


def test_memory_is_used_again_when_the_message_was_read(shelf: Shelf) -> None:
    """By drafts and by what is copied alike."""
    inodes = set()
    for number in range(8):
        slot = body_of(shelf, shelf.reserve(SIZE)) if number % 2 else shelf.store([bytes(SIZE)])
        inodes.add(inode(slot))
        slot.release()
    assert len(inodes) == 2  # the first is not kept


@pytest.mark.parametrize("how", ["closed", "left", "dropped"])
def test_draft_that_was_not_sent_is_not_used_again(shelf: Shelf, how: str) -> None:
    """Its peer would find in the rest of a later message what was never meant for it."""
    for _ in range(3):
        body_of(shelf, shelf.reserve(SIZE)).release()
    draft = filled(shelf.reserve(SIZE), b"secret" * (SIZE // 6) + b"!!")
    view, slot = draft.view, draft.place
    assert isinstance(slot, bulk.Slot)
    if how == "closed":
        draft.close()
        draft.close()
    elif how == "left":
        with draft:
            pass
    del draft
    gc.collect()
    assert slot.descriptor == -1
    with pytest.raises(ValueError, match="released"):
        view[0] = 1
    later = shelf.store([bytes(SIZE)])
    assert b"secret" not in os.pread(later.descriptor, SIZE, 0)
    assert not shelf.crowded


def test_memory_outlives_its_path_while_the_program_has_it(shelf: Shelf) -> None:
    """Writing to it is without effect then, and no fault."""
    draft = shelf.reserve(SIZE)
    part = memoryview(draft.view)[10:20]
    shelf.close()
    draft.view[:] = b"x" * SIZE
    draft.close()
    part[:] = b"y" * 10
    part.release()


def test_host_without_descriptors_is_told(shelf: Shelf) -> None:
    """Nothing of the attempt is left, and the next one may succeed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            shelf.reserve(SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not shelf._out
    shelf.reserve(SIZE).close()


def test_closed_shelf_makes_no_drafts(shelf: Shelf) -> None:
    """Nobody would close what it opens."""
    shelf.close()
    with pytest.raises(ValueError, match="closed"):
        shelf.reserve(SIZE)
