"""`retinue logs` of a system that is not running: what its syslog machine has stored, which is not believed."""

import contextlib
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from tests.systems import Bench, make_bench, open_bench, read_until, wait_for

from retinue.cp.archive import Archive, read_archive
from retinue.cp.cli import archived, errors
from retinue.cp.cli.archived import reader_command
from retinue.cp.host.process import command
from retinue.cp.spill import Spill
from retinue.cp.tape import HEAD, size_of
from retinue.services.syslog.archive import Failed, enter, why

SHOP = """\
import logging
from retinue.svm import Machine

async def main(vm: Machine[None]) -> None:
    await vm.ready()
    till = logging.getLogger("shop.till")
    for number in range(3_000):
        till.info("sold %d", number, extra={"status": 500 if number % 1_000 == 321 else 200})
    till.info("one request", extra={"trace": "4bf92f3577b34da6a3ce929d0e0e4736"})
    logging.getLogger("shop.door").warning("Tür \\x1b[2J klemmt\\nsehr")
    await vm.stopping.wait()
    logging.getLogger("shop.door").error("closed")
"""

QUERIES = [
    ["-n", "all", "--json"],
    ["-n", "7"],
    ["CP", "SHOP", "-s", "warn"],
    ["-t", "TÜR"],
    ["-g", r"^sold \d*77$", "-n", "3"],
    ["-l", "shop.door"],
    ["--field", "status=500"],
    ["--trace", "4bf92f"],
    ["--since", "1h", "SHOP"],
]
REMARK = " is not running: these are the records that SYSLOG has stored"
WAITING = ", and those that wait on the disk until the next retinue up --"


# -- a real system -----------------------------------------------------------------------------------------------------


