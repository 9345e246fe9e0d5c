"""What of the paths outlives the control program: notes about each, and the target's end, held by the nucleus.

One note for a path as long as nothing but its descriptor changes: whether its ends are joined is seen by that, who has
died is known otherwise. A note is JSON; what cannot be read of one (another version wrote it) costs that path.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import attrs

from retinue.cp.directory import Edge

# Keys of what is kept begin so; the rest is a number that says nothing (several paths use a key, one after the other),
# or it is NUMBERS, or LEFT and a process.
PREFIX: Final = "circuit/"
NUMBERS: Final = "circuit/numbers"
LEFT: Final = "circuit/left/"


class Keeper(Protocol):
    """Who holds notes and descriptors for the next control program."""

    def keep(self, key: str, note: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Hold this instead of what was held under the key. The descriptors are borrowed."""

    def drop(self, key: str) -> None:
        """Hold nothing any more under the key."""


class Kept(Protocol):
    """What was held under a key. Its descriptors belong to whoever takes it."""

    @property
    def note(self) -> Mapping[str, Any]: ...

    @property
    def descriptors(self) -> Sequence[int]: ...


@attrs.frozen
class Left:
    """A process was told to let go of the paths that lead to it, for a successor to take them.

    When the machine sleeps (``asleep``), there is one only for who wants something of it.
    """

    text: str
    asleep: bool = False


@attrs.frozen
class PathNote:
    """What is noted about the path of the number ``ident``.

    ``origin`` and ``target`` are processes: a name and a generation. ``taps``: the packets pass through the control
    program, and its end cuts the path. ``succeeding``: the target is being offered the path of a predecessor, and may
    not have it. ``asleep``: the originator was told that the target sleeps, and why.
    """

    ident: int
    origin: tuple[str, int]
    target: tuple[str, int]
    edge: Edge
    taps: bool = False
    succeeding: bool = False
    asleep: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As it is kept; short, because there is one for each connection that a machine makes."""
        edge = self.edge
        note: dict[str, Any] = {"path": self.ident, "from": self.origin, "to": self.target}
        note["edge"] = [edge.name, edge.to, edge.limit, edge.lazy, edge.on_restart, edge.overflow]
        if self.taps:
            note["taps"] = True
        if self.succeeding:
            note["succeeding"] = True
        if self.asleep is not None:
            note["asleep"] = self.asleep
        return note

    @classmethod
    def read(cls, note: Mapping[str, Any]) -> "PathNote":
        """What :meth:`as_dict` has written. ValueError, KeyError or TypeError if it was something else."""
        asleep = note.get("asleep")
        return cls(
            int(note["path"]),
            _process(note["from"]),
            _process(note["to"]),
            Edge(*note["edge"]),
            taps=bool(note.get("taps")),
            succeeding=bool(note.get("succeeding")),
            asleep=None if asleep is None else str(asleep),
        )


def path_key(number: int) -> str:
    """A key for a path."""
    return f"{PREFIX}{number}"


def key_number(key: str) -> int:
    """The number in such a key. ValueError if it is none."""
    return int(key.removeprefix(PREFIX))


def left_key(machine: str, generation: int) -> str:
    """The key of a process that lets go of its paths."""
    return f"{LEFT}{machine}/{generation}"


def left_process(key: str) -> tuple[str, int]:
    """The process of such a key. ValueError if it is none."""
    machine, _, generation = key.removeprefix(LEFT).rpartition("/")
    return machine, int(generation)


def _process(noted: Any) -> tuple[str, int]:
    name, generation = noted
    return str(name), int(generation)
