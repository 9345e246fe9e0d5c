"""Records on their way to the machine that keeps them, as far as the topology names one."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final

import trio

from retinue.cp.checking import checked_records
from retinue.cp.records import Record
from retinue.pipes import Path, PathError, Rejected

if TYPE_CHECKING:
    from retinue.cp.syslog import Syslog

# Records in one message: large enough that a transaction pays, small enough to be written in milliseconds.
BATCH: Final = 500
# Seconds until a batch that could not be stored is offered again.
RETRY: Final = 1.0
# Seconds until a path to a machine that has just ended one is asked for again.
AGAIN: Final = 0.1
# Seconds a small batch may wait for more records. Each batch costs a transaction.
GATHER: Final = 0.05
# Seconds a query of the kept records may take before those answer that are in memory.
QUERY_LIMIT: Final = 10.0

NOTICE, WARNING = 5, 4


class Keeper:
    """Hands the records of a system to the machine that keeps them, and asks it for them."""

    def __init__(self, syslog: "Syslog") -> None:
        self._syslog = syslog
        self._journal = syslog.journal
        self._came = trio.Event()
        self._stored = trio.Event()
        self._urgent = 0  # how many wait for everything to be stored
        self._path: Path | None = None

    def notice(self) -> None:
        """There are more records."""
        self._came.set()

    @property
    def there(self) -> bool:
        """Whether there is a path to the machine now."""
        return self._path is not None

    @property
    def unkept(self) -> int:
        """How many records wait to be stored."""
        return self._journal.unkept if self._journal.keeping else 0

    async def run(self, connect: Callable[[], AbstractAsyncContextManager[Path]]) -> None:
        """Hand over every record, from the first one on; runs until it is cancelled.

        ``connect`` opens a path to that machine, waiting while it is not there. A batch leaves the backlog when the
        machine has answered that it is stored. It is offered again by the next control program if this one is killed
        before it has taken note of the answer: a record is known by its run and its number.
        """
        self._journal.keep()
        while True:
            try:
                async with connect() as self._path:
                    await self._pour(self._path)
            except* PathError:
                pass  # it died, or was not ready after all: again
            finally:
                self._path = None
            await trio.sleep(AGAIN)

    async def _pour(self, path: Path) -> None:
        journal = self._journal
        while True:
            while not journal.unkept and not journal.lost:
                self._came = trio.Event()
                await self._came.wait()
            for machine, lost in journal.lost.items():
                text = f"-- {lost} records of {machine} lost: the syslog machine was away for too long --"
                self._syslog.write_told(WARNING, text, machine, {"lost": lost})
            if journal.unkept < BATCH and not self._urgent:
                await trio.sleep(GATHER)
            batch = self._syslog.since(journal.stored, most=BATCH)
            journal.offered = batch[-1]["seq"]
            try:
                await path.call(["store", {"run": self._syslog.run, "records": batch}])
            except Rejected:
                # It said why in a record of its own; the batch stays here until its disk takes it.
                await trio.sleep(RETRY)
                continue
            journal.store(batch)
            self._stored.set()
            self._stored = trio.Event()

    async def settle(self) -> None:
        """Until every record there is now has been stored; at once when nobody keeps them."""
        journal = self._journal
        last = journal.last
        self._urgent += 1
        try:
            while journal.keeping and self.unkept and journal.stored < last:
                await self._stored.wait()
        finally:
            self._urgent -= 1

    async def records(self, machine: str | None, count: int) -> list[Record]:
        """The newest records, oldest first: from the machine that keeps them, else those that are in memory."""
        if (path := self._path) is not None:
            with trio.move_on_after(QUERY_LIMIT):
                try:
                    await self.settle()
                    return checked_records(await path.call(["query", {"machine": machine, "count": count}]))
                except PathError as exc:
                    self._syslog.write(NOTICE, f"the syslog machine did not answer a query: {exc}")
        return self._syslog.recent(machine, count)
