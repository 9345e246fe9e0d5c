"""What an operator asks of a real system and orders it to do, whatever dies meanwhile."""

import contextlib
import json
import os
import pathlib
import pty
import signal
from functools import partial

import pytest
from tests.cp.cli.control import control_program
from tests.systems import ASKER, LIMIT, SERVER, Bench, read_until, wait_for

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


def machine(bench: Bench, name: str) -> dict[str, object]:
    """What ps says of a machine."""
    listing = json.loads(bench.run("ps", "--json").stdout)["machines"]
    found: dict[str, object] = next(each for each in listing if each["name"] == name)
    return found


def kill(bench: Bench, name: str) -> None:
    """SIGKILL to a machine; returns when its successor is READY."""
    before = bench.machine(name)
    os.kill(before["pid"], signal.SIGKILL)
    wait_for(lambda: (now := bench.machine(name))["state"] == "READY" and now["generation"] != before["generation"])


def test_why_tells_the_death_of_a_machine_also_after_the_end_of_the_system(bench: Bench) -> None:
    bench.write(server=SERVER, asker=ASKER)
    nothing = bench.run("why", "SERVER")
    assert nothing.returncode == errors.NO_SYSTEM
    bench.up()
    alive = bench.run("why", "SERVER")
    assert (alive.returncode, alive.stdout) == (0, "")
    assert "SERVER has never ended: SERVER is READY" in alive.stderr
    assert json.loads(bench.run("why", "SERVER", "--json").stdout) is None
    unknown = bench.run("why", "SERVR")
    assert unknown.returncode == errors.USAGE
    assert "did you mean SERVER?" in unknown.stderr

    kill(bench, "SERVER")
    page = bench.run("why", "SERVER")
    assert page.returncode == 0, page.stderr
    lines = page.stdout.splitlines()
    assert lines[0] == "SERVER (generation 1) ended: killed by SIGKILL"
    assert "  process   killed by SIGKILL (9), pid " in page.stdout
    assert "what the control program did next" in lines
    assert "  ASKER (server)  its paths wait for a successor" in lines
    assert lines[-1] == "now: SERVER is READY, generation 2"
    certificate = json.loads(bench.run("why", "SERVER", "--json").stdout)
    assert (certificate["cause"], certificate["signal"], certificate["generation"]) == ("signal", 9, 1)
    assert certificate["ready"] > 0

    assert bench.run("down").returncode == 0
    left = json.loads(bench.run("why", "SERVER", "--json", "--all").stdout)
    assert [each["cause"] for each in left] == ["asked", "signal"]
    assert "SERVER (generation 2) ended: asked to stop" in bench.run("why", "SERVER", "--system", bench.name).stdout
    assert "did you mean SERVER?" in bench.run("why", "SERVR").stderr
    bench.assert_gone()


