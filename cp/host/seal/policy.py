"""Which system calls a machine may make. Standard library only.

Allow lists, one for each profile. What is not on the list is refused with EPERM.

``program`` (also for asgi and wsgi) is enough for Python, trio, threads, sqlite3 and files on glibc and musl: so there
is no fork, exec, ptrace, mount, bpf, keyctl, io_uring, userfaultfd, perf, namespace, and no call that takes a pid but
on the machine itself. The arguments matter for some:

* ``socketpair``: AF_UNIX streams and packets only. A datagram socket could ``sendto`` any named socket of the host.
* ``clone``: threads of this process only. ``clone3`` hides its flags in memory: ENOSYS, and libc falls back on clone.
* ``kill``, ``tgkill``: this process only (raise, abort, pthread_kill). ``fcntl`` without F_SETOWN, which sends signals.
* ``chmod``, ``chown``, ``utime``, ``truncate`` of a *path* are missing: Landlock does not look at them, so they would
  reach every file of the same user. On an open descriptor mode and times can be set in a root of its own alone, where
  code is mounted read-only: for these a descriptor that was opened for reading will do. No file gets a set-user-id bit.
* No call asks whether a page of a shared file is in memory, or puts it out (``mincore``, ``readahead``, RWF_NOWAIT,
  RWF_DONTCACHE, POSIX_FADV_DONTNEED, MADV_COLD): each is a bit to any machine that has the same libraries. How long a
  read takes tells it still, and MADV_PAGEOUT cannot be told apart from what it does to a machine's own memory.
* Clocks are those of the process and of the thread, not of any pid; ``sysinfo`` would tell the load of the host.
* ``setsockopt`` and ``getsockopt``: by name. No filter programs (SO_ATTACH_...), no pidfd of whoever made the socket.
* No page of the host's huge ones (MAP_HUGETLB, MFD_HUGETLB), none that is merged with others' (MADV_MERGEABLE), no
  pipe of another size: pipe pages are counted for the user.
* ``open`` with O_TRUNC but without write access is refused: it would empty a read-only file below Landlock ABI 3.
* ``ioctl``: blocking mode, bytes readable, close-on-exec, and the question whether this is a terminal; no TIOCSTI.
* extended attributes answer ENOTSUP, which ``shutil`` and libacl take for a file system without them.

``network`` is that and TCP and UDP sockets. The C library's resolver also asks for a netlink socket and for one to
nscd, and does well without them.

``exec`` is for any native program, in a root and in namespaces of PIDs, network and IPC of its own: processes, signals
and UNIX sockets of every kind reach nobody else there, and paths lead to nothing that is not its own. Still missing is
all that could get it out: namespaces, mounts, ptrace, other families of sockets, io_uring, bpf, keys, personalities;
``execveat``, which would run what is in memory only; and inotify, which would tell what others do with the libraries
that it shares with them.
"""

import errno

from retinue.cp.host import libc
from retinue.cp.host.seal.seccomp import OWN_PID, Allow, Condition, Filter, Refuse, Rule, assemble
from retinue.cp.host.seal.syscalls import UNKNOWN_FROM, number

__all__ = ["Filter", "policy", "rules"]

_PLAIN = """
    # time and the process itself
    nanosleep gettimeofday time times getrusage getcpu
    getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp uname
    umask getcwd chdir fchdir exit exit_group getitimer setitimer alarm pause wait4 waitid
    restart_syscall getrandom
    # memory
    brk munmap mprotect mremap msync membarrier
    # threads
    futex futex_waitv set_robust_list set_tid_address rseq sched_yield sched_get_priority_max
    sched_get_priority_min
    # signals
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack
    signalfd signalfd4
    # waiting
    epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select
    pselect6 eventfd eventfd2 timerfd_create timerfd_settime timerfd_gettime
    # descriptors
    read write readv writev pread64 pwrite64 preadv pwritev lseek close close_range
    dup dup2 dup3 pipe pipe2 sendfile splice tee copy_file_range
    # files, as far as Landlock lets them be opened
    access faccessat faccessat2 stat lstat fstat newfstatat statx statfs fstatfs readlink readlinkat
    getdents getdents64 ftruncate fallocate sync_file_range fsync fdatasync
    flock mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink
    symlinkat
    # sockets it was given
    sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg shutdown getsockname getpeername
"""

