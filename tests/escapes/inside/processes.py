"""Attempts at other processes: what is known of them, signals, tracing; at processes of its own, and at limits."""

import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import time
from functools import partial
from typing import Final

from tests.escapes.inside.attempt import REFUSALS, ROOT, USER, World, attempt, refused, survivors
from tests.escapes.inside.kernel import call

_GONE: Final = REFUSALS | {errno.ESRCH}
_EXEC: Final = {"exec": "its program may be any that Debian has"}
_LOOK: Final = {"mount-ns": "Landlock does not look at stat(2)"}

_PROC: Final = {
    "init-environment": ("/proc/1/environ", "process 1 may hide it"),
    "init-cmdline": ("/proc/1/cmdline", USER),
    "cp-environment": ("/proc/{cp}/environ", ROOT),
    "cp-memory": ("/proc/{cp}/mem", "reading at address 0 fails"),
    "cp-descriptors": ("/proc/{cp}/fd/0", ROOT),
    "other-memory": ("/proc/{other}/mem", "reading at address 0 fails"),
    "victim-environment": ("/proc/{victim}/environ", USER),
    "self-memory": ("/proc/self/mem", "reading at address 0 fails"),
    "self-maps": ("/proc/self/maps", USER),
    "self-status": ("/proc/self/status", USER),
    "self-root": ("/proc/self/root/etc/passwd", USER),
    "kallsyms": ("/proc/kallsyms", USER),
    "kcore": ("/proc/kcore", "not every host has it"),
    "keys": ("/proc/keys", "not every host has it"),
    "mounts": ("/proc/mounts", USER),
    "net-tcp": ("/proc/net/tcp", USER),
    "sched-debug": ("/proc/sched_debug", "not every host has it"),
    "sysctl": ("/proc/sys/kernel/hostname", USER),
    "loadavg": ("/proc/loadavg", USER),
}


def _enter_proc() -> None:
    for name, (template, unsealed) in _PROC.items():

        def read_it(world: World, template: str = template) -> object:
            with open(template.format(**world._asdict()), "rb") as file:
                return file.read(100)

        attempt(f"proc/read-{name}", unsealed=unsealed)(read_it)


_enter_proc()


@attempt("proc/list")
def _list(_: World) -> object:
    return os.listdir("/proc") or _nothing(errno.ENOENT)


def _nothing(number: int) -> object:
    raise refused(number)


@attempt("proc/which-processes-there-are", needs=_LOOK)
def _which(world: World) -> object:
    found = [pid for pid in (world.cp, world.nucleus, world.victim, world.other) if os.path.exists(f"/proc/{pid}")]
    return found or _nothing(errno.ENOENT)


@attempt("proc/executable-of-another", refusals=_GONE)
def _executable(world: World) -> object:
    return os.readlink(f"/proc/{world.victim}/exe")


@attempt("proc/cpu-clock-of-another", refusals=_GONE | {errno.EINVAL})
def _cpu_clock(world: World) -> object:
    """A clock is named by a pid: what processor time the victim has used."""
    return time.clock_gettime((~world.victim << 3) | 2)


@attempt("proc/session-of-another", refusals=_GONE)
def _session(world: World) -> object:
    return os.getsid(world.victim), os.getpgid(world.victim)


@attempt("proc/priority-of-another", refusals=_GONE)
def _priority_of_another(world: World) -> object:
    return os.getpriority(os.PRIO_PROCESS, world.victim)


@attempt("proc/affinity-of-another", refusals=_GONE)
def _affinity(world: World) -> object:
    return os.sched_getaffinity(world.victim)


@attempt("proc/load-of-the-host", refusals=REFUSALS | {errno.ENOSYS})
def _sysinfo(_: World) -> object:
    """sysinfo(2): load, free memory and number of processes of the host."""
    import ctypes

    buffer = ctypes.create_string_buffer(256)
    return call((99, 179), ctypes.addressof(buffer))


_OWN_PIDS: Final = {"exec": "everybody is who is in its PID namespace"}


