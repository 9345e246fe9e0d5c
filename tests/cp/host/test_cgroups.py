"""Control groups: what is found on a host, and that the kernel keeps what is asked of it."""

import json
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio
from tests.cp.host.driving import PATIENCE, PROGRAMS, Running, Shared, Start, killed

from retinue.cp.host import cgroups, controllers, kernel_files
from retinue.cp.host.cgroups import Group, Groups
from retinue.cp.host.controllers import CONTROLLERS, Found, find
from retinue.cp.host.kernel_files import stat

NOBODY = 65534
MIB = 1 << 20
BOMBS = str(pathlib.Path(PROGRAMS) / "bombs.py")
PYTHON = "/usr/bin/python3"

present = find()
needs_memory = pytest.mark.skipif(not present["memory"].version, reason=present["memory"].why)
needs_cpu = pytest.mark.skipif(not present["cpu"].version, reason=present["cpu"].why)
needs_pids = pytest.mark.skipif(not present["pids"].version, reason=present["pids"].why)
needs_any = pytest.mark.skipif(not any(one.version for one in present.values()), reason="no controller is ours")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a group away")


@pytest.fixture
def groups() -> Iterator[Groups]:
    made = Groups("TEST")
    yield made
    made.close()
    assert not [each for each in folders_of(made) if os.path.exists(each)]


def folders_of(groups: Groups) -> list[str]:
    return [groups._folder(found) for found in groups.found.values() if found.version]


