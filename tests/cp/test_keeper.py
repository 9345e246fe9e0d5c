"""Batches of records on their way to the machine that keeps them: two at a time, stored in order and once."""

import os
import pathlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
import trio
import trio.testing
from tests.cp.keepers import handing_over, served

from retinue.cp import keeper as module
from retinue.cp.directory.model import LogPolicy
from retinue.cp.journal import LEAST_ROOM, Journal
from retinue.cp.log_policy import LogPolicies
from retinue.cp.syslog import Syslog
from retinue.pipes import Message, Path, Rejected
from retinue.services.syslog import Store, Storing
from retinue.services.syslog.retention import Retention
from retinue.services.syslog.store import Chunk

EVERYTHING = 10_000_000


class Disk(Store):
    """A store that notes what it was given; ``before`` may refuse it."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(str(path), Retention(EVERYTHING))
        self.given: list[int] = []
        self.before: Callable[[], None] = lambda: None

    def add(self, run: str, chunks: Any) -> None:
        self.before()
        super().add(run, chunks)
        self.given.append(chunks[0][2])

    def seqs(self) -> list[int]:
        return [row.seq for row in self.after(0, EVERYTHING)]


class Keeper:
    """SYSLOG, but for its process: it takes batches from when it is let, and the first one of each path at once.

    ``orders`` is what each has said of itself.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.let = trio.Event()
        self.orders: list[tuple[int | None, int]] = []
        self.ended: Callable[[], None] = lambda: None
        self.knows_order = True

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Path]:
        storing = Storing(self.disk)  # each process knows nothing of those before it

        async def store(message: Message) -> Any:
            _, body = message.body
            self.orders.append((body["after"], body["last"]))
            chunks: list[Chunk] = body["chunks"]
            answer: Any = None
            if self.knows_order:
                answer = storing.add(body["run"], chunks, body["after"], body["last"])
            else:
                storing.add(body["run"], chunks)
            self.ended()
            return answer

        async def serve(other: Path) -> None:
            first = await other.receive()
            await first.reply(await store(first))
            await self.let.wait()
            await other.serve(store)

        async with served(serve) as (path, self.other):
            yield path


