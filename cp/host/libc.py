"""The few system calls that Python (3.11) has no function for. Standard library only.

Every function raises OSError with the errno of the call. The function objects are made when this module is imported,
which a saved system does once, so a forked machine pays for no symbol lookup.
"""

import ctypes
import os
import platform

__all__ = [
    "CLONE_NEWCGROUP",
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
    "pivot_to_working_folder",
    "prctl",
    "restrict_mount",
    "setns",
    "syscall",
    "unmount",
    "unshare",
]

MACHINE = platform.machine()
"""``"x86_64"`` or ``"aarch64"`` on the machines this runs on."""

# sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# sys/mount.h
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC = 2, 4, 8, 0x1000, 0x4000
MS_PRIVATE, MS_SLAVE = 1 << 18, 1 << 19
MNT_DETACH = 2
# linux/mount.h
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

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
_umount2 = _libc.umount2


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
    _check(_mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode()))


_SYS_MOUNT_SETATTR = 442


def restrict_mount(target: str, attributes: int, *, below: bool = True) -> None:
    """Add ``attributes`` (MOUNT_ATTR_...) to a mount, and to all below it (mount_setattr(2), Linux 5.12).

    What is mounted or unmounted elsewhere from then on changes nothing there, nor the other way round.
    """
    path = ctypes.create_string_buffer(os.fsencode(target))
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, MS_PRIVATE, 0)
    flags = _AT_RECURSIVE if below else 0
    syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, ctypes.addressof(path), flags, ctypes.addressof(wanted), 32)


def unmount(target: str) -> None:
    """Detach a mount and all below it (umount2(2) with MNT_DETACH)."""
    _check(_umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)))


_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def pivot_to_working_folder() -> None:
    """The working folder, a mount, becomes the root of its mount namespace; nothing of the old one stays.

    The old root is put over the new one and then taken off, which needs no folder to put it (pivot_root(2), NOTES).
    """
    here = ctypes.create_string_buffer(b".")
    syscall(_SYS_PIVOT_ROOT[MACHINE], ctypes.addressof(here), ctypes.addressof(here))
    unmount(".")
    os.chdir("/")


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
