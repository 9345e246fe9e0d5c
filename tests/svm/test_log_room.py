"""What a machine does when its log descriptor is full: wait a moment or as long as it takes, and say so at last."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import trio
import trio.testing

from retinue.pipes import wire
from retinue.svm import log
from retinue.svm.drops import tell_drops
from retinue.svm.log import LogWriter


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def fill(theirs: socket.socket) -> None:
    """Until there is no room for a byte."""
    theirs.setblocking(False)
    for size in (10_000, 1):
        try:
            while True:
                theirs.send(b"x" * size)
        except BlockingIOError:
            pass
    theirs.setblocking(True)


def heard(ours: socket.socket) -> list[tuple[int, str]]:
    """Numbers and messages of the records that are there."""
    decoder = wire.Decoder()
    found: list[tuple[int, str]] = []
    ours.setblocking(False)
    while True:
        try:
            packet = ours.recv(wire.MAX_PACKET)
        except BlockingIOError:
            return found
        if packet[:1] == b"\x93":
            (frame,) = decoder.decode(packet)
            found.append((frame[1], frame[2][3]))


def test_patient_writer_waits_until_there_is_room(ends: tuple[socket.socket, socket.socket]) -> None:
    """From any number of threads; nothing is left out."""
    ours, theirs = ends
    writer = LogWriter(theirs)
    writer.patient = True
    fill(theirs)
    threads = [threading.Thread(target=writer.write, args=(6, "x", f"m{number}")) for number in range(4)]
    for thread in threads:
        thread.start()
    threads[0].join(2 * log.PATIENCE_MS / 1000)
    assert all(thread.is_alive() for thread in threads)
    found = heard(ours)
    for thread in threads:
        thread.join(10)
    found += heard(ours)
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert {text for _, text in found} == {"m0", "m1", "m2", "m3"}


def test_patient_writer_ends_with_its_reader(ends: tuple[socket.socket, socket.socket]) -> None:
    """Nobody will ever make room."""
    ours, theirs = ends
    writer = LogWriter(theirs)
    writer.patient = True
    fill(theirs)
    thread = threading.Thread(target=writer.write, args=(6, "x", "m"))
    thread.start()
    ours.close()
    thread.join(10)
    assert not thread.is_alive()


def test_number_of_what_was_dropped_at_last_is_told(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one more record at the end; and by none when nothing was dropped."""
    ours, theirs = ends
    monkeypatch.setattr(log, "PATIENCE_MS", 1)
    writer = LogWriter(theirs)
    writer.write(6, "x", "first")
    writer.finish()
    assert heard(ours) == [(1, "first")]
    fill(theirs)
    for _ in range(3):
        writer.write(6, "x", "dropped")
    assert heard(ours) == []
    writer.finish()
    ((number, text),) = heard(ours)
    assert number == 5
    assert "no room" in text


def test_a_flood_is_slowed_while_nobody_reads(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that finds no room waits longest, each one after it for a moment."""
    _, theirs = ends
    waited: list[int] = []
    poll = select.poll

    class Polled:
        def __init__(self) -> None:
            self._poll = poll()
            self.register = self._poll.register

        def poll(self, most: int) -> list[tuple[int, int]]:
            waited.append(most)
            return self._poll.poll(0)

    monkeypatch.setattr(select, "poll", Polled)
    writer = LogWriter(theirs)
    fill(theirs)
    for _ in range(3):
        writer.write(6, "x", "dropped")
    assert waited == [log.PATIENCE_MS, log.STUCK_MS, log.STUCK_MS]


async def test_who_says_nothing_more_tells_what_was_dropped(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as there is room, with one record each time; its number says how many."""
    ours, theirs = ends
    monkeypatch.setattr(log, "PATIENCE_MS", 1)
    writer = LogWriter(theirs)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell_drops, writer, theirs)
            told = []
            for count in (3, 2):
                fill(theirs)
                await trio.to_thread.run_sync(write, writer, count)
                assert writer.stuck
                await trio.testing.wait_all_tasks_blocked()
                assert heard(ours) == []  # and now there is room
                await trio.lowlevel.wait_readable(ours)
                told += heard(ours)
            nursery.cancel_scope.cancel()
    assert [number for number, _ in told] == [4, 7]
    assert all("want of room" in text for _, text in told)


@pytest.mark.parametrize("room", [True, False])
def test_record_within_the_telling_has_a_number_of_its_own(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """A finalizer or a signal handler may write one there: it comes after it, or in its place."""
    ours, theirs = ends
    monkeypatch.setattr(log, "PATIENCE_MS", 1)
    writer = LogWriter(theirs)
    fill(theirs)
    write(writer, 2)
    if room:
        heard(ours)
    encode = log._encode

    def encode_and_write(*record: Any) -> bytes:
        monkeypatch.setattr(log, "_encode", encode)
        writer.write(6, "x", "within")
        return encode(*record)

    monkeypatch.setattr(log, "_encode", encode_and_write)
    with nullcontext() if room else pytest.raises(BlockingIOError):
        writer.tell_dropped()
    heard_now = [number for number, _ in heard(ours)]
    writer.write(6, "x", "after")
    assert heard_now == ([3, 4] if room else [])
    assert [number for number, _ in heard(ours)] == [5 if room else 4]


async def test_telling_ends_with_the_reader(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody will ever want to know; and a writer goes on without being told of."""
    ours, theirs = ends
    monkeypatch.setattr(log, "PATIENCE_MS", 1)
    writer = LogWriter(theirs)
    fill(theirs)
    write(writer, 1)
    ours.close()
    with trio.fail_after(10):
        await tell_drops(writer, theirs)
    write(writer, 1)
    assert writer.stuck


def write(writer: LogWriter, count: int) -> None:
    for _ in range(count):
        writer.write(6, "x", "dropped")


def test_policy_is_that_of_the_installed_writer(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told with the program, and may be told again."""
    writer = LogWriter(ends[1])
    monkeypatch.setattr(log, "_writers", [writer])
    log.set_policy("block")
    assert writer.patient
    log.set_policy("spill")
    assert not writer.patient
