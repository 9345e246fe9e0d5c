"""Raw system calls, and the attempts that are nothing more than one. Standard library only.

The arguments are such that a kernel which lets a call through does nothing: it answers EFAULT, EINVAL or EBADF.
"""

import ctypes
import errno
import functools
import mmap
import os
import platform
from typing import Final

from tests.escapes.inside.attempt import ROOT, USER, World, attempt, refused

_libc = ctypes.CDLL(None, use_errno=True)
MACHINE: Final = platform.machine()
_COLUMN: Final = ("x86_64", "aarch64").index(MACHINE)

# What a call is refused with: by the filter, or because the kernel does not know it.
_REFUSALS: Final = frozenset({errno.EPERM, errno.ENOSYS})

_THERE = {"exec": "its program may be any that Debian has; what it does to its own processes stays in its namespace"}
_BAD = 1  # an address where nothing is
_DAEMON = {"exec": "daemons do it to themselves"}
_PIDS = {"exec": "its pids are those of its own namespace"}
_USERS = {"exec": "daemons lay down privileges that a machine never has; there is nobody else it could become"}
_BOUNDED = {"exec": "limits and namespaces bound it: there is no higher priority and no locked memory to be had"}
_IPC = {"exec": "its namespace for it is its own"}

# name: x86_64, aarch64, arguments, where it succeeds without a seal, which profiles may do it and why
_CALLS: Final[dict[str, tuple[int, int, tuple[int, ...], str, dict[str, str]]]] = {
    "ptrace/traceme": (101, 117, (0, 0, 0, 0), USER, {}),
    "ptrace/seize": (101, 117, (0x4206, -1, 0, 0), USER, {}),
    "ptrace/process-vm-readv": (310, 270, (-1, 0, 0, 0, 0, 0), USER, {}),
    "ptrace/process-vm-writev": (311, 271, (-1, 0, 0, 0, 0, 0), USER, {}),
    "ptrace/process-madvise": (440, 440, (-1, 0, 0, 0, 0), USER, {}),
    "ptrace/kcmp": (312, 272, (-1, -1, 0, 0, 0), USER, {}),
    "ptrace/pidfd-getfd": (438, 438, (-1, 0, 0), USER, {}),
    "ptrace/move-pages": (279, 239, (-1, 0, 0, 0, 0, 0), USER, {}),
    "ptrace/get-robust-list": (274, 100, (1 << 22, 0, 0), USER, {}),
    "signals/pidfd-open": (434, 434, (-1, 0), USER, _PIDS),
    "signals/pidfd-send-signal": (424, 424, (-1, 0, 0, 0), USER, _PIDS),
    "signals/rt-sigqueueinfo": (129, 138, (1 << 22, 0, _BAD), USER, _PIDS),
    "signals/rt-tgsigqueueinfo": (297, 240, (1 << 22, 1 << 22, 0, _BAD), USER, _PIDS),
    "signals/tkill": (200, 130, (-1, 0), USER, _PIDS),
    "signals/timer-create": (222, 107, (0, _BAD, _BAD), USER, _DAEMON),
    "mounts/mount": (165, 40, (0, 0, 0, 0, 0), USER, {}),
    "mounts/umount": (166, 39, (0, 0), ROOT, {}),
    "mounts/open-tree": (428, 428, (-1, 0, 0), USER, {}),
    "mounts/move-mount": (429, 429, (-1, 0, -1, 0, 0), ROOT, {}),
    "mounts/fsopen": (430, 430, (0, 0), ROOT, {}),
    "mounts/mount-setattr": (442, 442, (-1, 0, 0, 0, 0), USER, {}),
    "mounts/pivot-root": (155, 41, (0, 0), ROOT, {}),
    "mounts/chroot": (161, 51, (0,), USER, {}),
    "mounts/statmount": (457, 457, (0, 0, 0, 0), USER, {}),
    "mounts/listmount": (458, 458, (0, 0, 0, 0), USER, {}),
    "mounts/swapon": (167, 224, (0, 0), ROOT, {}),
    "mounts/quotactl": (179, 60, (0, 0, 0, 0), USER, {}),
    "namespaces/unshare-user": (272, 97, (0x10000000,), USER, {}),
    "namespaces/unshare-files": (272, 97, (0x400,), USER, {}),
    "namespaces/unshare-net": (272, 97, (0x40000000,), ROOT, {}),
    "namespaces/unshare-mount": (272, 97, (0x20000,), ROOT, {}),
    "namespaces/unshare-time": (272, 97, (0x80,), ROOT, {}),
    "namespaces/setns": (308, 268, (-1, 0), USER, {}),
    "namespaces/clone-user": (56, 220, (0x10000211, 0, 0, 0, 0), USER, {}),  # with CLONE_FS: EINVAL
    "namespaces/sethostname": (170, 161, (0, 65), ROOT, {}),
    "namespaces/setdomainname": (171, 162, (0, 65), ROOT, {}),
    "privileges/setuid": (105, 146, (0,), ROOT, _USERS),
    "privileges/setresuid": (117, 147, (0, 0, 0), ROOT, _USERS),
    "privileges/setreuid": (113, 145, (0, 0), ROOT, _USERS),
    "privileges/setfsuid": (122, 151, (0,), USER, {}),
    "privileges/setgid": (106, 144, (0,), ROOT, _USERS),
    "privileges/setgroups": (116, 159, (1, _BAD), ROOT, _USERS),
    "privileges/capset": (126, 91, (_BAD, _BAD), USER, _USERS),
    "privileges/prctl-keep-capabilities": (157, 167, (8, 1, 0, 0, 0), USER, _USERS),
    "privileges/prctl-ambient": (157, 167, (47, 1, 0, 0, 0), USER, {}),
    "privileges/prctl-securebits": (157, 167, (28, -1, 0, 0, 0), "only the filter refuses it with EPERM as a user", {}),
    "privileges/prctl-dumpable": (157, 167, (4, 5, 0, 0, 0), USER, {}),
    "privileges/prctl-mm": (157, 167, (35, 0, 0, 0, 0), "EPERM or EINVAL as this user", {}),
    "privileges/prctl-ptracer": (157, 167, (0x59616D61, -1, 0, 0, 0), "needs the Yama module", {}),
    "privileges/prctl-death-signal": (157, 167, (1, -1, 0, 0, 0), USER, _USERS),
    "privileges/prctl-child-subreaper": (157, 167, (36, 0, 0, 0, 0), USER, _USERS),
    "privileges/prctl-tsc": (157, 167, (26, -1, 0, 0, 0), USER, {}),
    "privileges/prctl-memory-merge": (157, 167, (67, 2, 0, 0, 0), USER, {}),
    "privileges/seccomp": (317, 277, (-1, 0, 0), USER, {}),
    "privileges/landlock": (444, 444, (0, 0, 2), USER, {}),
    "privileges/personality": (135, 92, (0xFFFFFFFF,), USER, {}),
    "privileges/modify-ldt": (154, 0, (-1, 0, 0), "ENOSYS for an argument that does nothing", {}),
    "privileges/iopl": (172, 0, (-1,), "the kernel may be built without it", {}),
    "privileges/ioperm": (173, 0, (1 << 20, 1, 1), "the kernel may be built without it", {}),
    "keyrings/keyctl": (250, 219, (0, -3, 0, 0, 0), USER, {}),
    "keyrings/join-session": (250, 219, (1, _BAD, 0, 0, 0), USER, {}),
    "keyrings/add-key": (248, 217, (0, 0, 0, 0, 0), USER, {}),
    "keyrings/request-key": (249, 218, (0, 0, 0, 0), USER, {}),
    "kernel/io-uring-setup": (425, 425, (0, 0), USER, {}),
    "kernel/io-uring-enter": (426, 426, (-1, 0, 0, 0, 0, 0), USER, {}),
    "kernel/io-uring-register": (427, 427, (-1, 0, 0, 0), USER, {}),
    "kernel/io-setup": (206, 0, (0, _BAD), USER, {}),
    "kernel/userfaultfd": (323, 282, (1,), USER, {}),
    "kernel/bpf": (321, 280, (-1, _BAD, 0), "EPERM or EINVAL by a sysctl", {}),
    "kernel/perf-event-open": (298, 241, (_BAD, 0, -1, -1, 0), USER, {}),
    "kernel/kexec-load": (246, 104, (0, 1, 0, 0), "the kernel may be built without it", {}),
    "kernel/kexec-file-load": (320, 294, (-1, -1, 0, 0, 0), "the kernel may be built without it", {}),
    "kernel/init-module": (175, 105, (_BAD, 0, _BAD), "the kernel may be built without it", {}),
    "kernel/finit-module": (313, 273, (-1, 0, 0), "the kernel may be built without it", {}),
    "kernel/delete-module": (176, 106, (_BAD, 0), "the kernel may be built without it", {}),
    "kernel/reboot": (169, 142, (0, 0, 0, 0), ROOT, {}),
    "kernel/acct": (163, 89, (_BAD,), "the kernel may be built without it", {}),
    "kernel/syslog": (103, 116, (10, 0, 0), ROOT, {}),
    "kernel/sysfs": (139, 0, (-1,), USER, {}),
    "kernel/lookup-dcookie": (212, 18, (0, 0, 0), "ENOSYS since Linux 6.5", {}),
    "kernel/memfd-secret": (447, 447, (-1,), "the kernel may have it off", {}),
    "kernel/fanotify-init": (300, 262, (-1, 0), ROOT, {}),
    "kernel/inotify-init": (294, 26, (-1,), USER, {}),
    "kernel/vmsplice": (278, 75, (-1, 0, 0, 0), USER, _DAEMON),
    "kernel/remap-file-pages": (216, 234, (1, 0, 0, 0, 0), USER, _DAEMON),
    "kernel/mbind": (237, 235, (1, 0, 0, 0, 0, 0), "the kernel may be built without it", {}),
    "kernel/cachestat": (451, 451, (-1, 0, 0, 0), USER, {}),
    "kernel/lsm-list-modules": (461, 461, (0, 0, 1), USER, {}),
    "clock/clock-settime": (227, 112, (0, 0), USER, {}),
    "clock/settimeofday": (164, 170, (_BAD, 0), USER, {}),
    "clock/adjtimex": (159, 171, (_BAD,), USER, {}),
    "clock/clock-adjtime": (305, 266, (0, _BAD), USER, {}),
    "priority/sched-setscheduler": (144, 119, (0, -1, 0), USER, _BOUNDED),
    "priority/sched-setattr": (314, 274, (0, 0, 0), USER, _BOUNDED),
    "priority/setpriority": (141, 140, (-1, 0, 0), USER, _BOUNDED),
    "priority/sched-setaffinity": (203, 122, (0, 0, 0), USER, _BOUNDED),
    "priority/ioprio-set": (251, 30, (-1, 0, 0), USER, {}),
    "priority/mlockall": (151, 230, (-1,), USER, _BOUNDED),
    "priority/mlock": (149, 228, (0, -1), USER, _BOUNDED),
    "ipc/shmget": (29, 194, (0, 0, 0o1600), USER, _IPC),
    "ipc/shmat": (30, 196, (-1, 0, 0), USER, _IPC),
    "ipc/msgget": (68, 186, (0x52657469, 0), USER, {}),
    "ipc/semget": (64, 190, (0x52657469, 0, 0), USER, _IPC),
    "ipc/mq-open": (240, 180, (_BAD, 0, 0, 0), USER, {}),
    "ipc/mq-notify": (244, 184, (-1, 0), USER, {}),
    "files/name-to-handle-at": (303, 264, (-1, 0, 0, 0, 0), USER, {}),
    "files/open-by-handle-at": (304, 265, (-1, _BAD, 0), ROOT, {}),
    "files/mknodat": (259, 33, (-1, _BAD, 0o20666, 0x103), USER, {}),
    "processes/clone": (56, 220, (0x811, 0, 0, 0, 0), USER, _THERE),  # CLONE_SIGHAND without CLONE_VM: EINVAL
    "processes/clone3": (435, 435, (_BAD, 0), USER, {}),
    "processes/execve": (59, 221, (0, 0, 0), USER, _THERE),
    "processes/execveat": (322, 281, (-1, _BAD, 0, 0, 0), USER, {}),
    "processes/setpgid": (109, 154, (-1, 0), USER, _DAEMON),
    "processes/vhangup": (153, 58, (), "it would take the test's terminal", {}),
    "processes/x32-entry": (0x40000000 | 39, 0, (), "kernels are built without it", {}),
}


