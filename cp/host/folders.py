"""What a running system leaves in the file system, and takes away again. Standard library only.

The runtime folder says that a system runs: ``lock`` (held by the nucleus while it lives), ``system.json`` and, from the
CP, ``operator.sock``. The state folder outlives it: ``end.json`` says how the system ended.
"""

import contextlib
import fcntl
import json
import os
import time
from typing import Any

__all__ = ["claim", "describe_system", "release"]

LOCK, ABOUT, OPERATOR, END = "lock", "system.json", "operator.sock", "end.json"


def claim(runtime: str) -> int:
    """Take a runtime folder for this process. Returns the descriptor that holds it, or -1 if another nucleus has it."""
    path = os.path.join(runtime, LOCK)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return -1
        # Its last holder may have removed the file between the open and the lock.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def describe_system(runtime: str, *, system: str, topology: str, state: str) -> None:
    """Write ``system.json``, and clear away the socket of a system that was killed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(runtime, OPERATOR))
    about = {"system": system, "topology": topology, "state": state, "nucleus_pid": os.getpid(), "started": time.time()}
    _write_json(os.path.join(runtime, ABOUT), about)


def release(runtime: str, state: str, *, how: str, text: str) -> None:
    """Write ``end.json`` and remove the runtime folder. :raises OSError: the state folder cannot be written to."""
    try:
        _write_json(os.path.join(state, END), {"time": time.time(), "how": how, "text": text})
    finally:
        # The lock last, for it says that the others are alive.
        for name in (OPERATOR, ABOUT, LOCK):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(runtime, name))
        with contextlib.suppress(OSError):  # somebody keeps something in there
            os.rmdir(runtime)


def _write_json(path: str, value: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    with open(path + ".new", "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(value, file)
    os.replace(path + ".new", path)
