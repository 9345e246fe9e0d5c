"""Where every key of a TOML document stands.

``tomllib`` gives values without their places. This scanner gives the places without the values. It reads a document
that ``tomllib`` has already accepted, so it never has to judge, only to follow: it knows where keys, strings, arrays
and tables begin and end, and leaves numbers and dates alone.
"""

import re
import tomllib
from bisect import bisect_left
from collections.abc import Mapping

from attrs import field, frozen

KeyPath = tuple[str | int, ...]

#: Keys in a key path. The path of every key is kept, so a few hundred thousand dots would fill the memory; and what
#: is nested deeper than this no one can read.
DEPTH_LIMIT = 100


@frozen
class Positions:
    """The line of every key path of a document, counted from 1.

    A key path is what one would write to reach the value in what ``tomllib`` returns: strings for the keys of tables
    and integers for the elements of arrays. A table that has a header stands where its header is, any other table
    where it is first mentioned.
    """

    lines: Mapping[KeyPath, int] = field(factory=dict)

    def line(self, *keys: str | int) -> int:
        """The line of this key path, or of its nearest parent in the document, or 1."""
        for length in range(len(keys), 0, -1):
            if (line := self.lines.get(keys[:length])) is not None:
                return line
        return 1


def scan(text: str) -> Positions:
    """Find the line of every key path of ``text``, a document that ``tomllib`` accepts.

    Raises RecursionError if a key path is longer than :data:`DEPTH_LIMIT`.
    With any other text it finds something or raises ``tomllib.TOMLDecodeError``, but it comes to an end.
    """
    scanner = _Scanner(text)
    scanner.document()
    return Positions(scanner.lines)


# A string ends at the first delimiter that is not escaped; a multi-line one may have up to two more quotes before it.
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[^\s.=\]\"'#]+")
_BLANK = re.compile(r"[ \t]*")
# Comments end with their line; a carriage return is part of a line's end.
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
# Numbers, booleans and dates, which may hold one blank: "1979-05-27 07:32:00".
_SCALAR = re.compile(r"[^,\]}#\n]*")


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.lines: dict[KeyPath, int] = {}
        self._ends = [match.start() for match in re.finditer("\n", text)]
        # How many elements each array of tables has so far: [a.b] after [[a]] belongs to its last element.
        self._elements: dict[KeyPath, int] = {}

    def document(self) -> None:
        table: KeyPath = ()
        at = self._skip(_BLANK_LINES, 0)
        while at < len(self.text):
            start = at
            if self.text.startswith("[[", at):
                table, at = self._header(at, 2)
            elif self.text.startswith("[", at):
                table, at = self._header(at, 1)
            else:
                at = self._pair(at, table)
            at = self._skip(_BLANK_LINES, max(at, start + 1))

    def _header(self, at: int, brackets: int) -> tuple[KeyPath, int]:
        """``[a.b]`` or ``[[a.b]]``: the path of the table it opens, and where the scan goes on."""
        line = self._line(at)
        keys, at = self._key(at + brackets)
        path: KeyPath = ()
        for key in keys[:-1]:
            path = (*path, key)
            self._first(path, line)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
        path = (*path, keys[-1])
        if brackets == 2:
            self._first(path, line)
            index = self._elements.get(path, 0)
            self._elements[path] = index + 1
            path = (*path, index)
        # Tables may be declared after their sub-tables; the header is where a reader looks for the table.
        self.lines[path] = line
        return path, at + brackets

    def _pair(self, at: int, table: KeyPath) -> int:
        """``a.b = value`` inside ``table``."""
        line = self._line(at)
        keys, at = self._key(at)
        path = table
        for key in keys:
            path = (*path, key)
            self._first(path, line)
        return self._value(self._skip(_BLANK, at + 1), path)

    def _key(self, at: int) -> tuple[list[str], int]:
        """A dotted key, and where the ``=`` or ``]`` behind it is."""
        keys: list[str] = []
        while True:
            at = self._skip(_BLANK, at)
            if string := _STRING.match(self.text, at):
                # tomllib knows the escapes; a quoted key is a string like any other.
                keys.append(tomllib.loads(f"key = {string[0]}")["key"])
                at = string.end()
            else:
                end = self._skip(_BARE_KEY, at)
                keys.append(self.text[at:end])
                at = end
            at = self._skip(_BLANK, at)
            if not self.text.startswith(".", at):
                return keys, at
            at += 1

    def _value(self, at: int, path: KeyPath) -> int:
        """Record what is inside the value that starts here; return where it ends."""
        if string := _STRING.match(self.text, at):
            return string.end()
        opening = self.text[at : at + 1]
        if opening not in ("[", "{"):
            return self._skip(_SCALAR, at)
        closing = "]" if opening == "[" else "}"
        index = 0
        at = self._skip(_BLANK_LINES, at + 1)
        while at < len(self.text) and not self.text.startswith(closing, at):
            start = at
            if opening == "[":
                self._first((*path, index), self._line(at))
                at = self._value(at, (*path, index))
                index += 1
            else:
                at = self._pair(at, path)
            at = self._skip(_BLANK_LINES, max(at, start + 1))
            if self.text.startswith(",", at):
                at = self._skip(_BLANK_LINES, at + 1)
        return at + 1

    def _first(self, path: KeyPath, line: int) -> None:
        """Note a place of ``path``, which counts if none is known yet."""
        if len(path) > DEPTH_LIMIT:
            raise RecursionError(f"a key path of more than {DEPTH_LIMIT} keys")
        self.lines.setdefault(path, line)

    def _skip(self, what: re.Pattern[str], at: int) -> int:
        match = what.match(self.text, at)
        return match.end() if match else at

    def _line(self, at: int) -> int:
        return bisect_left(self._ends, at) + 1
