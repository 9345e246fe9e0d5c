"""What is kept of a death: where, how much of it, and nothing that must not be read."""

import json
import os
import pathlib
import stat
import time
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from retinue.cp.certificates import FOLDER, KEPT, LINE, Certificate, Certificates, kept_names, read
from retinue.cp.host.interface import Exit
from retinue.cp.postmortem import NEIGHBOURS_TIME, last_messages, trace
from retinue.cp.secrets import Secrets
from retinue.cp.syslog import CRITICAL, ERROR, INFO, NOTICE, Syslog
from retinue.pipes import Rejected, socket_pair, wire

TRACEBACK = 'Traceback (most recent call last):\n  File "shop.py", line 3\nValueError: no such luck'
SECRET = Secrets({"SHOP": {"key": b"correct-horse-battery"}})


@pytest.fixture
def syslog() -> Syslog:
    return Syslog(SECRET)


@pytest.fixture
def certificates(tmp_path: pathlib.Path, syslog: Syslog) -> Certificates:
    return Certificates(tmp_path, syslog, "TEST", SECRET)


async def said(
    syslog: Syslog,
    message: str,
    *,
    severity: int = INFO,
    logger: str = "shop",
    generation: int = 1,
    fields: dict[str, Any] | None = None,
    count: int = 1,
) -> None:
    """Records as a machine writes them."""
    ours, theirs = socket_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(syslog.read, "SHOP", generation, ours)
        with theirs:
            theirs.setblocking(False)
            for number in range(1, count + 1):
                body = [time.time(), severity, logger, message, fields or {}]
                packet = wire.encode([wire.Kind.SEND, number, body])
                while True:
                    try:
                        theirs.send(message.encode() + b"\n" if logger == "console" else packet)
                        break
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(theirs)


def exited(status: int = 9, **more: Any) -> Exit:
    return Exit("SHOP", 1, 4711, status, 1.25, 0.5, 30_000, None, **more)


def issue(certificates: Certificates, **more: Any) -> Certificate:
    given: dict[str, Any] = {"machine": "SHOP", "generation": 1, "cause": "signal", "text": "killed by SIGKILL"}
    return certificates.issue(**(given | more))


async def test_a_certificate_says_what_is_known(certificates: Certificates, syslog: Syslog) -> None:
    """How it ended, what it used, what it said last, what its neighbours wait for; also for whoever reads it later."""
    await said(syslog, "an earlier life", generation=0)
    await said(syslog, "hello")
    await said(syslog, TRACEBACK, severity=CRITICAL)
    syslog.write(ERROR, "SHOP died", machine="SHOP", generation=1)
    written = issue(
        certificates,
        exit=exited(peak_storage=7 << 20),
        ready=12.5,
        lived=13.0,
        storage=64 << 20,
        told=[("WEB", "app", "waits for the successor")],
        messages={"WEB.app": [[7, "call", 120, 0.25, "['price']"]]},
    )
    assert (written.pid, written.signal, written.exit_code) == (4711, 9, None)
    assert (written.user_s, written.system_s, written.peak_kib, written.peak_storage) == (1.25, 0.5, 30_000, 7 << 20)
    assert [record["message"] for record in written.last_log] == ["hello", TRACEBACK]
    assert written.traceback == TRACEBACK
    certificates.then("SHOP", 1, "started again at once")
    await certificates.settle()
    (found,) = read(certificates._folder.parent if certificates._folder else pathlib.Path(), "SHOP")
    assert found == certificates.latest("SHOP")
    assert found == attrs.evolve(written, next=("started again at once",))
    assert found.last_messages == {"WEB.app": [[7, "call", 120, 0.25, "['price']"]]}


async def test_exit_status_is_told_as_such(certificates: Certificates) -> None:
    written = issue(certificates, exit=exited(3 << 8), cause="exit")
    assert (written.signal, written.exit_code) == (None, 3)
    assert issue(certificates, exit=None, cause="unknown").pid == 0


