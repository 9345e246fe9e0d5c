"""Finding records in memory, and with the machine that keeps them, which may be slow, away or gone."""

import contextlib
import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from retinue.cp import finding
from retinue.cp.finding import Found, find
from retinue.cp.selection import selection
from retinue.cp.syslog import Syslog
from retinue.pipes import Message, Path, Rejected, memory_pair, open_path
from retinue.services.syslog import Store
from retinue.services.syslog.query import Reader
from retinue.services.syslog.retention import Retention


async def ask(log: Syslog, **query: Any) -> Found:
    return await find(log, selection(query, log.run, ["A", "B", "C"]))


async def everything(log: Syslog, **query: Any) -> list[str]:
    """All pages of a query, put together."""
    texts: list[str] = []
    for _ in range(1_000):
        found = await ask(log, **query)
        page = [each["message"] for each in found.records]
        texts = texts + page if query.get("oldest") else page + texts
        if found.more is None:
            return texts
        query["after" if query.get("oldest") else "before"] = list(found.more)
    raise AssertionError("there is no end")


def write(log: Syslog, *numbers: int) -> None:
    for number in numbers:
        log.write(3 if number % 3 == 0 else 6, str(number), machine="AB"[number % 2], fields={"n": number})


def texts(found: Found) -> list[str]:
    return [each["message"] for each in found.records]


# -- memory ------------------------------------------------------------------------------------------------------------


async def test_newest_and_oldest_of_those_in_memory() -> None:
    log = Syslog()
    write(log, *range(1, 11))
    assert texts(await ask(log, count=2)) == ["9", "10"]
    assert texts(await ask(log, count=2, oldest=True)) == ["1", "2"]
    assert texts(await ask(log, count=2, machine="A")) == ["8", "10"]
    assert texts(await ask(log, count=2, machine=["A", "C"], before=8)) == ["4", "6"]
    assert texts(await ask(log, severity=3)) == ["3", "6", "9"]
    assert texts(await ask(log, fields={"n": "7"})) == ["7"]
    assert texts(await ask(log, count=0)) == []
    assert texts(await ask(log, after=[log.run, 8])) == ["9", "10"]
    assert texts(await ask(log, after=["an earlier run", 8], count=3, oldest=True)) == ["1", "2", "3"]
    assert texts(await ask(log, before=["an earlier run", 8])) == []


