"""The machine that keeps the records: its store."""

import contextlib
import json
import pathlib
import resource
import sqlite3
import subprocess
import sys
from typing import Any

import attrs
import msgpack
import pytest
from tests.services.stored import Record, add, record

from retinue.pipes import Rejected
from retinue.services.syslog import Config, Store, Storing, chunks_of
from retinue.services.syslog import store as syslog
from retinue.services.syslog.retention import Retention, bytes_of, seconds_of
from retinue.services.syslog.row import Row
from retinue.services.syslog.schema import LOGGERS, MOVE

EVERYTHING = 1_000_000


def tidy(store: Store) -> None:
    while store.tidy():
        pass


def seqs(records: list[Record]) -> list[int]:
    return [each["seq"] for each in records]


def test_record_comes_back_as_it_was(store: Store) -> None:
    """Every value of it."""
    one = record(1, message="ü\x00\n", fields={"a": [1, None, {"b": 1.5}], "c": True, "d": ""})
    add(store, "run", [one])
    assert store.newest(None, 10) == [one]


def test_fields_that_json_cannot_say_become_texts(store: Store) -> None:
    """A record is not refused for them."""
    add(store, "run", [record(1, fields={"raw": b"\x00", "huge": 2**64 - 1})])
    assert store.newest(None, 1)[0]["fields"] == {"raw": "b'\\x00'", "huge": 2**64 - 1}


def test_newest_records_oldest_first(store: Store) -> None:
    """Of all machines or of one; as many as asked for."""
    add(store, "run", [record(seq, "AB"[seq % 2]) for seq in range(1, 11)])
    assert seqs(store.newest(None, 3)) == [8, 9, 10]
    assert seqs(store.newest("A", 3)) == [6, 8, 10]
    assert seqs(store.newest("B", 100)) == [1, 3, 5, 7, 9]
    assert store.newest("C", 100) == []
    assert store.newest(None, 0) == []


def test_batch_that_comes_again_is_stored_once(store: Store) -> None:
    """Its answer was lost; also when some records are new in it."""
    add(store, "run", [record(1), record(2)])
    add(store, "run", [record(1), record(2)])
    add(store, "run", [record(2), record(3)])
    assert seqs(store.newest(None, 10)) == [1, 2, 3]


def test_same_number_of_another_run_is_another_record(store: Store) -> None:
    """Numbers begin anew with each run of the system."""
    add(store, "one", [record(1)])
    add(store, "two", [record(1)])
    assert seqs(store.newest(None, 10)) == [1, 1]


def test_records_survive_the_store(path: str) -> None:
    """A new generation of the machine finds what the last one was answered for."""
    first = Store(path, Retention(100))
    add(first, "run", [record(1)])
    second = Store(path, Retention(100))  # the first one died without a word
    add(second, "run", [record(1), record(2)])
    assert seqs(second.newest(None, 10)) == [1, 2]
    second.close()
    first.close()


def test_batch_is_stored_whole_or_not_at_all(store: Store) -> None:
    """One record that cannot be stored leaves no half of its batch, and the next batch is stored."""
    for bad in (record(2, generation=2**70), record(2, logger="new", severity=2**63)):
        with pytest.raises(OverflowError):
            add(store, "run", [record(1, machine="NEW"), bad])
    with pytest.raises(ValueError, match="unpack"):
        store.add("run", [("M", 1, 1, msgpack.packb([[1.5, 6, "x", "m", {}]])), ("M", 1, 2, msgpack.packb([[]]))])
    assert store.newest(None, 10) == []
    add(store, "run", [record(1, machine="NEW", logger="new")])
    assert [(each["machine"], each["logger"]) for each in store.newest(None, 10)] == [("NEW", "new")]


def test_locked_database_refuses_and_recovers(store: Store, path: str) -> None:
    """A disk that does not take a batch takes it later."""
    store._database.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        add(store, "run", [record(1)])
    other.execute("ROLLBACK")
    other.close()
    add(store, "run", [record(1)])
    assert seqs(store.newest(None, 10)) == [1]


def test_full_disk_refuses_and_recovers(store: Store) -> None:
    """The transaction is over however the disk ended it."""
    add(store, "run", [record(1)])
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        add(store, "run", [record(2, message="x" * 100_000)])
    store._database.execute(f"PRAGMA max_page_count = {pages + 1000}")
    add(store, "run", [record(2)])
    assert seqs(store.newest(None, 10)) == [1, 2]


