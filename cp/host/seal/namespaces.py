"""The namespaces of the saved system that sealed machines are forked from. Standard library only.

User, PID, network, IPC, UTS and mount namespaces; all machines of a system share one empty network namespace and one
view of the file system, without /proc; each has a PID namespace of its own. Where they cannot be had the seal stands on
Landlock and seccomp, and the report says so.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

from retinue.cp.host import libc
from retinue.cp.host.errors import SealFailed

__all__ = ["LAYERS", "enter_namespaces", "hide_proc", "own_pid_namespace", "try_namespaces"]

LAYERS = ("user-ns", "pid-ns", "net-ns", "ipc-ns", "uts-ns")

_FLAGS = libc.CLONE_NEWUSER | libc.CLONE_NEWPID | libc.CLONE_NEWNET | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS
_FLAGS |= libc.CLONE_NEWNS

# sys/mount.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8

_CURE = (
    "user namespaces are off for this user: see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone "
    "and kernel.apparmor_restrict_unprivileged_userns, or the container's seccomp profile"
)


def try_namespaces(name: str) -> str:
    """Make all of them in a scratch process. Returns why the kernel refuses, or an empty string.

    Half-made namespaces cannot be left again, so the process that matters goes in only where another has been.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            enter_namespaces(name)
            if (init := os.fork()) == 0:
                with own_pid_namespace(os.open("/proc/self/ns/pid", os.O_RDONLY)):
                    if (machine := os.fork()) == 0:
                        os._exit(0)
                os._exit(os.waitstatus_to_exitcode(os.waitpid(machine, 0)[1]))
            os._exit(os.waitstatus_to_exitcode(os.waitpid(init, 0)[1]))
        except OSError as error:
            os.write(write, f"{error.strerror} ({_CURE})".encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with open(read, "rb") as report:
        reason = report.read().decode()
    status = os.waitpid(child, 0)[1]
    if status:
        # Neither done nor refused: somebody killed it, which is no reason to go on with less.
        raise SealFailed("namespaces", f"the attempt ended with wait status {status}", errno.EINTR)
    return reason


def enter_namespaces(name: str) -> None:
    """Enter new namespaces, as the same user, with ``name`` as host name. The next fork is process 1 in there."""
    user, group = os.geteuid(), os.getegid()
    libc.unshare(_FLAGS)
    # The kernel lets an unprivileged user map its own group only once setgroups(2) is given up (user_namespaces(7)).
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    socket.sethostname(name[:64])


@contextlib.contextmanager
def own_pid_namespace(home: int) -> Iterator[None]:
    """The fork made in this context is process 1 of a new PID namespace; ``home`` is the caller's own one."""
    libc.unshare(libc.CLONE_NEWPID)
    try:
        yield
    finally:
        libc.setns(home, libc.CLONE_NEWPID)


def hide_proc() -> str:
    """Cover /proc: Landlock refuses to open it, but a look (stat) would tell which processes the host has.

    Returns why that fails, or an empty string. Nothing of a saved system may need /proc afterwards.
    """
    try:
        libc.mount("none", "/proc", "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=0555")
    except OSError as error:
        return str(error.strerror)
    return ""


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
