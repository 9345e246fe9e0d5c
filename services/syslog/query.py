"""What may be asked of the stored records, as SQL.

A query is looked up by a thread with a connection of its own, so that storing goes on. It looks at ranges of ids, one
after the other, until it has enough or its time is over: an answer says from where to go on, and is never late because
hardly anything matches. Values are parameters; no part of a query becomes a part of a statement.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import attrs
import trio

from retinue.pipes import Rejected
from retinue.services.syslog.schema import RUN_BITS

T = TypeVar("T")

# Seconds that one answer may be looked for, and how long a single statement may take.
TIME_LIMIT: Final = 2.0
STATEMENT_LIMIT: Final = 5.0
# Characters of records in one answer: an eighth of what a message may have.
ANSWER_ROOM: Final = 8 * 1024 * 1024
# Ids that the first statement looks at; the next one looks at twice as many while that takes no longer than QUICK.
FIRST_RANGE: Final = 4_096
QUICK: Final = 0.05
# Instructions of SQLite between two looks at the clock.
INSTRUCTIONS: Final = 20_000
# No id is as large.
ENDLESS: Final = 2**62
MOST: Final = 10_000
MOST_MACHINES: Final = 10_000

# The logger of the control program; no machine may use the name.
OURS: Final = "retinue.cp"

_COLUMNS: Final = f"""
    id, id & {(1 << RUN_BITS) - 1} AS seq, time, (SELECT name FROM machines WHERE number = machine) AS machine,
    generation, severity,
    CASE typeof(logger) WHEN 'integer' THEN (SELECT name FROM loggers WHERE number = logger) ELSE logger END AS logger,
    message, fields
"""
_NAMES: Final = ("seq", "time", "machine", "generation", "severity", "logger", "message")
# A gap is told by the control program, with a field that is a number.
_GAP: Final = """
    logger IN (SELECT number FROM loggers WHERE name = :ours UNION ALL SELECT :ours)
    AND instr(fields, '"lost":')
"""
_LOGGER: Final = """
    (logger IN (SELECT number FROM loggers WHERE substr(name, 1, length(:logger)) = :logger)
     OR typeof(logger) = 'text' AND substr(logger, 1, length(:logger)) = :logger)
"""
_FIELD: Final = """
    EXISTS (SELECT 1 FROM json_each(CASE WHEN json_valid(fields) THEN fields END) AS field
            WHERE field.key = :name{0} AND CASE field.type
                WHEN 'text' THEN field.value = :value{0}
                WHEN 'integer' THEN field.value = :number{0}
                WHEN 'real' THEN field.value = :number{0}
                WHEN 'array' THEN 0
                WHEN 'object' THEN 0
                ELSE field.type = :value{0} END)
"""
_TRACE: Final = """
    id IN (SELECT id FROM entries INDEXED BY entries_by_trace
           WHERE trace IS NOT NULL AND trace >= :trace AND trace < :trace || char(1114111))
