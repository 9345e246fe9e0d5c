"""Nucleus, saved systems and Host together, as real processes."""

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from tests.cp.host.driving import PATIENCE, PROGRAMS, Machine, Refused, Running, Shared, Start, killed

from retinue.cp.host import process
from retinue.cp.host.link import link_pair
from retinue.cp.host.nucleus import SPAWNS_AT_ONCE

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="who is not dumpable is root's to look at")


def pid_of(system: Running, title: str) -> int:
    """The process of a system with a title, as ps shows it; machines forked from it have another one."""
    [pid] = [pid for pid in system.pids() if Path(f"/proc/{pid}/comm").read_text().strip() == title[:15]]
    return pid


def descriptors(pid: int) -> dict[int, str]:
    """Open descriptors of a process and what they are."""
    return {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}


async def spawn_many(system: Running, count: int) -> list[Machine]:
    machines: list[Machine] = []
    for number in range(count):
        machines.append(await system.spawn(f"M{number}"))
    return machines


async def test_machine_is_born_and_its_end_is_reported_with_status_and_usage(start: Start) -> None:
    system = await start()
    with trio.fail_after(PATIENCE):
        machine = await system.spawn()
        assert machine.pid in system.pids()
        await machine.send("os:_exit", 3)
        ended = await system.news("exit")
    assert (ended["machine"], ended["generation"], ended["pid"]) == ("ONE", 1, machine.pid)
    assert os.waitstatus_to_exitcode(ended["status"]) == 3
    assert ended["user_s"] >= 0
    assert ended["system_s"] >= 0
    assert ended["peak_kib"] > 1024
    assert ended["ended"] is None
    with trio.fail_after(PATIENCE):
        assert await system.end(5) == 5
        await system.all_gone()
    assert not system.runtime.exists()
    assert system.end_text()["how"] == "down"


async def test_running_system_describes_itself_in_its_runtime_folder(shared: Shared) -> None:
    system = await shared.find(network=True)
    about = json.loads((system.runtime / "system.json").read_text())
    assert (about["system"], about["nucleus_pid"], about["state"]) == (
        system.name,
        system.nucleus.pid,
        str(system.state),
    )
    assert sorted(about) == ["nucleus_pid", "started", "state", "system", "topology"]
    assert os.getsid(system.nucleus.pid) == system.nucleus.pid


async def test_killed_nucleus_takes_everything_with_it_and_frees_the_lock(start: Start) -> None:
    system = await start(network=True)
    with trio.fail_after(PATIENCE):
        await spawn_many(system, 3)
        await system.spawn("NET", network=True)
        assert len(system.pids()) == 1 + 1 + 2 + 4
        system.nucleus.kill()
        await system.wait()
        await system.all_gone()
    lock = os.open(system.runtime / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)


async def test_system_starts_again_after_a_killed_nucleus(start: Start) -> None:
    system = await start()
    (system.runtime / "operator.sock").touch()
    system.nucleus.kill()
    with trio.fail_after(PATIENCE):
        await system.wait()
        again = await start()
        assert not (again.runtime / "operator.sock").exists()
        assert await again.end() == 0


async def test_nucleus_killed_in_a_storm_of_births_leaves_nobody(start: Start) -> None:
    system = await start(network=True)
    with trio.fail_after(PATIENCE):
        control, log = os.open("/dev/null", os.O_RDWR), os.open("/dev/null", os.O_RDWR)
        birth = {"generation": 1, "storage": 256 << 20, "disks": [], "code": []}
        for number in range(100):
            system.post("spawn", (control, log), birth={**birth, "machine": f"M{number}", "network": number % 2 == 0})
        os.close(control)
        os.close(log)
        await system.news("exit")  # /dev/null holds no orders, so they leave at once: the storm is on
        system.nucleus.kill()
        await system.wait()
        await system.all_gone()


@pytest.mark.parametrize("kind", ["sealed", "network"])
async def test_killed_saved_system_takes_its_machines_along_and_the_cp_is_told(start: Start, kind: str) -> None:
    system = await start(network=True)
    with trio.fail_after(PATIENCE):
        machine = await system.spawn("VICTIM", network=kind == "network")
        other = await system.spawn("OTHER", network=kind != "network")
        os.kill(pid_of(system, f"saved-{kind}"), signal.SIGKILL)
        event = await system.news("event")
        assert (event["event"], event["system"]) == ("SavedSystemDied", kind)
        assert "SIGKILL" in event["text"]
        ended = await system.news("exit")
        assert (ended["machine"], ended["pid"]) == ("VICTIM", machine.pid)
        assert killed(ended["status"])
        # The CP may still end the system in its own words; the machines of the other one live that long.
        assert await other.call("os:getpid")
        with pytest.raises(Refused, match="saved system"):
            await system.spawn("VICTIM", generation=2, network=kind == "network")
        assert await system.end(4) == 4
        await system.all_gone()


