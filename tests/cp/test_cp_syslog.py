"""*LOG at the control program: machines that write anything, a keeper that dies at any time."""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
import trio
import trio.testing
from tests.cp.keepers import handing_over, served
from tests.leaks import assert_none_left, descriptors

from retinue.cp import keeper as module
from retinue.cp.checking import checked_records
from retinue.cp.journal import LEAST_ROOM, Journal
from retinue.cp.records import Record
from retinue.cp.room import KEEP
from retinue.cp.syslog import MAX_LINE, MAX_LINES, Syslog
from retinue.cp.tape import BLOCK, record_of
from retinue.pipes import Message, Path, Rejected, SocketTransport, socket_pair, wire
from retinue.pipes.beat import Beat
from retinue.svm.log import LogWriter

# More records than any test makes.
EVERYTHING = 1_000_000


async def hear(log: Syslog, *packets: bytes, machine: str = "M", generation: int = 1) -> list[Record]:
    """What becomes of packets that a machine writes before it dies."""
    first = log.last
    ours, theirs = socket_pair()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.read, machine, generation, ours)
            with theirs:
                for packet in packets:
                    while True:
                        try:
                            theirs.send(packet)
                            break
                        except BlockingIOError:
                            await trio.lowlevel.wait_writable(theirs)
    return log.recent(None, EVERYTHING, after=first)


def frame(number: int, body: Any) -> bytes:
    return wire.encode([wire.Kind.SEND, number, body])


def record(number: int, message: str = "m", fields: Any = None) -> bytes:
    return frame(number, [1.5, 6, "x", message, fields or {}])


def messages(records: list[Record]) -> list[str]:
    return [each["message"] for each in records]


# -- records -----------------------------------------------------------------------------------------------------------


async def test_record_is_stamped_and_otherwise_as_it_was_written() -> None:
    """Machine, generation and number are the control program's word."""
    log = Syslog()
    log.write(5, "before")
    fields = {"a": 1, "b": [True, None, {"c": b"\x00"}], "d": "e"}
    (heard,) = await hear(log, frame(1, [1234.5, 3, "shop.till", "out of\nshoes", fields]), generation=7)
    assert heard == {
        "seq": 2,
        "time": 1234.5,
        "machine": "M",
        "generation": 7,
        "severity": 3,
        "logger": "shop.till",
        "message": "out of\nshoes",
        "fields": fields,
    }


async def test_real_writer_is_understood() -> None:
    """Both ends of the descriptor speak of the same thing, several records in one packet too."""
    ours, theirs = socket_pair()
    with ours, theirs:
        LogWriter(theirs).write(4, "x", "from the writer", {"odd": {1, 2}})
        packet = ours.recv(wire.MAX_PACKET)
    heard = await hear(Syslog(), packet + record(2) + record(3))
    assert messages(heard) == ["from the writer", "m", "m"]
    assert heard[0]["fields"] == {"odd": "{1, 2}"}


async def test_missing_numbers_are_counted() -> None:
    """One record says how many, where they are missing; each machine by itself."""
    heard = await hear(Syslog(), record(1), record(2), record(6), record(7))
    assert messages(heard) == ["m", "m", "-- 3 lines lost: the log descriptor of M was full --", "m", "m"]
    assert heard[2]["fields"] == {"lost": 3, "cause": "descriptor"}
    assert heard[2]["machine"] == "M"


async def test_first_record_may_be_missing_as_well() -> None:
    """Numbers begin with 1."""
    heard = await hear(Syslog(), record(4))
    assert heard[0]["fields"] == {"lost": 3, "cause": "descriptor"}


async def test_forged_numbers_forge_only_the_machines_own_count() -> None:
    """Nothing breaks, however large, repeated or backwards they are."""
    log = Syslog()
    heard = await hear(log, record(2**63 - 1), record(1), record(1), record(5))
    assert messages(heard).count("m") == 4
    assert all(each["fields"].get("lost", 0) <= 2**53 for each in heard)
    assert messages(await hear(log, record(1), machine="OTHER")) == ["m"]


