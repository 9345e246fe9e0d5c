"""Attempts to get out of a machine, made by a program inside it. Each raises OSError when refused, as it must be."""

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import platform
import resource
import socket
import subprocess
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_MACHINE = platform.machine()

# name: (x86_64, aarch64, arguments); everything a sealed process could use against its host, as raw calls.
CALLS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "ptrace(TRACEME)": (101, 117, (0, 0, 0, 0)),
    "ptrace(SEIZE, 1)": (101, 117, (0x4206, 1, 0, 0)),
    "process_vm_readv": (310, 270, (1, 0, 0, 0, 0, 0)),
    "process_vm_writev": (311, 271, (1, 0, 0, 0, 0, 0)),
    "process_madvise": (440, 440, (0, 0, 0, 0, 0)),
    "kcmp": (312, 272, (1, 1, 0, 0, 0)),
    "pidfd_open": (434, 434, (1, 0)),
    "pidfd_getfd": (438, 438, (0, 0, 0)),
    "pidfd_send_signal": (424, 424, (0, 0, 0, 0)),
    "rt_sigqueueinfo": (129, 138, (1, 0, 0)),
    "tkill": (200, 130, (1, 0)),
    "mount": (165, 40, (0, 0, 0, 0, 0)),
    "umount2": (166, 39, (0, 0)),
    "open_tree": (428, 428, (-100, 0, 0)),
    "move_mount": (429, 429, (0, 0, 0, 0, 0)),
    "fsopen": (430, 430, (0, 0)),
    "pivot_root": (155, 41, (0, 0)),
    "chroot": (161, 51, (0,)),
    "unshare(NEWUSER)": (272, 97, (0x10000000,)),
    "unshare(NEWNET)": (272, 97, (0x40000000,)),
    "setns": (308, 268, (0, 0)),
    "clone(SIGCHLD)": (56, 220, (17, 0, 0, 0, 0)),
    "clone(NEWUSER|SIGCHLD)": (56, 220, (0x10000011, 0, 0, 0, 0)),
    "execveat": (322, 281, (-100, 0, 0, 0, 0)),
    "bpf": (321, 280, (0, 0, 0)),
    "perf_event_open": (298, 241, (0, 0, -1, -1, 0)),
    "userfaultfd(USER_MODE_ONLY)": (323, 282, (1,)),
    "io_uring_setup": (425, 425, (1, 0)),
    "io_uring_enter": (426, 426, (0, 0, 0, 0, 0, 0)),
    "io_setup": (206, 0, (1, 0)),
    "keyctl": (250, 219, (0, -3, 0, 0, 0)),
    "add_key": (248, 217, (0, 0, 0, 0, 0)),
    "request_key": (249, 218, (0, 0, 0, 0)),
    "name_to_handle_at": (303, 264, (-100, 0, 0, 0, 0)),
    "open_by_handle_at": (304, 265, (0, 0, 0)),
    "init_module": (175, 105, (0, 0, 0)),
    "finit_module": (313, 273, (0, 0, 0)),
    "kexec_load": (246, 104, (0, 0, 0, 0)),
    "reboot": (169, 142, (0, 0, 0, 0)),
    "swapon": (167, 224, (0, 0)),
    "acct": (163, 89, (0,)),
    "syslog": (103, 116, (3, 0, 0)),
    "quotactl": (179, 60, (0, 0, 0, 0)),
    "sethostname": (170, 161, (0, 0)),
    "clock_settime": (227, 112, (0, 0)),
    "adjtimex": (159, 171, (0,)),
    "personality": (135, 92, (0x0400000,)),
    "setuid": (105, 146, (0,)),
    "setresuid": (117, 147, (0, 0, 0)),
    "setgroups": (116, 159, (0, 0)),
    "capset": (126, 91, (0, 0)),
    "prctl(SET_DUMPABLE)": (157, 167, (4, 0, 0, 0, 0)),
    "prctl(SET_PDEATHSIG)": (157, 167, (1, 0, 0, 0, 0)),
    "prctl(SET_MM)": (157, 167, (35, 0, 0, 0, 0)),
    "seccomp": (317, 277, (1, 0, 0)),
    "landlock_create_ruleset": (444, 444, (0, 0, 1)),
    "sched_setscheduler": (144, 119, (0, 0, 0)),
    "setpriority": (141, 140, (0, 0, 0)),
    "sched_setaffinity": (203, 122, (0, 0, 0)),
    "mlockall": (151, 230, (1,)),
    "shmget": (29, 194, (0, 4096, 0o1600)),
    "msgget": (68, 186, (0, 0o1600)),
    "semget": (64, 190, (0, 1, 0o1600)),
    "mq_open": (240, 180, (0, 0, 0, 0)),
    "inotify_init1": (294, 26, (0,)),
    "fanotify_init": (300, 262, (0, 0)),
    "memfd_secret": (447, 447, (0,)),
    "vhangup": (153, 58, ()),
    "setsid": (112, 157, ()),
    "setpgid": (109, 154, (0, 0)),
    "x32 getpid": (0x40000000 | 39, 0, ()),
}


