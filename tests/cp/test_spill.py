"""Records that wait on the disk: once and in order, or counted, whoever is killed and whatever the disk does."""

import errno
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.cp.directory.model import LogPolicy
from retinue.cp.journal import LEAST_ROOM, Journal
from retinue.cp.log_policy import LogPolicies
from retinue.cp.spill import TRIES, Spill
from retinue.cp.tape import BLOCK, HEAD, Packed, records_of

K = 1024


def policies(**of: LogPolicy) -> LogPolicies:
    found = LogPolicies()
    found._of.update(of)
    return found


BOUNDS = {
    "SPILL": LogPolicy("spill", buffer=64 * K, spill=1024**2),
    "SMALL": LogPolicy("spill", buffer=64 * K, spill=200 * K),
    "DROP": LogPolicy("drop", buffer=128 * K),
    "BLOCK": LogPolicy("block", buffer=64 * K),
}


def body(message: str) -> list[Any]:
    return [1.5, 6, "x", message, {}]


def set_up(journal: Journal, folder: pathlib.Path, bounds: dict[str, LogPolicy] | None = None) -> Journal:
    journal.room.declare(policies(**(bounds or BOUNDS)))
    journal.room.adopt(Spill(folder, journal.run))
    journal.keep()
    return journal


def copy(journal: Journal) -> int:
    """What would be found if the process were killed now."""
    made = os.memfd_create("copy")
    size = os.fstat(journal.fileno()).st_size
    os.ftruncate(made, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(journal.fileno(), end, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(journal.fileno(), start, os.SEEK_HOLE)
        os.pwrite(made, os.pread(journal.fileno(), end - start, start), start)
    return made


def waiting(journal: Journal) -> list[int]:
    """The numbers that wait, in the order in which they are handed over."""
    chunks = [*journal.packed(after=journal.stored)]
    return [each["seq"] for each in records_of(chunks) if each["seq"] > journal.stored]


def lost(journal: Journal) -> int:
    return sum(count for _, _, count in journal.losses)


def store(journal: Journal, most: int) -> list[int]:
    """Hand over so many chunks, as the keeper does; the numbers of their records."""
    chunks: list[Packed] = []
    for chunk in journal.packed(after=journal.stored):
        if len(chunks) == most:
            break
        chunks.append(chunk)
    if not chunks:
        return []
    before = journal.stored
    journal.offered = chunks[-1].last
    journal.store(chunks[-1].last, sum(min(chunk.records, chunk.last - before) for chunk in chunks))
    return [each["seq"] for each in records_of(chunks) if each["seq"] > before]


@pytest.fixture
def journal(tmp_path: pathlib.Path) -> Iterator[Journal]:
    made = set_up(Journal.create(LEAST_ROOM), tmp_path / "spill")
    yield made
    made.close()


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(each for each in folder.rglob("*") if each.is_file())


# -- the bounds --------------------------------------------------------------------------------------------------------


def test_what_has_no_room_waits_on_the_disk_and_comes_back_in_order(journal: Journal, tmp_path: pathlib.Path) -> None:
    """All of it, between the records of others; its files are gone when it is stored."""
    for number in range(300):
        journal.append("SPILL", 1, [body(f"{number} " + "x" * 1000)])
        journal.append("QUIET", 1, [body("q")])
    assert files(tmp_path)
    assert waiting(journal) == [*range(1, 601)]
    assert journal.unkept == 600
    texts = [each["message"].split()[0] for each in records_of(journal.packed(after=0)) if each["machine"] == "SPILL"]
    assert texts == [str(number) for number in range(300)]
    found: list[int] = []
    while journal.unkept:
        found += store(journal, 50)
    assert found == [*range(1, 601)]
    assert (files(tmp_path), journal.losses) == ([], [])


@pytest.mark.parametrize("machine", ["SPILL", "DROP", "SMALL"])
def test_buffer_bounds_what_waits_in_the_journal(journal: Journal, machine: str) -> None:
    """However small the buffer, and however large the records are."""
    for number in range(400):
        journal.append(machine, 1, [body("x" * (number % 7) * 1000)])
        tape = journal.tape(machine)
        here = sum(block.used for block in tape.blocks if not block.gone)
        assert here <= BOUNDS[machine].buffer
    assert journal.unkept + lost(journal) == 400


def test_what_the_disk_may_not_hold_is_dropped_oldest_first_and_counted(
    journal: Journal, tmp_path: pathlib.Path
) -> None:
    """The newest are there, as many as may be."""
    for number in range(1000):
        journal.append("SMALL", 1, [body(f"{number} " + "x" * 1000)])
    (loss,) = journal.losses
    assert loss[:2] == ("SMALL", "spill")
    assert waiting(journal) == [*range(loss[2] + 1, 1001)]
    assert 100 * K < sum(file.stat().st_size for file in files(tmp_path)) <= 200 * K


def test_dropped_records_are_the_oldest_and_counted(journal: Journal, tmp_path: pathlib.Path) -> None:
    """Nothing of them is on the disk; who reads the newest records still finds some of them."""
    for number in range(1000):
        journal.append("DROP", 1, [body(f"{number} " + "x" * 1000)])
    (loss,) = journal.losses
    assert loss[:2] == ("DROP", "buffer")
    assert waiting(journal) == [*range(loss[2] + 1, 1001)]
    assert len([*journal.newest("DROP")]) > len(waiting(journal))
    assert files(tmp_path) == []


def test_machine_that_blocks_loses_nothing_whatever_there_is(journal: Journal) -> None:
    """Its descriptor is not read when it is full; what was read all the same goes to the disk at worst."""
    assert not journal.room.full("BLOCK")
    for _ in range(60):
        journal.append("BLOCK", 1, [body("x" * 1000)])
    assert journal.room.full("BLOCK")
    for _ in range(12_000):
        journal.append("BLOCK", 1, [body("x" * 1000)])
    assert waiting(journal) == [*range(1, 12_061)]
    assert journal.losses == []


def test_what_is_stored_makes_room_for_what_waits(journal: Journal) -> None:
    """However many machines keep their newest records here: nobody waits for room because of that."""
    for number in range(20):
        for _ in range(60):
            journal.append(f"M{number}", 1, [body("x" * 9000)])
        while store(journal, 100):
            pass
    assert len(journal.room.free) < 4
    for _ in range(30):
        assert not journal.room.full("BLOCK")
        journal.append("BLOCK", 1, [body("x" * 1000)])
    assert journal.losses == []
    assert len(waiting(journal)) == 30


def test_nothing_is_bounded_while_nobody_stores(tmp_path: pathlib.Path) -> None:
    """A system without such a machine keeps the newest records and loses none of them."""
    journal = Journal.create(LEAST_ROOM)
    journal.room.declare(policies(**BOUNDS))
    journal.room.adopt(Spill(tmp_path, journal.run))
    for name in BOUNDS:
        for _ in range(1000):
            journal.append(name, 1, [body("x" * 1000)])
        assert not journal.room.full(name)
    assert journal.losses == []
    assert files(tmp_path) == []
    journal.close()


def test_batch_on_its_way_is_not_dropped(journal: Journal) -> None:
    """Neither in memory nor on the disk: it may be stored already."""
    for machine in ("DROP", "SMALL"):
        for _ in range(150):
            journal.append(machine, 1, [body("x" * 1000)])
    before = waiting(journal)
    journal.offered = before[len(before) // 2]
    for machine in ("DROP", "SMALL"):
        for _ in range(1000):
            journal.append(machine, 1, [body("x" * 1000)])
    assert [seq for seq in waiting(journal) if seq <= journal.offered] == before[: len(before) // 2 + 1]
    assert journal.unkept + lost(journal) == journal.last


# -- the disk ----------------------------------------------------------------------------------------------------------


def test_disk_that_takes_nothing_is_a_loss_with_its_cause(tmp_path: pathlib.Path) -> None:
    """Records go on; what had no room is counted."""
    (tmp_path / "spill").write_text("no folder")
    journal = set_up(Journal.create(LEAST_ROOM), tmp_path / "spill")
    for _ in range(300):
        journal.append("SPILL", 1, [body("x" * 1000)])
    ((machine, cause, count),) = journal.losses
    assert (machine, cause) == ("SPILL", "spill")
    assert waiting(journal) == [*range(count + 1, 301)]
    journal.close()


def test_spoilt_files_are_losses(journal: Journal, tmp_path: pathlib.Path) -> None:
    """Somebody has removed one and cut another; what is in the others is there."""
    for _ in range(400):
        journal.append("SPILL", 1, [body("x" * 1000)])
    first, second, *_ = files(tmp_path)
    gone = sum(int(file.name.split("-")[2]) for file in (first, second))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-5])
    assert waiting(journal) == [*range(gone + 1, 401)]
    journal.recount()
    assert journal.losses == [("SPILL", "spill", gone)]
    assert journal.unkept == 400 - gone


def test_file_that_was_not_finished_is_none(journal: Journal, tmp_path: pathlib.Path) -> None:
    """It is removed, and its records are in the journal."""
    for _ in range(200):
        journal.append("SPILL", 1, [body("x" * 1000)])
    folder = files(tmp_path)[0].parent
    (folder / ".new").write_bytes(b"half")
    (folder / "README").write_text("x")
    spill = Spill(tmp_path / "spill", journal.run)
    assert {file.name for file in files(tmp_path)} == {file.name for file in spill.files("SPILL")}


def test_names_of_instances_are_names_of_folders(tmp_path: pathlib.Path) -> None:
    """Whatever a machine is called, its files are its own."""
    spill = Spill(tmp_path, "run")
    for name in ("SHOP@1", "..", "A/B", "A%2FB"):
        spill.put(name, 1, 1, 1, b"x")
    assert sorted(Spill(tmp_path, "run").machines) == sorted(spill.machines)
    assert len(files(tmp_path / "run")) == len(files(tmp_path)) == 4


# -- one after the other -----------------------------------------------------------------------------------------------


def test_end_of_a_run_leaves_what_waits_to_the_next_one(journal: Journal, tmp_path: pathlib.Path) -> None:
    """All that may be on the disk; the next run finds it, and removes the folder when it is stored."""
    for name in ("SPILL", "DROP", "BLOCK"):
        for _ in range(10):
            journal.append(name, 1, [body(name)])
    journal.room.give_up_all()
    (earlier,) = Spill(tmp_path / "spill", "next").earlier()
    assert earlier.run == journal.run
    found = records_of(earlier.packed(0))
    assert [each["message"] for each in found] == ["SPILL"] * 10 + ["BLOCK"] * 10
    earlier.stored(found[-1]["seq"])
    earlier.close()
    assert Spill(tmp_path / "spill", "next").earlier() == []


# -- killed ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.sampled_from([*BOUNDS]), st.integers(1, 30), st.integers(0, 20_000)),
            st.tuples(st.just("store"), st.integers(1, 30)),
            st.tuples(st.just("offer"), st.integers(1, 30)),
            st.tuples(st.just("adopt")),
            st.tuples(st.just("tell")),
        ),
        max_size=40,
    ),
)
def test_every_number_is_stored_or_waits_or_is_counted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    """Whatever is written, stored, told and adopted, each once, and each machine's in order."""
    folder = tmp_path_factory.mktemp("spill")
    journal = set_up(Journal.create(LEAST_ROOM), folder)
    stored: list[int] = []
    told = 0
    for step in steps:
        match step:
            case ["append", machine, count, size]:
                journal.append(machine, 1, [body("x" * size) for _ in range(count)])
            case ["store", most]:
                stored += store(journal, most)
            case ["offer", most]:
                chunks = [*journal.packed(after=journal.stored)][:most]
                journal.offered = chunks[-1].last if chunks else journal.offered
            case ["adopt"]:
                adopted = Journal.adopt(copy(journal))
                journal.close()
                journal = set_up(adopted, folder)
            case _:
                for machine, cause, count in journal.losses:
                    told += count
                    journal.append(machine, 0, [body("told")], told=(cause, count))
        here = waiting(journal)
        assert here == sorted({*here})
        assert journal.unkept == len(here)
        assert len(stored) + len(here) + lost(journal) + told == journal.last
        assert not {*stored} & {*here}
    assert stored == sorted({*stored})
    journal.close()
    shutil.rmtree(folder)