# The same numbers on x86_64 and aarch64.
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_SEQPACKET, _SOCK_TYPE = 1, 2, 5, 0xF
_IPPROTO_IP, _SOL_SOCKET, _IPPROTO_TCP, _IPPROTO_UDP, _IPPROTO_IPV6 = 0, 1, 6, 17, 41
_CLONE_THREAD = 0x00010000
# NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (NEWTIME shares its bit with the exit signal, which
# a thread has none of)
_CLONE_NAMESPACES = 0x80 | 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_O_ACCMODE, _O_TRUNC = 0o3, 0o1000
_READ, _WRITE, _READ_WRITE = 0, 1, 2
_SET_ID_BITS = 0o6000
_PR_GET_DUMPABLE, _PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 3, 15, 16, 0x53564D41
_FCNTL = (
    0, 1, 2, 3, 4,  # DUPFD GETFD SETFD GETFL SETFL
    5, 6, 7, 36, 37, 38,  # GETLK SETLK SETLKW, and of open file descriptions
    1030, 1032, 1033, 1034,  # DUPFD_CLOEXEC GETPIPE_SZ ADD_SEALS GET_SEALS
)  # fmt: skip
_IOCTL = (
    0x5421, 0x541B, 0x5450, 0x5451,  # FIONBIO FIONREAD FIONCLEX FIOCLEX
    0x5401, 0x802C542A, 0x5413,  # TCGETS TCGETS2 TIOCGWINSZ
)  # fmt: skip

_MADVISE = (
    0, 1, 2, 3, 4, 8,  # NORMAL RANDOM SEQUENTIAL WILLNEED DONTNEED FREE
    10, 11, 14, 15, 16, 17, 18, 19,  # DONTFORK DOFORK HUGEPAGE NOHUGEPAGE DONTDUMP DODUMP WIPEONFORK KEEPONFORK
    21, 22, 23, 25, 102, 103,  # PAGEOUT POPULATE_READ POPULATE_WRITE COLLAPSE GUARD_INSTALL GUARD_REMOVE
)  # fmt: skip
"""PAGEOUT has pages of files put out of memory for their owner only (and for who may write them)."""
_FADVISE = (0, 1, 2, 3, 5)  # NORMAL RANDOM SEQUENTIAL WILLNEED NOREUSE
_RWF_SAFE = 0x2 | 0x4 | 0x10  # DSYNC SYNC APPEND
_MAP_HUGETLB, _MFD_HUGETLB, _SHM_HUGETLB = 0x40000, 0x4, 0o4000
_NOT_OF_A_PID = 0x80000000
"""The bit that says of a clock that it is that of a process, a thread or a device."""

_OPEN_FLAGS = (_READ, _WRITE, _READ_WRITE, _O_TRUNC | _WRITE, _O_TRUNC | _READ_WRITE)


def _open(flags_at: int) -> tuple[Condition, Condition]:
    return (
        Condition(flags_at, _OPEN_FLAGS, _O_ACCMODE | _O_TRUNC),
        # The C library passes 0 where open(2) has no mode.
        Condition(flags_at + 1, (0,), _SET_ID_BITS),
    )


_SELF = (Condition(0, (0,)),)


def _none_of(argument: int, bits: int) -> tuple[Condition, ...]:
    return (Condition(argument, (0,), bits & 0xFFFFFFFF),)


def _socket_options(*names: int) -> tuple[Condition, ...]:
    return Condition(1, (_SOL_SOCKET,)), Condition(2, names)


_SO_SET = (2, 7, 8, 9, 13, 18, 20, 21)  # REUSEADDR SNDBUF RCVBUF KEEPALIVE LINGER RCVLOWAT RCVTIMEO SNDTIMEO
_SO_GET = (3, 4, 30, 38, 39)  # TYPE ERROR ACCEPTCONN PROTOCOL DOMAIN
_SO_NETWORK = (6, 10, 15)  # BROADCAST OOBINLINE REUSEPORT
_SO_EXEC_SET = (*_SO_NETWORK, 16, 29, 34)  # PASSCRED TIMESTAMP PASSSEC
_SO_EXEC_GET = (17, 19, 31, 59)  # PEERCRED SNDLOWAT PEERSEC PEERGROUPS

