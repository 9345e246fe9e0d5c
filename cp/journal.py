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

**Room.** Each machine writes blocks of its own (:mod:`retinue.cp.room`). What waits of them to be stored is bounded;
more goes to the disk, or is counted in the same commit (:attr:`Journal.losses`).

Only one process may use a journal: whose it was is dead and reaped when it is adopted.
"""

import fcntl
import heapq
import mmap
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgpack

from retinue.cp import layout
from retinue.cp.intake import Intake, Packet
from retinue.cp.losses import Cause
from retinue.cp.records import Machines, Record, names_of
from retinue.cp.room import Room
from retinue.cp.source import Source
from retinue.cp.tape import BLOCK, ENDLESS, Block, Packed, Tape, pieces_of, size_of

# Bytes of all blocks together, unless told otherwise: what waits for the syslog machine while it is away. Memory is
# taken when it is written.
ROOM: Final = 64 * 1024 * 1024
# The least there may be: a commit of the largest packet, escaped and hidden, needs half of it.
LEAST_ROOM: Final = 64 * BLOCK
# Control programs that may die while they read one packet that their predecessor has left: it may be what kills them.
# Of three in a row the nucleus would end the system.
ATTEMPTS: Final = 2
# Of what records are lost in here, and where they are counted.
_CAUSES: Final = {"buffer": "lost", "spill": "lost_spill", "rate": "over", "end": "lost"}


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
        """Records up to this number are just being stored, or may be stored: nobody knows."""
        self._tapes: dict[str, Tape] = {}
        self._sources: dict[tuple[str, int], Source] = {}
        self.room = Room(self, self._tapes, map(Block, range(blocks)))
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
        self._apply(state, self._memory[place : place + state[-1] * layout.CHANGE_ROW.size], self._losses_in_force())
        self.last, self.stored, keeping, self._batch, self._done = state[:5]
        self.keeping, self.offered = bool(keeping), self.stored
        names = [
            (name[:length].decode("utf-8", "replace"), lost, *losses)
            for length, lost, name, *losses in layout.MACHINE_ROW.iter_unpack(
                self._memory[layout.MACHINES_AT : layout.BLOCKS_AT]
            )
        ]
        self.room.free.clear()
        found = []
        table = self._memory[layout.BLOCKS_AT : layout.BLOCKS_AT + blocks * layout.BLOCK_ROW.size]
        for index, (machine, *rest) in enumerate(layout.BLOCK_ROW.iter_unpack(table)):
            if machine:
                gone, of = bool(machine & layout.GONE), (machine & ~layout.GONE) - 1
                block = Block(index, *rest)
                block.gone = gone
                found.append((names[of][0], of, block))
            else:
                self.room.free.append(Block(index))
        for name, index, block in sorted(found, key=lambda each: each[2].order):
            tape = self._tape_at(name, index)
            tape.blocks.append(block)
            self._order = block.order
            self.unkept += tape.waiting(block, self.stored)
        for index, (name, *losses) in enumerate(names):
            if any(losses):
                tape = self._tape_at(name, index)
                tape.lost, tape.lost_spill, tape.over, tape.dropping = losses
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
            self.room.measure(self._tapes[name])
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
        told: tuple[Cause, int] | None = None,
    ) -> int:
        """Commit records, each ``[time, severity, logger, message, fields]``; returns the number of the first one.

        :param source: whose packets they are from; its number and line are committed as well.
        :param done: how many packets of the batch have become records with this.
        :param ends: forget the source: its descriptor was read to the end.
        :param told: one of the records says that so many of this machine are lost, of this cause.
        """
        tape = self.tape(machine)
        first = self.last + 1
        blocks = self._lay(tape, generation, pieces_of(self._packer, bodies)) if bodies else []
        self.last += len(bodies)
        self.unkept += len(bodies) if blocks else 0
        if told:
            cause, count = told  # more may have been lost since that was counted, even for the room of this record
            setattr(tape, _CAUSES[cause], max(0, getattr(tape, _CAUSES[cause]) - count))
        if source is not None:
            self._done += done
            tape.over += source.over
            source.over = 0
            if source.line != source.saved:
                self._save_line(source)
        self.commit(tape, blocks, source, ends=ends)
        if ends and source is not None:
            del self._sources[source.machine, source.generation]
        return first

    def _lay(self, tape: Tape, generation: int, pieces: Sequence[tuple[int, bytes]]) -> list[Block]:
        """Write chunks behind the end of the machine's blocks; returns the blocks that have any of them.

        None has: there is no room, and they are counted as lost.
        """
        if not self.room.make(tape, lambda: self._new_blocks(tape, pieces)):
            self.room.refuse(tape, pieces)
            return []
        first = self.last + 1
        touched: list[Block] = []
        for count, blob in pieces:
            block = tape.blocks[-1] if tape.blocks else None
            if block is None or block.gone or block.used + size_of(len(blob)) > tape.room:
                block = self.room.take()
                self._order += 1
                block.order, block.first, block.used, block.count = self._order, first, 0, 0
                tape.blocks.append(block)
            tape.write(block, blob, count, first, generation)
            first += count
            if not touched or touched[-1] is not block:
                touched.append(block)
        return touched

    def _new_blocks(self, tape: Tape, pieces: Sequence[tuple[int, bytes]]) -> int:
        used = tape.blocks[-1].used if tape.blocks and not tape.blocks[-1].gone else BLOCK
        new = 0
        for _, blob in pieces:
            if used + size_of(len(blob)) > tape.room:
                used = 0
                new += 1
            used += size_of(len(blob))
        return new

    def _save_line(self, source: Source) -> None:
        line = source.line.encode()
        which = ~source.place & 1
        start = self._line_at(source, which)
        self._memory[start : start + len(line)] = line
        source.place, source.saved = len(line) << 1 | which, source.line

    def _line_at(self, source: Source, which: int) -> int:
        return self._lines_at + (source.index * 2 + which) * layout.LINE

    def commit(
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
                    each.index,
                    each.count and (machine | layout.GONE if each.gone else machine),
                    *(each.order, each.used, each.first, each.last, each.count),
                )
                for each in blocks
            ]
        )
        self._force += 1
        place = layout.STATES_AT + (self._force & 1) * layout.STATE_ROOM
        layout.STATE_ROW.pack_into(self._memory, place, *head)
        losses = (0, 0, 0) if tape is None else (tape.lost_spill, tape.over, tape.dropping)
        layout.LOSS_ROW.pack_into(self._memory, self._losses_at, self._force, *losses)
        place += layout.STATE_ROW.size
        self._memory[place : place + len(changes)] = changes
        self._words[layout.WORD_FORCE] = self._force
        self._apply(head, changes, losses)

    @property
    def _losses_at(self) -> int:
        return layout.STATES_AT + ((self._force & 1) + 1) * layout.STATE_ROOM - layout.LOSS_ROW.size

    def _losses_in_force(self) -> Sequence[int] | None:
        force, *losses = layout.LOSS_ROW.unpack_from(self._memory, self._losses_at)
        return losses if force == self._force else None

    def _apply(self, state: tuple[int, ...], changes: bytes, losses: Sequence[int] | None) -> None:
        """Copy what a state in force changes to the tables; twice is as good as once."""
        of, *row, machine, lost, _ = state[5:]
        if of:
            layout.SOURCE_ROW.pack_into(self._memory, layout.SOURCES_AT + (of - 1) * layout.SOURCE_ROW.size, *row)
        if machine:
            at = layout.MACHINES_AT + (machine - 1) * layout.MACHINE_ROW.size + 8
            struct.pack_into("@Q", self._memory, at, lost)
            if losses is not None:
                struct.pack_into("@3Q", self._memory, at + 8 + layout.NAME, *losses)
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

    @property
    def machines(self) -> list[str]:
        """Those of whom there is a record here."""
        return [tape.name for tape in self._tapes.values() if tape.blocks]

    def tape(self, machine: str) -> Tape:
        """What there is of a machine."""
        tape = self._tapes.get(machine)
        if tape is None:
            if len(self._tapes) == layout.MACHINES:
                self._forget_machines()
            taken = {each.index for each in self._tapes.values()}
            index = next(index for index in range(layout.MACHINES) if index not in taken)
            name = machine.encode()[: layout.NAME]
            layout.MACHINE_ROW.pack_into(
                self._memory, layout.MACHINES_AT + index * layout.MACHINE_ROW.size, len(name), 0, name, 0, 0, 0
            )
            tape = self._tape_at(machine, index)
        return tape

    def _forget_machines(self) -> None:
        """Free the names of those of whom there is nothing; never all are in use: there are fewer blocks."""
        read = {source.machine for source in self._sources.values()}
        for tape in [*self._tapes.values()]:
            lost = tape.lost or tape.lost_spill or tape.over
            if not tape.blocks and not lost and tape.name not in read:
                del self._tapes[tape.name]

    def give_back(self, block: Block) -> None:
        """Let the kernel have the memory of a block in which nothing is any more."""
        advice = mmap.MADV_REMOVE if self._descriptor is not None else mmap.MADV_DONTNEED
        self._memory.madvise(advice, self._blocks_at + block.index * BLOCK, BLOCK)

    # -- reading ---------------------------------------------------------------------------------------------------

    def newest(self, machine: Machines, *, after: int = 0, before: int = ENDLESS) -> Iterator[Record]:
        """Records with numbers between the two, the newest first. Take them before the next commit."""
        return heapq.merge(*(tape.newest(after, before) for tape in self._of(machine)), key=lambda each: -each["seq"])

    def oldest(self, machine: Machines, *, after: int) -> Iterator[tuple[int, Record]]:
        """Those with higher numbers, the oldest first, each with about its bytes."""
        chunks = heapq.merge(*(tape.oldest(after) for tape in self._of(machine)), key=lambda chunk: chunk[0])
        for _, size, records in chunks:
            for each in records:
                if each["seq"] > after:
                    yield size // len(records), each

    def packed(self, *, after: int) -> Iterator[Packed]:
        """Chunks of all machines in which such records wait, the oldest first, as they lie here and on the disk."""
        waiting = [tape.packed(after) for tape in self._tapes.values()]
        if self.room.spill:
            waiting.append(self.room.spill.packed(after))
        return heapq.merge(*waiting, key=lambda chunk: chunk.first)

    def _of(self, machine: Machines) -> list[Tape]:
        if machine is None:
            return [*self._tapes.values()]
        return [self._tapes[name] for name in names_of(machine) if name in self._tapes]

    # -- storing ---------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """From here on somebody stores the records, all that are here and were not."""
        if not self.keeping:
            self.keeping = True
            self.commit()

    def store(self, last: int, count: int) -> None:
        """The oldest that were not are stored, up to this number; ``count`` says how many these were."""
        self.room.count_broken()
        self.stored = last
        self.offered = max(self.offered, last)
        self.unkept = max(0, self.unkept - count)
        self.commit()
        self.room.stored()

    def recount(self) -> None:
        """Find out anew how many records wait: files on the disk may be gone."""
        waiting = sum(min(chunk.records, chunk.last - self.stored) for chunk in self.packed(after=self.stored))
        self.room.count_broken()
        self.unkept = waiting + (self.room.spill.left(self.stored) if self.room.spill else 0)

    @property
    def losses(self) -> list[tuple[str, Cause, int]]:
        """How many records of a machine were let go of before they were stored, by cause, and no record says so yet."""
        found: list[tuple[str, Cause, int]] = []
        for tape in self._tapes.values():
            if tape.lost:
                found.append((tape.name, "buffer", tape.lost))
            if tape.lost_spill:
                found.append((tape.name, "spill", tape.lost_spill))
        return found
