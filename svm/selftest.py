"""What a sealed machine must not be able to do, tried from inside it.

A scratch machine runs :func:`succeeded` before a system starts; one success and the system does not start. It is a
smoke alarm, not the proof: that is ``tests/escapes``, which tries more and in more ways. Nothing here may harm a host
on which it succeeds: what is opened is closed, and what the seal lets through is refused for its arguments.
"""

import ctypes
import os
import platform
import resource
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

Attempt = Callable[[], object]

# name: numbers on x86_64 and aarch64, arguments. With these a kernel that lets the call through answers something other
# than EPERM or ENOSYS, mostly EFAULT or EINVAL, and does nothing.
_CALLS: Final[dict[str, tuple[int, int, tuple[int, ...]]]] = {
    "trace another process": (101, 117, (0x4206, 1, 0, 0)),
    "read another process's memory": (310, 270, (1, 0, 0, 0, 0, 0)),
    "write another process's memory": (311, 271, (1, 0, 0, 0, 0, 0)),
    "take another process's descriptor": (438, 438, (-1, 0, 0)),
    "mount": (165, 40, (0, 0, 0, 0, 0)),
    "unmount": (166, 39, (0, 0)),
    "open a mount tree": (428, 428, (-1, 0, 0)),
    "change the root": (161, 51, (0,)),
    "exchange the root": (155, 41, (0, 0)),
    "make a user namespace": (272, 97, (0x10000000,)),
    "make a network namespace": (272, 97, (0x40000000,)),
    "enter a namespace": (308, 268, (-1, 0)),
    "load a BPF program": (321, 280, (0, 0, 0)),
    "watch performance counters": (298, 241, (0, 0, -1, -1, 0)),
    "handle page faults": (323, 282, (1,)),
    "make an io_uring": (425, 425, (0, 0)),
    "use keyrings": (250, 219, (0, -3, 0, 0, 0)),
    "add a key": (248, 217, (0, 0, 0, 0, 0)),
    "open a file by its handle": (304, 265, (-1, 0, 0)),
    "load a kernel module": (313, 273, (-1, 0, 0)),
    "load a kernel": (246, 104, (0, 1, 0, 0)),
    "restart the host": (169, 142, (0, 0, 0, 0)),
    "use a swap file": (167, 224, (0, 0)),
    "read the kernel's log": (103, 116, (10, 0, 0)),
    "set the host's name": (170, 161, (0, 65)),
    "set the clock": (227, 112, (0, 0)),
    "change the personality": (135, 92, (0x0400000,)),
}

# Families whose sockets lead out of a machine, past any network namespace: AF_NETLINK, AF_PACKET, AF_VSOCK, AF_ALG,
# AF_BLUETOOTH. For machines without the network AF_INET and AF_INET6 are among them.
_FAMILIES: Final = {"netlink": 16, "packet": 17, "vsock": 40, "crypto": 38, "bluetooth": 31}
_INTERNET: Final = {"internet": 2, "internet 6": 10}

_FILES: Final = ("/etc/shadow", "/proc/1/environ", "/proc/self/status", "/dev/kmsg", "/sys/kernel/notes")
_FOLDERS: Final = ("/", "/etc", "/home", "/root", "/tmp", "/proc")
_NEW_FILES: Final = ("/retinue-self-test", "/tmp/retinue-self-test", "/dev/shm/retinue-self-test")


def succeeded(profile: str) -> list[str]:
    """What was possible that must not be, in words; ``profile`` is program, exec or network."""
    found = []
    for name, attempt in _attempts(profile):
        try:
            attempt()
        except (OSError, ValueError):  # ValueError is what the resource module makes of EPERM
            continue
        found.append(name)
    return found


def count(profile: str) -> int:
    """How many attempts there are."""
    return sum(1 for _ in _attempts(profile))


def _attempts(profile: str) -> Iterator[tuple[str, Attempt]]:
    column = ("x86_64", "aarch64").index(platform.machine())
    for name, call in _CALLS.items():
        yield name, partial(_call, call[:2][column], call[2])
    for path in _FILES:
        yield f"read {path}", partial(_read, path)
    for path in _FOLDERS:
        yield f"list {path}", partial(os.listdir, path)
    for path in _NEW_FILES:
        yield f"write {path}", partial(_create, path)
    yield "write to its own code", partial(_append, __file__)
    yield "become root", partial(os.setresuid, 0, 0, 0)
    yield "take capabilities", _take_capabilities
    families = _FAMILIES if profile == "network" else _FAMILIES | _INTERNET
    for name, family in families.items():
        yield f"open a socket ({name})", partial(_socket, family)
    if profile != "exec":
        yield "read /etc/passwd", partial(_read, "/etc/passwd")  # an exec machine has one of its own making
        yield "open a socket (unix)", partial(_socket, socket.AF_UNIX)
        yield "make a process", _fork
        yield "run a program", partial(_call, (59, 221)[column], (0, 0, 0))
    yield "signal every process", _signal_all
    yield "raise its own limits", _raise_limits
    yield "raise its own priority", partial(os.setpriority, os.PRIO_PROCESS, 0, -5)
    yield "run in real time", partial(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))


_libc = ctypes.CDLL(None, use_errno=True)
# What a call is refused with that is not there for a machine: the filter, the kernel, or Landlock.
_REFUSALS: Final = frozenset({1, 13, 38})


def _call(number: int, arguments: tuple[int, ...]) -> None:
    """A raw system call. OSError when it was refused; any other answer comes from behind the seal."""
    if _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) < 0 and ctypes.get_errno() in _REFUSALS:
        raise PermissionError(ctypes.get_errno(), "refused")


def _take_capabilities() -> None:
    """capset(2) with the right to administer everything (bit 21); refused by the filter or by the kernel."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(1 << 21, 1 << 21, 0, 0, 0, 0)
    number = (126, 91)[("x86_64", "aarch64").index(platform.machine())]
    addresses = (ctypes.c_void_p(ctypes.addressof(each)) for each in (header, data))
    if _libc.syscall(ctypes.c_long(number), *addresses) < 0:
        raise PermissionError(ctypes.get_errno(), "refused")


def _read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def _create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    os.unlink(path)


def _append(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND))


def _socket(family: int) -> None:
    socket.socket(family, socket.SOCK_RAW if family in (16, 17) else socket.SOCK_STREAM).close()


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _signal_all() -> None:
    """Signal 0 to every process there is: where that is allowed it reaches nobody but this machine (ESRCH)."""
    os.kill(-1, 0)


def _raise_limits() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
