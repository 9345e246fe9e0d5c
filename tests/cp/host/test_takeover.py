"""A control program may die: what outlives it, and who comes after it."""

import errno
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.cp.host.driving import PATIENCE, PROGRAMS, Running, Shared, Start, killed

from retinue.cp.host import holdings, nucleus, saved
from retinue.cp.host.errors import LinkLimit
from retinue.cp.host.holdings import Holdings
from retinue.cp.host.interface import Restored
from retinue.cp.host.link import CROWDED_SECONDS, DESCRIPTORS_MAX, LENT_MAX, NOTE_MAX, Link, close_all, link_pair
from retinue.cp.host.linux import LinuxHost
from retinue.cp.host.loop import Loop
from retinue.cp.operator_socket import connect_operator, listen_operator, take_listener


async def spare(system: Running) -> None:
    await system.order("spare")
    assert (await system.news("event"))["event"] == "SpareReady"


async def endowed(shared: Shared) -> Running:
    """The system that tests share: with a spare, so that the deaths of earlier tests do not count."""
    system = await shared.find(network=True)
    with trio.fail_after(PATIENCE):
        await spare(system)
    return system


def inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


async def test_the_first_finds_nothing(start: Start) -> None:
    system = await start(wait=False)
    with trio.fail_after(PATIENCE):
        found = await system.started()
    assert (found["first"], found["died"], found["residents"]) == (True, "", [])


@pytest.mark.parametrize("with_spare", [False, True])
async def test_what_is_kept_outlives_a_killed_cp_with_notes_descriptors_and_order(
    start: Start, shared: Shared, with_spare: bool
) -> None:
    system = await endowed(shared) if with_spare else await start(network=True)
    with trio.fail_after(PATIENCE):
        one = await system.spawn("ONE", generation=4)
        net = await system.spawn("NET", network=True)
        pipe = os.pipe()
        await system.order("keep", key="b", note={"text": "é", "list": [1, None]}, descriptors=pipe)
        await system.order("keep", key="a", note={"old": True}, descriptors=pipe)
        await system.order("keep", key="gone", note={}, descriptors=pipe)
        await system.order("keep", key="c", note={})
        await system.order("keep", key="a", note={"new": True}, descriptors=pipe[:1])
        await system.order("drop", key="gone")
        await system.order("drop", key="never there")
        old = system.cp_pid
        found = await system.succeeded()
        assert system.cp_pid != old
        assert (found["first"], found["died"]) == (False, "the control program was killed by SIGKILL")
        assert found["residents"] == [["ONE", 4, one.pid, one.seal], ["NET", 1, net.pid, net.seal]]
        inodes = [inode(each) for each in pipe]
        assert await system.order("kept") == [
            ["b", {"text": "é", "list": [1, None]}, inodes],
            ["a", {"new": True}, inodes[:1]],
            ["c", {}, []],
        ]
        assert await one.call("os:getpid")
        await system.order("signal", machine="ONE", generation=4, number=signal.SIGKILL)
        assert (await system.news("exit"))["pid"] == one.pid
        await system.spawn("ONE", generation=5)
        close_all(pipe)
        if not with_spare:
            assert await system.end(3) == 3
            await system.all_gone()


async def test_what_was_kept_the_moment_before_a_cp_died_counts(shared: Shared) -> None:
    system = await endowed(shared)
    with trio.fail_after(PATIENCE):
        system.post("keep", (0,), key="last", note={"words": 1}, count=300, die=True)
        await system.started()
        assert [note["number"] for _, note, _ in await system.order("kept")] == list(range(300))


async def test_exits_are_told_again_until_they_are_buried(shared: Shared) -> None:
    system = await endowed(shared)
    with trio.fail_after(PATIENCE):
        generations = {}
        for name in ("ONE", "TWO"):
            machine = await system.spawn(name)
            generations[name] = machine.generation
            await machine.send("os:_exit", 3)
        first = {ended["machine"]: ended for ended in [await system.news("exit"), await system.news("exit")]}
        await system.order("buried", machine="ONE", generation=generations["ONE"])
        for again in (False, True):
            if again:
                await spare(system)
            assert (await system.succeeded())["residents"] == []
            assert await system.news("exit") == first["TWO"]
        await system.order("buried", machine="TWO", generation=generations["TWO"])
        await spare(system)
        await system.succeeded()
        three = await system.spawn("THREE")
        await three.send("os:_exit", 0)
        assert (await system.news("exit"))["machine"] == "THREE"


