"""The records of one machine in the journal: blocks of memory, each filled with chunks.

A chunk is a head (its bytes, how many records, the number of the first, the generation) and the records, packed as one
array; their numbers follow each other. Chunks of different machines never overlap in number.
"""

import mmap
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import attrs
import msgpack

from retinue.cp.records import Record

# Bytes of one block, the unit in which records are let go of: some thousand records.
BLOCK: Final = 128 * 1024

HEAD: Final = struct.Struct("@IIQQ")


class Chunk(NamedTuple):
    """Where a chunk is in its block, and what its head says."""

    place: int
    length: int
    records: int
    first: int
    generation: int


@attrs.define(eq=False)
class Block:
    """BLOCK bytes of one machine's records: its number in the journal, and what is in it."""

    index: int
    order: int = 0
    used: int = 0
    first: int = 0
    last: int = 0
    count: int = 0


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
    _hint: tuple[int, int, int] = (0, 0, 0)

    def write(self, block: Block, blob: bytes, count: int, first: int, generation: int) -> None:
        """Put a chunk behind the end of a block, and count it in there; nobody reads it until it is committed."""
        at = self.base + block.index * BLOCK + block.used
        HEAD.pack_into(self.memory, at, len(blob), count, first, generation)
        self.memory[at + HEAD.size : at + HEAD.size + len(blob)] = blob
        block.used += size_of(len(blob))
        block.last = first + count - 1
        block.count += count

    def waiting(self, block: Block, after: int) -> int:
        """How many records with higher numbers are in one block."""
        if block.first > after:
            return block.count
        chunks = self._chunks(block, after) if block.last > after else ()
        return sum(min(chunk.records, chunk.first + chunk.records - 1 - after) for chunk in chunks)

    def newest(self, after: int) -> Iterator[Record]:
        """Those with higher numbers, the newest first."""
        for block in [*reversed(self.blocks)]:
            if block.last <= after:
                return
            for chunk in reversed([*self._chunks(block, after)]):
                for record in reversed(self._records(block, chunk)):
                    if record["seq"] <= after:
                        return
                    yield record

    def oldest(self, after: int) -> Iterator[tuple[int, int, list[Record]]]:
        """Chunks with higher numbers among theirs, the oldest first: first number, bytes, records."""
        for block in [*self.blocks]:
            if block.last > after:
                for chunk in self._chunks(block, after, self._start(block, after)):
                    if block.order > self._hint[1] or (block.order == self._hint[1] and after > self._hint[0]):
                        self._hint = after, block.order, chunk.place
                    yield chunk.first, chunk.length, self._records(block, chunk)

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
        at = self.base + block.index * BLOCK + chunk.place + HEAD.size
        bodies = msgpack.unpackb(self.memory[at : at + chunk.length], strict_map_key=False)
        return [record_of(seq, self.name, chunk.generation, body) for seq, body in enumerate(bodies, chunk.first)]


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
