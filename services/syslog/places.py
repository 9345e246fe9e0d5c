"""How far the records of each run of the system have been sent on.

Records of one run are stored in their order, and so they are sent. Those of an earlier run may be stored late, after
some of later runs: they had waited on the disk. So each run has a place of its own, and whoever stores something says
of which run it is.
"""

import contextlib
import sqlite3
from collections.abc import Sequence
from typing import Final

from retinue.services.syslog.row import Row
from retinue.services.syslog.schema import RUN_BITS
from retinue.services.syslog.store import Store

# The number of a record in its run, of an id.
NUMBER: Final = (1 << RUN_BITS) - 1


class Places:
    """The places of whoever has that ``name``. What :meth:`next` has given counts from :meth:`keep` on."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._kept: dict[int, int] = {}  # the id of the last record that counts, by run
        self._given: dict[int, int] = {}  # the same of those that do not yet
        self._unsaved: set[int] = set()
        self._runs: dict[str, int] = {}
        self._news: set[str] = set()
        self._open = set(self._numbers())  # runs in which there may be more
        self._load()

    def _load(self) -> None:
        query = "SELECT name, place FROM places WHERE substr(name, 1, ?) = ?"
        prefix = f"{self._name}/"
        found = self._store.database.execute(query, (len(prefix), prefix)).fetchall()
        self._kept = {int(name.removeprefix(prefix)): place for name, place in found}
        last = self._store.place(self._name)
        if last and not found:
            # Of a release that knew one place: whatever was there of the runs before it is behind it.
            self._kept = {run: self._newest(run) for run in self._open if run < last >> RUN_BITS}
            self._unsaved = {*self._kept, last >> RUN_BITS}
        elif last and last >> RUN_BITS > (known := max(self._kept)):
            # Such a release has gone on from the last run that is known here, through all up to its own.
            passed = {run: self._newest(run) for run in self._open if known <= run < last >> RUN_BITS}
            self._kept |= {run: max(place, self._kept.get(run, 0)) for run, place in passed.items()}
            self._unsaved = {*passed, last >> RUN_BITS}
        if last:
            self._kept[last >> RUN_BITS] = max(last, self._kept.get(last >> RUN_BITS, 0))
        self._save()

    def look(self) -> None:
        """There may be more of any run."""
        self._open |= set(self._numbers())

    def came(self, run: str) -> None:
        """There is more of a run."""
        self._news.add(run)

    def next(self, most: int) -> tuple[int, Sequence[Row]]:
        """Records that follow in their run, in order, and the place before them; none when there are no more.

        sqlite3.Error when the disk does not tell.
        """
        for name in [*self._news]:
            self._open.add(self._number(name))
            self._news.discard(name)
        while self._open:
            run = min(self._open)
            place = self._given.get(run) or self._kept.get(run) or run << RUN_BITS
            if self._newest(run) > place:
                rows = [row for row in self._store.after(place, most) if row.id >> RUN_BITS == run]
                self._given[run] = rows[-1].id
                return place, rows
            self._open.discard(run)
        return 0, ()

    def first(self, row: Row) -> bool:
        """Whether nothing older is stored than this record."""
        return self._store.after(0, 1)[0].id == row.id

    def back(self) -> None:
        """What was given and does not count is given again."""
        self._open |= self._given.keys()
        self._given.clear()

    def keep(self, *, save: bool = True) -> None:
        """What was given counts. It is written down now, or with what is next: a successor goes on from there."""
        self._kept |= self._given
        self._unsaved |= self._given.keys()
        self._given.clear()
        if save:
            self._save()

    def _save(self) -> None:
        if not self._unsaved:
            return
        places = [(f"{self._name}/{run}", self._kept[run]) for run in self._unsaved]
        # An earlier release goes on from this one.
        places.append((self._name, max(self._kept.values())))
        database = self._store.database
        with contextlib.suppress(sqlite3.Error):  # a full disk, of which storing tells; the next places do as well
            database.execute("BEGIN IMMEDIATE")
            try:
                database.executemany("INSERT OR REPLACE INTO places VALUES (?, ?)", places)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
            self._unsaved.clear()

    def _number(self, run: str) -> int:
        number = self._runs.get(run)
        if number is None:
            (number,) = self._store.database.execute("SELECT number FROM runs WHERE name = ?", (run,)).fetchone()
            self._runs[run] = number
        return number

    def _numbers(self) -> list[int]:
        return [number for (number,) in self._store.database.execute("SELECT number FROM runs")]

    def _newest(self, run: int) -> int:
        """The id of the newest record of a run; before its first one if there is none."""
        query = "SELECT max(id) FROM entries WHERE id > ? AND id <= ?"
        start = run << RUN_BITS
        (found,) = self._store.database.execute(query, (start, start | NUMBER)).fetchone()
        return int(found or start)
