"""Records on the disk that may not be read: they hold up others for a moment only, and are stored when they may be."""

import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from tests.cp.keepers import handing_over, served
from tests.cp.log_store import K, Store, kept, losses, policies, said, settle, there, until

from retinue.cp import keeper as keeping
from retinue.cp import spill as spilling
from retinue.cp.directory.model import LogPolicy
from retinue.cp.finding import find
from retinue.cp.journal import LEAST_ROOM, Journal
from retinue.cp.keeper import in_chunks
from retinue.cp.records import Record
from retinue.cp.selection import selection
from retinue.cp.spill import Spill
from retinue.cp.syslog import Syslog
from retinue.cp.tape import Packed, records_of
from retinue.pipes import Message, Path, Rejected
from retinue.services.syslog import Storing
from retinue.services.syslog.retention import Retention
from retinue.services.syslog.store import Store as Database

BOUND = policies(LogPolicy(buffer=64 * K), "M", "N")
NOBODY = 65534


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A folder of the user that the test runs as, who is not root: that one may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    made = pathlib.Path(tempfile.mkdtemp(prefix="spill"))
    monkeypatch.setattr(spilling, "TRIES", 3)
    monkeypatch.setattr(keeping, "RETRY", 0.001)
    monkeypatch.setattr(keeping, "LATER", 0.001)
    yield made
    os.seteuid(before)
    shutil.rmtree(made)


def written(folder: pathlib.Path, count: int = 300, journal: Journal | None = None) -> Syslog:
    """A log of which so many records of M wait, and as many of N between them."""
    log = Syslog(journal=journal, policies=BOUND, spill=folder)
    log.journal.keep()
    for number in range(count):
        for machine in "MN":
            log.write(5, f"{number} " + "x" * 500, machine=machine)
    return log


def spilt(folder: pathlib.Path, log: Syslog) -> list[pathlib.Path]:
    return sorted((folder / log.run / "M").iterdir())


def put_aside(folder: pathlib.Path, log: Syslog, *files: pathlib.Path) -> pathlib.Path:
    """Set aside these files of M, which may not be read; returns where the first of them is."""
    spill = log.journal.room.spill
    assert spill is not None
    for file in files:
        file.chmod(0)
    for _ in range(spilling.TRIES):
        [*spill.packed(0)]
    assert log.keeper._earlier.set_aside(spill, 0)
    return folder / f"{log.run}.aside" / "M" / files[0].name


def records_in(file: pathlib.Path) -> int:
    return int(file.name.rpartition("-")[2])


def numbers(store: Store, machine: str) -> list[int]:
    return [int(text.split()[0]) for text in said(store.of(machine)) if text.endswith("x" * 500)]


def about(store: Store, text: str) -> list[Record]:
    return [each for each in store.records if text in each["message"]]


