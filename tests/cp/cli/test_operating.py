"""What an operator asks of a real system and orders it to do, whatever dies meanwhile."""

import contextlib
import json
import os
import pathlib
import pty
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
from tests.cp.cli.control import control_program
from tests.systems import ASKER, LIMIT, SERVER, Bench, open_bench, read_until, wait_for

from retinue.cp.cli import errors
from retinue.cp.cli.changing import CHANGES, IMPOSSIBLE
from retinue.cp.cli.explain import NO_EDGE, NOT_NOW

TICKING = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    number = 0
    while not vm.stopping.is_set():
        print("tick", number := number + 1)
        await trio.sleep(0.01)
"""

FRAGILE = """\
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    async def answer(message):
        if message.body == "die":
            raise SystemExit(3)
        return message.body
    await vm.serve(answer)
"""


# The machines of the system that most tests share.
MACHINES = ("SERVER", "ASKER", "TICKING", "OTHER", "WIDOW", "MORTAL")


class Ended(NamedTuple):
    """A system that has ended, and what ``retinue events --follow`` has told of it."""

    bench: Bench
    events: list[dict[str, Any]]
    errors: str


def kill(bench: Bench, name: str) -> None:
    """SIGKILL to a machine; returns when its successor is READY."""
    before = bench.machine(name)
    os.kill(before["pid"], signal.SIGKILL)
    wait_for(lambda: (now := bench.machine(name))["state"] == "READY" and now["generation"] != before["generation"])


@pytest.fixture(scope="module", autouse=True)
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A system whose console and control program are killed before the first test: it is a long time until its end."""
    with open_bench(tmp_path_factory.mktemp("lonely")) as bench:
        bench.write(server=SERVER)
        up = bench.start("up", str(bench.file))
        read_until(up.stderr, lambda line: "1 machine. Ctrl-C" in line)
        up.send_signal(signal.SIGSTOP)
        os.kill(control_program(bench), signal.SIGKILL)
        up.kill()
        yield bench


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A system that several tests share: each leaves every machine READY, and kills none that another looks at."""
    with open_bench(tmp_path_factory.mktemp("running")) as bench:
        bench.write(server=SERVER, asker=ASKER, ticking=TICKING, other=FRAGILE)
        mortals = '[machines.WIDOW]\nprogram = "asker"\nuses.server = "MORTAL"\n[machines.MORTAL]\nprogram = "server"\n'
        bench.file.write_text(bench.file.read_text() + mortals)
        bench.up()
        yield bench
        assert bench.run("down").returncode == 0
        bench.assert_gone()


@contextmanager
def pair(folder: pathlib.Path) -> Iterator[Bench]:
    """A system of SERVER and ASKER; the block ends it."""
    with open_bench(folder) as bench:
        bench.write(server=SERVER, asker=ASKER)
        bench.up()
        yield bench
        bench.assert_gone()


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A system that is as its file says, before and after each test."""
    with pair(tmp_path_factory.mktemp("declared")) as bench:
        yield bench
        assert bench.run("plan", str(bench.file), "--detailed-exitcode").returncode == 0
        assert bench.run("down").returncode == 0


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """A system in which one machine has died, and that has ended."""
    with pair(tmp_path_factory.mktemp("ended")) as bench:
        process = bench.start("events", "-f", "-n", "all", "--json")
        read_until(process.stdout, lambda line: json.loads(line)["machine"] is None)
        kill(bench, "SERVER")
        assert bench.run("down").returncode == 0
        out, err = process.communicate(timeout=LIMIT)
        bench.assert_gone()
        yield Ended(bench, [json.loads(line) for line in out.splitlines()], err)


def test_why_tells_the_death_of_a_machine(running: Bench) -> None:
    alive = running.run("why", "MORTAL")
    assert (alive.returncode, alive.stdout) == (0, "")
    assert "MORTAL has never ended: MORTAL is READY" in alive.stderr
    assert json.loads(running.run("why", "MORTAL", "--json").stdout) is None
    unknown = running.run("why", "MORTL")
    assert unknown.returncode == errors.USAGE
    assert "did you mean MORTAL?" in unknown.stderr

    kill(running, "MORTAL")
    page = running.run("why", "MORTAL")
    assert page.returncode == 0, page.stderr
    lines = page.stdout.splitlines()
    assert lines[0] == "MORTAL (generation 1) ended: killed by SIGKILL"
    assert "  process   killed by SIGKILL (9), pid " in page.stdout
    assert "what the control program did next" in lines
    assert "  WIDOW (server)  its paths wait for a successor" in lines
    assert lines[-1] == "now: MORTAL is READY, generation 2"
    certificate = json.loads(running.run("why", "MORTAL", "--json").stdout)
    assert (certificate["cause"], certificate["signal"], certificate["generation"]) == ("signal", 9, 1)
    assert certificate["ready"] > 0


