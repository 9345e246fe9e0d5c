"""Printing: control characters made harmless, colour where it is wanted, tables, JSON, sizes and durations.

Nothing that came from a machine reaches a terminal or a pipe but through :func:`neutralise` (or as JSON, in which
every control character is escaped): a hostile machine must not control the operator's terminal.
"""

import json
import os
import re
import shutil
import sys
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

# C0 and C1 controls and DEL (they move the cursor, set titles, answer back); the line and paragraph separators; the
# marks that turn the direction of writing (what is read would not be what was written); lone surrogates (they
# cannot be encoded). A tab is harmless and stays; a newline is the caller's business.
_HARMFUL: Final = re.compile("[\0-\x08\x0a-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# Foreground colours that can be read on black and on white; no red and no yellow: they mean trouble.
MACHINE_COLOURS: Final = ("36", "32", "35", "34", "96", "92", "95", "94")
RED: Final = "31"
YELLOW: Final = "33"
BOLD: Final = "1"
DIM: Final = "2"


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def neutralise(text: str) -> str:
    r"""`text` on one line, with every control character shown as an escape like ``\x1b``."""
    return _HARMFUL.sub(_escape, text)


def neutral_lines(text: str) -> list[str]:
    """`text` as neutralised lines, at least one; only newline ends a line, and a last one ends none."""
    return [neutralise(line.removesuffix("\r")) for line in text.removesuffix("\n").split("\n")]


def colour_wanted(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour what goes to `stream`: NO_COLOR forbids, FORCE_COLOR demands, else terminals only."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and environ.get("TERM") != "dumb"


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal; False for a closed one."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def width(stream: TextIO, environ: Mapping[str, str] = os.environ) -> int | None:
    """Columns that a line may have: COLUMNS if set, else the terminal's; None (any number) for a pipe or file."""
    try:
        columns = int(environ.get("COLUMNS", ""))
    except ValueError:
        columns = 0
    if columns > 0:
        return columns
    return shutil.get_terminal_size().columns if is_terminal(stream) else None


class Paint:
    """Colours text, or leaves it as it is (`on` False)."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def __call__(self, text: str, *codes: str) -> str:
        """`text` in the given SGR codes."""
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if self.on and codes else text

    def machine(self, name: str, text: str) -> str:
        """`text` in the colour of the machine, which is the same in every command and every run."""
        return self(text, MACHINE_COLOURS[zlib.crc32(name.encode(errors="replace")) % len(MACHINE_COLOURS)])


def cells(text: str) -> int:
    """How many columns a neutralised text takes: wide characters two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) or char == "\u200d" else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def shorten(text: str, room: int) -> str:
    """`text`, cut to at most `room` columns with an ellipsis; never to less than one."""
    if cells(text) <= room:
        return text
    while text and cells(text) > room - 1:
        text = text[:-1]
    return text + "…"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset(), room: int | None = None
) -> list[list[str]]:
    """Cells padded to columns, head first; `right` columns to the right. Over `room` columns the last cell is cut.

    Cells are returned one by one so that the caller can colour them: join them with two spaces.
    """
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(cells(line[column]) for line in lines) for column in range(len(head))]
    if room is not None:
        rest = room - sum(widths[:-1]) - 2 * (len(head) - 1)
        widths[-1] = max(min(widths[-1], rest), min(widths[-1], 8))
    done = []
    for line in lines:
        padded = []
        for column, cell in enumerate(line):
            last = column == len(head) - 1
            cell = shorten(cell, widths[column]) if last else cell
            pad = " " * (widths[column] - cells(cell))
            padded.append(pad + cell if column in right else cell if last else cell + pad)
        done.append(padded)
    return done


def size(count: int) -> str:
    """Bytes as people write them in a topology: 512K, 64M, 1.5G (powers of 1024)."""
    if count < 1024:
        return f"{count}B"
    value, units = float(count), list("TGMK")
    unit = ""
    while units and (not unit or value >= 1023.95):
        value, unit = value / 1024, units.pop()
    return (f"{value:.0f}" if value >= 99.95 else f"{value:.1f}".removesuffix(".0")) + unit


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter: 12s, 3m12s, 2h05m, 4d03h."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """`value` as JSON in ASCII with every control character escaped, so that it is as harmless as it is exact."""
    return json.dumps(value, indent=indent, default=_plain).replace("\x7f", "\\u007f")


def _plain(value: Any) -> str:
    # A path carries bytes, JSON does not. Nothing else that msgpack carries is foreign to JSON.
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode(errors="backslashreplace")
    raise TypeError(f"not for JSON: {type(value).__name__}")


def say(text: str) -> None:
    """One line to standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    """One line to standard error: progress and remarks, which are not what was asked for."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        pass  # the terminal is gone: what has to be done goes on


def complain(problem: str, cure: str | None = None) -> None:
    """An error in the one style of the command: ``retinue: what is wrong``, and the cure indented below."""
    paint = Paint(colour_wanted(sys.stderr))
    first, *rest = neutral_lines(problem)
    tell(paint("retinue:", BOLD, RED) + " " + first)
    for line in rest:
        tell("  " + line)
    for line in neutral_lines(cure) if cure else ():
        tell("  " + line)
