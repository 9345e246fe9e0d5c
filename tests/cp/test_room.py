"""When every block of the journal is just being stored: nothing of that is driven out, and every loss counts once."""

import os
import pathlib
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import CodeType, FrameType
from typing import Any

import pytest
import trio
from tests.cp.keepers import handing_over, served
from tests.cp.log_store import Store, kept, losses, settle

from retinue.cp import keeper as keeping
from retinue.cp.directory.model import LogPolicy
from retinue.cp.journal import LEAST_ROOM, Journal
from retinue.cp.log_policy import LogPolicies
from retinue.cp.losses import gap
from retinue.cp.spill import Spill
from retinue.cp.syslog import Syslog
from retinue.cp.tape import BLOCK, Packed, records_of
from retinue.pipes import Message, Path, Rejected

BLOCKS = LEAST_ROOM // BLOCK
# How often a line is looked behind that is passed again and again, as those are that go through all machines.
ROUNDS = 3


def body(message: str = "x") -> list[Any]:
    return [1.5, 6, "x", message, {}]


def crowded(spill: pathlib.Path | None, policy: LogPolicy | None = None) -> Journal:
    """Each block has one record of a machine of its own, and all of them are on their way."""
    journal = Journal.create(LEAST_ROOM)
    bounds = LogPolicies()
    if policy is not None:
        bounds._of |= dict.fromkeys(["NEW", *(f"M{number}" for number in range(BLOCKS))], policy)
    journal.room.declare(bounds)
    if spill is not None:
        journal.room.adopt(Spill(spill, journal.run))
    journal.keep()
    for number in range(BLOCKS):
        journal.append(f"M{number}", 1, [body()])
    assert not journal.room.free
    journal.offered = journal.last
    return journal


def waiting(journal: Journal) -> list[int]:
    """The numbers that wait, in the order in which they are handed over."""
    return [each["seq"] for each in records_of(journal.packed(after=journal.stored))]


def successor(journal: Journal) -> Journal:
    return Journal.adopt(os.dup(journal.fileno()))


def files(folder: pathlib.Path) -> list[str]:
    return sorted(each.name for each in folder.rglob("*") if each.is_file())


def test_what_is_just_being_stored_is_no_loss() -> None:
    """Nothing can be let go of: what is written now is lost, with its number, and nothing else is."""
    journal = crowded(None)
    assert journal.append("NEW", 1, [body(), body(), body()]) == BLOCKS + 1
    assert journal.append("NEW", 1, [body("x" * 100_000), body("x" * 100_000)]) == BLOCKS + 4
    for found in (journal, successor(journal)):
        assert (found.last, found.unkept) == (BLOCKS + 5, BLOCKS)
        assert waiting(found) == [*range(1, BLOCKS + 1)]
        assert found.losses == [("NEW", "buffer", 5)]
    journal.store(BLOCKS, BLOCKS)
    assert (journal.unkept, journal.losses) == (0, [("NEW", "buffer", 5)])
    assert journal.append("NEW", 1, [body()], told=("buffer", 5)) == BLOCKS + 6
    assert (journal.unkept, waiting(journal), journal.losses) == (1, [BLOCKS + 6], [])
    journal.close()


def test_who_has_room_in_its_block_writes_on() -> None:
    """What comes behind records that are on their way is not on its way: it waits like any other."""
    journal = crowded(None)
    for _ in range(10):
        journal.append("M0", 1, [body()])
    assert (journal.losses, journal.unkept) == ([], BLOCKS + 10)
    journal.store(BLOCKS, BLOCKS)
    assert waiting(journal) == [*range(BLOCKS + 1, BLOCKS + 11)]
    journal.close()


def test_what_is_just_being_stored_goes_to_the_disk(tmp_path: pathlib.Path) -> None:
    """Whatever the policy is: it is there if it has to be offered again, and gone when it is stored."""
    journal = crowded(tmp_path, LogPolicy("drop"))
    journal.append("NEW", 1, [body("x" * 100_000), body("x" * 100_000)])
    assert (journal.losses, journal.unkept) == ([], BLOCKS + 2)
    assert len(files(tmp_path)) == 2
    assert waiting(journal) == [*range(1, BLOCKS + 3)]
    journal.store(BLOCKS, BLOCKS)
    assert (files(tmp_path), waiting(journal)) == ([], [BLOCKS + 1, BLOCKS + 2])
    journal.store(BLOCKS + 2, 2)
    assert (journal.unkept, journal.losses) == (0, [])
    journal.close()