def test_chunks_are_stored_as_they_come(store: Store) -> None:
    """Numbers follow each other from the first one of each."""
    bodies = [[float(n), n % 8, "a.b", f"text {n}", {"n": n} if n % 2 else {}] for n in range(10)]
    store.add("run", [["A", 3, 11, msgpack.packb(bodies[:6])], ["B", 1, 17, msgpack.packb(bodies[6:])]])
    found = store.after(0, 100)
    assert [(row.run, row.seq, row.machine, row.generation) for row in found] == [
        ("run", 11 + n, *(("A", 3) if n < 6 else ("B", 1))) for n in range(10)
    ]
    assert [[row.time, row.severity, row.logger, row.message, row.fields] for row in found] == bodies


def test_rows_follow_each_other_by_id(store: Store) -> None:
    """Over runs and however late a record came; a page of them at a time."""
    add(store, "one", [record(5), record(7)])
    add(store, "two", [record(1, fields={"a": 1})])
    add(store, "one", [record(6)])
    first, *rest = store.after(0, 2)
    rest += store.after(rest[-1].id, 2)
    assert [(row.run, row.seq) for row in (first, *rest)] == [("one", 5), ("one", 6), ("one", 7), ("two", 1)]
    assert rest[-1] == Row(store.newest_id, "two", 1, 1.5, "M", 1, 6, "x", "message 1", {"a": 1})
    assert store.after(store.newest_id, 10) == []


def test_people_find_it_as_it_was(store: Store, path: str) -> None:
    """The view has the columns of the first schema; fields are JSON for everybody."""
    add(store, "run", [record(1, "A", fields={"x": [1, "ü"], "nan": float("nan"), "inf": [float("-inf")]})])
    add(store, "run", [record(2, "B", logger="y", severity=3)])
    other = sqlite3.connect(path)
    other.row_factory = sqlite3.Row
    rows = [dict(row) for row in other.execute("select * from records order by seq")]
    assert [*rows[0]] == ["run", "seq", "time", "machine", "generation", "severity", "logger", "message", "fields"]
    assert rows[1] == record(2, "B", logger="y", severity=3, fields="{}", run="run")
    assert json.loads(rows[0]["fields"]) == {"x": [1, "ü"], "nan": "nan", "inf": ["-inf"]}
    query = "select json_extract(fields, '$.x[1]') from records where machine = 'A'"
    assert other.execute(query).fetchone()[0] == "ü"
    plan = "explain query plan select * from records where machine = 'A' order by seq"
    assert "entries_by_machine" in " ".join(row["detail"] for row in other.execute(plan))
    other.close()


def test_trace_is_a_column(store: Store) -> None:
    """Of records that have one as text."""
    add(store, "run", [record(1, fields={"trace": "ab" * 16}), record(2, fields={"trace": 7}), record(3)])
    found = store.database.execute("SELECT trace FROM entries ORDER BY id").fetchall()
    assert found == [("ab" * 16,), (None,), (None,)]


def test_any_number_of_loggers(store: Store) -> None:
    """A program that makes a name for each record fills no table of names; a name that looks like a number is one."""
    many = LOGGERS + 100
    add(store, "run", [record(seq, logger=str(seq)) for seq in range(1, many + 1)])
    assert store.database.execute("SELECT count(*) FROM loggers").fetchone() == (LOGGERS,)
    assert [each["logger"] for each in store.newest(None, many)] == [str(seq) for seq in range(1, many + 1)]
    shown = store.database.execute("SELECT logger FROM records ORDER BY seq").fetchall()
    assert shown == [(str(seq),) for seq in range(1, many + 1)]


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_oldest_records_are_removed(path: str) -> None:
    """When there are more than are to be kept; also those that a predecessor has left."""
    store = Store(path, Retention(25))
    add(store, "run", [record(seq) for seq in range(1, 101)])
    add(store, "run", [record(seq) for seq in range(50, 111)])
    tidy(store)
    assert seqs(store.newest(None, 1000)) == [*range(86, 111)]
    assert not store.tidy()
    store.close()
    store = Store(path, Retention(5))
    tidy(store)
    assert seqs(store.newest(None, 1000)) == [*range(106, 111)]
    store.close()


