"""The journal: the records of ``*LOG`` in shared memory, which outlives the control program.

The nucleus holds its descriptor. A control program that is killed at any instruction leaves to its successor: the run,
the last sequence number, every record that the syslog machine has not stored, recent ones of each machine as far as
there is room, how far each machine's descriptor was read, and the packets that were taken out of it last.

**Commit.** What changes is written where nobody looks: records behind the end of their block, numbers into that one of
two *states* which is not in force. Then one word (a single store) says which state is in force, and only then is what
it says copied to the tables. Who adopts the journal copies it once more, so a torn write is never read. Records become
known to others after their commit, so that none is known that could get another number.

**Intake.** Packets are received into the journal itself (:mod:`retinue.cp.intake`). The state in force says how many
packets of which batch have become records; the others are in :attr:`Journal.left` and become records then.

**Room.** Each machine writes blocks of its own. It keeps KEEP of them; more only of what waits to be stored. When no
block is free, the machine that has most loses its oldest one: a flood drives out nobody else's records. What had not
been stored is counted in the same commit (:attr:`Journal.lost`).

Only one process may use a journal: whose it was is dead and reaped when it is adopted.
"""

import fcntl
import heapq
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgpack

from retinue.cp import layout
from retinue.cp.intake import Intake, Packet
from retinue.cp.records import Record
from retinue.cp.source import Source
from retinue.cp.tape import BLOCK, HEAD, Block, Tape, size_of

# Bytes of all blocks together, unless told otherwise: what waits for the syslog machine while it is away. Memory is
# taken when it is written.
ROOM: Final = 64 * 1024 * 1024
# The least there may be: a commit of the largest packet, escaped and hidden, needs half of it.
LEAST_ROOM: Final = 64 * BLOCK
# Blocks of a machine that are kept when all in them is stored: enough to explain a bad minute of it.
KEEP: Final = 16
# Blocks let go of that keep their memory, for the next ones.
WARM: Final = 16
# Control programs that may die while they read one packet that their predecessor has left: it may be what kills them.
# Of three in a row the nucleus would end the system.
ATTEMPTS: Final = 2


class JournalUnusable(ValueError):
    """What was kept is no journal, or one of a layout that this program does not know."""


