"""Records in the order they came, bounded in number and in size: when a new one does not fit, the oldest go."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

Record = dict[str, Any]

# What a record costs beside its text: the dictionary, its numbers and its short strings.
OVERHEAD = 600


def weight(record: Record) -> int:
    """About how many bytes a record keeps."""
    fields = record["fields"]
    return OVERHEAD + len(record["message"]) + (sum(len(str(value)) for value in fields.values()) if fields else 0)


class Ring:
    """At most ``most`` records of at most ``room`` bytes together (but always the newest one)."""

    def __init__(self, most: int, room: int, records: Iterable[Record] = ()) -> None:
        self._most = most
        self._room = room
        self._records: deque[tuple[int, Record]] = deque()
        self._size = 0
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        return len(self._records)

    def __reversed__(self) -> Iterator[Record]:
        return (record for _, record in reversed(self._records))

    def __iter__(self) -> Iterator[Record]:
        return (record for _, record in self._records)

    @property
    def first(self) -> int:
        """The sequence number of the oldest record there is; of none: 0."""
        return int(self._records[0][1]["seq"]) if self._records else 0

    def append(self, record: Record) -> int:
        """Add the newest record; returns how many of the oldest had to go."""
        size = weight(record)
        self._records.append((size, record))
        self._size += size
        gone = 0
        while len(self._records) > 1 and (len(self._records) > self._most or self._size > self._room):
            self._size -= self._records.popleft()[0]
            gone += 1
        return gone

    def oldest(self, most: int, room: int) -> list[Record]:
        """The oldest records, at least one if there is one, at most ``most`` of at most ``room`` bytes together."""
        found: list[Record] = []
        for size, record in islice(self._records, most):
            room -= size
            if found and room < 0:
                break
            found.append(record)
        return found

    def drop_to(self, seq: int) -> None:
        """Let go of every record up to and with this sequence number."""
        while self._records and self._records[0][1]["seq"] <= seq:
            self._size -= self._records.popleft()[0]