def test_machines_are_stopped_started_restarted_and_replaced(bench: Bench) -> None:
    bench.write(server=SERVER, asker=ASKER, other=FRAGILE)
    bench.up()
    done = bench.run("stop", "ASKER", "SERVER")
    assert (done.returncode, done.stdout) == (0, "ASKER is stopped\nSERVER is stopped\n")
    assert "ASKER is STOPPED: asked to stop\n" in done.stderr
    assert bench.run("explain", "ASKER", "SERVER").returncode == NOT_NOW
    assert bench.run("start", "SERVER", "ASKER").returncode == 0
    assert bench.run("explain", "ASKER", "SERVER").returncode == 0

    before = machine(bench, "SERVER")
    done = bench.run("restart", "SERVER")
    assert (done.returncode, done.stdout) == (0, "SERVER is restarted\n"), done.stderr
    after = machine(bench, "SERVER")
    assert (after["state"], after["pid"] == before["pid"]) == ("READY", False)

    done = bench.run("replace", "SERVER", "--json")
    (answer,) = json.loads(done.stdout)
    assert (answer["machine"], answer["ok"]) == ("SERVER", True)
    assert machine(bench, "SERVER")["pid"] != after["pid"]

    (bench.folder / "server.py").write_text("async def main(vm):\n    raise ValueError('no such luck')\n")
    present = machine(bench, "SERVER")
    failed = bench.run("replace", "SERVER", "ASKER")
    assert failed.returncode == errors.FAILED
    assert "ASKER" not in failed.stdout  # what does not work for the first is not tried with others
    assert "SERVER: the control program" in failed.stderr
    assert machine(bench, "SERVER")["pid"] == present["pid"]
    assert "ValueError: no such luck" in bench.run("why", "SERVER").stdout
    (bench.folder / "server.py").write_text(SERVER)

    unknown = bench.run("stop", "SERVER", "ASKR")
    assert unknown.returncode == errors.USAGE
    assert "did you mean ASKER?" in unknown.stderr
    assert machine(bench, "SERVER")["state"] == "READY"  # nothing is begun when a name is wrong
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_settings_change_in_place(bench: Bench) -> None:
    bench.write(server=SERVER)
    bench.up()
    before = machine(bench, "SERVER")
    done = bench.run("set", "SERVER", "share=200", "watchdog=off", "grace='5s'")
    assert done.returncode == 0, done.stderr
    assert "SERVER: share: 100 -> 200\n" in done.stdout
    assert f"{bench.file} is as it was" in done.stderr
    assert machine(bench, "SERVER")["pid"] == before["pid"]
    assert bench.run("set", "SERVER", "share=200").stdout == "SERVER has these settings already\n"
    for setting, complaint in (
        ("shar=5", "did you mean share?"),
        ("share", "write KEY=VALUE"),
        ("share=", "write KEY"),
    ):
        wrong = bench.run("set", "SERVER", setting)
        assert wrong.returncode == errors.USAGE
        assert complaint in wrong.stderr
    bad = bench.run("set", "SERVER", "share=many")
    assert bad.returncode == errors.FAILED
    assert "share" in bad.stderr
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_plan_and_apply_change_what_has_changed(bench: Bench) -> None:
    bench.write(server=SERVER, asker=ASKER)
    whole = bench.file.read_text()
    new = bench.run("plan", str(bench.file), "--detailed-exitcode")
    assert new.returncode == CHANGES
    assert "+ SERVER is started" in new.stdout
    assert f"no system {bench.name} is running" in new.stderr
    assert bench.run("apply", str(bench.file)).returncode == errors.NO_SYSTEM

    bench.up()
    same = bench.run("plan", str(bench.file), "--detailed-exitcode")
    assert (same.returncode, same.stdout) == (0, f"nothing to change: 2 machines as {bench.file} says\n")
    server = machine(bench, "SERVER")
    (bench.folder / "other.py").write_text(SERVER)
    bench.file.write_text(whole.replace('program = "asker"', 'program = "asker"\nshare = 50') + OTHER)
    planned = bench.run("plan", str(bench.file), "--detailed-exitcode", "--json")
    assert planned.returncode == CHANGES
    changes = {each["machine"]: each["kind"] for each in json.loads(planned.stdout)["changes"]}
    assert changes == {"ASKER": "set", "OTHER": "add"}
    applied = bench.run("apply", str(bench.file))
    assert applied.returncode == 0, applied.stderr
    assert "+ OTHER is started" in applied.stdout
    assert "    share: 100 -> 50" in applied.stdout
    assert "OTHER is READY after" in applied.stderr
    assert machine(bench, "OTHER")["state"] == "READY"
    assert machine(bench, "SERVER")["pid"] == server["pid"]

    bench.file.write_text(whole.replace("[system]", '[system]\nseal = "basic"'))
    impossible = bench.run("plan", str(bench.file), "--detailed-exitcode")
    assert impossible.returncode == IMPOSSIBLE, impossible.stdout
    refused = bench.run("apply", str(bench.file))
    assert refused.returncode == errors.FAILED
    assert "nothing was changed" in refused.stderr
    assert f"retinue down --system {bench.name}, then retinue up" in refused.stderr
    assert machine(bench, "OTHER")["state"] == "READY"

    bench.file.write_text("[system")
    assert bench.run("apply", str(bench.file)).returncode == errors.WRONG_TOPOLOGY
    assert bench.run("down").returncode == 0
    bench.assert_gone()


OTHER = '[machines.OTHER]\nprogram = "other"\n'


