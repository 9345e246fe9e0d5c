"""Records on their way to the machine that keeps them, as far as the topology names one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.cp.losses import gap
from retinue.cp.tape import Packed, records_of
from retinue.pipes import Path, PathError, Rejected

if TYPE_CHECKING:
    from retinue.cp.syslog import Syslog

# Records and bytes in one message: large enough that a transaction pays, small enough to be written in milliseconds.
BATCH: Final = 8_000
BATCH_BYTES: Final = 1024 * 1024
# Seconds until a batch that could not be stored is offered again.
RETRY: Final = 1.0
# Seconds until a path to a machine that has just ended one is asked for again.
AGAIN: Final = 0.1
# Seconds a small batch may wait for more records. Each batch costs a transaction.
GATHER: Final = 0.05
# From so many on it does not wait.
FEW: Final = 500
# What a chunk costs in a message beside its records.
OVERHEAD: Final = 100

WARNING = 4


def in_chunks(batch: Sequence[Packed]) -> dict[str, Any]:
    """Records as they lie in the journal: nobody here unpacks them."""
    return {"chunks": [[chunk.machine, chunk.generation, chunk.first, chunk.blob] for chunk in batch]}


def in_records(batch: Sequence[Packed]) -> dict[str, Any]:
    """Records one by one, for a machine that has run since before chunks were known."""
    return {"records": records_of(batch)}


def first_of(chunks: Iterable[Packed]) -> list[Packed]:
    """As many of them as make one message."""
    batch: list[Packed] = []
    records = room = 0
    for chunk in chunks:
        records += chunk.records
        room += len(chunk.blob) + OVERHEAD
        if batch and (records > BATCH or room > BATCH_BYTES):
            break
        batch.append(chunk)
    return batch


class Keeper:
    """Hands the records of a system to the machine that keeps them, and asks it for them."""

    def __init__(self, syslog: "Syslog") -> None:
        self._syslog = syslog
        self._journal = syslog.journal
        self._came = trio.Event()
        self._stored = trio.Event()
        self._urgent = 0  # how many wait for everything to be stored
        self._path: Path | None = None
        self._form = in_chunks

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
                    self._form = in_chunks
                    await self._pour_earlier(self._path)
                    await self._pour(self._path)
            except* PathError:
                pass  # it died, or was not ready after all: again
            finally:
                self._path = None
            await trio.sleep(AGAIN)

    async def _pour(self, path: Path) -> None:
        journal = self._journal
        while True:
            while not journal.unkept and not journal.losses:
                self._came = trio.Event()
                await self._came.wait()
            for machine, cause, lost in journal.losses:
                self._syslog.write_told(machine, cause, lost)
            if journal.unkept < FEW and not self._urgent:
                await trio.sleep(GATHER)
            stored, batch = journal.stored, self._batch()
            if not batch:
                journal.recount()
                continue
            journal.offered = batch[-1].last
            try:
                await path.call(["store", {"run": self._syslog.run, **self._form(batch)}])
            except Rejected as exc:
                if exc.code == "unknown-verb" and self._form is in_chunks:
                    self._form = in_records  # of a release before this control program, which is not older than that
                    continue
                # It said why in a record of its own; the batch stays here until its disk takes it.
                await trio.sleep(RETRY)
                continue
            journal.store(batch[-1].last, sum(min(chunk.records, chunk.last - stored) for chunk in batch))
            self._stored.set()
            self._stored = trio.Event()
            self._syslog.waiting.unpark_all()

    def _batch(self) -> list[Packed]:
        """The oldest chunks that wait; of the first one some records may be stored already."""
        return first_of(self._journal.packed(after=self._journal.stored))

    async def _pour_earlier(self, path: Path) -> None:
        """Hand over what earlier runs of the system have left on the disk."""
        spill = self._journal.room.spill
        for earlier in spill.earlier() if spill is not None else ():
            after = 0
            while batch := first_of(earlier.packed(after)):
                try:
                    await path.call(["store", {"run": earlier.run, **self._form(batch)}])
                except Rejected:
                    return  # the next time, then
                after = batch[-1].last
                earlier.stored(after)
            for machine, file, lost in earlier.broken:
                text, fields = gap(machine, "spill", lost, self._syslog.policies.of(machine))
                self._syslog.write(WARNING, text, machine=machine, fields=fields)
                earlier.remove(machine, file)
            earlier.close()

    async def settle(self) -> None:
        """Until every record there is now has been stored; at once when nobody keeps them."""
        journal = self._journal
        last = journal.last
        with self.urgent():
            while journal.keeping and self.unkept and journal.stored < last:
                await self._stored.wait()

    @contextmanager
    def urgent(self) -> Iterator[None]:
        """Somebody waits until more is stored: no batch waits for more records."""
        self._urgent += 1
        try:
            yield
        finally:
            self._urgent -= 1

    async def ask(self, query: dict[str, Any]) -> Any:
        """The answer of the machine that keeps records, which nobody has checked. PathError when it is not there."""
        if (path := self._path) is None:
            raise Rejected("not-ready", "it is not there")
        return await path.call(["select", query])
