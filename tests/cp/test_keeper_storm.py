"""Records on their way to a machine that refuses and dies at random, from a disk that does so too.

Whatever happens in which order: nothing stalls, and each record is stored once and in its place, or counted once.
"""

import errno
import os
import pathlib
import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from tests.cp.keepers import handing_over, served

from retinue.cp import keeper as keeping
from retinue.cp import spill as spilling
from retinue.cp.directory.model import LogPolicy
from retinue.cp.journal import LEAST_ROOM, Journal
from retinue.cp.log_policy import LogPolicies
from retinue.cp.syslog import Syslog
from retinue.pipes import Message, Path
from retinue.services.syslog import Store, Storing
from retinue.services.syslog.retention import Retention
from retinue.services.syslog.row import Row

K = 1024
BOUNDS = {
    "SPILL": LogPolicy("spill", buffer=64 * K, spill=1024 * K),
    "LARGE": LogPolicy("spill", buffer=256 * K, spill=64 * 1024 * K),
    "SMALL": LogPolicy("spill", buffer=64 * K, spill=100 * K),
    "DROP": LogPolicy("drop", buffer=64 * K),
    "BLOCK": LogPolicy("block", buffer=64 * K),
}
# Bursts of records.
STEPS = 60
READ = pathlib.Path.read_bytes


class Disk(Store):
    """A store that refuses when it is told to, and notes the runs of numbers that it was given."""

    def __init__(self, path: pathlib.Path, refuses: Callable[[], bool]) -> None:
        super().__init__(str(path), Retention(10_000_000))
        self._database.execute("PRAGMA synchronous = OFF")
        self._refuses = refuses
        self.given: list[tuple[int, int]] = []

    def add(self, run: str, chunks: Any) -> None:
        if self._refuses():
            raise sqlite3.OperationalError("database or disk is full")
        super().add(run, chunks)
        self.given.append((chunks[0][2], chunks[-1][2]))

    def all(self) -> list[Row]:
        """Everything that is stored, in its order."""
        rows: list[Row] = []
        while page := self.after(rows[-1].id if rows else 0, 5_000):
            rows += page
        return rows


class Machine:
    """What keeps records: it dies when it is told to, before it has stored a batch, or before it has answered."""

    def __init__(self, disk: Disk, dies: Callable[[], bool]) -> None:
        self._disk = disk
        self._dies = dies

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Path]:
        storing = Storing(self._disk)

        async def store(message: Message) -> Any:
            if self._dies():
                other.let_go()
            _, body = message.body
            answer = storing.add(body["run"], body["chunks"], body["after"], body["last"])
            if self._dies():
                other.let_go()
            return answer

        async with served(lambda path: path.serve(store)) as (path, other):
            yield path


def policies() -> LogPolicies:
    made = LogPolicies()
    made._of.update(BOUNDS)
    return made


@pytest.mark.parametrize("seed", range(5))
async def test_each_record_is_stored_or_counted_once(
    seed: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large and small records, batches of some chunks, one or two of them on their way."""
    dice = random.Random(seed)
    calm = False

    def now_and_then(share: float) -> Callable[[], bool]:
        return lambda: not calm and dice.random() < share

    unreadable, deaf = now_and_then(dice.choice([0, 0.05, 0.3])), now_and_then(dice.choice([0, 0.1]))

    def read(path: pathlib.Path) -> bytes:
        if unreadable():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return READ(path)

    write = spilling._write

    def write_or_not(path: pathlib.Path, data: bytes) -> None:
        if deaf():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data)

    numbers = {"RETRY": 0.0, "AGAIN": 0.0, "GATHER": 0.0, "BATCH": 200, "MANY": 50, "FEW": 20}
    for name, value in numbers.items():
        monkeypatch.setattr(keeping, name, value)
    monkeypatch.setattr(pathlib.Path, "read_bytes", read)
    monkeypatch.setattr(spilling, "_write", write_or_not)
    disk = Disk(tmp_path / "records.sqlite3", now_and_then(dice.choice([0, 0.1, 0.5])))
    machine = Machine(disk, now_and_then(dice.choice([0, 0.02, 0.2])))
    journal = Journal.private(LEAST_ROOM)
    log = Syslog(journal=journal, policies=policies(), spill=tmp_path / "spill")
    async with handing_over(log, machine.connect, limit=60):
        for _ in range(STEPS):
            for _ in range(dice.randrange(30)):
                name, size = dice.choice([*BOUNDS]), dice.choice([10, 500, 5_000])
                bodies: list[list[Any]] = [[1.5, 6, "x", "x" * size, {}] for _ in range(dice.randrange(1, 30))]
                journal.append(name, 1, bodies)
                log.keeper.notice()
            for _ in range(dice.choice([0, 1, 5, 50])):
                await trio.lowlevel.checkpoint()
        calm = True
        while log.keeper.unkept or journal.losses:
            await log.keeper.settle()
            await trio.lowlevel.checkpoint()
    rows = disk.all()
    numbers_stored = [row.seq for row in rows]
    told = sum(row.fields.get("lost", 0) for row in rows)
    assert numbers_stored == sorted({*numbers_stored})
    assert len(numbers_stored) + told == journal.last
    assert {row.machine for row in rows if "lost" in row.fields} <= {*BOUNDS}
    assert [each for each in (tmp_path / "spill").rglob("*") if each.is_file()] == []
    log.finish()
    disk.close()
    journal.close()