@pytest.mark.parametrize("oldest", [False, True])
@pytest.mark.parametrize("query", [{}, {"machine": "B"}, {"severity": 3}, {"machine": ["A", "B"], "text": "1"}])
async def test_pages_together_are_everything_once(
    oldest: bool, query: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a page: its count, or that enough was looked at for it."""
    monkeypatch.setattr(finding, "STEP", 5)
    monkeypatch.setattr(finding, "LOOKED_AT", 10)
    log = Syslog()
    write(log, *range(1, 101))
    asked = selection(query, log.run, ["A", "B"])
    wanted = [each["message"] for each in log.recent(None, 1_000) if asked.takes(each)]
    assert await everything(log, **query, oldest=oldest, count=7) == wanted
    assert await everything(log, **query, oldest=oldest, count=1_000) == wanted


async def test_answer_ends_where_it_began() -> None:
    """What is written while somebody reads page after page is not part of it."""
    log = Syslog()
    write(log, 1, 2, 3)
    first = await ask(log, count=2, oldest=True)
    write(log, 4)
    assert first.end == (log.run, 4)
    rest = await ask(log, oldest=True, after=list(first.more or ()), before=list(first.end))
    assert (texts(first), texts(rest)) == (["1", "2"], ["3"])
    assert (await ask(log)).as_answer()["seq"] == 4


async def test_long_search_lets_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "STEP", 10)
    log = Syslog()
    write(log, *range(1, 101))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await ask(log, text="nothing")
        nursery.cancel_scope.cancel()
    assert turns >= 5


# -- the machine that keeps them ---------------------------------------------------------------------------------------


class Kept:
    """A SYSLOG with a real database, which can be told to wait before it answers."""

    def __init__(self, log: Syslog, path: pathlib.Path) -> None:
        self.log = log
        self.store = Store(str(path), Retention(1_000_000))
        self.reader = Reader(str(path))
        self.storing, self.answering = trio.Event(), trio.Event()
        self.storing.set()
        self.answering.set()
        self.garbage: Any = None
        self.asked = 0

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Path]:
        ours, theirs = memory_pair()

        async def handle(message: Message) -> Any:
            match message.body:
                case ["store", {"run": run, "chunks": chunks}]:
                    await self.storing.wait()
                    return self.store.add(run, chunks)
                case ["select", query]:
                    self.asked += 1
                    await self.answering.wait()
                    return self.garbage or self.reader.select(query)
            raise Rejected("unknown-verb", "no")

        async with open_path(ours) as path, open_path(theirs) as other, trio.open_nursery() as nursery:
            nursery.start_soon(other.serve, handle)
            yield path
            nursery.cancel_scope.cancel()


@pytest.fixture
async def kept(tmp_path: pathlib.Path) -> AsyncIterator[Kept]:
    made = Kept(Syslog(), tmp_path / "records.sqlite3")
    with trio.fail_after(30), contextlib.closing(made.store), contextlib.closing(made.reader):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.log.keeper.run, made.connect)
            await trio.testing.wait_all_tasks_blocked()
            yield made
            nursery.cancel_scope.cancel()


async def test_what_was_just_written_is_found_with_what_is_kept(kept: Kept) -> None:
    """Of earlier runs, too: they come before."""
    earlier = Syslog()
    write(earlier, 1, 2)
    kept.store.add(earlier.run, [[c.machine, c.generation, c.first, c.blob] for c in earlier.journal.packed(after=0)])
    write(kept.log, 3, 4, 5)
    found = await ask(kept.log)
    assert (texts(found), found.kept, found.more) == (["1", "2", "3", "4", "5"], True, None)
    for oldest in (False, True):
        assert await everything(kept.log, oldest=oldest, count=2) == ["1", "2", "3", "4", "5"]
        assert await everything(kept.log, oldest=oldest, machine="A", count=1) == ["2", "4"]
    assert texts(await ask(kept.log, after=0)) == ["3", "4", "5"]


async def test_what_cannot_be_stored_is_found_in_memory(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing twice and nothing left out, in pages of any size, while the disk takes nothing."""
    monkeypatch.setattr(finding, "SETTLE_LIMIT", 0.0)
    write(kept.log, 1, 2, 3)
    await kept.log.keeper.settle()
    kept.storing = trio.Event()
    write(kept.log, 4, 5, 6)
    for oldest in (False, True):
        for count in (1, 2, 3, 4, 6, 100):
            assert await everything(kept.log, oldest=oldest, count=count) == ["1", "2", "3", "4", "5", "6"]
            assert await everything(kept.log, oldest=oldest, count=count, severity=3) == ["3", "6"]
    assert (await ask(kept.log)).kept is True
    kept.storing.set()


@pytest.mark.parametrize("how", ["slow", "garbage"])
async def test_memory_answers_for_a_machine_that_does_not(
    kept: Kept, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says that it does."""
    write(kept.log, 1, 2)
    await kept.log.keeper.settle()
    if how == "slow":
        monkeypatch.setattr(finding, "QUERY_LIMIT", 0.1)
        kept.answering = trio.Event()
    else:
        kept.garbage = {"records": [], "more": "somewhere"}
    found = await ask(kept.log, machine=["A", "B"])
    assert (texts(found)[:2], found.kept) == (["1", "2"], False)
    assert kept.asked == 1


async def test_memory_answers_when_the_machine_is_not_there() -> None:
    log = Syslog()
    log.journal.keep()
    write(log, 1, 2)
    found = await ask(log)
    assert (texts(found), found.kept) == (["1", "2"], False)
    assert (await ask(Syslog())).kept is None
