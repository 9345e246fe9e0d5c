"""Losses at the end of a system, and a disk that fails: everything is stored by the next one, or counted, or told."""

import errno
import os
import pathlib
from typing import Any

import pytest
from tests.cp.log_store import (
    EVER,
    Clock,
    K,
    Store,
    kept,
    losses,
    policies,
    record,
    said,
    settle,
    there,
    until,
)

from retinue.cp import keeper as keeping
from retinue.cp import spill as spilling
from retinue.cp.directory.model import LogPolicy
from retinue.cp.log_policy import Allowance
from retinue.cp.losses import untold_in
from retinue.cp.records import Record
from retinue.cp.spill import Spill
from retinue.cp.syslog import Syslog
from retinue.cp.tape import records_of
from retinue.pipes import socket_pair

# -- the end -----------------------------------------------------------------------------------------------------------


def waits(folder: pathlib.Path) -> list[Record]:
    """What is on the disk after the end of a run."""
    (earlier,) = Spill(folder, "next").earlier()
    return records_of(earlier.packed(0))


@pytest.mark.parametrize("policy", ["drop", "spill"])
async def test_last_losses_are_left_for_the_next_run(
    policy: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under drop those that waited, by spill those that the disk may not have: each number is stored or in a gap."""
    bounds = policies(LogPolicy(policy, buffer=64 * K, spill=200 * K))
    log = Syslog(policies=bounds, spill=tmp_path)
    log.journal.keep()
    for number in range(1000):
        log.write(5, f"{number} " + "x" * 500, machine="M")
        if number == 500:  # as when somebody who stores has gone again: what tells may be lost with the others
            for loss in log.journal.losses:
                log.write_told(*loss)
    assert log.finish() == ""
    assert log.finish() == ""
    log, store = Syslog(spill=tmp_path), Store()
    store.let(True)
    async with kept(log, store, monkeypatch):
        await until(lambda: there(tmp_path) == [])
        await settle(log, store)
    found = store.of("M")
    plain, lost = said(found), losses(found)
    assert [int(text.split()[0]) for text in plain] == [*range(1000 - len(plain), 1000)]
    # The gap of number 502 was lost as well.
    assert len(plain) + sum(lost.values()) == 1001
    assert set(lost) == ({"buffer", "end"} if policy == "drop" else {"spill"})
    assert [each["seq"] for each in found] == sorted({each["seq"] for each in found})


async def test_losses_of_a_rate_are_left_for_the_next_run(tmp_path: pathlib.Path) -> None:
    """Its machine was ended by force."""
    log = Syslog(policies=policies(LogPolicy("drop", rate=EVER)), spill=tmp_path)
    log.journal.keep()
    source = log._source("M", 1)
    source.allowance = Allowance(EVER, Clock())
    ours, theirs = socket_pair()
    for number in range(1, 16):
        theirs.send(record(number))
    while source.number < 15:
        log._turn(source, ours, None)
    assert log.finish() == ""
    assert losses(waits(tmp_path)) == {"rate": 5, "end": 10}
    ours.close()
    theirs.close()


def test_losses_that_the_disk_does_not_take_are_told_to_the_operator(tmp_path: pathlib.Path) -> None:
    """All of them, by machine: there is nobody else."""
    (tmp_path / "spill").write_text("no folder")
    bounds = policies(LogPolicy("spill", buffer=64 * K))
    bounds._of["D"] = LogPolicy("drop")
    log = Syslog(policies=bounds, spill=tmp_path / "spill")
    log.journal.keep()
    for _ in range(300):
        log.write(5, "x" * 500, machine="M")
    log.write(5, "x", machine="D")
    # With the two records that could have told it.
    end = f"an operator ended it {log.finish()}"
    assert untold_in(end) == (
        "-- at the end 303 lines lost: 301 of M, 2 of D; the disk takes no record of it either --"
    )
    assert untold_in("an operator ended it") == ""


def test_batch_that_may_be_stored_is_not_counted_at_the_end(tmp_path: pathlib.Path) -> None:
    """Its answer was lost: who stores knows it when it comes again."""
    log = Syslog(policies=policies(LogPolicy("drop", buffer=64 * K)), spill=tmp_path)
    log.journal.keep()
    for _ in range(20):
        log.write(5, "x" * 5000, machine="M")
    waiting = [each.last for each in log.journal.packed(after=0)]
    log.journal.offered = waiting[0]
    assert log.finish() == ""
    found = waits(tmp_path)
    assert found[0]["seq"] == waiting[0]
    assert len(said(found)) + sum(losses(found).values()) == 20


# -- files that cannot be read -----------------------------------------------------------------------------------------


class Disk:
    """A disk on which reading fails for some time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: int | None = None
        self.asked = 0
        read = pathlib.Path.read_bytes

        def read_bytes(path: pathlib.Path) -> bytes:
            if self.error is not None:
                self.asked += 1
                raise OSError(self.error, os.strerror(self.error), str(path))
            return read(path)

        monkeypatch.setattr(pathlib.Path, "read_bytes", read_bytes)
        monkeypatch.setattr(keeping, "RETRY", 0.001)
        monkeypatch.setattr(keeping, "LATER", 0.001)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("earlier", [False, True])
async def test_file_that_cannot_be_read_now_is_read_later(
    error: int, earlier: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost for it, and nothing of its run comes before it; one record says so."""
    monkeypatch.setattr(spilling, "TRIES", 1_000_000)
    log, store = Syslog(policies=policies(LogPolicy(buffer=64 * K)), spill=tmp_path), Store()
    run, disk = log.run, Disk(monkeypatch)
    log.journal.keep()
    for number in range(300):
        log.write(5, f"{number} " + "x" * 500, machine="M")
    if earlier:
        log.finish()
        log = Syslog(spill=tmp_path)
    store.let(True)
    disk.error = error
    async with kept(log, store, monkeypatch):
        await until(lambda: disk.asked > 10)
        assert run not in store.runs
        disk.error = None
        await until(lambda: len(said(store.of("M"))) == 300)
        await settle(log, store)
    assert [int(text.split()[0]) for text in said(store.of("M"))] == [*range(300)]
    log.finish()
    assert losses(store.records) == {}
    (told,) = [each["message"] for each in store.records if "cannot be read now" in each["message"]]
    assert os.strerror(error) in told
    assert there(tmp_path) == []


async def test_file_that_the_disk_never_gives_back_is_lost(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some attempts: EIO does not always pass."""
    log, store = Syslog(policies=policies(LogPolicy(buffer=64 * K)), spill=tmp_path), Store()
    disk = Disk(monkeypatch)
    log.journal.keep()
    for number in range(300):
        log.write(5, f"{number} " + "x" * 500, machine="M")
    spilt = sum(int(each.name.split("-")[2]) for each in (tmp_path / log.run / "M").iterdir())
    store.let(True)
    disk.error = errno.EIO
    async with kept(log, store, monkeypatch):
        await settle(log, store)
    assert losses(store.records) == {"spill": spilt}
    assert len(said(store.of("M"))) == 300 - spilt
    assert disk.asked >= spilling.TRIES


async def test_run_that_cannot_be_listed_is_not_removed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored as soon as it can be."""
    before = Syslog(policies=policies(LogPolicy()), spill=tmp_path)
    before.journal.keep()
    before.write(5, "of the run before", machine="M")
    before.finish()
    log, store, listdir, failed = Syslog(spill=tmp_path), Store(), os.listdir, 0

    def fail(path: Any) -> Any:
        nonlocal failed
        failed += 1
        raise OSError(errno.EMFILE, "none is left", str(path))

    monkeypatch.setattr(keeping, "LATER", 0.001)
    store.let(True)
    with monkeypatch.context() as failing:
        failing.setattr(os, "listdir", fail)
        async with kept(log, store, monkeypatch):
            await until(lambda: failed > 5)
            assert before.run not in store.runs
            failing.setattr(os, "listdir", listdir)
            await until(lambda: bool(store.of("M")))
    assert said(store.of("M")) == ["of the run before"]


async def test_file_that_cannot_be_removed_comes_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what it was: under the same run and numbers, so that it is stored once. Followers hear nothing of it."""
    log, store = Syslog(policies=policies(LogPolicy(buffer=64 * K)), spill=tmp_path), Store()
    log.journal.keep()
    for number in range(300):
        log.write(5, f"{number} " + "x" * 500, machine="M")
    unlink = pathlib.Path.unlink

    def fail(path: pathlib.Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(pathlib.Path, "unlink", fail)
    store.let(True)
    async with kept(log, store, monkeypatch):
        await settle(log, store)
    log.finish()
    assert len(said(store.of("M"))) == 300
    monkeypatch.setattr(pathlib.Path, "unlink", unlink)
    once = {(log.run, each["seq"]): each for each in store.of("M")}
    again, log = Store(), Syslog(spill=tmp_path)
    again.let(True)
    heard: list[Any] = []
    with log.broadcast.follow(lambda item: heard.append(item)):
        async with kept(log, again, monkeypatch):
            await until(lambda: there(tmp_path) == [])
    assert heard == []
    assert again.of("M") != []
    for each in again.of("M"):
        assert each == once[again.runs[0], each["seq"]]


def test_file_that_cannot_be_removed_is_not_counted_as_lost(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays, and is stored, although it is more than there may be."""
    bounds = policies(LogPolicy(buffer=64 * K, spill=100 * K))
    log = Syslog(policies=bounds, spill=tmp_path)
    log.journal.keep()

    def fail(path: pathlib.Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    with monkeypatch.context() as failing:
        failing.setattr(pathlib.Path, "unlink", fail)
        for number in range(1000):
            log.write(5, f"{number} " + "x" * 500, machine="M")
    assert log.journal.losses == []
    assert log.journal.unkept == 1000
    for _ in range(200):
        log.write(5, "x" * 500, machine="M")
    ((_, cause, lost),) = log.journal.losses
    assert (cause, log.journal.unkept) == ("spill", 1200 - lost)