def test_why_tells_the_deaths_of_a_system_that_has_ended(ended: Ended, bench: Bench) -> None:
    assert bench.run("why", "SERVER").returncode == errors.NO_SYSTEM  # there never was one
    told = ended.bench
    left = json.loads(told.run("why", "SERVER", "--json", "--all").stdout)
    assert [each["cause"] for each in left] == ["asked", "signal"]
    assert "SERVER (generation 2) ended: asked to stop" in told.run("why", "SERVER", "--system", told.name).stdout
    assert "did you mean SERVER?" in told.run("why", "SERVR").stderr


def test_machines_are_stopped_started_restarted_and_replaced(running: Bench) -> None:
    done = running.run("stop", "ASKER", "SERVER")
    assert (done.returncode, done.stdout) == (0, "ASKER is stopped\nSERVER is stopped\n")
    assert "ASKER is STOPPED: asked to stop\n" in done.stderr
    assert running.run("explain", "ASKER", "SERVER").returncode == NOT_NOW
    assert running.run("start", "SERVER", "ASKER").returncode == 0
    assert running.run("explain", "ASKER", "SERVER").returncode == 0

    before = running.machine("SERVER")
    done = running.run("restart", "SERVER")
    assert (done.returncode, done.stdout) == (0, "SERVER is restarted\n"), done.stderr
    after = running.machine("SERVER")
    assert (after["state"], after["pid"] == before["pid"]) == ("READY", False)

    done = running.run("replace", "SERVER", "--json")
    (answer,) = json.loads(done.stdout)
    assert (answer["machine"], answer["ok"]) == ("SERVER", True)
    assert running.machine("SERVER")["pid"] != after["pid"]

    (running.folder / "server.py").write_text("async def main(vm):\n    raise ValueError('no such luck')\n")
    present = running.machine("SERVER")
    failed = running.run("replace", "SERVER", "ASKER")
    assert failed.returncode == errors.FAILED
    assert "ASKER" not in failed.stdout  # what does not work for the first is not tried with others
    assert "SERVER: the control program" in failed.stderr
    assert running.machine("SERVER")["pid"] == present["pid"]
    assert "ValueError: no such luck" in running.run("why", "SERVER").stdout
    (running.folder / "server.py").write_text(SERVER)

    unknown = running.run("stop", "SERVER", "ASKR")
    assert unknown.returncode == errors.USAGE
    assert "did you mean ASKER?" in unknown.stderr
    assert running.machine("SERVER")["state"] == "READY"  # nothing is begun when a name is wrong


def test_settings_change_in_place(running: Bench) -> None:
    before = running.machine("OTHER")
    done = running.run("set", "OTHER", "share=200", "watchdog=off", "grace='5s'")
    assert done.returncode == 0, done.stderr
    assert "OTHER: share: 100 -> 200\n" in done.stdout
    assert f"{running.file} is as it was" in done.stderr
    assert running.machine("OTHER")["pid"] == before["pid"]
    assert running.run("set", "OTHER", "share=200").stdout == "OTHER has these settings already\n"
    for setting, complaint in (
        ("shar=5", "did you mean share?"),
        ("share", "write KEY=VALUE"),
        ("share=", "write KEY"),
    ):
        wrong = running.run("set", "OTHER", setting)
        assert wrong.returncode == errors.USAGE
        assert complaint in wrong.stderr
    bad = running.run("set", "OTHER", "share=many")
    assert bad.returncode == errors.FAILED
    assert "share" in bad.stderr


