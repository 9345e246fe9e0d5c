"""What the fuzzer has found, told in words; the inputs are in regressions. And the command that finds more."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing
from tests.fuzz import run
from tests.fuzz.targets import TARGETS

from retinue.pipes import Message, PathSevered, ProtocolViolation, memory_pair, open_path, wire
from retinue.pipes.session import Session
from retinue.pipes.wire import Kind

ROOT: Final = Path(__file__).resolve().parents[2]
HELLO: Final = wire.encode([Kind.HELLO, wire.VERSION, 64, 77, 0, 0, 0, 0, 0])
# A nil, and the beginning of a message: behind its array's head, and within a body of 255 bytes.
HALVES: Final = [b"\xc0\x93\x01", b"\xc0\x93\x01\x05\xc4\xff"]


@pytest.mark.parametrize("half", HALVES, ids=["array", "body"])
@pytest.mark.parametrize("frames", [b"", wire.encode([Kind.SEND, 1, None])], ids=["alone", "behind-a-message"])
def test_half_a_frame_behind_a_nil_is_a_violation(frames: bytes, half: bytes) -> None:
    """A nil is no frame, wherever it stands: it does not hide that the packet ends inside the next frame."""
    with pytest.raises(ProtocolViolation):
        wire.Decoder().decode(frames + half)


@pytest.mark.parametrize("half", HALVES, ids=["array", "body"])
async def test_half_a_frame_of_one_peer_is_not_read_into_the_packet_of_another(half: bytes) -> None:
    """Paths of a thread share a decoder: what one peer leaves unfinished is not the beginning of another's packet."""
    ours, forger = memory_pair()
    other, honest = memory_pair()
    with trio.fail_after(10):
        async with open_path(ours) as forged, open_path(other) as path:
            forger.send(HELLO)
            honest.send(HELLO)
            forger.send(half)
            await trio.testing.wait_all_tasks_blocked()
            honest.send(wire.encode([Kind.SEND, 1, "as it was sent"]))
            assert (await path.receive()).body == "as it was sent"
            assert isinstance(forged.severed, PathSevered)
            assert forged.severed.code == "violation"


async def test_depth_of_a_hello_of_another_version_is_a_violation_and_no_error() -> None:
    """Nothing is known of such a frame but its version; the older msgpack cannot write all that it can read."""
    ours, forger = memory_pair()
    with trio.fail_after(10):
        async with open_path(ours) as path:
            forger.send(b"\x95\x00\x63\xc0" + b"\x91" * 600 + b"\xc0\xc0")
            await path.wait_severed()
            assert isinstance(path.severed, PathSevered)
            assert path.severed.code == "violation"


def test_lower_limit_of_a_peer_that_met_nobody_leaves_no_room() -> None:
    """It greets again as if for the first time, with a lower limit: more is outstanding, so nothing is sent."""
    session = Session(4, keeps=True)
    for limit in (4, 1):
        session.bind()
        session.receive([Kind.HELLO, wire.VERSION, limit, 77, 0, 0, 0, 0, 0])
        while session.room > 0:
            session.send(None)
        while session.link.next_packet() is not None:
            pass
        session.unbind()
    assert session.outstanding == (4, 0)
    assert session.room <= 0


async def test_sending_nothing_takes_nobodys_place() -> None:
    """send_many of nothing returns at once; who waits until a message was received learns it as if nothing had been."""
    ours, theirs = memory_pair()
    received = trio.Event()
    async with open_path(ours) as path, open_path(theirs) as other, trio.open_nursery() as nursery:

        async def send() -> None:
            await path.send("something")
            received.set()

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(path.send_many, ())
        await trio.testing.wait_all_tasks_blocked()
        await other.receive()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert received.is_set()


async def test_senders_in_turn_each_learn_that_theirs_was_received() -> None:
    """One sends many while another sends one between them that is received last: both return."""
    ours, theirs = memory_pair()
    returned = []
    async with (
        open_path(ours, limit=2) as path,
        open_path(theirs, limit=2) as other,
        trio.open_nursery() as nursery,
    ):

        async def send_many() -> None:
            returned.append(await path.send_many(["1", "2", "3", "5"]))

        async def send() -> None:
            await path.send("4")
            returned.append(1)

        async def take() -> Message:
            await trio.testing.wait_all_tasks_blocked()
            message = other.next_message()
            assert message is not None
            return message

        nursery.start_soon(send_many)
        first, second = await take(), await take()
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        other.acknowledge(first)
        third = await take()
        other.acknowledge(second)
        fourth = await take()
        other.acknowledge(third)
        fifth = await take()
        assert [each.body for each in (first, second, third, fourth, fifth)] == ["1", "2", "3", "4", "5"]
        other.acknowledge(fifth)
        await trio.testing.wait_all_tasks_blocked()
        other.acknowledge(fourth)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sorted(returned) == [1, 4]


# -- the command -------------------------------------------------------------------------------------------------------


def test_command_knows_every_target() -> None:
    """It names them without importing them, since what is imported before atheris is not watched."""
    assert tuple(TARGETS) == run.TARGET_NAMES


def test_command_reads_the_figures_of_libfuzzer() -> None:
    """The last line of a run says how much was done, how fast, and whether memory grew; also of one cut short."""
    figures: dict[str, int] = {}
    assert run.summary(figures) == "it has ended before it began"
    for line in (
        "#67\tINITED cov: 599 ft: 1730 corp: 60/1971b exec/s: 0 rss: 55Mb",
        "#65536\tpulse  cov: 611 ft: 1931 corp: 90/2971b lim: 652 exec/s: 3276 rss: 58Mb",
    ):
        run.note(line, figures)
    assert run.summary(figures) == (
        "65536 executions, 3276 executions/s, 611 places reached; "
        "peak resident memory 55 MB after the first inputs, 58 MB at the end"
    )
    for line in (
        "stat::number_of_executed_units: 118306",
        "stat::average_exec_per_sec:     2571",
        "stat::peak_rss_mb:              59",
        "Done 118306 runs in 46 second(s)",
    ):
        run.note(line, figures)
    assert run.summary(figures) == (
        "118306 executions, 2571 executions/s, 611 places reached; "
        "peak resident memory 55 MB after the first inputs, 59 MB at the end"
    )


def _command(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import runpy, sys; {before}; runpy.run_module('tests.fuzz.run', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_command_without_atheris_says_what_to_do() -> None:
    """One message with the cure, and no traceback."""
    done = _command("wire", before="sys.modules['atheris'] = None")
    assert done.returncode == 2
    assert done.stderr == run.MISSING
    assert "pip install" in done.stderr


def test_command_runs_one_input_without_atheris() -> None:
    """A finding can be looked at with nothing but the project itself."""
    file = TARGETS["wire"].corpus / "hello"
    done = _command("wire", "--input", str(file), before="sys.modules['atheris'] = None")
    assert (done.returncode, done.stderr) == (0, "")
