"""What a sealed machine has and has not, at every rung that this host can build."""

import errno
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.cp.host import rungs
from tests.cp.host.driving import PATIENCE, PROGRAMS, Machine, Refused, Running, Shared

from retinue.cp.host.seal import hygiene
from retinue.cp.host.seal.users import FIRST_OWN

ROOT = os.geteuid() == 0
STORAGE = 128 << 20
MIB = 1 << 20

EVERYTHING: tuple[str, ...] = ()
RUNGS = [EVERYTHING, ("user-namespaces",), ("landlock",), ("mounts",), ("mount-attributes",)]


async def find(shared: Shared, without: tuple[str, ...] = EVERYTHING) -> Running:
    """The system on a host without something, which has machines of either kind."""
    with pytest.MonkeyPatch.context() as patch:
        if without:
            patch.setattr(sys, "executable", rungs.interpreter(shared.folder, *without))
        return await shared.find("-".join(without), network=True)


async def layers(system: Running, kind: str = "sealed") -> dict[str, str]:
    """The layers that are absent, and why."""
    report = await system.order("report")
    return {one["layer"]: one["why"] for one in report if one["system"] == kind and not one["present"]}


async def spawn(system: Running, name: str = "ONE", **birth: Any) -> Machine:
    """A machine with a user of its own where the host has one for it, and its disks belong to it."""
    network = birth.get("network", False)
    own = "own-uid" not in await layers(system, "network" if network else "sealed")
    uid = FIRST_OWN + len(name) if own else -1
    for disk in birth.get("disks", ()):
        os.makedirs(disk, exist_ok=True)
        if own:
            os.chown(disk, uid, uid)
    return await system.spawn(name, uid=uid, **{"storage": STORAGE, "code": [PROGRAMS], **birth})


def full(system: str = "sealed") -> set[str]:
    """The layers that need not be there even where all can be had."""
    absent = set() if ROOT else {"own-uid"}
    if system == "network":
        absent |= {"net-ns", "user-ns"} if ROOT else {"net-ns"}
    return absent


@pytest.mark.parametrize("kind", ["sealed", "network"])
async def test_every_layer_is_there_where_the_host_has_everything(shared: Shared, kind: str) -> None:
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        absent = await layers(system, kind)
        if "mount-ns" in absent:
            pytest.skip("this host has no namespaces for this user")
        assert set(absent) == full(kind)


@pytest.mark.parametrize("without", RUNGS, ids="-".join)
async def test_each_rung_lacks_what_was_taken_away_and_says_so(
    shared: Shared, tmp_path: Path, without: tuple[str, ...]
) -> None:
    system = await find(shared, without)
    with trio.fail_after(PATIENCE):
        absent = await layers(system)
        machine = await spawn(system, disks=[str(tmp_path / "disk")])
        assert await machine.call("inside:work", str(tmp_path / "disk")) == "done"
    assert not set(absent) & set(machine.seal)
    if "user-namespaces" in without:
        assert absent["user-ns"] == "user namespaces are off for this user: Operation not permitted"
        if ROOT:
            assert set(absent) == {"user-ns"}
        else:
            assert {"mount-ns", "pid-ns", "net-ns"} <= set(absent)
            assert absent["mount-ns"] == absent["user-ns"]
    if "landlock" in without:
        assert set(absent) == full() | {"landlock"}
        assert absent["landlock"].startswith("Function not implemented (needs a kernel of at least 5.13")
    if "mount-attributes" in without:
        assert "needs Linux 5.12" in absent["mount-ns"]
        assert "no-proc" not in absent
    if "mounts" in without:
        assert {"mount-ns", "no-proc"} <= set(absent)
        assert not {"pid-ns", "net-ns", "landlock"} & set(absent)


