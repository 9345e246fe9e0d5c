"""How far records have been sent on: each once, whenever it was stored."""

import sqlite3

from tests.services.stored import add, record

from retinue.services.syslog import Store
from retinue.services.syslog.places import Places
from retinue.services.syslog.retention import Retention

Sent = list[tuple[str, int]]


def put(store: Store, places: Places | None, run: str, *numbers: int) -> None:
    add(store, run, [record(number) for number in numbers])
    if places is not None:
        places.came(run)


def take(places: Places, most: int = 3) -> Sent:
    """All that is given, in batches."""
    found: Sent = []
    while rows := places.next(most)[1]:
        assert len(rows) <= most
        found += [(row.run, row.seq) for row in rows]
    return found


def of(run: str, *numbers: int) -> Sent:
    return [(run, number) for number in numbers]


def test_each_record_is_given_once(store: Store) -> None:
    """Oldest runs first, in order; also what an earlier run had left on the disk, and is stored late."""
    put(store, None, "one", 1, 2, 3, 4)
    places = Places(store, "x")
    assert take(places) == of("one", 1, 2, 3, 4)
    put(store, places, "two", 1, 2)
    assert take(places) == of("two", 1, 2)
    put(store, places, "one", 5, 6, 9)
    put(store, places, "two", 3)
    assert take(places) == of("one", 5, 6, 9) + of("two", 3)
    put(store, places, "one", 4, 5, 6)  # once more: a file that could not be removed
    assert take(places) == []


def test_what_does_not_count_is_given_again(store: Store, path: str) -> None:
    """As far as nobody has kept it; a successor knows what was."""
    put(store, None, "one", 1, 2)
    put(store, None, "two", 1)
    places = Places(store, "x")
    assert take(places) == of("one", 1, 2) + of("two", 1)
    places.back()
    assert take(places) == of("one", 1, 2) + of("two", 1)
    places.keep()
    put(store, places, "one", 3)
    assert take(places) == of("one", 3)
    places.keep(save=False)
    places.back()
    assert take(places) == []
    assert take(Places(store, "x")) == of("one", 3)
    put(store, places, "two", 2)
    assert take(places) == of("two", 2)
    places.keep()
    other = Store(path, Retention(10))
    assert take(Places(other, "x")) == []
    assert take(Places(other, "y")) == of("one", 1, 2, 3) + of("two", 1, 2)
    assert other.place("x") == other.newest_id
    other.close()


def test_place_of_an_earlier_release(store: Store) -> None:
    """It was one for all: what was there before it is not given again, and what comes late is."""
    put(store, None, "one", 1, 2)
    put(store, None, "two", 1, 2, 3)
    place = store.after(0, 10)[3].id
    store.database.execute("INSERT INTO places VALUES ('x', ?)", (place,))
    places = Places(store, "x")
    put(store, None, "one", 3)  # it ends before it hears of it
    assert take(places) == of("one", 3) + of("two", 3)
    places = Places(store, "x")
    assert take(places) == of("one", 3) + of("two", 3)
    places.keep()
    store.database.execute("UPDATE places SET place = place + 1 WHERE name = 'x'")  # by an earlier release, once more
    put(store, None, "two", 4, 5)
    assert take(Places(store, "x")) == of("two", 5)


def test_release_in_between_that_knew_one_place(store: Store) -> None:
    """What it has passed is not given again, once and for all; what comes late of these runs is."""
    for run in ("one", "two", "three", "four"):
        put(store, None, run, 1, 2)
        if run == "one":
            places = Places(store, "x")
            assert take(places, 1) == of("one", 1, 2)
            places.keep()
    place = next(row.id for row in store.after(0, 10) if (row.run, row.seq) == ("three", 1))
    store.database.execute("UPDATE places SET place = ? WHERE name = 'x'", (place,))
    assert take(Places(store, "x")) == of("three", 2) + of("four", 1, 2)
    put(store, None, "two", 3)
    assert take(Places(store, "x")) == of("two", 3) + of("three", 2) + of("four", 1, 2)


def test_full_disk_keeps_no_places_and_they_are_kept_later(store: Store, path: str) -> None:
    """Nothing is given twice for it while the program lives."""
    put(store, None, "one", 1)
    places = Places(store, "x")
    assert take(places) == of("one", 1)
    store.database.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    places.keep()
    other.execute("ROLLBACK")
    other.close()
    assert store.place("x") == 0
    places.back()
    assert take(places) == []
    put(store, places, "two", 1)
    assert take(places) == of("two", 1)
    places.keep()
    assert take(Places(store, "x")) == []


def test_records_of_the_first_schema_are_given_when_they_are_moved(path: str) -> None:
    """Although records of later runs are there before them."""
    first = sqlite3.connect(path)
    first.execute(
        "CREATE TABLE records (run TEXT, seq INTEGER, time REAL, machine TEXT, generation INTEGER, severity INTEGER,"
        " logger TEXT, message TEXT, fields TEXT, PRIMARY KEY (run, seq))"
    )
    rows = [("old", seq, 1.5, "M", 1, 6, "x", "m", "{}") for seq in range(1, 5)]
    first.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    first.commit()
    first.close()
    store = Store(path, Retention(100))
    put(store, None, "new", 1)
    places = Places(store, "x")
    assert take(places) == of("new", 1)
    places.keep()
    while store.moving:
        store.tidy()
        places.look()
    assert take(places) == of("old", 1, 2, 3, 4)
    store.close()