async def test_machine_cannot_speak_as_the_control_program() -> None:
    """Who follows the log for deaths believes the logger's name."""
    (heard,) = await hear(Syslog(), frame(1, [1.0, 3, "retinue.cp", "OTHER died: killed", {"cause": "killed"}]))
    assert (heard["machine"], heard["logger"]) == ("M", "not retinue.cp")


HOSTILE_BODIES: list[Any] = [
    None,
    [],
    [1.0, 6, "x", "m"],
    [1.0, 6, "x", "m", {}, 1],
    [1, 6, "x", "m", {}],
    [float("nan"), 6, "x", "m", {}],
    [float("inf"), 6, "x", "m", {}],
    [-1.0, 6, "x", "m", {}],
    [1e300, 6, "x", "m", {}],
    [1.0, 8, "x", "m", {}],
    [1.0, -1, "x", "m", {}],
    [1.0, True, "x", "m", {}],
    [1.0, 6, b"x", "m", {}],
    [1.0, 6, "x", b"m", {}],
    [1.0, 6, "x", None, {}],
    [1.0, 6, "x", "m", []],
    [1.0, 6, "x", "m", None],
    {"seq": 1},
]


@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=lambda body: ascii(body)[:40])
async def test_frame_that_is_no_record_is_console_text(body: Any) -> None:
    """Nothing is thrown away, and what follows is read."""
    heard = await hear(Syslog(), frame(1, body) + b"\n", frame(1, body), record(1))
    assert {each["logger"] for each in heard} == {"console", "x"}
    assert "m" in messages(heard)


@pytest.mark.parametrize(
    "packet",
    [
        b"\x93",
        b"\x93\x01",
        b"\x93\x01\x01\xc6\xff\xff\xff\xff",
        b"\x93\x01\x01" + b"\x91" * 60_000,
        b"\x93\x02\x01\xc0",
        b"\x93\x07\xa0\xa0",
        b"\x93" + b"\xff" * 1000,
        wire.encode([wire.Kind.SEND, 1, None, 1]),
        wire.encode([wire.Kind.HELLO, 1, 1]),
    ],
    ids=lambda packet: ascii(packet)[:40],
)
async def test_packet_that_is_no_frame_is_console_text(packet: bytes) -> None:
    """Also in the middle of records; the reader goes on as if nothing had been."""
    heard = await hear(Syslog(), record(1, "before"), packet, b"\n", record(2, "after"))
    assert messages(heard)[0] == "before"
    assert messages(heard)[-1] == "after"
    assert any(each["logger"] == "console" for each in heard)


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"x": value}
    return value


@pytest.mark.parametrize(
    "fields",
    [
        deep(250),
        {"x": [[]] * 20_000},
        {str(n): n for n in range(300)},
        {"x": {b"key": 1}},
        {b"key": 1},
    ],
    ids=["deep", "many", "wide", "inner key", "key"],
)
async def test_immodest_fields_are_left_out(fields: Any) -> None:
    """A record that would cost every reader more than it tells is kept without them, and says so."""
    log = Syslog()
    (heard,) = await hear(log, record(1, "kept", fields))
    assert heard["message"] == "kept"
    assert heard["fields"].keys() == {"cut"}
    assert wire.encode([wire.Kind.SEND, 1, ["record", heard]])  # it can be handed on


# -- console text ------------------------------------------------------------------------------------------------------


async def test_lines_of_the_console_are_records() -> None:
    """However they are cut up into packets; the last one need not end."""
    heard = await hear(Syslog(), b"one\ntw", b"o\n\nth", b"ree")
    assert messages(heard) == ["one", "two", "", "three"]
    assert {(each["logger"], each["severity"]) for each in heard} == {("console", 5)}
    assert all(abs(each["time"] - time.time()) < 60 for each in heard)