"""

_is = attrs.validators.instance_of
_optional = attrs.validators.optional


def _is_place(query: "Query", attribute: Any, untrusted: Any) -> None:
    match untrusted:
        case None:
            return
        case [str(), int(number)] if 0 <= number < ENDLESS:
            return
    raise ValueError(f"{attribute.name} is no place in the log")


@attrs.frozen
class Query:
    """A query as the control program sends it; see :mod:`retinue.cp.selection` for what the keys mean."""

    machine: list[str] | None = attrs.field(
        default=None,
        validator=_optional(
            attrs.validators.and_(
                attrs.validators.max_len(MOST_MACHINES),
                attrs.validators.deep_iterable(_is(str), _is(list)),
            )
        ),
    )
    severity: int = attrs.field(default=7, validator=_is(int))
    since: float | None = attrs.field(default=None, validator=_optional(_is((float, int))))
    until: float | None = attrs.field(default=None, validator=_optional(_is((float, int))))
    text: str = attrs.field(default="", validator=_is(str))
    logger: str = attrs.field(default="", validator=_is(str))
    fields: dict[str, str] = attrs.field(
        factory=dict, validator=attrs.validators.deep_mapping(_is(str), _is(str), _is(dict))
    )
    trace: str = attrs.field(default="", validator=_is(str))
    gaps: bool = attrs.field(default=False, validator=_is(bool))
    count: int = attrs.field(default=100, validator=[_is(int), attrs.validators.ge(0)])
    oldest: bool = attrs.field(default=False, validator=_is(bool))
    after: list[Any] | None = attrs.field(default=None, validator=_is_place)
    before: list[Any] | None = attrs.field(default=None, validator=_is_place)

    @classmethod
    def of(cls, untrusted: Mapping[Any, Any]) -> "Query":
        """Rejected ``bad-arguments`` when it is none."""
        names = [field.name for field in attrs.fields(cls)]
        if unknown := [key for key in untrusted if key not in names]:
            raise Rejected("bad-arguments", f"unknown argument {str(unknown[0])[:64]!r}", names)
        try:
            return cls(**untrusted)
        except (TypeError, ValueError) as exc:
            raise Rejected("bad-arguments", str(exc.args[0] if exc.args else exc)[:500]) from None

    def conditions(self) -> tuple[list[str], dict[str, Any]]:
        """What a record must fulfil beside its machine and its place, with the values."""
        always, content = [], []
        values: dict[str, Any] = {"ours": OURS}
        if self.since is not None:
            always.append("time >= :since")
            values["since"] = self.since
        if self.until is not None:
            always.append("time < :until")
            values["until"] = self.until
        if self.severity < 7:
            content.append("severity <= :severity")
            values["severity"] = self.severity
        if self.logger:
            content.append(_LOGGER)
            values["logger"] = self.logger
        if self.text:
            # lower of SQLite knows the letters of ASCII; instr, unlike LIKE, does not stop at a NUL.
            content.append(f"instr({'lower' if self.text.isascii() else 'lowered'}(message), :text)")
            values["text"] = self.text.lower()
        if self.trace:
            content.append(_TRACE)
            values["trace"] = self.trace
        for index, (name, value) in enumerate(self.fields.items()):
            content.append(_FIELD.format(index))
            values |= {f"name{index}": name, f"value{index}": value, f"number{index}": _number(value)}
        if content:
            wanted = " AND ".join(content)
            always.append(f"({wanted} OR {_GAP})" if self.gaps else wanted)
        return always, values


def _number(text: str) -> float | int | None:
    """The number that a text spells, if it does."""
    try:
        number = int(text) if text.lstrip("-").isdecimal() else float(text)
    except ValueError:
        return None
    return number if abs(number) < ENDLESS else None


class Reader:
    """Answers queries of a database that another connection writes. One thread uses it at a time.

    ``path`` names the file, or is its URI.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic, *, uri: bool = False) -> None:
        self._clock = clock
        self._deadline = 0.0
        self._reached: int | None = None  # the last id that was looked at
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, uri=uri)
        self._database.execute("PRAGMA query_only = ON")
        self._database.create_function("lowered", 1, str.lower, deterministic=True)
        self._database.set_progress_handler(lambda: self._clock() > self._deadline, INSTRUCTIONS)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def select(self, untrusted_query: Mapping[Any, Any]) -> dict[str, Any]:
        """``records``, oldest first, and ``more``: the place from where to go on, None when there is nothing more.

        Rejected ``bad-arguments``, or ``too-long`` when nothing at all could be looked at in STATEMENT_LIMIT.
        sqlite3.Error when the file cannot be read.
        """
        query = Query.of(untrusted_query)
        self._reached = None
        found = _Page(min(query.count, MOST), query.oldest)
        try:
            return self._select(query, found)
        except sqlite3.OperationalError as exc:
            if getattr(exc, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
                raise
            if self._reached is None:
                raise Rejected("too-long", f"the disk needs more than {STATEMENT_LIMIT:.0f} s for a query") from exc
            return found.answer(self._place_of(self._reached))

    def machines(self) -> list[str]:
        """The names of machines of which something has been stored, as many as anybody wants to see."""
        found = self._execute("SELECT name FROM machines ORDER BY number DESC LIMIT :most", {"most": MOST_MACHINES})
        return [name for (name,) in found]

    def _execute(self, statement: str, values: Mapping[str, Any]) -> sqlite3.Cursor:
        self._deadline = self._clock() + STATEMENT_LIMIT
        return self._database.execute(statement, values)

    def _select(self, query: Query, found: "_Page") -> dict[str, Any]:
        end = self._clock() + TIME_LIMIT
        conditions, values = query.conditions()
        whose = self._whose(query)
        least, most = self._place(query.after, 0), self._place(query.before, ENDLESS)
        width = ENDLESS if query.trace else FIRST_RANGE
        order = "ASC" if query.oldest else "DESC"
        while (edge := self._edge(whose, query.oldest, least, most)) is not None:
            # Exclusive bounds of a range that begins with an id that there is.
            low, high = (edge - 1, edge + width) if query.oldest else (edge - width, edge + 1)
            bounds = {"least": max(low, least), "most": min(high, most)}
            where = " AND ".join(["id > :least", "id < :most", *whose, *conditions])
            statement = f"SELECT {_COLUMNS} FROM entries WHERE {where} ORDER BY id {order} LIMIT :limit"
            began = self._clock()
            for row in self._execute(statement, {**values, **bounds, "limit": found.missing + 1}):
                if not found.add(row):
                    return found.answer(None if self._reached is None else self._place_of(self._reached))
                self._reached = row[0]
            if query.oldest:
                self._reached = least = bounds["most"] - 1
            else:
                self._reached = most = bounds["least"] + 1
            if self._clock() > end:
                return found.answer(self._place_of(self._reached))
            width = min(width * 2, ENDLESS) if self._clock() - began < QUICK else max(width // 2, 1)
        return found.answer(None)

    def _whose(self, query: Query) -> list[str]:
        """The condition that the machines give. Of one machine the index knows the ids, in their order."""
        if query.machine is None:
            return []
        asked = "SELECT number FROM machines WHERE name IN (SELECT value FROM json_each(:names))"
        numbers = [str(number) for (number,) in self._execute(asked, {"names": json.dumps(query.machine)})]
        return [f"machine = {numbers[0]}" if len(numbers) == 1 else f"+machine IN ({', '.join(numbers)})"]

    def _edge(self, whose: list[str], oldest: bool, least: int, most: int) -> int | None:
        """The first id that there is from here on, so that nothing is spent on ids that nobody has."""
        where = " AND ".join(["id > :least", "id < :most", *whose])
        statement = f"SELECT id FROM entries WHERE {where} ORDER BY id {'ASC' if oldest else 'DESC'} LIMIT 1"
        row = self._execute(statement, {"least": least, "most": most}).fetchone()
        return None if row is None else int(row[0])

    def _place(self, place: list[Any] | None, default: int) -> int:
        """The id of a place. A run of which nothing is stored yet comes after all others."""
        if place is None:
            return default
        if not place[0]:
            return 0  # before the first
        row = self._execute("SELECT number FROM runs WHERE name = :name", {"name": place[0]}).fetchone()
        return ENDLESS if row is None else (int(row[0]) << RUN_BITS) + min(place[1], (1 << RUN_BITS) - 1)

    def _place_of(self, ident: int) -> list[Any]:
        """The place of an id; of one in no run, the end of the run before it."""
        number, seq = ident >> RUN_BITS, ident & ((1 << RUN_BITS) - 1)
        known = "SELECT number, name FROM runs WHERE number <= :number ORDER BY number DESC LIMIT 1"
        found = self._execute(known, {"number": number}).fetchone()
        if found is None:
            return ["", 0]
        return [found[1], seq if found[0] == number else (1 << RUN_BITS) - 1]


class _Page:
    """Records that were found, in the order in which they are looked for."""

    def __init__(self, count: int, oldest: bool) -> None:
        self._count, self._oldest = count, oldest
        self._room = ANSWER_ROOM
        self._records: list[dict[str, Any]] = []

    @property
    def missing(self) -> int:
        return self._count - len(self._records)

    def add(self, row: tuple[Any, ...]) -> bool:
        """Take one more; False when there is no room for it."""
        self._room -= sum(len(value) for value in row if isinstance(value, str | bytes))
        if not self.missing or (self._records and self._room < 0):
            return False
        self._records.append({**dict(zip(_NAMES, row[1:-1], strict=True)), "fields": _fields(row[-1])})
        return True

    def answer(self, more: list[Any] | None) -> dict[str, Any]:
        return {"records": self._records if self._oldest else self._records[::-1], "more": more}


def _fields(stored: Any) -> Any:
    """The fields of a record; what was not stored as some is no map, and so no record for whoever asks."""
    try:
        return json.loads(stored) if stored else {}
    except (ValueError, TypeError, RecursionError):
        return stored


class Desk:
    """Where queries are answered, one after the other, beside everything else."""

    def __init__(self, path: str) -> None:
        self._reader = Reader(path)
        self._turn = trio.CapacityLimiter(1)

    async def select(self, untrusted_query: Mapping[Any, Any]) -> dict[str, Any]:
        """:meth:`Reader.select`; Rejected ``not-read`` when the file cannot be read."""
        return await self._read(partial(self._reader.select, untrusted_query))

    async def machines(self) -> list[str]:
        """:meth:`Reader.machines`; Rejected likewise."""
        return await self._read(self._reader.machines)

    async def _read(self, what: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(what, limiter=self._turn)
        except sqlite3.Error as exc:
            raise Rejected("not-read", str(exc)) from None

    def close(self) -> None:
        """Nothing is asked any more."""
        self._reader.close()