def raw(name: str) -> str:
    """One of CALLS."""
    x86_64, aarch64, arguments = CALLS[name]
    number = x86_64 if _MACHINE == "x86_64" else aarch64
    result = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return f"returned {result}"


def raw_calls() -> dict[str, str]:
    """Those of CALLS that were not refused with EPERM."""
    return _survivors({name: functools.partial(raw, name) for name, numbers in CALLS.items() if _there(numbers)})


def _there(numbers: tuple[int, int, tuple[int, ...]]) -> bool:
    return bool(numbers[("x86_64", "aarch64").index(_MACHINE)])


def _survivors(attempts: dict[str, Callable[[], object]]) -> dict[str, str]:
    found = {}
    for name, attempt in attempts.items():
        try:
            found[name] = repr(attempt())
        except OSError as error:
            if error.errno != errno.EPERM:
                found[name] = errno.errorcode.get(error.errno or 0, "?")
    return found


def sockets(families: int) -> dict[str, str]:
    """Sockets that could be opened, of every family there is, by kind."""
    found = {}
    for family in range(families):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, 6, 10):
            try:
                socket.socket(family, kind).close()
            except OSError as error:
                if error.errno == errno.EPERM:
                    continue
                found[f"{family}/{int(kind)}"] = errno.errorcode.get(error.errno or 0, "?")
            else:
                found[f"{family}/{int(kind)}"] = "open"
    return found


def datagram_to_a_named_socket(path: str) -> int:
    """A datagram socket pair can send to any address."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"out", path)


def stream_to_a_named_socket(path: str) -> int:
    """A pair that is allowed, and an address."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)[0].sendto(b"out", path)