def test_killed_at_any_line_every_record_waits_once_or_is_counted(tmp_path: pathlib.Path) -> None:
    """At each line that makes room: what the next control program finds in memory and on the disk is all of it."""
    folder = tmp_path / "spill"
    small = {"M": LogPolicy("spill", buffer=64 * K, spill=64 * K), "D": evolve(BOUNDS["DROP"], buffer=64 * K)}
    journal = set_up(Journal.create(LEAST_ROOM), folder, small)
    expected = {0}
    seen = {"files": 0, "lost": 0, "looks": 0}

    def look() -> None:
        there = tmp_path / "there"
        if folder.exists():
            shutil.copytree(folder, there)
        found = Journal.adopt(copy(journal))
        set_up(found, there, small)
        here = waiting(found)
        assert here == sorted({*here})
        assert found.unkept == len(here)
        # What is being written now is there or not.
        assert found.stored + len(here) + lost(found) == found.last
        assert found.last in expected
        seen["files"] = max(seen["files"], len(files(there)))
        seen["lost"] += bool(found.losses)
        seen["looks"] += 1
        found.close()
        shutil.rmtree(there, ignore_errors=True)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(("journal.py", "room.py", "spill.py")):
            return None
        if event == "line":
            look()
        return trace

    def write(machine: str) -> None:
        journal.append(machine, 1, [body("x" * 7 * K) for _ in range(4)])

    def watched(machine: str) -> None:
        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            write(machine)
        finally:
            sys.settrace(previous)

    for step in range(8):
        for machine in ("M", "D"):
            expected = {journal.last, journal.last + 4}
            # The first steps only fill: nothing happens there that the last one does not show.
            if step == 7:
                watched(machine)
            else:
                write(machine)
    assert seen["files"] >= 2
    assert seen["lost"] > 10
    assert seen["looks"] > 100
    journal.close()


