"""Attempts to get out of a machine. Each is made by a program inside, under the seal as it is in use."""

import contextlib
import errno
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from tests.cp.host.driving import PATIENCE, Machine, Refused, Running, Start

HERE = Path(__file__).parent
FAMILIES = 64  # Linux has some 46
AF_INET, AF_INET6, STREAM = 2, 10, 1


class Prison(NamedTuple):
    """A machine, and what lies outside of it."""

    system: Running
    machine: Machine
    disk: Path
    outside: Path
    """A folder with a readable and writable file called ``secret``, of the same user, on the same file system."""
    network: bool


@pytest.fixture(params=["sealed", "without-namespaces", "network"])
async def prison(
    request: pytest.FixtureRequest, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Prison]:
    """Every kind of machine: with all layers, where namespaces cannot be had, and with the host's network."""
    if request.param == "without-namespaces":
        monkeypatch.setattr(sys, "executable", without_namespaces(tmp_path))
    system = await start(network=request.param == "network")
    monkeypatch.undo()
    outside, disk, code = tmp_path / "outside", tmp_path / "disk", tmp_path / "topology"
    for folder in (outside, disk, code):
        folder.mkdir()
    for secret in (outside / "secret", code / "secret.key", code / "shop.toml", code / "data" / "secret"):
        secret.parent.mkdir(exist_ok=True)
        secret.write_text("secret")
        secret.chmod(0o666)
    shutil.copy(HERE / "attempts.py", code)
    with trio.fail_after(PATIENCE):
        network = request.param == "network"
        machine = await system.spawn("PRISONER", network=network, disks=[str(disk)], code=[str(code)])
        report = {one["layer"]: one for one in await system.order("report") if one["system"] == "sealed"}
        if request.param == "without-namespaces":
            assert "pid-ns" not in machine.seal
            assert "user namespaces are off" in report["pid-ns"]["why"]
        yield Prison(system, machine, disk, outside, network)


def without_namespaces(folder: Path) -> str:
    """A Python in a user namespace that allows no further ones: the state of a host that has them switched off."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare(1)")
    wrapper = folder / "python"
    inner = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"'
    wrapper.write_text(
        f"#!/bin/sh\nexec {unshare} --user --map-current-user --keep-caps sh -c '{inner}' {sys.executable} \"$@\"\n"
    )
    wrapper.chmod(0o755)
    return str(wrapper)


async def test_sealed_machine_has_every_layer_the_host_can_give(start: Start, tmp_path: Path) -> None:
    """As root or not: where unshare(1) can make the namespaces, a sealed machine stands in them."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare(1)")
    wanted = ["--user", "--map-current-user", "--pid", "--fork", "--net", "--ipc", "--uts", "--mount"]
    if (await trio.run_process([unshare, *wanted, "true"], stderr=subprocess.DEVNULL, check=False)).returncode:
        pytest.skip("this host refuses namespaces to this user")
    system = await start()
    with trio.fail_after(PATIENCE):
        machine = await system.spawn("PRISONER")
    assert {"no-new-privs", "landlock", "seccomp"} <= set(machine.seal)
    assert {"user-ns", "pid-ns", "net-ns", "ipc-ns", "uts-ns", "no-proc"} <= set(machine.seal)


@contextlib.contextmanager
def refused(*numbers: int) -> Iterator[None]:
    """What is in this context must be refused with one of these errno."""
    with pytest.raises(Refused) as caught:
        yield
    assert caught.value.errno in numbers, caught.value


# The network.


async def test_opens_no_socket_of_any_family(prison: Prison) -> None:
    found = await prison.machine.call("attempts:sockets", FAMILIES)
    if prison.network:
        # TCP and nothing else. Where a kernel has no IPv6 the attempt says so.
        assert set(found) == {f"{AF_INET}/{STREAM}", f"{AF_INET6}/{STREAM}"}
    else:
        assert found == {}


