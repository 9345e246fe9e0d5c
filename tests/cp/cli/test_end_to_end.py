"""The command against real systems: real processes, a real clock, and nothing left behind."""

import json
import os
import pathlib
import pty
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest
from tests.cp.cli.control import control_program, control_programs
from tests.systems import ASKER, CHATTY, FAILING, LIMIT, SERVER, STUBBORN, Bench, open_bench, read_until, wait_for

from retinue.cp.cli import errors
from retinue.cp.host.nucleus import CP_LEAVES_SECONDS


@pytest.fixture(scope="module", autouse=True)
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A system that is ended by force before the first test, while its control program hangs: that takes its time."""
    with open_bench(tmp_path_factory.mktemp("hanging")) as bench:
        bench.write(server=SERVER)
        bench.up()
        os.kill(control_program(bench), signal.SIGSTOP)
        bench.start("down", "--force")
        yield bench


def test_a_system_comes_up_is_looked_at_and_goes_down(bench: Bench) -> None:
    """By commands that are processes of their own, as users have them; most tests have them in their own process."""
    bench.write(asker=ASKER, server=SERVER)
    done = bench.run_apart("up", "-d", str(bench.file))
    assert (done.returncode, done.stdout) == (0, f"{bench.name} is READY: 2 machines\n")
    assert "ASKER is READY" in done.stderr

    listing = json.loads(bench.run_apart("ps", "--json").stdout)
    assert (listing["system"], listing["state"]) == (bench.name, "READY")
    for machine, name in zip(listing["machines"], ("ASKER", "SERVER"), strict=True):
        assert (machine["name"], machine["state"], machine["generation"]) == (name, "READY", 1)
        assert machine["pid"] in bench.processes()
        assert 0 < machine["storage"]["resident"] < machine["storage"]["limit"]
        assert machine["uptime"] >= 0
    table = bench.run("ps").stdout.splitlines()
    assert [line.split()[:2] for line in table] == [["NAME", "STATE"], ["ASKER", "READY"], ["SERVER", "READY"]]

    log = bench.run("logs", "ASKER").stdout
    assert "ASKER | the server says HELLO\n" in log
    assert "ASKER | first\\x1b[2J\\x0dline\n" in log or "ASKER | first\\x1b[2J\n" in log
    assert "\x1b" not in log
    records = [json.loads(line) for line in bench.run("logs", "-n", "all", "--json").stdout.splitlines()]
    assert [record["seq"] for record in records] == sorted(record["seq"] for record in records)
    assert "the server says HELLO" in [record["message"] for record in records]

    unknown = bench.run_apart("logs", "ASKR")
    assert unknown.returncode == errors.USAGE
    assert unknown.stderr.startswith(f"retinue: {bench.name} has no machine ASKR; did you mean ASKER?\n  ")

    again = bench.run("up", str(bench.file))
    assert again.returncode == errors.RUNS_ALREADY
    assert f"the system {bench.name} is already running (nucleus pid {bench.nucleus_pid()})" in again.stderr
    assert f"  stop it first: retinue down --system {bench.name}\n" in again.stderr

    down = bench.run_apart("down")
    assert down.returncode == 0, down.stderr
    assert f"{bench.name} has stopped\n" in down.stderr
    bench.assert_gone()

    nothing = bench.run_apart("ps")
    assert nothing.returncode == errors.NO_SYSTEM
    assert "it was stopped in order" in nothing.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_foreground_in_order(bench: Bench, number: signal.Signals) -> None:
    bench.write(asker=ASKER, server=SERVER)
    process = bench.start("up", str(bench.file))
    read_until(process.stderr, lambda line: "2 machines. Ctrl-C" in line)
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert "ASKER  | the server says HELLO\n" in out
    assert "ASKER  | goodbye\n" in out
    assert "ASKER is STOPPED" in err
    assert err.index("ASKER is STOPPED") < err.index("SERVER is STOPPING")
    assert err.endswith(f"{bench.name} has stopped\n")
    bench.assert_gone()


def test_a_second_interrupt_forces(bench: Bench) -> None:
    bench.write(stubborn=STUBBORN)
    process = bench.start("up", str(bench.file))
    read_until(process.stderr, lambda line: "1 machine. Ctrl-C" in line)
    process.send_signal(signal.SIGINT)
    read_until(process.stderr, lambda line: "STUBBORN is STOPPING" in line)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == errors.INTERRUPTED
    assert f"retinue: {bench.name} was stopped by force" in err
    bench.assert_gone()


def test_an_interrupt_during_the_start_stops_too(bench: Bench) -> None:
    bench.write(waiting="import trio\nasync def main(vm):\n    await vm.stopping.wait()\n")
    process = bench.start("up", "-d", str(bench.file))
    wait_for(lambda: (bench.runtime / bench.name / "operator.sock").exists())
    process.send_signal(signal.SIGINT)
    # The control program leaves by itself, also in the middle of the test of the seal: nobody has to wait that out.
    out, err = process.communicate(timeout=CP_LEAVES_SECONDS)
    assert (process.returncode, out) == (errors.INTERRUPTED, ""), err
    assert f"retinue: {bench.name} was stopped before it was ready\n" in err
    bench.assert_gone()


@pytest.mark.parametrize("options", [["-d"], []])
def test_a_machine_that_fails_to_start_is_told_with_its_last_lines(bench: Bench, options: list[str]) -> None:
    bench.write(failing=FAILING, server=SERVER)
    done = bench.run_apart("up", *options, str(bench.file))
    assert done.returncode == errors.FAILED
    problem = done.stderr[done.stderr.index("retinue: ") :].splitlines()
    assert problem[0].startswith(f"retinue: {bench.name} did not start: FAILING: ")
    assert "ValueError: no such luck" in problem[0]
    assert "    FAILING | so far so good" in problem
    bench.assert_gone()


def test_a_config_that_the_program_does_not_take_is_an_error_of_the_topology(bench: Bench) -> None:
    source = (
        "import attrs\n\n@attrs.frozen\nclass Config:\n    port: int\n\nasync def main(vm):\n    await vm.ready()\n"
    )
    bench.write(server=source)
    bench.file.write_text(bench.file.read_text() + 'config.port = "eighty"\n')
    done = bench.run("up", "-d", str(bench.file))
    assert done.returncode == errors.WRONG_TOPOLOGY
    assert "it.toml:5: [machines.SERVER] config.port" in done.stderr
    bench.assert_gone()


def test_a_disk_that_cannot_be_made_is_told_with_its_place(bench: Bench) -> None:
    bench.write(server=SERVER)
    bench.file.write_text(bench.file.read_text() + "disks.a = {}\n")
    state = bench.folder / "state" / "retinue" / bench.name
    state.mkdir(mode=0o700, parents=True)
    (state / "disks").touch()
    done = bench.run("up", "-d", str(bench.file))
    assert done.returncode == errors.CANNOT_CREATE
    assert f"the disk {state / 'disks' / 'SERVER' / 'a'} cannot be made: Not a directory" in done.stderr
    bench.assert_gone()


def test_the_death_of_the_nucleus_is_told_and_cleaned_up(bench: Bench) -> None:
    bench.write(server=SERVER)
    process = bench.start("up", str(bench.file))
    read_until(process.stderr, lambda line: "1 machine. Ctrl-C" in line)
    os.kill(bench.nucleus_pid(), signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == errors.FAILED
    assert f"retinue: {bench.name} ended: its nucleus was killed by SIGKILL" in err
    wait_for(lambda: not bench.processes())
    bench.assert_gone()


def test_a_nucleus_killed_behind_our_back_is_cleaned_up_by_the_next_command(bench: Bench) -> None:
    bench.write(server=SERVER)
    bench.up()
    os.kill(bench.nucleus_pid(), signal.SIGKILL)
    wait_for(lambda: not bench.processes())
    done = bench.run("ps")
    assert done.returncode == errors.NO_SYSTEM
    assert "its nucleus was killed" in done.stderr
    bench.assert_gone()


@pytest.mark.parametrize("foreground", [True, False])
def test_the_death_of_all_control_programs_is_told(bench: Bench, foreground: bool) -> None:
    """One that dies has a successor; when none of them lives for long the system ends, with everything in it."""
    bench.write(server=SERVER)
    if foreground:
        process = bench.start("up", str(bench.file))
        read_until(process.stderr, lambda line: "1 machine. Ctrl-C" in line)
    else:
        bench.up()
    nucleus = bench.nucleus_pid()
    while nucleus in bench.processes():
        with suppress(OSError, IndexError):  # there is none just now, or it is gone already
            for pid in control_programs(bench):
                os.kill(pid, signal.SIGKILL)
    if foreground:
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == errors.FAILED
        assert f"retinue: {bench.name} ended: " in err
    wait_for(lambda: not bench.processes())
    done = bench.run("ps")
    assert done.returncode == errors.NO_SYSTEM
    assert "its control program died" in done.stderr
    bench.assert_gone()


class Reader(NamedTuple):
    """A ``retinue logs --follow`` that has ended."""

    lines: list[str]
    status: int
    errors: str


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reader]]:
    """Those of one system: who stays to its end, who leaves at once, and who is interrupted."""
    with open_bench(tmp_path_factory.mktemp("readers")) as bench:
        bench.write(chatty=CHATTY)
        bench.up()
        staying = bench.start("logs", "CHATTY", "-f", "-n", "all", "--json")
        leaving, interrupted = (bench.start("logs", "-f", "-n", "all") for _ in range(2))
        assert leaving.stdout is not None
        leaving.stdout.readline()
        leaving.stdout.close()
        lines = {each: read_until(each.stdout, lambda line: "number 499" in line) for each in (staying, interrupted)}
        interrupted.send_signal(signal.SIGINT)
        interrupted.wait(LIMIT)
        down = bench.start("down")  # it writes more, so that the absence of a reader is noticed
        leaving.stdout = None
        found = {}
        for name, process in (("staying", staying), ("leaving", leaving), ("interrupted", interrupted)):
            out, err = process.communicate(timeout=LIMIT)
            found[name] = Reader([*lines.get(process, []), *(out or "").splitlines()], process.returncode, err)
        down.communicate(timeout=LIMIT)
        assert down.returncode == 0
        bench.assert_gone()
        yield found


def test_logs_follow_in_order_to_the_end(readers: dict[str, Reader]) -> None:
    reader = readers["staying"]
    messages = [json.loads(line).get("message", line) for line in reader.lines]
    assert [message for message in messages if message.startswith("{")] == []
    numbers = [message for message in messages if message.startswith("number")]
    assert numbers == [f"number {number}" for number in range(1000)]
    assert reader.status == 0
    assert re.fullmatch(r"-- T[A-Z]{7} has ended --\n", reader.errors)


def test_logs_for_a_reader_that_leaves_early(readers: dict[str, Reader]) -> None:
    assert (readers["leaving"].status, readers["leaving"].errors) == (errors.BROKEN_PIPE, "")


def test_an_interrupt_of_logs_is_quiet(readers: dict[str, Reader]) -> None:
    assert (readers["interrupted"].status, readers["interrupted"].errors.strip()) == (errors.INTERRUPTED, "")


def test_down_by_force_of_a_healthy_system(bench: Bench) -> None:
    bench.write(stubborn=STUBBORN)
    bench.up()
    done = bench.run("down", "--force")
    assert (done.returncode, done.stderr) == (0, f"{bench.name} has stopped\n")
    bench.assert_gone()


def test_two_systems_run_side_by_side(bench: Bench, tmp_path: pathlib.Path) -> None:
    (tmp_path / "second").mkdir()
    with open_bench(tmp_path / "second") as other:
        other.environ, other.runtime = bench.environ, bench.runtime
        for each in (bench, other):
            each.write(server=SERVER)
            each.up()
        names = sorted([bench.name, other.name])
        unclear = bench.run("ps")
        assert unclear.returncode == errors.USAGE
        assert unclear.stderr.startswith(f"retinue: several systems are running: {', '.join(names)}\n  choose one: ")
        for args in (["--system", other.name, "ps", "--json"], ["ps", "--json", "--system", other.name]):
            assert json.loads(bench.run(*args).stdout)["system"] == other.name
        bench.environ["RETINUE_SYSTEM"] = bench.name
        assert json.loads(bench.run("ps", "--json").stdout)["system"] == bench.name
        assert bench.run("down", "--system", other.name).returncode == 0
        assert other.processes() == {}
        assert json.loads(bench.run("ps", "--json").stdout)["state"] == "READY"
        assert bench.run("down").returncode == 0
        bench.assert_gone()


def test_state_option_keeps_everything_in_one_folder(bench: Bench, tmp_path: pathlib.Path) -> None:
    bench.write(server=SERVER)
    state = tmp_path / ("deep-" * 20) / "state"
    assert bench.run("up", "-d", str(bench.file), "--state", str(state)).returncode == 0
    assert bench.run("ps").returncode == errors.NO_SYSTEM
    bench.environ["RETINUE_STATE"] = str(state)
    assert json.loads(bench.run("ps", "--json").stdout)["state"] == "READY"
    assert bench.run("down").returncode == 0
    assert sorted(os.listdir(state)) == ["archive.json", "deaths", "end.json", "nucleus.log"]
    bench.assert_gone()


def test_the_live_display_on_a_terminal(bench: Bench) -> None:
    bench.write(asker=ASKER, server=SERVER)
    ours, theirs = pty.openpty()
    bench.environ |= {"TERM": "xterm", "COLUMNS": "70"}
    try:
        process = bench.start("up", str(bench.file), stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = _read_terminal(ours, b"Ctrl-C stops it.")
        process.send_signal(signal.SIGINT)
        shown += _read_terminal(ours, f"{bench.name} has stopped".encode())
        shown = re.sub("\x1b\\[[0-9;]*m", "", shown)
        assert process.wait(LIMIT) == 0
    finally:
        os.close(ours)
    assert "● ASKER   READY" in shown
    assert "● SERVER  READY" in shown
    assert "○ SERVER  STOPPED" in shown
    assert "the server says HELLO" in shown
    assert "first\\x1b[2J" in shown  # a machine does not clear the operator's screen
    assert "\x1b[2J" not in shown
    bench.assert_gone()


def _read_terminal(descriptor: int, until: bytes) -> str:
    """What is shown on the terminal up to a text; its reader waits in the kernel, bounded by the process's own end."""
    data = b""
    while until not in data:
        try:
            data += os.read(descriptor, 65536)
        except OSError:  # EIO: the other side is closed
            pytest.fail(f"the terminal ended with {data[-300:]!r}")
    return data.decode()


def test_down_by_force_ends_a_control_program_that_hangs(hanging: Bench) -> None:
    (down,) = hanging.started
    _, err = down.communicate(timeout=LIMIT)
    assert down.returncode == 0, err
    assert "its control program does not answer; the nucleus" in err
    wait_for(lambda: not hanging.processes())
    hanging.assert_gone()