def test_explanation_is_pasted_and_applied(bench: Bench) -> None:
    """The line that is missing, put where it is said to belong, makes the edge in the running system."""
    bench.write(server=SERVER, asker=ASKER)
    bench.up()
    none = bench.run("explain", "SERVER", "*LOG")
    assert none.returncode == NO_EDGE
    assert "SERVER may not reach *LOG: no edge leads there" in none.stdout
    missing = json.loads(bench.run("explain", "SERVER", "*LOG", "--json").stdout)["missing"]
    lines = bench.file.read_text().split("\n")
    lines.insert(missing["after"], missing["text"])
    bench.file.write_text("\n".join(lines))
    assert bench.run("explain", "SERVER", "*LOG", "--file", str(bench.file)).returncode == 0
    assert bench.run("apply", str(bench.file)).returncode == 0
    found = bench.run("explain", "SERVER", "*LOG")
    assert found.returncode == 0
    assert f"it.toml:{missing['after'] + 1}   {missing['text']}" in found.stdout
    unknown = bench.run("explain", "SERVR", "ASKER")
    assert unknown.returncode == errors.USAGE
    assert "did you mean SERVER?" in unknown.stderr
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_top_and_the_live_graph_show_what_goes_on(bench: Bench) -> None:
    bench.write(server=SERVER, asker=ASKER, ticking=TICKING)
    bench.up()
    table = bench.run("top", "-d", "0.3").stdout.splitlines()
    assert table[0].startswith(f"{bench.name} is READY: 3 of 3 READY, ")
    assert [line.split()[:2] for line in table[2:]] == [[name, "READY"] for name in ("SERVER", "ASKER", "TICKING")]
    samples = [json.loads(line) for line in bench.run("top", "--json", "-n", "2", "-d", "0.3").stdout.splitlines()]
    ticking = [next(each for each in sample["machines"] if each["name"] == "TICKING") for sample in samples]
    assert all(each["records"] > 5 and each["cpu"] is not None for each in ticking)
    assert samples[0]["edges"][0]["from"] == "ASKER"
    assert [line.split()[:3] for line in bench.run("top", "-e", "-d", "0.1").stdout.splitlines()[2:]] == [
        ["ASKER", "server", "SERVER"]
    ]
    assert "TICKING" not in bench.run("top", "ASKER", "-d", "0.1").stdout
    assert bench.run("top", "NOBODY", "-d", "0.1").returncode == errors.USAGE
    picture = bench.run("graph", "--live", "-d", "0.1").stdout
    assert "● ASKER" in picture
    assert "└─ server [0/s] ● SERVER" in picture
    assert bench.run("graph", "--live", str(bench.file)).returncode == errors.USAGE
    assert bench.run("down").returncode == 0
    bench.assert_gone()


@pytest.mark.parametrize("args", [("top",), ("graph", "--live")])
def test_figures_change_in_place_on_a_terminal(bench: Bench, args: tuple[str, ...]) -> None:
    """Until Ctrl-C, which is no error."""
    bench.write(ticking=TICKING)
    bench.up()
    ours, theirs = pty.openpty()
    bench.environ |= {"TERM": "xterm", "COLUMNS": "100"}
    try:
        process = bench.start(*args, "-d", "0.1", stdout=theirs)
        os.close(theirs)
        shown = b""
        while shown.count(b"1 of 1 READY") < 3:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0
    finally:
        os.close(ours)
    assert b"\x1b[2K" in shown  # in the place of what was there before
    assert b"TICKING" in shown
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_events_are_told_and_followed(bench: Bench) -> None:
    bench.write(server=SERVER, asker=ASKER)
    bench.up()
    process = bench.start("events", "-f", "-n", "all", "--json")
    read_until(process.stdout, lambda line: json.loads(line)["machine"] is None)
    kill(bench, "SERVER")
    told = bench.run("events", "SERVER").stdout.splitlines()
    turns = [(line.split()[4], line.partition(" -> ")[2].split()[0]) for line in told[-3:]]
    assert turns == [("#1", "ABEND"), ("#2", "STARTING"), ("#2", "READY")], told
    assert told[-3].endswith("killed by SIGKILL")
    last = [json.loads(line) for line in bench.run("events", "-n", "2", "--json").stdout.splitlines()]
    assert [(event["machine"], event["state"]) for event in last] == [("SERVER", "STARTING"), ("SERVER", "READY")]
    assert bench.run("down").returncode == 0
    out, err = process.communicate(timeout=LIMIT)
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
    assert (events[-1]["machine"], events[-1]["state"]) == (None, "STOPPED")
    assert err == f"-- {bench.name} has ended --\n"
    bench.assert_gone()