def test_logs_are_the_same_when_the_system_has_gone(tmp_path: pathlib.Path) -> None:
    """Stopped in order or killed, whoever owns the disk; and SYSLOG goes on with what was read."""
    with open_bench(tmp_path) as bench:
        bench.write(shop=SHOP)
        text = bench.file.read_text().replace("\n[machines", '\nsyslog = "SYSLOG"\n[machines', 1)
        text = text.replace('program = "shop"', 'program = "shop"\nlog.policy = "block"')
        bench.file.write_text(text + '[machines.SYSLOG]\nprogram = "retinue.services.syslog"\ndisks.a = {}\n')
        ended = ""
        for end in ("down", "kill"):
            bench.up()
            wait_for(lambda: bench.records("SHOP")[-1]["message"].startswith("Tür"))
            until = f"@{time.time():.6f}"
            queries = QUERIES if end == "down" else QUERIES[:2]
            wait_until_stored(bench)
            running = [answers(bench, until, *query) for query in queries]
            assert all(err == "" for _, err in running)
            assert running[0][0].count("one request") == (1 if end == "down" else 2)
            if end == "down":
                assert bench.run("down").returncode == 0
            else:
                for pid in (bench.nucleus_pid(), *bench.processes()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                wait_for(lambda: not bench.processes())
                bench.bury()
            for query, (out, _) in zip(queries, running, strict=True):
                now, err = answers(bench, until, *query)
                assert now == out
                assert err.startswith(f"-- {bench.name}{REMARK}")
                assert err.count("\n") == 1
                # What SYSLOG did not take any more in its own end.
                assert (WAITING in err) == (end == "down")
            left = bench.run("logs", "-n", "all", "--json").stdout
            if end == "down":
                ended = left
                assert f"the system {bench.name} is STOPPED" in left.splitlines()[-1]
                pages = bench.run("logs", "-n", "3000", "--json").stdout  # from the end, in several pages
                assert pages.splitlines() == left.splitlines()[-3000:]
            else:
                assert left.startswith(ended)  # also what has waited then
            assert "SHOP   | error: closed" in bench.run("logs", "--since", "1h").stdout
        unknown = bench.run("logs", "SHO")
        assert (unknown.returncode, unknown.stdout) == (errors.USAGE, "")
        assert f"retinue: {bench.name} has no machine SHO; did you mean SHOP?\n" in unknown.stderr
        follow = bench.run("logs", "-f", "--system", bench.name)
        assert (follow.returncode, follow.stdout) == (errors.NO_SYSTEM, "")
        assert follow.stderr.startswith(f"retinue: {bench.name} is not running: nothing is written that could be")
        assert "leave out -f" in follow.stderr
        bench.assert_gone()


def wait_until_stored(bench: Bench) -> None:
    """Until SYSLOG has stored what is written before the call; a file in which it would wait is none any more."""
    last = bench.ask("logs", count=0)["seq"]
    (file,) = bench.folder.glob("state/retinue/*/disks/SYSLOG/a/records.sqlite3")
    with contextlib.closing(sqlite3.connect(file)) as database:
        newest = "SELECT max(id) & ((1 << 44) - 1) FROM entries WHERE id >> 44 = (SELECT max(number) FROM runs)"
        wait_for(lambda: (database.execute(newest).fetchone()[0] or 0) >= last)
    wait_for(lambda: bench.ask("logs", count=1)["spilled"] == [])


def answers(bench: Bench, until: str, *query: str) -> tuple[str, str]:
    done = bench.run("logs", *query, "--until", until)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return done.stdout, done.stderr


# -- what a machine may have left --------------------------------------------------------------------------------------


# A machine that has none of its own, as with an unprivileged user, has the disk of whoever has started the system.
OWN = 1_879_048_199
OWNERS = [0, OWN] if os.geteuid() == 0 else [os.geteuid()]


class Remains:
    """A state folder as a system leaves it, of which SYSLOG has stored some records."""

    def __init__(self, folder: pathlib.Path, owner: int) -> None:
        self.owner = owner
        self.bench = make_bench(folder)
        self.state = folder / "it"
        self.disk = self.state / "disks" / "SYSLOG" / "a"
        self.file = self.disk / "records.sqlite3"
        self.disk.mkdir(parents=True)
        self.archive(machine="SYSLOG", program="retinue.services.syslog", disk=("SYSLOG", "a"))

    def archive(self, **more: Any) -> None:
        Archive("LEFT", 1.0, ("SYSLOG", "SHOP"), **more).write(self.state)

    def store(self, count: int = 3, *, wal: bool = False) -> sqlite3.Connection:
        """As SYSLOG does it; the connection is the caller's to close."""
        database = sqlite3.connect(self.file, isolation_level=None)
        database.executescript(SCHEMA)
        if wal:
            database.execute("PRAGMA journal_mode = WAL")
        row = "INSERT INTO entries SELECT (1 << 44) + value, value, 1, 1, 6, 1, 'sold ' || value, NULL, NULL"
        database.execute(f"{row} FROM numbers LIMIT ?", (count,))
        return database

    def spoil(self, script: str) -> None:
        with contextlib.closing(self.store()) as database:
            database.executescript(script)

    def spill(self, bodies: list[Any], first: int) -> None:
        """A file of what waits to be stored."""
        count, blob = len(bodies), msgpack.packb(bodies)
        block = (HEAD.pack(len(blob), count, first, 1) + blob).ljust(size_of(len(blob)), b"\0")
        Spill(self.state / "spill", "r").put("SHOP", first, first + count - 1, count, block)

    def give(self) -> None:
        """The disk, and what is on it, to whoever owns it."""
        for each in (self.disk, *self.disk.glob("*")):
            os.chown(each, self.owner, self.owner if os.geteuid() == 0 else -1, follow_symlinks=False)

    def logs(self, *args: str) -> tuple[int, list[str], str]:
        self.give()
        done = self.bench.run("logs", "--state", str(self.state), "--times", "none", *args)
        return done.returncode, done.stdout.splitlines(), done.stderr


# The tables of SYSLOG, written down here once more: what is stored stays what it is.
SCHEMA = """
PRAGMA user_version = 2;
CREATE TABLE runs (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE machines (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE loggers (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, machine INTEGER NOT NULL, generation INTEGER NOT NULL,
    severity INTEGER NOT NULL, logger NOT NULL, message TEXT NOT NULL, fields TEXT, trace TEXT
);
CREATE INDEX entries_by_machine ON entries (machine);
CREATE INDEX entries_by_trace ON entries (trace) WHERE trace IS NOT NULL;
INSERT INTO runs VALUES (1, 'r');
INSERT INTO machines VALUES (1, 'SHOP');
INSERT INTO loggers VALUES (1, 'shop');
CREATE TEMP VIEW numbers AS
    WITH RECURSIVE n (value) AS (SELECT 0 UNION ALL SELECT value + 1 FROM n) SELECT value FROM n;
"""
THREE = ["SHOP   | sold 0", "SHOP   | sold 1", "SHOP   | sold 2"]


# For tests to which it matters whose the disk is. In all others it is a machine's own, if there are such.
of_all_owners = pytest.mark.parametrize("remains", OWNERS, indirect=True, ids=lambda owner: f"of-{owner}")


@pytest.fixture
def remains(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[Remains]:
    left = Remains(tmp_path, getattr(request, "param", OWNERS[-1]))
    yield left
    for process in left.bench.started:
        with process:
            process.kill()


@of_all_owners
def test_records_of_the_last_transaction_are_read_although_nobody_has_tidied_up(remains: Remains) -> None:
    """They are in the log beside the file. What the reader leaves belongs to whoever has the disk."""
    with contextlib.closing(remains.store(wal=True)) as database:
        contents = {each.name: each.read_bytes() for each in remains.disk.iterdir()}
    assert contents.keys() == {"records.sqlite3", "records.sqlite3-wal", "records.sqlite3-shm"}
    del contents["records.sqlite3-shm"]  # as after a copy, which nobody makes of it
    database.close()
    for name, data in contents.items():
        (remains.disk / name).write_bytes(data)
    assert remains.logs() == (0, THREE, f"-- LEFT{REMARK} --\n")
    assert {each.stat().st_uid for each in remains.disk.iterdir()} == {remains.owner}
    assert remains.logs("--system", "LEFT", "SHOP", "-n", "1")[1] == ["SHOP | sold 2"]


@of_all_owners
def test_folder_in_which_nothing_can_be_made_is_read_as_far_as_that_goes(remains: Remains) -> None:
    """SQLite makes a file of its own to look at what is in the log beside the database."""
    with contextlib.closing(remains.store(2, wal=True)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("INSERT INTO entries VALUES ((1 << 44) + 2, 2, 1, 1, 6, 1, 'sold 2', NULL, NULL)")
        contents = {each.name: each.read_bytes() for each in remains.disk.iterdir()}
    (remains.disk / "records.sqlite3").write_bytes(contents["records.sqlite3"])
    (remains.disk / "records.sqlite3-wal").write_bytes(contents["records.sqlite3-wal"])
    for place in (*remains.disk.iterdir(), remains.disk):
        place.chmod(0o500)
    try:
        without = ", without the newest, which are in a file that cannot be used as it is"
        assert remains.logs() == (0, THREE[:2], f"-- LEFT{REMARK}{without} --\n")
    finally:
        remains.disk.chmod(0o700)


def test_records_that_wait_are_shown_behind_those_that_are_stored(remains: Remains) -> None:
    """Each once, by whatever pages; also when nothing at all is stored."""
    for first in range(1, 5_000, 1_000):
        remains.spill([[float(seq), 6, "shop", f"sold {seq}", {}] for seq in range(first, first + 1_000)], first)
    everything = [f"SHOP | sold {number}" for number in range(1, 5_001)]
    for stored in (0, 3, 2_500):
        if stored:
            remains.store(stored).close()
        found = ["SHOP | sold 0", *everything] if stored else everything
        assert remains.logs("SHOP", "-n", "all") == (0, found, f"-- LEFT{REMARK}{WAITING}\n")
        assert remains.logs("SHOP", "-n", "4500")[1] == everything[-4_500:]
        assert remains.logs("SHOP", "-n", "all", "-t", "99")[1] == [each for each in everything if "99" in each]
        remains.file.unlink(missing_ok=True)


def test_reader_leaves_in_the_middle(remains: Remains) -> None:
    """`retinue logs | head`, and Ctrl-C."""
    remains.store(60_000).close()
    head, interrupted = (remains.bench.start("logs", "--state", str(remains.state), "-n", "all") for _ in range(2))
    for process in (head, interrupted):
        assert read_until(process.stdout, lambda line: line.endswith("sold 0"))
    assert head.stdout is not None
    head.stdout.close()
    assert head.wait(60) == errors.BROKEN_PIPE
    interrupted.send_signal(signal.SIGINT)
    out, err = interrupted.communicate(timeout=60)
    assert interrupted.returncode == errors.INTERRUPTED
    assert "sold 59999" not in out
    assert err.strip() == f"-- LEFT{REMARK} --"


@pytest.mark.parametrize(
    ("archive", "complaint"),
    [
        ({}, "LEFT is not running, and its last run had no machine that keeps records\n  name one in its topology: "),
        (
            {"machine": "LOGS", "program": "site.logs", "disk": ("LOGS", "a")},
            "LEFT is not running, and its records can be read by LOGS alone, which runs site.logs\n",
        ),
        (
            {"machine": "SYSLOG", "program": "retinue.services.syslog", "disk": ("SYSLOG", "b")},
            "LEFT is not running, and SYSLOG has stored no records of it\n",
        ),
    ],
)
def test_records_that_nobody_can_read(remains: Remains, archive: dict[str, Any], complaint: str) -> None:
    remains.archive(**archive)
    code, out, err = remains.logs()
    assert (code, out) == (errors.NO_SYSTEM, [])
    assert err.startswith(f"retinue: {complaint}")
    assert "start one: retinue up FILE" in err


def test_another_system_than_the_one_that_is_meant_is_not_shown(remains: Remains) -> None:
    remains.store().close()
    code, out, err = remains.logs("--system", "OTHER")
    assert (code, out) == (errors.NO_SYSTEM, [])
    assert err.startswith("retinue: no system OTHER is running\n")
    (remains.state / "archive.json").write_text("{}")
    assert read_archive(remains.state) is None
    assert remains.logs()[0] == errors.NO_SYSTEM


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("DROP TABLE entries;", "it has no table entries"),
        ("ALTER TABLE entries RENAME TO e; CREATE VIEW entries AS SELECT * FROM e;", "it has no table entries"),
        ("DROP TABLE entries; CREATE VIRTUAL TABLE entries USING fts5(id, time);", "it has no table entries"),
        ("DROP TABLE entries; CREATE TABLE entries (id); INSERT INTO entries VALUES (1);", "no such column"),
        (
            "DROP TABLE entries; PRAGMA user_version = 1; CREATE TABLE records (run, seq);",
            "its records were stored by an earlier release: it has the form 1 of an earlier release\n"
            "  the next start takes them over",
        ),
    ],
)
def test_tables_that_are_not_those_of_syslog_are_told(remains: Remains, script: str, why: str) -> None:
    remains.spoil(script)
    code, out, err = remains.logs()
    assert (code, out) == (errors.NO_SYSTEM if "earlier" in why else errors.FAILED, [])
    assert why in err
    assert "Traceback" not in err


def test_file_that_is_no_database_is_told_with_the_cure(remains: Remains) -> None:
    remains.file.write_bytes(b"SQLite format 3\0" + os.urandom(9_000))
    code, out, err = remains.logs()
    assert (code, out) == (errors.FAILED, [])
    problem, *cure = err.splitlines()
    assert problem.startswith("retinue: what SYSLOG has stored is no database of records: file is not a database")
    assert cure[0] == f"  move it away, and SYSLOG begins a new one: {remains.file}"


def test_page_that_is_spoilt_is_told(remains: Remains) -> None:
    remains.store(20_000).close()
    with remains.file.open("r+b") as file:
        file.seek(40 * 4096)
        file.write(b"\xff" * 4096)
    code, _, err = remains.logs("-n", "all")
    assert code == errors.FAILED
    assert "is no database of records: database disk image is malformed" in err


def test_file_that_its_owner_may_not_read_is_not_called_spoilt(remains: Remains) -> None:
    """Root has no more rights than the machine had."""
    remains.store().close()
    remains.file.chmod(0)
    code, out, err = remains.logs()
    assert (code, out) == (errors.FAILED, [])
    assert err.startswith("retinue: the records of LEFT cannot be read: unable to open database file, for the user ")
    assert f"for the user {remains.owner}\n" in err
    assert str(remains.file) in err
    assert "move it away" not in err


@pytest.mark.parametrize("wal", [False, True])
def test_database_that_somebody_else_has_locked_is_not_called_spoilt(remains: Remains, wal: bool) -> None:
    """Nor read alone, as one that nobody could write to."""
    with contextlib.closing(remains.store(wal=wal)) as database:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        database.execute("DELETE FROM entries")
        code, out, err = remains.logs()
        assert (code, out) == (errors.FAILED, [])
        assert err.startswith("retinue: somebody is writing to the records of LEFT: database is locked\n  try again")
        assert "move it away" not in err
        database.execute("ROLLBACK")
    assert remains.logs()[1] == THREE


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "busy"),
        (sqlite3.SQLITE_LOCKED, "busy"),
        (sqlite3.SQLITE_IOERR_READ, "disk"),
        (sqlite3.SQLITE_FULL, "disk"),
        (sqlite3.SQLITE_INTERRUPT, "too-long"),
        (sqlite3.SQLITE_CANTOPEN_ISDIR, "denied"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "denied"),
        (sqlite3.SQLITE_CORRUPT_INDEX, "corrupt"),
        (sqlite3.SQLITE_NOTADB, "corrupt"),
        (sqlite3.SQLITE_MISUSE, "failed"),
        (None, "corrupt"),
    ],
)
def test_what_an_error_of_sqlite_says_of(number: int | None, code: str) -> None:
    """Few say that the file is spoilt. One without a number comes from Python, of what was in a row."""
    error = sqlite3.OperationalError("something")
    if number is not None:
        error.sqlite_errorcode = number
    assert why(error)[0] == code


