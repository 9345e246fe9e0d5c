"""Numbers of system calls, by name, for the architectures this runs on. Standard library only.

From the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (Linux 6.1). None: the
architecture never had the call.
"""

from retinue.cp.host import libc

__all__ = ["UNKNOWN_FROM", "number"]

UNKNOWN_FROM = 451
"""Calls from this number on are younger than the table."""

# fmt: off
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # time and the process itself
    "clock_getres": (229, 114), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "nanosleep":
    (35, 101), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage":
    (98, 165), "getcpu": (309, 168), "getpid": (39, 172), "getppid": (110, 173), "gettid":
    (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid":
    (108, 177), "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "getpgrp":
    (111, None), "uname": (63, 160), "sysinfo": (99, 179), "umask": (95, 166), "getcwd":
    (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "exit": (60, 93), "exit_group":
    (231, 94), "getitimer": (36, 102), "setitimer": (38, 103), "alarm": (37, None), "pause":
    (34, None), "wait4": (61, 260), "waitid": (247, 95), "restart_syscall": (219, 128), "getrandom":
    (318, 278),
    # memory
    "brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap":
    (25, 216), "madvise": (28, 233), "mincore": (27, 232), "msync": (26, 227), "membarrier":
    (324, 283), "memfd_create": (319, 279),
    # threads
    "futex": (202, 98), "futex_waitv": (449, 449), "set_robust_list": (273, 99), "set_tid_address":
    (218, 96), "rseq": (334, 293), "sched_yield": (24, 124), "sched_get_priority_max":
    (146, 125), "sched_get_priority_min": (147, 126),
    # signals
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending":
    (127, 136), "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sigaltstack":
    (131, 132), "signalfd": (282, None), "signalfd4": (289, 74),
    # waiting
    "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait":
    (232, None), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441), "poll": (7, None), "ppoll":
    (271, 73), "select": (23, None), "pselect6": (270, 72), "eventfd": (284, None), "eventfd2":
    (290, 19), "timerfd_create": (283, 85), "timerfd_settime": (286, 86), "timerfd_gettime": (287, 87),
    # descriptors
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64":
    (17, 67), "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "preadv2":
    (327, 286), "pwritev2": (328, 287), "lseek": (8, 62), "close": (3, 57), "close_range":
    (436, 436), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2":
    (293, 59), "sendfile": (40, 71), "splice": (275, 76), "tee": (276, 77), "copy_file_range":
    (326, 285),
    # files, as far as Landlock lets them be opened
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "stat": (4, None), "lstat":
    (6, None), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291), "statfs":
    (137, 43), "fstatfs": (138, 44), "readlink": (89, None), "readlinkat": (267, 78), "getdents":
    (78, None), "getdents64": (217, 61), "ftruncate": (77, 46), "fallocate": (285, 47), "fadvise64":
    (221, 223), "readahead": (187, 213), "sync_file_range": (277, 84), "fsync": (74, 82), "fdatasync":
    (75, 83), "flock": (73, 32), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir":
    (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat":
    (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink":
    (88, None), "symlinkat": (266, 36),
    # sockets it was given
    "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269), "recvfrom": (45, 207), "recvmsg":
    (47, 212), "recvmmsg": (299, 243), "shutdown": (48, 210), "getsockname": (51, 204), "getpeername":
    (52, 205), "getsockopt": (55, 209),
    # only with the arguments below
    "getpgid": (121, 155), "getsid": (124, 156), "fchmod": (91, 52), "socketpair":
    (53, 199), "setsockopt": (54, 208), "clone": (56, 220), "kill": (62, 129), "tgkill":
    (234, 131), "prctl": (157, 167), "prlimit64": (302, 261), "fcntl": (72, 25), "ioctl":
    (16, 29), "open": (2, None), "openat": (257, 56), "creat": (85, None), "utimensat":
    (280, 88), "sched_getaffinity": (204, 123),
    # only with the host's network
    "socket": (41, 198), "bind": (49, 200), "connect": (42, 203), "listen": (50, 201), "accept":
    (43, 202), "accept4": (288, 242),
    # only in an exec machine
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "arch_prctl": (158, None), "setsid":
    (112, 157), "setpgid": (109, 154), "getpriority": (140, 141), "setpriority": (141, 140), "setuid":
    (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143), "setresuid":
    (117, 147), "setresgid": (119, 149), "setgroups": (116, 159), "capget": (125, 90), "capset":
    (126, 91), "sched_setparam": (142, 118), "sched_getparam": (143, 121), "sched_setscheduler":
    (144, 119), "sched_getscheduler": (145, 120), "sched_rr_get_interval": (148, 127),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "sched_getattr": (315, 275),
    "ioprio_get": (252, 31), "getrlimit": (97, 163), "setrlimit": (160, 164), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "timer_create": (222, 107), "timer_settime": (223, 110),
    "timer_gettime": (224, 108), "timer_getoverrun": (225, 109), "timer_delete": (226, 111), "mlock":
    (149, 228), "munlock": (150, 229), "mlockall": (151, 230), "munlockall": (152, 231), "mlock2":
    (325, 284), "remap_file_pages": (216, 234), "get_mempolicy": (239, 236), "shmget": (29, 194),
    "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "semget": (64, 190), "semop":
    (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "chmod": (90, None), "fchmodat":
    (268, 53), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "truncate": (76, 45),
    "mknod": (133, None), "mknodat": (259, 33), "inotify_init": (253, None), "inotify_add_watch":
    (254, 27), "inotify_rm_watch": (255, 28), "inotify_init1": (294, 26), "vmsplice": (278, 75),
    # refused with an errno that callers know
    "clone3": (435, 435), "openat2": (437, 437), "getxattr": (191, 8), "lgetxattr":
    (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11), "llistxattr": (195, 12), "flistxattr":
    (196, 13), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr":
    (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}
# fmt: on

_COLUMN = {"x86_64": 0, "aarch64": 1}


def number(name: str, machine: str = libc.MACHINE) -> int | None:
    """The number of a call; None if the architecture does not have it."""
    return _NUMBERS[name][_COLUMN[machine]]