async def test_an_exit_that_nobody_heard_is_told_to_the_next(shared: Shared) -> None:
    system = await endowed(shared)
    with trio.fail_after(PATIENCE):
        machine = await system.spawn()
        os.kill(system.cp_pid, signal.SIGSTOP)
        await machine.send("os:_exit", 5)
        await system.succeeded()
        ended = await system.news("exit")
    assert (ended["pid"], os.waitstatus_to_exitcode(ended["status"])) == (machine.pid, 5)


async def test_births_that_a_dead_cp_has_asked_for_are_residents_of_the_next(shared: Shared) -> None:
    system = await endowed(shared)
    pairs = [link_pair() for _ in range(40)]
    birth = {"generation": 1, "storage": 256 << 20, "disks": [], "code": [], "network": False}
    with trio.fail_after(PATIENCE):
        [busy] = titled(system, "saved-sealed")
        os.kill(busy, signal.SIGSTOP)
        for number, (_, theirs) in enumerate(pairs):
            system.post("spawn", (theirs.fileno(),) * 2, birth={**birth, "machine": f"M{number}"})
        while await system.order("unanswered") < 40:
            pass
        os.kill(system.cp_pid, signal.SIGKILL)
        os.kill(busy, signal.SIGCONT)
        found = await system.started()
        names = {name: pid for name, _, pid, _ in found["residents"]}
        assert names.keys() == {f"M{number}" for number in range(40)}
        assert all(pid > 0 for pid in names.values())
        for name, pid in names.items():
            await system.order("signal", machine=name, generation=1, number=signal.SIGKILL)
            ended = await system.news("exit")
            assert (ended["machine"], ended["pid"]) == (name, pid)
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


async def test_a_broken_spare_is_told_and_does_no_harm(start: Start) -> None:
    system = await start(cp_entry="tiny_cp:main_no_spare")
    with trio.fail_after(PATIENCE):
        await system.order("spare")
        event = await system.news("event")
        assert (event["event"], event["text"]) == ("SpareFailed", "the spare exited with status 9")
        machine = await system.spawn()
        assert await machine.call("os:getpid")
        # It had come up in order, so that the deaths are counted from here on.
        os.kill(system.cp_pid, signal.SIGKILL)
        assert await system.wait() == 1
    assert system.end_text()["text"] == "the control program exited with status 9"


async def test_a_spare_is_replaced_by_the_next_and_told_when_it_dies(start: Start) -> None:
    system = await start()
    with trio.fail_after(PATIENCE):
        await spare(system)
        [first] = titled(system, "spare")
        await spare(system)
        [second] = titled(system, "spare") - {first}
        assert second != first
        os.kill(second, signal.SIGKILL)
        event = await system.news("event")
        assert (event["event"], event["text"]) == ("SpareFailed", "the spare was killed by SIGKILL")
        await spare(system)
        [third] = titled(system, "spare")
        await system.succeeded()
        assert system.cp_pid == third
        assert titled(system, "control-program") == {third}
        assert await system.end() == 0
        await system.all_gone()


def titled(system: Running, title: str) -> set[int]:
    return {pid for pid in system.pids() if Path(f"/proc/{pid}/comm").read_text().strip() == title}


async def test_three_that_die_in_a_row_end_the_system_and_the_state_folder_says_why(start: Start) -> None:
    system = await start(cp_entry="tiny_cp:main_only_first", network=True)
    with trio.fail_after(PATIENCE):
        await system.spawn()
        os.kill(system.cp_pid, signal.SIGKILL)
        assert await system.wait() == 1
        await system.all_gone()
    end = system.end_text()
    assert (end["how"], end["text"]) == ("cp-died", "the control program exited with status 8")
    assert not system.runtime.exists()