@pytest.mark.parametrize(("policy", "cause"), [("spill", "spill"), ("block", "spill"), ("drop", "buffer")])
def test_disk_that_takes_nothing_costs_what_is_written_now(policy: Any, cause: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "spill").write_text("no folder")
    journal = crowded(tmp_path / "spill", LogPolicy(policy))
    journal.append("NEW", 1, [body(), body()])
    assert journal.losses == [("NEW", cause, 2)]
    assert waiting(journal) == [*range(1, BLOCKS + 1)]
    journal.store(BLOCKS, BLOCKS)
    assert (journal.unkept, journal.losses) == (0, [("NEW", cause, 2)])
    journal.close()


def test_what_a_lost_record_has_told_is_not_forgotten() -> None:
    """One of the records tells of 7 others: nobody knows of them now. Nor is a loss told by a record that is lost."""
    journal = crowded(None)
    text, fields = gap("NEW", "descriptor", 7, LogPolicy())
    journal.append("NEW", 1, [body(), [1.5, 4, "retinue.cp", text, fields]])
    assert journal.losses == [("NEW", "buffer", 2 + 7)]
    text, fields = gap("NEW", "buffer", 9, LogPolicy())
    journal.append("NEW", 0, [[1.5, 4, "retinue.cp", text, fields]], told=("buffer", 9))
    assert journal.losses == [("NEW", "buffer", 9 + 1)]
    journal.close()


@pytest.mark.parametrize("disk", [True, False])
def test_killed_at_any_line_every_record_waits_once_or_is_counted(disk: bool, tmp_path: pathlib.Path) -> None:
    """What the next control program finds in memory and on the disk is all of it."""
    folder = tmp_path / "spill"
    journal = crowded(folder if disk else None)
    looks = 0
    passed: Counter[tuple[CodeType, int]] = Counter()

    def look() -> None:
        nonlocal looks
        there = tmp_path / "there"
        if folder.exists():
            shutil.copytree(folder, there)
        found = successor(journal)
        if disk:
            found.room.adopt(Spill(there, found.run))
        here = waiting(found)
        assert here == sorted({*here})
        assert found.unkept == len(here)
        assert len(here) + sum(count for _, _, count in found.losses) == found.last
        assert found.last in (BLOCKS, BLOCKS + 1)
        assert here[:BLOCKS] == [*range(1, BLOCKS + 1)]
        found.close()
        shutil.rmtree(there, ignore_errors=True)
        looks += 1

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(("journal.py", "room.py", "spill.py")):
            return None
        passed[frame.f_code, frame.f_lineno] += 1
        if event == "line" and passed[frame.f_code, frame.f_lineno] <= ROUNDS:
            look()
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        journal.append("NEW", 1, [body()])
    finally:
        sys.settrace(previous)
    look()
    assert looks > 30
    journal.close()


