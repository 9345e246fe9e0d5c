"""SYSLOG: the machine that keeps the records of ``*LOG``.

Config
    ``keep`` (records, default 1,000,000): the oldest are removed when there are more.

Disks
    ``a``: the database ``records.sqlite3`` in WAL mode.

Edges
    Uses none. Provides: the control program hands it records and asks for them; see :func:`handle` for the two verbs.

A batch is one transaction and is answered after the commit, so what was answered survives a kill -9. A batch that comes
again (its answer was lost with the machine, or with the control program) is stored once: a record is known by its run
and its sequence number.
"""

import contextlib
import json
import logging
import sqlite3
from typing import Any, Final

import attrs

from retinue.pipes import Message, Rejected
from retinue.svm import Machine

_log = logging.getLogger(__name__)

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS records (
    run TEXT NOT NULL, seq INTEGER NOT NULL, time REAL NOT NULL, machine TEXT NOT NULL, generation INTEGER NOT NULL,
    severity INTEGER NOT NULL, logger TEXT NOT NULL, message TEXT NOT NULL, fields TEXT NOT NULL,
    UNIQUE (run, seq)
);
CREATE INDEX IF NOT EXISTS records_by_machine ON records (machine);
"""
COLUMNS: Final = ("seq", "time", "machine", "generation", "severity", "logger", "message", "fields")
# Characters of records in one answer: an eighth of what a message may have.
ANSWER_ROOM: Final = 8 * 1024 * 1024
# How many records may come between two looks at the size of the table.
TRIM_EVERY: Final = 10_000


@attrs.frozen
class Config:
    """What the topology may say about the machine."""

    keep: int = attrs.field(default=1_000_000, validator=attrs.validators.gt(0))


class Store:
    """The records of this machine, of all runs of the system, in one SQLite file."""

    def __init__(self, path: str, keep: int) -> None:
        self._keep = keep
        self._since_trim = 0
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        # In WAL mode NORMAL survives the death of the process, which is what can happen to a machine; FULL would
        # add an fsync for each batch to survive the death of the host.
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(SCHEMA)

    def add(self, run: str, records: list[dict[str, Any]]) -> None:
        """Store one batch whole or not at all. sqlite3.Error when the disk does not take it."""
        rows = [(run, *(record[name] for name in COLUMNS[:-1]), _to_json(record["fields"])) for record in records]
        with self._transaction():
            self._database.executemany("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._since_trim += len(rows)
            if self._since_trim >= TRIM_EVERY:
                self._since_trim = 0
                newest = "SELECT rowid FROM records ORDER BY rowid DESC LIMIT 1 OFFSET ?"
                self._database.execute(f"DELETE FROM records WHERE rowid <= ({newest})", (self._keep,))

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # a full disk may have ended it already
                self._database.execute("ROLLBACK")
            raise

    def newest(self, machine: str | None, count: int) -> list[dict[str, Any]]:
        """The newest records, oldest first, of one machine or of all; at most ANSWER_ROOM bytes of them, if not one."""
        where, values = ("WHERE machine = ? ", [machine]) if machine is not None else ("", [])
        query = f"SELECT {', '.join(COLUMNS)} FROM records {where}ORDER BY rowid DESC LIMIT ?"
        rows: list[Any] = []
        room = ANSWER_ROOM
        for row in self._database.execute(query, [*values, count]):
            room -= sum(len(value) for value in row if isinstance(value, str))
            if rows and room < 0:
                break
            rows.append(row)
        return [{**dict(zip(COLUMNS, row, strict=True)), "fields": json.loads(row[-1])} for row in reversed(rows)]

    def close(self) -> None:
        """Let go of the file, with everything in it that was committed."""
        self._database.close()


def _to_json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, default=repr, separators=(",", ":"))


async def main(vm: Machine[Config]) -> None:
    """Keep records until the system ends."""
    store = Store(str(vm.disk("a") / "records.sqlite3"), vm.config.keep)

    async def handle(message: Message) -> Any:
        # Only the control program may write and read here; others ask it over an edge to *LOG.
        if message.path.peer != "*LOG":
            raise Rejected("denied", f"{vm.name} takes records from the control program only: use an edge to *LOG")
        match message.body:
            case ["store", {"run": str(run), "records": list(records)}]:
                try:
                    store.add(run, records)
                except sqlite3.Error as exc:
                    _log.error("a batch of %d records could not be stored: %s", len(records), exc)
                    raise Rejected("not-stored", str(exc)) from None
                return None
            case ["query", {"machine": str() | None as machine, "count": int(count)}]:
                return {"records": store.newest(machine, count)}
        raise Rejected("unknown-verb", "SYSLOG knows store and query")

    with contextlib.closing(store):
        await vm.serve(handle)
