"""The records of all runs of the system, in one SQLite file."""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgpack

from retinue.services.syslog.retention import Retention
from retinue.services.syslog.row import SELECT, Row, row_of, to_json
from retinue.services.syslog.schema import LOGGERS, RUN_BITS, move, prepare

# Characters of records in one answer: an eighth of what a message may have.
ANSWER_ROOM: Final = 8 * 1024 * 1024
# Records and bytes of them that one step of tidying removes: some milliseconds.
STEP: Final = 10_000
STEP_BYTES: Final = 4 * 1024 * 1024
# Pages that one step gives back to the file system, and how many may be free: as a part of all, and at least.
PAGES: Final = 500
FREE_PART: Final = 8
FREE_LEAST: Final = 1024
# Ages are known so exactly: a part of the age, and seconds.
TICK_PART: Final = 100
TICK_LEAST: Final = 1.0

Chunk = tuple[str, int, int, bytes] | list[Any]
"""Machine, generation, number of the first record, and a msgpack array of the bodies of all."""

_INSERT: Final = "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Store:
    """The file at ``path``, which is made if need be. sqlite3.Error when that cannot be, here and in every method."""

    def __init__(self, path: str, retention: Retention, clock: Callable[[], float] = time.time) -> None:
        self._retention = retention
        self._clock = clock
        self._database = sqlite3.connect(path, isolation_level=None)
        prepare(self._database)
        self._moving: Iterator[None] | None = move(self._database)
        self._forget()
        self._count = self._one("SELECT count(*) FROM entries")
        self._tick = 0.0

    @property
    def database(self) -> sqlite3.Connection:
        """The connection, for whoever asks for records. It is not to be written to."""
        return self._database

    # -- storing ---------------------------------------------------------------------------------------------------

    def add(self, run: str, chunks: Sequence[Chunk]) -> None:
        """Store one batch whole or not at all; what is there already is left as it is."""
        with self._transaction():
            base = self._number(self._runs, "runs", run) << RUN_BITS
            rows: list[Any] = []
            for machine, generation, first, bodies in chunks:
                self._take(rows, base + first, self._number(self._machines, "machines", machine), generation, bodies)
            before = self._database.total_changes
            self._database.executemany(_INSERT, rows)
            added = self._database.total_changes - before
        self._count += added

    def _take(self, rows: list[Any], first: int, machine: int, generation: int, bodies: bytes) -> None:
        loggers, logger_of, append = self._loggers, self._logger, rows.append
        for key, (when, severity, logger, message, fields) in enumerate(
            msgpack.unpackb(bodies, strict_map_key=False), first
        ):
            number: int | str = loggers.get(logger) or logger_of(logger)
            if fields:
                trace = fields.get("trace")
                if type(trace) is not str:
                    trace = None
                append((key, when, machine, generation, severity, number, message, to_json(fields), trace))
            else:
                append((key, when, machine, generation, severity, number, message, None, None))

    def _number(self, known: dict[str, int], table: str, name: str) -> int:
        number = known.get(name)
        if number is None:
            self._database.execute(f"INSERT OR IGNORE INTO {table} (name) VALUES (?)", (name,))
            query = f"SELECT number FROM {table} WHERE name = ?"
            (number,) = self._database.execute(query, (name,)).fetchone()
            known[name] = number
        return known[name]

    def _logger(self, name: str) -> int | str:
        if len(self._loggers) < LOGGERS:
            return self._number(self._loggers, "loggers", name)
        return name

    def _forget(self) -> None:
        """Know no numbers but those that are stored."""
        self._runs: dict[str, int] = {}
        self._machines: dict[str, int] = {}
        self._loggers: dict[str, int] = dict(self._database.execute("SELECT name, number FROM loggers"))

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # a full disk may have ended it already
                self._database.execute("ROLLBACK")
            self._forget()
            raise

    @property
    def moving(self) -> bool:
        """Whether there are records of an earlier schema that :meth:`tidy` has to move."""
        return self._moving is not None

    # -- tidying ---------------------------------------------------------------------------------------------------

    def tidy(self) -> bool:
        """Do one step of what is to be done beside storing, some milliseconds; whether there is more to do."""
        if self._moving is not None:
            moving, self._moving = self._moving, move(self._database)  # begins anew should this step fail
            if next(moving, self) is None:
                self._moving = moving
                self._forget()
                return True
            self._moving = None
            self._count = self._one("SELECT count(*) FROM entries")
        self._note_time()
        if last := self._last_to_remove():
            with self._transaction():
                removed = self._database.execute("DELETE FROM entries WHERE id <= ?", (last,)).rowcount
                self._database.execute("DELETE FROM ticks WHERE id <= ?", (last,))
            self._count -= removed
            return True
        free, pages = self._pragma("freelist_count"), self._pragma("page_count")
        if free > max(FREE_LEAST, pages // FREE_PART) and self._pragma("auto_vacuum"):
            self._database.execute(f"PRAGMA incremental_vacuum({PAGES})").fetchall()
            return True
        return False

    def _last_to_remove(self) -> int:
        """The id of the last record that is to be removed now; 0 when there is none."""
        if not self._count:
            return 0
        each = self._used() // self._count + 1
        most = max(1, min(STEP, STEP_BYTES // each))
        too_many = self._count - self._retention.records
        if self._retention.bytes is not None and self._used() > self._retention.bytes:
            too_many = max(too_many, (self._used() - self._retention.bytes) // each + 1)
        oldest = "SELECT max(id) FROM (SELECT id FROM entries ORDER BY id LIMIT ?)"
        last = self._one(oldest, min(too_many, most)) if too_many > 0 else 0
        if self._retention.age is not None:
            aged = self._one("SELECT max(id) FROM ticks WHERE time <= ?", self._clock() - self._retention.age)
            if self._one("SELECT min(id) FROM entries") <= aged:
                last = max(last, min(aged, self._one(oldest, most)))
        return last

    def _note_time(self) -> None:
        """Now and then: the records that are there are as old as that."""
        age, now = self._retention.age, self._clock()
        if age is not None and abs(now - self._tick) >= max(age / TICK_PART, TICK_LEAST):
            self._tick = now
            newest = self.newest_id
            if newest > self._one("SELECT max(id) FROM ticks"):
                self._database.execute("INSERT OR REPLACE INTO ticks VALUES (?, ?)", (now, newest))

    def _used(self) -> int:
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._pragma("page_size")

    def _pragma(self, name: str) -> int:
        return self._one(f"PRAGMA {name}")

    def _one(self, query: str, *values: Any) -> int:
        (value,) = self._database.execute(query, values).fetchone()
        return int(value or 0)

    # -- asking ----------------------------------------------------------------------------------------------------

    def newest(self, machine: str | None, count: int) -> list[dict[str, Any]]:
        """The newest records, oldest first, of one machine or of all; at most ANSWER_ROOM bytes of them, if not one."""
        one = "WHERE machine = (SELECT number FROM machines WHERE name = ?)"
        where, values = (one, [machine]) if machine is not None else ("", [])
        rows: list[Any] = []
        room = ANSWER_ROOM
        for row in self._database.execute(f"{SELECT} {where} ORDER BY id DESC LIMIT ?", [*values, count]):
            room -= sum(len(value) for value in row if isinstance(value, str))
            if rows and room < 0:
                break
            rows.append(row)
        return [row_of(row).as_record() for row in reversed(rows)]

    def after(self, id: int, most: int) -> list[Row]:
        """Records with higher ids, the oldest first; at most ANSWER_ROOM bytes of them, if not one."""
        found: list[Row] = []
        room = ANSWER_ROOM
        for row in self._database.execute(f"{SELECT} WHERE id > ? ORDER BY id LIMIT ?", (id, most)):
            room -= sum(len(value) for value in row if isinstance(value, str))
            if found and room < 0:
                break
            found.append(row_of(row))
        return found

    @property
    def newest_id(self) -> int:
        """The highest id of a record; 0 when there is none."""
        return self._one("SELECT max(id) FROM entries")

    # -- places ----------------------------------------------------------------------------------------------------

    def place(self, name: str) -> int:
        """The id up to which somebody of that name has come, who said so; 0 when nobody did."""
        found = self._database.execute("SELECT place FROM places WHERE name = ?", (name,)).fetchone()
        return int(found[0]) if found else 0

    def close(self) -> None:
        """Let go of the file, with everything in it that was committed."""
        self._database.close()
