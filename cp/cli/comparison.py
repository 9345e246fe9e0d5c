"""What differs between two answers: the recorded one and that of now."""

from typing import Any, Final, NamedTuple

import attrs

from retinue.cp.cli.messages import body_text
from retinue.cp.cli.output import shorten
from retinue.cp.redaction import REDACTED

# Differences that are told of one answer.
MOST: Final = 5
# Columns of a value in one of them.
ROOM: Final = 60

_MISSING: Final = object()


@attrs.frozen
class Answer:
    """An answer to a call: a reply, or with ``code`` a refusal whose detail is ``body``."""

    body: Any = None
    descriptors: int = 0
    code: str | None = None
    text: str = ""


class Comparison(NamedTuple):
    """The differences as short lines, and how many places could not be compared because they are redacted."""

    differences: list[str]
    skipped: int


def compare(recorded: Answer, now: Answer, *, redacted: bool = False) -> Comparison:
    """Compare two answers; with ``redacted`` a redacted value of the recorded one is not compared with anything."""
    if recorded.code != now.code:
        return Comparison([_changed("", _summary(recorded), _summary(now))], 0)
    differences: list[str] = []
    if recorded.text != now.text:
        differences.append(_changed("text", shorten(recorded.text, ROOM), shorten(now.text, ROOM)))
    if recorded.descriptors != now.descriptors:
        differences.append(_changed("descriptors", str(recorded.descriptors), str(now.descriptors)))
    body = _Bodies(redacted)
    body.compare("body" if recorded.code is None else "detail", recorded.body, now.body)
    differences += body.differences
    if len(differences) > MOST:
        differences[MOST:] = [f"and {len(differences) - MOST} more"]
    return Comparison(differences, body.skipped)


def _summary(answer: Answer) -> str:
    if answer.code is None:
        return f"a reply, {shorten(body_text(answer.body), ROOM)}"
    return f"refused, {answer.code}" + (f": {shorten(answer.text, ROOM)}" if answer.text else "")


def _changed(place: str, recorded: str, now: str) -> str:
    return f"{place}: {recorded} -> {now}" if place else f"{recorded} -> {now}"


class _Bodies:
    def __init__(self, redacted: bool) -> None:
        self._redacted = redacted
        self.differences: list[str] = []
        self.skipped = 0

    def compare(self, place: str, recorded: Any, now: Any) -> None:
        """Add what differs below this place. No comprehensions, for the reason of messages.plain."""
        if self._redacted and recorded == REDACTED:
            self.skipped += 1
        elif type(recorded) is dict and type(now) is dict:
            for key in recorded:
                self.compare(f"{place}.{_key(key)}", recorded[key], now.get(key, _MISSING))
            for key in now:
                if key not in recorded:
                    self.compare(f"{place}.{_key(key)}", _MISSING, now[key])
        elif type(recorded) is list and type(now) is list:
            for index in range(max(len(recorded), len(now))):
                old = recorded[index] if index < len(recorded) else _MISSING
                new = now[index] if index < len(now) else _MISSING
                self.compare(f"{place}[{index}]", old, new)
        elif not _same(recorded, now):
            self.differences.append(_changed(place, _value(recorded), _value(now)))


def _same(one: Any, other: Any) -> bool:
    # 1, 1.0 and true are three values to a peer in another language; NaN is one.
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _value(value: Any) -> str:
    return "nothing" if value is _MISSING else shorten(body_text(value), ROOM)


def _key(key: Any) -> str:
    return body_text(key).strip('"')
