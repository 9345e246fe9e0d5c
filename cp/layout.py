"""Where everything is in the memory of the journal."""

import mmap
import struct
import uuid
from typing import Final

from retinue.cp import intake
from retinue.cp.tape import BLOCK

# Machines, by name, and descriptors that can be read at once: a system has hundreds at most.
MACHINES: Final = 2048
SOURCES: Final = 1024
# Bytes of an unfinished console line.
LINE: Final = 32 * 1024
# Bytes of a machine's name; the topology allows fewer.
NAME: Final = 80

# The first word: the layout. A program of another layout must know this one, or refuse it.
MAGIC: Final = int.from_bytes(b"RETJRN\0\1", "big")
# Words of the first page.
WORD_MAGIC, WORD_BLOCKS, WORD_FORCE, WORD_INTAKE, WORD_ATTEMPT = range(5)
RUN: Final = 64  # its place in bytes
# last, stored, keeping, batch, done; a source and its row; a machine and its lost; how many blocks. Then their rows.
STATE_ROW: Final = struct.Struct("@13Q")
CHANGE_ROW: Final = struct.Struct("@7Q")
STATE_ROOM: Final = 64 * 1024
# Rows of the tables. The first word of those of sources and blocks is the machine's number + 1, or 0.
SOURCE_ROW: Final = struct.Struct("@4Q32x")  # machine, generation, number, line
MACHINE_ROW: Final = struct.Struct(f"@2Q{NAME}s3Q8x")  # length of the name, lost, name, three of LOSS_ROW
BLOCK_ROW: Final = struct.Struct("@6Q16x")  # machine, order, used, first, last, count
# At the end of a state: which one it is of, and what was lost of the machine on the disk and by its rate; which file
# is being removed. A state of a release that did not write it has another number there.
LOSS_ROW: Final = struct.Struct("@4Q")
# In the word of a block's machine: nothing in it waits any more.
GONE: Final = 1 << 32

STATES_AT: Final = mmap.PAGESIZE
SOURCES_AT: Final = STATES_AT + 2 * STATE_ROOM
MACHINES_AT: Final = SOURCES_AT + SOURCES * SOURCE_ROW.size
BLOCKS_AT: Final = MACHINES_AT + MACHINES * MACHINE_ROW.size


def places(blocks: int) -> tuple[int, int, int, int]:
    """Where the intake, the lines and the blocks begin, and where all ends."""
    intake_at = _whole_pages(BLOCKS_AT + blocks * BLOCK_ROW.size)
    lines_at = _whole_pages(intake_at + intake.SIZE)
    blocks_at = _whole_pages(lines_at + SOURCES * 2 * LINE)
    return intake_at, lines_at, blocks_at, blocks_at + blocks * BLOCK


def _whole_pages(size: int) -> int:
    return (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE


def begin(memory: mmap.mmap, blocks: int) -> None:
    """Make an empty journal of memory that is all zero."""
    struct.pack_into("@2Q", memory, 0, MAGIC, blocks)
    memory[RUN : RUN + 16] = uuid.uuid4().bytes