async def test_sends_nothing_to_a_named_socket_by_way_of_a_pair(prison: Prison) -> None:
    address = str(prison.disk / "named")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as named:
        named.setblocking(False)
        named.bind(address)
        for way in ("datagram", "stream", "packet"):
            # The kernel ignores an address where the socket is connected anyway: then nothing may arrive.
            with contextlib.suppress(Refused):
                await prison.machine.call(f"attempts:{way}_to_a_named_socket", address)
            with pytest.raises(BlockingIOError):
                named.recv(16)


# Other processes.


async def test_signals_no_other_process(prison: Prison) -> None:
    assert await prison.machine.call("attempts:signal_everybody", highest_pid()) == []


async def test_learns_nothing_of_processes_from_proc(prison: Prison) -> None:
    for path in ("/proc/1/environ", "/proc/1/cmdline", f"/proc/{prison.system.cp_pid}/mem", "/proc/self/mem"):
        with refused(errno.EACCES, errno.ENOENT):
            await prison.machine.call("attempts:read", path)
    if "no-proc" in prison.machine.seal:
        assert await prison.machine.call("attempts:visible_processes", highest_pid()) == []
    else:
        with refused(errno.EACCES):
            await prison.machine.call("attempts:listing", "/proc")


async def test_makes_no_process_signals_nobody_by_descriptor_and_raises_no_limit(prison: Prison) -> None:
    for attempts in ("new_processes", "signals_by_descriptor", "more_than_allowed"):
        assert await prison.machine.call(f"attempts:{attempts}") == {}


async def test_has_no_privilege_and_cannot_gain_one(prison: Prison) -> None:
    status = status_of(prison.machine.pid)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    # With the host's network and as root: to bind a port below 1024, nothing else.
    allowed = 1 << 10 if prison.network else 0
    assert {name: status[name] for name in ("CapInh", "CapAmb")} == {"CapInh": "0" * 16, "CapAmb": "0" * 16}
    assert {int(status[name], 16) & ~allowed for name in ("CapPrm", "CapEff")} == {0}


async def test_every_dangerous_system_call_is_refused(prison: Prison) -> None:
    assert await prison.machine.call("attempts:raw_calls") == {}
    if platform.machine() == "x86_64":
        assert await prison.machine.call("attempts:other_architecture") == -errno.EPERM


# Files.


async def test_reads_no_file_that_is_neither_code_nor_its_own(prison: Prison) -> None:
    for path in (
        "/etc/passwd",
        "/etc/shadow",
        "/etc/machine-id",
        "/dev/kmsg",
        "/dev/mem",
        "/dev/kvm",
        "/dev/tty",
        "/sys/kernel/notes",
        "OUTSIDE/secret",
        "TOPOLOGY/secret.key",
        "TOPOLOGY/shop.toml",
        "TOPOLOGY/data/secret",
        "STATE/nucleus.log",
        "RUNTIME/lock",
        "HOME/.profile",
    ):
        with refused(errno.EACCES, errno.ENOENT):
            await prison.machine.call("attempts:read", path_of(prison, path))


async def test_lists_no_folder_that_is_neither_code_nor_its_own(prison: Prison) -> None:
    for path in (
        "/",
        "/etc",
        "/home",
        "/tmp",
        "/root",
        "/run",
        "OUTSIDE",
        "TOPOLOGY",
        "STATE",
        "DISKS",
    ):
        with refused(errno.EACCES, errno.ENOENT):
            await prison.machine.call("attempts:listing", path_of(prison, path))


async def test_writes_nowhere_but_to_its_disk(prison: Prison) -> None:
    for path in (
        "OUTSIDE/secret",
        "OUTSIDE/new",
        "/tmp/new",
        "/dev/shm/new",
        "TOPOLOGY/attempts.py",
        __file__,
    ):
        with refused(errno.EACCES, errno.ENOENT):
            await prison.machine.call("attempts:write", path_of(prison, path))


