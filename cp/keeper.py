"""Records on their way to the machine that keeps them, as far as the topology names one.

Up to AHEAD batches are on their way at a time, so that it has the next one while the control program hears that one is
stored, and makes another. They are stored in order: each but the first names the one before it (``after``), and is
refused when that was not stored. Whatever was refused is offered again, the oldest first. A machine that has run since
before this was known does not look at ``after``: only one that answers that it keeps the order has more than one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from retinue.cp.earlier import Earlier
from retinue.cp.spill import SpillFile
from retinue.cp.tape import ENDLESS, Packed, records_of
from retinue.pipes import Path, PathError, Rejected

if TYPE_CHECKING:
    from retinue.cp.syslog import Syslog

# Records and bytes in one message: large enough that a transaction pays, small enough to be written in milliseconds.
BATCH: Final = 8_000
BATCH_BYTES: Final = 1024 * 1024
# Batches that are on their way at once: one is stored while the next one comes.
AHEAD: Final = 2
# Records that make one more batch while another one is on its way; fewer wait for its answer.
MANY: Final = 2_000
# Seconds until a batch that could not be stored is offered again.
RETRY: Final = 1.0
# Seconds until what an earlier run has left is looked at again, which could not be read.
LATER: Final = 10.0
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


@attrs.define(eq=False)
class Offer:
    """A batch on its way: its last number, how many of its records wait to be stored, and what was answered."""

    last: int
    records: int
    stored: bool = False
    refused: Rejected | None = None


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
        self._ordered = False  # the other end has said that it looks at ``after``
        self._offers: deque[Offer] = deque()
        self._wanted = 0  # so many waiting records are worth a look
        self._earlier = Earlier(syslog, first_of)
        self._unread_told = False
        self._told_at = -1  # what was stored when losses were told last
        # Up to this number records were offered to somebody who did not answer; by a predecessor perhaps.
        self._unsure = self._journal.offered = self._may_be_stored()
        self._left = trio.Event()  # there is something to look at again

    def notice(self) -> None:
        """There are more records."""
        if self._journal.unkept >= self._wanted:
            self._came.set()

    @property
    def there(self) -> bool:
        """Whether there is a path to the machine now."""
        return self._path is not None

    @property
    def aside(self) -> list[str]:
        """Machines of which something was set aside on the disk, as far as it was seen."""
        return self._earlier.aside

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
                    self._ordered = False
                    async with trio.open_nursery() as nursery:
                        if not await self._earlier.pour(self._path, self._form):
                            self._left.set()
                        nursery.start_soon(self._pour_later, self._path)
                        await self._pour(self._path)
            except* PathError:
                pass  # it died, or was not ready after all: again
            finally:
                self._path = None
            await trio.sleep(AGAIN)

    async def _pour(self, path: Path) -> None:
        journal = self._journal
        self._forget_offers()
        async with trio.open_nursery() as nursery:
            while True:
                await self._wait_for_more()
                self._tell_losses()
                if self._unoffered < FEW and not self._urgent:
                    await trio.sleep(GATHER)
                if not await self._none_refused(path):
                    continue
                after = self._offers[-1].last if self._offers else journal.stored
                batch, unread = self._next_batch(after)
                if batch:
                    self._unread_told = self._unread_told and bool(unread)
                    # Of the first chunk some records may be stored already.
                    records = sum(min(chunk.records, chunk.last - after) for chunk in batch)
                    before = after if self._offers else None
                    offer = Offer(batch[-1].last, records)
                    self._offers.append(offer)
                    journal.offered = max(journal.offered, offer.last)
                    # It is sent before this goes on, so they are sent in order.
                    await nursery.start(self._store, path, batch, offer, before)
                elif self._offers:
                    await self._look(ENDLESS)
                elif unread:
                    await self._wait_for_disk(unread)
                else:
                    journal.recount()
                    await trio.lowlevel.checkpoint()

    def _may_be_stored(self) -> int:
        """The last number that a predecessor who was killed may have offered: nobody knows what of it is stored.

        It has cut batches of what there was then, from the same records on: theirs end no later than these.
        """
        journal = self._journal
        last = journal.stored
        for _ in range(AHEAD if journal.keeping else 0):
            batch, unread = self._next_batch(last)
            if unread:
                return journal.last  # it may have read them
            last = batch[-1].last if batch else last
        return last

    def _tell_losses(self) -> None:
        """Write what is lost; not again before something was stored: a gap may cost the place of others."""
        journal = self._journal
        if (losses := journal.losses) and (self._told_at != journal.stored or not journal.unkept):
            self._told_at = journal.stored
            for machine, cause, lost in losses:
                self._syslog.write_told(machine, cause, lost)

    def _forget_offers(self) -> None:
        """They are to be offered again. What was refused waits like any other; what was not answered may be stored."""
        self._unsure = max([self._unsure, *(offer.last for offer in self._offers if not offer.refused)])
        self._offers.clear()
        self._journal.offered = max(self._journal.stored, self._unsure)

    def _next_batch(self, after: int) -> tuple[Sequence[Packed], Sequence[tuple[str, SpillFile, OSError]]]:
        """The oldest chunks with higher numbers, as far as they can be read, and the files that cannot be now."""
        batch = first_of(self._journal.packed(after=after))
        spill = self._journal.room.spill
        return (batch, ()) if not spill else (spill.before_unread(batch), spill.unread)

    @property
    def _unoffered(self) -> int:
        """How many records wait and are not on their way."""
        return self._journal.unkept - sum(offer.records for offer in self._offers)

    async def _wait_for_more(self) -> None:
        """Until there is something to offer, and it may be offered; or something was refused."""
        while not any(offer.refused for offer in self._offers):
            if not self._offers:
                if self._journal.unkept or self._journal.losses:
                    return
                await self._look(0)
            elif len(self._offers) >= (AHEAD if self._ordered else 1):
                await self._look(ENDLESS)
            else:
                more = MANY - self._unoffered
                if more <= 0:
                    return
                await self._look(self._journal.unkept + more)

    async def _look(self, wanted: int) -> None:
        """Until something was answered, or so many records wait."""
        self._wanted = wanted
        self._came = trio.Event()
        await self._came.wait()

    async def _none_refused(self, path: Path) -> bool:
        """Whether nothing was refused; what was is forgotten, after a while, and is to be offered again."""
        if not any(offer.refused for offer in self._offers):
            return True
        while not all(offer.stored or offer.refused for offer in self._offers):
            await self._look(ENDLESS)
        why = self._offers[0].refused
        self._forget_offers()
        if why is not None and why.code == "unknown-verb" and self._form is in_chunks:
            self._form = in_records  # of a release before this control program, which is not older than that
            self._ordered = False
        else:
            # It said why in a record of its own; the batch stays here until its disk takes it, or there is another one.
            with trio.move_on_after(RETRY):
                await path.wait_severed()
        return False

    async def _store(
        self,
        path: Path,
        batch: Sequence[Packed],
        offer: Offer,
        after: int | None,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        body = {"run": self._syslog.run, **self._form(batch), "after": after, "last": offer.last}
        task_status.started()
        try:
            match await path.call(["store", body]):
                case {"ordered": True}:
                    self._ordered = self._form is in_chunks
            offer.stored = True
        except Rejected as exc:
            offer.refused = exc
        while self._offers and self._offers[0].stored:
            oldest = self._offers.popleft()
            self._journal.store(oldest.last, oldest.records)
            self._stored.set()
            self._stored = trio.Event()
            self._syslog.waiting.unpark_all()
        self._came.set()

    async def _pour_later(self, path: Path) -> None:
        """Hand over what of earlier runs could not be read, or was not taken, or was set aside, as soon as it can."""
        while True:
            await self._left.wait()
            self._left = trio.Event()
            await trio.sleep(LATER)
            if not await self._earlier.pour(path, self._form):
                self._left.set()

    async def _wait_for_disk(self, unread: Sequence[tuple[str, SpillFile, OSError]]) -> None:
        """What is to be handed over next lies on the disk, and cannot be read now."""
        machine, _, why = unread[0]
        if not self._unread_told:
            self._unread_told = True
            text = f"what {machine} has on the disk cannot be read now, and all that came later waits: {why}"
            self._syslog.write(WARNING, text, fields={"of": machine})
        spill = self._journal.room.spill
        if spill is not None and self._earlier.set_aside(spill, self._journal.stored):
            self._unread_told = False
            self._journal.recount()
            self._left.set()
        await trio.sleep(RETRY)

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
        return await self._call("select", query)

    async def names(self) -> Any:
        """The names of machines of which it has stored something, which nobody has checked. PathError likewise."""
        return await self._call("machines", {})

    async def _call(self, verb: str, arguments: dict[str, Any]) -> Any:
        if (path := self._path) is None:
            raise Rejected("not-ready", "it is not there")
        return await path.call([verb, arguments])