@attempt("signals/everybody", refusals=_GONE, allowed=_OWN_PIDS)
def _everybody(_: World) -> object:
    os.kill(-1, 0)
    return "somebody"


@attempt("signals/own-group", refusals=_GONE, allowed=_EXEC)
def _own_group(_: World) -> object:
    os.kill(0, 0)
    return "somebody"


def _enter_signals() -> None:
    for name in ("cp", "nucleus", "other", "victim"):

        def kill_it(world: World, name: str = name) -> object:
            os.kill(getattr(world, name), 0)
            return "somebody"

        unsealed = USER if name in ("victim", "other", "cp", "nucleus") else ROOT
        attempt(f"signals/kill-{name}", refusals=_GONE, unsealed=unsealed)(kill_it)


_enter_signals()


@attempt("signals/every-pid", refusals=_GONE)
def _every_pid(world: World) -> object:
    """Every pid up to those of this test, but the own ones."""
    found = []
    own = {os.getpid(), os.getppid()}
    for pid in range(1, max(world.victim, world.other) + 100):
        if pid in own:
            continue
        try:
            os.kill(pid, 0)
        except OSError:
            continue
        found.append(pid)
    if world.profile == "exec" and max(found, default=0) < 1000 and len(found) < 8:
        raise refused(errno.ESRCH)  # those of its own PID namespace
    return found or _nothing(errno.ESRCH)


@attempt("signals/by-descriptor", refusals=_GONE, allowed=_OWN_PIDS)
def _by_descriptor(world: World) -> object:
    """A descriptor that signals somebody whenever something happens to it."""
    left, right = socket.socketpair()
    with left, right:
        return survivors(
            {
                "F_SETOWN": lambda: fcntl.fcntl(left, fcntl.F_SETOWN, world.victim),
                "F_SETOWN_EX": lambda: fcntl.fcntl(left, 15, world.victim.to_bytes(8, "little")),
                "F_SETSIG": lambda: fcntl.fcntl(left, 10, 9),
                "FIOSETOWN": lambda: fcntl.ioctl(left, 0x8901, world.victim.to_bytes(4, "little")),
                "SIOCSPGRP": lambda: fcntl.ioctl(left, 0x8902, world.victim.to_bytes(4, "little")),
                "F_SETLEASE": lambda: fcntl.fcntl(left, fcntl.F_SETLEASE, fcntl.F_RDLCK),
                "F_NOTIFY": lambda: fcntl.fcntl(left, fcntl.F_NOTIFY, fcntl.DN_ACCESS),
            },
            _GONE | {errno.EINVAL, errno.ENOTTY},
        )


@attempt("ptrace/attach", refusals=_GONE, unsealed=USER)
def _attach(world: World) -> object:
    """PTRACE_SEIZE of a process of the same user."""
    return call((101, 117), 0x4206, world.victim, 0, 0)


@attempt("ptrace/pidfd", refusals=_GONE)
def _pidfd(world: World) -> object:
    return os.pidfd_open(world.victim)


@attempt("ptrace/pidfd-getfd-of-the-victim", refusals=_GONE)
def _pidfd_getfd(world: World) -> object:
    return call((438, 438), os.pidfd_open(world.victim), 0, 0)


@attempt("ptrace/prlimit-of-another", refusals=_GONE)
def _prlimit(world: World) -> object:
    return resource.prlimit(world.victim, resource.RLIMIT_NOFILE)


@attempt("processes/fork", allowed=_EXEC)
def _fork(_: World) -> object:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


@attempt("processes/subprocess", allowed=_EXEC)
def _subprocess(world: World) -> object:
    """A program that is there: the interpreter."""
    import sys

    return subprocess.run([sys.executable, "-S", "-c", "pass"], check=True).returncode


@attempt("processes/run-a-shell", refusals=REFUSALS, allowed=_EXEC)
def _shell(_: World) -> object:
    """What most break-ins begin with."""
    return subprocess.run(["/bin/sh", "-c", "true"], check=True).returncode


