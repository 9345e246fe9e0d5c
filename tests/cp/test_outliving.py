"""What outlives what, with real processes: machines their control program, callers a machine, and nobody a hang."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from tests.systems import Bench, open_bench, wait_for

CALLER = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("server")
    await vm.ready()
    number = 0
    while not vm.stopping.is_set():
        answer = await path.call(number)
        assert answer == number, (answer, number)
        print("answered", number)
        number += 1
        await trio.sleep(0.005)
"""

SERVER = """\
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    async def answer(message):
        return message.body
    await vm.serve(answer)
"""

BLOCKED = """\
import time
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    wait_for_ever()

def wait_for_ever():
    time.sleep(1000)
"""

BUSY = """\
import time
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    end = time.monotonic() + 1.5  # longer than its watchdog waits
    while time.monotonic() < end:
        pass
    print("computed")
    await vm.stopping.wait()
"""


def listing(bench: Bench) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in bench.ask("ps")["machines"]}


def answered(bench: Bench) -> list[int]:
    """The numbers that the caller has told, in the order of its records."""
    messages = [record["message"] for record in bench.records("CALLER")]
    return [int(message.removeprefix("answered ")) for message in messages if message.startswith("answered ")]


def check_answered(bench: Bench, first: int) -> int:
    """Every call from the ``first`` on was answered, once and in order; the last of them. (Memory holds 2,000.)"""
    numbers = answered(bench)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert numbers[0] <= first < numbers[-1]
    return numbers[-1]


def write_calling(bench: Bench, replace: str) -> None:
    bench.write(caller=CALLER, server=SERVER)
    text = bench.file.read_text().replace('"caller"', '"caller"\nuses.server = "SERVER"')
    bench.file.write_text(text + f'replace = "{replace}"\n')


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A system in which one machine calls another all the time, for several tests."""
    with open_bench(tmp_path_factory.mktemp("calling")) as bench:
        write_calling(bench, "overlap")
        bench.up()
        wait_for(lambda: answered(bench))
        yield bench
        assert bench.run("down").returncode == 0
        bench.bury()
        bench.assert_gone()


def test_machines_paths_and_records_outlive_the_control_program(calling: Bench) -> None:
    """Killed over and over, also before another one waits: no machine notices, no record is missing."""
    before, first = listing(calling), answered(calling)[-1]
    for _ in range(3):
        killed = calling.cp_pid()
        seen = answered(calling)[-1]
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda seen=seen: answered(calling)[-1] > seen)  # type: ignore[misc]
        assert calling.cp_pid() != killed
    after = listing(calling)
    assert {name: each["pid"] for name, each in after.items()} == {name: each["pid"] for name, each in before.items()}
    assert check_answered(calling, first) - first > 30


def test_an_upgrade_is_noticed_by_nobody(calling: Bench) -> None:
    before, program, first = listing(calling), calling.cp_pid(), answered(calling)[-1]
    done = calling.run("upgrade")
    assert done.returncode == 0, done.stderr
    assert calling.cp_pid() != program
    assert {name: each["pid"] for name, each in listing(calling).items()} == {
        name: each["pid"] for name, each in before.items()
    }
    wait_for(lambda: answered(calling)[-1] > first)
    check_answered(calling, first)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A system with a machine that blocks and one that computes, both longer than the watchdog waits."""
    with open_bench(tmp_path_factory.mktemp("watched")) as bench:
        bench.write(blocked=BLOCKED, busy=BUSY)
        text = bench.file.read_text()
        for name in ("blocked", "busy"):
            text = text.replace(f'program = "{name}"\n', f'program = "{name}"\nwatchdog = "1s"\n')
        bench.file.write_text(text)
        bench.up()
        yield bench


def test_a_machine_that_blocks_is_ended_and_its_certificate_says_where(watched: Bench) -> None:
    wait_for(lambda: listing(watched)["BLOCKED"]["generation"] > 1)
    done = watched.run("why", "BLOCKED", "--json")
    assert done.returncode == 0, done.stderr
    certificate = json.loads(done.stdout)
    assert certificate["cause"] == "watchdog"
    assert "wait_for_ever" in certificate["traceback"]


def test_a_machine_that_computes_is_left_alone(watched: Bench) -> None:
    wait_for(lambda: "computed" in [record["message"] for record in watched.records("BUSY")])
    assert listing(watched)["BUSY"]["generation"] == 1


def check_replaced(bench: Bench) -> None:
    before, first = listing(bench), answered(bench)[-1]
    for _ in range(3):
        done = bench.run("replace", "SERVER")
        assert done.returncode == 0, done.stderr
    after = listing(bench)
    assert after["CALLER"]["pid"] == before["CALLER"]["pid"]
    assert after["SERVER"]["generation"] == before["SERVER"]["generation"] + 3
    wait_for(lambda: answered(bench)[-1] > first)
    check_answered(bench, first)
    edges = json.loads(bench.run("ps", "--edges", "--json").stdout)["edges"]
    (edge,) = [each for each in edges if each["to"] == "SERVER"]
    assert edge["meters"]["from"]["redelivered"] == 0


def test_a_machine_that_is_replaced_in_overlap_answers_every_call_once(calling: Bench) -> None:
    check_replaced(calling)


def test_a_machine_that_is_replaced_and_stopped_first_answers_every_call_once(bench: Bench) -> None:
    write_calling(bench, "stop-first")
    bench.up()
    wait_for(lambda: answered(bench))
    check_replaced(bench)