async def test_no_link_leads_out_of_its_disk(prison: Prison) -> None:
    call, secret = prison.machine.call, str(prison.outside / "secret")
    (prison.disk / "laid").symlink_to(prison.outside)
    with refused(errno.EACCES):
        await call("attempts:read", str(prison.disk / "laid" / "secret"))
    with refused(errno.EACCES):
        await call("attempts:point_there", secret, str(prison.disk / "soft"))
    with refused(errno.EACCES, errno.EXDEV):
        await call("attempts:link_here", secret, str(prison.disk / "hard"))
    with refused(errno.EACCES, errno.EXDEV):
        await call("attempts:move_here", secret, str(prison.disk / "moved"))
    with refused(errno.EACCES):
        await call("attempts:read", str(prison.disk / ".." / "outside" / "secret"))


async def test_changes_no_file_it_cannot_open(prison: Prison) -> None:
    secret = prison.outside / "secret"
    before = secret.stat()
    assert await prison.machine.call("attempts:metadata", str(secret)) == {}
    assert secret.stat()[:9] == before[:9]


async def test_empties_no_file_it_may_only_read(prison: Prison) -> None:
    program = prison.outside.parent / "topology" / "attempts.py"
    with refused(errno.EACCES, errno.EPERM):
        await prison.machine.call("attempts:empty_while_reading", str(program))
    assert program.stat().st_size


async def test_makes_neither_devices_nor_channels_nor_set_user_id_files(prison: Prison) -> None:
    with refused(errno.EPERM, errno.EACCES):
        await prison.machine.call("attempts:device_node", str(prison.disk / "null"))
    with refused(errno.EPERM, errno.EACCES):
        await prison.machine.call("attempts:named_pipe", str(prison.disk / "pipe"))
    assert await prison.machine.call("attempts:set_user_id", str(prison.disk / "program")) == {}


async def test_does_not_read_the_disk_of_another_machine(prison: Prison) -> None:
    disk = prison.disk.parent / "other"
    disk.mkdir()
    other = await prison.system.spawn("OTHER", network=prison.network, disks=[str(disk)], code=[str(HERE)])
    await other.call("attempts:write", str(disk / "mine"))
    with refused(errno.EACCES):
        await prison.machine.call("attempts:read", str(disk / "mine"))
    with refused(errno.EACCES):
        await other.call("attempts:listing", str(prison.disk))


# The attempts themselves.


async def test_attempts_succeed_where_there_is_no_seal(start: Start, tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    system = await start(network=True, boot_entry="tiny_boot:boot_unsealed")
    machine = await system.spawn(network=True, code=[str(HERE)])
    secret = tmp_path / "secret"
    secret.write_text("secret")
    sockets = await machine.call("attempts:sockets", FAMILIES)
    assert {name for name, result in sockets.items() if result == "open"} > {f"{AF_INET}/{STREAM}", "1/1", "16/2"}
    assert await machine.call("attempts:read", "/etc/passwd")
    assert await machine.call("attempts:point_there", str(secret), str(tmp_path / "soft")) == repr(b"secret")
    assert await machine.call("attempts:link_here", str(secret), str(tmp_path / "hard")) == repr(b"secret")
    assert await machine.call("attempts:signal_everybody", system.nucleus.pid + 1)
    assert await machine.call("attempts:visible_processes", system.nucleus.pid + 1)
    assert "utime" in await machine.call("attempts:metadata", str(secret))
    assert secret.read_text() == ""
    assert set(await machine.call("attempts:set_user_id", str(tmp_path / "program"))) == {"fchmod", "open"}
    assert await machine.call("attempts:fork") == "forked"


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def highest_pid() -> int:
    """No process has a higher pid."""
    return max(int(name) for name in os.listdir("/proc") if name.isdecimal()) + 100


def path_of(prison: Prison, path: str) -> str:
    """A path in which the words in capitals stand for folders of the test."""
    words = {
        "OUTSIDE": prison.outside,
        "TOPOLOGY": prison.outside.parent / "topology",
        "STATE": prison.system.state,
        "RUNTIME": prison.system.runtime,
        "DISKS": prison.disk.parent,
        "HOME": Path.home(),
    }
    first, slash, rest = path.partition("/")
    return f"{words[first]}{slash}{rest}" if first in words else path