@attempt("processes/run-a-file-of-its-own", refusals=REFUSALS | {errno.ENOEXEC})
def _own_file(world: World) -> object:
    """What it has written to its disk itself."""
    path = f"{world.disk}/run-me"
    with open(path, "wb") as file:
        file.write(b"#!/bin/true\n")
        os.fchmod(file.fileno(), 0o700)
    pid = os.posix_spawn(path, [path], {})
    status = os.waitpid(pid, 0)[1]
    return status if status == 0 else _nothing(errno.EACCES)


@attempt("processes/run-memory", refusals=REFUSALS | {errno.ENOEXEC})
def _run_memory(_: World) -> object:
    """A program in a memfd: nobody has ever seen it on a disk."""
    import sys

    memory = os.memfd_create("program", 0)
    with open(os.path.realpath(sys.executable), "rb") as file:
        while data := file.read(1 << 20):
            os.write(memory, data)
    if os.fork() == 0:
        try:
            os.execve(memory, ["program", "-S", "-c", "pass"], {})
        except OSError as error:
            os._exit(error.errno or 255)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    return status if status == 0 else _nothing(status)


@attempt("limits/raise", refusals=REFUSALS, unsealed=ROOT)
def _raise(_: World) -> object:
    def up(kind: int) -> object:
        hard = resource.getrlimit(kind)[1]
        if hard == resource.RLIM_INFINITY:
            return "infinite"
        try:
            resource.setrlimit(kind, (hard + 1, hard + 1))
        except ValueError as error:  # what the module makes of EPERM
            raise refused(errno.EPERM) from error
        return "raised"

    kinds = ("DATA", "NOFILE", "STACK", "CORE", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE")
    return survivors({kind: partial(up, getattr(resource, f"RLIMIT_{kind}")) for kind in kinds})


@attempt("limits/core-dump", refusals=REFUSALS, unsealed=USER)
def _core(_: World) -> object:
    """Of a limit of 0 a pattern that begins with | takes no notice; of 1 it does (core(5), fs/coredump.c)."""
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    return limits if limits != (1, 1) else _nothing(errno.EPERM)


@attempt("limits/pending-signals", refusals=REFUSALS | {errno.EAGAIN})
def _pending(_: World) -> object:
    """Signals that wait are counted for the user, of whom other machines may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    return (soft, hard) if hard == resource.RLIM_INFINITY or hard > 4096 else _nothing(errno.EAGAIN)


@attempt("priority/nice-down", refusals=REFUSALS, unsealed=ROOT)
def _nice(_: World) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, -5)


@attempt("priority/real-time", refusals=REFUSALS, unsealed=ROOT)
def _real_time(_: World) -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


@attempt("clock/set", refusals=REFUSALS, unsealed="it would set the clock")
def _clock(_: World) -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.time())


@attempt("terminals/tiocsti", refusals=REFUSALS | {errno.ENOTTY}, unsealed="a test has no terminal")
def _tiocsti(_: World) -> object:
    """Put a character into the input of whoever has the terminal behind one of its descriptors."""

    def push(descriptor: int) -> object:
        return fcntl.ioctl(descriptor, 0x5412, b"x")

    return survivors({str(number): partial(push, number) for number in range(3)}, REFUSALS | {errno.ENOTTY})


@attempt("terminals/become-controlling", refusals=REFUSALS | {errno.ENOTTY}, unsealed="a test has no terminal")
def _controlling(_: World) -> object:
    return fcntl.ioctl(0, 0x540E, 0)  # TIOCSCTTY


@attempt("terminals/new-terminal", refusals=REFUSALS | {errno.ENXIO})
def _new_terminal(_: World) -> object:
    return os.openpty()


@attempt("signals/stop-the-saved-system", refusals=_GONE, unsealed="it would stop the test", allowed=_OWN_PIDS)
def _parent(_: World) -> object:
    """Whoever made this process; 0 is what a parent outside its PID namespace is called."""
    parent = os.getppid()
    if parent == 0:
        raise refused(errno.ESRCH)
    os.kill(parent, signal.SIGCONT)
    return parent