@pytest.mark.parametrize("without", RUNGS, ids="-".join)
@pytest.mark.parametrize("network", [False, True], ids=["sealed", "network"])
async def test_disks_links_and_temporary_disks_are_what_they_are_at_every_rung(
    shared: Shared, tmp_path: Path, without: tuple[str, ...], network: bool
) -> None:
    system = await find(shared, without)
    disk, link, scratch, other = (tmp_path / name for name in ("disk", "link", "scratch", "other"))
    for folder in (link, scratch, other):
        folder.mkdir()
    for folder in (link, other):
        (folder / "file").write_text("text")
        folder.chmod(0o755)
    with trio.fail_after(PATIENCE):
        machine = await spawn(
            system,
            network=network,
            disks=[str(disk)],
            links=[str(link)],
            temporary=[[str(scratch), MIB]],
        )
        await machine.call("native:write", str(disk / "file"), "text")
        assert (disk / "file").read_text() == "text"
        assert await machine.call("native:read", str(link / "file")) == "text"
        with pytest.raises(Refused) as caught:
            await machine.call("native:write", str(link / "file"), "other")
        assert caught.value.errno in (errno.EACCES, errno.EROFS)
        await machine.call("native:write", str(scratch / "file"), "text")
        assert (scratch / "file").exists() == ("mount-ns" not in machine.seal)
        for path in (other / "file", tmp_path, Path("/etc/passwd"), Path("/proc/1/environ"), Path(__file__)):
            with pytest.raises(Refused) as caught:
                await machine.call("native:read", str(path))
            assert caught.value.errno in (errno.EACCES, errno.ENOENT, errno.EISDIR), path
        if "mount-ns" in machine.seal:
            with pytest.raises(Refused) as caught:
                await machine.call("native:fill", str(scratch / "large"), 2 * MIB)
            assert caught.value.errno == errno.ENOSPC
            assert (
                await machine.call("native:exists", "/proc", "/sys", "/etc/passwd", str(other), str(other / "..")) == []
            )
            assert await machine.call("native:mounts_again") == {}


async def test_machine_sees_no_mount_of_another(shared: Shared, tmp_path: Path) -> None:
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        one = await spawn(system, "ONE", disks=[str(tmp_path / "disks" / "one")])
        three = await spawn(system, "THREE", disks=[str(tmp_path / "disks" / "three")])
        if "mount-ns" not in one.seal:
            pytest.skip("this host has no namespaces for this user")
        for machine, disk in ((one, "one"), (three, "three")):
            ways = [str(tmp_path / "disks" / name) for name in ("one", "three")]
            assert await machine.call("native:exists", *ways) == [str(tmp_path / "disks" / disk)]


@pytest.mark.skipif(not ROOT, reason="only root can give users away")
async def test_each_machine_of_root_is_a_user_of_its_own(shared: Shared, tmp_path: Path) -> None:
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        for name, network in (("ONE", False), ("FOUR", True)):
            machine = await spawn(system, name, network=network, disks=[str(tmp_path / name)])
            user = FIRST_OWN + len(name)
            assert await machine.call("native:identity") == [user, user, user, [], 1]
            await machine.call("native:write", str(tmp_path / name / "file"), "text")
            assert (tmp_path / name / "file").stat().st_uid == user
            status = status_of(machine.pid)
            assert f"Uid:\t{user}\t{user}\t{user}\t{user}" in status
            assert "Groups:\t \n" in status
            assert "\nCapInh:\t0000000000000000\n" in status


