"""SYSLOG: the machine that keeps the records of ``*LOG``.

Config
    ``keep`` (records, default 1,000,000), ``keep_bytes`` (such as "2G"), ``keep_age`` (such as "30d"): the oldest are
    removed when there are more, when they take more, when they were stored longer ago. ``forward``: where records are
    sent on to, :class:`~retinue.services.syslog.forward.Forward`.

Disks
    ``a``: the database ``records.sqlite3`` in WAL mode.

Edges
    Uses one to TCPIP, to send records on. Provides: the control program hands it records and asks for them; see
    :func:`main` for the verbs.

A batch is one transaction and is answered after the commit, so what was answered survives a kill -9. A batch that comes
again (its answer was lost with the machine, or with the control program) is stored once: a record is known by its run
and its sequence number. While the disk takes nothing, batches are refused, which one record says; they wait in the
control program until there is room. A batch that was sent before the one before it was answered names that (``after``,
its last number), and is refused unless that was the last one stored: records are stored in their order. Each answer
says so (``ordered``): nothing is sent ahead to an earlier release, which does not look at ``after``.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import attrs
import msgpack
import trio

from retinue.pipes import Message, Rejected
from retinue.services.syslog.forward import Forward, Forwarder
from retinue.services.syslog.query import Desk
from retinue.services.syslog.retention import Retention, bytes_of, check_age, check_bytes, seconds_of
from retinue.services.syslog.store import Chunk
from retinue.services.syslog.store import Store as Store
from retinue.svm import Machine

# Seconds between two looks at how much there is.
PAUSE: Final = 0.5

_log = logging.getLogger(__name__)


@attrs.frozen
class Config:
    """What the topology may say about the machine."""

    keep: int = attrs.field(default=1_000_000, validator=attrs.validators.gt(0))
    keep_bytes: str | int | None = attrs.field(default=None, validator=check_bytes)
    keep_age: str | None = attrs.field(default=None, validator=check_age)
    forward: Forward | None = None

    @property
    def retention(self) -> Retention:
        """How much is kept."""
        size, age = self.keep_bytes, self.keep_age
        return Retention(self.keep, None if size is None else bytes_of(size), None if age is None else seconds_of(age))


class Storing:
    """What stores batches, and says so when the disk takes none, and again when it does."""

    def __init__(self, store: Store) -> None:
        self.forwarder: Forwarder | None = None
        self._store = store
        self._refused = 0
        self._newest: tuple[str, object] | None = None  # the run and the last number of the last batch with one

    def add(self, run: str, chunks: Sequence[Chunk], after: object = None, last: object = None) -> dict[str, bool]:
        """Store a batch, up to the number ``last``, if the one before it was stored that is named by ``after``.

        The answer says that it keeps this order.

        Rejected ``not-stored`` when that cannot be, ``out-of-order`` when the one before it was not stored.
        """
        if after is not None and self._newest != (run, after):
            raise Rejected("out-of-order", "the batch before it was not stored")
        try:
            self._store.add(run, chunks)
        except sqlite3.Error as exc:
            if not self._refused:
                _log.error("records cannot be stored, they wait in the control program: %s", exc)
            self._refused += 1
            raise Rejected("not-stored", str(exc)) from None
        if last is not None:  # what is left of earlier runs may come in between
            self._newest = run, last
        if self._refused:
            _log.info("records are stored again, after %d refused batches", self._refused)
            self._refused = 0
        if self.forwarder is not None:
            self.forwarder.notice(run)
        return {"ordered": True}

    async def tidy(self) -> None:
        """Remove what is not kept any longer, in small steps; runs until it is cancelled."""
        while True:
            try:
                more = True
                while more:
                    moving = self._store.moving
                    more = self._store.tidy()
                    if moving and self.forwarder is not None:
                        self.forwarder.notice()
                    await trio.lowlevel.checkpoint()
            except sqlite3.Error:
                pass  # a disk that takes nothing: who wants to store says so
            await trio.sleep(PAUSE)


def chunks_of(records: Sequence[dict[str, Any]]) -> list[Chunk]:
    """Records one by one, as control programs before this release hand them over."""
    return [
        (
            each["machine"],
            each["generation"],
            each["seq"],
            msgpack.packb([[each[name] for name in ("time", "severity", "logger", "message", "fields")]]),
        )
        for each in records
    ]


async def main(vm: Machine[Config]) -> None:
    """Keep records until the system ends."""
    path = str(vm.disk("a") / "records.sqlite3")
    store = Store(path, vm.config.retention)
    storing = Storing(store)
    desk = Desk(path)

    async def handle(message: Message) -> Any:
        # Only the control program may write and read here; others ask it over an edge to *LOG.
        if message.path.peer != "*LOG":
            raise Rejected("denied", f"{vm.name} takes records from the control program only: use an edge to *LOG")
        match message.body:
            case ["store", {"run": str(run), "chunks": list(chunks), **order}]:
                return storing.add(run, chunks, order.get("after"), order.get("last"))
            case ["store", {"run": str(run), "records": list(records)}]:
                # Control programs before chunks were known.
                return storing.add(run, chunks_of(records))
            case ["select", dict(query)]:
                return await desk.select(query)
            case ["machines", {}]:
                return await desk.machines()
            case ["query", {"machine": str() | None as machine, "count": int(count)}]:
                # Control programs before this release ask so.
                return await desk.select({"machine": machine and [machine], "count": count})
        raise Rejected("unknown-verb", "SYSLOG knows store, select and machines")

    with contextlib.closing(store), contextlib.closing(desk):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storing.tidy)
            if vm.config.forward is not None:
                storing.forwarder = Forwarder(vm, vm.config.forward, store, nursery)
                nursery.start_soon(storing.forwarder.run)
            await vm.serve(handle)
            if storing.forwarder is not None:
                await storing.forwarder.finish()
            nursery.cancel_scope.cancel()
