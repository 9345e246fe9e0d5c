"""What a native program writes to its standard output and standard error, line by line."""

import os
from typing import Final, Protocol

import trio

# Bytes taken at a time: of short lines so few that the records of one turn do not keep the others waiting.
CHUNK: Final = 4 * 1024
# Bytes of one line; a longer one becomes several records.
MAX_LINE: Final = 8 * 1024
# Bytes that are still read when the program has ended. What it has written fits the pipe, which holds 64 KiB; processes
# that it left behind may go on writing.
LAST_WORDS: Final = 1024 * 1024


class Output(Protocol):
    """Where lines go: ``sys.stdout`` and ``sys.stderr`` of a machine make records of them."""

    def write(self, text: str, /) -> object: ...


class Lines:
    """Reads one pipe of the program. Bytes that are no UTF-8 become ``\\xff``; terminal controls stay as they are.

    ``last`` is the last line that was not empty.
    """

    def __init__(self, descriptor: int, output: Output) -> None:
        self.last = ""
        self._descriptor = descriptor
        self._output = output
        self._rest = bytearray()
        os.set_blocking(descriptor, False)

    async def run(self) -> None:
        """Until nobody can write into the pipe any more."""
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            if self._take(CHUNK) == 0:
                return

    def finish(self) -> None:
        """Take what is in the pipe, with a last line that has no end, and close it."""
        try:
            left = LAST_WORDS
            while left > 0 and (count := self._take(CHUNK)) > 0:
                left -= count
            if self._rest:
                self._line(bytes(self._rest))
                self._rest.clear()
        finally:
            os.close(self._descriptor)

    def _take(self, most: int) -> int:
        """How many bytes there were; 0 at the end, -1 when there are none now."""
        try:
            data = os.read(self._descriptor, most)
        except BlockingIOError:
            return -1
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._line(bytes(self._rest + line))
            self._rest.clear()
        self._rest += rest
        while len(self._rest) > MAX_LINE:
            end = _boundary(self._rest, MAX_LINE)
            self._line(bytes(self._rest[:end]))
            del self._rest[:end]
        return len(data)

    def _line(self, line: bytes) -> None:
        while len(line) > MAX_LINE:
            end = _boundary(line, MAX_LINE)
            self._write(line[:end])
            line = line[end:]
        self._write(line)

    def _write(self, line: bytes) -> None:
        text = line.removesuffix(b"\r").decode("utf-8", "backslashreplace")
        self.last = text if text.strip() else self.last
        self._output.write(text + "\n")


def _boundary(text: bytes | bytearray, end: int) -> int:
    """``end``, or the beginning of the character in UTF-8 that lies across it."""
    for before in range(end, end - 4, -1):
        if text[before] & 0xC0 != 0x80:
            return before
    return end
