"""Run a command on a poorer host: ``python rungs.py WITHOUT[,WITHOUT...] COMMAND...``, the weaker rungs of the ladder.

A filter of system calls, inherited by everything the command starts, refuses what such a host refuses:

``user-namespaces``  EPERM, as in a container or on a desktop with AppArmor's restriction
``mounts``           EPERM for mount(2), as where AppArmor lets namespaces be made and nothing be done in them
``mount-attributes`` ENOSYS for mount_setattr(2), as before Linux 5.12
``landlock``         ENOSYS, as of a kernel without it

Whoever is under such a filter can still load others.
"""

import ctypes
import errno
import os
import platform
import shlex
import struct
import sys
from pathlib import Path

LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NEWUSER = 0x10000000
UNSHARE, CLONE, MOUNT = {"x86_64": (272, 56, 165), "aarch64": (97, 220, 40)}[platform.machine()]
CLONE3, MOUNT_SETATTR, LANDLOCK_CREATE_RULESET = 435, 442, 444

Step = tuple[int, int, int, int]
FIRST_ARGUMENT: Step = (LOAD, 0, 0, 16)


def refuse(number: int, error: int) -> list[Step]:
    """A call is refused."""
    return [(LOAD, 0, 0, 0), (EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE | error)]


def refuse_new_users(number: int) -> list[Step]:
    """A call is refused that has NEWUSER among the flags of its first argument."""
    test = (ANY_BIT, 0, 1, NEWUSER)
    return [(LOAD, 0, 0, 0), (EQUAL, 0, 3, number), FIRST_ARGUMENT, test, (RETURN, 0, 0, REFUSE | errno.EPERM)]


WITHOUT = {
    # The flags of clone3 lie in memory that no filter sees; ENOSYS makes libraries fall back on clone.
    "user-namespaces": [*refuse_new_users(UNSHARE), *refuse_new_users(CLONE), *refuse(CLONE3, errno.ENOSYS)],
    "mounts": refuse(MOUNT, errno.EPERM),
    "mount-attributes": refuse(MOUNT_SETATTR, errno.ENOSYS),
    "landlock": refuse(LANDLOCK_CREATE_RULESET, errno.ENOSYS),
}


def take_away(*names: str) -> None:
    """Put this process, and all that it will start, on a host without ``names``."""
    steps = [step for name in names for step in WITHOUT[name]] + [(RETURN, 0, 0, ALLOW)]
    code = b"".join(struct.pack("<HBBI", operation, yes, no, value) for operation, yes, no, value in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(buffer)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(38, 1, 0, 0, 0) or prctl(22, 2, program, 0, 0):  # NO_NEW_PRIVS, SECCOMP
        raise OSError(ctypes.get_errno(), "this host has no seccomp filters")


def interpreter(folder: Path, *names: str) -> str:
    """A wrapper that starts this interpreter on such a host: for ``sys.executable``, before a system is started."""
    wrapper = folder / f"python-without-{'-'.join(names)}"
    command = [sys.executable, "-I", str(Path(__file__).absolute()), ",".join(names), sys.executable]
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


if __name__ == "__main__":
    take_away(*sys.argv[1].split(","))
    os.execvp(sys.argv[2], sys.argv[2:])
