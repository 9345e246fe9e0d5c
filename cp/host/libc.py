"""The few system calls that Python (3.11) has no function for. Standard library only.

Every function raises OSError with the errno of the call. The function objects are made when this module is imported,
which a saved system does once, so a forked machine pays for no symbol lookup.
"""

import ctypes
import os
import platform

__all__ = [
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MACHINE",
    "capset_nothing_but",
    "die_with_parent",
    "mount",
    "prctl",
    "setns",
    "syscall",
    "unshare",
]

MACHINE = platform.machine()
"""``"x86_64"`` or ``"aarch64"`` on the machines this runs on."""

# sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_prctl = _libc.prctl
_unshare = _libc.unshare
_setns = _libc.setns
_syscall = _libc.syscall
_mount = _libc.mount


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def prctl(option: int, argument: int = 0, second: int = 0) -> int:
    """prctl(2)."""
    return _check(_prctl(option, argument, second, 0, 0))


def set_process_name(name: str) -> None:
    """Name this process in ``ps`` and ``top``; the kernel keeps the first 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_prctl(PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_unshare(ctypes.c_int(flags)))


def setns(descriptor: int, kind: int) -> None:
    """setns(2)."""
    _check(_setns(ctypes.c_int(descriptor), ctypes.c_int(kind)))


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2)."""
    _check(_mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()))


def syscall(number: int, *arguments: int) -> int:
    """syscall(2); every argument as a long."""
    return int(_check(_syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))))


_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}


def capset_nothing_but(keep: int) -> None:
    """Permitted and effective capabilities become the bits of ``keep``, inheritable becomes none (capset(2))."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    low, high = keep & 0xFFFFFFFF, keep >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    syscall(_SYS_CAPSET[MACHINE], ctypes.addressof(header), ctypes.addressof(data))


_SYS_CAPGET = {"x86_64": 125, "aarch64": 90}


def permitted_capabilities() -> int:
    """The permitted capabilities of this process as a bit set (capget(2))."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    syscall(_SYS_CAPGET[MACHINE], ctypes.addressof(header), ctypes.addressof(data))
    return int(data[1]) | int(data[4]) << 32


def die_with_parent(parent: int) -> None:
    """Be killed when the parent dies; raises ProcessLookupError if ``parent`` is not (any more) the parent.

    The second look is what closes the race: a parent that died before the prctl sends no signal, but has been replaced.
    """
    prctl(PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        raise ProcessLookupError("the parent is gone")
