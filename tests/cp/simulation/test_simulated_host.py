"""The simulated host behaves as the Linux one: births, deaths, and what outlives a control program."""

import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.cp.host.errors import LinkLimit, SpawnFailed
from retinue.cp.host.interface import Birth, Exit, Host
from retinue.cp.simulation.faults import Flaws
from retinue.cp.simulation.host import SimulatedHost
from retinue.cp.simulation.nucleus import Nucleus, open_nucleus
from retinue.pipes import Path, SocketTransport, open_path, socket_pair

PROGRAM = "retinue.testing.fakes"
# No process has a larger number (proc(5), /proc/sys/kernel/pid_max).
PID_MAX = 1 << 22


def a_program() -> dict[str, ModuleType]:
    """A module whose main says hello, is ready, and waits for its end."""
    module = ModuleType(PROGRAM)

    async def main(vm: Any) -> None:
        print("hello from", vm.name)
        await vm.ready()
        await vm.stopping.wait()

    vars(module)["main"] = main
    return {PROGRAM: module}


@asynccontextmanager
async def nucleus() -> AsyncIterator[Nucleus]:
    async with open_nucleus(1, modules={"A": a_program()}) as made:
        yield made


def birth(machine: str = "A", generation: int = 1) -> Birth:
    return Birth(machine, generation, network=False, storage=1 << 25, disks=(), code=())


class Cradle:
    """What a control program has of a machine: its ends of the two sockets."""

    def __init__(self) -> None:
        self.control, self.control_end = socket_pair()
        self.log, self.log_end = socket_pair()

    def ends(self) -> Sequence[int]:
        return self.control_end.fileno(), self.log_end.fileno()

    def close(self) -> None:
        for each in (self.control, self.control_end, self.log, self.log_end):
            each.close()

    def records(self) -> list[list[Any]]:
        """What the machine has said until now."""
        import msgpack

        found: list[list[Any]] = []
        while True:
            try:
                packet = self.log.recv(1 << 16)
            except BlockingIOError:
                return found
            if not packet:
                return found
            found.append(msgpack.unpackb(packet)[2])


@asynccontextmanager
async def bring_up(host: Host, cradle: Cradle, generation: int = 1) -> AsyncIterator[Path]:
    """Do what a life does until the program has said that it is ready."""
    await host.spawn(birth(generation=generation), cradle.ends())
    async with open_path(SocketTransport(cradle.control.dup()), name="A") as path:
        arguments = {"name": "A", "kind": "program", "program": PROGRAM, "config": {}, "edges": {}, "disks": {}}
        await path.call(["load", {**arguments, "threads": 1, "secrets": {}}])
        await path.call(["start", {}])
        ready = await path.receive()
        assert ready.body == ["ready", {}]
        await ready.reply(None)
        yield path


async def run(control_program: Any) -> Nucleus:
    """Run one, which ends the system when it returns."""

    async def whole(host: SimulatedHost) -> None:
        await control_program(host, made)
        host.end("finished", "it has returned", 0)

    async with nucleus() as made:
        await made.run(whole)
        return made


async def test_machine_lives_until_it_is_told_to_stop() -> None:
    """Born with a number that no process has; exit status 0 when its program returns, told exactly once."""

    async def cp(host: SimulatedHost, _: Nucleus) -> None:
        cradle = Cradle()
        async with bring_up(host, cradle) as path:
            pid = host.pid("A", 1)
            assert pid > PID_MAX
            with pytest.raises(FileNotFoundError):
                os.stat(f"/proc/{pid}")
            await path.call(["stop", {}])
            exit = await host.exits.receive()
        assert exit == Exit("A", 1, pid, 0, 0.0, 0.0, 0, None)
        assert host.pid("A", 1) == 0
        assert [record[3] for record in cradle.records()] == ["hello from A"]
        cradle.close()
        with pytest.raises(trio.WouldBlock):
            host.exits.receive_nowait()
        host.signal("A", 1, signal.SIGKILL)  # no error

    before = descriptors()
    await run(cp)
    assert_none_left(before)


async def test_killed_machine_leaves_what_it_had_said() -> None:
    """SIGKILL: wait status 9; the log is there to the last word, then both sockets end."""

    async def cp(host: SimulatedHost, _: Nucleus) -> None:
        cradle = Cradle()
        async with bring_up(host, cradle):
            cradle.control_end.close()
            cradle.log_end.close()
            host.signal("A", 1, signal.SIGKILL)
            exit = await host.exits.receive()
        assert os.waitstatus_to_exitcode(exit.status) == -signal.SIGKILL
        assert [record[3] for record in cradle.records()] == ["hello from A"]
        await trio.testing.wait_all_tasks_blocked()
        assert cradle.log.recv(1) == b""
        cradle.close()

    await run(cp)


async def test_stopped_machine_neither_reads_nor_beats(autojump_clock: trio.testing.MockClock) -> None:
    """SIGSTOP and SIGCONT: what was asked meanwhile is answered afterwards. A hung one goes on beating."""

    async def cp(host: SimulatedHost, nucleus: Nucleus) -> None:
        cradle = Cradle()
        async with bring_up(host, cradle) as path:
            await path.call(["watch", {"every": 1.0}])
            cradle.records()
            await trio.sleep(2.5)
            assert [beat[:2] for beat in cradle.records()] == [["heartbeat", 1], ["heartbeat", 2]]
            host.signal("A", 1, signal.SIGSTOP)
            with trio.move_on_after(5) as late:
                await path.call(["meters", {}])
            assert late.cancelled_caught
            assert cradle.records() == []
            host.signal("A", 1, signal.SIGCONT)
            with trio.fail_after(1):
                await path.call(["meters", {}])
            machine = nucleus.present("A")
            assert machine is not None
            machine.hang()
            cradle.records()
            await trio.sleep(3.1)
            beats = cradle.records()
            assert [beat[1] for beat in beats] == [beats[0][1]] * 3, "it makes no progress"
            assert 2 <= beats[-1][3] <= 3, "and tells for how long"
            host.signal("A", 1, signal.SIGUSR1)
            assert "Runtime.obey" in cradle.log.recv(1 << 16).decode()
        cradle.close()

    await run(cp)