async def test_rest_does_not_wait_for_ever_for_a_file_that_may_not_be_read(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once, with the file and the cure, and in the machine's own log; then it is stored as what it is."""
    log, store = written(folder), Store()
    store.let(True)
    file = spilt(folder, log)[1]
    before, gone = (records_in(each) for each in spilt(folder, log)[:2])
    file.chmod(0)
    aside = folder / f"{log.run}.aside" / "M" / file.name
    async with kept(log, store, monkeypatch):
        await settle(log, store)
        assert numbers(store, "N") == [*range(300)]
        assert numbers(store, "M") == [*range(before), *range(before + gone, 300)]
        (told,) = about(store, "are set aside")
        assert told["message"] == (
            f"{gone} lines of M are set aside, and stored when user {os.geteuid()} can read {aside}: Permission denied"
        )
        assert told["fields"] == {"of": "M", "run": log.run, "waiting": gone, "file": str(aside)}
        (gap,) = about(store, "until they can be read")
        assert gap["message"] == f"-- {gone} lines from before are missing until they can be read on the disk --"
        assert (gap["machine"], gap["fields"]) == ("M", {"waiting": gone})
        for number in range(300, 500):
            log.write(5, f"{number} " + "x" * 500, machine="M")
        await settle(log, store)
        assert numbers(store, "M")[-1] == 499
        assert len(about(store, "cannot be read now")) == 1
        aside.chmod(0o600)
        await until(lambda: bool(about(store, "are stored now")))
        assert about(store, "are stored now")[0]["message"].startswith(f"{gone} lines of M that were set aside")
        await settle(log, store)
    assert sorted(numbers(store, "M")) == [*range(500)]
    late = [each["seq"] for each in store.of("M") if each["message"].startswith(f"{before} ")]
    first, last, _ = map(int, file.name.split("-"))
    assert first <= late[0] <= last
    assert sorted(each["seq"] for each in store.records) == [*range(1, log.last + 1)]
    assert {*store.runs} == {log.run}
    assert losses(store.records) == {}
    log.finish()
    assert there(folder) == []


async def test_lines_are_stored_late_in_the_place_that_is_theirs(folder: pathlib.Path) -> None:
    """By what stores them in truth: some of a file may be there already, and batches of the run keep their order."""
    log = written(folder)
    file = spilt(folder, log)[1]
    first, _, count = map(int, file.name.split("-"))
    database = Database(str(folder / "records.sqlite3"), Retention(1_000_000))
    storing = Storing(database)
    earlier = next(chunk for chunk in log.journal.packed(after=first - 1) if chunk.machine == "M")
    storing.add(log.run, [(earlier.machine, earlier.generation, earlier.first, earlier.blob)])
    assert log.journal.room.spill is not None
    log.journal.room.spill._kept.clear()  # as if another file had been read since
    file.chmod(0)

    async def store(message: Message) -> dict[str, bool]:
        _, body = message.body
        return storing.add(body["run"], body["chunks"], body.get("after"), body.get("last"))

    @asynccontextmanager
    async def connect() -> AsyncIterator[Path]:
        async with served(lambda other: other.serve(store)) as (path, _):
            yield path

    def found() -> list[int]:
        return [row.seq for row in database.after(0, 10_000)]

    async with handing_over(log, connect):
        await log.keeper.settle()
        assert len(found()) == log.last - count + 1
        (folder / f"{log.run}.aside" / "M" / file.name).chmod(0o600)
        while not any("are stored now" in row.message for row in database.after(0, 10_000)):
            log.write(5, "more")
            await log.keeper.settle()
    assert found() == [*range(1, log.last + 1)]
    database.close()


@pytest.mark.parametrize("how", ["killed", "ended"])
async def test_what_was_set_aside_outlives_who_did_it(
    how: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next control program, and the next run, read it as soon as they may. Each says once that it may not."""
    log, store = written(folder, journal=Journal.create(LEAST_ROOM)), Store()
    run = log.run
    store.let(True)
    file = spilt(folder, log)[0]
    gone = records_in(file)
    file.chmod(0)
    async with kept(log, store, monkeypatch):
        await settle(log, store)
    if how == "killed":
        journal = Journal.adopt(os.dup(log.journal.fileno()))
        journal_before = log.journal
    else:
        log.finish()
        journal, journal_before = Journal.create(LEAST_ROOM), log.journal
    assert there(folder) == [f"{run}.aside"] if how == "ended" else f"{run}.aside" in there(folder)
    log = Syslog(journal=journal, policies=BOUND, spill=folder)
    log.journal.keep()
    assert (log.run == run) is (how == "killed")
    again = "are missing until they can be read" if how == "killed" else "what was set aside on the disk cannot be read"
    before = len(about(store, again))
    assert log.journal.unkept == len([*records_of(journal.packed(after=journal.stored))])
    async with kept(log, store, monkeypatch):
        await until(lambda: len(about(store, again)) > before)
        await settle(log, store)
        assert numbers(store, "M") == [*range(gone, 300)]
        (folder / f"{run}.aside" / "M" / file.name).chmod(0o600)
        await until(lambda: bool(about(store, "are stored now")))
        await settle(log, store)
    assert len(about(store, again)) == before + 1
    # The next control program of the run cannot know whether the first one has told it.
    twice = 2 if how == "killed" else 1
    for text in (f"{gone} lines of M are set aside, and stored when", f"-- {gone} lines from before are missing until"):
        assert len(about(store, text)) == twice
    assert sorted(numbers(store, "M")) == [*range(300)]
    assert losses(store.records) == {}
    log.finish()
    assert there(folder) == []
    journal.close()
    journal_before.close()


async def test_rest_of_an_earlier_run_does_not_wait_either(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of its files may not be read: they are told together."""
    log, store = written(folder), Store()
    log.finish()
    run, (first, second, *_) = log.run, spilt(folder, log)
    gone = records_in(first) + records_in(second)
    first.chmod(0)
    second.chmod(0)
    log = Syslog(spill=folder)
    store.let(True)
    async with kept(log, store, monkeypatch):
        await until(lambda: numbers(store, "M") == [*range(gone, 300)] and numbers(store, "N") == [*range(300)])
        await until(lambda: bool(about(store, "are set aside")))
        (told,) = about(store, "are set aside")
        assert told["message"].startswith(f"{gone} lines of M are set aside")
        assert " and 1 more: " in told["message"]
        # The second one does not wait for the first, nor is that forgotten for it.
        aside = folder / f"{run}.aside" / "M"
        (aside / second.name).chmod(0o600)
        await until(lambda: len(about(store, "are stored now")) == 1)
        (aside / first.name).chmod(0o600)
        await until(lambda: len(about(store, "are stored now")) == 2)
        await settle(log, store)
    assert sorted(numbers(store, "M")) == [*range(300)]
    assert losses(store.records) == {}
    log.finish()
    assert there(folder) == []


async def test_what_cannot_be_moved_is_waited_for(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may write to its folder: nothing is lost, and all of it comes in order when that is cured."""
    log, store = written(folder), Store()
    file = spilt(folder, log)[0]
    tries = 0
    read = pathlib.Path.read_bytes

    def counted(path: pathlib.Path) -> bytes:
        nonlocal tries
        tries += path == file
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", counted)
    file.chmod(0)
    file.parent.chmod(0o500)
    store.let(True)
    async with kept(log, store, monkeypatch):
        await until(lambda: tries > 3 * spilling.TRIES)
        assert log.keeper.unkept >= 600
        file.chmod(0o600)
        file.parent.chmod(0o700)
        await settle(log, store)
    assert numbers(store, "M") == numbers(store, "N") == [*range(300)]
    assert about(store, "set aside") == []
    assert losses(store.records) == {}


async def test_what_was_set_aside_and_is_spoilt_is_a_loss(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted once, in its place, though it was said before that it waits."""
    log, store = written(folder), Store()
    store.let(True)
    file = spilt(folder, log)[0]
    gone = records_in(file)
    file.chmod(0)
    async with kept(log, store, monkeypatch):
        await settle(log, store)
        aside = folder / f"{log.run}.aside" / "M" / file.name
        aside.unlink()
        aside.write_bytes(b"")
        await until(lambda: bool(about(store, "they were spoilt")))
        await settle(log, store)
    assert losses(store.records) == {"spill": gone}
    assert numbers(store, "M") == [*range(gone, 300)]
    (place,) = [each["seq"] for each in store.records if "lost" in each["fields"]]
    assert place == int(file.name.split("-")[1])
    log.finish()
    assert there(folder) == []


async def test_what_was_set_aside_does_not_count_as_what_waits(folder: pathlib.Path) -> None:
    """Nobody has to hand over everything else before that is known."""
    log = written(folder)
    file = spilt(folder, log)[0]
    file.chmod(0)
    for _ in range(spilling.TRIES):
        _, unread = log.keeper._next_batch(0)
        assert len(unread) == 1
        await log.keeper._wait_for_disk(unread)
    assert log.keeper.unkept == log.last - records_in(file)
    assert not file.exists()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_what_passes_by_itself_sets_nothing_aside(
    error: int, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes: the file is as good as any."""
    log, store = written(folder), Store()
    tries = 0

    def fail(path: pathlib.Path) -> bytes:
        nonlocal tries
        tries += 1
        raise OSError(error, os.strerror(error), str(path))

    store.let(True)
    with monkeypatch.context() as failing:
        failing.setattr(pathlib.Path, "read_bytes", fail)
        async with kept(log, store, monkeypatch):
            await until(lambda: tries > 100)
            failing.undo()
            await settle(log, store)
    assert numbers(store, "M") == numbers(store, "N") == [*range(300)]
    assert about(store, "set aside") == []


def test_some_of_it_may_be_stored(folder: pathlib.Path) -> None:
    """Then it is told how many lines are missing at most."""
    log = written(folder)
    spill = Spill(folder, log.run)
    first = spill.files("M")[0]
    (folder / log.run / "M" / first.name).chmod(0)
    for _ in range(spilling.TRIES):
        assert spill.set_aside(0) == []
        next(spill.packed(0))
    (aside,) = spill.set_aside(first.last - 5)
    assert (aside.machine, aside.records, len(aside.files), aside.why.errno) == ("M", 5, 1, errno.EACCES)
    assert first not in spill.files("M")
    assert spill.trouble is None
    assert aside.path == folder / f"{log.run}.aside" / f"M.{first.last - 5}" / first.name
    # Whoever finds it knows that as well: of a spoilt one no more is lost, of a sound one no more comes.
    (found,) = [each for each in spill.earlier() if each.is_aside]
    assert found.files("M") == aside.files
    aside.path.chmod(0o600)
    assert [chunk.first for chunk in found.packed(0)] == [*range(first.last - 4, first.last + 1, 2)]
    aside.path.write_bytes(b"")
    (found,) = [each for each in spill.earlier() if each.is_aside]
    assert [*found.packed(0)] == []
    ((machine, file, lost),) = found.broken
    assert (machine, file.name, lost) == ("M", first.name, 5)
    found.remove("M", file)
    found.close()
    assert there(folder) == [log.run]


async def test_what_was_set_aside_and_is_removed_is_a_loss(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted once, in its place, by whom has seen it, even if the disk of who keeps records is full at first."""
    log, store = written(folder), Store()
    store.let(True)
    file, other = spilt(folder, log)[:2]
    gone = records_in(file)
    file.chmod(0)
    other.chmod(0)
    async with kept(log, store, monkeypatch):
        await settle(log, store)
        await until(lambda: len(log.keeper._earlier._aside) == 2)
        assert log.keeper.aside == ["M"]
        (folder / f"{log.run}.aside" / "M" / file.name).unlink()
        await until(lambda: bool(about(store, "somebody has removed")))
        (told,) = about(store, "somebody has removed")
        assert told["message"] == (f"{gone} lines of M are lost that were set aside: somebody has removed {file.name}")
        # The other one is stored: that is no loss.
        (folder / f"{log.run}.aside" / "M" / other.name).chmod(0o600)
        await until(lambda: bool(about(store, "are stored now")))
        await settle(log, store)
        assert log.keeper.aside == []
    assert losses(store.records) == {"spill": gone}
    (place,) = [each["seq"] for each in store.records if "lost" in each["fields"]]
    assert place == int(file.name.split("-")[1])
    assert numbers(store, "M")[-records_in(other) :] == [*range(gone, gone + records_in(other))]
    assert sorted(numbers(store, "M")) == [*range(gone, 300)]
    log.finish()
    assert there(folder) == []


async def test_gap_of_what_was_removed_is_stored_when_it_is_taken(folder: pathlib.Path) -> None:
    """It is refused at first. What cannot be listed now is not gone."""
    log = written(folder)
    spill = log.journal.room.spill
    assert spill is not None
    file = spilt(folder, log)[0]
    aside = put_aside(folder, log, file).parent.parent
    (aside / "M" / file.name).unlink()
    gaps: list[Record] = []
    full = True

    async def store(message: Message) -> None:
        if full:
            raise Rejected("not-stored", "the disk is full")
        for machine, generation, first, blob in message.body[1]["chunks"]:
            gaps.extend(records_of([Packed(machine, generation, first, 1, blob)]))

    async with served(lambda other: other.serve(store)) as (path, _):
        aside.chmod(0)
        assert not await log.keeper._earlier.pour(path, in_chunks)
        assert log.keeper.aside == ["M"]
        aside.chmod(0o700)
        for found in (["M"], []):
            assert not await log.keeper._earlier.pour(path, in_chunks)
            assert log.keeper.aside == found
        full = False
        for _ in range(2):
            assert await log.keeper._earlier.pour(path, in_chunks)
    assert [(each["seq"], each["fields"]) for each in gaps] == [
        (int(file.name.split("-")[1]), {"lost": records_in(file), "cause": "spill"})
    ]


@pytest.mark.parametrize("looks", [1, 2])
async def test_what_is_somewhere_else_for_a_look_is_not_lost(looks: int, folder: pathlib.Path) -> None:
    """Somebody repairs it there. After two looks it is lost, but not if it is back before its gap could be stored."""
    log = written(folder)
    one, two = spilt(folder, log)[:2]
    aside = put_aside(folder, log, one, two)
    away = folder / "repaired"
    stored: list[Record] = []
    full = True

    async def store(message: Message) -> None:
        if full:
            raise Rejected("not-stored", "the disk is full")
        for machine, generation, first, blob in message.body[1]["chunks"]:
            stored.extend(records_of([Packed(machine, generation, first, 1, blob)]))

    async with served(lambda other: other.serve(store)) as (path, _):
        for _ in range(3):
            aside.rename(away)
            for _ in range(looks):
                assert not await log.keeper._earlier.pour(path, in_chunks)
            away.rename(aside)
            assert not await log.keeper._earlier.pour(path, in_chunks)
        full = False
        assert not await log.keeper._earlier.pour(path, in_chunks)
        for file in (one, two):
            (aside.parent / file.name).chmod(0o600)
        assert await log.keeper._earlier.pour(path, in_chunks)
        assert await log.keeper._earlier.pour(path, in_chunks)
    assert [int(each["message"].split()[0]) for each in stored] == [*range(records_in(one) + records_in(two))]
    assert log.keeper.aside == []


def test_file_that_is_removed_while_it_is_listed_hides_no_other(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of its machine are there as before; a link to nothing is as well, and is spoilt when it is read."""
    log = written(folder)
    files = spilt(folder, log)[:4]
    aside = put_aside(folder, log, *files).parent
    scan = os.scandir

    def scanned(path: str) -> list[os.DirEntry[str]]:
        entries = [*scan(path)]
        (aside / files[1].name).unlink(missing_ok=True)
        return entries

    (aside / files[3].name).unlink()
    (aside / files[3].name).symlink_to(aside / "nothing")
    with monkeypatch.context() as removing:
        removing.setattr(os, "scandir", scanned)
        found = Spill(folder, aside.parent.name)
    assert [file.name for file in found.files("M")] == [files[0].name, files[2].name, files[3].name]
    assert found.unlisted is None
    assert [*found.packed(0)] == []
    assert [file.name for _, file, _ in found.broken] == [files[3].name]


@pytest.mark.parametrize("how", ["removed", "spoilt"])
async def test_what_was_told_in_what_was_set_aside_is_not_forgotten(how: str, folder: pathlib.Path) -> None:
    """It is lost with the rest of the file."""
    log = Syslog(policies=policies(LogPolicy(buffer=64 * K)), spill=folder)
    log.journal.keep()
    log.write(4, "a gap", machine="M", fields={"lost": 1_000, "cause": "descriptor"})
    for number in range(300):
        log.write(5, f"{number} " + "x" * 500, machine="M")
    file = spilt(folder, log)[0]
    aside = put_aside(folder, log, file)
    gaps: list[Record] = []

    async def store(message: Message) -> None:
        for machine, generation, first, blob in message.body[1]["chunks"]:
            gaps.extend(records_of([Packed(machine, generation, first, 1, blob)]))

    async with served(lambda other: other.serve(store)) as (path, _):
        assert not await log.keeper._earlier.pour(path, in_chunks)
        aside.unlink()
        if how == "spoilt":
            aside.write_bytes(b"")
        for _ in range(2):
            all_there_is = await log.keeper._earlier.pour(path, in_chunks)
        assert all_there_is
    assert [(each["seq"], each["fields"]) for each in gaps] == [
        (int(file.name.split("-")[1]), {"lost": records_in(file) + 1_000, "cause": "spill"})
    ]


def test_what_was_set_aside_takes_the_room_of_its_machine(folder: pathlib.Path) -> None:
    """A disk that cannot be read but written is not filled: the next ones are dropped, and counted."""
    bound = 128 * K
    log = Syslog(
        journal=Journal.create(LEAST_ROOM), policies=policies(LogPolicy(buffer=64 * K, spill=bound)), spill=folder
    )
    log.journal.keep()
    spill = log.journal.room.spill
    assert spill is not None

    def write() -> None:
        for number in range(400):
            log.write(5, f"{number} " + "x" * 500, machine="M")

    write()
    before = sum(count for _, _, count in log.journal.losses)
    assert before > 0
    for file in (folder / log.run / "M").iterdir():
        file.chmod(0)
    for _ in range(spilling.TRIES):
        [*spill.packed(0)]
    moved = log.keeper._earlier.set_aside(spill, 0)
    assert moved
    assert spill.files("M") == []
    waiting = sum(file.records for file in log.keeper._earlier._aside.values())
    size = spill.size("M")
    assert bound // 2 < size <= bound
    log.journal.recount()
    for _ in range(3):
        write()
        assert spill.size("M") <= bound
    assert spill.beside == ["M"]
    lost = sum(count for _, _, count in log.journal.losses)
    ours = 2  # the records about it
    assert log.journal.last == 1_600 + ours
    assert log.journal.unkept + lost + waiting == log.journal.last
    # The next control program, and whoever looks again, know it as well.
    successor = Journal.adopt(os.dup(log.journal.fileno()))
    other = Spill(folder, log.run)
    successor.room.adopt(other)
    assert other.size("M") == spill.size("M") > size // 2
    (aside,) = [each for each in spill.earlier() if each.is_aside]
    for each in aside.files("M"):
        aside.remove("M", each)
    assert spill.size("M") <= bound - size
    assert spill.beside == []
    successor.close()
    log.journal.close()


def test_file_that_can_be_read_in_the_middle_is_handed_over_whole(folder: pathlib.Path) -> None:
    """And is gone then. One of which the first records were passed comes another time."""
    log = written(folder)
    log.finish()
    run = folder / log.run
    run.rename(folder / f"{log.run}.aside")
    aside = folder / f"{log.run}.aside" / "M"
    first, second = sorted(aside.iterdir())[:2]
    for file in (first, second):
        file.chmod(0)
    spill = Spill(folder, f"{log.run}.aside")
    one, two = spill.files("M")[:2]
    assert len([*spill.packed(0)]) > 0
    assert [file for each in spill.passed for file in each.files] == [one, two]
    first.chmod(0o600)
    second.chmod(0o600)
    found = [chunk for chunk in spill.packed(one.first) if chunk.machine == "M"]
    assert found[0].first == two.first
    assert [file for each in spill.passed for file in each.files] == [one]
    spill.stored(found[-1].last)
    assert spill.files("M") == [one]
    assert spill.trouble is not None
    (again,) = Spill(folder, "next").earlier()
    assert next(again.packed(0)).first == one.first
    again.stored(log.last)
    again.close()
    assert there(folder) == []


@pytest.mark.parametrize("how", ["dropped", "spoilt"])
def test_what_was_told_in_a_file_that_cannot_be_read_is_not_forgotten(how: str, folder: pathlib.Path) -> None:
    """Who has written the file knows it."""
    log = Syslog(policies=policies(LogPolicy(buffer=64 * K, spill=64 * K)), spill=folder)
    log.journal.keep()
    spill = log.journal.room.spill
    assert spill is not None
    log.write(4, "a gap", machine="M", fields={"lost": 1_000, "cause": "descriptor"})
    while not spill.files("M"):
        log.write(5, "x" * 500, machine="M")
    file = spill.files("M")[0]
    path = folder / log.run / "M" / file.name
    if how == "dropped":
        path.chmod(0)
        while file in spill.files("M"):
            log.write(5, "x" * 500, machine="M")
    else:
        path.write_bytes(b"")
        log.journal.recount()
    assert log.journal.losses == [("M", "spill", file.records + 1_000)]
    assert log.journal.unkept == log.last - file.records


async def test_who_asks_is_told_that_some_were_set_aside(folder: pathlib.Path) -> None:
    """Of this run, and of an earlier one that was looked at."""
    log = written(folder, count=250)
    spill = log.journal.room.spill
    assert spill is not None
    for file in spilt(folder, log):
        file.chmod(0)
    for _ in range(spilling.TRIES):
        [*spill.packed(0)]
    assert log.keeper._earlier.set_aside(spill, 0)
    assert spill.machines == ["N"]
    everybody = selection({}, log.run, ["M", "N"])
    assert (await find(log, everybody)).spilled == ["N", "M"]
    assert (await find(log, selection({"machine": "N"}, log.run, ["M", "N"]))).spilled == ["N"]
    successor = Syslog(spill=folder)
    assert (await find(successor, everybody)).spilled == []
    successor.keeper._earlier._look(Spill(folder, successor.run).earlier())
    assert (await find(successor, everybody)).spilled == ["M"]
