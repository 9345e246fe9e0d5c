"""The namespaces that machines are forked in. Standard library only.

A saved system goes on as process 1 of namespaces of its own. That for sealed machines has user, mount, PID, network,
IPC, UTS and cgroup namespaces, and all its machines share the empty network namespace; that for the machine with the
host's network has all but the network's, and, as root, but the user's: outside the host's own user namespace the right
to bind a low port (CAP_NET_BIND_SERVICE) means nothing. Each machine gets a PID and a mount namespace to itself, and
one of users; one that may open UNIX sockets (``exec``) also those of network and IPC, for names there are no files.

Root has the others also where namespaces of users are off. A machine is then another user of the host, as that with the
host's network is, and stands in no namespace of users.

Where they cannot be had the seal stands on Landlock and seccomp, and the report says so.
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
from collections.abc import Iterator
from typing import NamedTuple

from retinue.cp.host import libc
from retinue.cp.host.errors import LinkError, SealFailed
from retinue.cp.host.link import Link, send_now
from retinue.cp.host.seal import users

__all__ = ["LAYERS", "Inside", "go_inside", "own_pid_namespace"]

LAYERS = {
    "user-ns": libc.CLONE_NEWUSER,
    "mount-ns": libc.CLONE_NEWNS,
    "pid-ns": libc.CLONE_NEWPID,
    "net-ns": libc.CLONE_NEWNET,
    "ipc-ns": libc.CLONE_NEWIPC,
    "uts-ns": libc.CLONE_NEWUTS,
    "cgroup-ns": libc.CLONE_NEWCGROUP,
}

NOT_FOR_NETWORK = {
    "net-ns": "it keeps the host's network",
    "user-ns": "its right to bind low ports counts in the host's own user namespace only",
}


class Inside(NamedTuple):
    """Where a saved system stands."""

    flags: int
    """CLONE_NEW... of the namespaces that it has made for itself."""
    absent: dict[str, str]
    """The layers that it does not have, and why."""
    home: int
    """Its PID namespace, as a descriptor; -1 if it has none of its own."""
    proc: int
    """The folder /proc, as a descriptor that machines inherit until they have no use for it."""


def go_inside(link: Link, name: str, *, network: bool) -> Inside:
    """Go on in new namespaces, with ``name`` as host name, as a child of the nucleus."""
    unwanted = {}
    if network:
        unwanted = {layer: NOT_FOR_NETWORK[layer] for layer in ("net-ns", "user-ns")[: 1 + (os.geteuid() == 0)]}
    flags = sum(flag for layer, flag in LAYERS.items() if layer not in unwanted)
    why = _try(name, flags)
    if why and flags & libc.CLONE_NEWUSER and os.geteuid() == 0 and not _try(name, flags & ~libc.CLONE_NEWUSER):
        flags &= ~libc.CLONE_NEWUSER
        unwanted["user-ns"], why = why, ""
    if why:
        return Inside(0, dict.fromkeys(LAYERS, why) | unwanted, -1, _high("/proc"))
    if why := _enter(name, flags):
        unwanted["mount-ns"] = why
    _move(link)
    return Inside(flags, unwanted, os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC), _high("/proc"))


@contextlib.contextmanager
def own_pid_namespace(home: int) -> Iterator[None]:
    """The fork made in this context is process 1 of a new PID namespace; ``home`` is the caller's own one."""
    libc.unshare(libc.CLONE_NEWPID)
    try:
        yield
    finally:
        libc.setns(home, libc.CLONE_NEWPID)


def _high(path: str) -> int:
    """A descriptor with a number that no machine uses for anything else."""
    low = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 64)
    finally:
        os.close(low)


def _try(name: str, flags: int) -> str:
    """Make all of them in a scratch process. Returns why the kernel refuses, or an empty string.

    Half-made namespaces cannot be left again, so the process that matters goes in only where another has been.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _enter(name, flags)
            if (init := os.fork()) == 0:
                with own_pid_namespace(os.open("/proc/self/ns/pid", os.O_RDONLY)):
                    if (machine := os.fork()) == 0:
                        os._exit(0)
                os._exit(os.waitstatus_to_exitcode(os.waitpid(machine, 0)[1]))
            os._exit(os.waitstatus_to_exitcode(os.waitpid(init, 0)[1]))
        except OSError as error:
            what = "user namespaces" if flags & libc.CLONE_NEWUSER else "namespaces"
            os.write(write, f"{what} are off for this user: {error.strerror}".encode())
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


def _enter(name: str, flags: int) -> str:
    """Enter new namespaces, as the same user. The next fork is process 1 in there.

    Returns why nothing can be mounted in the new namespace of mounts, or an empty string.
    """
    if flags & libc.CLONE_NEWUSER:
        users.enter_user_namespace(flags)
    else:
        libc.unshare(flags)
    socket.sethostname(name[:64])
    try:
        # What is mounted in here is seen nowhere else. What the host mounts or unmounts from now on is seen here (a
        # disk may be such a mount, and nothing shall be kept busy), but not in a machine, whose mounts are its own.
        libc.mount("none", "/", "", libc.MS_REC | libc.MS_SLAVE, "")
    except OSError as error:
        return f"nothing can be mounted in it: {error.strerror}"
    return ""


def _move(link: Link) -> None:
    """Go on as process 1 of the PID namespace that has been made, a child of the nucleus.

    The nucleus is told with ``moved`` which process that is, and says ``go`` when the one outside has left.
    """
    inner = os.fork()
    if inner:
        # The one outside has done its part. The nucleus, as subreaper, becomes the parent of the one inside.
        try:
            send_now(link, {"event": "moved"}, [os.pidfd_open(inner)])
        finally:
            os._exit(0)
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN)
    poll.poll()
    received = link.receive()
    if received is None or received[0] != {"verb": "go"}:
        raise LinkError("the nucleus did not say go")
    # Only now: set before, it would fire at the end of the one outside. The parent cannot be looked at a second time,
    # for its pid lies outside this PID namespace, but a nucleus that has died meanwhile has hung up.
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if any(events & select.POLLHUP for _, events in poll.poll(0)):
        raise LinkError("the nucleus is gone")