def test_plan_and_apply_change_what_has_changed(declared: Bench, bench: Bench) -> None:
    bench.write(server=SERVER, asker=ASKER)
    new = bench.run("plan", str(bench.file), "--detailed-exitcode")
    assert new.returncode == CHANGES
    assert "+ SERVER is started" in new.stdout
    assert f"no system {bench.name} is running" in new.stderr
    assert bench.run("apply", str(bench.file)).returncode == errors.NO_SYSTEM

    whole = declared.file.read_text()
    same = declared.run("plan", str(declared.file), "--detailed-exitcode")
    assert (same.returncode, same.stdout) == (0, f"nothing to change: 2 machines as {declared.file} says\n")
    server = declared.machine("SERVER")
    (declared.folder / "other.py").write_text(SERVER)
    declared.file.write_text(whole.replace('program = "asker"', 'program = "asker"\nshare = 50') + OTHER)
    planned = declared.run("plan", str(declared.file), "--detailed-exitcode", "--json")
    assert planned.returncode == CHANGES
    changes = {each["machine"]: each["kind"] for each in json.loads(planned.stdout)["changes"]}
    assert changes == {"ASKER": "set", "OTHER": "add"}
    applied = declared.run("apply", str(declared.file))
    assert applied.returncode == 0, applied.stderr
    assert "+ OTHER is started" in applied.stdout
    assert "    share: 100 -> 50" in applied.stdout
    assert "OTHER is READY after" in applied.stderr
    assert declared.machine("OTHER")["state"] == "READY"
    assert declared.machine("SERVER")["pid"] == server["pid"]

    declared.file.write_text(whole.replace("[system]", '[system]\nseal = "basic"'))
    impossible = declared.run("plan", str(declared.file), "--detailed-exitcode")
    assert impossible.returncode == IMPOSSIBLE, impossible.stdout
    refused = declared.run("apply", str(declared.file))
    assert refused.returncode == errors.FAILED
    assert "nothing was changed" in refused.stderr
    assert f"retinue down --system {declared.name}, then retinue up" in refused.stderr
    assert declared.machine("OTHER")["state"] == "READY"

    declared.file.write_text("[system")
    assert declared.run("apply", str(declared.file)).returncode == errors.WRONG_TOPOLOGY

    declared.file.write_text(whole)
    assert declared.run("apply", str(declared.file)).returncode == 0
    assert [each["name"] for each in declared.ask("ps")["machines"]] == ["SERVER", "ASKER"]


OTHER = '[machines.OTHER]\nprogram = "other"\n'


def test_explanation_is_pasted_and_applied(declared: Bench) -> None:
    """The line that is missing, put where it is said to belong, makes the edge in the running system."""
    none = declared.run("explain", "SERVER", "*LOG")
    assert none.returncode == NO_EDGE
    assert "SERVER may not reach *LOG: no edge leads there" in none.stdout
    missing = json.loads(declared.run("explain", "SERVER", "*LOG", "--json").stdout)["missing"]
    lines = declared.file.read_text().split("\n")
    lines.insert(missing["after"], missing["text"])
    declared.file.write_text("\n".join(lines))
    assert declared.run("explain", "SERVER", "*LOG", "--file", str(declared.file)).returncode == 0
    assert declared.run("apply", str(declared.file)).returncode == 0
    found = declared.run("explain", "SERVER", "*LOG")
    assert found.returncode == 0
    assert f"it.toml:{missing['after'] + 1}   {missing['text']}" in found.stdout
    unknown = declared.run("explain", "SERVR", "ASKER")
    assert unknown.returncode == errors.USAGE
    assert "did you mean SERVER?" in unknown.stderr


def test_top_and_the_live_graph_show_what_goes_on(running: Bench) -> None:
    table = running.run("top", "-d", "0.3").stdout.splitlines()
    assert table[0].startswith(f"{running.name} is READY: 6 of 6 READY, ")
    assert [line.split()[:2] for line in table[2:]] == [[name, "READY"] for name in MACHINES]
    samples = [json.loads(line) for line in running.run("top", "--json", "-n", "2", "-d", "0.3").stdout.splitlines()]
    ticking = [next(each for each in sample["machines"] if each["name"] == "TICKING") for sample in samples]
    assert all(each["records"] > 5 and each["cpu"] is not None for each in ticking)
    assert samples[0]["edges"][0]["from"] == "ASKER"
    assert [line.split()[:3] for line in running.run("top", "-e", "-d", "0.1").stdout.splitlines()[2:]] == [
        ["ASKER", "server", "SERVER"],
        ["WIDOW", "server", "MORTAL"],
    ]
    assert "TICKING" not in running.run("top", "ASKER", "-d", "0.1").stdout
    assert running.run("top", "NOBODY", "-d", "0.1").returncode == errors.USAGE
    picture = running.run("graph", "--live", "-d", "0.1").stdout
    assert "● ASKER" in picture
    assert "└─ server [0/s] ● SERVER" in picture
    assert running.run("graph", "--live", str(running.file)).returncode == errors.USAGE


