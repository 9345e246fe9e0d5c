"""The journal: what a control program leaves that is killed at any instruction."""

import fcntl
import gc
import json
import mmap
import os
import pathlib
import subprocess
import sys
import termios
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.leaks import assert_none_left, descriptors

from retinue.cp import room as module
from retinue.cp.journal import ATTEMPTS, LEAST_ROOM, Journal, JournalUnusable
from retinue.cp.layout import MACHINES, SOURCES, STATE_ROOM, STATES_AT
from retinue.cp.records import Record
from retinue.cp.room import KEEP
from retinue.cp.syslog import Syslog
from retinue.cp.tape import BLOCK
from retinue.pipes import socket_pair, wire

EVERYTHING = 1_000_000


def copy(descriptor: int) -> int:
    """What would be found if the process were killed now."""
    made = os.memfd_create("copy")
    size = os.fstat(descriptor).st_size
    os.ftruncate(made, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        os.pwrite(made, os.pread(descriptor, end - start, start), start)
    return made


def body(message: str) -> list[Any]:
    return [1.5, 6, "x", message, {}]


def messages(journal: Journal, machine: str | None = None) -> list[str]:
    return [each["message"] for _, each in journal.oldest(machine, after=0)]


def seqs(journal: Journal) -> list[int]:
    return [each["seq"] for _, each in journal.oldest(None, after=0)]


def taken(journal: Journal, most: int) -> list[Record]:
    return [each for (_, each), _ in zip(journal.oldest(None, after=journal.stored), range(most), strict=False)]


def store(journal: Journal, batch: list[Record]) -> None:
    journal.store(batch[-1]["seq"], len(batch))


def lost(journal: Journal) -> int:
    return sum(count for _, _, count in journal.losses)


@pytest.fixture
def journal() -> Iterator[Journal]:
    made = Journal.create(LEAST_ROOM)
    yield made
    made.close()


def successor(journal: Journal) -> Journal:
    return Journal.adopt(copy(journal.fileno()))


# -- what is found -----------------------------------------------------------------------------------------------------


def test_successor_finds_what_was_committed(journal: Journal) -> None:
    """The run, the numbers, the records of every machine and generation, and what waits."""
    assert journal.append("A", 1, [body("one"), body("two")]) == 1
    assert journal.append("B", 7, [[2.5, 3, "ü", "three", {"a": [1, None, {"b": b"\xff"}]}]]) == 3
    journal.keep()
    store(journal, taken(journal, 1))
    found = successor(journal)
    assert (found.run, found.last, found.stored, found.unkept, found.keeping) == (journal.run, 3, 1, 2, True)
    assert [*found.oldest(None, after=0)] == [*journal.oldest(None, after=0)]
    assert [*found.newest("B")] == [
        {
            "seq": 3,
            "time": 2.5,
            "machine": "B",
            "generation": 7,
            "severity": 3,
            "logger": "ü",
            "message": "three",
            "fields": {"a": [1, None, {"b": b"\xff"}]},
        }
    ]
    assert found.append("A", 2, [body("four")]) == 4
    again = successor(found)
    assert messages(again) == ["one", "two", "three", "four"]


def test_successor_finds_how_far_a_descriptor_was_read(journal: Journal) -> None:
    """Its number and its unfinished line, until it was read to its end."""
    source = journal.source("A", 3)
    source.number, source.line = 2**63 - 1, "half a ü"
    journal.append("A", 3, [], source=source)
    source.line += "."
    journal.append("A", 3, [], source=source)
    found = successor(journal).source("A", 3)
    assert (found.number, found.line, found.reading) == (2**63 - 1, "half a ü.", False)
    source.line = ""
    journal.append("A", 3, [body("half a ü.")], source=source, ends=True)
    assert successor(journal).sources == []


def test_what_is_no_journal_is_refused() -> None:
    """And its descriptor closed."""
    before = descriptors()
    for content in (b"", b"x" * 100, bytes(mmap.PAGESIZE), b"x" * 100_000):
        descriptor = os.memfd_create("nothing")
        os.write(descriptor, content)
        with pytest.raises(JournalUnusable):
            Journal.adopt(descriptor)
    other = Journal.create(LEAST_ROOM)
    found = copy(other.fileno())
    os.ftruncate(found, os.fstat(found).st_size - BLOCK)
    with pytest.raises(JournalUnusable, match="layout"):
        Journal.adopt(found)
    other.close()
    gc.collect()
    assert_none_left(before)


def test_torn_write_is_not_read(journal: Journal) -> None:
    """Whatever stands where the next commit is being written, the last one is in force."""
    journal.append("A", 1, [body("one")])
    journal.append("A", 1, [body("two")])
    found = copy(journal.fileno())
    block = journal._tapes["A"].blocks[-1]
    os.pwrite(found, os.urandom(5000), journal._blocks_at + block.index * BLOCK + block.used)
    os.pwrite(found, os.urandom(1000), STATES_AT + (~journal._force & 1) * STATE_ROOM)
    assert messages(Journal.adopt(found)) == ["one", "two"]


def test_commit_that_was_not_copied_to_the_tables_is_in_force(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word alone decides."""
    journal.append("A", 1, [body("one")])
    with monkeypatch.context() as patch:
        patch.setattr(journal, "_apply", lambda *_: None)
        source = journal.source("A", 1)
        found = successor(journal)
    assert found.sources[0].machine == source.machine
    assert messages(found) == ["one"]


# -- room --------------------------------------------------------------------------------------------------------------


def test_machine_keeps_its_newest_records(journal: Journal) -> None:
    """When nobody stores them: a bounded number of blocks each."""
    for number in range(2000):
        journal.append("A", 1, [body(f"{number} " + "x" * 5000)])
    for found in (journal, successor(journal)):
        assert len(found._tapes["A"].blocks) == KEEP
        kept = [int(text.split()[0]) for text in messages(found)]
        assert kept == [*range(2000 - len(kept), 2000)]
        assert found.losses == []


def test_flood_drives_out_its_own_records_and_counts_them(journal: Journal) -> None:
    """What others have said stays; the count is exact also for a successor, and told once."""
    journal.keep()
    journal.append("QUIET", 1, [body("quiet")])
    for number in range(3000):
        journal.append("LOUD", 1, [body(f"{number} " + "x" * 5000)])
    found = successor(journal)
    assert messages(found, "QUIET") == ["quiet"]
    here = len(messages(found, "LOUD"))
    assert found.losses == journal.losses == [("LOUD", "buffer", 3000 - here)]
    assert found.unkept == here + 1
    found.append("LOUD", 0, [body("some are lost")], told=("buffer", 3000 - here))
    assert found.losses == successor(found).losses == []


def test_what_is_being_stored_is_driven_out_last(journal: Journal) -> None:
    """A batch is on its way while a flood goes on."""
    journal.keep()
    for number in range(100):
        journal.append("LOUD", 1, [body(f"{number} " + "x" * 5000)])
    batch = taken(journal, 50)
    journal.offered = batch[-1]["seq"]
    for number in range(3000):
        journal.append("LOUD", 1, [body(f"{number} " + "x" * 5000)])
    store(journal, batch)
    assert lost(journal) + journal.unkept + 50 == 3100


def test_room_that_was_needed_once_is_given_back() -> None:
    """After a long absence of the syslog machine."""
    journal = Journal.create()
    before = os.fstat(journal.fileno()).st_blocks
    journal.keep()
    for _ in range(3000):
        journal.append("A", 1, [body("x" * 10_000)])
    assert os.fstat(journal.fileno()).st_blocks - before > 3000 * 10_000 // 512
    while journal.unkept:
        store(journal, taken(journal, 500))
    assert os.fstat(journal.fileno()).st_blocks - before < (KEEP + module.WARM + 4) * BLOCK // 512
    journal.close()


def test_record_larger_than_a_block_is_cut(journal: Journal) -> None:
    """It says so; those beside it are whole."""
    journal.append("A", 1, [body("before"), body("x" * BLOCK * 2), body("after")])
    found = [each for _, each in successor(journal).oldest(None, after=0)]
    assert [len(each["message"]) for each in found] == [6, BLOCK // 8, 5]
    assert "characters" in found[1]["fields"]["cut"]
    assert [each["seq"] for each in found] == [1, 2, 3]


def test_commit_of_many_blocks_is_one(journal: Journal) -> None:
    """All of it or nothing."""
    journal.append("A", 1, [body("x" * 60_000) for _ in range(60)])
    assert seqs(successor(journal)) == [*range(1, 61)]


def test_own_fields_that_cannot_be_packed_become_texts(journal: Journal) -> None:
    """Records of the control program hold what it likes."""
    journal.append("CP", 0, [[1.0, 6, "x", "m", {"a": 2**70, "b": "caf\udce9", "c": {1}}]])
    ((_, found),) = successor(journal).oldest(None, after=0)
    assert found["fields"] == {"a": str(2**70), "b": "'caf\\udce9'", "c": "{1}"}


def test_names_and_descriptors_are_reused(journal: Journal) -> None:
    """A system may have had any number of machines."""
    for number in range(MACHINES + 100):
        source = journal.source(f"M{number}", 1)
        journal.append(f"M{number}", 1, [], source=source, ends=True)
    for generation in range(SOURCES):
        journal.source("A", generation)
    with pytest.raises(OSError, match="log descriptors"):
        journal.source("A", SOURCES)
    assert len(successor(journal).sources) == SOURCES


def test_private_journal_has_no_descriptor() -> None:
    """It ends with its process."""
    before = descriptors()
    journal = Journal.private(LEAST_ROOM)
    journal.append("A", 1, [body("one")])
    assert_none_left(before)
    with pytest.raises(ValueError, match="ends with its process"):
        journal.fileno()
    assert messages(journal) == ["one"]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.sampled_from("ABC"), st.integers(1, 40), st.integers(0, 20_000)),
            st.tuples(st.just("store"), st.integers(1, 100)),
            st.tuples(st.just("adopt")),
        ),
        max_size=40,
    )
)
def test_nothing_is_lost_that_is_not_counted(steps: list[tuple[Any, ...]]) -> None:
    """Whatever is written and stored, and however often it is adopted."""
    journal = Journal.create(LEAST_ROOM)
    journal.keep()
    stored = said = 0
    for step in steps:
        if step[0] == "append":
            _, machine, count, size = step
            journal.append(machine, 1, [body(f"{said + n} " + "x" * size) for n in range(count)])
            said += count
        elif step[0] == "store":
            if batch := taken(journal, step[1]):
                store(journal, batch)
                stored += len(batch)
        else:
            adopted = successor(journal)
            journal.close()
            journal = adopted
        assert journal.last == said
        assert journal.unkept + stored + lost(journal) == said
        assert len(taken(journal, EVERYTHING)) == journal.unkept
        assert seqs(journal) == sorted(set(seqs(journal)))
    journal.close()


# -- killed ------------------------------------------------------------------------------------------------------------


def packets() -> list[bytes]:
    """Records and console text, all of one length, so that the kernel can tell how many are left."""
    record = [
        wire.encode([wire.Kind.SEND, number, [1.5, 6, "x", f"record {number:02}", {}]]) for number in (1, 2, 5, 6)
    ]
    size = len(record[0])
    text = [b"a" * (size - 2) + b"\nb", b"c" * size, b"d\n\n" + b"e" * (size - 3)]
    return [record[0], text[0], text[1], record[1], record[2], text[2]]


async def expected(count: int) -> list[str]:
    """What becomes of the first so many packets when nothing happens."""
    log = Syslog()
    ours, theirs = socket_pair()
    with theirs:
        for packet in packets()[:count]:
            theirs.send(packet)
    with trio.fail_after(5):
        await log.read("M", 1, ours)
    return [each["message"] for each in log.recent(None, EVERYTHING)]


async def test_killed_at_any_line_nothing_is_lost_or_repeated() -> None:
    """At each line of the code that reads the log: what the kernel has given away is in the journal, once."""
    wanted = [await expected(count) for count in range(len(packets()) + 1)]
    size = len(packets()[0])
    log = Syslog(journal=(journal := Journal.create(LEAST_ROOM)))
    ours, theirs = socket_pair()
    for packet in packets():
        assert len(packet) == size
        theirs.send(packet)
    source = log._source("M", 1)
    seen: list[int] = []

    def look() -> None:
        left = int.from_bytes(fcntl.ioctl(ours, termios.FIONREAD, bytes(4)), sys.byteorder) // size
        adopted = successor(journal)
        found = Syslog(journal=adopted)
        found.end("M", 1)
        seen.append(len(packets()) - left)
        assert [each["message"] for each in found.recent(None, EVERYTHING)] == wanted[seen[-1]]
        assert seqs(adopted) == [*range(1, adopted.last + 1)]
        adopted.close()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(("journal.py", "syslog.py", "intake.py", "tape.py")):
            return None
        if event == "line":
            look()
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        for _ in range(3):
            log._turn(source, ours, None)
    finally:
        sys.settrace(previous)
    look()
    assert seen[-1] == len(packets())
    assert len(set(seen)) > 2
    assert len(seen) > 200
    ours.close()
    theirs.close()
    journal.close()


async def test_packets_that_kill_are_kept_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours that a packet finds ends several control programs, but not all that follow."""
    kept = Journal.create(LEAST_ROOM)
    log = Syslog(journal=kept)
    ours, theirs = socket_pair()
    theirs.send(packets()[0])
    theirs.send(packets()[1])
    theirs.close()

    def die(_: Syslog, received: list[tuple[bytes, bool]]) -> None:
        if any(packet[:1] == packets()[0][:1] for packet, _ in received):
            raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(Syslog, "_decode", die)
        with pytest.raises(RuntimeError):
            log._turn(log._source("M", 1), ours, None)
        for _ in range(ATTEMPTS):
            with pytest.raises(RuntimeError):
                Syslog(journal=Journal.adopt(os.dup(kept.fileno())))
        last = Syslog(journal=Journal.adopt(os.dup(kept.fileno())))
        with trio.fail_after(5):
            await last.read("M", 1, ours)
    told, text, *others = last.recent(None, 10)
    assert (told["severity"], told["machine"]) == (2, "M")
    assert "control programs died" in told["message"]
    assert "record 01" in text["message"]
    assert len(others) == 2


KILLS = pathlib.Path(__file__).with_name("killed_readers.py")


def killed(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(KILLS), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any], count: int) -> None:
    assert found["status"] == [0, 0, 0]
    assert found["run"]
    assert found["counts"] == {"NUMBERED": count, "CONSOLE": count}
    assert found["complete"] == {"NUMBERED": True, "CONSOLE": True}
    assert found["contiguous"]
    assert found["last"] == 2 * count
    assert found["open"] == 0


# Kills at random moments in between packets, beside those at every line above.
SOME = 20


def test_kills_in_a_flood() -> None:
    """Every record and every line, once and in order, after kill -9 of real processes."""
    found = killed(SOME, 24_000, 1)
    check(found, 24_000)
    assert found["killed"] > SOME // 2


def test_kills_in_a_flood_that_is_stored(tmp_path: pathlib.Path) -> None:
    """A batch whose answer died with the control program is offered again, and stored once."""
    found = killed(SOME, 12_000, 2, tmp_path / "records.sqlite3")
    check(found, 12_000)
    assert found["unkept"] == 0
    assert found["killed"] > SOME // 2


def test_kills_in_a_flood_that_waits_on_the_disk(tmp_path: pathlib.Path) -> None:
    """Most of it goes through files, which are found twice or half written, and is stored once and in order."""
    found = killed(SOME, 20_000, 3, tmp_path / "records.sqlite3", tmp_path / "spill")
    check(found, 20_000)
    assert (found["unkept"], found["left"]) == (0, 0)
    assert found["killed"] > 4
    assert found["spilt"] > 3
