"""Users: which ones a namespace knows, and the one that a machine becomes. Standard library only.

A system that root starts gives each machine a user of its own; any other system has one user for all of them. In either
case a machine stands in a user namespace of its own, for there the kernel counts the tasks of each by itself
(RLIMIT_NPROC; user_namespaces(7)).
"""

import contextlib
import os

from retinue.cp.host import libc

__all__ = ["FIRST_OWN", "LAST_OWN", "become", "enter_user_namespace", "own_namespace"]

FIRST_OWN, LAST_OWN = 1_879_048_192, 1_879_048_192 + (1 << 28) - 1
"""The users that machines get: numbers that no account has (systemd.io/UIDS-GIDS)."""


def enter_user_namespace(flags: int) -> None:
    """unshare(2) of ``flags``, a user namespace among them, in which users have the numbers they have outside.

    Started by root it knows every user that there is outside, otherwise the own one alone.
    """
    user, group = os.geteuid(), os.getegid()
    # Only a process outside may write a map of more than its own user (user_namespaces(7)).
    read, write = os.pipe()
    mapper = os.fork() if user == 0 else -1
    if mapper == 0:
        os.close(write)
        os._exit(_map_everybody(os.getppid()) if os.read(read, 1) else 1)
    try:
        libc.unshare(flags)
        os.write(write, b"x")
    finally:
        os.close(write)
        mapped = mapper > 0 and os.waitpid(mapper, 0)[1] == 0
        os.close(read)
    if not mapped:
        _map_one("/proc/self", user, group)


def own_namespace(proc: int) -> None:
    """Enter a user namespace that knows only the user this process is. ``proc`` is the folder /proc.

    It gives every capability over the namespace, and none over anything that exists.
    """
    user, group = os.geteuid(), os.getegid()
    libc.unshare(libc.CLONE_NEWUSER)
    _map_one("self", user, group, proc)


def become(user: int, *, keep_capabilities: bool) -> None:
    """Become ``user``, in the group of the same number and in no other."""
    have = libc.permitted_capabilities()
    if keep_capabilities:
        libc.prctl(libc.PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    if keep_capabilities:
        libc.capset_nothing_but(have)
    # Lost with the change: root would own the files in /proc, and no map of a user namespace could be written.
    libc.prctl(libc.PR_SET_DUMPABLE, 1)


def _map_everybody(pid: int) -> int:
    """In the process outside. Returns its exit status."""
    try:
        for kind in ("uid", "gid"):
            with open(f"/proc/self/{kind}_map") as known:
                same = [f"{first} {first} {count}" for first, _, count in (line.split() for line in known)]
            _write(f"/proc/{pid}/{kind}_map", "\n".join(same))
    except OSError:
        return 1
    return 0


def _map_one(process: str, user: int, group: int, folder: int | None = None) -> None:
    # The kernel lets an unprivileged user map its own group only once setgroups(2) is given up (user_namespaces(7)).
    with contextlib.suppress(FileNotFoundError):  # before Linux 3.19
        _write(f"{process}/setgroups", "deny", folder)
    _write(f"{process}/uid_map", f"{user} {user} 1", folder)
    _write(f"{process}/gid_map", f"{group} {group} 1", folder)


def _write(path: str, text: str, folder: int | None = None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