@pytest.mark.parametrize("args", [("top",), ("graph", "--live")])
def test_figures_change_in_place_on_a_terminal(running: Bench, args: tuple[str, ...]) -> None:
    """Until Ctrl-C, which is no error."""
    ours, theirs = pty.openpty()
    try:
        process = running.start(
            *args, "-d", "0.1", stdout=theirs, env={**running.environ, "TERM": "xterm", "COLUMNS": "100"}
        )
        os.close(theirs)
        shown = b""
        while shown.count(b"6 of 6 READY") < 3:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0
    finally:
        os.close(ours)
    assert b"\x1b[2K" in shown  # in the place of what was there before
    assert b"TICKING" in shown


def test_events_are_told(running: Bench) -> None:
    before = running.machine("OTHER")["generation"]
    kill(running, "OTHER")
    told = running.run("events", "OTHER").stdout.splitlines()
    turns = [(line.split()[4], line.partition(" -> ")[2].split()[0]) for line in told[-3:]]
    after = f"#{before + 1}"
    assert turns == [(f"#{before}", "ABEND"), (after, "STARTING"), (after, "READY")], told
    assert told[-3].endswith("killed by SIGKILL")
    last = [json.loads(line) for line in running.run("events", "-n", "2", "--json").stdout.splitlines()]
    assert [(event["machine"], event["state"]) for event in last] == [("OTHER", "STARTING"), ("OTHER", "READY")]


def test_events_are_followed_to_the_end(ended: Ended) -> None:
    assert [event["seq"] for event in ended.events] == sorted(event["seq"] for event in ended.events)
    assert ("SERVER", "ABEND") in [(event["machine"], event["state"]) for event in ended.events]
    assert (ended.events[-1]["machine"], ended.events[-1]["state"]) == (None, "STOPPED")
    assert ended.errors == f"-- {ended.bench.name} has ended --\n"


def test_operators_of_z_vm_find_their_words(running: Bench) -> None:
    assert running.run("QUERY", "NAMES").stdout == (
        "SERVER   - DSC, ASKER    - DSC, TICKING  - DSC, OTHER    - DSC\nWIDOW    - DSC, MORTAL   - DSC\n"
    )
    assert running.run("q", "n", "OTHER").stdout == "OTHER    - DSC\n"
    assert running.run("Q", "USERID").stdout == f"OPERATOR AT {running.name}\n"
    assert "SERVER" in running.run("IND", "USER").stdout
    assert running.run("FORCE", "OTHER").stdout == "OTHER is stopped\n"
    assert running.run("QUERY", "USERS").stdout == "5 USERS, 0 DIALED, 0 NET\n"
    assert running.run("XAUTOLOG", "OTHER").stdout == "OTHER is started\n"
    assert running.run("QUERY", "NONSENSE").returncode == errors.USAGE