class Process:
    """A bomb that has not gone off."""

    def __init__(self, *what: str, python: str = sys.executable) -> None:
        self.popen = subprocess.Popen(
            [python, "-S", BOMBS, *what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def go(self) -> str:
        """What became of it; empty if it was killed."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write("go\n")
        self.popen.stdin.flush()
        return self.popen.stdout.readline().strip()

    def end(self) -> int:
        self.popen.kill()
        self.popen.communicate()
        return self.popen.returncode


@pytest.fixture
def process() -> Iterator[type[Process]]:
    made: list[Process] = []

    class Kept(Process):
        def __init__(self, *what: str, python: str = sys.executable) -> None:
            super().__init__(*what, python=python)
            made.append(self)

    yield Kept
    for one in made:
        one.end()


def make(groups: Groups, *, storage: int = 1 << 40, share: int = 100, cpu: float = 0.0, tasks: int = 100) -> Group:
    group = groups.make("ONE", 1, storage=storage, share=share, cpu=cpu, tasks=tasks)
    assert not group.failed
    return group


# -- what there is ------------------------------------------------------------------------------------------------


def hybrid(tmp_path: pathlib.Path) -> tuple[str, str]:
    """The texts of a host with version 1 but for pids, which is with hugetlb in version 2."""
    for folder in ("cpu/user/a b", "memory/user", "unified/user/scope"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "unified/user/scope/cgroup.controllers").write_text("hugetlb pids\n")
    own = "4:memory:/user\n1:cpu,cpuacct:/user/a b\n0::/user/scope\n"
    mounts = textwrap.dedent(f"""\
        20 1 0:5 / / rw,relatime - ext4 /dev/vda rw
        21 20 0:22 / {tmp_path}/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
        22 20 0:23 / {tmp_path}/memory rw,relatime - cgroup cgroup rw,memory
        23 20 0:24 / {tmp_path}/unified rw,relatime - cgroup2 cgroup2 rw
        """)
    return own, mounts


def test_each_controller_is_found_where_it_is(tmp_path: pathlib.Path) -> None:
    assert find(*hybrid(tmp_path)) == {
        "memory": Found("memory", 1, f"{tmp_path}/memory/user"),
        "cpu": Found("cpu", 1, f"{tmp_path}/cpu/user/a b"),
        "pids": Found("pids", 2, f"{tmp_path}/unified/user/scope"),
    }


def test_a_controller_that_is_not_delegated_is_told_with_the_cure(tmp_path: pathlib.Path) -> None:
    own, mounts = hybrid(tmp_path)
    own = own.replace("4:memory:/user\n", "")
    (tmp_path / "unified" / "cgroup.controllers").write_text("memory pids\n")
    (tmp_path / "unified" / "user" / "cgroup.controllers").write_text("pids\n")
    found = find(own, mounts)["memory"]
    assert not found.version
    assert "not delegated" in found.why
    assert "Delegate=" in found.cure


def test_a_controller_that_is_nowhere_is_told_with_the_cure(tmp_path: pathlib.Path) -> None:
    own, mounts = hybrid(tmp_path)
    found = find(own.replace("4:memory:/user\n", ""), mounts)["memory"]
    assert (found.version, found.why) == (0, "there is no memory controller here")
    assert "cgroup_enable=memory" in found.cure


def test_a_mount_shows_the_groups_below_its_root(tmp_path: pathlib.Path) -> None:
    """As in a container that was given its own group under another name, and whose folder has a blank in its name."""
    (tmp_path / "a b" / "below").mkdir(parents=True)
    place = str(tmp_path / "a b").replace(" ", "\\040")
    mounts = f"21 20 0:22 /docker/1 {place} rw - cgroup cgroup rw,memory\n"
    assert find("4:memory:/docker/1/below\n", mounts)["memory"].folder == f"{tmp_path}/a b/below"
    assert find("4:memory:/docker/1\n", mounts)["memory"].folder == f"{tmp_path}/a b"
    assert find("4:memory:/docker/12\n", mounts)["memory"].version == 0


@needs_root
def test_a_group_of_somebody_else_is_told_with_the_cure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        own, mounts = hybrid(pathlib.Path(folder))
        os.seteuid(NOBODY)
        try:
            found = find(own, mounts)
        finally:
            os.seteuid(0)
    assert [one.version for one in found.values()] == [0, 0, 0]
    assert "not ours to divide" in found["memory"].why
    assert "chown" in found["memory"].cure
    assert "not delegated to user 65534" in found["pids"].why
    assert "systemd-run" in found["pids"].cure


def test_version_2_is_written_as_the_kernel_wants_it(tmp_path: pathlib.Path) -> None:
    """On plain files: whether a kernel takes it is for a host with delegated controllers to show."""
    (tmp_path / "cgroup.subtree_control").write_text("memory cpu pids")
    found = {name: Found(name, 2, str(tmp_path)) for name in CONTROLLERS}
    system = pathlib.Path(tmp_path, f"retinue-TEST-{os.getpid()}-{cgroups._started(os.getpid())}")
    machine = system / "ONE.1"
    machine.mkdir(parents=True)
    files = ("memory.max", "memory.swap.max", "memory.oom.group", "cpu.weight", "cpu.max", "pids.max", "cgroup.procs")
    for file in files:
        (machine / file).touch()
    (system / "cgroup.subtree_control").touch()
    groups = Groups("TEST", found)
    group = groups.make("ONE", 1, storage=64 * MIB, share=250, cpu=0.3, tasks=7)
    assert not group.failed
    assert group.doors == ()
    group.move(12345)
    written = {file: (machine / file).read_text() for file in files}
    assert written == {
        "memory.max": "67108864",
        "memory.swap.max": "67108864",
        "memory.oom.group": "1",
        "cpu.weight": "250",
        "cpu.max": "30000 100000",
        "pids.max": "7",
        "cgroup.procs": "12345",
    }
    assert (system / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    (machine / "memory.current").write_text("300\n")
    (machine / "memory.swap.current").write_text("21\n")
    (machine / "memory.peak").write_text("400\n")
    (machine / "memory.events").write_text("low 0\nmax 9\noom 1\noom_kill 1\n")
    assert group.usage() == 321
    assert group.used() == cgroups.Used(400, True)
    (machine / "memory.events").write_text("low 0\nmax 0\noom 0\noom_kill 1\n")
    assert not group.used().out_of_storage  # the host had run out, and not the machine


SECOND = next(
    filter(os.path.exists, ("/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers")), ""
)


@needs_root
@pytest.mark.skipif(not SECOND, reason="version 2 is not mounted")
def test_processes_of_the_system_make_room_for_its_groups() -> None:
    """In version 2. In a group with somebody else in it nothing is changed."""
    top = pathlib.Path(SECOND).parent
    names = (top / "cgroup.subtree_control").read_text().split()
    if not names:
        pytest.skip("at the top of version 2 no controller is given on")
    name = names[-1]
    own = top / f"retinue-room-{os.getpid()}"
    own.mkdir()
    code = f"""
        import json, os, sys
        from retinue.cp.host.cgroups import Groups
        from retinue.cp.host.controllers import Found
        found = {{{name!r}: Found({name!r}, 2, {str(own)!r})}}
        groups = Groups("TEST", found)
        first = [groups.found[{name!r}], open("/proc/self/cgroup").read().splitlines()[-1]]
        group = groups.make("ONE", 1, storage=0, share=1, cpu=0, tasks=1)
        places = group.places
        groups.close()
        print(json.dumps([*first, places, open("/proc/self/cgroup").read().splitlines()[-1]]), flush=True)
        """
    try:
        for stranger in (False, True):
            other = subprocess.Popen(["sleep", "60"])
            try:
                if stranger:
                    (own / "cgroup.procs").write_text(str(other.pid))
                command = ["sh", "-c", f'echo $$ > {own}/cgroup.procs; "$@"; exit $?', "sh", sys.executable, "-c"]
                run = subprocess.run([*command, textwrap.dedent(code)], capture_output=True, text=True, timeout=20)
                assert run.returncode == 0, run.stderr
                found, inside, places, after = json.loads(run.stdout)
                if stranger:
                    assert found[1] == 0
                    assert "other processes than its own are in it" in found[3]
                    assert not places
                    assert inside.endswith(own.name)
                else:
                    assert found[1] == 2
                    assert inside.endswith("/core")
                    [place] = places
                    assert place.startswith(f"{own}/retinue-TEST-")
                assert after.endswith(own.name)
                assert not [each for each in own.iterdir() if each.is_dir()]
                assert name not in (own / "cgroup.subtree_control").read_text()
            finally:
                other.kill()
                other.wait()
    finally:
        own.rmdir()


# -- that it is kept ----------------------------------------------------------------------------------------------


@needs_memory
@pytest.mark.parametrize("kind", ["private", "shared", "memfd", "files"])
def test_nobody_has_more_storage_than_the_limit(
    kind: str, groups: Groups, process: type[Process], tmp_path: pathlib.Path
) -> None:
    """Of every kind; files, where they are in memory."""
    where = [f"/dev/shm/{tmp_path.name}"] if kind == "files" else []
    for folder in where:
        os.mkdir(folder)
    try:
        bomb, peaceful = process(kind, str(128 * MIB), *where), process("private", str(16 * MIB))
        group = make(groups, storage=64 * MIB)
        other = groups.make("TWO", 1, storage=64 * MIB, share=100, cpu=0)
        group.move(bomb.popen.pid)
        other.move(peaceful.popen.pid)
        assert group.holds(bomb.popen.pid)
        assert not group.used().out_of_storage
        assert bomb.go() == ""
        assert bomb.end() == -signal.SIGKILL
        used = group.used()
        assert used.out_of_storage
        assert 60 * MIB < used.peak <= 64 * MIB
        assert peaceful.go() == "had it"
        assert 16 * MIB <= other.usage() < 32 * MIB
        assert not other.used().out_of_storage
    finally:
        for folder in where:
            for file in os.listdir(folder):
                os.unlink(f"{folder}/{file}")
            os.rmdir(folder)


@needs_memory
def test_a_limit_below_what_is_used_is_refused_and_changes_nothing(groups: Groups, process: type[Process]) -> None:
    if present["memory"].version != 1:
        pytest.skip("version 2 would kill, so that nobody asks it")
    shared = process("memfd", str(32 * MIB))
    group = make(groups, storage=64 * MIB)
    group.move(shared.popen.pid)
    assert shared.go() == "had it"
    folder = group._folders["memory"]
    names = [
        name for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if os.path.exists(f"{folder}/{name}")
    ]
    assert "memory." in group.change(storage=4 * MIB)
    assert [kernel_files.number(f"{folder}/{name}") for name in names] == [64 * MIB for _ in names]
    assert group.change(storage=96 * MIB) == ""
    assert [kernel_files.number(f"{folder}/{name}") for name in names] == [96 * MIB for _ in names]


@needs_pids
def test_tasks_are_bounded(groups: Groups, process: type[Process]) -> None:
    bomb = process("threads", "100")
    make(groups, tasks=20).move(bomb.popen.pid)
    assert bomb.go() == "19"


@needs_cpu
def test_processors_are_capped(groups: Groups) -> None:
    busy = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        make(groups, cpu=0.2).move(busy.pid)
        begun, used = time.monotonic(), cpu_time(busy.pid)
        assert select.select([os.pidfd_open(busy.pid)], [], [], 1.5) == ([], [], [])
        share = (cpu_time(busy.pid) - used) / (time.monotonic() - begun)
        assert 0.12 < share < 0.28
    finally:
        busy.kill()
        busy.wait()


def cpu_time(pid: int) -> float:
    fields = stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@needs_any
def test_a_process_with_one_thread_enters_by_itself(groups: Groups) -> None:
    group = make(groups)
    if not group.doors:
        pytest.skip("version 2 has no such doors")
    code = "import sys\nfor door in sys.argv[1:]:\n open(door, 'wb', 0).write(b'0')\nprint(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code, *group.doors], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as inside:
        assert inside.stdout is not None
        inside.stdout.readline()
        assert group.holds(inside.pid)
        inside.communicate(b"\n")
    assert groups.remove(group)


@needs_any
def test_who_is_left_in_a_group_is_killed(groups: Groups, process: type[Process]) -> None:
    left = process("private", "0")
    group = make(groups)
    group.move(left.popen.pid)
    assert not groups.remove(group)
    assert left.popen.wait(PATIENCE) == -signal.SIGKILL
    assert groups.remove(group)
    assert groups.remove(group)


@needs_any
def test_groups_of_the_dead_are_removed_and_others_stay() -> None:
    code = textwrap.dedent("""
        from retinue.cp.host.cgroups import Groups
        groups = Groups("TEST")
        groups.make("ONE", 1, storage=1 << 30, share=1, cpu=0)
        for found in groups.found.values():
            if found.version:
                print(groups._folder(found), flush=True)
        input()
        """)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        folders = [owner.stdout.readline().strip() for one in present.values() if one.version]
        Groups("OTHER").close()
        assert all(map(os.path.isdir, folders))
        owner.kill()
    assert all(map(os.path.isdir, folders))
    Groups("OTHER").close()
    assert not any(map(os.path.exists, folders))


@needs_any
def test_groups_in_which_somebody_lives_are_waited_for_together(
    monkeypatch: pytest.MonkeyPatch, process: type[Process]
) -> None:
    """Their owner is dead, and they are not: a start takes no longer for many of them than for one."""
    folder = next(one.folder for one in present.values() if one.version)
    until: set[float] = set()
    wait = cgroups._wait_for_the_dead

    def waited(pids: set[int], give_up: float) -> None:
        until.add(give_up)
        wait(pids, give_up)

    monkeypatch.setattr(cgroups, "_wait_for_the_dead", waited)
    owner = stat(os.getpid())[19]
    made = [pathlib.Path(folder, f"retinue-TEST{number}-{os.getpid()}-{int(owner) + 1}") for number in range(3)]
    lives = [process("private", str(MIB)) for _ in made]
    try:
        for group, one in zip(made, lives, strict=True):
            group.mkdir()
            group.joinpath("cgroup.procs").write_text(str(one.popen.pid))
        begun = time.monotonic()
        cgroups._remove_dead(folder)
        assert len(until) == 1
        assert begun < until.pop() < time.monotonic() + cgroups.DYING_SECONDS
        assert all(group.is_dir() for group in made)
    finally:
        for one in lives:
            one.end()
        cgroups._remove_dead(folder)
    assert not any(group.exists() for group in made)


@needs_root
@needs_memory
def test_what_root_has_given_away_works_without_privilege(tmp_path: pathlib.Path) -> None:
    """Delegation by chown: a group of somebody's own below ours, in every hierarchy of version 1."""
    if any(found.version != 1 for found in present.values()):
        pytest.skip("delegation of version 2 is by systemd")
    # Who is nobody cannot read everything that we can, so its program is all in one text.
    source = (
        "".join(pathlib.Path(module.__file__ or "").read_text() for module in (kernel_files, controllers, cgroups))
        .replace("from retinue.", "pass  # ")
        .replace("= TASKS", "= 512")
    )
    code = source + textwrap.dedent(f"""
        import json, subprocess, sys
        groups = Groups("TEST")
        bomb = subprocess.Popen([{PYTHON!r}, "-S", "-c", sys.argv[1], "memfd", str(64 << 20)], stdin=-1, stdout=-1)
        group = groups.make("ONE", 1, storage=32 << 20, share=200, cpu=0.5)
        group.move(bomb.pid)
        held = group.holds(bomb.pid)
        bomb.communicate(b"\\n\\n")
        used = group.used()
        print(json.dumps([[f.version for f in groups.found.values()], group.failed, held, bomb.returncode, used]))
        groups.close()
        """)
    given = [os.path.join(found.folder, f"given-{os.getpid()}") for found in present.values()]
    try:
        enter = ""
        for folder in given:
            os.mkdir(folder)
            for path in (folder, f"{folder}/cgroup.procs", f"{folder}/tasks"):
                os.chown(path, NOBODY, NOBODY)
            enter += f"echo $$ > '{folder}/cgroup.procs'; "
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        command = ["sh", "-c", enter + 'exec "$@"', "sh", *user, PYTHON, "-c", code, pathlib.Path(BOMBS).read_text()]
        run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd="/")
        assert run.returncode == 0, run.stderr
        versions, failed, held, status, used = json.loads(run.stdout)
        assert (versions, failed, held, status) == ([1, 1, 1], [], True, -signal.SIGKILL)
        assert used[1] is True
        assert not [each for folder in given for each in os.scandir(folder) if each.is_dir()]
    finally:
        for folder in given:
            with suppress(FileNotFoundError):
                os.rmdir(folder)


async def grouped(shared: Shared) -> Running:
    """The system that tests share, with groups as a real one."""
    return await shared.find("groups", cp_entry="tiny_cp:main_with_groups")


# -- machines -----------------------------------------------------------------------------------------------------


@needs_memory
@pytest.mark.parametrize("kind", ["private", "shared", "memfd"])
async def test_a_machine_out_of_storage_ends_alone(shared: Shared, kind: str) -> None:
    """Either it is refused by a resource limit, and lives, or the kernel kills it and its exit says so."""
    system = await grouped(shared)
    with trio.fail_after(PATIENCE):
        neighbour = await system.spawn("NEXT", storage=64 * MIB)
        machine = await system.spawn("BOMB", storage=64 * MIB)
        await machine.send(f"bombs:{kind}", 256 * MIB)
        answer = b""
        with trio.move_on_after(PATIENCE / 2):
            answer = await machine.control.recv(65536)
        assert b"had it" not in answer
        if answer:
            await machine.send("os:_exit", 1)
        ended = await system.news("exit")
        assert ended["machine"] == "BOMB"
        assert ended["out_of_storage"] is not bool(answer)
        assert killed(ended["status"]) is not bool(answer)
        assert 1 * MIB < ended["peak_storage"] <= 64 * MIB
        assert isinstance(await neighbour.call("os:getpid"), int)
        assert 0 < await system.order("usage", machine="NEXT", generation=neighbour.generation) < 64 * MIB


@needs_any
async def test_every_machine_is_in_its_group_and_none_is_left(start: Start) -> None:
    system = await start(cp_entry="tiny_cp:main_with_groups")
    with trio.fail_after(PATIENCE):
        one, two = await system.spawn("ONE"), await system.spawn("TWO", share=300, cpu=0.5)
        groups = system_groups(system.name)
        assert groups
        for name, machine in (("ONE.1", one), ("TWO.1", two)):
            for group in groups:
                assert (group / name / "cgroup.procs").read_text().split() == [str(machine.pid)]
        report = {limit["limit"]: limit for limit in await system.order("limits")}
        assert report["storage"]["enforced"] is bool(present["memory"].version)
        await one.send("os:_exit", 0)
        await system.news("exit")
        await system.order("limits")
        assert not [group for group in groups if (group / "ONE.1").exists()]
        await system.end()
    assert not system_groups(system.name)


@needs_any
async def test_groups_outlive_a_control_program_and_go_with_the_system(start: Start) -> None:
    """The next one has those of machines that live, and removes those of others."""
    system = await start(cp_entry="tiny_cp:main_with_groups")
    with trio.fail_after(PATIENCE):
        one, two = await system.spawn("ONE"), await system.spawn("TWO", generation=7, storage=64 * MIB)
        groups = system_groups(system.name)
        for group in groups:
            (group / "LEFT.3").mkdir()
        os.kill(system.cp_pid, signal.SIGSTOP)
        await one.send("os:_exit", 0)
        await gone(one.pid)
        await system.succeeded()
        assert (await system.news("exit"))["peak_storage"] > 0
        assert system_groups(system.name) == groups
        for group in groups:
            assert sorted(each.name for each in group.iterdir() if each.is_dir()) == ["TWO.7"]
            assert (group / "TWO.7" / "cgroup.procs").read_text().split() == [str(two.pid)]
        assert 0 < await system.order("usage", machine="TWO", generation=7) < 64 * MIB
        await system.spawn("ONE", generation=2)
        await system.end()
    assert not system_groups(system.name)


async def gone(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    await trio.lowlevel.wait_readable(pidfd)
    os.close(pidfd)


@needs_any
async def test_groups_of_a_killed_nucleus_are_removed_when_another_system_starts(start: Start) -> None:
    system = await start(cp_entry="tiny_cp:main_with_groups")
    with trio.fail_after(PATIENCE):
        await system.spawn("ONE")
        system.nucleus.kill()
        await system.wait()
        await system.all_gone()
    assert [(group / "ONE.1" / "cgroup.procs").read_text() for group in system_groups(system.name)]
    Groups("OTHER").close()
    assert not system_groups(system.name)


def test_a_later_control_program_is_born_in_the_core_and_takes_over_from_there(tmp_path: pathlib.Path) -> None:
    """On plain files: its own group is a child of the system's."""
    (tmp_path / "cgroup.subtree_control").write_text("memory")
    owner = os.getpid()
    system = tmp_path / f"retinue-TEST-{owner}-{cgroups._started(owner)}"
    system.mkdir()
    (system / "cgroup.subtree_control").touch()
    first = Groups("TEST", {"memory": Found("memory", 2, str(tmp_path))}, owner=owner)
    [folder] = folders_of(first)
    for name in ("core", "A.B.12"):
        os.mkdir(f"{folder}/{name}")
    second = Groups("TEST", {"memory": Found("memory", 2, f"{folder}/core")}, owner=owner)
    assert second.found == first.found
    assert second._divided == "-memory"
    assert list(second.adopt()) == [("A.B", 12)]


# -- changed while it runs ------------------------------------------------------------------------------------------


@needs_memory
@needs_cpu
async def test_limits_change_in_place(shared: Shared) -> None:
    system = await grouped(shared)

    async def change(**limits: object) -> str:
        return str(await system.order("set_limits", machine="CHANGED", generation=1, limits=limits))

    with trio.fail_after(PATIENCE):
        machine = await system.spawn("CHANGED", storage=256 * MIB, share=100, code=[PROGRAMS])
        folders = {name: pathlib.Path(path, "CHANGED.1") for name, path in system_folders(system.name).items()}

        assert await change(share=250, cpu=0.5) == ""
        if present["cpu"].version == 1:
            assert (folders["cpu"] / "cpu.shares").read_text().strip() == "2560"
            assert (folders["cpu"] / "cpu.cfs_quota_us").read_text().strip() == "50000"
            assert await change(cpu=0.0) == ""
            assert (folders["cpu"] / "cpu.cfs_quota_us").read_text().strip() == "-1"

        assert await machine.call("inside:allocate", 100 * MIB) == f"has {100 * MIB}"
        assert await change(storage=128 * MIB) == ""
        if present["memory"].version == 1:
            assert (folders["memory"] / "memory.limit_in_bytes").read_text().strip() == str(128 * MIB)
        assert await machine.call("inside:allocate", 120 * MIB) == "MemoryError"
        # Up to what it had at its start nobody needs a privilege, because its group bounds it.
        assert await change(storage=256 * MIB) == ""
        assert await machine.call("inside:allocate", 100 * MIB) == f"has {100 * MIB}"
        assert "private memory" in await change(storage=1 * MIB)
        if present["memory"].version == 1:
            assert (folders["memory"] / "memory.limit_in_bytes").read_text().strip() == str(256 * MIB)
        why = await change(storage=512 * MIB)
        assert not why or "CAP_SYS_RESOURCE" in why
        assert await machine.call("inside:allocate", 400 * MIB) == ("MemoryError" if why else f"has {400 * MIB}")
        assert await system.order("set_limits", machine="CHANGED", generation=9, limits={}) == "it does not run"


async def test_storage_changes_in_place_without_groups(shared: Shared) -> None:
    system = await shared.find()
    with trio.fail_after(PATIENCE):
        machine = await system.spawn("ONE", storage=256 * MIB, code=[PROGRAMS])
        order: dict[str, Any] = {"machine": "ONE", "generation": 1}
        assert await system.order("set_limits", **order, limits={"storage": 128 * MIB}) == ""
        assert await machine.call("inside:allocate", 120 * MIB) == "MemoryError"
        soft, hard = await machine.call("resource:getrlimit", resource.RLIMIT_DATA)
        assert soft == hard == 128 * MIB
        assert await system.order("set_limits", **order, limits={"share": 50, "largest_share": 100}) == ""
        assert await system.order("set_limits", **order, limits={"share": 200, "largest_share": 100}) != ""


async def test_without_groups_the_report_says_what_is_missing(shared: Shared) -> None:
    system = await shared.find()
    with trio.fail_after(PATIENCE):
        report = {limit["limit"]: limit for limit in await system.order("limits")}
    assert list(report) == ["storage", "share", "cpu", "tasks", "disk", "temporary disk"]
    assert not report["storage"]["enforced"]
    assert "watched" in report["storage"]["mechanism"]
    assert report["share"]["mechanism"] in ("autogroup", "nice")
    assert (report["cpu"]["mechanism"], report["cpu"]["enforced"]) == ("none", False)


def system_groups(name: str) -> list[pathlib.Path]:
    folders = {found.folder for found in present.values() if found.version}
    return [path for folder in folders for path in pathlib.Path(folder).glob(f"retinue-{name}-*")]


def system_folders(name: str) -> dict[str, str]:
    return {
        found.controller: str(path)
        for found in present.values()
        if found.version
        for path in pathlib.Path(found.folder).glob(f"retinue-{name}-*")
    }
