"""How a native program is told a secret: as a descriptor, and where it has to be a path, by a path."""

import errno
import fcntl
import os
from typing import Final

from retinue.svm import unix
from retinue.svm.command import PRIVATE_RUN

_DESCRIPTORS: Final = "/proc/self/fd"


def as_descriptor(name: str, value: bytes) -> int:
    """A descriptor to read the value from, which nobody can change any more. It is in no file system."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(value)
        os.lseek(descriptor, 0, os.SEEK_SET)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def as_path(run: str, name: str, value: bytes, descriptor: int) -> str:
    """A path that the program can open to read the value. OSError when there is no safe one.

    In a root of its own a file in the folder ``run``, which is memory and nobody else's. Elsewhere that folder is the
    host's, where no secret may lie: then the name that the kernel gives to the inherited ``descriptor``.
    """
    if run == PRIVATE_RUN:
        return write_file(f"{run}/{name}.secret", value)
    if os.path.isdir(_DESCRIPTORS):
        return f"{_DESCRIPTORS}/{descriptor}"
    text = f"{{secrets.{name}}} has no path here, without a root of its own and /proc; RETINUE_SECRET_{name.upper()}"
    raise OSError(errno.ENOTSUP, f"{text} is a descriptor with the value")


def write_file(path: str, value: bytes) -> str:
    """A new file that this machine's user alone can read; returns its path."""
    unix.remove(path)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400), "wb") as file:
        file.write(value)
    return path