async def test_saved_system_that_died_ends_the_system_when_the_cp_does_not(start: Start) -> None:
    system = await start()
    with trio.fail_after(PATIENCE):
        os.kill(pid_of(system, "saved-sealed"), signal.SIGKILL)
        assert await system.wait() == 1
        await system.all_gone()
    assert system.end_text()["how"] == "saved-system-died"


async def test_sigterm_is_the_cps_to_answer_and_a_second_one_ends_everything(start: Start) -> None:
    system = await start()
    with trio.fail_after(PATIENCE):
        machine = await system.spawn()
        system.nucleus.terminate()
        assert (await system.news("event"))["event"] == "Terminate"
        assert await machine.call("os:getpid")
        system.nucleus.terminate()
        assert await system.wait() == 1
        await system.all_gone()
    assert system.end_text()["how"] == "terminated"
    assert not system.runtime.exists()


async def test_signal_reaches_the_machine_by_name_and_generation(shared: Shared) -> None:
    system = await shared.find(network=True)
    with trio.fail_after(PATIENCE):
        first, second = await system.spawn("TWICE", generation=1), await system.spawn("TWICE", generation=2)
        await system.order("signal", machine="TWICE", generation=9, number=signal.SIGKILL)
        await system.order("signal", machine="TWICE", generation=1, number=signal.SIGKILL)
        ended = await system.news("exit")
        assert (ended["generation"], ended["pid"]) == (1, first.pid)
        assert killed(ended["status"])
        assert await second.call("os:getpid")
        await system.order("signal", machine="TWICE", generation=1, number=signal.SIGKILL)


async def test_storm_of_births_loses_none(shared: Shared) -> None:
    system = await shared.find(network=True)
    count = 80
    with trio.fail_after(60):
        machines = await spawn_many(system, count)
        assert len({machine.pid for machine in machines}) == count
        for machine in machines:
            await machine.send("os:_exit", 0)
        ended = [await system.news("exit") for _ in machines]
        assert sorted(one["pid"] for one in ended) == sorted(machine.pid for machine in machines)
        assert not {machine.pid for machine in machines} & set(system.pids())


async def test_births_at_once_beyond_the_limit_wait_for_their_turn(start: Start) -> None:
    system = await start()
    count = 2 * SPAWNS_AT_ONCE
    with trio.fail_after(60), contextlib.ExitStack() as stack:
        null = os.open("/dev/null", os.O_RDWR)
        stack.callback(os.close, null)
        birth = {"generation": 1, "storage": 256 << 20, "disks": [], "code": [], "network": False}
        for number in range(count):
            system.post("spawn", (null, null), birth={**birth, "machine": f"M{number}"})
        ended = {(await system.news("exit"))["machine"] for _ in range(count)}
    assert ended == {f"M{number}" for number in range(count)}


async def test_cancelled_spawn_leaves_no_machine(start: Start) -> None:
    system = await start()
    birth = {"machine": "ONE", "storage": 256 << 20, "disks": [], "code": [], "network": False}
    ours, theirs = link_pair()
    with trio.fail_after(PATIENCE), ours, theirs:
        generation, in_time = 0, False
        while not in_time:
            generation += 1
            order = {**birth, "generation": generation}
            in_time = await system.order("spawn", (theirs.fileno(), theirs.fileno()), birth=order, cancel=True)
        ended = await system.news("exit")
    assert (ended["machine"], ended["generation"]) == ("ONE", generation)
    assert killed(ended["status"])


async def test_second_nucleus_for_the_same_folder_is_turned_away(start: Start) -> None:
    system = await start()
    with trio.fail_after(PATIENCE):
        second = await start(wait=False)
        assert await second.wait() == 75
        machine = await system.spawn()
        assert await machine.call("os:getpid")
        assert await system.end() == 0


async def test_nucleus_without_a_runtime_folder_says_so(start: Start, tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "lock").mkdir()
    system = await start(wait=False)
    with trio.fail_after(PATIENCE):
        assert await system.wait() == 73
    assert "runtime/lock" in system.log_text()


async def test_preload_that_cannot_be_imported_is_named(start: Start) -> None:
    system = await start(wait=False, preload=["no_such_module"])
    with trio.fail_after(PATIENCE):
        with pytest.raises(Refused, match=r"preload: cannot import 'no_such_module'") as caught:
            await system.started()
        assert caught.value.kind == "SavedSystemFailed"
        assert await system.wait() == 1
        await system.all_gone()
    assert system.end_text()["how"] == "saved-system-died"
    assert "no_such_module" in system.end_text()["text"]