def test_operators_of_z_vm_find_their_words(bench: Bench) -> None:
    bench.write(server=SERVER, other=FRAGILE)
    bench.up()
    assert bench.run("QUERY", "NAMES").stdout == "SERVER   - DSC, OTHER    - DSC\n"
    assert bench.run("q", "n", "OTHER").stdout == "OTHER    - DSC\n"
    assert bench.run("Q", "USERID").stdout == f"OPERATOR AT {bench.name}\n"
    assert "SERVER" in bench.run("IND", "USER").stdout
    assert bench.run("FORCE", "SERVER").stdout == "SERVER is stopped\n"
    assert bench.run("QUERY", "USERS").stdout == "1 USERS, 0 DIALED, 0 NET\n"
    assert bench.run("XAUTOLOG", "SERVER").stdout == "SERVER is started\n"
    assert bench.run("QUERY", "NONSENSE").returncode == errors.USAGE
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def complete(bench: Bench, words: str) -> set[str]:
    """What the shell is told after these words."""
    bench.environ |= {"_RETINUE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    try:
        return {line.partition(",")[2] for line in bench.run().stdout.splitlines() if line}
    finally:
        for name in ("_RETINUE_COMPLETE", "COMP_WORDS", "COMP_CWORD"):
            del bench.environ[name]


def test_the_shell_completes_from_the_running_system(bench: Bench) -> None:
    bench.write(server=SERVER, asker=ASKER)
    assert complete(bench, "retinue why S") == set()
    bench.up()
    assert complete(bench, "retinue why S") == {"SERVER"}
    assert complete(bench, "retinue restart ") == {"SERVER", "ASKER"}
    assert complete(bench, "retinue explain ASKER *") == {"*CP", "*LOG"}
    assert complete(bench, "retinue tap a") == {"ASKER.server"}
    assert complete(bench, "retinue set ASKER sh") == {"share="}
    assert complete(bench, "retinue re") == {"replace", "replay", "restart"}
    assert bench.run("down").returncode == 0
    assert complete(bench, "retinue why S") == {"SERVER"}  # it has left a certificate
    bench.assert_gone()


# -- the death of the control program ----------------------------------------------------------------------------------


def succeeded(bench: Bench, before: int) -> bool:
    """Whether another control program answers."""
    bench.ask("ps")
    return control_program(bench) != before


def numbers(lines: list[str]) -> list[int]:
    """The ticks in records as JSON."""
    messages = [json.loads(line).get("message", "") for line in lines]
    return [int(message.split()[1]) for message in messages if message.startswith("tick ")]


@pytest.mark.parametrize("how", ["SIGKILL", "upgrade"])
def test_followers_go_on_with_the_next_control_program(bench: Bench, how: str) -> None:
    """Whoever attends stays, no record is missing and none is told twice, and the machines notice nothing."""
    bench.write(ticking=TICKING)
    out = {name: bench.folder / f"{name}.out" for name in ("up", "logs", "events")}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(file.open("w")) for name, file in out.items()}
        up = bench.start("up", str(bench.file), stdout=files["up"])
        read_until(up.stderr, lambda line: "1 machine. Ctrl-C" in line)
        logs = bench.start("logs", "-f", "-n", "all", "--json", stdout=files["logs"])
        events = bench.start("events", "-f", "-n", "all", "--json", stdout=files["events"])
    wait_for(lambda: '"tick 20"' in out["logs"].read_text())
    before, ticking = control_program(bench), machine(bench, "TICKING")
    if how == "upgrade":
        done = bench.run("upgrade")
        assert done.returncode == 0, done.stderr
        assert f"pid {before} -> {control_program(bench)}" in done.stdout
    else:
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: succeeded(bench, before))
    read_until(up.stderr, lambda line: "has been restarted; its machines went on" in line)
    assert machine(bench, "TICKING")["pid"] == ticking["pid"]
    up.send_signal(signal.SIGINT)
    for process in (logs, events):
        _, err = process.communicate(timeout=LIMIT)
        assert err.splitlines() == [
            f"-- the control program of {bench.name} has been restarted --",
            f"-- {bench.name} has ended --",
        ]
    _, err = up.communicate(timeout=LIMIT)
    assert up.returncode == 0, err
    told = numbers(out["logs"].read_text().splitlines())
    assert told == list(range(1, told[-1] + 1))
    assert [int(line.split()[-1]) for line in out["up"].read_text().splitlines() if "| tick" in line] == told
    states = [(event["machine"], event["state"]) for event in map(json.loads, out["events"].read_text().splitlines())]
    assert states.count(("TICKING", "READY")) == 1
    assert states[-1] == (None, "STOPPED")
    bench.assert_gone()


def test_an_order_down_is_given_to_the_next_control_program(bench: Bench) -> None:
    """A stop that takes its time, and the control program dies meanwhile: the system stops all the same."""
    bench.write(slow=SLOW)
    bench.up()
    before = control_program(bench)
    down = bench.start("down")
    read_until(down.stderr, lambda line: "SLOW is STOPPING" in line)
    os.kill(before, signal.SIGKILL)
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
        await trio.sleep(2)
"""


def test_a_console_that_does_not_come_back_stops_the_system(bench: Bench) -> None:
    """It was killed together with the control program; its successor waits for it, but not for ever."""
    bench.write(server=SERVER)
    up = bench.start("up", str(bench.file))
    read_until(up.stderr, lambda line: "1 machine. Ctrl-C" in line)
    up.send_signal(signal.SIGSTOP)
    os.kill(control_program(bench), signal.SIGKILL)
    up.kill()
    wait_for(lambda: not bench.processes())
    end = json.loads((bench.folder / "state" / "retinue" / bench.name / "end.json").read_text())
    assert end["how"] == "console-lost"


def test_a_detached_system_outlives_every_control_program(bench: Bench, tmp_path: pathlib.Path) -> None:
    bench.write(fragile=FRAGILE)
    bench.up()
    for _ in range(3):
        before = control_program(bench)
        os.kill(before, signal.SIGKILL)
        wait_for(partial(succeeded, bench, before))
    assert machine(bench, "FRAGILE")["generation"] == 1
    assert bench.run("down").returncode == 0
    bench.assert_gone()