async def test_bytes_that_are_no_text_are_escaped() -> None:
    """Nothing of them is lost."""
    assert messages(await hear(Syslog(), b"caf\xe9\n")) == ["caf\\xe9"]


async def test_endless_line_becomes_several_records() -> None:
    """A machine cannot make the control program hold more than one line of it."""
    heard = await hear(Syslog(), *[b"x" * 60_000] * 5)
    assert sum(map(len, messages(heard))) == 300_000
    assert max(map(len, messages(heard))) == MAX_LINE


async def test_packet_of_very_many_lines_becomes_few_records() -> None:
    """Sixty thousand records of one packet would hold up everybody; the text is all there."""
    text = b"".join(b"%d\n" % number for number in range(10_000))
    heard = await hear(Syslog(), text)
    assert len(heard) < MAX_LINES + len(text) // MAX_LINE + 2
    assert (
        "\n".join(messages(heard[:MAX_LINES])) + "\n" + "".join(messages(heard[MAX_LINES:])) == text.decode().rstrip()
    )


async def test_console_text_longer_than_a_packet_is_cut_and_says_so() -> None:
    """A native program may write any amount at once."""
    log = Syslog()
    ours, theirs = socket_pair()
    with theirs, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            theirs.send(b"y" * (wire.MAX_PACKET + 1000) + b"\n")
            theirs.close()
            nursery.start_soon(log.read, "M", 1, ours)
    assert any("was cut" in text for text in messages(log.recent(None, 100)))


async def test_empty_packets_are_not_the_end() -> None:
    """What was written after them is read, also when the machine has died meanwhile."""
    log = Syslog()
    ours, theirs = socket_pair()
    for _ in range(5):
        for _ in range(20):
            theirs.send(b"")
        theirs.send(b"still here\n")
    theirs.close()
    with trio.fail_after(5):
        await log.read("M", 1, ours)
    assert messages(log.recent(None, 100)) == ["still here"] * 5


async def test_descriptors_sent_along_are_dropped() -> None:
    """The log descriptor carries text only."""
    before = descriptors()
    ours, theirs = socket_pair()
    socket.send_fds(theirs, [b"text\n"], [0, 0, 0])
    theirs.close()
    log = Syslog()
    with trio.fail_after(5):
        await log.read("M", 1, ours)
    assert messages(log.recent(None, 100)) == ["text"]
    assert_none_left(before)


async def test_flooding_machine_leaves_turns_to_others() -> None:
    """Between two looks at it everybody gets one."""
    log = Syslog()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            ours, theirs = socket_pair()
            nursery.start_soon(log.read, "LOUD", 1, ours)
            with theirs:
                with contextlib.suppress(BlockingIOError):
                    for _ in range(1000):
                        theirs.send(record(1) * 1000)
                turns: list[int] = []
                await trio.lowlevel.checkpoint()
                for _ in range(20):
                    turns.append(log.last)
                    await trio.lowlevel.checkpoint()
            assert max(later - earlier for earlier, later in itertools.pairwise(turns)) <= 3 * 2 * 1000


# -- what is kept here -------------------------------------------------------------------------------------------------


async def test_recent_records() -> None:
    """Of one machine or of all, the newest so many, after a number; oldest first."""
    log = Syslog()
    for number in range(6):
        log.write(5, str(number), machine="AB"[number % 2])
    assert messages(log.recent(None, 3)) == ["3", "4", "5"]
    assert messages(log.recent("A", 2)) == ["2", "4"]
    assert messages(log.recent("B", 100, after=2)) == ["3", "5"]
    assert log.recent("C", 5) == []
    assert log.recent(None, 0) == []


async def test_memory_for_records_is_bounded() -> None:
    """By their size; the newest are there."""
    log = Syslog()
    for number in range(1000):
        log.write(5, f"{number} " + "x" * 10_000)
    found = messages(log.recent(None, EVERYTHING))
    assert BLOCK * (KEEP - 1) - 10_000 * KEEP <= sum(map(len, found)) <= BLOCK * KEEP
    assert [int(text.split()[0]) for text in found] == [*range(1000 - len(found), 1000)]