def test_steps_are_small(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long while much is removed: in records and in bytes."""
    monkeypatch.setattr(syslog, "STEP", 10)
    store = Store(path, Retention(20))
    add(store, "run", [record(seq) for seq in range(1, 101)])
    left = []
    while store.tidy():
        left.append(len(store.newest(None, 1000)))
    assert left == [*range(90, 10, -10)]
    monkeypatch.setattr(syslog, "STEP_BYTES", 100_000)
    add(store, "run", [record(seq, message="x" * 20_000) for seq in range(101, 161)])
    assert store.tidy()
    assert len(store.newest(None, 1000)) >= 70
    store.close()


def test_size_is_bounded(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is kept, and with it of the file; space is used again and given back."""
    monkeypatch.setattr(syslog, "FREE_LEAST", 10)
    size = 1024 * 1024
    store = Store(path, Retention(1_000_000, size))
    sizes = []
    for start in range(1, 2001, 100):
        add(store, "run", [record(seq, message="x" * 5000) for seq in range(start, start + 100)])
        tidy(store)
        store.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append(pathlib.Path(path).stat().st_size)
    kept = seqs(store.newest(None, 2000))
    assert kept == [*range(kept[0], 2001)]
    assert len(kept) * 5000 > size * 0.7
    assert max(sizes) < 2.2 * size
    assert sizes[-1] < 1.2 * size
    store.close()


def test_age_is_bounded(path: str) -> None:
    """Since it was stored: nobody's clock but one counts; over restarts, and while nothing comes."""
    now = 1e9
    retention = Retention(1_000_000, None, 3600.0)
    store = Store(path, retention, lambda: now)
    for _ in range(10):
        first = store.newest_id % 2**44 + 1
        add(store, "run", [record(first, time=0.0), record(first + 1, time=4e9)])
        tidy(store)
        now += 600
    tidy(store)
    assert seqs(store.newest(None, 100)) == [*range(11, 21)]
    store.close()
    store = Store(path, retention, lambda: now)
    now += 3600
    tidy(store)
    assert seqs(store.newest(None, 100)) == []
    assert store.database.execute("SELECT count(*) FROM ticks").fetchone()[0] <= 1
    add(store, "run", [record(100)])
    tidy(store)
    assert seqs(store.newest(None, 100)) == [100]
    store.close()


# -- upgrades ----------------------------------------------------------------------------------------------------------

FIRST = """
CREATE TABLE records (
    run TEXT NOT NULL, seq INTEGER NOT NULL, time REAL NOT NULL, machine TEXT NOT NULL, generation INTEGER NOT NULL,
    severity INTEGER NOT NULL, logger TEXT NOT NULL, message TEXT NOT NULL, fields TEXT NOT NULL,
    UNIQUE (run, seq)
);
CREATE INDEX records_by_machine ON records (machine);
"""


@pytest.mark.parametrize("stops", [0, 1, 2, 3])
def test_records_of_the_first_schema_are_moved(path: str, stops: int) -> None:
    """All of them, in their order, also when a store dies meanwhile; new ones of the same run come after them."""
    database = sqlite3.connect(path)
    database.executescript(FIRST)
    old = [
        (("b", "a")[n // MOVE], n % MOVE + 1, 1.5, "M", 1, 6, f"l{n % 7}", f"old {n}", "{}") for n in range(2 * MOVE)
    ]
    old[3] = (*old[3][:-1], '{"a":[1]}')
    database.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", old)
    database.commit()
    database.close()
    for _ in range(stops):
        store = Store(path, Retention(1_000_000))
        add(store, "a", [record(MOVE, message="again"), record(MOVE + 1, message="new")])
        store.tidy()
        store.close()  # as a kill would leave it: each step is a transaction
    store = Store(path, Retention(1_000_000))
    tidy(store)
    add(store, "a", [record(MOVE + 1, message="new")])
    rows = store.after(0, EVERYTHING)
    assert [(row.run, row.seq) for row in rows] == [(run, seq) for run, seq, *_ in old] + [("a", MOVE + 1)]
    texts = [row.message for row in rows]
    assert [*texts[: 2 * MOVE - 1], texts[-1]] == [*(row[7] for row in old[:-1]), "new"]
    assert (rows[3].fields, rows[4].fields, rows[5].logger) == ({"a": [1]}, {}, "l5")
    tables = {name for (name,) in store.database.execute("SELECT name FROM sqlite_schema")}
    assert "first_records" not in tables
    assert store.database.execute("SELECT count(*) FROM records").fetchone() == (2 * MOVE + 1,)
    store.close()


# -- what goes wrong ---------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from retinue.services.syslog import Store, chunks_of
from retinue.services.syslog.retention import Retention

store = Store(sys.argv[1], Retention(1_000_000))
for line in sys.stdin:
    first, limit = map(int, line.split())
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    records = [
        {"seq": seq, "time": 1.5, "machine": "M", "generation": 1, "severity": 6, "logger": "x",
         "message": "x" * 1000, "fields": {}} for seq in range(first, first + 100)
    ]
    try:
        store.add("run", chunks_of(records))
    except Exception as exc:
        print("refused", type(exc).__name__, flush=True)
    else:
        print("stored", first, flush=True)
"""


def test_disk_that_is_full_refuses_whole_batches_and_recovers(path: str) -> None:
    """Ten times: a real process whose files may not grow; what it said to have stored is there, and only that."""
    child = subprocess.Popen(
        [sys.executable, "-c", LIMITED, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    stored: list[int] = []
    refused = 0
    first = 1
    for number in range(60):
        size = max(each.stat().st_size for each in pathlib.Path(path).parent.iterdir()) if stored else 0
        limit = size + 20_000 if number % 6 > 3 else resource.RLIM_INFINITY
        child.stdin.write(f"{first} {limit}\n")
        child.stdin.flush()
        answer = child.stdout.readline().split()
        if answer[0] == "stored":
            stored += range(first, first + 100)
            first += 100
        else:
            assert answer == ["refused", "OperationalError"]
            refused += 1
    child.kill()
    child.communicate()
    assert refused >= 3
    store = Store(path, Retention(1_000_000))
    assert seqs(store.newest(None, 1_000_000)) == stored
    store.close()


def test_full_disk_is_one_complaint(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Not one for each batch; and when it is over, one record more."""
    caplog.set_level("INFO")
    storing = Storing(store)
    pages = store.database.execute("PRAGMA page_count").fetchone()[0]
    store.database.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(5):
        with pytest.raises(Rejected, match="not-stored"):
            storing.add("run", chunks_of([record(1, message="x" * 100_000)]))
    store.database.execute(f"PRAGMA max_page_count = {pages + 1000}")
    storing.add("run", chunks_of([record(1)]))
    storing.add("run", chunks_of([record(2)]))
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("ERROR", "records cannot be stored, they wait in the control program: database or disk is full"),
        ("INFO", "records are stored again, after 5 refused batches"),
    ]


def test_answer_is_bounded_in_size(store: Store) -> None:
    """The newest ones, at least one."""
    add(store, "run", [record(seq, message="x" * 1_000_000) for seq in range(1, 21)])
    found = seqs(store.newest(None, 20))
    assert found == list(range(21 - len(found), 21))
    assert 1 <= len(found) * 1_000_000 <= syslog.ANSWER_ROOM
    add(store, "run", [record(21, message="x" * (syslog.ANSWER_ROOM + 1))])
    assert seqs(store.newest(None, 20)) == [21]


def test_config_says_how_much_is_kept() -> None:
    """A million records unless it says otherwise; nothing would be no syslog."""
    assert Config().retention == Retention(1_000_000, None, None)
    found = Config(keep=5, keep_bytes="2G", keep_age="30d").retention
    assert found == Retention(5, 2 * 1024**3, 30 * 86400.0)
    assert Config(keep_bytes=2**20).retention.bytes == 2**20
    assert attrs.has(Config)
    wrong: dict[str, list[Any]] = {
        "keep": [0],
        "keep_bytes": ["2", "2g", "0M", "1K", 1000, "x", ""],
        "keep_age": ["30", "0d", "d", "1.5d", "1w"],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"'{name}'"):
                Config(**{name: value})


def test_units() -> None:
    """Of sizes and times."""
    assert [bytes_of(f"3{unit}") for unit in "KMGT"] == [3 * 1024**power for power in (1, 2, 3, 4)]
    assert [seconds_of(f"3{unit}") for unit in "smhd"] == [3, 180, 10800, 259200]


def test_move_of_an_earlier_schema_goes_on_after_a_disk_that_took_nothing(path: str) -> None:
    """Without another start."""
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(FIRST)
        rows = [("run", seq, 1.5, "M", 1, 6, "x", "m", "{}") for seq in range(1, 6)]
        old.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        old.commit()
    with contextlib.closing(Store(path, Retention(EVERYTHING))) as store:
        store._database.execute("PRAGMA query_only = ON")
        with pytest.raises(sqlite3.OperationalError):
            store.tidy()
        store._database.execute("PRAGMA query_only = OFF")
        tidy(store)
        assert seqs(store.newest(None, 10)) == [1, 2, 3, 4, 5]