_CONDITIONAL: dict[str, tuple[Condition, ...]] = {
    "getpgid": _SELF,
    "getsid": _SELF,
    "prlimit64": _SELF,
    "sched_getaffinity": _SELF,
    "kill": (Condition(0, (OWN_PID,)),),
    "tgkill": (Condition(0, (OWN_PID,)),),
    "clone": (Condition(0, (_CLONE_THREAD,), _CLONE_THREAD | _CLONE_NAMESPACES),),
    "socketpair": (Condition(0, (_AF_UNIX,)), Condition(1, (_SOCK_STREAM, _SOCK_SEQPACKET), _SOCK_TYPE)),
    "prctl": (Condition(0, (_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA, _PR_GET_DUMPABLE)),),
    "fcntl": (Condition(1, _FCNTL),),
    "ioctl": (Condition(1, _IOCTL),),
    "open": _open(1),
    "openat": _open(2),
    "creat": (Condition(1, (0,), _SET_ID_BITS),),
    "fchmod": (Condition(1, (0,), _SET_ID_BITS),),
    "utimensat": (Condition(1, (0,), whole=True),),
    "clock_getres": _none_of(0, _NOT_OF_A_PID),
    "clock_gettime": _none_of(0, _NOT_OF_A_PID),
    "clock_nanosleep": _none_of(0, _NOT_OF_A_PID),
    "mmap": _none_of(3, _MAP_HUGETLB),
    "memfd_create": _none_of(1, _MFD_HUGETLB),
    "madvise": (Condition(2, _MADVISE),),
    "fadvise64": (Condition(3, _FADVISE),),
    "preadv2": _none_of(5, ~_RWF_SAFE),
    "pwritev2": _none_of(5, ~_RWF_SAFE),
}

_ROOTED = ("fchmod", "utimensat")
"""Only where code is mounted read-only."""

_SEALED: dict[str, tuple[Condition, ...]] = {
    "setsockopt": _socket_options(*_SO_SET),
    "getsockopt": _socket_options(*_SO_SET, *_SO_GET),
}

_NETWORK: dict[str, tuple[Condition, ...]] = {
    "socket": (
        Condition(0, (_AF_INET, _AF_INET6)),
        Condition(1, (_SOCK_STREAM, _SOCK_DGRAM), _SOCK_TYPE),
        # Not SCTP, MPTCP or the ping of IPPROTO_ICMP.
        Condition(2, (0, _IPPROTO_TCP, _IPPROTO_UDP)),
    ),
    "bind": (),
    "connect": (),
    "listen": (),
    "accept": (),
    "accept4": (),
    "setsockopt": _socket_options(*_SO_SET, *_SO_NETWORK),
    "getsockopt": _socket_options(*_SO_SET, *_SO_GET, *_SO_NETWORK),
}
_PROTOCOLS = (Condition(1, (_IPPROTO_IP, _IPPROTO_TCP, _IPPROTO_UDP, _IPPROTO_IPV6)),)
_NETWORK_OTHERWISE: dict[str, tuple[Condition, ...]] = {"setsockopt": _PROTOCOLS, "getsockopt": _PROTOCOLS}

_EXEC_PLAIN = """
    # time: also of its own threads and children, it knows no others
    clock_getres clock_gettime clock_nanosleep
    # processes
    fork vfork execve arch_prctl setsid setpgid getpgid getsid getpriority setpriority
    setuid setgid setreuid setregid setresuid setresgid setgroups capget capset
    sched_getparam sched_setparam sched_getscheduler sched_setscheduler sched_rr_get_interval
    sched_getaffinity sched_setaffinity sched_getattr sched_setattr ioprio_get
    getrlimit setrlimit
    # signals: the PID namespace is its own
    kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete
    # memory
    mlock mlock2 munlock mlockall munlockall remap_file_pages get_mempolicy
    shmat shmdt shmctl semget semop semtimedop semctl
    # files: the root is its own
    chown lchown fchown fchownat utime utimes futimesat utimensat truncate
    vmsplice
    # sockets
    bind connect listen accept accept4
"""