async def test_preload_that_starts_a_thread_is_refused(start: Start, tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        system = await start(wait=False, preload=["threaded"])
    with trio.fail_after(PATIENCE), pytest.raises(Refused, match="started a thread"):
        await system.started()


async def test_start_that_hangs_can_be_ended(start: Start, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "hanging.py").write_text(f"open({str(tmp_path / 'fifo')!r}).read()\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        system = await start(wait=False, preload=["hanging"])
    with trio.fail_after(PATIENCE):
        async with await trio.open_file(tmp_path / "fifo", "w"):  # opens when the module has come to its open
            system.nucleus.terminate()
            assert await system.wait() == 1
            await system.all_gone()
    assert system.end_text()["how"] == "terminated"


async def test_disk_that_is_not_there_is_named(shared: Shared, tmp_path: Path) -> None:
    system = await shared.find(network=True)
    with trio.fail_after(PATIENCE):
        await system.spawn(disks=[str(tmp_path / "nowhere")], ping=False)
        ended = await system.news("exit")
    assert f"{tmp_path}/nowhere: No such file or directory" in ended["ended"]
    assert ended["ended"].startswith(("seal: root:", "seal: files:"))


async def test_boot_that_raises_is_reported_with_its_traceback(start: Start) -> None:
    system = await start(boot_entry="tiny_boot:boot_raises")
    with trio.fail_after(PATIENCE):
        await system.spawn(ping=False)
        ended = await system.news("exit")
    assert os.waitstatus_to_exitcode(ended["status"]) == 70
    assert "RuntimeError: no machine today" in ended["ended"]


async def test_network_machine_without_its_saved_system_fails_with_a_reason(start: Start) -> None:
    system = await start()
    with trio.fail_after(PATIENCE), pytest.raises(Refused, match="without machines that keep the host's network"):
        await system.spawn(network=True)


async def test_storage_below_the_image_is_refused_with_the_least_that_works(shared: Shared) -> None:
    system = await shared.find(network=True)
    with trio.fail_after(PATIENCE):
        await system.spawn(storage=1 << 20, ping=False)
        ended = await system.news("exit")
    assert 'M" is the least' in ended["ended"]


async def test_machine_has_its_storage_and_not_more(shared: Shared) -> None:
    system = await shared.find(network=True)
    with trio.fail_after(PATIENCE):
        machine = await system.spawn(storage=128 << 20, code=[PROGRAMS])
        assert await machine.call("inside:allocate", 64 << 20) == f"has {64 << 20}"
        assert await machine.call("inside:allocate", 128 << 20) == "MemoryError"
        assert await machine.call("inside:allocate", 64 << 20) == f"has {64 << 20}"


async def test_machine_starts_clean(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERATORS_SECRET", "hunter2")
    system = await start()
    with trio.fail_after(PATIENCE):
        machine = await system.spawn(code=[PROGRAMS])
        about = await machine.call("inside:about")
        assert await machine.call("inside:descriptors") == [0, 1, 2, 3, 4]
    assert set(about["environment"]) <= {
        "LANG", "LC_CTYPE", "PATH", "PYTHONDONTWRITEBYTECODE", "MALLOC_ARENA_MAX", "TZ", "LD_LIBRARY_PATH",
    }  # fmt: skip
    assert (about["threads"], about["folder"], about["umask"]) == (1, "/", 0o077)
    assert about["path"][0] == PROGRAMS
    assert about["frozen"] > 10_000
    assert about["dumpable"] == 1


async def test_machines_do_ordinary_work_under_the_whole_seal(shared: Shared, tmp_path: Path) -> None:
    system = await shared.find(network=True)
    for kind in (False, True):
        disk = tmp_path / f"disk-{kind}"
        disk.mkdir()
        with trio.fail_after(PATIENCE):
            machine = await system.spawn(f"M{kind}", network=kind, disks=[str(disk)], code=[PROGRAMS])
            assert await machine.call("inside:work", str(disk)) == "done"


async def test_seal_report_names_every_layer_and_each_machine_its_own(shared: Shared) -> None:
    system = await shared.find(network=True)
    with trio.fail_after(PATIENCE):
        report = await system.order("report")
        sealed = await system.spawn("ONE")
        network = await system.spawn("NET", network=True)
    for kind, machine in (("sealed", sealed), ("network", network)):
        assert machine.seal == [one["layer"] for one in report if one["system"] == kind and one["present"]]
        assert {"no-new-privs", "landlock", "seccomp"} <= set(machine.seal)
    for layer in report:
        assert layer["present"] or layer["why"]
    assert "net-ns" not in network.seal


async def test_namespaces_are_had_wherever_the_kernel_gives_them(shared: Shared) -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare(1)")
    every = ["--user", "--map-current-user", "--pid", "--net", "--ipc", "--uts", "--mount", "--fork"]
    if (await trio.run_process([unshare, *every, "true"], check=False, capture_stderr=True)).returncode:
        pytest.skip("this host has no namespaces for this user")
    system = await shared.find(network=True)
    with trio.fail_after(PATIENCE):
        machine = await system.spawn()
        assert await machine.call("os:getpid") == 1
        report = [one for one in await system.order("report") if one["system"] == "sealed"]
        absent = {one["layer"] for one in report if not one["present"]}
        assert absent == (set() if os.geteuid() == 0 else {"own-uid"})


@as_root
async def test_saved_systems_hold_one_thread_and_no_descriptor_they_need_not(shared: Shared) -> None:
    system = await shared.find(network=True)
    with trio.fail_after(PATIENCE):
        await system.spawn("ONE")
        await system.spawn("NET", network=True)
    for kind in ("sealed", "network"):
        pid = pid_of(system, f"saved-{kind}")
        assert len(os.listdir(f"/proc/{pid}/task")) == 1
        held = descriptors(pid)
        assert held.pop(0) == "/dev/null"
        assert {held.pop(1), held.pop(2)} == {str(system.state / "nucleus.log")}
        kinds = sorted(target.partition(":")[0] for target in held.values())
        assert kinds == ["/proc", "pid", "pipe", "pipe", "socket"]


@as_root
async def test_nucleus_keeps_no_descriptor_of_a_machine_that_ended(shared: Shared) -> None:
    system = await shared.find(network=True)
    with trio.fail_after(PATIENCE):
        first = await system.spawn("FIRST")  # by then the nucleus has heard all that the CP has said to it
        await first.send("os:_exit", 0)
        await system.news("exit")
        before = (
            descriptors(system.nucleus.pid),
            descriptors(pid_of(system, "saved-sealed")),
            descriptors(system.cp_pid),
        )
        for machine in await spawn_many(system, 20):
            await machine.send("os:_exit", 0)
            await system.news("exit")
        after = descriptors(system.nucleus.pid), descriptors(pid_of(system, "saved-sealed")), descriptors(system.cp_pid)
    assert before == after


@as_root
async def test_machine_with_the_hosts_network_may_bind_a_low_port_if_the_system_may(shared: Shared) -> None:
    system = await shared.find(network=True)
    with trio.fail_after(PATIENCE):
        machine = await system.spawn(network=True, code=[PROGRAMS])
        assert await machine.call("inside:listen_on_a_low_port") < 1024


def test_nucleus_imports_nothing_but_the_standard_library() -> None:
    arguments = {"path": [*process.import_path(), PROGRAMS], "entry": "modules:main", "parent": 0, "title": "nucleus"}
    answer = subprocess.run(process.command(arguments, site=False), capture_output=True, check=True, text=True)
    ours = {"retinue", "modules"}
    foreign = {
        name for name in json.loads(answer.stdout) if name.partition(".")[0] not in sys.stdlib_module_names | ours
    }
    assert foreign == {"__main__"} - sys.stdlib_module_names
    loaded = {name for name in json.loads(answer.stdout) if name.startswith("retinue")}
    assert {name for name in loaded if not name.startswith("retinue.cp.host")} == {"retinue", "retinue.cp"}


async def test_nothing_but_the_console_leaks_into_the_nucleus(start: Start) -> None:
    high = fcntl.fcntl(sys.stderr.fileno() if sys.stderr.fileno() >= 0 else 2, fcntl.F_DUPFD, 200)
    os.set_inheritable(high, True)
    try:
        system = await start()
        with trio.fail_after(PATIENCE):
            machine = await system.spawn(code=[PROGRAMS])
            assert await machine.call("inside:descriptors") == [0, 1, 2, 3, 4]
        if os.geteuid() == 0:
            for pid in system.pids():
                assert high not in descriptors(pid)
    finally:
        os.close(high)


async def test_nucleus_raises_its_own_limit_of_descriptors_and_no_machines(shared: Shared) -> None:
    system = await shared.find(network=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with trio.fail_after(PATIENCE):
        machine = await system.spawn(code=[PROGRAMS])
        assert await machine.call("resource:getrlimit", resource.RLIMIT_NOFILE) == [min(4096, hard)] * 2
    assert resource.prlimit(system.nucleus.pid, resource.RLIMIT_NOFILE) == (hard, hard)