# -- the corners -------------------------------------------------------------------------------------------------------


def test_record_that_tells_of_a_loss_may_need_room_for_which_more_is_lost(journal: Journal) -> None:
    """That is not told by it, and goes on to be counted."""
    text = body("x" * 3000)
    written = 0
    tape = journal.tape("DROP")
    while not journal.losses or tape.blocks[-1].used + 3100 < tape.room:
        journal.append("DROP", 1, [[*text]])
        written += 1
    told = lost(journal)
    journal.append("DROP", 0, [[*text]], told=("buffer", told))
    assert lost(journal) > 0
    assert len(waiting(journal)) + told + lost(journal) == written + 1


def test_last_block_of_the_machine_itself_may_have_to_go(journal: Journal) -> None:
    """When each machine has one block, and none is free: what it writes has room all the same."""
    large = body("x" * (BLOCK * 3 // 4))
    journal.room.declare(LogPolicies())
    journal.append("M", 1, [body("small")])
    for number in range(LEAST_ROOM // BLOCK - 1):
        journal.append(f"M{number}", 1, [body("small")])
    last = journal.last
    journal.append("M", 1, [[*large], [*large]])
    assert journal.last == last + 2
    assert [each["seq"] for each in journal.newest("M")] == [last + 2, last + 1]
    assert len(waiting(journal)) + lost(journal) == journal.last


def test_files_that_are_written_out_of_order_are_read_in_order(tmp_path: pathlib.Path) -> None:
    """A block that is just being stored is kept back while the next one goes to the disk."""
    from_journal = set_up(Journal.create(LEAST_ROOM), tmp_path / "one")
    for _ in range(150):
        from_journal.append("SPILL", 1, [body("x" * 1000)])
    assert from_journal.room.spill is not None
    blocks = from_journal.room.spill.files("SPILL")
    assert len(blocks) >= 2
    folder = next((tmp_path / "one").rglob(blocks[0].name)).parent
    data = [(each, (folder / each.name).read_bytes()) for each in blocks[:2]]
    spill = Spill(tmp_path / "two", "run")
    for file, content in reversed(data):
        spill.put("SPILL", file.first, file.last, file.records, content)
    firsts = [chunk.first for chunk in spill.packed(0)]
    assert firsts == sorted(firsts)
    assert firsts[0] == 1
    spill.stored(blocks[0].last)
    assert [file.first for file in spill.files("SPILL")] == [blocks[1].first]
    from_journal.close()


def test_file_that_the_host_has_lost_the_content_of_is_counted(journal: Journal, tmp_path: pathlib.Path) -> None:
    """Nothing is synchronised: after a crash of the host there may be a name and nothing else."""
    for _ in range(150):
        journal.append("SPILL", 1, [body("x" * 1000)])
    first = files(tmp_path)[0]
    records = int(first.name.rpartition("-")[2])
    first.write_bytes(b"")
    later = Spill(tmp_path / "spill", "another run")
    (earlier,) = later.earlier()
    assert next(earlier.packed(0)).first == records + 1
    assert [(machine, lost) for machine, _, lost in earlier.broken] == [("SPILL", records)]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda blob: b"\xc1" + blob[1:], id="no-msgpack"),
        pytest.param(lambda blob: b"\x91" + blob[1:], id="more-bodies"),
        pytest.param(lambda blob: b"\x01" + blob[1:], id="no-array"),
        pytest.param(lambda blob: blob.replace(b"x\xda", b"\xff\xda", 1), id="no-utf-8"),
        pytest.param(lambda blob: blob.replace(b"\xa1x\xda", b"\x01x\xda", 1), id="no-text"),
        pytest.param(lambda blob: blob.replace(b"\xda", b"\xc5", 1), id="bytes"),
    ],
)
def test_spoilt_records_in_a_file_of_the_right_size_are_a_loss(
    journal: Journal, tmp_path: pathlib.Path, spoil: Callable[[bytes], bytes]
) -> None:
    """Nobody has to read them, and what comes later is there."""
    for _ in range(100):
        journal.append("SPILL", 1, [body("x" * 1000) for _ in range(4)])
    first = files(tmp_path)[0]
    gone = int(first.name.rpartition("-")[2])
    data = first.read_bytes()
    spoilt = data[: HEAD.size] + spoil(data[HEAD.size :])
    assert len(spoilt) == len(data)
    assert spoilt != data
    first.write_bytes(spoilt)
    assert waiting(journal) == [*range(gone + 1, 401)]
    journal.recount()
    assert journal.losses == [("SPILL", "spill", gone)]
    assert journal.unkept == 400 - gone


