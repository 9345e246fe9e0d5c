"""The records of one machine in the journal: blocks of memory, each filled with chunks.

A chunk is a head (its bytes, how many records, the number of the first, the generation) and the records, packed as one
array; their numbers follow each other. Chunks of different machines never overlap in number.
"""

import mmap
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import attrs
import msgpack

from retinue.cp.records import Record

# Bytes of one block, the unit in which records are let go of: some thousand records.
BLOCK: Final = 128 * 1024

HEAD: Final = struct.Struct("@IIQQ")

# No record has such a number.
ENDLESS: Final = 2**63


class Chunk(NamedTuple):
    """Where a chunk is in its block, and what its head says."""

    place: int
    length: int
    records: int
    first: int
    generation: int


class Packed(NamedTuple):
    """A chunk as it lies there: ``blob`` is a msgpack array of the bodies of its records."""

    machine: str
    generation: int
    first: int
    records: int
    blob: bytes

    @property
    def last(self) -> int:
        """The number of its last record."""
        return self.first + self.records - 1


@attrs.define(eq=False)
class Block:
    """BLOCK bytes of one machine's records: its number in the journal, and what is in it."""

    index: int
    order: int = 0
    used: int = 0
    first: int = 0
    last: int = 0
    count: int = 0
    gone: bool = False
    """What has not been stored of it waits on the disk, or was counted as lost."""


@attrs.define(eq=False)
class Tape:
    """One machine's blocks, oldest first. ``base`` is where the first block of the journal begins in its memory."""

    name: str
    index: int
    memory: mmap.mmap
    base: int
    blocks: deque[Block] = attrs.field(factory=deque)
    lost: int = 0
    """Records that were let go of before they were stored, and of which no record says so yet."""
    lost_spill: int = 0
    """The same of those that had come to the disk, or should have."""
    over: int = 0
    """The same of those that were more than the machine's rate allows."""
    dropping: int = 0
    """The first number of the file on the disk that was dropped last."""
    room: int = BLOCK
    """Bytes of a block that are used."""
    _hint: tuple[int, int, int] = (0, 0, 0)

    def write(self, block: Block, blob: bytes, count: int, first: int, generation: int) -> None:
        """Put a chunk behind the end of a block, and count it in there; nobody reads it until it is committed."""
        at = self.base + block.index * BLOCK + block.used
        HEAD.pack_into(self.memory, at, len(blob), count, first, generation)
        self.memory[at + HEAD.size : at + HEAD.size + len(blob)] = blob
        block.used += size_of(len(blob))
        block.last = first + count - 1
        block.count += count

    def read(self, block: Block) -> bytes:
        """All chunks of a block."""
        at = self.base + block.index * BLOCK
        return self.memory[at : at + block.used]

    def waiting(self, block: Block, after: int) -> int:
        """How many records with higher numbers wait in one block."""
        if block.gone:
            return 0
        if block.first > after:
            return block.count
        chunks = self._chunks(block, after) if block.last > after else ()
        return sum(min(chunk.records, chunk.first + chunk.records - 1 - after) for chunk in chunks)

    def newest(self, after: int, before: int) -> Iterator[Record]:
        """Those with numbers between the two, the newest first."""
        for block in [*reversed(self.blocks)]:
            if block.last <= after:
                return
            chunks = self._chunks(block, after) if block.first < before else ()
            for chunk in reversed([*chunks]):
                records = self._records(block, chunk) if chunk.first < before else ()
                for record in reversed(records):
                    if record["seq"] <= after:
                        return
                    if record["seq"] < before:
                        yield record

    def oldest(self, after: int) -> Iterator[tuple[int, int, list[Record]]]:
        """Chunks with higher numbers among theirs, the oldest first: first number, bytes, records."""
        for block, chunk in self._after(after):
            yield chunk.first, chunk.length, self._records(block, chunk)

    def packed(self, after: int) -> Iterator[Packed]:
        """The same chunks as they lie here, as far as they wait here."""
        for block, chunk in self._after(after, waiting=True):
            yield Packed(self.name, chunk.generation, chunk.first, chunk.records, self._blob(block, chunk))

    def _after(self, after: int, *, waiting: bool = False) -> Iterator[tuple[Block, Chunk]]:
        for block in [*self.blocks]:
            if block.last > after and not (waiting and block.gone):
                for chunk in self._chunks(block, after, self._start(block, after)):
                    if block.order > self._hint[1] or (block.order == self._hint[1] and after > self._hint[0]):
                        self._hint = after, block.order, chunk.place
                    yield block, chunk

    def _start(self, block: Block, after: int) -> int:
        # Who asks for the oldest again and again asks for higher numbers each time: what was skipped need not be again.
        below, order, place = self._hint
        return place if order == block.order and after >= below else 0

    def _chunks(self, block: Block, after: int, place: int = 0) -> Iterator[Chunk]:
        start = self.base + block.index * BLOCK
        while place < block.used:
            length, count, first, generation = HEAD.unpack_from(self.memory, start + place)
            if first + count - 1 > after:
                yield Chunk(place, length, count, first, generation)
            place += size_of(length)

    def _records(self, block: Block, chunk: Chunk) -> list[Record]:
        bodies = msgpack.unpackb(self._blob(block, chunk), strict_map_key=False)
        return [record_of(seq, self.name, chunk.generation, body) for seq, body in enumerate(bodies, chunk.first)]

    def _blob(self, block: Block, chunk: Chunk) -> bytes:
        at = self.base + block.index * BLOCK + chunk.place + HEAD.size
        return self.memory[at : at + chunk.length]


def size_of(length: int) -> int:
    """The bytes that a chunk of so many takes in its block."""
    return (HEAD.size + length + 7) & ~7


def record_of(seq: int, machine: str, generation: int, body: list[Any]) -> Record:
    """The record that was committed as this body: ``[time, severity, logger, message, fields]``."""
    time, severity, logger, message, fields = body
    return {
        "seq": seq,
        "time": time,
        "machine": machine,
        "generation": generation,
        "severity": severity,
        "logger": logger,
        "message": message,
        "fields": fields,
    }


def records_of(chunks: Iterable[Packed]) -> list[Record]:
    """The records of chunks."""
    found = []
    for machine, generation, first, _, blob in chunks:
        bodies = msgpack.unpackb(blob, strict_map_key=False)
        found += [record_of(seq, machine, generation, body) for seq, body in enumerate(bodies, first)]
    return found


def pieces_of(packer: msgpack.Packer, bodies: list[list[Any]]) -> list[tuple[int, bytes]]:
    """Bodies packed in pieces that fit a block each: how many records, and their bytes."""
    try:
        blob = packer.pack(bodies)
    except (TypeError, ValueError, OverflowError):
        for body in bodies:
            body[4] = _plain(packer, body[4])
        blob = packer.pack(bodies)
    if len(blob) <= BLOCK - HEAD.size:
        return [(len(bodies), blob)]
    if len(bodies) > 1:
        middle = len(bodies) // 2
        return pieces_of(packer, bodies[:middle]) + pieces_of(packer, bodies[middle:])
    (body,) = bodies
    body[4] = {"cut": f"{len(body[3]) - BLOCK // 8} characters of it, or its fields"}
    body[3] = body[3][: BLOCK // 8]
    return [(1, packer.pack(bodies))]


def _plain(packer: msgpack.Packer, fields: dict[Any, Any]) -> dict[Any, Any]:
    """Fields of a record of our own as msgpack can say them."""
    try:
        packer.pack(fields)
        return fields
    except (TypeError, ValueError, OverflowError):
        return {ascii(name).strip("'"): ascii(value) for name, value in fields.items()}
