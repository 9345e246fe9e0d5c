"""What is said of a system that does not run here, and the note that the control program leaves for that."""

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from tests.command import run_here
from tests.systems import ASKER, FAILING, LIMIT, SERVER, Bench, open_bench, wait_for

from retinue.cp.archive import NAME, Archive, read_archive
from retinue.cp.cli import errors
from retinue.cp.cli.left import RunsElsewhere
from retinue.cp.runtime import Running

SYSLOG = '[machines.SYSLOG]\nprogram = "retinue.services.syslog"\ndisks.a = {}\n'


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[Bench]:
    with open_bench(tmp_path) as made:
        yield made


def state_of(bench: Bench) -> pathlib.Path:
    return bench.folder / "state" / "retinue" / bench.name


def note_of(bench: Bench) -> Archive:
    note = read_archive(state_of(bench))
    assert note is not None
    return note


def complaints(bench: Bench) -> list[str]:
    return [each["message"] for each in bench.records("CP") if NAME in each["message"]]


# -- the note is a convenience -----------------------------------------------------------------------------------------


def test_system_starts_and_changes_although_the_note_cannot_be_written(bench: Bench) -> None:
    """One record says what to do; and the note is written as soon as that is done."""
    bench.write(asker=ASKER, server=SERVER)
    blocked = state_of(bench) / f"{NAME}.new"
    blocked.mkdir(parents=True)
    bench.up()
    (state_of(bench) / NAME).mkdir()  # nor could it be read
    whole = bench.file.read_text()
    for machine in ("MORE", "STILL"):
        whole += f'[machines.{machine}]\nprogram = "server"\n'
        bench.file.write_text(whole)
        done = bench.run("apply", str(bench.file))
        assert done.returncode == 0, done.stderr
    (told,) = complaints(bench)
    assert told.startswith(f"{state_of(bench) / NAME} cannot be written (Is a directory), and retinue logs may not ")
    assert told.endswith(f"look at it: ls -ld {blocked}")
    blocked.rmdir()
    (state_of(bench) / NAME).rmdir()
    bench.file.write_text(whole + '[machines.LAST]\nprogram = "server"\n')
    assert bench.run("apply", str(bench.file)).returncode == 0
    assert note_of(bench).machines == ("ASKER", "SERVER", "MORE", "STILL", "LAST")
    assert bench.run("down").returncode == 0
    bench.assert_gone()


@pytest.fixture
def small(bench: Bench) -> Iterator[pathlib.Path]:
    """The place of the state folders is a file system of its own, with little room."""
    place = bench.folder / "state"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "retinue-test", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        for pid in bench.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: subprocess.run(["umount", str(place)], capture_output=True).returncode == 0)


def fill(file: pathlib.Path) -> None:
    with file.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def test_system_starts_and_changes_on_a_full_disk(bench: Bench, small: pathlib.Path) -> None:
    bench.write(asker=ASKER, server=SERVER)
    with pytest.raises(OSError, match="No space left"):
        fill(small / "ballast")
    bench.up()
    bench.file.write_text(bench.file.read_text() + '[machines.MORE]\nprogram = "server"\n')
    done = bench.run("apply", str(bench.file))
    assert done.returncode == 0, done.stderr
    assert {each["name"] for each in bench.ask("ps")["machines"]} == {"ASKER", "SERVER", "MORE"}
    (told,) = complaints(bench)
    assert "cannot be written (No space left on device)" in told
    assert told.endswith("; make room there")
    assert not (state_of(bench) / f"{NAME}.new").exists()
    bench.run("down")


def test_note_says_when_the_run_began_and_is_written_when_something_else_changes(bench: Bench) -> None:
    bench.write(asker=ASKER, server=SERVER)
    before = time.time()
    bench.up()
    first = note_of(bench)
    assert before <= first.time <= time.time()
    assert first.runtime == str(bench.runtime / bench.name)
    written = (state_of(bench) / NAME).stat()
    whole = bench.file.read_text()
    bench.file.write_text(whole + "share = 200\n")
    assert bench.run("apply", str(bench.file)).returncode == 0
    assert os.path.samestat(written, (state_of(bench) / NAME).stat())
    pid = bench.cp_pid()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: bench.ask("status")["cp_pid"] != pid)
    bench.file.write_text(whole + '[machines.MORE]\nprogram = "server"\n')
    assert bench.run("apply", str(bench.file)).returncode == 0
    assert note_of(bench).machines == ("ASKER", "SERVER", "MORE")
    assert note_of(bench).time == first.time
    assert bench.run("down").returncode == 0
    bench.up()
    assert note_of(bench).time > first.time
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_start_that_fails_does_not_hide_the_records_of_the_run_before(bench: Bench) -> None:
    bench.write(server=SERVER)
    text = bench.file.read_text().replace("\n[machines", '\nsyslog = "SYSLOG"\n[machines', 1)
    bench.file.write_text(text + SYSLOG)
    bench.up()
    assert bench.run("down").returncode == 0
    stored = bench.run("logs", "-n", "all", "--json")
    assert "is READY" in stored.stdout
    bench.write(failing=FAILING)
    bench.file.write_text(bench.file.read_text() + 'restart = "never"\nessential = true\n')
    assert bench.run("up", "-d", str(bench.file)).returncode == errors.FAILED
    now = bench.run("logs", "-n", "all", "--json")
    assert (now.returncode, now.stdout) == (0, stored.stdout)
    what = "these are the records that SYSLOG has stored, of runs before the last, which has stored none"
    assert now.stderr.startswith(f"-- {bench.name} is not running: {what}")
    bench.assert_gone()


