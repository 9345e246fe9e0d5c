"""Which records are asked for: one shape of a query, wherever somebody asks.

An operator and a machine with an edge to ``*LOG`` send it to the control program; that looks into its memory with it,
or sends it on to the machine that keeps records. Every key may be left out:

``machine``
    A name or a list of names; the common name of instances means all of them.
``severity``
    That or worse: 3 takes the severities 0 to 3.
``since``, ``until``
    Seconds since the epoch: from the one on, and before the other.
``text``
    Is in the message; case does not count.
``logger``
    How the logger's name begins.
``fields``
    Map of what some fields must be. A text is the same as the number, ``true``, ``false`` or ``null`` that it spells.
``trace``
    How the trace id begins.
``gaps``
    Also records that tell of lost ones of these machines in this time, whatever else is asked for: what is lost may
    have been what is looked for.
``after``, ``before``
    Places in the log, exclusive: the number of a record of this run, or ``[run, number]``.
``count``, ``oldest``
    How many of those that match, and whether the oldest of them and not the newest.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import attrs

from retinue.cp.checking import OURS
from retinue.cp.directory.table import nearest
from retinue.cp.records import Record
from retinue.pipes import Rejected

# A record's place in the log: the run of the system, and its number in it.
Place = tuple[str, int]

# Records in one answer, unless told otherwise, and at most: what fits one message with room to spare.
COUNT: Final = 100
MOST_RECORDS: Final = 10_000
# What one query may name: more than anybody types, little enough to be compared with each record.
MOST_MACHINES: Final = 1_000
MOST_FIELDS: Final = 16
MOST_CHARACTERS: Final = 1_024
# Larger numbers than the wire carries for everybody, and SQLite, are no numbers of records.
LARGEST: Final = 2**62

# Keys that say which records, and those that say where in the log and how many.
WHICH: Final = ("machine", "severity", "since", "until", "text", "logger", "fields", "trace", "gaps")
WHERE: Final = ("count", "oldest", "after", "before")


@attrs.frozen
class FieldValue:
    """What a field must be: its text, and the number that this spells."""

    text: str
    number: float | int | None

    @classmethod
    def of(cls, wanted: str | float | bool | None) -> "FieldValue":
        """Of anything that a query may give."""
        if wanted is None or isinstance(wanted, bool):
            return cls({None: "null", True: "true", False: "false"}[wanted], None)
        if not isinstance(wanted, str):
            return cls(str(wanted), wanted)
        try:
            number = int(wanted) if wanted.lstrip("-").isdecimal() else float(wanted)
        except ValueError:
            return cls(wanted, None)
        return cls(wanted, number if abs(number) < LARGEST else None)

    def is_(self, found: Any) -> bool:
        """Whether a field is that."""
        if isinstance(found, str):
            return found == self.text
        if found is None or isinstance(found, bool):
            return self.text == {None: "null", True: "true", False: "false"}[found]
        return isinstance(found, int | float) and found == self.number


@attrs.frozen
class Selection:
    """A query that has been checked. None, or nothing, asks for all."""

    run: str
    """The run that numbers without one belong to."""
    machines: frozenset[str] | None = None
    severity: int = 7
    since: float | None = None
    until: float | None = None
    text: str = ""
    logger: str = ""
    fields: Mapping[str, FieldValue] = attrs.field(factory=dict)
    trace: str = ""
    gaps: bool = False
    count: int = COUNT
    oldest: bool = False
    after: Place | None = None
    before: Place | None = None

    def takes(self, record: Record) -> bool:
        """Whether a record is asked for, wherever in the log it is."""
        if self.machines is not None and record["machine"] not in self.machines:
            return False
        if self.since is not None and record["time"] < self.since:
            return False
        if self.until is not None and record["time"] >= self.until:
            return False
        return self._content(record) or (self.gaps and is_gap(record))

    def _content(self, record: Record) -> bool:
        if record["severity"] > self.severity or not record["logger"].startswith(self.logger):
            return False
        if self.text and self.text not in record["message"].lower():
            return False
        fields = record["fields"]
        if self.trace:
            trace = fields.get("trace")
            if not isinstance(trace, str) or not trace.startswith(self.trace):
                return False
        return all(name in fields and value.is_(fields[name]) for name, value in self.fields.items())

    def as_query(self) -> dict[str, Any]:
        """The same, as the machine that keeps records takes it: places with their run, fields as texts."""
        return {
            "machine": None if self.machines is None else sorted(self.machines),
            "severity": self.severity,
            "since": self.since,
            "until": self.until,
            "text": self.text,
            "logger": self.logger,
            "fields": {name: value.text for name, value in self.fields.items()},
            "trace": self.trace,
            "gaps": self.gaps,
            "count": self.count,
            "oldest": self.oldest,
            "after": None if self.after is None else list(self.after),
            "before": None if self.before is None else list(self.before),
        }


def is_gap(record: Record) -> bool:
    """Whether the control program tells with this record how many others are missing in its place."""
    return record["logger"] == OURS and "lost" in record["fields"]


def selection(
    untrusted: Mapping[Any, Any], run: str, names: Iterable[str], keys: Collection[str] = (*WHICH, *WHERE)
) -> Selection:
    """The query, of which each key is one of ``keys``; ``names`` are the machines that there are.

    Rejected ``bad-arguments`` or ``unknown-machine``, with the names that it could have been.
    """
    for key in untrusted:
        if key not in keys:
            raise Rejected("bad-arguments", f"unknown argument {str(key)[:64]!r}{_meant(str(key), keys)}", sorted(keys))
    given = {key: value for key, value in untrusted.items() if value is not None}
    found: dict[str, Any] = {}
    if "machine" in given:
        found["machines"] = _machines(given["machine"], names)
    for key in ("since", "until"):
        if key in given:
            found[key] = _moment(key, given[key])
    for key in ("text", "logger", "trace"):
        if key in given:
            found[key] = _text(key, given[key])
    for key in ("gaps", "oldest"):
        if key in given:
            found[key] = _of(key, given[key], bool)
    for key in ("after", "before"):
        if key in given:
            found[key] = _place(key, given[key], run)
    if "severity" in given and not 0 <= (severity := _of("severity", given["severity"], int)) <= 7:
        raise Rejected("bad-arguments", f"severity must be 0 (emergency) to 7 (debug), not {severity}")
    if "fields" in given:
        found["fields"] = _fields(given["fields"])
    if "count" in given:
        found["count"] = max(0, min(_of("count", given["count"], int), MOST_RECORDS))
    if "text" in found:
        found["text"] = found["text"].lower()
    return Selection(run, severity=given.get("severity", 7), **found)


def _meant(word: str, words: Iterable[str]) -> str:
    near = nearest(word[:64], words)
    return f"; did you mean {near!r}?" if near else ""


def _of(key: str, untrusted: Any, kind: type) -> Any:
    if type(untrusted) is not kind:
        raise Rejected("bad-arguments", f"{key} must be {kind.__name__}")
    return untrusted


def _machines(untrusted: Any, names: Iterable[str]) -> frozenset[str]:
    asked = [untrusted] if isinstance(untrusted, str) else untrusted
    if not isinstance(asked, list) or not all(isinstance(name, str) for name in asked) or len(asked) > MOST_MACHINES:
        raise Rejected("bad-arguments", f"machine must be a name, or a list of at most {MOST_MACHINES} names")
    there = list(names)
    instances: dict[str, list[str]] = {}
    for name in there:
        instances.setdefault(name.partition("@")[0], []).append(name)
    for name in asked:
        if name not in there and name not in instances:
            text = f"there is no machine {name[:64]!r}{_meant(name, [*there, *instances])}"
            raise Rejected("unknown-machine", text, list(dict.fromkeys([*there, *instances])))
    return frozenset(each for name in asked for each in (name, *instances.get(name, ())))


def _moment(key: str, untrusted: Any) -> float:
    if type(untrusted) not in (int, float) or not math.isfinite(untrusted):
        raise Rejected("bad-arguments", f"{key} must be a time in seconds since the epoch")
    return float(max(-LARGEST, min(untrusted, LARGEST)))


def _text(key: str, untrusted: Any) -> str:
    if len(text := str(_of(key, untrusted, str))) > MOST_CHARACTERS:
        raise Rejected("bad-arguments", f"{key} must be {MOST_CHARACTERS} characters at most")
    return text


def _place(key: str, untrusted: Any, run: str) -> Place:
    match untrusted:
        case [str(its_run), int(number)] if type(number) is int and len(its_run) <= 64:
            pass
        case int(number) if type(number) is int:
            its_run = run
        case _:
            raise Rejected("bad-arguments", f"{key} must be the number of a record, or a place that an answer gave")
    return its_run, max(0, min(number, LARGEST - 1))


def _fields(untrusted: Any) -> dict[str, FieldValue]:
    if type(untrusted) is not dict or len(untrusted) > MOST_FIELDS:
        raise Rejected("bad-arguments", f"fields must be a map of at most {MOST_FIELDS} names and values")
    for name, value in untrusted.items():
        if type(name) is not str or not isinstance(value, str | int | float | None):
            raise Rejected("bad-arguments", "fields must be a map of names to texts, numbers, booleans or nil")
        if len(name) + len(str(value)) > MOST_CHARACTERS:
            raise Rejected("bad-arguments", f"a field must be {MOST_CHARACTERS} characters at most")
    return {name: FieldValue.of(value) for name, value in untrusted.items()}