@pytest.mark.skipif(not ROOT, reason="only root has namespaces without one of users")
@pytest.mark.parametrize("kind", ["program", "exec"])
async def test_root_needs_no_user_namespaces(shared: Shared, tmp_path: Path, kind: str) -> None:
    system = await find(shared, ("user-namespaces",))
    with trio.fail_after(PATIENCE):
        machine = await spawn(system, kind=kind, disks=[str(tmp_path / "disk")])
        user = FIRST_OWN + 3
        assert await machine.call("native:identity") == [user, user, user, [], 1]
        assert set(full()) | {"user-ns"} == set(await layers(system))
        for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
            assert os.readlink(f"/proc/{machine.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), name
        assert os.readlink(f"/proc/{machine.pid}/ns/user") == os.readlink("/proc/self/ns/user")
        for line in status_of(machine.pid).splitlines():
            if line.startswith("Cap"):
                assert line.split()[1] == "0" * 16, line
        assert await machine.call("native:mounts_again") == {}
        assert hygiene.TASKS - 8 <= await machine.call("native:thread_bomb") < hygiene.TASKS


@pytest.mark.skipif(not ROOT, reason="only root may bind low ports")
async def test_right_to_low_ports_outlasts_the_change_of_user_and_no_other_does(shared: Shared) -> None:
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        machine = await spawn(system, network=True)
        assert await machine.call("inside:listen_on_a_low_port") < 1024
        for line in status_of(machine.pid).splitlines():
            if line.startswith(("CapPrm", "CapEff", "CapBnd")):
                assert int(line.split()[1], 16) & ~(1 << 10) == 0


@pytest.mark.parametrize("without", RUNGS, ids="-".join)
async def test_machine_with_the_hosts_network_resolves_names_and_sends_datagrams(
    shared: Shared, without: tuple[str, ...]
) -> None:
    system = await find(shared, without)
    with trio.fail_after(PATIENCE):
        machine = await spawn(system, network=True)
        assert "127.0.0.1" in await machine.call("native:addresses", "localhost")
        assert await machine.call("native:datagram") == "text"


async def test_program_that_was_replaced_is_what_the_next_machine_has(shared: Shared, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "shop.py").write_text("def version():\n    return 1\n")
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        first = await spawn(system, "ONE", code=[str(code)])
        assert await first.call("shop:version") == 1
        (code / "new").write_text("def version():\n    return 22\n")
        (code / "new").replace(code / "shop.py")
        (code / "more.py").write_text("def version():\n    return 3\n")
        second = await spawn(system, "TWO", code=[str(code)])
        assert await second.call("shop:version") == 22
        assert await second.call("more:version") == 3


async def test_modules_can_be_imported_late_though_their_folder_has_changed(shared: Shared, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "shop.py").write_text("def version():\n    return 1\n")
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        machine = await spawn(system, "ONE", code=[str(code)], disks=[str(tmp_path / "code" / "state" / "disk")])
        if "mount-ns" not in machine.seal:
            pytest.skip("this host has no namespaces for this user")
        (code / "other").write_text("")
        assert await machine.call("shop:version") == 1


async def test_code_is_reached_by_links_and_below_a_private_folder(shared: Shared, tmp_path: Path) -> None:
    private = tmp_path / "private"
    (private / "real").mkdir(parents=True)
    (private / "real" / "shop.py").write_text("def version():\n    return 1\n")
    (private / "code").symlink_to("real")
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        if "mount-ns" in await layers(system):
            pytest.skip("this host has no namespaces for this user")
        private.chmod(0o700)
        machine = await spawn(system, "ONE", code=[str(private / "code")])
        assert await machine.call("shop:version") == 1


@pytest.mark.parametrize("without", RUNGS, ids="-".join)
@pytest.mark.parametrize("network", [False, True], ids=["sealed", "network"])
async def test_machine_changes_neither_mode_nor_times_of_what_it_may_only_read(
    shared: Shared, tmp_path: Path, without: tuple[str, ...], network: bool
) -> None:
    """By a descriptor, which Landlock does not look at, of a file that its own user owns."""
    code, link = tmp_path / "code", tmp_path / "link"
    code.mkdir()
    link.mkdir(mode=0o755)
    (code / "shop.py").write_text("")
    (link / "file").write_text("")
    system = await find(shared, without)
    with trio.fail_after(PATIENCE):
        machine = await spawn(
            system, network=network, code=[PROGRAMS, str(code)], links=[str(link)], disks=[str(tmp_path / "disk")]
        )
        for path in (code / "shop.py", link / "file"):
            if machine.seal and "own-uid" in machine.seal:
                os.chown(path, FIRST_OWN + 3, FIRST_OWN + 3)
            path.chmod(0o644)
            before = path.stat()
            for call in ("native:set_mode", "native:set_times"):
                with pytest.raises(Refused) as caught:
                    await machine.call(call, str(path))
                assert caught.value.errno in (errno.EPERM, errno.EROFS)
            assert (path.stat().st_mode, path.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
        if "mount-ns" in machine.seal:
            own = tmp_path / "disk" / "file"
            await machine.call("native:write", str(own), "text")
            await machine.call("native:set_mode", str(own))
            await machine.call("native:set_times", str(own))
            assert (own.stat().st_mode & 0o777, own.stat().st_mtime) == (0o640, 1.0)


async def test_native_program_sets_modes_and_times_of_its_own_files(shared: Shared, tmp_path: Path) -> None:
    system = await find(shared)
    if "mount-ns" in await layers(system):
        pytest.skip("this host has no namespaces for this user")
    with trio.fail_after(PATIENCE):
        machine = await spawn(system, kind="exec", disks=[str(tmp_path / "disk")])
        own = tmp_path / "disk" / "file"
        script = f"echo x > {own}; chmod 640 {own}; touch -d @1 {own}"
        assert await machine.call("native:shell", "/bin/sh", "-c", script) == [0, "", ""]
        assert (own.stat().st_mode & 0o777, own.stat().st_mtime) == (0o640, 1.0)


# Limits.


@pytest.mark.parametrize("without", RUNGS, ids="-".join)
@pytest.mark.parametrize("network", [False, True], ids=["sealed", "network"])
async def test_limits_are_what_they_should_be(shared: Shared, without: tuple[str, ...], network: bool) -> None:
    system = await find(shared, without)
    with trio.fail_after(PATIENCE):
        machine = await spawn(system, network=network)
        core = await machine.call("resource:getrlimit", resource.RLIMIT_CORE)
        # Who may not raise a hard limit has none, and nothing in its dump.
        assert core == [1, 1] or (core == [0, 0] and resource.getrlimit(resource.RLIMIT_CORE)[1] == 0)
        for name, value in (("SIGPENDING", 256), ("NOFILE", 4096), ("MSGQUEUE", 0), ("MEMLOCK", 0)):
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
            assert await machine.call("resource:getrlimit", kind) == [wanted, wanted], name


async def test_core_dump_of_a_machine_would_hold_nothing(shared: Shared) -> None:
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        for network in (False, True):
            machine = await spawn(system, "NETWORK" if network else "SEALED", network=network)
            assert int(core_filter_of(machine.pid), 16) == 0


@pytest.mark.parametrize("network", [False, True], ids=["sealed", "network"])
async def test_pending_signals_of_a_machine_are_bounded_and_those_of_its_neighbour_do_not_count(
    shared: Shared, network: bool
) -> None:
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        one = await spawn(system, "ONE", network=network)
        other = await spawn(system, "OTHER")
        if "tasks" not in one.seal:
            pytest.skip("this host has no namespaces for this user")
        counts = [await one.call("native:signal_bomb"), await other.call("native:signal_bomb")]
    assert counts == [hygiene.SIGNALS, hygiene.SIGNALS]


@pytest.mark.parametrize("network", [False, True], ids=["sealed", "network"])
async def test_tasks_of_a_machine_are_bounded_and_those_of_its_neighbour_do_not_count(
    shared: Shared, network: bool
) -> None:
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        one = await spawn(system, "ONE", network=network)
        other = await spawn(system, "OTHER")
        if "tasks" not in one.seal:
            pytest.skip("this host does not count them")
        await one.send("native:thread_bomb")
        counts = [await other.call("native:thread_bomb"), await one.answer()]
    assert all(hygiene.TASKS - 8 <= count < hygiene.TASKS for count in counts), counts


async def test_storage_bounds_shared_memory_and_files_as_well(shared: Shared, tmp_path: Path) -> None:
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        machine = await spawn(system, disks=[str(tmp_path / "disk")])
        mapped = await machine.call("native:shared_memory")
        assert STORAGE // MIB <= mapped <= (STORAGE + hygiene.MAPPED_MARGIN) // MIB
        file = str(tmp_path / "disk" / "file")
        assert await machine.call("native:large_file", file, STORAGE + 1) == "EFBIG"
        assert await machine.call("native:large_file", file, STORAGE) == "made"
        wide = await spawn(system, "WIDE", disks=[str(tmp_path / "wide")], file_size=2 * STORAGE)
        assert await wide.call("native:large_file", str(tmp_path / "wide" / "file"), 2 * STORAGE) == "made"


async def test_least_storage_is_enough_for_threads(shared: Shared) -> None:
    system = await find(shared)
    with trio.fail_after(PATIENCE):
        machine = await spawn(system, storage=32 * MIB)
        assert await machine.call("native:stacks", 4) == 4


# Native programs.


@pytest.fixture
async def native(shared: Shared, tmp_path: Path) -> Machine:
    """An ``exec`` machine with a disk."""
    system = await find(shared)
    if "mount-ns" in await layers(system):
        pytest.skip("this host has no namespaces for this user")
    return await spawn(system, kind="exec", disks=[str(tmp_path / "disk")], storage=512 * MIB)


async def test_native_program_runs_and_cannot_see_out(native: Machine) -> None:
    with trio.fail_after(PATIENCE):
        status, output, _ = await native.call("native:shell", "/bin/sh", "-c", "id -un; echo x > /run/x; cat /run/x")
        assert (status, output) == (0, "one\nx\n")
        assert await native.call("native:exists", "/proc", "/sys", "/home", "/etc/shadow", "/dev/tty") == []
        assert await native.call("native:mounts_again") == {}
        status, _, _ = await native.call("native:shell", "/bin/sh", "-c", "ls / || ls /etc || echo x > /usr/bin/x")
        assert status != 0


async def test_native_program_may_lie_beside_the_topology(shared: Shared, tmp_path: Path) -> None:
    program, other = tmp_path / "server", tmp_path / "other"
    for script in (program, other):
        script.write_text("#!/bin/sh\necho served\n")
        script.chmod(0o755)
    system = await find(shared)
    if "mount-ns" in await layers(system):
        pytest.skip("this host has no namespaces for this user")
    with trio.fail_after(PATIENCE):
        machine = await spawn(system, kind="exec", executable=str(program))
        assert await machine.call("native:shell", str(program)) == [0, "served\n", ""]
        with pytest.raises(Refused) as caught:
            await machine.call("native:shell", str(other))
        assert caught.value.errno == errno.ENOENT


async def test_native_program_runs_nothing_that_it_wrote_itself(native: Machine, tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        for folder in (tmp_path / "disk", Path("/run")):
            script = str(folder / "script")
            await native.call("native:write", script, "#!/bin/sh\necho ran\n")
            status, output, _ = await native.call("native:shell", "/bin/sh", "-c", f"chmod +x {script}; {script}")
            assert (status, output) == (126, "")


async def test_native_forks_are_bounded(native: Machine) -> None:
    with trio.fail_after(3 * PATIENCE):  # hundreds of processes
        assert hygiene.TASKS - 8 <= await native.call("native:fork_bomb") < hygiene.TASKS


async def test_names_of_sockets_and_segments_are_no_channel_between_native_machines(shared: Shared) -> None:
    system = await find(shared)
    if "mount-ns" in await layers(system):
        pytest.skip("this host has no namespaces for this user")
    with trio.fail_after(PATIENCE):
        one, two = await spawn(system, "ONE", kind="exec"), await spawn(system, "TWO", kind="exec")
        assert await one.call("native:name", "channel") == "named"
        with pytest.raises(Refused) as caught:
            await two.call("native:connect", "channel")
        assert caught.value.errno in (errno.ECONNREFUSED, errno.EPERM)
        assert await two.call("native:name", "channel") == "named"
        await one.call("native:segment", 4711, True)
        with pytest.raises(Refused) as caught:
            await two.call("native:segment", 4711, False)
        assert caught.value.errno == errno.ENOENT


async def test_native_processes_end_with_their_machine(native: Machine, tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        await native.call("native:daemon", str(tmp_path / "disk"))
        children = [os.pidfd_open(child) for child in children_of(native.pid)]
        assert children
        await native.send("os:_exit", 0)
        for child in children:
            await trio.lowlevel.wait_readable(child)
            os.close(child)


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
async def test_redis_serves_saves_and_stops(native: Machine, tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        answers = await native.call("native:redis", str(tmp_path / "disk"))
    assert answers == ["+OK\r\n", "$1\r\n1\r\n", "+Background saving started\r\n", "", "dump.rdb"]


@pytest.mark.parametrize(
    "without", [("mounts",), ("user-namespaces", "mounts") if ROOT else ("user-namespaces",)], ids="-".join
)
async def test_native_program_is_refused_where_it_could_not_be_held(shared: Shared, without: tuple[str, ...]) -> None:
    system = await find(shared, without)
    with trio.fail_after(PATIENCE), pytest.raises(Refused, match="a machine without mount-ns"):
        await spawn(system, kind="exec")


def status_of(pid: int) -> str:
    """What the kernel says of a process."""
    return Path(f"/proc/{pid}/status").read_text()


def core_filter_of(pid: int) -> str:
    """Which memory a core file would hold."""
    return Path(f"/proc/{pid}/coredump_filter").read_text()


def children_of(pid: int) -> list[int]:
    """All descendants."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *children_of(child)]
    return found