# -- a system that runs elsewhere --------------------------------------------------------------------------------------


def test_system_that_runs_is_not_said_to_be_down(bench: Bench) -> None:
    """By whoever has another environment than those who started it; and the command that is named finds it."""
    bench.write(server=SERVER)
    bench.up()
    elsewhere = bench.folder / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    state = state_of(bench)
    other = bench.environ | {"XDG_RUNTIME_DIR": str(elsewhere)}
    for environ, *args in (
        (other, "logs"),
        (other, "logs", "SERVER", "--system", bench.name),
        (other, "logs", "-f"),
        (bench.environ, "logs", "--state", str(state)),
        (bench.environ | {"RETINUE_STATE": str(state)}, "logs"),
    ):
        done = run_here(tuple(args), environ, LIMIT)
        assert (done.returncode, done.stdout) == (errors.NO_SYSTEM, "")
        problem, cure = done.stderr.splitlines()
        where = f"{bench.name} is running (nucleus pid {bench.nucleus_pid()}) with its runtime folder "
        assert problem.startswith(f"retinue: {where}{bench.runtime / bench.name}, not in ")
        assert way(cure, environ).returncode == 0
    # Another system of that name, at the place of the first, is another system.
    copy = bench.folder / "other" / "retinue" / bench.name
    shutil.copytree(state, copy)
    done = run_here(("logs", "--system", bench.name), other | {"XDG_STATE_HOME": str(bench.folder / "other")}, LIMIT)
    assert "is not running" in done.stderr
    assert bench.run("down").returncode == 0
    assert "is not running" in run_here(("logs",), other, LIMIT).stderr
    bench.assert_gone()


def test_system_of_a_folder_of_its_own_is_found_where_it_is(bench: Bench) -> None:
    bench.write(server=SERVER)
    state = state_of(bench)
    assert bench.run("up", "-d", "--state", str(state), str(bench.file)).returncode == 0
    done = bench.run("logs")
    assert done.returncode == errors.NO_SYSTEM
    problem, cure = done.stderr.splitlines()
    assert f" with its runtime folder {state / 'run'}, not in {bench.runtime}" in problem
    assert cure.endswith(f" --state {state}")
    assert way(cure, bench.environ).returncode == 0
    assert bench.run("down", "--state", str(state)).returncode == 0
    bench.assert_gone()


def test_way_to_a_system_that_was_started_without_a_runtime_directory() -> None:
    running = Running("SHOP", pathlib.Path("/tmp/retinue-7/SHOP"))
    error = RunsElsewhere(running, pathlib.Path("/home/ann/state/retinue/SHOP"), pathlib.Path("/run/user/7/retinue"))
    assert error.cure == "ask it there: env -u RETINUE_STATE XDG_RUNTIME_DIR='' retinue logs --system SHOP"
    odd = RunsElsewhere(Running("S; reboot", running.runtime), pathlib.Path("/state"), pathlib.Path("/run/user/7"))
    assert (odd.cure or "").endswith(" retinue logs --system 'S; reboot'")


def way(cure: str, environ: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """What the command does that the last line names."""
    words = shlex.split(cure.partition(": ")[2])
    environ = dict(environ)
    if words[0] == "env":
        del words[0], words[words.index("-u") : words.index("-u") + 2]
        environ.pop("RETINUE_STATE", None)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environ[name] = value
    assert words.pop(0) == "retinue"
    return run_here(tuple(words), environ, LIMIT)


def test_copy_beside_a_state_folder_is_no_system(bench: Bench) -> None:
    state = state_of(bench)
    state.mkdir(parents=True)
    Archive("SHOP", 1.0, ("OLD",)).write(state)
    assert "no system is running" in bench.run("logs").stderr
    assert "SHOP is not running" in bench.run("logs", "--state", str(state)).stderr
    nameless = bench.run("logs", "--system", "../X")
    assert nameless.returncode == errors.NO_SYSTEM
    assert nameless.stderr.startswith("retinue: no system ../X is running\n")


# -- completion --------------------------------------------------------------------------------------------------------


def test_names_are_completed_without_what_only_a_conversation_needs(bench: Bench) -> None:
    state = state_of(bench)
    state.mkdir(parents=True)
    Archive(bench.name, 1.0, ("SHOP", "SYSLOG", "TILL@2")).write(state)
    code = (
        "import sys; from retinue.cp.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'trio', 'msgpack', 'subprocess'} & set(sys.modules)))"
    )
    asked = {"_RETINUE_COMPLETE": "bash_complete", "COMP_WORDS": "retinue logs s", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=bench.environ | asked, capture_output=True, text=True, timeout=LIMIT
    )
    assert (done.stdout, done.stderr) == ("plain,SHOP\nplain,SYSLOG\n[]\n", "")
