"""`retinue logs` of what waits on the disk: once, in order, with a word about the rest, and without a trace."""

import os
import pathlib
from collections.abc import Iterable, Iterator

import pytest
import trio
from tests.cp.spills import body, chunk, contents, put
from tests.services.stored import add, record
from tests.systems import Bench, make_bench

from retinue.cp.archive import Archive, read_archive
from retinue.cp.cli import errors
from retinue.cp.cli.archived import open_reader
from retinue.cp.cli.errors import NoSystem
from retinue.cp.cli.left import Left
from retinue.cp.cli.waiting import FIRST, Waiting
from retinue.cp.selection import Selection
from retinue.cp.spill import Spill
from retinue.services.syslog import Store
from retinue.services.syslog.retention import Retention

ALL = Selection("")
NOT_RUNNING = "-- LEFT is not running: these are the records that SYSLOG has stored"
WAIT = f"{NOT_RUNNING}, and those that wait on the disk until the next retinue up --"


class Remains:
    """A state folder as a system leaves it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.bench: Bench = make_bench(folder)
        self.state = folder / "it"
        self.state.mkdir(mode=0o700)
        self.write(1.0)

    def write(self, began: float) -> None:
        disk = ("SYSLOG", "a")
        Archive("LEFT", began, ("SYSLOG", "SHOP"), "SYSLOG", "retinue.services.syslog", disk).write(self.state)

    def store(self, run: str, machine: str, numbers: Iterable[int]) -> None:
        disk = self.state / "disks" / "SYSLOG" / "a"
        disk.mkdir(parents=True, exist_ok=True)
        store = Store(str(disk / "records.sqlite3"), Retention(1_000_000))
        add(store, run, [record(number, machine, message=f"sold {number}") for number in numbers])
        store.close()

    def logs(self, *args: str) -> tuple[int, list[str], list[str]]:
        done = self.bench.run("logs", "--state", str(self.state), "--times", "none", *args)
        return done.returncode, [line.partition("| ")[2] for line in done.stdout.splitlines()], done.stderr.splitlines()


@pytest.fixture
def remains(tmp_path: pathlib.Path) -> Iterator[Remains]:
    left = Remains(tmp_path)
    yield left
    for process in left.bench.started:
        with process:
            process.kill()


def sold(numbers: Iterable[int]) -> list[str]:
    return [f"sold {number}" for number in numbers]


async def forth(waiting: Waiting, count: int, wanted: Selection = ALL) -> list[int]:
    found: list[int] = []
    place: int | None = FIRST - 1
    while place is not None:
        before = place
        records, place = await waiting.oldest(wanted, place, count)
        assert len(records) == count or place is None
        assert place is None or place > before
        found += [each["seq"] for each in records]
    return found


async def back(waiting: Waiting, count: int, wanted: Selection = ALL) -> list[int]:
    found: list[int] = []
    place: int | None = 2**62
    while place is not None:
        before = place
        records, place = await waiting.newest(wanted, place, count)
        assert len(records) == count or place is None
        assert place is None or place < before
        found[:0] = [each["seq"] for each in records]
    return found


# -- what is found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 1_000])
async def test_machines_and_runs_come_in_their_order(tmp_path: pathlib.Path, count: int) -> None:
    """Whatever the runs are called, and whenever somebody has looked into their folders."""
    for when, run in enumerate(("b", "c", "a"), 1):
        files = [
            put(tmp_path, run, "SHOP", range(1, 4), range(8, 11)),
            put(tmp_path, run, "SHOP", range(14, 15)),
            put(tmp_path, run, "DOOR", [4], [6], [11], [15]),
            put(tmp_path, run, "CP", [5], [7]),
            put(tmp_path, run, "CP", [12, 13]),
        ]
        for file in files:
            os.utime(file, (when * 1_000, when * 1_000))
    for run in ("c", "b"):
        (tmp_path / "spill" / run / "new").mkdir()
    waiting = Waiting(tmp_path)
    assert waiting.runs == ["b", "c", "a"]
    assert waiting.machines == ["CP", "DOOR", "SHOP"]
    assert waiting.border({})
    assert await forth(waiting, count) == await back(waiting, count) == [*range(1, 16)] * 3
    shop = Selection("", machines=frozenset({"SHOP"}))
    assert await forth(waiting, count, shop) == await back(waiting, count, shop) == [1, 2, 3, 8, 9, 10, 14] * 3
    assert waiting.border({"b": 20, "c": 9, "a": 15})
    assert await forth(waiting, count) == await back(waiting, count) == [*range(10, 16)]
    assert not waiting.border({"b": 15, "c": 15, "a": 15})
    assert await forth(waiting, count) == await back(waiting, count) == []
    assert (waiting.left_out(), waiting.gone) == ([], False)


async def test_nothing_is_nothing(tmp_path: pathlib.Path) -> None:
    waiting = Waiting(tmp_path)
    assert not waiting.border({})
    assert await waiting.newest(ALL, 2**62, 5) == await waiting.oldest(ALL, FIRST - 1, 5) == ([], None)
    put(tmp_path, "r", "SHOP", [1])
    waiting = Waiting(tmp_path)
    assert await waiting.newest(ALL, 2**62, 0) == await waiting.oldest(ALL, FIRST - 1, 0) == ([], None)


async def test_page_is_no_larger_than_memory_should_be(tmp_path: pathlib.Path) -> None:
    for first in range(1, 401, 4):
        data = b"".join(chunk(seq, [body(seq, message="long" * 8_000)]) for seq in range(first, first + 4))
        Spill(tmp_path / "spill", "r").put("SHOP", first, first + 3, 4, data)
    waiting = Waiting(tmp_path)
    found, more = await waiting.newest(ALL, 2**62, 5_000)
    assert 200 < len(found) < 300 < 400 == found[-1]["seq"]
    assert more is not None
    rest, more = await waiting.newest(ALL, more, 5_000)
    assert (more, [each["seq"] for each in rest + found]) == (None, [*range(1, 401)])


@pytest.mark.parametrize("oldest", [True, False])
async def test_each_file_is_read_once(tmp_path: pathlib.Path, oldest: bool) -> None:
    """Pages take as long as what is in them: nothing is looked at once more for the next one."""
    files = [put(tmp_path, "r", "AB"[first % 2], range(first * 10 + 1, first * 10 + 11)) for first in range(100)]
    waiting = Waiting(tmp_path)
    place: int | None = FIRST - 1 if oldest else 2**62
    found: list[int] = []
    while place is not None:
        records, place = await (waiting.oldest if oldest else waiting.newest)(ALL, place, 7)
        seqs = [each["seq"] for each in records]
        found += seqs if oldest else seqs[::-1]
        for seq in seqs:
            files[(seq - 1) // 10].unlink(missing_ok=True)
    assert found == [*range(1, 1_001)][:: 1 if oldest else -1]
    assert not waiting.gone


async def test_files_beyond_a_place_are_not_read(tmp_path: pathlib.Path) -> None:
    files = [put(tmp_path, "r", "SHOP", range(first, first + 10)) for first in range(1, 101, 10)]
    for file in files[:-2]:
        file.write_bytes(b"spoilt")
    waiting = Waiting(tmp_path)
    records, place = await waiting.newest(ALL, 2**62, 15)
    assert [each["seq"] for each in records] == [*range(86, 101)]
    assert place is not None
    assert [each["seq"] for each in (await waiting.oldest(ALL, place, 100))[0]] == [*range(87, 101)]
    assert waiting.left_out() == []
    files[-1].write_bytes(b"spoilt")
    waiting = Waiting(tmp_path)
    assert [each["seq"] for each in (await waiting.newest(ALL, place, 5))[0]] == [*range(81, 86)]
    assert waiting.left_out() == []
    assert len((await waiting.newest(ALL, place, 100))[0]) == 5
    (told,) = waiting.left_out()
    assert told.startswith("80 lines of SHOP not shown (it ends within a chunk): ")


async def test_files_that_contradict_each_other_end(tmp_path: pathlib.Path) -> None:
    """Nobody but a stranger makes them; each page goes on from where the last one was."""
    put(tmp_path, "r", "SHOP", [1], [9])
    put(tmp_path, "r", "SHOP", [2], [7], [8])
    put(tmp_path, "r", "SHOP", [3], [9])
    put(tmp_path, "r", "DOOR", range(1, 10))
    for count in (1, 2, 100):
        waiting = Waiting(tmp_path)
        assert set(await forth(waiting, count)) | set(await back(waiting, count)) <= {*range(1, 10)}


# -- what is not shown -------------------------------------------------------------------------------------------------


async def test_what_cannot_be_shown_is_counted(tmp_path: pathlib.Path) -> None:
    """With the file, and of the machines that were asked for."""
    put(tmp_path, "r", "SHOP", range(1, 4))
    spoilt = [put(tmp_path, "r", "SHOP", range(first, first + 5)) for first in (4, 9)]
    for file in spoilt:
        file.write_bytes(file.read_bytes()[:-9])
    pipe = put(tmp_path, "r", "DOOR", [14])
    pipe.unlink()
    os.mkfifo(pipe)
    aside = put(tmp_path, "r.aside", "DOOR", range(15, 20))
    strange = chunk(20, [body(20), [20.5, 6, "shop", "deep", {"a": [[[[[[[[[[1]]]]]]]]]]}]])
    Spill(tmp_path / "spill", "r").put("LAST", 20, 21, 2, strange)
    (tmp_path / "spill" / "s").symlink_to(tmp_path)
    waiting = Waiting(tmp_path)
    assert waiting.machines == ["DOOR", "LAST", "SHOP"]
    assert waiting.border({"r": 5})
    assert await forth(waiting, 2) == await back(waiting, 2) == [20]
    last = next((tmp_path / "spill" / "r" / "LAST").iterdir())
    linked = f"what waits in {tmp_path}/spill/s is not shown (Not a directory)"
    assert waiting.left_out() == [
        f"1 line of DOOR not shown (it is no regular file): {pipe}",
        f"5 lines of DOOR not shown (set aside, because it could not be read): {aside}",
        f"1 line of LAST not shown (it is no record): {last}",
        f"8 lines of SHOP not shown (it ends within a chunk): {spoilt[0]} and 1 more",
        linked,
    ]
    assert await forth(waiting, 2, Selection("", machines=frozenset({"X"}))) == []
    assert waiting.left_out() == [linked]


async def test_what_has_gone_is_told(tmp_path: pathlib.Path) -> None:
    files = [put(tmp_path, "r", "SHOP", range(first, first + 5)) for first in (1, 6)]
    waiting = Waiting(tmp_path)
    files[0].unlink()
    assert await back(waiting, 2) == [*range(6, 11)]
    assert waiting.gone
    assert waiting.left_out() == []


# -- the command -------------------------------------------------------------------------------------------------------


def test_nothing_is_changed(remains: Remains) -> None:
    """Not even what the control program would tidy up: it may be writing that."""
    file = put(remains.state, "r", "SHOP", range(1, 4))
    (file.with_name(".new")).write_bytes(b"half of a block")
    elsewhere = remains.state.with_name("elsewhere")
    (elsewhere / "folder").mkdir(parents=True)
    (elsewhere / "precious").write_text("kept")
    (elsewhere / "folder" / "more").write_text("kept")
    (file.parent.parent / "DOOR").symlink_to(elsewhere)
    (remains.state / "spill" / "s").symlink_to(elsewhere)
    before = contents(remains.state), contents(elsewhere)
    for args in ((), ("-n", "all"), ("SHOP", "-n", "2")):
        code, out, err = remains.logs(*args)
        assert (code, out) == (0, sold([2, 3] if "2" in args else [1, 2, 3]))
        assert err[0] == WAIT
        assert [line.endswith(" is not shown (Not a directory) --") for line in err[1:]] == [True, True]
    assert (contents(remains.state), contents(elsewhere)) == before
    (remains.state / "spill").rename(remains.state.with_name("spill"))
    (remains.state / "spill").symlink_to(elsewhere)
    before = contents(remains.state), contents(elsewhere)
    code, out, err = remains.logs()
    assert (code, out) == (errors.NO_SYSTEM, [])
    assert err[0] == f"-- what waits in {remains.state}/spill is not shown (Not a directory) --"
    assert err[1].startswith("retinue: LEFT is not running, and SYSLOG has stored no records of it")
    assert (contents(remains.state), contents(elsewhere)) == before


@pytest.mark.parametrize(("stored", "waiting"), [(100, 100), (2_000, 2_000), (1, 100)])
def test_border_between_what_is_stored_and_what_waits(remains: Remains, stored: int, waiting: int) -> None:
    """Pages end there, or on either side of it; a part of the run is stored."""
    remains.store("r", "SHOP", range(1, stored + 1))
    total = stored + waiting
    put(remains.state, "r", "SHOP", range(max(1, stored - 5), total + 1))
    for count in (waiting - 1, waiting, waiting + 1, total):
        code, out, err = remains.logs("-n", str(count))
        assert (code, out, err) == (0, sold(range(1, total + 1))[-count:] if count else [], [WAIT])
    assert remains.logs("-n", "all")[1] == sold(range(1, total + 1))
    for number in (1, stored + 1):
        assert remains.logs("-n", "3", "-g", f"^sold {number}$")[1] == sold([number])  # page after page


def test_runs_that_are_stored_and_others(remains: Remains) -> None:
    """Machines that are none any more can be named, too."""
    remains.store("one", "SHOP", range(1, 6))
    remains.store("two", "SHOP", range(1, 4))
    os.utime(put(remains.state, "two", "SHOP", range(2, 7)), (2_000, 2_000))
    os.utime(put(remains.state, "three", "GONE", range(1, 3)), (3_000, 3_000))
    everything = [*range(1, 6), *range(1, 4), *range(4, 7), *range(1, 3)]
    assert remains.logs("-n", "all") == (0, sold(everything), [WAIT])
    for count in range(1, len(everything) + 1):
        assert remains.logs("-n", str(count))[1] == sold(everything[-count:])
    assert remains.logs("GONE") == (0, sold([1, 2]), [WAIT])
    assert remains.logs("NEVER")[0] == errors.USAGE


def test_what_was_set_aside_is_told_also_when_there_is_nothing_else(remains: Remains) -> None:
    file = put(remains.state, "r.aside", "GONE", range(1, 6))
    told = f"-- 5 lines of GONE not shown (set aside, because it could not be read): {file} --"
    code, out, err = remains.logs()
    assert (code, out, err[0]) == (errors.NO_SYSTEM, [], told)
    remains.store("r", "SHOP", [7])
    assert remains.logs() == (0, sold([7]), [f"{NOT_RUNNING} --", told])
    assert remains.logs("SHOP") == (0, sold([7]), [f"{NOT_RUNNING} --"])
    assert remains.logs("GONE") == (0, [], [f"{NOT_RUNNING} --", told])


@pytest.mark.parametrize("how", ["begun", "stored"])
async def test_system_that_is_started_meanwhile(remains: Remains, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes what waits out of the folder, and SYSLOG stores it."""
    remains.store("r", "SHOP", range(1, 4))
    file = put(remains.state, "r", "SHOP", range(4, 7))
    archive = read_archive(remains.state)
    assert archive is not None
    with trio.fail_after(60):
        async with open_reader(Left(remains.state, archive, NoSystem(None, [], remains.state))) as reader:
            page = await reader.ask(count=2)
            assert [each["message"] for each in page["records"]] == sold([5, 6])
            if how == "begun":
                remains.write(2.0)
            else:
                file.unlink()
                await reader.ask(oldest=True, count=100)
    began, *told = capsys.readouterr().err.splitlines()
    assert began == WAIT
    assert told == ["-- LEFT was started meanwhile, and some records may be missing or twice here: ask again --"]