_PR_SELF = (1, 2, 7, 8, 21, 23, 27, 29, 30, 36, 37, 38, 39, 41, 42)
"""PDEATHSIG KEEPCAPS GET_SECCOMP CAPBSET_READ GET_SECUREBITS TIMERSLACK CHILD_SUBREAPER NO_NEW_PRIVS THP_DISABLE."""
_UNIX = (
    Condition(0, (_AF_UNIX,)),
    Condition(1, (_SOCK_STREAM, _SOCK_DGRAM, _SOCK_SEQPACKET), _SOCK_TYPE),
)
_S_IFMT, _S_IFIFO, _S_IFREG, _S_IFSOCK = 0o170000, 0o010000, 0o100000, 0o140000
_NODES = (0, _S_IFIFO, _S_IFREG, _S_IFSOCK)
_FCNTL_OWNER = (8, 9, 10, 11, 15, 16)  # SETOWN GETOWN SETSIG GETSIG SETOWN_EX GETOWN_EX
_FIOASYNC = 0x5452


def _no_set_id(mode_at: int) -> tuple[Condition, ...]:
    return (Condition(mode_at, (0,), _SET_ID_BITS),)


_EXEC: dict[str, tuple[Condition, ...]] = {
    # An exit signal is not NEWTIME, which only clone3 and unshare know.
    "clone": (Condition(0, (0,), _CLONE_NAMESPACES & ~0xFF),),
    "socket": _UNIX,
    "socketpair": _UNIX,
    "setsockopt": _socket_options(*_SO_SET, *_SO_EXEC_SET),
    "getsockopt": _socket_options(*_SO_SET, *_SO_GET, *_SO_EXEC_SET, *_SO_EXEC_GET),
    "shmget": _none_of(2, _SHM_HUGETLB),
    "prctl": (Condition(0, (_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA, _PR_GET_DUMPABLE, *_PR_SELF)),),
    "fcntl": (Condition(1, _FCNTL + _FCNTL_OWNER),),
    "ioctl": (Condition(1, (*_IOCTL, _FIOASYNC)),),
    "chmod": _no_set_id(1),
    "fchmodat": _no_set_id(2),
    "mknod": (Condition(1, _NODES, _S_IFMT | _SET_ID_BITS),),
    "mknodat": (Condition(2, _NODES, _S_IFMT | _SET_ID_BITS),),
}

_PROFILES: dict[str, tuple[str, dict[str, tuple[Condition, ...]], dict[str, tuple[Condition, ...]]]] = {
    "program": ("", _SEALED, {}),
    "network": ("", _NETWORK, _NETWORK_OTHERWISE),
    "exec": (_EXEC_PLAIN, _EXEC, {}),
}

_UNKNOWN = ("clone3", "openat2", "inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch")

_REFUSED = dict.fromkeys(_UNKNOWN, errno.ENOSYS) | {
    f"{prefix}{verb}xattr": errno.ENOTSUP for prefix in ("", "l", "f") for verb in ("get", "set", "list", "remove")
}


def _names(text: str) -> list[str]:
    return [name for line in text.splitlines() if not line.lstrip().startswith("#") for name in line.split()]


def rules(profile: str, machine: str = libc.MACHINE, *, rooted: bool = True) -> list[Rule]:
    """The rules of ``"program"``, ``"network"`` or ``"exec"``. ``rooted``: for a machine with a root of its own."""
    more, conditional, otherwise = _PROFILES[profile]
    named: dict[str, tuple[Condition, ...]] = dict.fromkeys(_names(_PLAIN), ()) | _CONDITIONAL
    named |= dict.fromkeys(_names(more), ()) | conditional
    found: list[Rule] = []
    for name, conditions in named.items():
        if (call := number(name, machine)) is not None and (rooted or name not in _ROOTED):
            found.append(Allow(call, conditions, otherwise.get(name, ())))
    for name, refusal in _REFUSED.items():
        if (call := number(name, machine)) is not None:
            found.append(Refuse(call, refusal))
    return found


def policy(profile: str, *, rooted: bool) -> Filter:
    """The assembled rules of a profile on this architecture."""
    return assemble(rules(profile, rooted=rooted), default=errno.EPERM, unknown_from=UNKNOWN_FROM, unknown=errno.ENOSYS)
