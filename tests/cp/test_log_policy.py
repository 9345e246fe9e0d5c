"""What becomes of records that are too many: a machine waits, or they are dropped, or wait on the disk; all count."""

import contextlib
import pathlib
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from tests.cp.log_store import (
    EVER,
    EVERYTHING,
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

from retinue.cp import syslog as reading
from retinue.cp.directory import load
from retinue.cp.directory.model import LogPolicy, LogRate
from retinue.cp.journal import Journal
from retinue.cp.log_policy import Allowance
from retinue.cp.records import Record
from retinue.cp.syslog import Syslog
from retinue.cp.watchdog import Watchdog
from retinue.pipes import socket_pair
from retinue.svm.log import LogWriter


async def hear(log: Syslog, *packets: bytes) -> list[Record]:
    """What becomes of packets that a machine writes before it dies."""
    ours, theirs = socket_pair()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.read, "M", 1, ours)
            with theirs:
                for packet in packets:
                    while True:
                        try:
                            theirs.send(packet)
                            break
                        except BlockingIOError:
                            await trio.lowlevel.wait_writable(theirs)
    return log.recent(None, EVERYTHING)


# -- the rate ----------------------------------------------------------------------------------------------------------


def test_allowance_is_so_much_in_each_span() -> None:
    """What is not used is not saved, and what was used too much is owed."""
    clock = Clock()
    allowance = Allowance(LogRate(10, 2.0), clock)
    assert [allowance.grant(7), allowance.grant(7), allowance.grant(7)] == [7, 3, 0]
    assert allowance.wait() == 2.0
    clock.now += 1.5
    assert allowance.until_next() == 0.5
    clock.now += 8
    assert (allowance.wait(), allowance.grant(20)) == (0.0, 10)
    allowance.take(25)
    assert allowance.wait() == pytest.approx(0.5 + 2 * 2.0)
    clock.now += allowance.wait()
    assert allowance.grant(100) == 5


async def test_what_is_over_the_rate_is_dropped_and_counted() -> None:
    """Records and lines of the console alike; what others are owed is told beside it."""
    log = Syslog(policies=policies(LogPolicy(rate=EVER)))
    found = await hear(log, *map(record, range(1, 9)), b"a\nb\nc\nd\n", record(11), record(15))
    assert said(found) == ["m"] * 8 + ["a", "b"]
    assert losses(found) == {"rate": 4, "descriptor": 5}
    assert len(found) == 13


async def test_gap_stands_before_what_was_written_later() -> None:
    """One record a span, however many were lost, and none is told twice over a kill."""
    clock, kept = Clock(), Journal.create()
    log = Syslog(journal=kept, policies=policies(LogPolicy(rate=LogRate(2, 1.0))))
    ours, theirs = socket_pair()
    number = 0

    def write(log: Syslog, count: int) -> None:
        nonlocal number
        source = log._source("M", 1)
        source.allowance = source.allowance or Allowance(LogRate(2, 1.0), clock)
        for _ in range(count):
            number += 1
            theirs.send(record(number, str(number)))
            log._turn(source, ours, None)

    write(log, 5)
    clock.now += 1
    write(log, 4)
    clock.now += 1
    log = Syslog(journal=Journal.adopt(kept.fileno()), policies=log.policies)
    write(log, 1)
    texts = [each["message"].split(":")[0] for each in log.recent(None, EVERYTHING)]
    assert texts == ["1", "2", "-- 3 lines lost", "6", "7", "-- 2 lines lost", "10"]
    ours.close()
    theirs.close()