@pytest.fixture
def keeper(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {"RETRY": 0.001, "AGAIN": 0.001, "BATCH": 200, "MANY": 100, "FEW": 50}.items():
        monkeypatch.setattr(module, name, value)
    disk = Disk(tmp_path / "records.sqlite3")
    yield Keeper(disk)
    disk.close()


def flooded(count: int, policies: LogPolicies | None = None, journal: Journal | None = None, text: str = "") -> Syslog:
    """A log with so many records that wait."""
    log = Syslog(policies=policies, journal=journal)
    log.journal.keep()
    for number in range(count):
        log.write(5, f"record {number}{text}", machine="AB"[number % 2])
    return log


async def test_next_batch_is_there_before_one_is_stored(keeper: Keeper) -> None:
    """But not one more; each names the one before it that was not stored yet, and that is offered is known."""
    log = flooded(5 * module.BATCH)
    async with handing_over(log, keeper.connect):
        assert keeper.other.pending == module.AHEAD == 2
        assert log.journal.stored == module.BATCH
        assert log.journal.offered == 3 * module.BATCH
        assert log.keeper.unkept == 4 * module.BATCH
        keeper.let.set()
        await log.keeper.settle()
        assert log.journal.stored == log.journal.offered == log.journal.last
    assert keeper.disk.seqs() == [*range(1, 5 * module.BATCH + 1)]
    assert keeper.disk.given == sorted({*keeper.disk.given})
    lasts = [last for _, last in keeper.orders]
    assert all(after in (None, last) for (after, _), last in zip(keeper.orders[1:], lasts, strict=False))
    assert [after for after, _ in keeper.orders[:3]] == [None, None, lasts[1]]


async def test_one_that_does_not_know_the_order_has_one_batch(keeper: Keeper) -> None:
    """It would store the second one although the first was refused."""
    keeper.knows_order = False
    log = flooded(4 * module.BATCH)
    async with handing_over(log, keeper.connect):
        assert keeper.other.pending == 1
        keeper.let.set()
        await log.keeper.settle()
    assert [after for after, _ in keeper.orders] == [None] * 4


async def test_few_records_wait_for_the_answer(keeper: Keeper) -> None:
    """A batch costs a transaction: while one is on its way, only many are worth another."""
    log = flooded(module.FEW)
    async with handing_over(log, keeper.connect):
        assert keeper.other.pending == 0
        for _ in range(module.FEW):
            log.write(5, "one after the first batch")
        await trio.testing.wait_all_tasks_blocked()
        assert keeper.other.pending == 1
        for _ in range(module.MANY - 1):
            log.write(5, "one more")
        await trio.testing.wait_all_tasks_blocked()
        assert keeper.other.pending == 1
        log.write(5, "the last one")
        await trio.testing.wait_all_tasks_blocked()
        assert keeper.other.pending == 2
        log.write(5, "afterwards")
        keeper.let.set()
        await log.keeper.settle()
    assert keeper.disk.seqs() == [*range(1, log.last + 1)]


@pytest.mark.parametrize("refusals", [1, 3, 4])
@pytest.mark.parametrize("knows_order", [True, False])
async def test_batch_after_one_that_is_refused(refusals: int, knows_order: bool, keeper: Keeper) -> None:
    """It is not stored before it, though there would be room again: all come again, in order."""
    log = flooded(4 * module.BATCH)
    keeper.knows_order = knows_order
    left = refusals

    def refuse() -> None:
        nonlocal left
        if left and len(keeper.orders) > 1:
            left -= 1
            raise sqlite3.OperationalError("database or disk is full")

    keeper.disk.before = refuse
    keeper.let.set()
    async with handing_over(log, keeper.connect):
        await log.keeper.settle()
        assert log.journal.stored == log.journal.last
        assert log.keeper.unkept == 0
    assert keeper.disk.seqs() == [*range(1, log.last + 1)]
    assert keeper.disk.given == sorted({*keeper.disk.given})


async def test_second_batch_of_two_that_is_refused(keeper: Keeper) -> None:
    """The one before it is stored, and does not come again."""
    log = flooded(4 * module.BATCH)
    calls = 0

    def refuse() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise sqlite3.OperationalError("database or disk is full")

    keeper.disk.before = refuse
    async with handing_over(log, keeper.connect):
        keeper.let.set()
        await log.keeper.settle()
    assert keeper.disk.seqs() == [*range(1, log.last + 1)]
    assert keeper.disk.given == sorted({*keeper.disk.given})


def test_what_an_earlier_run_has_left_comes_in_between(keeper: Keeper) -> None:
    """It is no batch of this run; of this one each still follows the one before it."""
    storing = Storing(keeper.disk)
    log = flooded(3)
    first, second, third = ([[*chunk[:3], chunk[4]]] for chunk in log.journal.packed(after=0))
    storing.add("this", first, None, 1)
    storing.add("earlier", first)
    storing.add("this", second, 1, 2)
    with pytest.raises(Rejected, match="out-of-order"):
        storing.add("this", third, 1, 3)
    with pytest.raises(Rejected, match="out-of-order"):
        storing.add("another", third, 2, 3)
    storing.add("this", third, 2, 3)
    assert sorted(keeper.disk.seqs()) == [1, 1, 2, 3]


@pytest.mark.parametrize("when", ["before", "first", "second"])
async def test_keeper_that_dies_with_two_batches(when: str, keeper: Keeper) -> None:
    """Before it has stored one, or when it has stored one or both and not answered: each is there once afterwards."""
    log = flooded(4 * module.BATCH)
    died = False

    def die() -> None:
        nonlocal died
        died = True
        keeper.other.let_go()

    def before() -> None:
        if when == "before" and len(keeper.orders) > 1 and not died:
            die()
            raise sqlite3.OperationalError("the process is dead")

    def after() -> None:
        if len(keeper.orders) == {"first": 2, "second": 3}.get(when) and not died:
            die()

    keeper.disk.before, keeper.ended = before, after
    async with handing_over(log, keeper.connect):
        keeper.let.set()
        await log.keeper.settle()
        assert log.journal.stored == log.journal.offered == log.journal.last
        assert log.keeper.unkept == 0
    assert died
    assert keeper.disk.seqs() == [*range(1, log.last + 1)]
    came_again = len(keeper.disk.given) - len({*keeper.disk.given})
    assert came_again == {"before": 0, "first": 1, "second": 2}[when]


async def test_what_is_on_its_way_is_not_given_up(keeper: Keeper) -> None:
    """When too many wait others are dropped: these may be stored already, though that was not answered."""
    policies = LogPolicies()
    policies.every(LogPolicy("drop", buffer=64 * 1024))
    log = flooded(5 * module.BATCH, policies)
    async with handing_over(log, keeper.connect):
        offered = log.journal.offered
        assert offered == 3 * module.BATCH
        keeper.other.let_go()
        await trio.testing.wait_all_tasks_blocked()
        for number in range(5_000):
            log.write(5, f"more {number}", machine="A")
        keeper.let.set()
        while log.keeper.unkept or log.journal.losses:
            await log.keeper.settle()
            await trio.lowlevel.checkpoint()
    found = keeper.disk.seqs()
    assert found[:offered] == [*range(1, offered + 1)]
    lost = sum(row.fields.get("lost", 0) for row in keeper.disk.after(0, EVERYTHING))
    assert lost > 0
    assert len(found) + lost == log.last


@pytest.mark.parametrize("policy", ["drop", "spill"])
async def test_what_a_predecessor_had_on_its_way_is_not_given_up(
    policy: Literal["drop", "spill"], keeper: Keeper, tmp_path: pathlib.Path
) -> None:
    """It was killed before it was answered: what was stored is not counted as lost before the next one knows it."""
    policies = LogPolicies()
    policies.every(LogPolicy(policy, buffer=512 * 1024, spill=128 * 1024))
    # Some blocks begin with what is on its way.
    log = flooded(5 * module.BATCH, policies, Journal.create(LEAST_ROOM), text="x" * 800)
    async with handing_over(log, keeper.connect):
        offered = log.journal.offered
        assert (log.journal.stored, offered) == (module.BATCH, 3 * module.BATCH)
    # Both are stored, and nobody hears it.
    for first in (module.BATCH, 2 * module.BATCH):
        batch = module.first_of(log.journal.packed(after=first))
        keeper.disk.add(log.run, [(chunk.machine, chunk.generation, chunk.first, chunk.blob) for chunk in batch])
    assert keeper.disk.seqs() == [*range(1, offered + 1)]
    journal = Journal.adopt(os.dup(log.journal.fileno()))
    log.journal.close()
    log = Syslog(policies=policies, journal=journal, spill=tmp_path / "spill")
    assert journal.offered == offered
    for number in range(3_000):
        log.write(5, f"more {number} " + "x" * 500, machine="AB"[number % 2])
    assert journal.losses
    keeper.let.set()
    async with handing_over(log, keeper.connect):
        while log.keeper.unkept or journal.losses:
            await log.keeper.settle()
            await trio.lowlevel.checkpoint()
    found = keeper.disk.seqs()
    assert found[:offered] == [*range(1, offered + 1)]
    lost = sum(row.fields.get("lost", 0) for row in keeper.disk.after(0, EVERYTHING))
    assert len(found) + lost == log.last
    journal.close()
