"""Starting a system from outside: the command line calls this, and has nothing further to do with the nucleus."""

import os
import socket
import subprocess
from collections.abc import Collection, Sequence
from typing import IO

from retinue.cp.host import nucleus, process, saved, swap
from retinue.cp.host.image import environment

__all__ = ["launch"]


def launch(
    *,
    system: str,
    topology: str,
    runtime: str,
    state: str,
    console: socket.socket,
    stderr_file: IO[bytes] | IO[str] | int,
    network: bool,
    preload: Sequence[str] = (),
    secrets: int = -1,
    volume: str = "",
    leave_out: Collection[str] = (),
    cp_entry: str = nucleus.CP_ENTRY,
    boot_entry: str = saved.BOOT_ENTRY,
) -> "subprocess.Popen[bytes]":
    """Start a nucleus, in a session of its own, for one system.

    :param system: its name, from the topology.
    :param topology: the file; the CP reads it again by itself.
    :param runtime: folder for the operator's socket, the lock and ``system.json``; it must exist. Removed at the end.
    :param state: folder for ``end.json`` (and what the CP keeps there); it must exist.
    :param console: the CP's first operator path. Borrowed: close it when this returns, so that you see the CP's end.
    :param stderr_file: where standard output and error of nucleus, CP and saved systems go.
    :param network: whether any machine keeps the host's network.
    :param preload: modules that the saved systems import, ``[system] preload``.
    :param secrets: a descriptor for the CP, which the nucleus keeps open for the next one; -1 for none. Borrowed.
    :param volume: the paging volume, which a process of its own takes back if all others of the system are killed.
    :param leave_out: variables of the environment that no process of the system gets.
    :returns: the nucleus. Its exit status: what the CP ended the system with; 1 if it ended badly, 73 if ``runtime``
        cannot be written to, 75 if another nucleus holds it.
    """
    arguments = {
        "path": process.import_path(),
        "entry": nucleus.ENTRY,
        "parent": 0,
        "title": "nucleus",
        "system": system,
        "topology": os.path.abspath(topology),
        "runtime": os.path.abspath(runtime),
        "state": os.path.abspath(state),
        "console": console.fileno(),
        "secrets": secrets,
        "network": network,
        "preload": list(preload),
        "cp_entry": cp_entry,
        "boot_entry": boot_entry,
    }
    started = subprocess.Popen(
        process.command(arguments, site=False),
        stdin=subprocess.DEVNULL,
        stdout=stderr_file,
        stderr=stderr_file,
        pass_fds=[console.fileno(), *([secrets] if secrets >= 0 else [])],
        env={name: value for name, value in os.environ.items() if name not in leave_out},
        cwd="/",
        start_new_session=True,
    )
    if volume:
        _start_guard(started.pid, volume, stderr_file)
    return started


def _start_guard(nucleus_pid: int, volume: str, stderr_file: IO[bytes] | IO[str] | int) -> None:
    """It outlives the nucleus for a moment, and has no part in anything else."""
    pidfd = os.pidfd_open(nucleus_pid)
    try:
        arguments = {"path": process.import_path(), "entry": swap.GUARD_ENTRY, "parent": 0, "title": "volume-guard"}
        guard = subprocess.Popen(
            process.command({**arguments, "nucleus": pidfd, "volume": volume}, site=False),
            stdin=subprocess.DEVNULL,
            stdout=stderr_file,
            stderr=stderr_file,
            pass_fds=[pidfd],
            env=environment(dict(os.environ)),
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(pidfd)
    guard.returncode = 0  # nobody waits for it: it ends later than whoever has started it