def complete(bench: Bench, words: str) -> set[str]:
    """What the shell is told after these words."""
    bench.environ |= {"_RETINUE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    try:
        return {line.partition(",")[2] for line in bench.run().stdout.splitlines() if line}
    finally:
        for name in ("_RETINUE_COMPLETE", "COMP_WORDS", "COMP_CWORD"):
            del bench.environ[name]


def test_the_shell_completes_from_the_running_system(running: Bench) -> None:
    assert complete(running, "retinue why S") == {"SERVER"}
    assert complete(running, "retinue restart ") == set(MACHINES)
    assert complete(running, "retinue explain ASKER *") == {"*CP", "*LOG"}
    assert complete(running, "retinue tap a") == {"ASKER.server"}
    assert complete(running, "retinue set ASKER sh") == {"share="}
    assert complete(running, "retinue re") == {"replace", "replay", "restart"}


def test_the_shell_completes_without_a_running_system(ended: Ended, bench: Bench) -> None:
    assert complete(bench, "retinue why S") == set()
    assert complete(ended.bench, "retinue why S") == {"SERVER"}  # it has left a certificate


# -- the death of the control program ----------------------------------------------------------------------------------


def succeeded(bench: Bench, before: int) -> bool:
    """Whether another control program answers."""
    bench.ask("ps")
    return control_program(bench) != before


def numbers(lines: list[str]) -> list[int]:
    """The ticks in records as JSON."""
    messages = [json.loads(line).get("message", "") for line in lines]
    return [int(message.split()[1]) for message in messages if message.startswith("tick ")]


def test_followers_go_on_with_the_next_control_program(bench: Bench) -> None:
    """Whoever attends stays, no record is missing and none is told twice, and the machines notice nothing."""
    bench.write(ticking=TICKING)
    out = {name: bench.folder / f"{name}.out" for name in ("up", "logs", "events")}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(file.open("w")) for name, file in out.items()}
        up = bench.start("up", str(bench.file), stdout=files["up"])
        read_until(up.stderr, lambda line: "1 machine. Ctrl-C" in line)
        logs = bench.start("logs", "-f", "-n", "all", "--json", stdout=files["logs"])
        events = bench.start("events", "-f", "-n", "all", "--json", stdout=files["events"])
    wait_for(lambda: '"tick 20"' in out["logs"].read_text() and '"READY"' in out["events"].read_text())
    ticking = bench.machine("TICKING")
    for how in ("killed", "upgraded"):
        before = control_program(bench)
        if how == "upgraded":
            done = bench.run("upgrade")
            assert done.returncode == 0, done.stderr
            assert f"pid {before} -> {control_program(bench)}" in done.stdout
        else:
            os.kill(before, signal.SIGKILL)
            wait_for(partial(succeeded, bench, before))
        read_until(up.stderr, lambda line: "has been restarted; its machines went on" in line)
        for process in (logs, events):
            told = read_until(process.stderr, lambda line: line.startswith("--"))
            assert told == [f"-- the control program of {bench.name} has been restarted --"], how
        assert bench.machine("TICKING")["pid"] == ticking["pid"]
    up.send_signal(signal.SIGINT)
    for process in (logs, events):
        _, err = process.communicate(timeout=LIMIT)
        assert err == f"-- {bench.name} has ended --\n"
    _, err = up.communicate(timeout=LIMIT)
    assert up.returncode == 0, err
    ticks = numbers(out["logs"].read_text().splitlines())
    assert ticks == list(range(1, ticks[-1] + 1))
    assert [int(line.split()[-1]) for line in out["up"].read_text().splitlines() if "| tick" in line] == ticks
    states = [(event["machine"], event["state"]) for event in map(json.loads, out["events"].read_text().splitlines())]
    assert states.count(("TICKING", "READY")) == 1
    assert states[-1] == (None, "STOPPED")
    bench.assert_gone()


def test_an_order_down_is_given_to_the_next_control_program(bench: Bench) -> None:
    """A stop that takes its time, and the control program dies meanwhile: the system stops all the same."""
    bench.write(slow=SLOW)
    bench.file.write_text(bench.file.read_text() + "disks.a = {}\n")
    bench.up()
    before = control_program(bench)
    down = bench.start("down")
    read_until(down.stderr, lambda line: "SLOW is STOPPING" in line)
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: succeeded(bench, before))
    (bench.folder / "state" / "retinue" / bench.name / "disks" / "SLOW" / "a" / "go").touch()
    _, err = down.communicate(timeout=LIMIT)
    assert down.returncode == 0, err
    assert err.endswith(f"{bench.name} has stopped\n")
    bench.assert_gone()


SLOW = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    await vm.stopping.wait()
    with trio.CancelScope(shield=True):
        while not (vm.disk("a") / "go").exists():
            await trio.sleep(0.01)
"""


def test_a_console_that_does_not_come_back_stops_the_system(lonely: Bench) -> None:
    """It was killed together with the control program; its successor waits for it, but not for ever."""
    wait_for(lambda: not lonely.processes())
    end = json.loads((lonely.folder / "state" / "retinue" / lonely.name / "end.json").read_text())
    assert end["how"] == "console-lost"


def test_a_detached_system_outlives_every_control_program(bench: Bench) -> None:
    bench.write(fragile=FRAGILE)
    bench.up()
    for _ in range(3):
        before = control_program(bench)
        os.kill(before, signal.SIGKILL)
        wait_for(partial(succeeded, bench, before))
    assert bench.machine("FRAGILE")["generation"] == 1
    assert bench.run("down").returncode == 0
    bench.assert_gone()