async def test_machine_that_floods_does_not_drive_out_the_others() -> None:
    """Each has room of its own; together they come in the order in which they were taken."""
    log = Syslog(journal=Journal.private(LEAST_ROOM))
    log.write(5, "quiet", machine="QUIET")
    for number in range(2000):
        log.write(5, f"{number} " + "x" * 10_000, machine="LOUD")
    assert messages(log.recent("QUIET", 10)) == ["quiet"]
    everything = log.recent(None, EVERYTHING)
    assert everything[0]["message"] == "quiet"
    assert [record["seq"] for record in everything] == sorted(record["seq"] for record in everything)


async def test_own_record_with_raw_bytes_of_a_file_name() -> None:
    """The control program's own texts can always be handed on."""
    log = Syslog()
    assert wire.encode([wire.Kind.SEND, 1, log.write(3, "no such file: caf\udce9")])


def test_records_of_the_keeper_are_checked() -> None:
    """The machine that keeps them is a program like any other."""
    log = Syslog()
    good = log.write(5, "m", fields={"a": 1})
    assert checked_records({"records": [good, good]}) == [good, good]
    forgeries: list[Any] = [
        None,
        [],
        {},
        {"records": None},
        {"records": [None]},
        {"records": [good, {}]},
        {"records": [{**good, "more": 1}]},
        {"records": [{**good, "message": None}]},
        {"records": [{**good, "time": 1}]},
        {"records": [{**good, "fields": {"x": deep(500)}}]},
    ]
    for bad in forgeries:
        with pytest.raises(Rejected, match="bad-answer"):
            checked_records(bad)


# -- keeping -----------------------------------------------------------------------------------------------------------


class Keeper:
    """A SYSLOG that can be told to refuse, to hang or to die."""

    def __init__(self) -> None:
        self.stored: list[Record] = []
        self.batches: list[int] = []
        self.paths = 0
        self.before: Callable[[], Any] | None = None
        self.runs: set[str] = set()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Path]:
        self.paths += 1
        async with served(lambda other: other.serve(self._store)) as (path, self.other):
            yield path

    async def _store(self, message: Message) -> None:
        if self.before is not None:
            await self.before()
        verb, body = message.body
        assert verb == "store"
        self.runs.add(body["run"])
        records = self.records(body)
        self.batches.append(len(records))
        self.stored += records

    def records(self, body: dict[str, Any]) -> list[Record]:
        """Those of a batch."""
        return [
            record_of(seq, machine, generation, each)
            for machine, generation, first, bodies in body["chunks"]
            for seq, each in enumerate(msgpack.unpackb(bodies), first)
        ]

    def seqs(self) -> list[int]:
        return [each["seq"] for each in self.stored]


