"""One table of a topology file while it is being read, and the list of mistakes found so far.

The rules of the topology are in :mod:`retinue.cp.directory.load`; here is what every table needs: unknown keys, wrong
types, the place and the wording of a mistake.
"""

import datetime
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from attrs import field, frozen

from retinue.cp.directory.errors import DirectoryError
from retinue.cp.directory.positions import KeyPath, Positions

_T = TypeVar("_T")

_BARE = re.compile(r"[A-Za-z0-9_-]+")
# A value is quoted so that its author recognises it, not so that it can be read in full.
_SHOWN_LENGTH = 60
# Names in one hint; more would hide the mistake.
_LISTED = 12


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of ``words`` that ``word`` was probably meant to be, whatever its case; None if none is near."""
    by_folded: dict[str, str] = {}
    for candidate in words:
        by_folded.setdefault(candidate.casefold(), candidate)
    found = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    return by_folded[found[0]] if found else None


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A hint that names the nearest of ``words``, or all of them if they are few, or nothing."""
    words = list(words)
    if near := nearest(word, words):
        return f"did you mean {quoted(near)}?"
    if 0 < len(words) <= _LISTED:
        return f"there {'is' if len(words) == 1 else 'are'} {listed(words)}"
    return ""


def quoted(word: str) -> str:
    """``word`` in single quotes, or as a string with escapes where that would be unclear."""
    return f"'{word}'" if word.isprintable() and "'" not in word else json.dumps(word)


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def dotted(path: KeyPath) -> str:
    """A key path as one would write it in the file."""
    return ".".join(key if _BARE.fullmatch(key) else json.dumps(key) for key in map(str, path))


def described(value: object) -> str:
    """A TOML value in words: ``the integer 64``, ``the string "yes"``, ``a table``."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            # Python refuses to write thousands of digits in decimal.
            return f"the integer {_shortened(str(value) if value.bit_length() < 1000 else hex(value))}"
        case float():
            return f"the number {value}"
        case str():
            return f"the string {shown(value)}"
        case dict():
            return "a table"
        case list():
            return "an array"
        case datetime.date() | datetime.time():
            return "a date or time"
        case _:
            # A setting that came from elsewhere.
            return "no value that a file can have"


def shown(value: str) -> str:
    """A string as one would write it in the file, shortened if it is long."""
    return _shortened(json.dumps(value, ensure_ascii=not value.isprintable()))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 3]}..."


@frozen
class Mistakes:
    """The mistakes found in one file so far. ``file`` is its name as the user gave it."""

    file: str
    positions: Positions
    found: list[DirectoryError] = field(factory=list)

    def add(self, path: KeyPath, table: KeyPath, message: str, hint: str = "") -> None:
        """Note a mistake in ``table`` that is to be shown at the line of ``path``."""
        self.found.append(DirectoryError(self.file, self.positions.line(*path), dotted(table), message, hint))

    def place(self, *path: str | int) -> str:
        """``file:line`` of a key path, for a mistake that has to name a second place."""
        return f"{self.file}:{self.positions.line(*path)}"


class Table:
    """A table of the file: its values, its key path, and the keys that it may have.

    Making one reports every key that is not among ``known``; None means that the author chooses the keys. ``hint``
    is for unknown keys that are near to none of the known ones.
    """

    def __init__(
        self,
        mistakes: Mistakes,
        path: KeyPath,
        values: dict[str, Any],
        known: Sequence[str] | None,
        hint: str = "",
    ) -> None:
        self.mistakes, self.path, self.values = mistakes, path, values
        self._meant: set[str] = set()
        for key in values:
            if known is None or key in known:
                continue
            near = nearest(key, known)
            if near:
                self._meant.add(near)
            otherwise = hint or (f"the keys here are {listed(known)}" if known else "")
            self.wrong(key, f"unknown key {quoted(key)}", f"did you mean {quoted(near)}?" if near else otherwise)

    def given(self, key: str) -> bool:
        """Whether the key is there, or was meant to be: a misspelt key is not also a missing one."""
        return key in self.values or key in self._meant

    def wrong(self, key: str, message: str, hint: str = "") -> None:
        """Report a mistake at the line of ``key`` (or of the table, if it has no such key)."""
        self.mistakes.add((*self.path, key), self.path, message, hint)

    def value(self, key: str, kind: type[_T], expected: str) -> _T | None:
        """The value of ``key``, or None if it is not there or, once that has been reported, not a ``kind``."""
        if key not in self.values:
            return None
        value = self.values[key]
        # To Python true is an integer; to the author of a topology it is not.
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        self.wrong(key, f"{key} is {described(value)}, expected {expected}")
        return None

    def table(self, key: str, known: Sequence[str] | None, expected: str) -> "Table | None":
        """The table below ``key``, with its unknown keys reported; None as for :meth:`value`."""
        values = self.value(key, dict, expected)
        return None if values is None else Table(self.mistakes, (*self.path, key), values, known)

    def words(self, key: str, expected: str) -> list[tuple[int, str]]:
        """An array of strings, as (index, string); elements of another type are reported and left out."""
        words = []
        for index, value in enumerate(self.value(key, list, expected) or ()):
            if isinstance(value, str):
                words.append((index, value))
            else:
                message = f"{key} has {described(value)} in it, expected {expected}"
                self.mistakes.add((*self.path, key, index), self.path, message)
        return words