def packet_to_a_named_socket(path: str) -> int:
    """The one kind of socket whose kernel code is that of datagrams."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0].sendto(b"out", path)


def signal_everybody(highest: int) -> list[int]:
    """Every pid but the own one that does not refuse a signal."""
    found = []
    for pid in (-1, 0, *range(1, highest)):
        if pid == os.getpid():
            continue
        try:
            os.kill(pid, 0)
        except OSError:
            continue
        found.append(pid)
    return found


def visible_processes(highest: int) -> list[int]:
    """Every pid but the own one that /proc tells anything about."""
    return [pid for pid in range(1, highest) if pid != os.getpid() and os.path.exists(f"/proc/{pid}")]


def read(path: str) -> str:
    """Read a file."""
    with open(path, "rb") as file:
        return repr(file.read(100))


def listing(path: str) -> list[str]:
    """List a folder."""
    return os.listdir(path)


def write(path: str) -> int:
    """Write to a file that may or may not exist."""
    with open(path, "ab") as file:
        return file.write(b"x")


def empty_while_reading(path: str) -> int:
    """O_TRUNC asks for no write access."""
    return os.open(path, os.O_RDONLY | os.O_TRUNC)


def link_here(outside: str, inside: str) -> str:
    """A hard link to something outside on the own disk, to read it there."""
    os.link(outside, inside)
    return read(inside)


def point_there(outside: str, inside: str) -> str:
    """A symbolic link of its own making."""
    os.symlink(outside, inside)
    return read(inside)


def move_here(outside: str, inside: str) -> str:
    """Take it away."""
    os.rename(outside, inside)
    return "moved"


def metadata(path: str) -> dict[str, str]:
    """Changes to a file of the same user that are no opening of it."""
    return _survivors(
        {
            "chmod": lambda: os.chmod(path, 0o666),
            "fchmodat": lambda: _syscall_path(268, 53, -100, path, 0o666, 0),
            "chown": lambda: os.chown(path, os.getuid(), os.getgid()),
            "utime": lambda: os.utime(path, (0, 0)),
            "truncate": lambda: os.truncate(path, 0),
        }
    )


def _syscall_path(x86_64: int, aarch64: int, folder: int, path: str, *more: int) -> int:
    number = x86_64 if _MACHINE == "x86_64" else aarch64
    result = int(_libc.syscall(ctypes.c_long(number), ctypes.c_long(folder), path.encode(), *map(ctypes.c_long, more)))
    if result < 0:
        raise OSError(ctypes.get_errno(), "fchmodat")
    return result


def set_user_id(path: str) -> dict[str, str]:
    """Files that run as the user the machine runs as, for whoever finds them."""

    def change() -> None:
        with open(path, "w") as file:
            os.fchmod(file.fileno(), 0o4755)

    return _survivors({"fchmod": change, "open": lambda: os.open(path + "1", os.O_CREAT | os.O_WRONLY, 0o4755)})


def new_processes() -> dict[str, str]:
    """Ways to a further process."""
    return _survivors(
        {
            "fork": fork,
            "exec": lambda: os.execv("/bin/true", ["true"]),
            "posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
            "subprocess": lambda: subprocess.call(["/bin/true"]),
            "memfd": _execute_memory,
        }
    )


def fork() -> str:
    """A child that leaves at once."""
    if os.fork() == 0:
        os._exit(0)
    return "forked"


def _execute_memory() -> None:
    memory = os.memfd_create("program")
    os.write(memory, b"#!/bin/true\n")
    os.execve(memory, ["program"], {})


def signals_by_descriptor() -> dict[str, str]:
    """A descriptor that signals somebody whenever something happens to it."""
    left, _ = socket.socketpair()
    return _survivors(
        {
            "F_SETOWN": lambda: fcntl.fcntl(left, fcntl.F_SETOWN, 1),
            "F_SETSIG": lambda: fcntl.fcntl(left, 10, 9),
            "FIOSETOWN": lambda: fcntl.ioctl(left, 0x8901, b"\1\0\0\0"),
            "TIOCSTI": lambda: fcntl.ioctl(left, 0x5412, b"x"),
        }
    )


def more_than_allowed() -> dict[str, str]:
    """Raise one's own limits."""

    def raise_data() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def of_another() -> None:
        resource.prlimit(os.getppid() or 2, resource.RLIMIT_NOFILE)

    found = {}
    for name, attempt in {"RLIMIT_DATA": raise_data, "prlimit": of_another}.items():
        try:
            attempt()
        except (OSError, ValueError):  # ValueError is what resource makes of EPERM here
            continue
        found[name] = "done"
    return found


def other_architecture() -> int:
    """getpid(2) by the 32-bit entry of x86_64 (int 0x80); the negative errno, or the pid."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def device_node(path: str) -> str:
    """A device of its own making, on its own disk."""
    os.mknod(path, 0o20666, os.makedev(1, 3))
    return "made"


def named_pipe(path: str) -> str:
    """A channel in a folder that somebody else may see, too."""
    os.mkfifo(path)
    return "made"