async def test_deaths_count_from_the_last_that_had_a_spare(start: Start) -> None:
    system = await start()
    with trio.fail_after(PATIENCE):
        await system.succeeded()
        await system.succeeded()
        await spare(system)
        await system.succeeded()
        await system.succeeded()
        await system.succeeded()
        os.kill(system.cp_pid, signal.SIGKILL)
        assert await system.wait() == 1
    assert system.end_text()["how"] == "cp-died"


@pytest.mark.parametrize("with_spare", [False, True])
async def test_a_cp_hands_over_on_purpose(start: Start, shared: Shared, with_spare: bool) -> None:
    system = await endowed(shared) if with_spare else await start()
    with trio.fail_after(PATIENCE):
        for number in range(3):
            if with_spare and number:
                await spare(system)
            await system.order("keep", key="turn", note={"number": number})
            system.post("hand_over")
            found = await system.started()
            assert (found["first"], found["died"]) == (False, "")
            assert await system.order("kept") == [["turn", {"number": number}, []]]


@pytest.mark.parametrize(
    ("how", "text"), [("nonsense", "spoke out of turn: "), ("hang_up", "was killed by SIGKILL"), ("exit", "status 7")]
)
async def test_a_cp_without_sense_or_link_is_replaced(shared: Shared, how: str, text: str) -> None:
    system = await endowed(shared)
    with trio.fail_after(PATIENCE):
        machine = await system.spawn()
        old = system.cp_pid
        system.post(how, status=7)
        found = await system.started()
        assert text in found["died"]
        assert [one[0] for one in found["residents"]] == ["ONE"]
        assert await machine.call("os:getpid")
        assert old not in system.pids()


async def test_exits_that_a_stopped_cp_never_heard_are_told_to_the_next(shared: Shared) -> None:
    system = await endowed(shared)
    with trio.fail_after(PATIENCE):
        machines = [await system.spawn(f"M{number}") for number in range(20)]
        os.kill(system.cp_pid, signal.SIGSTOP)
        for machine in machines:
            await machine.send("os:_exit", 0)
        await system.succeeded()
        ended = {(await system.news("exit"))["machine"] for _ in machines}
    assert ended == {machine.name for machine in machines}


async def test_a_stop_that_was_asked_for_is_asked_of_the_next_one_too(start: Start) -> None:
    system = await start()
    with trio.fail_after(PATIENCE):
        await spare(system)
        system.nucleus.terminate()
        assert (await system.news("event"))["event"] == "Terminate"
        await system.succeeded()
        assert (await system.news("event"))["event"] == "Terminate"
        assert await system.end() == 0


async def test_two_thousand_descriptors_are_handed_over_while_others_are_heard(start: Start) -> None:
    system = await start()
    with trio.fail_after(60):
        machine = await system.spawn()
        with socket.socket() as kept:
            await system.order("keep", (kept.fileno(),), key="circuit", note={"padding": "x" * 200}, count=2000)
            await spare(system)
            for _ in range(2):
                began = time.monotonic()
                found = await system.succeeded()
                print(f"2,000 kept: {1000 * (found['at'] - began):.1f} ms from kill -9 to the last of them")
                for key, note, inodes in await system.order("kept", most=100):
                    assert (key, inodes) == (f"circuit/{note['number']}", [inode(kept.fileno())])
                await spare(system)
            assert await system.order("count") == 2000
        if os.geteuid() == 0:
            held = len(os.listdir(f"/proc/{system.nucleus.pid}/fd"))
            assert held > 2000
            await system.order("drop", key="circuit", count=2000)
            await system.order("signal", machine="ONE", generation=1, number=signal.SIGKILL)
            assert killed((await system.news("exit"))["status"])
            assert len(os.listdir(f"/proc/{system.nucleus.pid}/fd")) < held - 1900
            assert machine.pid not in system.pids()


async def test_the_time_that_a_machine_has_computed_is_known_while_it_lives(shared: Shared) -> None:
    system = await endowed(shared)
    with trio.fail_after(PATIENCE):
        machine = await system.spawn(code=[PROGRAMS])
        of: dict[str, Any] = {"machine": machine.name, "generation": machine.generation}
        before = await system.order("cpu_time", **of)
        assert before >= 0
        await machine.call("inside:compute", 0.2)
        assert 0.15 < await system.order("cpu_time", **of) - before < 0.5
        await system.succeeded()
        assert await system.order("cpu_time", **of) > before
        await machine.send("os:_exit", 0)
        await system.news("exit")
        assert await system.order("cpu_time", **of) is None