class Journal:
    """The records of one run of a system. Made by :meth:`create`, :meth:`adopt` or :meth:`private`."""

    def __init__(self, memory: mmap.mmap, descriptor: int | None, blocks: int) -> None:
        self._memory = memory
        self._descriptor = descriptor
        self._words = memoryview(memory)[: mmap.PAGESIZE].cast("Q")
        self._packer = msgpack.Packer()
        self._intake_at, self._lines_at, self._blocks_at, _ = layout.places(blocks)
        self._intake = Intake(memory, self._intake_at, lasting=descriptor is not None)
        self.run = memory[layout.RUN : layout.RUN + 16].hex()
        """Tells the records of this run of the system from those of others: sequence numbers begin anew."""
        self.last = 0
        """The sequence number of the newest record; 0 before the first."""
        self.stored = 0
        """Every record up to this number is stored, or was counted as lost."""
        self.keeping = False
        """Somebody stores the records: those that wait are not let go of while there is room."""
        self.unkept = 0
        """How many records wait to be stored."""
        self.offered = 0
        """Records up to this number are just being stored."""
        self._tapes: dict[str, Tape] = {}
        self._sources: dict[tuple[str, int], Source] = {}
        self._free = deque(Block(index) for index in range(blocks))
        self._warm: list[Block] = []
        self._force = self._batch = self._done = self._order = 0
        self._left: tuple[Source, list[tuple[bytes, bool]]] | None = None

    # -- making ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, room: int = ROOM) -> "Journal":
        """A new one, which the nucleus can keep by its :meth:`fileno`. OSError when there is no memory for it."""
        blocks = max(room, LEAST_ROOM) // BLOCK
        size = layout.places(blocks)[-1]
        descriptor = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            memory = mmap.mmap(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        layout.begin(memory, blocks)
        return cls(memory, descriptor, blocks)

    @classmethod
    def private(cls, room: int = ROOM) -> "Journal":
        """One that ends with this process."""
        blocks = max(room, LEAST_ROOM) // BLOCK
        # MAP_NORESERVE (asm-generic/mman.h), which this Python does not name: most of it will never be written.
        memory = mmap.mmap(-1, layout.places(blocks)[-1], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
        layout.begin(memory, blocks)
        return cls(memory, None, blocks)

    @classmethod
    def adopt(cls, descriptor: int) -> "Journal":
        """The one of a dead control program; takes the descriptor over. JournalUnusable, also then."""
        try:
            size = os.fstat(descriptor).st_size
            if size < mmap.PAGESIZE:
                raise JournalUnusable("what was kept as the journal is none")
            memory = mmap.mmap(descriptor, size)
            magic, blocks = struct.unpack_from("@2Q", memory)
            if magic != layout.MAGIC or size != layout.places(blocks)[-1]:
                raise JournalUnusable("the journal that was kept has a layout that this program does not know")
        except BaseException:
            os.close(descriptor)
            raise
        adopted = cls(memory, descriptor, blocks)
        adopted._restore(blocks)
        return adopted

    def fileno(self) -> int:
        """Its descriptor, for the nucleus. A :meth:`private` one has none (ValueError)."""
        if self._descriptor is None:
            raise ValueError("this journal ends with its process")
        return self._descriptor

    def close(self) -> None:
        """Let go of the memory; what is committed stays in the descriptors of others."""
        self._intake.release()
        self._words.release()
        self._memory.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    # -- adopting --------------------------------------------------------------------------------------------------

    def _restore(self, blocks: int) -> None:
        """What the state in force and the tables say."""
        self._force = self._words[layout.WORD_FORCE]
        place = layout.STATES_AT + (self._force & 1) * layout.STATE_ROOM
        state = layout.STATE_ROW.unpack_from(self._memory, place)
        place += layout.STATE_ROW.size
        self._apply(state, self._memory[place : place + state[-1] * layout.CHANGE_ROW.size])
        self.last, self.stored, keeping, self._batch, self._done = state[:5]
        self.keeping = bool(keeping)
        names = [
            (name[:length].decode("utf-8", "replace"), lost)
            for length, lost, name in layout.MACHINE_ROW.iter_unpack(
                self._memory[layout.MACHINES_AT : layout.BLOCKS_AT]
            )
        ]
        self._free.clear()
        found = []
        table = self._memory[layout.BLOCKS_AT : layout.BLOCKS_AT + blocks * layout.BLOCK_ROW.size]
        for index, (machine, *rest) in enumerate(layout.BLOCK_ROW.iter_unpack(table)):
            if machine:
                found.append((names[machine - 1][0], machine - 1, Block(index, *rest)))
            else:
                self._free.append(Block(index))
        for name, index, block in sorted(found, key=lambda each: each[2].order):
            tape = self._tape_at(name, index)
            tape.blocks.append(block)
            self._order = block.order
            self.unkept += tape.waiting(block, self.stored)
        for index, (name, lost) in enumerate(names):
            if lost:
                self._tape_at(name, index).lost = lost
        for index, row in enumerate(
            layout.SOURCE_ROW.iter_unpack(self._memory[layout.SOURCES_AT : layout.MACHINES_AT])
        ):
            machine, generation, number, where = row
            if machine:
                self._tape_at(names[machine - 1][0], machine - 1)
                source = Source(index, names[machine - 1][0], generation, number, place=where)
                start = self._line_at(source, where & 1)
                source.line = source.saved = self._memory[start : start + (where >> 1)].decode()
                self._sources[source.machine, generation] = source
        self._restore_intake()

    def _tape_at(self, name: str, index: int) -> Tape:
        if name not in self._tapes:
            self._tapes[name] = Tape(name, index, self._memory, self._blocks_at)
        return self._tapes[name]

    def _restore_intake(self) -> None:
        batch, of = divmod(self._words[layout.WORD_INTAKE], layout.SOURCES + 1)
        done = self._done if batch == self._batch else 0
        self._batch, self._done = batch, done
        left = self._intake.left()[done:]
        source = next((source for source in self._sources.values() if source.index == of - 1), None)
        if left and source is not None:
            self._left = source, left

    @property
    def left(self) -> tuple[Source, list[tuple[bytes, bool]]] | None:
        """Packets that a predecessor had received and not committed, and of whom.

        They go into commits of this source; until then nothing may be received.
        """
        return self._left

    def try_next(self) -> bool:
        """Note that the next packet left is being read. False when who noted that has died of it, several times."""
        # One word, so that it is never torn: which packet, and how often.
        packet, tries = divmod(self._words[layout.WORD_ATTEMPT], 256)
        now = self._batch * 256 + self._done
        tries = tries if packet == now else 0
        self._words[layout.WORD_ATTEMPT] = now * 256 + min(tries + 1, 255)
        return tries < ATTEMPTS

    # -- writing ---------------------------------------------------------------------------------------------------

    def receive(self, source: Source, sock: socket.socket) -> list[Packet] | None:
        """Packets of a machine, which are good until as many were committed; None when there is none."""
        self._left = None
        self._intake.arm()
        self._batch += 1
        self._done = 0
        self._words[layout.WORD_INTAKE] = self._batch * (layout.SOURCES + 1) + source.index + 1
        return self._intake.receive(sock, source.slots)

    def append(
        self,
        machine: str,
        generation: int,
        bodies: list[list[Any]],
        *,
        source: Source | None = None,
        done: int = 0,
        ends: bool = False,
        told: bool = False,
    ) -> int:
        """Commit records, each ``[time, severity, logger, message, fields]``; returns the number of the first one.

        :param source: whose packets they are from; its number and line are committed as well.
        :param done: how many packets of the batch have become records with this.
        :param ends: forget the source: its descriptor was read to the end.
        :param told: one of the records says how many of this machine are lost.
        """
        tape = self._tape(machine)
        first = self.last + 1
        blocks = self._lay(tape, generation, self._pack(bodies)) if bodies else []
        self.last += len(bodies)
        self.unkept += len(bodies)
        if told:
            tape.lost = 0
        if source is not None:
            self._done += done
            if source.line != source.saved:
                self._save_line(source)
        self._commit(tape, blocks, source, ends=ends)
        if ends and source is not None:
            del self._sources[source.machine, source.generation]
        return first

    def _pack(self, bodies: list[list[Any]]) -> list[tuple[int, bytes]]:
        """Pieces that fit a block each: how many records, and their bytes."""
        try:
            blob = self._packer.pack(bodies)
        except (TypeError, ValueError, OverflowError):
            for body in bodies:
                body[4] = self._plain(body[4])
            blob = self._packer.pack(bodies)
        if len(blob) <= BLOCK - HEAD.size:
            return [(len(bodies), blob)]
        if len(bodies) > 1:
            middle = len(bodies) // 2
            return self._pack(bodies[:middle]) + self._pack(bodies[middle:])
        (body,) = bodies
        body[4] = {"cut": f"{len(body[3]) - BLOCK // 8} characters of it, or its fields"}
        body[3] = body[3][: BLOCK // 8]
        return [(1, self._packer.pack(bodies))]

    def _plain(self, fields: dict[Any, Any]) -> dict[Any, Any]:
        """Fields of a record of our own as msgpack can say them."""
        try:
            self._packer.pack(fields)
            return fields
        except (TypeError, ValueError, OverflowError):
            return {ascii(name).strip("'"): ascii(value) for name, value in fields.items()}

    def _lay(self, tape: Tape, generation: int, pieces: Sequence[tuple[int, bytes]]) -> list[Block]:
        """Write chunks behind the end of the machine's blocks; returns the blocks that have any of them."""
        while len(self._free) + len(self._warm) < self._new_blocks(tape, pieces):
            self._drive_out()
        first = self.last + 1
        touched: list[Block] = []
        for count, blob in pieces:
            block = tape.blocks[-1] if tape.blocks else None
            if block is None or block.used + size_of(len(blob)) > BLOCK:
                block = self._warm.pop() if self._warm else self._free.popleft()
                self._order += 1
                block.order, block.first, block.used, block.count = self._order, first, 0, 0
                tape.blocks.append(block)
            tape.write(block, blob, count, first, generation)
            first += count
            if not touched or touched[-1] is not block:
                touched.append(block)
        return touched

    def _new_blocks(self, tape: Tape, pieces: Sequence[tuple[int, bytes]]) -> int:
        used = tape.blocks[-1].used if tape.blocks else BLOCK
        new = 0
        for _, blob in pieces:
            if used + size_of(len(blob)) > BLOCK:
                used = 0
                new += 1
            used += size_of(len(blob))
        if new:
            self._let_go(tape, KEEP - new)
        return new

    def _save_line(self, source: Source) -> None:
        line = source.line.encode()
        which = ~source.place & 1
        start = self._line_at(source, which)
        self._memory[start : start + len(line)] = line
        source.place, source.saved = len(line) << 1 | which, source.line

    def _line_at(self, source: Source, which: int) -> int:
        return self._lines_at + (source.index * 2 + which) * layout.LINE

    def _commit(
        self,
        tape: Tape | None = None,
        blocks: Sequence[Block] = (),
        source: Source | None = None,
        *,
        ends: bool = False,
    ) -> None:
        """Bring into force what this object and these say now, whole."""
        machine = tape.index + 1 if tape is not None else 0
        row = (0, 0, 0, 0, 0)
        if source is not None:
            row = source.index + 1, 0 if ends else machine, source.generation, source.number, source.place
        lost = tape.lost if tape is not None else 0
        head = (self.last, self.stored, self.keeping, self._batch, self._done, *row, machine, lost, len(blocks))
        changes = b"".join(
            [
                layout.CHANGE_ROW.pack(
                    each.index, each.count and machine, each.order, each.used, each.first, each.last, each.count
                )
                for each in blocks
            ]
        )
        self._force += 1
        place = layout.STATES_AT + (self._force & 1) * layout.STATE_ROOM
        layout.STATE_ROW.pack_into(self._memory, place, *head)
        place += layout.STATE_ROW.size
        self._memory[place : place + len(changes)] = changes
        self._words[layout.WORD_FORCE] = self._force
        self._apply(head, changes)

    def _apply(self, state: tuple[int, ...], changes: bytes) -> None:
        """Copy what a state in force changes to the tables; twice is as good as once."""
        of, *row, machine, lost, _ = state[5:]
        if of:
            layout.SOURCE_ROW.pack_into(self._memory, layout.SOURCES_AT + (of - 1) * layout.SOURCE_ROW.size, *row)
        if machine:
            struct.pack_into("@Q", self._memory, layout.MACHINES_AT + (machine - 1) * layout.MACHINE_ROW.size + 8, lost)
        for index, *columns in layout.CHANGE_ROW.iter_unpack(changes):
            layout.BLOCK_ROW.pack_into(self._memory, layout.BLOCKS_AT + index * layout.BLOCK_ROW.size, *columns)

    # -- machines and their descriptors ----------------------------------------------------------------------------

    def source(self, machine: str, generation: int) -> Source:
        """How far a machine's descriptor was read; of a new one: not at all. OSError when there are too many."""
        source = self._sources.get((machine, generation))
        if source is None:
            taken = {each.index for each in self._sources.values()}
            if len(taken) == layout.SOURCES:
                raise OSError(f"more than {layout.SOURCES} log descriptors are being read")
            index = next(index for index in range(layout.SOURCES) if index not in taken)
            source = self._sources[machine, generation] = Source(index, machine, generation)
            self.append(machine, generation, [], source=source)
        return source

    @property
    def sources(self) -> list[Source]:
        """Those that were not read to their end."""
        return [*self._sources.values()]

    def _tape(self, machine: str) -> Tape:
        tape = self._tapes.get(machine)
        if tape is None:
            if len(self._tapes) == layout.MACHINES:
                self._forget_machines()
            taken = {each.index for each in self._tapes.values()}
            index = next(index for index in range(layout.MACHINES) if index not in taken)
            name = machine.encode()[: layout.NAME]
            layout.MACHINE_ROW.pack_into(
                self._memory, layout.MACHINES_AT + index * layout.MACHINE_ROW.size, len(name), 0, name
            )
            tape = self._tape_at(machine, index)
        return tape

    def _forget_machines(self) -> None:
        """Free the names of those of whom there is nothing; never all are in use: there are fewer blocks."""
        read = {source.machine for source in self._sources.values()}
        for tape in [*self._tapes.values()]:
            if not tape.blocks and not tape.lost and tape.name not in read:
                del self._tapes[tape.name]

    # -- room ------------------------------------------------------------------------------------------------------

    def _let_go(self, tape: Tape, keep: int) -> None:
        """Free a machine's oldest blocks above so many, unless something in them waits to be stored."""
        while len(tape.blocks) > max(keep, 1) and not (self.keeping and tape.blocks[0].last > self.stored):
            self._free_block(tape, tape.blocks[0])

    def _drive_out(self) -> None:
        """Free the oldest block of the machine that has most; if possible none that is just being stored."""
        tapes = sorted((tape for tape in self._tapes.values() if tape.blocks), key=lambda tape: -len(tape.blocks))
        for tape in tapes:
            for block in tape.blocks:
                if block.first > self.offered or block.last <= self.stored:
                    self._free_block(tape, block)
                    return
        self._free_block(tapes[0], tapes[0].blocks[0])

    def _free_block(self, tape: Tape, block: Block) -> None:
        waiting = tape.waiting(block, self.stored)
        self.unkept -= waiting
        if self.keeping:
            tape.lost += waiting
        tape.blocks.remove(block)
        block.count = 0
        self._commit(tape, [block])
        if len(self._warm) < WARM:
            self._warm.append(block)
            return
        self._free.append(block)
        advice = mmap.MADV_REMOVE if self._descriptor is not None else mmap.MADV_DONTNEED
        self._memory.madvise(advice, self._blocks_at + block.index * BLOCK, BLOCK)

    # -- reading ---------------------------------------------------------------------------------------------------

    def newest(self, machine: str | None, *, after: int = 0) -> Iterator[Record]:
        """Records with higher numbers, of one machine or of all, the newest first. Take them before the next commit."""
        return heapq.merge(*(tape.newest(after) for tape in self._of(machine)), key=lambda each: -each["seq"])

    def oldest(self, machine: str | None, *, after: int) -> Iterator[tuple[int, Record]]:
        """The same, the oldest first, each with about its bytes."""
        chunks = heapq.merge(*(tape.oldest(after) for tape in self._of(machine)), key=lambda chunk: chunk[0])
        for _, size, records in chunks:
            for each in records:
                if each["seq"] > after:
                    yield size // len(records), each

    def _of(self, machine: str | None) -> list[Tape]:
        if machine is None:
            return [*self._tapes.values()]
        return [self._tapes[machine]] if machine in self._tapes else []

    # -- storing ---------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """From here on somebody stores the records, all that are here and were not."""
        if not self.keeping:
            self.keeping = True
            self._commit()

    def store(self, batch: Sequence[Record]) -> None:
        """These records, the oldest that were not, are stored."""
        self.stored = self.offered = batch[-1]["seq"]
        self.unkept = max(0, self.unkept - len(batch))
        self._commit()
        for tape in self._tapes.values():
            self._let_go(tape, KEEP)

    @property
    def lost(self) -> dict[str, int]:
        """Of each machine how many records were let go of before they were stored, and no record says so yet."""
        return {tape.name: tape.lost for tape in self._tapes.values() if tape.lost}