@asynccontextmanager
async def keeping(log: Syslog, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(module, "RETRY", 0.001)
    monkeypatch.setattr(module, "AGAIN", 0.001)
    async with handing_over(log, keeper.connect, limit=10):
        yield


async def test_everything_is_kept_from_the_first_record_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what was written before anybody kept it; in batches, once, in order."""
    log, keeper = Syslog(), Keeper()
    early = 2 * module.BATCH + 100
    for _ in range(early):
        log.write(5, "early")
    async with keeping(log, keeper, monkeypatch):
        await log.keeper.settle()
        log.write(5, "late")
        await log.keeper.settle()
        assert log.keeper.unkept == 0
    assert keeper.seqs() == [*range(1, early + 2)]
    assert max(keeper.batches) <= module.BATCH
    assert keeper.runs == {log.run}


async def test_batches_are_bounded_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper is a small machine."""
    log, keeper = Syslog(), Keeper()
    for _ in range(60):
        log.write(5, "x" * 30_000)
    async with keeping(log, keeper, monkeypatch):
        await log.keeper.settle()
    assert keeper.seqs() == list(range(1, 61))
    assert max(keeper.batches) * 30_000 <= module.BATCH_BYTES


async def test_settle_without_a_keeper_is_done() -> None:
    """Nobody to wait for."""
    log = Syslog()
    log.write(5, "x")
    with trio.fail_after(1):
        await log.keeper.settle()
    assert log.keeper.unkept == 0


async def test_batch_that_is_refused_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is waited for, with everything that comes meanwhile."""
    log, keeper = Syslog(), Keeper()
    refusals = 3

    async def refuse() -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise Rejected("not-stored", "the disk is full")

    keeper.before = refuse
    log.write(5, "one")
    async with keeping(log, keeper, monkeypatch):
        log.write(5, "two")
        await log.keeper.settle()
    assert refusals == 0
    assert keeper.seqs() == [1, 2]
    assert keeper.paths == 1


async def test_keeper_that_dies_in_the_middle_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch comes again to its successor; whoever waits for it to settle waits on."""
    log, keeper = Syslog(), Keeper()
    deaths = 3

    async def die() -> None:
        nonlocal deaths
        if deaths:
            deaths -= 1
            keeper.other.sever("lost")
            await trio.lowlevel.checkpoint()

    keeper.before = die
    for _ in range(3):
        log.write(5, "x")
    async with keeping(log, keeper, monkeypatch):
        log.write(5, "y")
        await log.keeper.settle()
    assert keeper.seqs() == [1, 2, 3, 4]
    assert keeper.paths == 4


async def test_keeper_of_an_earlier_release_gets_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has run since before chunks were known; the next one of it is asked anew."""

    class Earlier(Keeper):
        def records(self, body: dict[str, Any]) -> list[Record]:
            if self.paths == 1 and "chunks" in body:
                raise Rejected("unknown-verb", "SYSLOG knows store and query")
            found: list[Record] = body["records"] if self.paths == 1 else super().records(body)
            return found

    log, keeper = Syslog(), Earlier()
    log.write(5, "one", fields={"a": 1})
    one = log.recent(None, 1)
    async with keeping(log, keeper, monkeypatch):
        await log.keeper.settle()
        assert keeper.stored == one
        keeper.other.sever("replaced")
        log.write(5, "two")
        await log.keeper.settle()
    assert keeper.seqs() == [1, 2]
    assert keeper.paths == 2


async def test_chunk_of_which_some_is_stored_is_handed_over_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stored before did it record by record; what waits is counted exactly."""
    log, keeper = Syslog(), Keeper()
    await hear(log, record(1) + record(2) + record(3) + record(4))
    log.journal.keep()
    log.journal.store(3, 3)
    async with keeping(log, keeper, monkeypatch):
        await log.keeper.settle()
    assert keeper.seqs() == [1, 2, 3, 4]
    assert (log.keeper.unkept, log.journal.stored) == (0, 4)


async def test_keeper_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for again, with a pause, and other tasks get their turns."""
    log, keeper = Syslog(), Keeper()
    failures = 5

    class Unreachable(Keeper):
        @asynccontextmanager
        async def connect(self) -> AsyncIterator[Path]:
            nonlocal failures
            if failures:
                failures -= 1
                raise Rejected("not-ready", "it is starting")
            async with super().connect() as path:
                yield path

    keeper = Unreachable()
    log.write(5, "x")
    async with keeping(log, keeper, monkeypatch):
        await log.keeper.settle()
    assert failures == 0
    assert keeper.seqs() == [1]


async def test_records_dropped_from_a_full_backlog_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of whoever has said most go; when the keeper is back a record of each machine says how many."""
    log, keeper = Syslog(journal=Journal.private(LEAST_ROOM)), Keeper()
    go = trio.Event()
    keeper.before = go.wait
    async with keeping(log, keeper, monkeypatch):
        for number in range(50):
            log.write(5, f"quiet {number}", machine="QUIET")
        for number in range(2000):
            log.write(5, f"{number} " + "x" * 10_000, machine="LOUD")
        assert (log.keeper.unkept - 50) * 10_000 <= LEAST_ROOM
        go.set()
        await log.keeper.settle()
        await trio.testing.wait_all_tasks_blocked()
        await log.keeper.settle()
    lost = [each for each in keeper.stored if "lost" in each["message"]]
    assert [(each["machine"], each["logger"]) for each in lost] == [("LOUD", "retinue.cp")]
    stored = [each for each in keeper.stored if each["machine"] == "LOUD" and "lost" not in each["message"]]
    assert lost[0]["fields"]["lost"] + len(stored) == 2000
    assert len(stored) > 500
    assert [each["message"] for each in keeper.stored if each["machine"] == "QUIET"] == [
        f"quiet {n}" for n in range(50)
    ]


async def test_reading_ends_with_the_transport() -> None:
    """A socket that is closed by the machine in order is an end as well."""
    log = Syslog()
    ours, theirs = socket_pair()
    SocketTransport(theirs).close()
    with trio.fail_after(5):
        await log.read("M", 1, ours)
    assert log.last == 0


# -- heartbeats --------------------------------------------------------------------------------------------------------


def heartbeat(*body: Any) -> bytes:
    return wire.encode([wire.Kind.SEND, 0, ["heartbeat", *body]])


async def hear_beats(*packets: bytes) -> tuple[list[Beat], list[Record]]:
    """The heartbeats and the records in packets that came one by one."""
    log = Syslog()
    beats: list[Beat] = []
    for packet in packets:
        ours, theirs = socket_pair()
        theirs.send(packet)
        theirs.close()
        with trio.fail_after(5):
            await log.read("M", 1, ours, beats.append)
    return beats, log.recent(None, EVERYTHING)


async def test_heartbeats_are_no_records() -> None:
    """They have no number; whoever watches the machine gets them."""
    beats, records = await hear_beats(heartbeat(7, 1.5, 0.0), record(1), heartbeat(2**63 - 1, 0.0, 1e6))
    assert beats == [Beat(7, 1.5, 0.0), Beat(2**63 - 1, 0.0, 1e6)]
    assert messages(records) == ["m"]


async def test_heartbeats_between_records() -> None:
    """Of those that come together the last one counts; no record is lost beside them, and no number is missing."""
    log = Syslog()
    beats: list[Beat] = []
    ours, theirs = socket_pair()
    for number in range(1, 40):
        theirs.send(record(number, str(number)))
        theirs.send(heartbeat(number, 0.5, 0.25))
    theirs.close()
    with trio.fail_after(5):
        await log.read("M", 1, ours, beats.append)
    assert messages(log.recent(None, EVERYTHING)) == [str(number) for number in range(1, 40)]
    assert beats[-1] == Beat(39, 0.5, 0.25)
    assert len(beats) < 39


async def test_heartbeats_that_nobody_wants_are_nothing() -> None:
    """They are no text of the console."""
    assert await hear(Syslog(), heartbeat(1, 0.5, 0.5)) == []


@pytest.mark.parametrize(
    "packet",
    [
        heartbeat(),
        heartbeat(1, 1.0),
        heartbeat(1, 1.0, 1.0, 1.0),
        heartbeat(-1, 1.0, 1.0),
        heartbeat(2**63, 1.0, 1.0),
        heartbeat(True, 1.0, 1.0),
        heartbeat(1.0, 1.0, 1.0),
        heartbeat(1, -1.0, 1.0),
        heartbeat(1, float("nan"), 1.0),
        heartbeat(1, 1.0, float("inf")),
        heartbeat(1, 1, 1.0),
        heartbeat([1], None, {}),
        heartbeat(1, 1.0, 1.0) * 2,
        heartbeat(1, 1.0, 1.0) + record(1),
        heartbeat(1, 1.0, 1.0)[:-1],
        wire.encode([wire.Kind.SEND, 0, [1.5, 6, "x", "m", {}]]),
        b"\x93\x01\x00",
    ],
    ids=lambda packet: ascii(packet)[:40],
)
async def test_heartbeat_that_is_none_is_console_text(packet: bytes) -> None:
    """What a machine says of itself is looked at like everything that it says."""
    beats, records = await hear_beats(packet)
    assert beats == []
    assert {each["logger"] for each in records} == {"console"}


# -- across control programs -------------------------------------------------------------------------------------------


def successor(log: Syslog) -> Syslog:
    """The control program after this one, which did nothing more."""
    return Syslog(journal=Journal.adopt(os.dup(log.journal.fileno())))


async def test_reading_goes_on_in_the_next_control_program() -> None:
    """With the number, the line and the gap; the machine sees nothing of it."""
    log = Syslog(journal=Journal.create())
    ours, theirs = socket_pair()
    held = ours.dup()
    theirs.send(record(1, "one"))
    theirs.send(b"half a ")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.read, "M", 1, ours)
        while log.last < 1:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    theirs.send(b"line\n")
    theirs.send(record(2, "two"))
    theirs.send(record(5, "five"))
    theirs.close()
    then = successor(log)
    assert (then.run, then.last, [source.machine for source in then.unread()]) == (log.run, 1, ["M"])
    with trio.fail_after(5):
        await then.read("M", 1, held)
    found = then.recent(None, EVERYTHING)
    lost = "-- 2 lines lost: the log descriptor of M was full --"
    assert messages(found) == ["one", "half a line", "two", lost, "five"]
    assert [each["seq"] for each in found] == [1, 2, 3, 4, 5]
    assert then.unread() == []


