"""Idle machines of a real system are paged out, stay so, are back by being called, and still cannot hang unseen."""

import os
import pathlib
import signal
import time
from collections.abc import Callable

import pytest
from tests.systems import Bench
from tests.volumes import root_only, swaps

from retinue.cp.host.figures import look

ECHO = """\
import time
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    async def answer(message):
        if message.body == "hang":
            time.sleep(1000)
        return message.body
    await vm.serve(answer)
"""

HANGING = """\
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("server")
    await vm.ready()
    await path.call("hang")
"""

TOPOLOGY = """
[system]
name = "{name}"
paging = {{ size = "64M" }}
[machines.ECHO]
program = "echo"
idle_page_out = "1s"
watchdog = "2s"
grace = "0s"
[machines.HANGING]
program = "hanging"
start = "on-demand"
restart = "never"
uses.server = "ECHO"
"""

PATIENCE = 30


def until(what: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def private(pid: int) -> int:
    found = look(pid)
    assert found is not None
    return found.private


@root_only
def test_an_idle_machine_rests_and_is_still_looked_after(bench: Bench) -> None:
    """Nothing of it stays in real storage, and it uses no processor; when it is called and hangs, it is found out."""
    before = swaps(bench.folder)
    (bench.folder / "echo.py").write_text(ECHO)
    (bench.folder / "hanging.py").write_text(HANGING)
    bench.file.write_text(TOPOLOGY.format(name=bench.name))
    bench.up()
    assert swaps(bench.folder) != before
    pid = bench.pid_of("ECHO")
    until(lambda: private(pid) < 300 * 1024)
    tasks = pathlib.Path(f"/proc/{pid}/task")
    until(lambda: len(list(tasks.iterdir())) == 1)
    used = cpu(pid)
    time.sleep(1.1)  # more than two beats
    assert cpu(pid) == used
    assert private(pid) < 300 * 1024
    assert bench.run("start", "HANGING").returncode == 0
    until(lambda: any("hung: for 2 s" in each["message"] for each in bench.ask("logs", count=100)["records"]))
    until(lambda: bench.machine("ECHO")["pid"] not in {None, pid})
    assert bench.run("down").returncode == 0
    assert swaps(bench.folder) == before


@root_only
def test_a_volume_is_taken_back_when_everything_is_killed(bench: Bench) -> None:
    """First the control program, which is replaced, then the nucleus."""
    before = swaps(bench.folder)
    (bench.folder / "echo.py").write_text(ECHO)
    (bench.folder / "hanging.py").write_text(HANGING)
    bench.file.write_text(TOPOLOGY.format(name=bench.name))
    bench.up()
    with_volume = swaps(bench.folder)
    first = bench.cp_pid()
    os.kill(first, signal.SIGKILL)
    until(lambda: any("has taken over" in each["message"] for each in bench.ask("logs", count=100)["records"]))
    assert swaps(bench.folder) == with_volume != before
    os.kill(bench.nucleus_pid(), signal.SIGKILL)
    until(lambda: swaps(bench.folder) == before)
    assert not list(bench.folder.rglob("page.img"))


def cpu(pid: int) -> str:
    """Nanoseconds of processor that its only thread has used."""
    return pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]


def test_a_system_of_an_ordinary_user_goes_without(bench: Bench) -> None:
    """There is no swap then, and a record says so."""
    if os.geteuid() == 0:
        pytest.skip("for an ordinary user")
    (bench.folder / "echo.py").write_text(ECHO)
    (bench.folder / "hanging.py").write_text(HANGING)
    bench.file.write_text(TOPOLOGY.format(name=bench.name))
    bench.up()
    assert "only root can have swap" in bench.run("logs").stdout
    assert bench.run("down").returncode == 0
