"""One item of a tap as a line for people, and a message's body as JSON, which knows less than a path carries."""

import math
import time
from collections.abc import Mapping
from typing import Any, Final

from retinue.cp.cli.output import BOLD, DIM, RED, YELLOW, Paint, neutralise, shorten, size, to_json

# Characters of a body on a line that has any width: --json has all of it.
BODY_MAX: Final = 4000

_HEAD: Final = f"{'TIME':<15}  {'PATH':>4}      {'KIND':<8}  {'ID':>6}  {'TOOK':>7}  MESSAGE"
_COLOURS: Final = {"reject": RED, "sever": YELLOW, "unreadable": RED}
_LOUD: Final = frozenset({"send", "call", "reply"})


class ItemFormat:
    """Turns items into lines of at most `room` columns (None: any number)."""

    def __init__(self, *, paint: Paint, room: int | None = None) -> None:
        self._paint = paint
        self._room = room

    def head(self) -> str:
        """The line that stands above them."""
        return self._paint(_HEAD, BOLD)

    def line(self, item: Mapping[str, Any]) -> str:
        """The line of one item; of ``{"lost": n}`` the one that stands in the place of what was lost."""
        if "lost" in item:
            return self._paint(lost_line(item["lost"]), YELLOW)
        kind = neutralise(str(item.get("kind", "?")))
        ident = item.get("id", "")
        if kind == "ack" and item.get("last", ident) != ident:
            ident = f"{ident}..{item['last']}"
        arrow = "<-" if item.get("direction") == "<-" else "->"
        took = item.get("latency_us")
        start = f"{_clock(item.get('time'))}  {item.get('path', '?')!s:>4}  "
        middle = f"  {kind:<8}  {ident!s:>6}  {interval(took) if isinstance(took, int) else '':>7}"
        text, marks = _text(item, kind), _marks(item)
        if self._room is not None:
            text = shorten(text, max(20, self._room - len(start) - 2 - len(middle) - 2 - len(marks)))
        paint = self._paint
        colour = _COLOURS.get(kind, "" if kind in _LOUD else DIM)
        said = f"{middle}  {text}".rstrip()
        return (
            paint(start, DIM)
            + paint(arrow, "36" if arrow == "->" else "35")
            + (paint(said, colour) if colour else said)
            + paint(marks, DIM)
        )


def lost_line(count: Any) -> str:
    """The line that stands in the place of items that were lost."""
    return f"-- {count} lost: this command was too slow for them --"


def interval(microseconds: int) -> str:
    """How long something took: 87µs, 1.2ms, 350ms, 4.1s."""
    if microseconds < 1000:
        return f"{microseconds}µs"
    for divisor, unit in ((1e3, "ms"), (1e6, "s")):
        value = microseconds / divisor
        if value < 999.5 or unit == "s":
            return f"{value:.1f}{unit}" if value < 99.95 else f"{value:.0f}{unit}"
    raise AssertionError


def body_text(body: Any) -> str:
    """A body on one harmless line, cut to BODY_MAX characters."""
    import json

    text = json.dumps(plain(body), ensure_ascii=False)
    return neutralise(text if len(text) <= BODY_MAX else text[: BODY_MAX - 1] + "…")


def item_json(item: Mapping[str, Any]) -> str:
    """An item as JSON on one line, in ASCII."""
    return to_json(plain(item), indent=None)


def plain(value: Any) -> Any:
    """A body as JSON can say it: bytes as text with escapes, also as keys, and numbers that are none as text."""
    # No comprehensions: each would cost a level of the interpreter's stack, and bodies may have 500.
    if isinstance(value, Mapping):
        mapped: dict[str, Any] = {}
        for key, inner in value.items():
            mapped[_said(key)] = plain(inner)
        return mapped
    if isinstance(value, list | tuple):
        listed: list[Any] = []
        for inner in value:
            listed.append(plain(inner))
        return listed
    if isinstance(value, bytes | bytearray | memoryview):
        return _said(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _said(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode(errors="backslashreplace")
    return str(value)


def _text(item: Mapping[str, Any], kind: str) -> str:
    """What an item says, on one harmless line."""
    if "omitted" in item:
        return f"({neutralise(str(item['omitted']))}: not shown)"
    if "body" in item:
        return body_text(item["body"])
    if "code" in item:
        text = neutralise(f"{item['code']}: {item['text']}" if item.get("text") else str(item["code"]))
        return text if item.get("detail") is None else f"{text}  {body_text(item['detail'])}"
    if kind == "data":
        return f"{size(int(item.get('bytes', 0)))} of a byte stream"
    return neutralise(str(item.get("text", "")))


def _marks(item: Mapping[str, Any]) -> str:
    """What is remarkable about an item, in brackets behind what it says."""
    marks = [name for name in ("priority", "redelivered") if item.get(name)]
    if "bulk" in item:
        marks.append(size(int(item["bulk"])))
    if count := item.get("descriptors"):
        marks.append(f"{count} descriptor{'' if count == 1 else 's'}")
    return f"  ({', '.join(marks)})" if marks else ""


def _clock(seconds: Any) -> str:
    """Local time to the microsecond, as in ``09:01:02.123456``."""
    try:
        return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{int(seconds % 1 * 1e6):06d}"
    except (TypeError, OverflowError, OSError, ValueError):
        return "--:--:--.------"
