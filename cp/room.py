"""Room in the journal: which blocks are free, and what becomes of records when there are too many.

Each machine keeps KEEP blocks; more only of what waits to be stored. What waits of one machine is bounded by its
policy (:mod:`retinue.cp.log_policy`): what is too much is *given up*, the oldest first: it goes to the disk
(:mod:`retinue.cp.spill`), or is counted as lost. Its block stays as long as there is room, for those who read the
newest records. When no block is free, the machine that has most loses its oldest one: a flood drives out nobody else's.
What is just being stored is never given up, for nobody knows yet whether it is lost: at worst its block goes to the
disk, and if that takes nothing, what is written now is lost instead (:meth:`Room.refuse`).

What is given up, and what is counted, comes into force with one commit. A file that is written before the commit is
found twice by who comes after a kill in between, and removed; one that is removed after it is named by the commit.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from retinue.cp.directory.model import LogPolicy
from retinue.cp.log_policy import LogPolicies
from retinue.cp.losses import MOST, tells, told_in
from retinue.cp.spill import Spill, SpillFile, chunks_of
from retinue.cp.tape import BLOCK, Block, Tape

if TYPE_CHECKING:
    from retinue.cp.journal import Journal

# Blocks of a machine that are kept when all in them is stored: enough to explain a bad minute of it.
KEEP: Final = 16
# Blocks let go of that keep their memory, for the next ones.
WARM: Final = 16
# Blocks that are left for others when machines wait for room: some commits of the largest packets.
LEFT: Final = 16


class Room:
    """The blocks of one journal. ``tapes`` are its machines."""

    def __init__(self, journal: "Journal", tapes: dict[str, Tape], blocks: Iterable[Block]) -> None:
        self._journal = journal
        self._tapes = tapes
        self.free = deque(blocks)
        self._warm: list[Block] = []
        self.policies = LogPolicies()
        self.spill: Spill | None = None
        """Where records go that have no room here; None: nowhere."""

    def declare(self, policies: LogPolicies) -> None:
        """From now on these are the policies."""
        self.policies = policies
        for tape in self._tapes.values():
            self.measure(tape)

    def measure(self, tape: Tape) -> None:
        """Let blocks of a machine be so small that two of them fit its buffer."""
        tape.room = min(BLOCK, self.policies.of(tape.name).buffer // 2)

    # -- taking ----------------------------------------------------------------------------------------------------

    def make(self, tape: Tape, needed: Callable[[], int]) -> bool:
        """Let there be as many free blocks for a machine as are ``needed``, within its bounds.

        That is asked again when its last block was given for it. False: there are not so many, for everything else is
        just being stored.
        """
        while True:
            last, new = tape.blocks[-1] if tape.blocks else None, needed()
            if new:
                self._bound(tape, new)
                self.let_go(tape, KEEP - new)
            while len(self.free) + len(self._warm) < new:
                if not self._drive_out():
                    return False
            if last is None or (tape.blocks and tape.blocks[-1] is last):
                return True

    def take(self) -> Block:
        """A free block, which was made before."""
        return self._warm.pop() if self._warm else self.free.popleft()

    def full(self, machine: str) -> bool:
        """Whether so much of a machine waits that its next block would be too many; or so little is free at all."""
        journal, tape = self._journal, self._tapes.get(machine)
        if tape is None or not journal.keeping:
            return False
        waiting = self._waiting(tape)
        if waiting and self._scarce():
            return True
        return sum(block.used for block in waiting) + tape.room > self.policies.of(machine).buffer

    def _scarce(self) -> bool:
        """Whether few blocks are free, or have only what is stored."""
        left = len(self.free) + len(self._warm)
        for tape in self._tapes.values():
            for block in tape.blocks:
                if left >= LEFT:
                    return False
                left += not self._waits(block)
        return left < LEFT

    def _waiting(self, tape: Tape) -> list[Block]:
        stored = self._journal.stored
        return [block for block in tape.blocks if block.last > stored and not block.gone]

    # -- giving up -------------------------------------------------------------------------------------------------

    def _bound(self, tape: Tape, new: int) -> None:
        policy = self.policies.of(tape.name)
        if not self._journal.keeping or policy.policy == "block":
            return
        waiting = self._waiting(tape)
        used = sum(block.used for block in waiting) + new * tape.room
        for block in waiting:
            # The last one may not be full yet.
            if used <= policy.buffer or block is tape.blocks[-1]:
                return
            if block.first > self._journal.offered:
                self._give_up(tape, block, policy)
                used -= block.used
            # What is just being stored is not lost: it stays here when the disk does not take it.
            elif policy.policy == "spill" and self._put(tape, block):
                self._bound_spill(tape, policy)
                used -= block.used

    def _give_up(self, tape: Tape, block: Block, policy: LogPolicy) -> None:
        journal = self._journal
        if block.gone or not (waiting := tape.waiting(block, journal.stored)):
            return
        if not journal.keeping:
            journal.unkept -= waiting  # nobody wants it
            return
        # Of one that waits for room nothing is ever dropped, whatever else there is.
        if policy.policy != "drop" and self.spill is not None:
            if self._put(tape, block):
                self._bound_spill(tape, policy)
                return
            full = True  # the disk, which the gap says
        else:
            full = False
        journal.unkept -= waiting
        # What was told in there is not known to anybody now.
        data = tape.read(block)
        chunks = chunks_of(tape.name, data) if tells(data) else ()
        lost = waiting + sum(told_in(chunk.blob, chunk.first, journal.stored) for chunk in chunks)
        if full:
            tape.lost_spill = min(tape.lost_spill + lost, MOST)
        else:
            tape.lost = min(tape.lost + lost, MOST)
        block.gone = True
        journal.commit(tape, [block])

    def refuse(self, tape: Tape, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Count what is about to be committed as lost: there is no room for it."""
        lost = sum(count + told_in(blob, 1, 0) for count, blob in pieces)
        if self.spill is not None and self.policies.of(tape.name).policy != "drop":
            tape.lost_spill = min(tape.lost_spill + lost, MOST)
        else:
            tape.lost = min(tape.lost + lost, MOST)

    def _put(self, tape: Tape, block: Block) -> bool:
        """Write a block to the disk; False when that does not take it."""
        if self.spill is None:
            return False
        try:
            self.spill.put(tape.name, block.first, block.last, block.count, tape.read(block))
        except OSError:
            return False
        block.gone = True
        self._journal.commit(tape, [block])
        return True

    def _bound_spill(self, tape: Tape, policy: LogPolicy) -> None:
        assert self.spill is not None
        if policy.policy == "block":
            return
        for file in self.spill.files(tape.name):
            if self.spill.size(tape.name) <= policy.spill:
                return
            if file.first > self._journal.offered and not self._drop(tape, file):
                return

    def _drop(self, tape: Tape, file: SpillFile) -> bool:
        """Remove a file that nobody has read, and count what was in it. False: the disk does not let go of it."""
        assert self.spill is not None
        before, lost = tape.lost_spill, file.records + self.spill.told(tape.name, file)
        tape.lost_spill, tape.dropping = min(before + lost, MOST), file.first
        self._journal.commit(tape, [])
        if not self.spill.try_remove(tape.name, file):
            tape.lost_spill, tape.dropping = before, 0
            self._journal.commit(tape, [])
            return False
        self._journal.unkept -= file.records
        return True

    def _lose(self, tape: Tape, file: SpillFile, waiting: int) -> None:
        """Remove a file that cannot be read, and count what was in it."""
        assert self.spill is not None
        self._journal.unkept -= waiting
        # Of what was told in there some may be stored when some of it is.
        told = self.spill.told(tape.name, file) if waiting == file.records else 0
        tape.lost_spill = min(tape.lost_spill + waiting + told, MOST)
        tape.dropping = file.first
        self._journal.commit(tape, [])
        self.spill.remove(tape.name, file)

    def count_broken(self) -> None:
        """Count what was in files that somebody has spoilt."""
        while self.spill is not None and self.spill.broken:
            machine, file, lost = self.spill.broken.pop()
            if file in self.spill.files(machine):
                self._lose(self._journal.tape(machine), file, lost)

    def give_up_all(self) -> dict[str, int]:
        """Nobody will store what waits in this run: it goes to the disk, as far as it would at all.

        Returns how many records of each machine do not, for no other reason; they are counted as those are of which
        more waited than may.
        """
        ended: dict[str, int] = {}
        for tape in [*self._tapes.values()]:
            policy = self.policies.of(tape.name)
            for block in self._waiting(tape):
                # What was being stored may be: who has it knows it when it comes again.
                if block.first <= self._journal.offered and self._put(tape, block):
                    continue
                before = tape.lost
                self._give_up(tape, block, policy)
                if tape.lost > before:
                    ended[tape.name] = ended.get(tape.name, 0) + tape.lost - before
        return ended

    def leave_all(self) -> dict[str, int]:
        """Put what waits now to the disk, however much is there: it tells what is lost.

        Returns how many records of each machine are lost of which nothing will tell, for the disk takes nothing.
        """
        untold: dict[str, int] = {}
        for tape in [*self._tapes.values()]:
            for block in self._waiting(tape):
                if not self._put(tape, block):
                    self._give_up(tape, block, self.policies.of(tape.name))
            if lost := tape.lost + tape.lost_spill + tape.over:
                untold[tape.name] = lost
        return untold

    # -- after somebody was killed -----------------------------------------------------------------------------------

    def adopt(self, spill: Spill) -> None:
        """Records go there; what there is already is brought in line with the journal."""
        journal = self._journal
        self.spill = spill
        spill.stored(journal.stored)
        for machine in spill.machines:
            tape = journal.tape(machine)
            here = {block.first for block in tape.blocks if not block.gone}
            for file in spill.files(machine):
                if file.first in here or file.first == tape.dropping:
                    spill.remove(machine, file)
                else:
                    journal.unkept += spill.waiting(machine, file, journal.stored)
        self.count_broken()

    # -- freeing ---------------------------------------------------------------------------------------------------

    def stored(self) -> None:
        """More is stored: let go of what nobody needs any more."""
        if self.spill:
            self.spill.stored(self._journal.stored)
        for tape in self._tapes.values():
            self.let_go(tape, KEEP)

    def let_go(self, tape: Tape, keep: int) -> None:
        """Free a machine's oldest blocks above so many, unless something in them waits to be stored."""
        while len(tape.blocks) > max(keep, 1) and not self._waits(tape.blocks[0]):
            self._free(tape, tape.blocks[0])

    def _waits(self, block: Block) -> bool:
        return self._journal.keeping and not block.gone and block.last > self._journal.stored

    def _drive_out(self) -> bool:
        """Free the oldest block of the machine that has most; one that is stored if possible.

        One that is just being stored only goes to the disk, and if there is no other one. False: that does not take it.
        """
        tapes = sorted((tape for tape in self._tapes.values() if tape.blocks), key=lambda tape: -len(tape.blocks))
        for tape in tapes:
            if len(tape.blocks) > 1 and not self._waits(tape.blocks[0]):
                self._free(tape, tape.blocks[0])
                return True
        for tape in tapes:
            for block in tape.blocks:
                if not self._waits(block) or block.first > self._journal.offered:
                    self._free(tape, block)
                    return True
        tape = tapes[0]
        if not self._put(tape, tape.blocks[0]):
            return False
        self._bound_spill(tape, self.policies.of(tape.name))
        self._free(tape, tape.blocks[0])
        return True

    def _free(self, tape: Tape, block: Block) -> None:
        self._give_up(tape, block, self.policies.of(tape.name))
        tape.blocks.remove(block)
        block.count, block.gone = 0, False
        self._journal.commit(tape, [block])
        if len(self._warm) < WARM:
            self._warm.append(block)
            return
        self.free.append(block)
        self._journal.give_back(block)