async def test_rate_is_told_when_the_machine_is_silent_again(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody has to write one more record for it."""
    log = Syslog(policies=policies(LogPolicy(rate=LogRate(3, 0.05))))
    ours, theirs = socket_pair()
    for number in range(1, 8):
        theirs.send(record(number))
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.read, "M", 1, ours)
            await until(lambda: bool(losses(log.recent(None, EVERYTHING))))
            theirs.close()
    assert losses(log.recent(None, EVERYTHING)) == {"rate": 4}


async def test_machine_that_blocks_is_slowed_down_to_its_rate() -> None:
    """Nothing is lost, and it takes as long as it must."""
    log = Syslog(policies=policies(LogPolicy("block", rate=LogRate(100, 0.05))))
    ours, theirs = socket_pair()
    began = trio.current_time()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.read, "M", 1, ours)
            writer = LogWriter(theirs)
            writer.patient = True

            def write() -> None:
                for number in range(800):
                    writer.write(6, "x", f"{number} " + "x" * 2000)
                theirs.close()

            await trio.to_thread.run_sync(write)
    # The last turn of its reader is not paid for any more: these are hundreds of records when the host is slow.
    assert trio.current_time() - began > 0.15
    assert [text.split()[0] for text in said(log.recent(None, EVERYTHING))] == [str(number) for number in range(800)]


async def test_gaps_do_not_get_past_the_rate() -> None:
    """A machine chooses its numbers: what it says was lost counts, and is told once with all that is over."""
    log = Syslog(policies=policies(LogPolicy(rate=EVER)))
    found = await hear(log, *(record(number) for number in range(1, 2001, 2)))
    assert len(found) <= 2 * (10 + 10)
    kept = [each for each in found if each["logger"] != "retinue.cp"]
    assert len(kept) + sum(losses(found).values()) == 1999


async def test_losses_that_a_machine_makes_up_are_no_number_that_nobody_can_keep() -> None:
    log = Syslog(policies=policies(LogPolicy(rate=EVER)))
    numbers = [number for _ in range(3_000) for number in (2**63 - 1, 1)]
    found = await hear(log, *map(record, range(1, 11)), *map(record, numbers))
    assert 0 < losses(found)["rate"] <= 2**53


async def test_machine_that_is_slowed_down_goes_on_when_its_policy_changes() -> None:
    """At once, however long it would have had to wait."""
    log = Syslog(policies=policies(LogPolicy("block", rate=EVER)))
    ours, theirs = socket_pair()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.read, "M", 1, ours)
            with theirs:
                for number in range(1, 12):
                    theirs.send(record(number))
                while not log.held("M", 1):
                    await trio.sleep(0.001)
                    with contextlib.suppress(BlockingIOError):
                        theirs.send(record(12))
                log.policies._of["M"] = LogPolicy("spill")
                log.waiting.unpark_all()
                while log.held("M", 1):  # noqa: ASYNC110
                    await trio.sleep(0.001)


# -- the buffer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["spill", "drop"])
async def test_flood_while_nobody_stores(policy: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on; afterwards all of it is there, in order, or counted, and all that another has said."""
    bounds = policies(LogPolicy(policy, buffer=64 * K, spill=8 * K * K))
    log, store = Syslog(policies=bounds, spill=tmp_path), Store()
    async with kept(log, store, monkeypatch):
        for number in range(10):
            log.write(5, f"quiet {number}", machine="QUIET")
        await hear(log, *(record(number, f"{number} " + "x" * 500) for number in range(1, 2001)))
        for number in range(10, 20):
            log.write(5, f"quiet {number}", machine="QUIET")
        assert log.keeper.unkept <= 2020
        await settle(log, store)
    seqs = [each["seq"] for each in store.records]
    assert seqs == sorted({*seqs})
    assert said(store.of("QUIET")) == [f"quiet {number}" for number in range(20)]
    stored = [int(text.split()[0]) for text in said(store.of("M"))]
    lost = losses(store.of("M"))
    assert stored == [*range(2001 - len(stored), 2001)]
    assert lost == ({} if policy == "spill" else {"buffer": 2000 - len(stored)})


async def test_machine_that_blocks_waits_for_room(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer stands still, without a loss, and it is known that it does; another machine writes on."""
    bounds = policies(LogPolicy("block", buffer=64 * K))
    bounds._of["QUIET"] = LogPolicy()
    monkeypatch.setattr(reading, "STILL", 0.01)
    log, store = Syslog(policies=bounds, spill=tmp_path), Store()
    ours, theirs = socket_pair()
    writer = LogWriter(theirs)
    writer.patient = True
    done = trio.Event()

    async def write() -> None:
        def records() -> None:
            for number in range(2000):
                writer.write(6, "x", f"{number} " + "x" * 500)

        await trio.to_thread.run_sync(records)
        theirs.close()
        done.set()

    async with kept(log, store, monkeypatch):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.read, "M", 1, ours)
            nursery.start_soon(write)
            await until(lambda: log.held("M", 1))
            assert not log.held("M", 2)
            log.write(5, "quiet", machine="QUIET")
            await until(lambda: log.recent("CP", 1) != [])
            assert not done.is_set()
            assert log.keeper.unkept < 1000
            await settle(log, store)
        await settle(log, store)
    assert [text.split()[0] for text in said(store.of("M"))] == [str(number) for number in range(2000)]
    assert losses(store.records) == {}
    assert said(store.of("CP"))[0].startswith("M stands still")
    assert there(tmp_path) == []


@pytest.mark.parametrize("how", ["release", "declare"])
async def test_machine_is_let_go(how: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is to end, or has another policy now, waits no more."""
    log, store = Syslog(policies=policies(LogPolicy("block", buffer=64 * K)), spill=tmp_path / "spill"), Store()
    (tmp_path / "clerk.py").write_text("async def main(vm): pass\n")
    (tmp_path / "it.toml").write_text('[system]\nname = "T"\nlog.policy = "drop"\n[machines.M]\nprogram = "clerk"\n')
    packets = [record(number, "x" * 500) for number in range(1, 2001)]
    async with kept(log, store, monkeypatch), trio.open_nursery() as nursery:
        nursery.start_soon(partial(hear, log, *packets))
        await until(lambda: log.held("M", 1))
        if how == "release":
            log.release("M", 1)
        else:
            log.declare(load(tmp_path / "it.toml"))
    assert log.journal.unkept + sum(lost for _, _, lost in log.journal.losses) == 2000


async def test_machine_that_spills_waits_a_moment_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its records are being stored nothing goes to the disk: a flood goes no faster than they are stored."""
    monkeypatch.setattr(reading, "PACE", 10.0)
    log, store = Syslog(policies=policies(LogPolicy(buffer=256 * K)), spill=tmp_path), Store()
    store.let(True)
    async with kept(log, store, monkeypatch):
        await hear(log, *(record(number, f"{number} " + "x" * 500) for number in range(1, 5001)))
        assert there(tmp_path) == []
        await settle(log, store)
    assert len(said(store.records)) == 5000


async def test_earlier_run_is_stored_first(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a system could not store before its end; its folder is gone then. A spoilt file is a loss."""
    earlier = Syslog(policies=policies(LogPolicy(buffer=64 * K)), spill=tmp_path)
    earlier.journal.keep()
    for number in range(500):
        earlier.write(5, f"{number} " + "x" * 500, machine="M")
    earlier.finish()
    folder = tmp_path / earlier.run / "M"
    spoilt = sorted(folder.iterdir())[1]
    spoilt.write_bytes(b"x" * spoilt.stat().st_size)
    log, store = Syslog(spill=tmp_path), Store()
    log.write(5, "of this run")
    store.let(True)
    async with kept(log, store, monkeypatch):
        await settle(log, store)
    assert store.runs[0] == earlier.run
    assert store.runs[-1] == log.run
    lost = losses(store.records)["spill"]
    assert lost == int(spoilt.name.split("-")[2])
    assert len(said(store.of("M"))) == 500 - lost
    assert there(tmp_path) == []


async def test_losses_of_a_rate_are_told_when_it_is_removed(tmp_path: pathlib.Path) -> None:
    """At once, and with the machine, though it says nothing more; its control program may have been killed before."""
    (tmp_path / "clerk.py").write_text("async def main(vm): pass\n")
    file = tmp_path / "it.toml"
    text = '[system]\nname = "T"\n[machines.A]\nprogram = "clerk"\n'
    machine, rate = '[machines.M]\nprogram = "clerk"\n', 'log.rate = "3/h"\n'

    def declare(log: Syslog, text: str) -> None:
        file.write_text(text)
        log.declare(load(file))

    for after in (text + machine, text):
        kept = Journal.create()
        log = Syslog(journal=kept)
        declare(log, text + machine + rate)
        ours, theirs = socket_pair()
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(log.read, "M", 1, ours)
                theirs.send(record(1))
                await until(lambda log=log: log.last == 1)  # type: ignore[misc]
                for number in range(2, 9):
                    theirs.send(record(number))
                await until(lambda kept=kept: kept.tape("M").over == 5)  # type: ignore[misc]
                declare(log, text + machine + rate)
                assert losses(log.recent(None, EVERYTHING)) == {}
                declare(log, after)
                assert losses(log.recent(None, EVERYTHING)) == {"rate": 5}
                theirs.close()
        assert losses(log.recent(None, EVERYTHING)) == {"rate": 5}


async def test_losses_of_a_rate_are_told_by_the_next_control_program() -> None:
    """Though the machine says nothing more, and has no rate any more."""
    kept = Journal.create()
    log = Syslog(journal=kept, policies=policies(LogPolicy(rate=EVER)))
    ours, theirs = socket_pair()
    source = log._source("M", 1)
    source.allowance = Allowance(EVER, Clock())
    for number in range(1, 16):
        theirs.send(record(number))
    while source.number < 15:
        log._turn(source, ours, None)
    assert kept.tape("M").over == 5
    log = Syslog(journal=Journal.adopt(kept.fileno()), policies=policies(LogPolicy()))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.read, "M", 1, ours)
            await until(lambda: losses(log.recent(None, EVERYTHING)) == {"rate": 5})
            theirs.close()


def test_watchdog_excuses_a_machine_that_waits() -> None:
    """What waits for us does not hang."""
    clock = Clock()
    watchdog = Watchdog(10.0, clock, lambda: 1.0)
    for _ in range(20):
        clock.now += 2.5
        watchdog.excuse()
        assert watchdog.verdict() is None
    for _ in range(4):
        clock.now += 2.5
        verdict = watchdog.verdict()
    assert verdict is not None