async def test_descriptor_that_nobody_reads_any_more_is_ended() -> None:
    """The machine has died with its control program, and its descriptor is gone."""
    log = Syslog(journal=Journal.create())
    ours, theirs = socket_pair()
    with theirs:
        theirs.send(b"last words")
        log._turn(log._source("M", 1), ours, None)
    ours.close()
    then = successor(log)
    then.end("M", 1)
    assert messages(then.recent("M", 10)) == ["last words"]
    assert then.unread() == []


async def test_batch_whose_answer_died_with_the_control_program_is_offered_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The machine that keeps records knows them by run and number."""
    log, keeper = Syslog(journal=Journal.create()), Keeper()
    for number in range(10):
        log.write(5, str(number))
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "store", lambda *_: None)  # killed before it took note
        async with keeping(log, keeper, monkeypatch):
            while not keeper.stored:
                await trio.lowlevel.checkpoint()
    then = successor(log)
    assert then.keeper.unkept == 10
    async with keeping(then, keeper, monkeypatch):
        then.write(5, "more")
        await then.keeper.settle()
    assert sorted(set(keeper.seqs())) == [*range(1, 12)]
    assert keeper.runs == {log.run}


async def test_follower_that_comes_again_misses_nothing() -> None:
    """Page by page from the last number it has seen, whoever took the records; then what is published."""
    log = Syslog(journal=Journal.create())
    for number in range(1, 2001):
        log.write(5, str(number), machine="AB"[number % 2])
    then = successor(log)
    then.write(5, "2001", machine="A")
    seen, after = [], 500
    while page := then.since(after):
        seen += messages(page)
        after = page[-1]["seq"]
    assert seen == [str(number) for number in range(501, 2002)]
    assert messages(then.since(1990, "B", most=3)) == ["1991", "1993", "1995"]
    assert then.since(2001) == []


async def test_own_records_of_a_system_without_journal() -> None:
    """Nothing of it outlives the process, and nothing is open for it."""
    before = descriptors()
    log = Syslog()
    log.write(5, "x")
    assert_none_left(before)
    with pytest.raises(ValueError, match="ends with its process"):
        log.journal.fileno()