@pytest.mark.parametrize("number", [11, 12])
async def test_flawed_birth_fails_as_a_real_one(number: int) -> None:
    """What the host refuses is refused with its error; the next birth is another one."""

    async def cp(host: SimulatedHost, nucleus: Nucleus) -> None:
        nucleus.faults.plan("A", Flaws(unborn=number))
        cradle = Cradle()
        with pytest.raises(SpawnFailed) as caught:
            await host.spawn(birth(), cradle.ends())
        assert (caught.value.machine, caught.value.errno) == ("A", number)
        assert (await host.spawn(birth(generation=2), cradle.ends())).seal == ()
        cradle.close()

    await run(cp)


async def test_what_is_kept_outlives_the_control_program() -> None:
    """Notes come back as JSON has them, descriptors as duplicates, machines as residents; exits until buried."""
    told: list[Any] = []
    cradle = Cradle()
    left, right = socket.socketpair()

    async def cp(host: SimulatedHost) -> None:
        found = host.restored
        told.append(found)
        if found.first:
            assert not found.residents
            assert not found.kept
            host.keep("note", {"a": (1, 2)})
            host.keep("gone", {})
            host.keep("end", {"of": "pair"}, [right.fileno()])
            host.keep("note", {"a": (1, 3)})
            host.drop("gone")
            host.drop("never")
            await host.spawn(birth(generation=1), cradle.ends())
            await host.spawn(birth(generation=2), cradle.ends())
            host.signal("A", 1, signal.SIGKILL)
            assert (await host.exits.receive()).generation == 1
            made.kill_control_program()
            await trio.sleep_forever()
        exit = host.exits.receive_nowait()
        assert (exit.machine, exit.generation) == ("A", 1)
        if not host.restored.died:
            host.buried("A", 1)
            host.end("finished", "", 0)
            return
        (descriptor,) = found.kept["end"].descriptors
        with socket.socket(fileno=descriptor) as end:
            end.send(b"x")
        host.hand_over()
        await trio.sleep_forever()

    before = descriptors()
    with left, right:
        async with nucleus() as made:
            assert (await made.run(cp)).how == "finished"
            assert made.unburied.keys() == {("A", 2)}, "it was killed at the end, and nobody has heard of that"
        assert left.recv(9) == b"x"
    cradle.close()
    _, second, third = told
    assert list(second.kept) == ["note", "end"]
    assert second.kept["note"].note == {"a": [1, 3]}
    assert [list(each.residents) for each in told] == [[], [("A", 2)], [("A", 2)]]
    assert [each.died for each in told] == ["", "the control program was killed by SIGKILL", ""]
    for each in third.kept.values():
        each.close()
    assert len(descriptors() - before) <= 1  # the console of nobody: the socket of this list itself


async def test_control_programs_that_never_come_up_end_the_system() -> None:
    """Three in a row; one that has asked for a spare begins the count anew."""
    count = 0

    async def cp(host: SimulatedHost) -> None:
        nonlocal count
        count += 1
        if count == 2:
            host.spare()
        made.kill_control_program()
        await trio.sleep_forever()

    async with nucleus() as made:
        end = await made.run(cp)
    assert (end.how, end.exit_code, count) == ("cp-died", 1, 4)


async def test_what_is_kept_has_the_limits_of_the_link() -> None:
    """As much as the real one holds, and no more."""

    async def cp(host: SimulatedHost, _: Nucleus) -> None:
        host.keep("k", {"text": "x" * 60_000})
        with pytest.raises(LinkLimit):
            host.keep("k", {"text": "x" * 70_000})
        with pytest.raises(LinkLimit):
            host.keep("k", {}, [0] * 5)

    await run(cp)


async def test_everything_of_a_killed_control_program_is_closed_without_a_word() -> None:
    """Who speaks to it finds the end of a descriptor, not a farewell; and the next one has the same name."""
    ours, theirs = socket_pair()
    made: Nucleus

    async def cp(host: SimulatedHost) -> None:
        if not host.restored.first:
            host.end("finished", "", 0)
            return
        async with open_path(SocketTransport(socket.socket(fileno=theirs.detach())), name="cp") as path:
            await path.send("hello")
            await trio.sleep_forever()

    async with nucleus() as made, open_path(SocketTransport(ours), name="outside") as path:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run, cp)
            assert (await path.receive()).body == "hello"
            made.kill_control_program()
            await path.wait_severed()
        assert path.severed is not None
        assert "the other end is gone" in str(path.severed)


def test_report_says_that_it_is_simulated() -> None:
    """Nobody can take it for a host that seals machines."""
    host = SimulatedHost(None, None)  # type: ignore[arg-type]
    assert host.seal_report() == []
    assert all("simulated" in limit.why for limit in host.limits_report() if limit.limit != "storage")
    assert json.dumps([limit.mechanism for limit in host.limits_report()])
