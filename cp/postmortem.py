"""What is found out about a death: the traceback in the machine's records, and what it has not answered.

Everything here comes from machines, the dead one or its neighbours, and is cut to size.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

import trio

from retinue.cp.checking import OURS
from retinue.cp.records import Record
from retinue.cp.syslog import ERROR
from retinue.pipes import PathError

# Messages of one edge that are told.
MESSAGES: Final = 10
# Characters of the head of one.
HEAD: Final = 200
# Seconds the neighbours of a dead machine have to say what it has not answered: it is being buried meanwhile.
NEIGHBOURS_TIME: Final = 0.2

_TRACEBACK: Final = "Traceback (most recent call last)"
# How faulthandler begins to tell where the threads of a process are.
_DUMP: Final = ("Fatal Python error", "Current thread 0x", "Thread 0x", "Timeout (")


def trace(records: Sequence[Record]) -> str | None:
    """The newest traceback in the records of a machine, else where its threads were when they were last dumped."""
    for record in reversed(records):
        if record["severity"] <= ERROR and record["logger"] != OURS:
            for text in (record["message"], *record["fields"].values()):
                if type(text) is str and _TRACEBACK in text:
                    return text
    lines = [str(each["message"]) for each in records if each["logger"] in ("console", "stderr")]
    # The stacks of all threads stand together: the newest lines that can be of such a dump, from its first head on.
    end = next((index for index in range(len(lines) - 1, -1, -1) if lines[index].startswith(_DUMP)), None)
    if end is None:
        return None
    start = end
    while start and _of_dump(lines[start - 1]):
        start -= 1
    while end + 1 < len(lines) and _of_dump(lines[end + 1]):
        end += 1
    while not lines[start].startswith(_DUMP):
        start += 1
    return "\n".join(lines[start : end + 1]).rstrip()


def _of_dump(line: str) -> bool:
    return not line or line.startswith(("  ", *_DUMP))


class Neighbour(Protocol):
    """What is needed of a machine that may have spoken with the dead one."""

    @property
    def name(self) -> str: ...

    async def last(self) -> Any:
        """The newest messages of its ends without an answer, unchecked; PathError when it does not say."""


async def last_messages(
    users: Iterable[tuple[Neighbour, str]], servers: Iterable[tuple[Neighbour, str]]
) -> dict[str, list[Any]]:
    """By edge (``WEB.app``), the newest messages that a dead machine has not answered, as its neighbours tell them.

    :param users: machines with an edge to it, each with its name of the edge.
    :param servers: machines that it has an edge to, each with that edge's name in their books (``SHOP.prices``).
    """
    ends = [(user, "uses", name, f"{user.name}.{name}") for user, name in users]
    ends += [(server, "serves", label, label) for server, label in servers]
    said: dict[str, Any] = {}

    async def ask(neighbour: Neighbour) -> None:
        with contextlib.suppress(PathError):
            said[neighbour.name] = await neighbour.last()

    with trio.move_on_after(NEIGHBOURS_TIME):
        async with trio.open_nursery() as nursery:
            for each in {neighbour.name: neighbour for neighbour, *_ in ends}.values():
                nursery.start_soon(ask, each)
    found: dict[str, list[Any]] = {}
    for neighbour, kind, name, label in ends:
        untrusted = said.get(neighbour.name)
        books = untrusted.get(kind) if type(untrusted) is dict else None
        items = books.get(name) if type(books) is dict else None
        checked = [each for each in map(checked_message, items if type(items) is list else ()) if each is not None]
        if checked:
            found[label] = checked[-MESSAGES:]
    return found


def checked_message(untrusted: Any) -> list[Any] | None:
    """``[id, kind, bytes, age, head]`` as a machine tells it, cut to size; None if it is something else."""
    match untrusted:
        case [int(ident), str(kind), int(size), int() | float() as age, str(head)] if 0 <= age < 1e9:
            return [ident, kind[:16], size, round(float(age), 6), shortened(head, HEAD)]
    return None


def shortened(text: str, most: int) -> str:
    """A text of at most that many characters: of a longer one the beginning and the end, which say most."""
    if len(text) <= most:
        return text
    missing = f"\n... {len(text) - most} characters ...\n"
    head = most // 4
    return text[:head] + missing + text[head + len(missing) - most :]