def test_file_of_an_earlier_run_that_cannot_be_read_is_given_up(
    journal: Journal, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks for earlier runs anew each time has tried as often as it did."""
    for _ in range(150):
        journal.append("SPILL", 1, [body("x" * 1000)])
    first = files(tmp_path)[0]
    records = int(first.name.rpartition("-")[2])
    read = pathlib.Path.read_bytes

    def fail(path: pathlib.Path) -> bytes:
        if path == first:
            raise OSError(errno.EIO, "the disk")
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", fail)
    later = Spill(tmp_path / "spill", "another run")
    for tries in range(1, TRIES + 1):
        (earlier,) = later.earlier()
        assert next(earlier.packed(0)).first == records + 1
        assert len(earlier.unread) == (tries < TRIES)
    assert [(machine, lost) for machine, _, lost in earlier.broken] == [("SPILL", records)]


def test_batch_on_its_way_stays_when_the_disk_takes_nothing(tmp_path: pathlib.Path) -> None:
    """It is not counted as lost, for it may be stored; nor is it subtracted twice when it is."""
    (tmp_path / "spill").write_text("no folder")
    journal = set_up(Journal.create(LEAST_ROOM), tmp_path / "spill")
    for _ in range(60):
        journal.append("SPILL", 1, [body("x" * 1000)])
    assert journal.losses == []
    offered = journal.offered = journal.last - 5
    for _ in range(300):
        journal.append("SPILL", 1, [body("x" * 1000)])
    here = waiting(journal)
    assert here[:offered] == [*range(1, offered + 1)]
    assert len(here) + lost(journal) == journal.last
    assert lost(journal) > 0
    journal.store(offered, offered)
    assert journal.unkept == len(waiting(journal)) == len(here) - offered
    journal.close()


def test_file_that_could_not_be_read_and_is_removed_waits_no_more(
    journal: Journal, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of it when somebody counts what waits."""
    for _ in range(150):
        journal.append("SPILL", 1, [body("x" * 1000)])

    def fail(path: pathlib.Path) -> bytes:
        raise OSError(errno.EMFILE, "no descriptor is left")

    spill = journal.room.spill
    assert spill is not None
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_bytes", fail)
        assert waiting(journal)[0] > 1
    assert spill.left(0) > 0
    journal.store(journal.last, journal.unkept)
    assert (spill.unread, spill.left(journal.stored)) == ([], 0)
    journal.recount()
    assert journal.unkept == 0
