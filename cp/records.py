"""Records as the control program has them, and how many of them fit an answer."""

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

Record = dict[str, Any]
# Whose records: those of one machine, of several, or None for those of all.
Machines = str | Collection[str] | None

# What a record costs beside its text: the dictionary, its numbers and its short strings.
OVERHEAD = 600


def weight(record: Record) -> int:
    """About how many bytes a record keeps."""
    fields = record["fields"]
    return OVERHEAD + len(record["message"]) + (sum(len(str(value)) for value in fields.values()) if fields else 0)


def names_of(machines: Collection[str]) -> Collection[str]:
    """The names of one machine or of several."""
    return [machines] if isinstance(machines, str) else machines


def newest(records: Sequence[Record], most: int, room: int) -> list[Record]:
    """The newest of ``records``: at most ``most`` of at most ``room`` bytes together, but always the last one."""
    found: list[Record] = []
    for record in islice(reversed(records), most):
        room -= weight(record)
        if found and room < 0:
            break
        found.append(record)
    found.reverse()
    return found