async def test_the_newest_are_kept_and_survive_the_control_program(tmp_path: pathlib.Path, syslog: Syslog) -> None:
    """Ten of each machine; another control program goes on with them, and adds to the newest of a generation."""
    first = Certificates(tmp_path, syslog, "TEST")
    for generation in range(1, KEPT + 6):
        issue(first, generation=generation)
    issue(first, machine="OTHER")
    await first.settle()
    second = Certificates(tmp_path, syslog, "TEST")
    second.then("SHOP", 12, "something")
    second.then("SHOP", 2, "is forgotten")
    second.then("NOBODY", 1, "never was")
    assert [each.generation for each in second.all("SHOP")] == list(range(KEPT + 5, 5, -1))
    await second.settle()
    assert [each.next for each in read(tmp_path, "SHOP") if each.next] == [("something",)]
    assert kept_names(tmp_path) == ["OTHER", "SHOP"]
    assert read(tmp_path, "NOBODY") == []


async def test_deaths_that_somebody_wanted_do_not_drive_out_the_others(certificates: Certificates) -> None:
    """The newest is kept in any case."""
    issue(certificates, generation=1)
    for generation in range(2, 30):
        issue(certificates, generation=generation, cause="replaced")
    kept = [each.generation for each in certificates.all("SHOP")]
    assert (kept[0], kept[-1], len(kept)) == (29, 1, KEPT)
    for generation in range(30, 40):
        issue(certificates, generation=generation)
    issue(certificates, generation=40, cause="asked")
    kept = [each.generation for each in certificates.all("SHOP")]
    assert kept == list(range(40, 30, -1))


async def test_instances_are_found_by_their_common_name(certificates: Certificates, tmp_path: pathlib.Path) -> None:
    """The newest of all of them first; each is found by its own name as well."""
    for name in ("SHOP@1", "SHOP@2", "SHOP@1", "SHOPPER"):
        issue(certificates, machine=name)
    await certificates.settle()
    for found in (certificates.all("SHOP"), read(tmp_path, "SHOP")):
        assert [each.machine for each in found] == ["SHOP@1", "SHOP@2", "SHOP@1"]
    assert len(certificates.all("SHOP@2")) == len(read(tmp_path, "SHOP@2")) == 1


async def test_a_machine_cannot_make_it_large(tmp_path: pathlib.Path) -> None:
    """Whatever it and its neighbours say: the line has a bound, and still says the cause."""
    syslog = Syslog()
    certificates = Certificates(tmp_path, syslog, "TEST")
    await said(syslog, "\x00" * 30_000, severity=ERROR, count=30)
    await said(syslog, "x", severity=ERROR, fields={str(key): "y" * 250 for key in range(200)}, count=30)
    await said(syslog, TRACEBACK + "\x00" * 30_000, severity=ERROR)
    messages = {f"M{edge}.app": [[number, "call", 1, 1.0, "\x00" * 5000] for number in range(99)] for edge in range(99)}
    issue(certificates, text="\x00" * 100_000, told=[("W", "e", "x" * 9000)] * 500, messages=messages)
    for _ in range(100):
        certificates.then("SHOP", 1, "y" * 10_000)
    await certificates.settle()
    (line,) = (tmp_path / FOLDER / "SHOP.jsonl").read_bytes().splitlines()
    assert len(line) <= LINE
    (found,) = read(tmp_path, "SHOP")
    assert found.cause == "signal"


@pytest.mark.parametrize(
    "forged",
    [5, {"uses": 5}, [[1, 2, 3, 4, 5]], [[1, "call", 1, float("nan"), ""]], [[1, "call", 1, -1.0, "x"]], [["call"]]],
)
async def test_what_is_no_message_is_left_out(certificates: Certificates, forged: Any) -> None:
    good = [1, "call", 2, 0.5, "x"]
    items = [*(forged if isinstance(forged, list) else [forged]), good]
    assert issue(certificates, messages={"WEB.app": items}).last_messages == {"WEB.app": [good]}