def test_operators_that_connect_while_there_is_no_cp_wait_for_the_next(tmp_path: Path) -> None:
    with listen_operator(tmp_path) as listener:
        kept = os.dup(listener.fileno())
    with connect_operator(tmp_path) as operator, take_listener(kept) as listener:
        accepted, _ = listener.accept()
        with accepted:
            operator.send(b"hello")
            assert accepted.recv(5) == b"hello"
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_note_that_is_too_large_is_refused_to_who_keeps_it() -> None:
    ours, theirs = link_pair()
    with ours, theirs:
        host = LinuxHost(Link(ours), Restored())
        with pytest.raises(LinkLimit) as caught:
            host.keep("key", {"text": "x" * NOTE_MAX})
        assert (caught.value.what, caught.value.limit) == ("bytes", NOTE_MAX)
        with pytest.raises(LinkLimit, match="descriptors"):
            host.keep("key", {}, [0] * (DESCRIPTORS_MAX + 1))
        text = "x" * (NOTE_MAX - len('{"key":"key","note":{"text":""}}'))
        host.keep("key", {"text": text})
        heard = Link(theirs).receive()
        assert heard is not None
        Holdings().keep(heard[0]["key"], heard[0]["note"], heard[1])


# -- without processes ----------------------------------------------------------------------------------------------


def test_everything_that_is_kept_is_told_in_few_messages_within_the_limits() -> None:
    left, right = link_pair()
    ours, theirs = Link(left), Link(right, most=LENT_MAX)
    kept, expected = Holdings(), []
    for number in range(300):
        note = {"text": "x" * (60_000 if number % 50 == 0 else 1000)}
        kept.keep(f"key {number}", note, [os.dup(0) for _ in range(number % (DESCRIPTORS_MAX + 1))])
        expected.append([f"key {number}", note, number % (DESCRIPTORS_MAX + 1)])
    kept.show(ours)
    assert ours.lends
    told: list[Any] = []
    messages = 0
    while len(told) < 300:
        ours.flush()
        received = theirs.receive()
        assert received is not None
        told += received[0]["all"]
        assert len(received[1]) == sum(count for _, _, count in received[0]["all"]) <= LENT_MAX
        close_all(received[1])
        messages += 1
    assert told == expected
    assert messages < 30
    assert not ours.lends
    for key, _, _ in expected:
        kept.drop(key)
    ours.close()
    theirs.close()


def test_nothing_that_is_kept_needs_no_message() -> None:
    left, right = map(Link, link_pair())
    Holdings().show(left)
    assert not left.waiting
    left.close()
    right.close()


def test_a_crowded_link_is_tried_again_and_nobody_spins() -> None:
    """The kernel refuses further descriptors on their way, and says nothing when there are fewer."""
    ours, theirs = map(Link, link_pair())
    refusals = 3

    class Refusing:
        def __init__(self, real: socket.socket) -> None:
            self.real = real

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def sendmsg(self, *arguments: object) -> int:
            nonlocal refusals
            refusals -= 1
            if refusals >= 0:
                raise OSError(errno.ETOOMANYREFS, "too many references")
            return self.real.sendmsg(*arguments)  # type: ignore[arg-type]

    ours._socket = Refusing(ours._socket)  # type: ignore[assignment]
    loop = Loop(signal.SIGCHLD)
    try:
        loop.add(ours, lambda message, descriptors: None, lambda why: None)
        ours.post({"a": 1})
        assert ours.crowded
        turns, began = 0, time.monotonic()
        while ours.waiting:
            loop.turn()
            turns += 1
        assert turns == refusals + 4
        assert time.monotonic() - began >= CROWDED_SECONDS
        assert theirs.receive() == ({"a": 1}, [])
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ours.close()
        theirs.close()


def test_nucleus_and_saved_systems_are_small() -> None:
    lengths = [len(Path(module.__file__ or "").read_text().splitlines()) for module in (nucleus, saved, holdings)]
    assert sum(lengths) < 600
