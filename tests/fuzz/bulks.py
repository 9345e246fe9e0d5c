"""Memfds of a hostile peer: the reader makes of one what the decoder makes of its bytes, and nothing is left."""

import contextlib
import fcntl
import mmap
import os
from typing import Final

import msgpack
from tests.fuzz.script import Script
from tests.leaks import assert_none_left, descriptors

from retinue.pipes import ProtocolViolation, wire
from retinue.pipes.reader import Reader
from retinue.pipes.wire import Frame, Kind

# Memfds of one input, and how often they come: more than the reader's patience and than it keeps mapped.
MOST_FILES: Final = 6
MOST_FETCHES: Final = 40
_FUTURE_WRITE: Final = 0x10  # F_SEAL_FUTURE_WRITE
_SEALS: Final = (
    fcntl.F_SEAL_SHRINK,
    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE,
    fcntl.F_SEAL_SHRINK | _FUTURE_WRITE,
    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _FUTURE_WRITE | fcntl.F_SEAL_SEAL,
    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL,
    fcntl.F_SEAL_GROW,
    0,
)
# The sizes that BULK may tell, most of them small: what is between is only more of the same bytes.
_SMALLEST: Final = wire.MAX_PACKET + 1


class File:
    """A descriptor and what can be read from it: nothing, when it is no memfd that may be taken."""

    def __init__(self, descriptor: int, content: bytes = b"", mapping: mmap.mmap | None = None) -> None:
        self.descriptor = descriptor
        self.content = content
        self._mapping = mapping  # what its maker can still write with

    def rewrite(self, place: int, data: bytes) -> None:
        """Its maker fills it again."""
        if self._mapping is not None and place + len(data) <= len(self.content):
            self._mapping[place : place + len(data)] = data
            self.content = self.content[:place] + data + self.content[place + len(data) :]

    def close(self) -> None:
        """Its maker needs it no more."""
        os.close(self.descriptor)
        if self._mapping is not None:
            self._mapping.close()


def bulk_target(data: bytes) -> None:
    """Make memfds and fetch frames out of them, in any order, with one reader."""
    before = descriptors()
    script = Script(data)
    reader = Reader()
    with contextlib.ExitStack() as files:
        made: list[File] = []
        for _ in range(MOST_FETCHES):
            how = script.byte()
            if not made or (how & 3 == 0 and len(made) < MOST_FILES):
                made.append(draw_file(script))
                files.callback(made[-1].close)
            file = made[how // 4 % len(made)]
            if how & 3 == 3:
                file.rewrite(script.number(), script.take(script.byte()))
            fetch(reader, file, draw_size(script, len(file.content)))
            if script.over:
                break
        reader.close()
    assert_none_left(before)


def draw_size(script: Script, length: int) -> int:
    """What a BULK frame tells, mostly as many bytes as there are."""
    match script.byte() % 8:
        case 0:
            size = _SMALLEST + script.number()
        case 1:
            size = length + script.signed()
        case _:
            size = length
    return min(max(size, _SMALLEST), wire.MAX_MESSAGE)


def draw_file(script: Script) -> File:
    """A memfd as a good peer makes it, or nearly."""
    if (special := script.byte()) & 0xE0 == 0xE0:
        return File(draw_special(script, special))
    content = draw_content(script)
    written = len(content)
    if special & 1:  # a hole at the end reads as zeros
        content += bytes(script.number() * 64 % (4 * _SMALLEST))
    descriptor = os.memfd_create("fuzzed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, memoryview(content)[:written])
    os.ftruncate(descriptor, len(content))
    seals = script.pick(_SEALS)
    mapping = mmap.mmap(descriptor, len(content)) if not seals & fcntl.F_SEAL_WRITE else None
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return File(descriptor, content if seals & fcntl.F_SEAL_SHRINK else b"", mapping)


def draw_special(script: Script, which: int) -> int:
    """A descriptor that is something else."""
    match which % 4:
        case 0:
            return os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        case 1:
            reading, writing = os.pipe()
            os.close(writing)
            return reading
        case 2:
            return os.eventfd(script.byte())
        case _:  # open for writing only: it can be neither read nor mapped
            memfd = os.memfd_create("fuzzed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(memfd, 2 * _SMALLEST)
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | _FUTURE_WRITE)
            writable = os.open(f"/proc/self/fd/{memfd}", os.O_WRONLY | os.O_CLOEXEC)
            os.close(memfd)
            return writable


def draw_content(script: Script) -> bytes:
    """Bytes for a memfd: a frame with something large in it, or anything; with some of them changed."""
    length = _SMALLEST - 20 + script.number() % (3 * _SMALLEST)
    large = bytes([script.byte()]) * length
    match script.byte() % 8:
        case 0:
            content = script.take(200) + large + script.take(script.byte())
        case 1:
            content = msgpack.packb([Kind.REJECT, script.signed(), "no", "", large])
        case 2:
            content = msgpack.packb([script.byte(), script.signed(), list(large[:_SMALLEST]), script.byte()])
        case 3:
            content = msgpack.packb([Kind.CALL, script.signed(), {"large": large}, 0, script.number()])
        case 4:
            content = msgpack.packb([script.byte(), script.signed(), large.decode("latin-1")])
        case 5:  # a length that is not that of the body
            told = (length + script.signed()) % (1 << 32)
            content = b"\x93\x01" + msgpack.packb(script.signed()) + b"\xc6" + told.to_bytes(4, "big") + large
        case 6:
            content = msgpack.packb([Kind.CALL, script.signed(), large, script.byte(), script.number()])
        case _:
            content = msgpack.packb([script.byte() % 8, script.signed(), large])
    if script.flag():
        changed = bytearray(content)
        for _ in range(1 + script.byte() % 4):
            place = script.number() % 64
            changed[place if script.flag() else -1 - place] = script.byte()
        content = bytes(changed)
    return content


def fetch(reader: Reader, file: File, size: int) -> None:
    """Fetch one frame, and compare it with what the decoder says."""
    try:
        expected: Frame | None = wire.Decoder().decode_bulk(file.content[:size]) if len(file.content) >= size else None
    except ProtocolViolation:
        expected = None
    try:
        frame: Frame | None = reader.fetch(file.descriptor, size)
    except ProtocolViolation:
        frame = None
    assert msgpack.packb(frame) == msgpack.packb(expected)
    assert frame is None or wire.check(frame) is frame
