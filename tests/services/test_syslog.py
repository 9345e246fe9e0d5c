"""The machine that keeps the records: its store."""

import pathlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from retinue.services import syslog
from retinue.services.syslog import Config, Store

Record = dict[str, Any]


def record(seq: int, machine: str = "M", **more: Any) -> Record:
    return {
        "seq": seq,
        "time": 1.5,
        "machine": machine,
        "generation": 1,
        "severity": 6,
        "logger": "x",
        "message": f"message {seq}",
        "fields": {},
    } | more


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "records.sqlite3")


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    made = Store(path, 1_000_000)
    yield made
    made.close()


def seqs(records: list[Record]) -> list[int]:
    return [each["seq"] for each in records]


def test_record_comes_back_as_it_was(store: Store) -> None:
    """Every value of it."""
    one = record(1, message="ü\x00\n", fields={"a": [1, None, {"b": 1.5}], "c": True, "d": ""})
    store.add("run", [one])
    assert store.newest(None, 10) == [one]


def test_fields_that_json_cannot_say_become_texts(store: Store) -> None:
    """A record is not refused for them."""
    store.add("run", [record(1, fields={"raw": b"\x00", "huge": 2**64 - 1})])
    assert store.newest(None, 1)[0]["fields"] == {"raw": "b'\\x00'", "huge": 2**64 - 1}


def test_newest_records_oldest_first(store: Store) -> None:
    """Of all machines or of one; as many as asked for."""
    store.add("run", [record(seq, "AB"[seq % 2]) for seq in range(1, 11)])
    assert seqs(store.newest(None, 3)) == [8, 9, 10]
    assert seqs(store.newest("A", 3)) == [6, 8, 10]
    assert seqs(store.newest("B", 100)) == [1, 3, 5, 7, 9]
    assert store.newest("C", 100) == []
    assert store.newest(None, 0) == []


def test_batch_that_comes_again_is_stored_once(store: Store) -> None:
    """Its answer was lost; also when some records are new in it."""
    store.add("run", [record(1), record(2)])
    store.add("run", [record(1), record(2)])
    store.add("run", [record(2), record(3)])
    assert seqs(store.newest(None, 10)) == [1, 2, 3]


def test_same_number_of_another_run_is_another_record(store: Store) -> None:
    """Numbers begin anew with each run of the system."""
    store.add("one", [record(1)])
    store.add("two", [record(1)])
    assert seqs(store.newest(None, 10)) == [1, 1]


def test_records_survive_the_store(path: str) -> None:
    """A new generation of the machine finds what the last one was answered for."""
    first = Store(path, 100)
    first.add("run", [record(1)])
    second = Store(path, 100)  # the first one died without a word
    second.add("run", [record(1), record(2)])
    assert seqs(second.newest(None, 10)) == [1, 2]
    second.close()
    first.close()


def test_batch_is_stored_whole_or_not_at_all(store: Store) -> None:
    """One record that cannot be stored leaves no half of its batch, and the next batch is stored."""
    with pytest.raises((sqlite3.Error, OverflowError)):
        store.add("run", [record(1), record(2**70)])
    with pytest.raises(KeyError):
        store.add("run", [record(1), {}])
    assert store.newest(None, 10) == []
    store.add("run", [record(1)])
    assert seqs(store.newest(None, 10)) == [1]


def test_locked_database_refuses_and_recovers(store: Store, path: str) -> None:
    """A disk that does not take a batch takes it later."""
    store._database.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        store.add("run", [record(1)])
    other.execute("ROLLBACK")
    other.close()
    store.add("run", [record(1)])
    assert seqs(store.newest(None, 10)) == [1]


def test_full_disk_refuses_and_recovers(store: Store) -> None:
    """The transaction is over however the disk ended it."""
    store.add("run", [record(1)])
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.add("run", [record(2, message="x" * 100_000)])
    store._database.execute(f"PRAGMA max_page_count = {pages + 1000}")
    store.add("run", [record(2)])
    assert seqs(store.newest(None, 10)) == [1, 2]


def test_oldest_records_are_removed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are more than are to be kept; looked at now and then."""
    monkeypatch.setattr(syslog, "TRIM_EVERY", 10)
    store = Store(path, 25)
    for start in range(1, 101, 5):
        store.add("run", [record(seq) for seq in range(start, start + 5)])
    kept = seqs(store.newest(None, 1000))
    assert kept == list(range(kept[0], 101))
    assert 25 <= len(kept) < 25 + 10
    store.close()


def test_answer_is_bounded_in_size(store: Store) -> None:
    """The newest ones, at least one."""
    store.add("run", [record(seq, message="x" * 1_000_000) for seq in range(1, 21)])
    found = seqs(store.newest(None, 20))
    assert found == list(range(21 - len(found), 21))
    assert 1 <= len(found) * 1_000_000 <= syslog.ANSWER_ROOM
    store.add("run", [record(21, message="x" * (syslog.ANSWER_ROOM + 1))])
    assert seqs(store.newest(None, 20)) == [21]


def test_config_keeps_at_least_one() -> None:
    """Nothing would be no syslog."""
    assert Config().keep == 1_000_000
    with pytest.raises(ValueError, match="keep"):
        Config(keep=0)
    assert attrs.has(Config)