def call(number: tuple[int, int], *arguments: int | bytes) -> int:
    """A system call by its numbers on x86_64 and aarch64. OSError when it fails."""
    given = [ctypes.c_char_p(each) if isinstance(each, bytes) else ctypes.c_long(each) for each in arguments]
    result = int(_libc.syscall(ctypes.c_long(number[_COLUMN]), *given))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def reaches(number: tuple[int, int], *arguments: int | bytes, refusals: frozenset[int] = _REFUSALS) -> str:
    """A system call that is only meant to get behind the seal: any errno from there is a success."""
    try:
        return f"returned {call(number, *arguments)}"
    except OSError as error:
        if error.errno in refusals:
            raise
        return f"reached: {errno.errorcode.get(error.errno or 0)}"


def _enter(name: str) -> None:
    x86_64, aarch64, arguments, unsealed, allowed = _CALLS[name]

    @attempt(name, refusals=_REFUSALS, unsealed=unsealed, allowed=allowed, filtered=True)
    def _(_: World) -> object:
        return reaches((x86_64, aarch64), *arguments)


for _name, _about in _CALLS.items():
    if _about[_COLUMN]:
        _enter(_name)


@attempt("kernel/huge-pages-of-the-host", refusals=_REFUSALS, unsealed="the kernel may be built without them")
def _huge_pages(_: World) -> object:
    """A memfd of the pages that the host has set aside (MFD_HUGETLB)."""
    return reaches((319, 279), b"huge", 4)


@attempt("kernel/merge-pages-with-others", refusals=_REFUSALS, unsealed="the kernel may be built without it")
def _merge_pages(_: World) -> object:
    """MADV_MERGEABLE: how long a write takes tells what others have in memory."""
    return reaches((28, 233), 0, 0, 12)


def executable(code: bytes) -> "ctypes._FuncPointer":
    """A function of machine code, which lives as long as the process."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    _keep(page)
    return function


@functools.cache
def _keep(page: mmap.mmap) -> mmap.mmap:
    return page


if MACHINE == "x86_64":

    @attempt("kernel/entry-of-32-bit", unsealed="the kernel may be built without it")
    def _entry_of_32_bit(_: World) -> object:
        """getpid(2) by the 32-bit entry (int 0x80)."""
        result = executable(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")()  # mov eax, 20; int 0x80; ret
        if result < 0:
            raise refused(-result)
        return result