def test_reader_outlives_the_thread_that_has_started_it() -> None:
    """That is one of trio's, which end when they have had nothing to do for some seconds."""

    def start() -> None:
        started.append(subprocess.Popen(reader_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        answers_of.append(ask(started[0]))  # from then on it would die with whom it wants to

    def ask(process: "subprocess.Popen[bytes]") -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        request = msgpack.packb(["machines", {}])
        process.stdin.write(len(request).to_bytes(4, "big") + request)
        process.stdin.flush()
        return msgpack.unpackb(process.stdout.read(int.from_bytes(process.stdout.read(4), "big")))

    started: list[subprocess.Popen[bytes]] = []
    answers_of: list[Any] = []
    thread = threading.Thread(target=start)
    thread.start()
    number = thread.native_id
    thread.join()
    with started[0] as process:
        try:
            wait_for(lambda: not pathlib.Path(f"/proc/self/task/{number}").exists())
            answers_of.append(ask(process))
        finally:
            process.kill()
    assert [each[:2] for each in answers_of] == [["failed", "unknown-verb"]] * 2


@pytest.fixture
def tests_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the processes that are started, whatever the working directory of pytest is."""
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[3]))


@pytest.mark.usefixtures("tests_can_be_imported")
def test_reader_that_dies_says_nothing_of_the_database(remains: Remains, monkeypatch: pytest.MonkeyPatch) -> None:
    remains.store().close()
    monkeypatch.setattr(archived, "_READER", "tests.cp.cli.readers:die")
    code, out, err = remains.logs()
    assert (code, out) == (errors.FAILED, [])
    assert err.startswith("retinue: the process that reads the records of LEFT has ended by signal 9\n  try again;")
    assert "move it away" not in err


@pytest.mark.usefixtures("tests_can_be_imported")
def test_traces_on_a_slow_disk_are_found_and_so_is_what_waits(
    remains: Remains, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one range, behind the last place of what is stored, and the time is over after it."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    remains.spoil(f"UPDATE entries SET trace = '{trace}', fields = '{{\"trace\": \"{trace}\"}}'")
    remains.spill([[1.0, 6, "shop", "sold 3", {"trace": trace}]], first=3)
    monkeypatch.setattr(archived, "_READER", "tests.cp.cli.readers:answer_late")
    for more in ([], ["-n", "100"]):
        code, out, err = remains.logs("--trace", "4bf92f", "SHOP", *more)
        assert (code, err) == (0, f"-- LEFT{REMARK}{WAITING}\n")
        assert out == [f"SHOP | sold {number}  trace=4bf92f35" for number in range(4)]


@of_all_owners
def test_reader_has_nothing_but_the_folder(remains: Remains) -> None:
    """It has dropped what it had, and calls nothing that a machine may not call."""
    remains.store(60_000).close()
    remains.give()
    process = remains.bench.start("logs", "--state", str(remains.state), "-n", "all")
    assert read_until(process.stdout, lambda line: line.endswith("sold 0"))
    children = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
    (reader,) = [pid for each in children for pid in each.read_text().split()]
    lines = pathlib.Path(f"/proc/{reader}/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert status["Name"] == "log-reader"
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert set(status["Uid"].split()) == {str(remains.owner)}


@pytest.mark.usefixtures("tests_can_be_imported")
def test_fence_leaves_the_folder_and_the_process_itself(tmp_path: pathlib.Path) -> None:
    """Where the kernel has Landlock and seccomp, as here."""
    (tmp_path / "outside").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    about = {"path": sys.path, "entry": "retinue.cp.host.fence:main", "parent": 0, "title": "fenced"}
    vector = command({**about, "reader": "tests.cp.cli.readers:tell_what_is_in_sight"}, site=True)
    done = subprocess.run(vector, cwd=tmp_path / "folder", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    denied, forbidden = "Permission denied", "Operation not permitted"
    assert done.stdout.split("\n") == ["done"] * 3 + [denied] * 3 + [forbidden] * 2 + [""]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0"])
def test_name_that_would_lead_elsewhere_is_none(tmp_path: pathlib.Path, name: str) -> None:
    for names in ([name, "a"], ["SYSLOG", name]):
        with pytest.raises(Failed, match="is the name of no machine and of no disk"):
            enter(str(tmp_path), names)


@pytest.mark.parametrize("name", ["records.sqlite3", "records.sqlite3-wal", "a", "SYSLOG", "disks"])
def test_link_that_a_machine_has_made_is_not_followed(remains: Remains, tmp_path: pathlib.Path, name: str) -> None:
    """Not to the records of another, either."""
    remains.store().close()
    folders = {each.name: each for each in (remains.disk, *remains.disk.parents)}
    place = folders.get(name, remains.disk / name)
    remains.give()
    if place.exists():
        place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    code, out, err = remains.logs()
    assert (code, out) == (errors.FAILED, [])
    if name in folders:
        way = remains.disk.relative_to(remains.state)
        what = f"{'/'.join(way.parts[: way.parts.index(name) + 1])} is no folder"
    else:
        what = f"{name} is a symbolic link"
    assert err.startswith(f"retinue: what SYSLOG has stored is not read: {what}\n")


def test_rows_that_are_no_records_are_left_out(remains: Remains) -> None:
    changes = [
        "message = x'ff'",
        "fields = '[1]'",
        "fields = '{'",
        "fields = '{\"a\": 1' || '00000000000000000000000000000000' || '}'",
        'fields = \'{"a": "\\ud800"}\'',
        "fields = x'00'",
        "fields = replace(hex(zeroblob(5000)), '00', '[')",
        "machine = 7",
        "severity = 'high'",
        "time = 'soon'",
    ]
    with contextlib.closing(remains.store(len(changes) + 2)) as database:
        for number, change in enumerate(changes, 1):
            database.execute(f"UPDATE entries SET {change} WHERE id = (1 << 44) + {number}")
    code, out, err = remains.logs()
    assert (code, out) == (0, [THREE[0], f"SHOP   | sold {len(changes) + 1}"])
    assert err.endswith(" --\n-- some of what is stored is no record, and is not shown --\n")


def test_text_that_is_no_text_is_shown_harmlessly(remains: Remains) -> None:
    remains.spoil("UPDATE entries SET message = CAST(x'1b5b324aff0a41' AS TEXT) WHERE id & 3 = 1")
    assert remains.logs()[1] == [THREE[0], "SHOP   | \\x1b[2J\\xff", "SHOP   | A", THREE[2]]
    assert json.loads(remains.logs("--json")[1][1])["message"] == "\x1b[2J\\xff\nA"


def test_runs_in_a_circle_end(remains: Remains) -> None:
    """The run that a record is of has the name of an earlier one: places are not those of runs."""
    with contextlib.closing(remains.store(5_000)) as database:
        database.executescript(
            """
            DROP TABLE runs;
            CREATE TABLE runs (number, name);
            INSERT INTO runs VALUES (1, 'r'), (2, 'r');
            UPDATE entries SET id = id + (1 << 44);
            """
        )
    for query in (["-n", "all"], ["-n", "4999"]):
        numbers = [json.loads(line)["message"] for line in remains.logs(*query, "--json")[1]]
        assert numbers == [f"sold {number}" for number in range(5_000)][-4_999 if "4999" in query else 0 :]


def test_more_names_than_a_query_may_name(remains: Remains) -> None:
    """Those that no machine could have are left out; those of the topology are always there."""
    with contextlib.closing(remains.store()) as database:
        database.execute("DELETE FROM machines")
        names = "WITH RECURSIVE n (v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n LIMIT 12000)"
        database.execute(f"INSERT INTO machines {names} SELECT v, 'SHOP@' || v FROM n")
        database.execute("INSERT INTO machines VALUES (20000, hex(zeroblob(40000)))")
    assert remains.logs("SHOP", "-n", "1")[0] == 0
    code, out, err = remains.logs("SYSLOG@", "-n", "1")
    assert (code, out) == (errors.USAGE, [])
    assert "0" * 65 not in err


@pytest.mark.parametrize("sparse", ["message", "fields"])
def test_value_that_is_larger_than_any_message_does_not_fill_the_memory(remains: Remains, sparse: str) -> None:
    remains.spoil(f"UPDATE entries SET {sparse} = CAST(zeroblob(70000000) AS TEXT) WHERE id & 3 = 1")
    code, out, err = remains.logs()
    assert (code, out) == (errors.FAILED, [])
    assert "is no database of records: " in err
