import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.cp.directory.positions import DEPTH_LIMIT, KeyPath, Positions, scan


def paths(value: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key path of what tomllib returns."""
    inner: list[tuple[Any, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    for key, below in inner:
        yield (*path, key)
        yield from paths(below, (*path, key))


# A busy host is slow, and that is no fault of the scanner.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

DOCUMENT = '''\
# a comment with [brackets] = and "quotes
[system]
name = "SHOP"   # [not.a.table]

[machines.SHOP]
"quoted.key" . 'with = sign' = 1
"\\u0041\\"]" = """
x = 1
\\""" y
"""""
literal = \'\'\'
[no.table]
\'\'\'\'\'
uses.app = { to = "X", "limit" = [1, 2], deep.er = { } }
list = [ # comment ]
  "a",
  [1,
   2],
  { k = """
  """, l = 1979-05-27 07:32:00 },
]
uses.other = "Y"

[[array]]
x = 1
[[array.inner]]
[array.inner.sub]
y = 2
[[array.inner]]
[[array]]
x = 3

[machines]
'''


def test_scan_finds_the_line_of_every_key() -> None:
    """Headers, dotted and quoted keys, inline tables, strings and arrays over several lines, arrays of tables."""
    positions = scan(DOCUMENT)
    shop = ("machines", "SHOP")
    assert positions.lines == {
        ("system",): 2,
        ("system", "name"): 3,
        ("machines",): 33,
        shop: 5,
        (*shop, "quoted.key"): 6,
        (*shop, "quoted.key", "with = sign"): 6,
        (*shop, 'A"]'): 7,
        (*shop, "literal"): 11,
        (*shop, "uses"): 14,
        (*shop, "uses", "app"): 14,
        (*shop, "uses", "app", "to"): 14,
        (*shop, "uses", "app", "limit"): 14,
        (*shop, "uses", "app", "limit", 0): 14,
        (*shop, "uses", "app", "limit", 1): 14,
        (*shop, "uses", "app", "deep"): 14,
        (*shop, "uses", "app", "deep", "er"): 14,
        (*shop, "list"): 15,
        (*shop, "list", 0): 16,
        (*shop, "list", 1): 17,
        (*shop, "list", 1, 0): 17,
        (*shop, "list", 1, 1): 18,
        (*shop, "list", 2): 19,
        (*shop, "list", 2, "k"): 19,
        (*shop, "list", 2, "l"): 20,
        (*shop, "uses", "other"): 22,
        ("array",): 24,
        ("array", 0): 24,
        ("array", 0, "x"): 25,
        ("array", 0, "inner"): 26,
        ("array", 0, "inner", 0): 26,
        ("array", 0, "inner", 0, "sub"): 27,
        ("array", 0, "inner", 0, "sub", "y"): 28,
        ("array", 0, "inner", 1): 29,
        ("array", 1): 30,
        ("array", 1, "x"): 31,
    }
    assert set(positions.lines) == set(paths(tomllib.loads(DOCUMENT)))


def test_scan_counts_lines_as_editors_do_whatever_ends_them() -> None:
    assert scan("a = 1\r\n\r\nb = 2\r\n").lines == {("a",): 1, ("b",): 3}
    # These are characters of a comment or a string, and no ends of lines in TOML.
    assert scan('a = "\u2028\x85"  # \u2029\nb = 2').lines == {("a",): 1, ("b",): 2}


def test_line_of_a_key_that_is_not_there_is_that_of_its_nearest_parent() -> None:
    positions = scan("\n[a.b]\nc = 1\n")
    assert positions.line("a", "b", "c") == 3
    assert positions.line("a", "b", "x", "y") == 2
    assert positions.line("x") == 1
    assert positions.line() == 1
    assert Positions().line("a") == 1


def test_scan_refuses_what_is_nested_too_deeply() -> None:
    assert len(scan("a." * (DEPTH_LIMIT - 1) + "a = 1").lines) == DEPTH_LIMIT
    for text in ("a." * DEPTH_LIMIT + "a = 1", "a = " + "[" * DEPTH_LIMIT + "1" + "]" * DEPTH_LIMIT):
        with pytest.raises(RecursionError):
            scan(text)


class Writer:
    """Writes a random TOML document and remembers on which line it wrote every key."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[KeyPath, int] = {}
        self.made = 0

    def note(self, path: KeyPath) -> None:
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def choose(self, *options: str) -> str:
        return self.draw(st.sampled_from(options))

    def blank(self) -> str:
        return self.choose("", "", " ", "\t ")

    def break_line(self) -> None:
        """What may stand between the elements of an array."""
        self.text += self.choose("", "", " ", "\n", "\n\n  ", " # ] \" ''' comment\n\t")

    def new_key(self) -> str:
        """A key that no other key of the document is equal to."""
        self.made += 1
        body = self.draw(st.text("aZ-_", max_size=2)) + str(self.made)
        return body + self.draw(st.sampled_from(["", "", "", ".", " = ", "#", "]", '"', "'", "\\", "é\u2028", "\n"]))

    def key(self, key: str) -> None:
        spellings = ['"' + "".join(f"\\u{ord(char):04X}" for char in key) + '"']
        if key.isascii() and key.replace("-", "").replace("_", "").isalnum():
            spellings += [key, key, key]
        if "'" not in key and "\n" not in key:
            spellings.append(f"'{key}'")
        if "\n" not in key:
            escaped = key.replace("\\", "\\\\").replace('"', '\\"')
            spellings.append(f'"{escaped}"')
        self.text += self.choose(*spellings)

    def keys(self, keys: list[str]) -> None:
        for index, key in enumerate(keys):
            if index:
                self.text += self.blank() + "." + self.blank()
            self.key(key)

    def value(self, path: KeyPath, depth: int = 0) -> None:
        kind = self.choose("scalar", "scalar", "string", "array", "inline") if depth < 3 else "scalar"
        if kind == "scalar":
            self.text += self.choose("1", "-1.5e3", "true", "0xF", "inf", "1979-05-27 07:32:00Z", "07:32:00")
        elif kind == "string":
            body = self.choose("", "x = 1", "# [a]", "]", "}, ", "\\\\")
            line = self.choose("", "\n", "\n[a]\nb = 1\n", '\n"', "\n''")
            more = "" if "'" in line else "'''" + line + body + self.choose("", "'", "''") + "'''"
            self.text += self.choose(
                f'"{body}\\""', f"'{body}'", '"""' + line + body + '\\"""' + '"""', *([more] if more else [])
            )
        elif kind == "array":
            self.text += "["
            self.break_line()
            count = self.draw(st.integers(0, 3))
            for index in range(count):
                self.note((*path, index))
                self.value((*path, index), depth + 1)
                self.break_line()
                if index < count - 1 or self.draw(st.booleans()):
                    self.text += ","
                    self.break_line()
            self.text += "]"
        else:
            self.text += "{" + self.blank()
            for index in range(self.draw(st.integers(0, 3))):
                self.text += f",{self.blank()}" if index else ""
                self.pair(path, depth + 1)
            self.text += "}"

    def pair(self, table: KeyPath, depth: int = 0, prefixes: list[list[str]] | None = None) -> None:
        """A key and its value; ``prefixes`` are dotted keys of this table that may be gone on with."""
        keys: list[str] = []
        if prefixes and self.draw(st.booleans()):
            keys = [*self.draw(st.sampled_from(prefixes))]
        fresh = self.draw(st.integers(1, 3))
        for _ in range(fresh):
            keys.append(self.new_key())
        for length in range(1, len(keys) + 1):
            self.note((*table, *keys[:length]))
            if prefixes is not None and length < len(keys):
                prefixes.append(keys[:length])
        self.keys(keys)
        self.text += self.blank() + "=" + self.blank()
        self.value((*table, *keys), depth)
        self.text += self.blank()

    def section(self, table: KeyPath) -> None:
        prefixes: list[list[str]] = []
        for _ in range(self.draw(st.integers(0, 3))):
            self.text += self.choose("", "\n", "  ", "# [x]\n")
            self.pair(table, 0, prefixes)
            self.text += self.choose("\n", " # = ]\n", "\r\n")

    def document(self) -> None:
        self.section(())
        # Where a header may go on: the names it is written with, and the key path that these lead to.
        tables: list[tuple[list[str], KeyPath]] = [([], ())]
        implicit: list[tuple[list[str], KeyPath]] = []
        arrays: dict[KeyPath, tuple[list[str], int]] = {}
        for _ in range(self.draw(st.integers(0, 5))):
            self.text += self.choose("", "\n", "  ", "# ]]\n")
            kind = self.choose("table", "table", "array", "again", "late")
            if kind == "late" and implicit:
                names, path = implicit.pop(self.draw(st.integers(0, len(implicit) - 1)))
                self.lines[path] = self.text.count("\n") + 1
                double = False
            elif kind == "again" and arrays:
                path = self.draw(st.sampled_from(sorted(arrays, key=str)))
                names, count = arrays[path]
                arrays[path] = (names, count + 1)
                # The earlier element, and all in it, can no longer be reached by a header.
                old = (*path, count - 1)
                tables = [entry for entry in tables if entry[1][: len(old)] != old]
                implicit = [entry for entry in implicit if entry[1][: len(old)] != old]
                arrays = {at: entry for at, entry in arrays.items() if at[: len(old)] != old}
                path = (*path, count)
                self.note(path)
                tables.append((names, path))
                double = True
            else:
                names, path = self.draw(st.sampled_from(tables))
                between = self.draw(st.integers(0, 2))
                for _ in range(between):
                    key = self.new_key()
                    names, path = [*names, key], (*path, key)
                    self.note(path)
                    implicit.append((names, path))
                    tables.append((names, path))
                key = self.new_key()
                names, path = [*names, key], (*path, key)
                self.note(path)
                double = kind == "array"
                if double:
                    arrays[path] = (names, 1)
                    path = (*path, 0)
                    self.note(path)
                tables.append((names, path))
            self.text += ("[[" if double else "[") + self.blank()
            self.keys(names)
            self.text += self.blank() + ("]]" if double else "]") + self.choose("\n", " # [a]\n", "\r\n")
            self.section(path)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[KeyPath, int]]:
    writer = Writer(draw)
    writer.document()
    return writer.text, writer.lines


@unhurried
@given(documents())
def test_scan_agrees_with_the_writer_of_any_document(document: tuple[str, dict[KeyPath, int]]) -> None:
    """Every key path that tomllib returns has a line, and it is the one it was written on."""
    text, lines = document
    assert set(lines) == set(paths(tomllib.loads(text)))
    assert scan(text).lines == lines


PIECES = st.sampled_from(
    [
        "a",
        "b",
        "1",
        ".",
        "=",
        " ",
        "\n",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        ",",
        "#",
        "\\",
        '"',
        "'",
        '"""',
        "'''",
        "a = 1\n",
    ]
)


@unhurried
@given(st.lists(PIECES, max_size=25).map("".join))
def test_scan_ends_on_any_text_and_knows_all_paths_of_valid_ones(text: str) -> None:
    try:
        expected = set(paths(tomllib.loads(text)))
    except tomllib.TOMLDecodeError:
        expected = None
    try:
        lines = scan(text).lines
    except tomllib.TOMLDecodeError:
        assert expected is None
    else:
        assert expected is None or set(lines) == expected
        assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
