"""An input read as a script: numbers and choices, one after the other, the same for the same bytes."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Script:
    """Bytes that are drawn from the front. At the end every number is 0 and every choice the first."""

    __slots__ = ("_data", "_place")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def over(self) -> bool:
        """Whether everything was drawn."""
        return self._place >= len(self._data)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes, or what is left."""
        taken = self._data[self._place : self._place + count]
        self._place += len(taken)
        return taken

    def byte(self) -> int:
        """A number from 0 to 255."""
        if self._place >= len(self._data):
            return 0
        self._place += 1
        return self._data[self._place - 1]

    def signed(self) -> int:
        """A small number of either sign; the byte 0x80 says that one of 64 bits follows."""
        value = self.byte()
        if value == 0x80:
            return int.from_bytes(self.take(8), "big", signed=True)
        return value - 256 if value > 127 else value

    def number(self) -> int:
        """A number that is mostly small; the byte 0xff says that one of 32 bits follows."""
        value = self.byte()
        return int.from_bytes(self.take(4), "big") if value == 0xFF else value

    def flag(self) -> bool:
        """Yes or no."""
        return bool(self.byte() & 1)

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.byte() % len(choices)]
