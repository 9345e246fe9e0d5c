"""The tables of the records, and how a database of an earlier schema becomes one of this.

The id of a record is made of the number of its run and of its number in that (:data:`RUN_BITS`): it is the key of the
table, so a batch is written at the end of it, and a record that comes again is found to be there. Names of machines and
loggers are numbers; of loggers only the first LOGGERS, others stand in the record as text. The view ``records`` shows
it all as one would write it.
"""

import sqlite3
from collections.abc import Iterator
from typing import Final

# The number of a record in its run has so many bits of the id, enough for five years of 100,000 a second.
RUN_BITS: Final = 44
# Names of loggers that get a number: a program may make any number of them.
LOGGERS: Final = 4096
# Records of an earlier schema that are moved in one transaction.
MOVE: Final = 5_000
# Pages in the log that are copied into the file at a time, with an fsync: 16 MiB.
CHECKPOINT: Final = 4_096
# What PRAGMA user_version says.
VERSION: Final = 2

SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS runs (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS machines (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS loggers (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, machine INTEGER NOT NULL, generation INTEGER NOT NULL,
    severity INTEGER NOT NULL, logger NOT NULL, message TEXT NOT NULL, fields TEXT, trace TEXT
);
CREATE INDEX IF NOT EXISTS entries_by_machine ON entries (machine);
CREATE INDEX IF NOT EXISTS entries_by_trace ON entries (trace) WHERE trace IS NOT NULL;
CREATE TABLE IF NOT EXISTS places (name TEXT PRIMARY KEY, place INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS ticks (time REAL PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS records AS
    SELECT runs.name AS run, entries.id & {(1 << RUN_BITS) - 1} AS seq, time, machines.name AS machine, generation,
        severity,
        CASE typeof(logger) WHEN 'integer' THEN (SELECT name FROM loggers WHERE number = logger) ELSE logger END
            AS logger,
        message, coalesce(fields, '{{}}') AS fields
    FROM entries
    JOIN machines ON machines.number = entries.machine
    JOIN runs ON runs.number = entries.id >> {RUN_BITS};
"""

# Of the first schema, in which everything was text. Runs get their numbers in their order before one that is new.
_RENAME: Final = "DROP INDEX IF EXISTS records_by_machine; ALTER TABLE records RENAME TO first_records;"
_RUNS: Final = "INSERT INTO runs (name) SELECT run FROM first_records GROUP BY run ORDER BY min(rowid);"
_MOVE: Final = f"""
INSERT OR IGNORE INTO machines (name) SELECT DISTINCT machine FROM first_records WHERE rowid <= :last;
INSERT OR IGNORE INTO loggers (name) SELECT DISTINCT logger FROM first_records WHERE rowid <= :last
    LIMIT max(0, {LOGGERS} - (SELECT count(*) FROM loggers));
INSERT OR IGNORE INTO entries SELECT
    ((SELECT number FROM runs WHERE name = run) << {RUN_BITS}) + seq, time,
    (SELECT number FROM machines WHERE name = machine), generation, severity,
    coalesce((SELECT number FROM loggers WHERE name = logger), logger), message, nullif(fields, '{{}}'), NULL
    FROM first_records WHERE rowid <= :last;
DELETE FROM first_records WHERE rowid <= :last;
"""


def prepare(database: sqlite3.Connection) -> None:
    """Make the tables, unless they are there; sqlite3.Error when the disk does not take them.

    Records of the first schema wait in a table of their own until :func:`move` has moved them.
    """
    database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a database that is made here; others only reuse space
    database.execute("PRAGMA journal_mode = WAL")
    # In WAL mode NORMAL survives the death of the process, which is what can happen to a machine; FULL would
    # add an fsync for each batch to survive the death of the host.
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version >= VERSION:
        return
    before, after = (_RENAME, _RUNS) if _is_table(database, "records") else ("", "")
    try:
        database.executescript(f"BEGIN IMMEDIATE; {before} {SCHEMA} {after} PRAGMA user_version = {VERSION}; COMMIT;")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _is_table(database: sqlite3.Connection, name: str) -> bool:
    query = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?"
    return database.execute(query, (name,)).fetchone() is not None


def move(database: sqlite3.Connection) -> Iterator[None]:
    """Move the records of the first schema, the oldest first: a transaction before each ``yield``.

    Who stops before the end, however, goes on another time. sqlite3.Error when the disk does not take them.
    """
    if not _is_table(database, "first_records"):
        return
    while last := database.execute(
        "SELECT max(rowid) FROM (SELECT rowid FROM first_records ORDER BY rowid LIMIT ?)", (MOVE,)
    ).fetchone()[0]:
        database.execute("BEGIN IMMEDIATE")
        try:
            for statement in filter(None, map(str.strip, _MOVE.split(";"))):
                database.execute(statement, {"last": last})
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        yield
    database.execute("DROP TABLE first_records")