async def test_no_secret_is_in_it(certificates: Certificates, syslog: Syslog, tmp_path: pathlib.Path) -> None:
    """Not in a text, a record, a message, nor cut off at the end of a message's head."""
    await said(syslog, "the key is correct-horse-battery", severity=ERROR)
    await said(syslog, TRACEBACK + " correct-horse-battery", severity=ERROR)
    heads = ["{'key': 'correct-horse-battery'}", "x" * 180 + "correct-horse-b"]
    issue(
        certificates,
        text="it said correct-horse-battery",
        told=[("WEB", "app", "correct-horse-battery")],
        messages={"WEB.app": [[1, "call", 1, 1.0, head] for head in heads]},
    )
    certificates.then("SHOP", 1, "started with correct-horse-battery")
    await certificates.settle()
    text = (tmp_path / FOLDER / "SHOP.jsonl").read_text()
    assert "correct-horse" not in text
    assert text.count("[secret key]") >= 7


async def test_files_are_private_and_whole(certificates: Certificates, tmp_path: pathlib.Path) -> None:
    """Nothing is left beside them; what a crash left there is written over; a torn file is no failure."""
    old = os.umask(0o077)  # as the control program has it
    try:
        (tmp_path / FOLDER).mkdir()
        (tmp_path / FOLDER / ".SHOP.jsonl.new").write_text("torn")
        issue(certificates)
        await certificates.settle()
    finally:
        os.umask(old)
    assert os.listdir(tmp_path / FOLDER) == ["SHOP.jsonl"]
    file = tmp_path / FOLDER / "SHOP.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    whole = file.read_bytes()
    file.write_bytes(b"{\n\xff\n5\n" + b"[" * 100_000 + b"\n{}\n" + whole + whole[: len(whole) // 2])
    assert [each.generation for each in read(tmp_path, "SHOP")] == [1]


def test_a_certificate_of_another_version_is_read_as_far_as_it_is_known() -> None:
    plain = Certificate(1.0, "TEST", "SHOP", 3, "exit", "exit status 1").as_dict()
    assert Certificate.from_dict(json.loads(json.dumps(plain))) == Certificate(
        1.0, "TEST", "SHOP", 3, "exit", "exit status 1"
    )
    strange = {**plain, "new": 5, "told": [["a", "b", "c"], 5, ["a"]], "last_log": [5, {}], "user_s": "much", "next": 5}
    found = Certificate.from_dict(strange)
    assert found is not None
    assert (found.told, found.last_log, found.user_s, found.next) == ((("a", "b", "c"),), ({},), 0.0, ())
    forged: list[Any] = [None, 5, [], {}, {**plain, "machine": 5}, {**plain, "time": None}]
    for wrong in forged:
        assert Certificate.from_dict(wrong) is None


async def test_a_disk_that_is_full_is_a_record(tmp_path: pathlib.Path, syslog: Syslog) -> None:
    """And what is known stays known."""
    (tmp_path / FOLDER).write_text("in the way")
    certificates = Certificates(tmp_path, syslog, "TEST")
    issue(certificates)
    await certificates.settle()
    assert "the certificates of SHOP cannot be stored" in syslog.recent("CP", 1)[0]["message"]
    latest = certificates.latest("SHOP")
    assert latest is not None
    assert latest.generation == 1


async def test_what_is_written_last_is_stored_when_the_control_program_ends(
    certificates: Certificates, tmp_path: pathlib.Path
) -> None:
    """It stores by itself, and leaves nothing behind when it is cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(certificates.run)
        await trio.testing.wait_all_tasks_blocked()
        issue(certificates)
        nursery.cancel_scope.cancel()
    assert len(read(tmp_path, "SHOP")) == 1


async def test_without_a_folder_it_is_kept_in_memory(syslog: Syslog) -> None:
    certificates = Certificates(None, syslog)
    issue(certificates)
    await certificates.settle()
    assert certificates.latest("SHOP") is not None
    assert certificates.latest("OTHER") is None


@pytest.mark.parametrize("name", ["", "shop", "../X", "A/B", ".", "SHOP@", "SHOP@1/..", "TOOLONGNAME"])
async def test_a_name_that_is_none_is_no_file(certificates: Certificates, name: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="not the name of a machine"):
        issue(certificates, machine=name)
    assert read(tmp_path, name) == []
    assert certificates.all(name) == []


def test_cause_is_one_of_those_there_are(certificates: Certificates) -> None:
    with pytest.raises(ValueError, match="not a valid Cause"):
        issue(certificates, cause="bad luck")


async def test_what_neighbours_tell_later_is_added(certificates: Certificates) -> None:
    """To the newest of its generation."""
    for generation in (1, 1, 2):
        issue(certificates, generation=generation)
    certificates.heard("SHOP", 1, {"WEB.app": [[1, "call", 2, 0.5, "correct-horse-battery"]], "X.y": []})
    certificates.heard("SHOP", 9, {"WEB.app": [[1, "call", 2, 0.5, ""]]})
    told = [each.last_messages for each in certificates.all("SHOP")]
    assert sorted(map(len, told)) == [0, 0, 1]
    assert {"WEB.app": [[1, "call", 2, 0.5, "[secret key]"]]} in told


DUMP = ["Current thread 0x00007f (most recent call first):", '  File "shop.py", line 3 in spin', "", "Thread 0x00008a:"]


async def test_the_dump_of_a_hung_machine_is_its_traceback(syslog: Syslog) -> None:
    """The last one it made, without what it wrote otherwise; an exception that was told later counts more."""
    for line in ["working", *DUMP[:2], "in between", *DUMP, "  x", "still working"]:
        await said(syslog, line, severity=NOTICE, logger="console")
    assert trace(syslog.recent("SHOP", 100)) == "\n".join([*DUMP, "  x"])
    await said(syslog, TRACEBACK, severity=ERROR)
    assert trace(syslog.recent("SHOP", 100)) == TRACEBACK


async def test_no_traceback_is_none(syslog: Syslog) -> None:
    await said(syslog, TRACEBACK)  # told as a mere remark
    await said(syslog, "  indented", logger="console")
    syslog.write(ERROR, TRACEBACK, machine="SHOP", generation=1)  # the control program's own
    assert trace(syslog.recent("SHOP", 100)) is None


@attrs.frozen
class Neighbour:
    """A machine that says what it is made to say, or waits for ever."""

    name: str
    says: Any = None

    async def last(self) -> Any:
        if self.says is Ellipsis:
            await trio.sleep_forever()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


async def test_neighbours_say_what_was_not_answered(autojump_clock: trio.abc.Clock) -> None:
    """Users and servers, each by the name of the edge; whoever does not answer in time is not waited for."""
    message = [1, "call", 2, 0.5, "x"]
    began = trio.current_time()
    found = await last_messages(
        [
            (Neighbour("WEB", {"uses": {"app": [message], "other": [message]}, "serves": {}}), "app"),
            (Neighbour("HUNG", ...), "app"),
            (Neighbour("GONE", Rejected("not-ready")), "app"),
            (Neighbour("FORGER", {"uses": {"app": [5, "x", [message]]}}), "app"),
            (Neighbour("WORSE", [5]), "app"),
        ],
        [(Neighbour("PRICES", {"uses": 5, "serves": {"SHOP.prices": [message] * 50}}), "SHOP.prices")],
    )
    assert found == {"WEB.app": [message], "SHOP.prices": [message] * 10}
    assert trio.current_time() - began == pytest.approx(NEIGHBOURS_TIME)