async def test_each_record_is_stored_or_told_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of all blocks is on its way for long, and others write meanwhile: no number twice, none in neither."""
    log, store = Syslog(journal=Journal.private(LEAST_ROOM)), Store()
    async with kept(log, store, monkeypatch):
        for number in range(BLOCKS):
            log.write(5, "first", machine=f"M{number}")
        while log.journal.offered < BLOCKS:  # noqa: ASYNC110
            await trio.sleep(0.001)
        for number in range(100):
            log.write(5, "second", machine=f"N{number % 4}")
        assert log.keeper.unkept == BLOCKS
        await settle(log, store)
    assert [each["message"] for each in store.records if each["seq"] <= BLOCKS] == ["first"] * BLOCKS
    assert losses(store.records) == {"buffer": 100}
    assert {each["machine"]: each["fields"]["lost"] for each in store.records if each["fields"]} == {
        f"N{number}": 25 for number in range(4)
    }
    assert len(store.records) == BLOCKS + 4


class Refusing:
    """What keeps records and refuses so many batches, or lets go of the path instead of an answer."""

    def __init__(self, times: int, *, dies: bool = False) -> None:
        self.times = times
        self.dies = dies
        self.records: list[Any] = []
        self.refused = 0
        self.look: Callable[[], None] = lambda: None

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Path]:
        async def store(message: Message) -> None:
            if self.refused < self.times:
                self.refused += 1
                self.look()
                if self.dies:
                    self.other.let_go()
                raise Rejected("not-stored", "the disk is full")
            self.records += records_of(
                Packed(name, 1, first, 0, blob) for name, _, first, blob in message.body[1]["chunks"]
            )

        async with served(lambda other: other.serve(store)) as (path, self.other):
            yield path


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RETRY": 0.001, "AGAIN": 0.001, "GATHER": 0.0}.items():
        monkeypatch.setattr(keeping, name, value)


@pytest.mark.parametrize("dies", [False, True])
async def test_gap_does_not_count_itself_again_and_again(dies: bool, fast: None) -> None:
    """It is refused once, and written when something was stored: what is lost is what was written, and that gap."""
    log, store = Syslog(journal=Journal.private(LEAST_ROOM)), Refusing(20, dies=dies)
    log.journal.keep()
    for number in range(BLOCKS):
        log.write(5, "first", machine=f"M{number}")
    log.journal.offered = BLOCKS  # somebody may have them
    log.keeper._unsure = BLOCKS
    for number in range(3):
        log.write(5, f"second {number}", machine="NEW")
    seen: list[list[tuple[str, str, int]]] = []
    store.look = lambda: seen.append([*log.journal.losses])
    async with handing_over(log, store.connect):
        while log.keeper.unkept or log.journal.losses:
            await log.keeper.settle()
            await trio.lowlevel.checkpoint()
    assert seen == [[("NEW", "buffer", 4)]] * 20
    assert losses(store.records) == {"buffer": 4}
    assert [each["seq"] for each in store.records] == [*range(1, BLOCKS + 1), BLOCKS + 5]
    assert log.last == BLOCKS + 5


async def test_what_was_refused_waits_like_any_other(fast: None) -> None:
    """Nobody has it: when there is no room the oldest are lost, and not what is written now."""
    log, store = Syslog(journal=Journal.private(LEAST_ROOM)), Refusing(1)
    log.journal.keep()
    for number in range(BLOCKS):
        log.write(5, "first", machine=f"M{number}")
    offered: list[int] = []
    store.look = lambda: offered.append(log.journal.offered)
    lost: list[tuple[str, str, int]] = []
    forget = log.keeper._forget_offers

    def forgotten() -> None:
        forget()
        if store.refused and not lost:
            offered.append(log.journal.offered)
            for number in range(3):
                log.write(5, f"second {number}", machine=f"N{number}")
            lost.extend(log.journal.losses)

    log.keeper._forget_offers = forgotten  # type: ignore[method-assign]
    async with handing_over(log, store.connect):
        while log.keeper.unkept or log.journal.losses:
            await log.keeper.settle()
            await trio.lowlevel.checkpoint()
    assert offered == [BLOCKS, 0]
    assert lost == [(f"M{number}", "buffer", 1) for number in range(3)]
    assert [each["message"] for each in store.records if each["message"].startswith("second")] == [
        f"second {number}" for number in range(3)
    ]
    told = losses(store.records)["buffer"]
    assert len(store.records) + told == log.last


async def test_what_was_not_answered_is_not_taken_back(fast: None) -> None:
    """It may be stored, whatever is said of it afterwards: it is not counted as lost."""
    log, store = Syslog(journal=Journal.private(LEAST_ROOM)), Refusing(2, dies=True)
    log.journal.keep()
    for number in range(BLOCKS):
        log.write(5, "first", machine=f"M{number}")
    offered: list[int] = []

    def look() -> None:
        if store.refused == 2:
            store.dies = False
        offered.append(log.journal.offered)

    store.look = look
    async with handing_over(log, store.connect):
        while store.refused < 2:  # noqa: ASYNC110
            await trio.sleep(0.001)
        offered.append(log.journal.offered)
        while log.keeper.unkept:
            await log.keeper.settle()
    assert offered == [BLOCKS] * 3
    assert losses(store.records) == {}
    assert log.journal.offered == log.journal.stored == log.last == BLOCKS
